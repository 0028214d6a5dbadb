"""The comparison: one loop for all methods, results that survive, sentences for all that is bad."""
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from verdiff.cli import main
from verdiff.data.canvas import fit_image
from verdiff.data.packed import Packed, pack
from verdiff.data.phantom_set import PhantomSet
from verdiff.data.splits import image_subsets
from verdiff.files import VerdiffError
from verdiff.lab.comparison import (
    Result,
    compare,
    masks_result,
    measure,
    predict,
    records,
    run_method,
    score,
    table,
)
from verdiff.lab.fitting import at_pace, fit
from verdiff.lab.methods import (
    METHODS,
    Missing,
    MonaiDiffusion,
    Plain,
    PromptedSAM,
    make_network,
    method,
    need,
    nnunet_plan,
    supervised_loss,
)
from verdiff.lab.nnunet import run_nnunet, write_nnunet_raw
from verdiff.metrics import dice, iou_from_dice
from verdiff.settings import LATER, load_settings
from verdiff.training.loop import learning_rate, take_step
from verdiff.training.run import train

TINY = ["height=64", "width=32", "channels=4,8", "max_steps=6", "batch_size=4", "checkpoint_every=3",
        "timesteps=50", "sample_steps=1", "ensemble=2", "msfm_dim=4"]


@pytest.fixture(scope="module")
def settings():
    return load_settings("smoke", TINY)


@pytest.fixture(scope="module")
def films(settings):
    return pack(PhantomSet(size=settings.size, split="training", n_training=8), progress=False)


@pytest.fixture(scope="module")
def test_films():
    return pack(PhantomSet(size=(128, 64), split="test", n_test=5), progress=False)


def has(*packages):
    "Whether they are installed and can be imported: a torchvision for another torch cannot."
    try:
        return need(*packages) is not None
    except Missing:
        return False


NEEDS = {"unet": "monai", "swin": "monai", "monai_diffusion": "monai", "fcn": "torchvision", "deeplabv3": "torchvision", "fcn_resnet50": "torchvision",
         "deeplabv3_resnet50": "torchvision", "nnunet": "nnunetv2", "sam": "transformers",
         "medsegdiff_lib": "med_seg_diff_pytorch"}


# ---------------------------------------------------------------- the registry


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_learns_or_says_what_it_needs(name, settings, films):
    s = replace(settings, channels=(8, 16))
    if name in NEEDS and not has(NEEDS[name]):
        with pytest.raises(Missing, match=NEEDS[name].split("_")[0] + r".*(verdiff\[compare\]|--force-reinstall)"):
            make_network(name, s)
        pytest.skip(f"{NEEDS[name]} is not installed, or not for this torch")
    if name == "sam":
        with pytest.raises(Missing, match="weights"):
            make_network(name, s)
        return
    network = make_network(name, s)
    image, mask = films.images[:4].float() / 255, films.masks[:4].float()
    t, noise = torch.tensor([3, 17, 30, 49]), torch.randn(mask.shape, generator=torch.Generator().manual_seed(0))
    loss = network.train().loss(image, mask, t, noise)
    loss.backward()
    assert torch.isfinite(loss) and any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    with torch.no_grad():
        p = network.eval().probability(image)
    assert p.shape == mask.shape and p.min() >= 0 and p.max() <= 1


def test_same_seed_same_network(settings):
    a, b, other = (make_network("unet", replace(settings, seed=s)).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a) and not all(torch.equal(a[k], other[k]) for k in a)


def test_own_method_in_ten_lines(settings, films, test_films, tmp_path):
    @method("own", "one convolution")
    def build(settings):
        return nn.Conv2d(1, 1, 3, padding=1)

    try:
        result, = compare(["own"], settings, films, test_films, tmp_path, progress=False)
        assert result.parameters == 10 and len(result.scores["dice"]) == 5 and not result.why_not
    finally:
        del METHODS["own"]


def test_any_size_is_padded_and_cropped(settings):
    class Even(nn.Conv2d):
        def forward(self, x):
            assert x.shape[-2] % 32 == 0 and x.shape[-1] % 32 == 0
            return super().forward(x)

    net = Plain(Even(1, 1, 3, padding=1), settings, 32)
    image = torch.rand(2, 1, 50, 33)
    assert net.probability(image).shape == image.shape
    assert torch.isfinite(net.loss(image, (image > 0.5).float(), None, None))


def test_deep_supervision_weighs_coarse_outputs_half(settings):
    class Two(nn.Module):
        def forward(self, x):
            return [x, nn.functional.avg_pool2d(x, 2)]

    net, image, mask = Plain(Two(), settings), torch.randn(2, 1, 16, 16), (torch.rand(2, 1, 16, 16) > 0.5).float()
    fine, coarse = (supervised_loss([x], mask) for x in net.net(image))
    torch.testing.assert_close(net.loss(image, mask, None, None), (fine + coarse / 2) / 1.5)


# ---------------------------------------------------------------- the loop


def test_same_weights_as_the_trainer(settings, films, tmp_path):
    reference = train(settings, films, None, tmp_path / "a", progress=False).state_dict()
    done = fit(make_network("verdiff", settings), settings, films, tmp_path / "b", progress=False)
    for key, value in done.average.net.state_dict().items():
        torch.testing.assert_close(value, reference[key], rtol=0, atol=1e-6)


def test_interrupted_run_ends_with_the_same_weights(settings, films, tmp_path, monkeypatch):
    whole = fit(make_network("unet", settings), settings, films, tmp_path / "a", progress=False)
    calls, original = [], take_step

    def killed(*args):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr("verdiff.lab.fitting.take_step", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(make_network("unet", settings), settings, films, tmp_path / "b", progress=False)
    again = fit(make_network("unet", settings), settings, films, tmp_path / "b", progress=False)
    assert len(calls) == 8  # three of six steps were kept
    assert again.losses == whole.losses
    for a, b in zip(again.average.state_dict().values(), whole.average.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_loss_that_is_no_number_is_a_sentence(settings, films, tmp_path):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def loss(self, *batch):
            return self.w.sum() * float("nan")

    with pytest.raises(VerdiffError, match="the loss or its gradient is nan at step 1; try a smaller learning_rate"):
        fit(Broken(), settings, films, tmp_path, progress=False)


# ---------------------------------------------------------------- scores and results


def test_measures_against_a_shifted_square():
    mask = torch.zeros(1, 1, 40, 40, dtype=torch.bool)
    mask[..., 10:30, 10:30] = True
    found = measure(mask.roll(3, -1), mask)
    assert found["dice"][0] == pytest.approx(17 / 20) and found["iou"][0] == pytest.approx(iou_from_dice(17 / 20))
    assert found["hd95"][0] == 3 and 0.4 < found["surface_dice"][0] < 1


def test_score_is_dice_of_the_enlarged_probability(settings, test_films):
    network = make_network("unet", settings).eval()
    scores, seconds = score(network, test_films, settings.size, batch_size=2)
    p, _ = predict(network, test_films.images, settings.size)
    np.testing.assert_allclose(scores["dice"], dice(p > 0.5, test_films.masks > 0).numpy(), atol=1e-9)
    assert seconds > 0 and p.shape == test_films.images.shape


def test_a_finished_method_is_read_not_run(settings, films, test_films, tmp_path, monkeypatch):
    first = compare(["prior", "unet"], settings, films, test_films, tmp_path, progress=False)
    monkeypatch.setattr("verdiff.lab.comparison.make_network", lambda *a: pytest.fail("trained again"))
    again = compare(["prior", "unet"], settings, films, test_films, tmp_path, progress=False)
    assert [r.scores for r in again] == [r.scores for r in first]
    rows = (tmp_path / "unet" / "scores.csv").read_text().splitlines()
    assert rows[0] == "name,dice,iou,hd95,surface_dice" and len(rows) == 6


def test_a_result_of_another_run_is_refused(settings, films, test_films, tmp_path):
    run_method("unet", settings, films, test_films, tmp_path, progress=False)
    with pytest.raises(VerdiffError, match="max_steps was 6 there and is 7 here"):
        run_method("unet", replace(settings, max_steps=7), films, test_films, tmp_path, progress=False)
    with pytest.raises(VerdiffError, match="films was 5 there and is 2 here"):
        run_method("unet", settings, films, test_films.subset([0, 1]), tmp_path, progress=False)
    (tmp_path / "unet" / "result.json").write_text('{"method": 1')
    with pytest.raises(VerdiffError, match="result.json is damaged"):
        run_method("unet", settings, films, test_films, tmp_path, progress=False)


def test_a_result_older_than_a_setting_is_read(settings, films, test_films, tmp_path):
    first = run_method("unet", settings, films, test_films, tmp_path, progress=False)
    path = tmp_path / "unet" / "result.json"
    old = json.loads(path.read_text())
    for key in LATER:
        del old["about"]["settings"][key]
    path.write_text(json.dumps(old))
    assert run_method("unet", settings, films, test_films, tmp_path, progress=False).scores == first.scores
    with pytest.raises(VerdiffError, match="stem was 1 there and is 2 here"):
        run_method("unet", replace(settings, stem=2), films, test_films, tmp_path, progress=False)


def test_table_and_paired_differences(settings, films, test_films, tmp_path):
    results = compare(["verdiff", "unet"], settings, films, test_films, tmp_path, progress=False)
    missing = Result("x", "a method", "", "needs the package x", [], {}, 0, 0.0, 0.0, {})
    rows = records([*results, missing])
    by = {r["method"]: r for r in rows}
    a, b = (np.array(r.scores["dice"]) for r in results)
    assert by["unet"]["difference"] == pytest.approx((b - a).mean()) and by["verdiff"]["difference_high"] == 0
    assert by["unet"]["difference_low"] <= by["unet"]["difference"] <= by["unet"]["difference_high"]
    text = table([*results, missing])
    assert "not run: needs the package x" in text and f"{a.mean():.3f} ± {a.std(ddof=1):.3f}" in text
    assert records([missing]) == []


def test_public_films_come_in_three_sets():
    names = [f"sunhl-1th-28-Feb-2017-{n} AP.jpg" for n in ("239 A", "243 A", "999 A")]
    assert [len(v) for v in image_subsets(names).values()] == [3, 2, 1]
    assert list(image_subsets(["phantom"])) == ["all"]


def test_masks_of_another_program(test_films, films, tmp_path):
    home = write_nnunet_raw(films, test_films, tmp_path)
    about = json.loads((home / "dataset.json").read_text())
    assert about["numTraining"] == 8 == len(list((home / "labelsTr").iterdir()))
    assert set(np.unique(np.asarray(Image.open(home / "labelsTr" / "train_0000.png")))) == {0, 1}
    folder = tmp_path / "masks"
    folder.mkdir()
    for i, mask in enumerate(test_films.masks):
        Image.fromarray(mask[0].numpy() * 255).save(folder / f"test_{i:04d}.png")
    assert masks_result("them", folder, test_films).scores["dice"] == [1.0] * 5
    (folder / "test_0003.png").unlink()
    with pytest.raises(VerdiffError, match="no mask of"):
        masks_result("them", folder, test_films)


def test_case_08_masks_that_do_not_lie_on_their_films_are_refused(tmp_path):
    "True masks, squashed to a square, transposed or padded, once scored a Dice of 0.2 without a word."
    data = pack(PhantomSet(split="test", size=(192, 64), n_test=3), progress=False)
    assert len(data.shapes) == 3 and data.subset([2]).shapes == data.shapes[2:]
    films = PhantomSet(split="test", size=data.shapes[0], n_test=3)  # at their own size
    def write(change):
        for i in range(3):
            mask = Image.fromarray(films.arrays(i)[1] * np.uint8(255))
            change(mask).save(tmp_path / f"test_{i:04d}.png")
    h, w = data.shapes[0]
    for good in (lambda x: x, lambda x: x.resize((w // 2, h // 2)), lambda x: fit_image(x, (192, 64))[0]):
        write(good)
        assert min(masks_result("them", tmp_path, data).scores["dice"]) > 0.9
    for bad in (lambda x: x.resize((256, 256)), lambda x: x.transpose(Image.Transpose.TRANSPOSE),
                lambda x: x.crop((-w // 2, 0, w + w // 2, h))):
        write(bad)
        with pytest.raises(VerdiffError, match=rf"test_0000.png: a mask of .* does not lie on .*{h}x{w}; write it"):
            masks_result("them", tmp_path, data)
    write(lambda x: x.resize((256, 256)))
    assert min(masks_result("them", tmp_path, data, "squash").scores["dice"]) > 0.5  # there it may be stretched


def test_masks_are_found_by_number_or_by_name_never_by_both(tmp_path):
    blank = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    truth = blank.clone()
    truth[0, :, :4], truth[1, :, 4:] = 1, 1
    twins = Packed(blank, truth, ["left/001.png", "right/001.png"])
    for name, mask in (("001", truth[0]), ("test_0000", truth[0]), ("test_0001", truth[1])):
        Image.fromarray(mask[0].numpy() * 255).save(tmp_path / f"{name}.png")
    assert masks_result("them", tmp_path, twins).scores["dice"] == [1.0, 1.0]
    (tmp_path / "test_0000.png").unlink(), (tmp_path / "test_0001.png").unlink()
    with pytest.raises(VerdiffError, match="several images are called 001; number the masks"):
        masks_result("them", tmp_path, twins)


def test_a_result_of_other_films_is_refused(settings, films, test_films, tmp_path):
    run_method("unet", settings, films, test_films, tmp_path, progress=False)
    others = Packed(test_films.images, test_films.masks, [f"new-{n}" for n in test_films.names])
    with pytest.raises(VerdiffError, match="belongs to another run: it is of other images or masks"):
        run_method("unet", settings, films, others, tmp_path, progress=False)


def test_a_result_of_other_masks_is_refused(settings, films, test_films, tmp_path):
    run_method("unet", settings, films, test_films, tmp_path, progress=False)
    others = Packed(test_films.images, 1 - test_films.masks, test_films.names)
    with pytest.raises(VerdiffError, match="belongs to another run: it is of other images or masks"):
        run_method("unet", settings, films, others, tmp_path, progress=False)
    again = run_method("unet", replace(settings, checkpoint_every=7), films, test_films, tmp_path, progress=False)
    assert again.scores["dice"]  # a setting that changes no result


def test_a_second_process_is_kept_out(settings, films, test_films, tmp_path):
    code = ("import sys, time; from pathlib import Path; from verdiff.files import run_lock\n"
            "with run_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "unet")], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"held\n"
            with pytest.raises(VerdiffError, match="another process is at work there"):
                run_method("unet", settings, films, test_films, tmp_path, progress=False)
        finally:
            other.kill()


def test_a_gradient_that_is_no_number_is_a_sentence(settings, films, tmp_path):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

        def loss(self, *batch):
            return self.w.abs().sqrt().sum()  # 0, with an infinite slope

    with pytest.raises(VerdiffError, match="the loss or its gradient is nan at step 1; try a smaller learning_rate"):
        fit(Broken(), settings, films, tmp_path, progress=False)
    assert not list(tmp_path.glob("checkpoint*"))


def test_masks_of_the_films_own_size(tmp_path):
    size = (96, 32)
    films = [Image.fromarray(np.pad(np.full((20, 10), 255, np.uint8), ((20, 20), (h, 15)))) for h in (10, 40)]
    canvas = [fit_image(f, size)[0] for f in films]
    masks = torch.from_numpy(np.stack([np.asarray(x) >= 128 for x in canvas]))[:, None].byte()
    data = Packed(masks * 255, masks, ["a.png", "b.png"])
    for f, name in zip(films, data.names, strict=True):
        f.save(tmp_path / name)
    assert masks_result("them", tmp_path, data).scores["dice"] == [1.0, 1.0]


def test_monai_learns_every_time_and_is_told_the_right_one(settings):
    method = MonaiDiffusion(settings)
    told = []
    method.net.forward = lambda x, timesteps, **kw: told.append((x, timesteps)) or x[:, :1]
    image, mask = torch.zeros(2, 1, 64, 32), torch.ones(2, 1, 64, 32)
    t, noise = torch.tensor([0, settings.timesteps - 1]), torch.zeros(2, 1, 64, 32)
    method.loss(image, mask, t, noise)
    (x, times), = told
    root = method.scheduler.alphas_cumprod.sqrt()
    assert times.tolist() == t.tolist()
    torch.testing.assert_close(x[:, 0, 0, 0], root[t].to(x.dtype))
    told.clear()
    method.probability(image)
    assert {int(s) for _, s in told} == {settings.timesteps - 1}  # one step: the noisiest time


def test_samplers_of_others_take_the_seed(settings):
    method = MonaiDiffusion(settings)
    method.net.forward = lambda x, timesteps, **kw: x[:, :1]
    image = torch.zeros(1, 1, 64, 32)
    first, again = method.probability(image), method.probability(image)
    method.settings = replace(settings, seed=settings.seed + 1)
    assert torch.equal(first, again) and not torch.equal(first, method.probability(image))


# ---------------------------------------------------------------- a budget of minutes


class Clock:
    "Each step costs ten seconds of the processor and a minute by the clock."

    def __init__(self, monkeypatch):
        self.asked = 0
        monkeypatch.setattr("verdiff.lab.fitting.time", self)

    def process_time(self):
        return 10.0 * (self.asked // 2)

    def perf_counter(self):
        self.asked += 1  # at the start and at the end of each step
        return 60.0 * (self.asked // 2)


def test_minutes_of_the_processor_end_the_run_and_the_cosine(settings, films, tmp_path, monkeypatch):
    Clock(monkeypatch)
    s = replace(settings, warmup_steps=0, max_steps=2)
    seen = []
    monkeypatch.setattr("verdiff.lab.fitting.take_step",
                        lambda *args: seen.append(learning_rate(args[3], args[4])) or take_step(*args))
    run = fit(make_network("unet", s), s, films, tmp_path, progress=False, minutes=1.0)
    assert len(run.losses) == 6 and run.cpu_seconds == 60 and run.seconds == 360  # not two steps
    whole = replace(s, max_steps=6)
    assert seen == pytest.approx([learning_rate(whole, k) for k in range(6)])


def test_minutes_go_on_where_they_stopped(settings, films, tmp_path, monkeypatch):
    Clock(monkeypatch)
    s, calls = replace(settings, lr_schedule="constant", checkpoint_every=1), []

    def killed(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return take_step(*args)

    whole = fit(make_network("unet", s), s, films, tmp_path / "a", progress=False, minutes=1.0)
    monkeypatch.setattr("verdiff.lab.fitting.take_step", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(make_network("unet", s), s, films, tmp_path / "b", progress=False, minutes=1.0)
    Clock(monkeypatch)
    again = fit(make_network("unet", s), s, films, tmp_path / "b", progress=False, minutes=1.0)
    assert len(calls) == 7 and again.losses == whole.losses and again.cpu_seconds == 60
    more = fit(make_network("unet", s), s, films, tmp_path / "b", progress=False, minutes=1.5)
    assert len(more.losses) == 9  # a constant rate may go on


def test_a_cosine_of_other_minutes_is_refused(settings, films, tmp_path, monkeypatch):
    Clock(monkeypatch)
    fit(make_network("unet", settings), settings, films, tmp_path, progress=False, minutes=0.5)
    for other in (1.0, None):
        with pytest.raises(VerdiffError, match="holds a run with another budget"):
            fit(make_network("unet", settings), settings, films, tmp_path, progress=False, minutes=other)


def test_the_pace_is_that_of_the_budget(settings):
    assert at_pace(settings, 30, 0.25).max_steps == 120
    assert at_pace(settings, 0, 0.0).max_steps == 10**9  # nothing is known yet


def test_command_with_minutes(tmp_path, capsys):
    words = [*WORDS[:-1], "prior", "--limit", "2", "--device", "cpu", "--minutes", "0.002", "--out", str(tmp_path)]
    assert main(words) == 0 and "0.002 minutes each" in capsys.readouterr().out
    about = json.loads((tmp_path / "prior" / "result.json").read_text())["about"]
    assert about["minutes"] == 0.002 and about["cpu_seconds"] >= 0.12 and about["steps"] == len(about["losses"])
    assert main(words) == 0  # only read
    assert main([*words[:-3], "0.004", "--out", str(tmp_path)]) == 2
    assert "minutes was 0.002 there and is 0.004 here" in capsys.readouterr().err


# ---------------------------------------------------------------- extras


def test_a_torchvision_for_another_torch_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "broken_vision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    (tmp_path / "broken_otherwise.py").write_text("raise RuntimeError('something else')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Missing, match="needs a torchvision made for torch .*; install the two together") as error:
        need("broken_vision")
    assert "\n" not in str(error.value)
    with pytest.raises(RuntimeError, match="something else"):
        need("broken_otherwise")


def test_a_missing_package_names_its_extra():
    with pytest.raises(Missing, match=r'needs the package no_such_thing: pip install "verdiff\[notebooks\]"'):
        need("no_such_thing.at_all", extra="notebooks")


def test_the_package_registers_no_operators_of_others():
    code = "import verdiff.lab.methods, torch; print(hasattr(torch.ops.torchvision, 'nms'))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"


@pytest.mark.skipif(not has("nnunetv2"), reason="needs nnunetv2")
def test_nnunet_plans_with_its_own_planner():
    plan = nnunet_plan((192, 64), 432)
    strides = np.prod(plan["architecture"]["arch_kwargs"]["strides"], axis=0)
    assert list(plan["patch_size"]) == [192, 64] and all(n % s == 0 for n, s in zip((192, 64), strides, strict=True))


@pytest.mark.skipif(not has("torchvision", "nnunetv2"), reason="needs nnunetv2 and torchvision")
def test_nnunet_trains_and_predicts_by_itself(settings, films, test_films, tmp_path, monkeypatch):
    def run(epochs=2):
        return run_nnunet(settings, films, test_films, test_films, tmp_path, epochs=epochs, iterations=2,
                            batch_size=2, progress=False)

    trainer = need("nnunetv2.training.nnUNetTrainer.nnUNetTrainer").nnUNetTrainer
    end = trainer.on_epoch_end

    def stop(self):
        end(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(trainer, "on_epoch_end", stop)
        run()
    steps = []
    monkeypatch.setattr(trainer, "on_epoch_end", lambda self: (steps.append(self.current_epoch), end(self)))
    first = run()
    assert steps == [1]  # the second epoch only
    assert len(first.scores["dice"]) == len(test_films) and len(first.about["losses"]) == 2
    assert np.isfinite(list(first.scores.values())).all() and first.parameters > 1e6 and first.train_seconds > 0
    assert run().scores == first.scores
    with pytest.raises(VerdiffError, match="another run"):
        run(epochs=3)


@pytest.mark.skipif(not has("transformers.models.sam.modeling_sam"), reason="needs transformers")
def test_sam_of_random_weights_learns_only_its_decoder():
    from transformers import SamConfig, SamModel
    vision = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=8,
                  output_channels=16, num_pos_feats=8, global_attn_indexes=[0], mlp_dim=64)
    config = SamConfig(vision_config=vision, prompt_encoder_config=dict(hidden_size=16, image_size=64, patch_size=8),
                       mask_decoder_config=dict(hidden_size=16, num_attention_heads=2, mlp_dim=32, iou_head_hidden_dim=16))
    sam = PromptedSAM(SamModel(config))
    out = sam(torch.rand(2, 1, 40, 16))
    assert out.shape == (2, 1, 40, 16)
    out.sum().backward()
    moved = {n.split(".")[1] for n, p in sam.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == {"mask_decoder"}


# ---------------------------------------------------------------- the command

WORDS = ["compare", "--data", "phantom", "--profile", "smoke", "--methods", "unet"]


def test_command(tmp_path, capsys):
    words = [*WORDS, "--limit", "3", "--device", "cpu", "--out", str(tmp_path)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "U-Net (MONAI)" in said and "3 images, all" in said
    rows = json.loads((tmp_path / "comparison.json").read_text())["rows"]
    assert rows[0]["method"] == "unet" and 0 <= rows[0]["dice"] <= 1
    before = (tmp_path / "unet" / "result.json").stat().st_mtime_ns
    assert main(words) == 0 and (tmp_path / "unet" / "result.json").stat().st_mtime_ns == before
    assert main([*words, "--fresh"]) == 0 and (tmp_path / "unet" / "result.json").stat().st_mtime_ns > before


@pytest.mark.parametrize("more, words", [
    (["--methods", "unett"], "there is no method 'unett'"),
    (["--profile", "comparision"], "comparison"),
    (["--data", "nowhere.zip"], "nowhere.zip"),
    (["--masks", "them"], "NAME=DIR"),
    (["--masks", "them=nowhere"], "NAME=DIR"),
    (["--masks", "=."], "NAME=DIR"),
    (["--masks", "prior=."], "there is another row 'prior'"),
    (["--masks", "them=.", "--masks", "them=tests"], "there is another row 'them'"),
    (["--masks", f"them={Path(__file__).parent}"], "no mask of"),  # before hours of training
    (["--out", __file__], "test_comparison.py is a file; name a folder"),
    (["--methods", "unet", "--set", "channels=8"], "U-Net (MONAI) cannot be built with channels = 8"),
    (["--device", "cuda:99"], "cuda:99"),
    (["--minutes", "0"], "--minutes 0: give a number above 0"),
    (["--minutes", "nan"], "--minutes nan: give a number above 0"),
])
def test_bad_words_are_one_sentence(more, words, tmp_path, capsys):
    assert main([*WORDS, "--out", str(tmp_path / "out"), *more]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and said.startswith("verdiff: error: ")
    assert not list((tmp_path / "out").rglob("*.json"))


def test_data_where_nothing_is_packed(settings):
    empty = Packed(torch.zeros(0, 1, 64, 32, dtype=torch.uint8), torch.zeros(0, 1, 64, 32, dtype=torch.uint8), [])
    with pytest.raises(VerdiffError, match="no image to train on"):
        fit(make_network("unet", settings), settings, empty, "unused", progress=False)
