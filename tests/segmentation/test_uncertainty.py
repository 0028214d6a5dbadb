"Predicted Dice: measures, regression, interval, and its way into confidence and JSON."
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from verdiff.data.packed import Packed
from verdiff.files import VerdiffError
from verdiff.networks.model import VerdiffNet
from verdiff.segmentation.confidence import (
    TRAITS,
    Reference,
    judge,
    load_reference,
    save_reference,
    sha256_of_weights,
)
from verdiff.segmentation.segmenter import Segmenter
from verdiff.segmentation.uncertainty import (
    DISTURBANCES,
    MEASURES,
    PredictedDice,
    answers,
    conformal,
    disturb,
    fit_predictor,
    learn_predictor,
    logit,
    mask_dice,
    measures,
    predict_others,
    read_predictor,
    ridge,
    strangeness,
)

LIMITS = dict.fromkeys(TRAITS, (0.1, 0.5, 0.9))
USUAL = dict.fromkeys(TRAITS, 0.5)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = VerdiffNet(channels=(8, 16), height=48, width=32, timesteps=20).eval()
    torch.nn.init.normal_(model.diffusion.out[-1].weight, std=0.3)
    return model


def world(n, seed=0):
    "Measures that tell the Dice of n results up to a noise, and studies of two."
    rng = np.random.default_rng(seed)
    doubt = np.exp(rng.normal(-2, 0.7, n))
    found = [dict.fromkeys(MEASURES, d) | {"apart": float(rng.random())} for d in doubt]
    true = 1 / (1 + np.exp(-(-1 - 1.2 * np.log(doubt) + rng.normal(0, 0.3, n))))
    return found, true, [str(i // 2) for i in range(n)]


def test_measures_by_hand():
    prior = np.array([[0.5, 0.9], [0.1, 1.0]])
    samples = np.array([[[0, 1], [0, 1.0]], [[0, 1], [1, 1.0]]])  # the mean of one pixel is 0.5
    got = measures(prior, samples)
    assert got["prior"] == pytest.approx((0.25 + 0.09 + 0.09) / 2)
    assert got["mean"] == pytest.approx(0.25 / 2)
    assert got["between"] == pytest.approx(1 - 4 / 5)
    assert got["spread"] == pytest.approx(0.5 / 2)
    assert got["apart"] == 0
    flat = measures(prior.ravel(), samples.reshape(2, -1))
    assert flat == got


def test_an_empty_mask_is_the_greatest_doubt():
    assert measures(np.zeros((4, 4)), np.zeros((3, 4, 4))) == dict.fromkeys(MEASURES, 1.0)
    one = measures(np.ones((4, 4)), np.ones((1, 4, 4)))  # a single sample has no other
    assert set(one.values()) == {0.0}


def test_mask_dice():
    a = np.array([True, True, False])
    assert mask_dice(a, ~a) == 0 and mask_dice(a, a) == 1 and mask_dice(a & ~a, a & ~a) == 1


def test_ridge_finds_the_line_and_shrinks():
    x = np.random.default_rng(0).normal(size=(200, 2)) * (1, 50) + (3, 9)
    y = 2 * x[:, 0] - 0.1 * x[:, 1] + 5
    weights, bias = ridge(x, y, 1e-9)
    np.testing.assert_allclose([*weights, bias], [2, -0.1, 5], atol=1e-6)
    assert np.abs(ridge(x, y, 1e3)[0]).max() < 1


def test_no_study_predicts_itself():
    found, true, groups = world(40)
    x, y = np.random.default_rng(1).normal(size=(40, 3)), logit(true)
    before = predict_others(x, y, groups)
    y2 = y.copy()
    y2[:2] += 5  # study "0"
    after = predict_others(x, y2, groups)
    assert (after[:2] == before[:2]).all() and not np.allclose(after[2:], before[2:])


def test_conformal_counts_the_new_one():
    misses = np.arange(1.0, 20.0)  # 19 misses: rank ceil(0.9 * 20) = 18
    assert conformal(misses) == 18 and conformal(misses, 0.99) == 19
    assert conformal(misses[::-1], 0.5) == 10


def test_the_interval_holds_nine_of_ten_new_ones():
    predictor, others = fit_predictor(*world(200))
    found, true, _ = world(2000, seed=1)
    low, high = np.array([predictor.predict(f)[1:] for f in found]).T
    assert 0.86 < np.mean((low <= true) & (true <= high)) < 0.95
    value = np.array([predictor.predict(f).value for f in found])
    assert np.corrcoef(value, true)[0, 1] > 0.8
    assert others.shape == (200,) and predictor.films == 200


def test_more_doubt_less_dice_and_always_within_0_and_1():
    predictor, _ = fit_predictor(*world(100))
    values = [predictor.predict(dict.fromkeys(MEASURES, d)) for d in (0, 0.01, 0.1, 1, 1e9)]
    assert all(0 < p.low <= p.value <= p.high < 1 for p in values)
    assert values[0].value > values[2].value > values[4].value


def test_disturbed_copies_do_not_make_the_interval():
    found, true, groups = world(100)
    wild = true.copy()
    wild[50:] = np.random.default_rng(3).random(50)
    clean = np.arange(100) < 50
    narrow, wide = (fit_predictor(found, wild, groups, c)[0] for c in (clean, None))
    assert narrow.below + narrow.above < wide.below + wide.above and narrow.films == 50


def test_too_few_studies():
    found, true, _ = world(12)
    with pytest.raises(VerdiffError, match="too few studies"):
        fit_predictor(found, true, ["a", "b", "c", "d"] * 3)


@pytest.mark.parametrize("kind", DISTURBANCES)
def test_disturbances(kind):
    image, mask = torch.rand(1, 1, 96, 32), torch.zeros(1, 1, 96, 32, dtype=torch.uint8)
    mask[..., 2:94, 8:24] = 1
    draw = [torch.Generator().manual_seed(5) for _ in range(2)]
    (x, y), (again, _) = (disturb(image, mask, kind, g) for g in draw)
    assert torch.equal(x, again) and not torch.equal(x, image) and x.shape == image.shape
    assert y.dtype == mask.dtype and set(y.unique().tolist()) == {0, 1}
    assert x.min() >= 0 and x.max() <= 1
    assert (y.sum() < mask.sum()) == (kind in ("cut", "zoom"))


def test_no_such_disturbance():
    with pytest.raises(ValueError, match="noise"):
        disturb(torch.rand(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), "rain", torch.Generator())


def packed(n):
    "Bright bars on dark ground."
    images = torch.randint(0, 60, (n, 1, 96, 64), dtype=torch.uint8)
    masks = torch.zeros_like(images)
    masks[:, :, 10:80, 20:40] = 1
    return Packed(images + 150 * masks, masks, [f"film {i}" for i in range(n)])


def test_learn_from_a_model(model):
    films = list(answers(model, packed(3), copies=2, ensemble=2, progress=False))
    assert [f.index for f in films] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [f.kind for f in films[:6]] == ["clean", "noise", "cut", "clean", "blur", "zoom"]
    assert films[0].samples.shape == (2, 48, 32) and films[0].pred.shape == (96, 64)
    six = packed(6)
    predictor = learn_predictor(model, six, ensemble=2)  # with a bar
    films = list(answers(model, six, ensemble=2, progress=False))  # the same seeds and copies
    assert predictor == fit_predictor([measures(f.prior, f.samples) for f in films],
                                      [mask_dice(f.pred, f.true) for f in films],
                                      [f"film {f.index}" for f in films], [f.kind == "clean" for f in films])[0]
    assert predictor.films == 6 and 0 < predictor.limit < predictor.usual < 1
    with pytest.raises(VerdiffError, match="too few"):
        learn_predictor(model, packed(4), ensemble=1, copies=0, progress=False)


def test_a_low_prediction_warns():
    predictor, _ = fit_predictor(*world(100))
    reference = Reference(LIMITS, 20, "", 1, 5, predictor)
    at = PredictedDice(predictor.limit, 0.1, 0.9)
    assert strangeness(predictor, at) == pytest.approx(1)
    assert strangeness(predictor, at._replace(value=0.999)) == 0
    assert judge(reference, USUAL)[0] == judge(reference, USUAL, at._replace(value=0.999))[0]
    assert judge(reference, USUAL, at)[0] == pytest.approx(0.5)
    confidence, said = judge(reference, USUAL, at._replace(value=0.2))
    assert confidence < 0.5 and "predicted Dice is only 0.20" in said
    assert judge(replace(reference, dice=None), USUAL, at._replace(value=0.2))[1] is None


def test_reference_with_and_without(model, tmp_path):
    model.save_pretrained(tmp_path)
    predictor, _ = fit_predictor(*world(50))
    reference = Reference(LIMITS, 20, sha256_of_weights(tmp_path), 1, 2, predictor)
    path = save_reference(reference, tmp_path)
    assert load_reference(tmp_path) == reference
    old = json.loads(path.read_text())
    del old["dice"]  # as earlier versions wrote it
    path.write_text(json.dumps(old))
    assert load_reference(tmp_path) == replace(reference, dice=None)
    assert Segmenter(model, "cpu", load_reference(tmp_path)).predict(
        np.full((96, 64), 90, np.uint8)).record()["predicted_dice"] is None


@pytest.mark.parametrize("key, value", [("names", ["prior"]), ("weights", [float("nan")] * 5),
                                        ("names", list("abcde")), ("bias", "x"), ("limit", 2)])
def test_damaged(tmp_path, model, key, value):
    model.save_pretrained(tmp_path)
    predictor = asdict(fit_predictor(*world(50))[0])
    assert read_predictor(predictor) is not None and read_predictor(None) is None
    path = save_reference(Reference(LIMITS, 20, sha256_of_weights(tmp_path)), tmp_path)
    whole = json.loads(path.read_text()) | {"dice": predictor | {key: value}}
    path.write_text(json.dumps(whole))
    with pytest.raises(VerdiffError, match="damaged.*verdiff calibrate"):
        load_reference(tmp_path)


def test_each_result_says_it(model):
    predictor, _ = fit_predictor(*world(50))
    segmenter = Segmenter(model, "cpu", Reference(LIMITS, 20, "", 1, 2, predictor))
    image = np.random.default_rng(0).integers(0, 256, (96, 64), dtype=np.uint8)
    got = segmenter.predict(image)
    if not got.mask.any():
        pytest.fail("this model finds nothing, so the test says nothing")
    assert got.predicted_dice == predictor.predict(got.measures)
    said = got.record()["predicted_dice"]
    assert list(said) == ["value", "low", "high"] and said["low"] <= said["value"] <= said["high"]
    assert segmenter.predict(image, ensemble=3).predicted_dice is None  # not as calibrated
