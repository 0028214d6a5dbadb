"""verdiff.inference: files in, masks out at the file's own size, scores in a table."""
import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, TiffImagePlugin

from verdiff.cli import positive, size_pair, steps_list
from verdiff.data.packed import Packed
from verdiff.data.splits import CROSS_SPLIT_DUPLICATES
from verdiff.diffusion.sampling import SegmentationSamples, sample
from verdiff.files import VerdiffError
from verdiff.io.grey import image_from_array, to_uint8
from verdiff.io.images import read_image
from verdiff.networks.model import VerdiffNet
from verdiff.segmentation.confidence import (
    SLACK,
    TRAITS,
    Reference,
    calibrate,
    find_reference,
    judge,
    learn_limits,
    load_reference,
    save_reference,
    sha256_of_weights,
    traits,
)
from verdiff.segmentation.evaluation import (
    Evaluation,
    Scores,
    draw_samples,
    evaluate,
    save_figure,
)
from verdiff.segmentation.models import bundled_model, find_model
from verdiff.segmentation.results import (
    KINDS,
    distinct,
    is_ours,
    list_images,
    passed_over,
    png_info,
    save_segmentation,
)
from verdiff.segmentation.segmenter import Segmentation, Segmenter, overlay, pick_device

GREY = np.arange(48 * 32, dtype=np.uint16).reshape(48, 32)  # 0 ... 1535, each once


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = VerdiffNet(channels=(8, 16), height=48, width=32, timesteps=20).eval()
    torch.nn.init.normal_(model.diffusion.out[-1].weight, std=0.3)  # an untrained one says nothing
    return model


def oracle(model, image, steps=10, ensemble=5, seed=0, **more):
    "Stands in for sampling: bright is bone, every sample the same."
    bone = (image > 0.5).float()
    return SegmentationSamples(bone, bone.expand(ensemble, *bone.shape))


# ---------------------------------------------------------------- reading


def test_8_bits_pass_unchanged():
    pixels = (GREY % 256).astype(np.uint8)
    assert to_uint8(pixels) is pixels
    assert np.array_equal(read_image(pixels), pixels)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_deep_images_are_windowed(dtype):
    pixels = (GREY + 100).astype(dtype)
    pixels[0, 0] = 30_000  # a lead marker
    grey = to_uint8(pixels)
    assert grey.dtype == np.uint8 and grey.min() == 0 and grey.max() == 255
    assert 100 < np.median(grey) < 156


@given(hnp.arrays(np.float64, (6, 5), elements=st.floats(-1e6, 1e6)))
@settings(max_examples=50, deadline=None)
def test_a_window_keeps_the_order_of_grey_values(pixels):
    grey = to_uint8(pixels).astype(int).ravel()
    order = np.argsort(pixels.ravel(), kind="stable")
    assert (np.diff(grey[order]) >= 0).all()


def test_floats_between_0_and_1_are_scaled_and_bool_is_black_and_white():
    assert to_uint8(np.array([[0.0, 0.5, 1.0]])).tolist() == [[0, 128, 255]]
    assert to_uint8(np.array([[False, True]])).tolist() == [[0, 255]]


@pytest.mark.parametrize("value", [0, 7, 60_000])
def test_a_constant_image_is_no_error(value):
    grey = to_uint8(np.full((4, 4), value, np.uint16))
    assert (grey == grey[0, 0]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_is_refused(bad):
    with pytest.raises(VerdiffError, match="NaN or infinite"):
        to_uint8(np.array([[0.0, bad]]))


def test_arrays_of_every_layout():
    grey = np.arange(20, dtype=np.uint8).reshape(5, 4)
    for pixels in (grey, grey[None], grey[..., None], np.stack([grey] * 3, -1), torch.tensor(grey),
                   np.stack([grey, grey, grey, np.full_like(grey, 255)], -1)):
        assert np.array_equal(image_from_array(pixels), grey)
    wide = np.stack([grey.astype(np.uint16) * 100] * 3, -1)
    assert image_from_array(wide).size == (4, 5)


@pytest.mark.parametrize("bad", [np.zeros(4), np.zeros((0, 3)), np.zeros((2, 3, 4, 5)),
                                 np.zeros((7, 5, 5)), np.array([["a"]]), np.zeros((2, 2), complex)])
def test_what_is_no_image_is_refused(bad):
    with pytest.raises(VerdiffError, match="no image|no single image"):
        image_from_array(bad)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_files_of_8_bits_without_loss(tmp_path, suffix):
    pixels = (GREY % 251).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    assert np.array_equal(read_image(tmp_path / f"a.{suffix}"), pixels)
    assert np.array_equal(read_image(str(tmp_path / f"a.{suffix}")), pixels)


def test_files_of_16_and_32_bits_agree(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "b.tif", GREY)
    tifffile.imwrite(tmp_path / "c.tif", GREY.astype(">u2"), byteorder=">")
    tifffile.imwrite(tmp_path / "d.tif", GREY.astype(np.float32))
    Image.fromarray(GREY).save(tmp_path / "e.tif", compression="tiff_lzw")
    tifffile.imwrite(tmp_path / "f.tif", GREY, compression="zlib")
    preview = Image.fromarray(GREY[::4, ::4].astype(np.uint16))
    Image.fromarray(GREY).save(tmp_path / "g.tif", save_all=True, append_images=[preview])
    for path in sorted(tmp_path.iterdir()):
        assert np.array_equal(read_image(path), to_uint8(GREY)), path.name
    assert np.array_equal(read_image(Image.open(tmp_path / "a.png")), to_uint8(GREY))


@pytest.mark.parametrize("pages", [GREY, (GREY % 256).astype(np.uint8), np.dstack([GREY * 20] * 3)])
def test_a_stack_of_pages_is_refused(tmp_path, pages):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([pages, pages // 2]), photometric=(
        "rgb" if pages.ndim == 3 else "minisblack"))
    with pytest.raises(VerdiffError, match="a.tif: this TIFF is a stack .* save the page"):
        read_image(tmp_path / "a.tif")


def test_16_bits_per_colour_go_through_tifffile(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([GREY * 20] * 3, -1), photometric="rgb")
    assert np.abs(np.int16(read_image(tmp_path / "a.tif")) - to_uint8(GREY * 20)).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero_is_inverted(tmp_path, dtype):
    pixels = (GREY % 256).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite")
    grey = np.array(read_image(tmp_path / "a.tif"))
    assert np.corrcoef(grey.ravel(), pixels.ravel())[0, 1] < -0.99


def test_colour_palette_transparency_and_one_bit_become_grey(tmp_path):
    grey = Image.fromarray((GREY % 256).astype(np.uint8))
    for i, mode in enumerate(["RGB", "RGBA", "LA", "CMYK", "P", "1"]):
        path = tmp_path / f"{i}.tif"
        grey.convert(mode).save(path)
        assert read_image(path).mode == "L" and read_image(path).size == grey.size, mode


def test_exif_orientation_is_obeyed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.fromarray(np.zeros((10, 30), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (10, 30)


@pytest.mark.parametrize(
    "content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"II*\0" + b"\xff" * 40])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_files_that_are_no_images_are_named(tmp_path, content, suffix):
    path = tmp_path / f"letter.{suffix}"
    path.write_bytes(content)
    with pytest.raises(VerdiffError, match=f"letter.{suffix}: ") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_images_cut_off_are_named(tmp_path, suffix, share):
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (90, 80), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(VerdiffError, match=f"cut.{suffix}"):
        read_image(path)


def test_missing_file_folder_and_bomb(tmp_path, monkeypatch):
    with pytest.raises(VerdiffError, match="nowhere.png: no such file"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(VerdiffError, match="directory"):
        read_image(tmp_path)
    Image.fromarray(np.zeros((60, 60), np.uint8)).save(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(VerdiffError, match="big.png"):
        read_image(tmp_path / "big.png")


def test_tiff_without_photometric_tag_is_read(tmp_path):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    Image.fromarray((GREY % 256).astype(np.uint8)).save(tmp_path / "a.tif", tiffinfo=info)
    assert read_image(tmp_path / "a.tif").size == (32, 48)


# ---------------------------------------------------------------- the segmenter


@pytest.mark.parametrize("shape", [(48, 32), (131, 57), (57, 131), (301, 9), (1, 1), (2, 500)])
@pytest.mark.parametrize("fit", ["letterbox", "squash"])
def test_any_size_comes_back_at_its_own(model, shape, fit):
    model = VerdiffNet(channels=(8, 16), height=48, width=32, timesteps=20, fit=fit)
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    got = Segmenter(model, "cpu").predict(pixels, steps=2, ensemble=2)
    for array in (got.mask, got.probability, got.uncertainty, got.prior):
        assert array.shape == shape and np.isfinite(array).all()
    assert got.mask.dtype == np.uint8 and set(np.unique(got.mask)) <= {0, 1}
    assert got.probability.dtype == got.uncertainty.dtype == got.prior.dtype == np.float32
    assert 0 <= got.probability.min() and got.probability.max() <= 1
    assert 0 <= got.uncertainty.min() and got.uncertainty.max() <= 0.5 + 1e-6
    assert np.array_equal(got.mask, got.probability > 0.5)


@pytest.mark.parametrize("shape", [(300, 100), (300, 200), (200, 90), (260, 260)])
@pytest.mark.parametrize("fit", ["letterbox", "squash"])
def test_what_goes_in_comes_back_at_the_same_place(monkeypatch, shape, fit):
    monkeypatch.setattr("verdiff.segmentation.segmenter.sample", oracle)
    model = VerdiffNet(channels=(8, 16), height=96, width=32, timesteps=20, fit=fit)
    pixels = np.zeros(shape, np.uint8)
    box = tuple(slice(int(0.2 * n), int(0.7 * n)) for n in shape)
    pixels[box] = 255
    mask = Segmenter(model, "cpu").predict(pixels).mask
    wanted = pixels > 127
    assert 2 * (mask & wanted).sum() / (mask.sum() + wanted.sum()) > 0.93


def test_the_seed_decides(model):
    segmenter = Segmenter(model, "cpu")
    pixels = (GREY % 256).astype(np.uint8)
    one, two, three = (segmenter.predict(pixels, 2, 2, seed).probability for seed in (0, 0, 1))
    assert np.array_equal(one, two) and not np.array_equal(one, three)


def test_from_pretrained_finds_a_model_a_run_and_a_weights_file(model, tmp_path):
    model.save_pretrained(tmp_path / "run" / "model")
    pixels = (GREY % 256).astype(np.uint8)
    wanted = Segmenter(model, "cpu").predict(pixels, 2, 1).probability
    for path in ("run", "run/model", "run/model/model.safetensors"):
        got = Segmenter.from_pretrained(tmp_path / path, "cpu").predict(pixels, 2, 1)
        assert np.array_equal(got.probability, wanted)


def test_no_model_and_no_device(tmp_path, monkeypatch):
    for path in (tmp_path, tmp_path / "missing", "runs/none", "./a/b", "word"):
        with pytest.raises(VerdiffError, match="no model there"):
            find_model(path) if "runs" not in str(path) else _inside(tmp_path, monkeypatch, path)
    assert find_model("someone/their-model") == "someone/their-model"
    with pytest.raises(VerdiffError, match="device 'warp'"):
        pick_device("warp")


def _inside(folder, monkeypatch, path):
    (folder / "runs").mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    find_model(path)


def test_bundled_model_or_a_sentence(monkeypatch, tmp_path):
    assert bundled_model() is None or (bundled_model() / "config.json").exists()
    monkeypatch.setattr("verdiff.segmentation.models.bundled_model", lambda: None)
    with pytest.raises(VerdiffError, match="--model"):
        find_model(None)
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("verdiff.segmentation.models.bundled_model", lambda: tmp_path)
    assert find_model(None) == str(tmp_path)


# ---------------------------------------------------------------- pictures and files


@pytest.fixture
def result():
    rng = np.random.default_rng(0)
    probability = rng.random((48, 32)).astype(np.float32)
    spread = (rng.random((48, 32)) / 2).astype(np.float32)
    return Segmentation((probability > 0.5).astype(np.uint8), probability, spread, probability)


def test_overlay_touches_only_the_mask(result):
    image = Image.fromarray((GREY % 256).astype(np.uint8))
    pixels = np.array(overlay(image, result))
    outside = result.mask == 0
    assert np.array_equal(pixels[outside][:, 0], np.array(image)[outside])
    assert (pixels[~outside][:, 0] != pixels[~outside][:, 2]).all()
    with pytest.raises(ValueError, match="does not lie over"):
        overlay(image.resize((10, 10)), result)


def test_the_five_files_hold_the_result(result, tmp_path):
    image = Image.fromarray((GREY % 256).astype(np.uint8))
    *paths, record = save_segmentation(result, image, tmp_path / "new" / "folder", "a.b", seed=3)
    assert [p.name for p in paths] == [f"a.b_{kind}.png" for kind in KINDS]
    assert record.name == "a.b.json" and all(map(is_ours, paths))
    said = json.loads(record.read_text())
    assert said["seed"] == 3 and said["height"] == 48 and said["confidence"] is None
    assert said["share_of_bone"] == pytest.approx(result.mask.mean(), abs=1e-4)
    mask, probability, spread, picture = (np.array(Image.open(p)) for p in paths)
    assert np.array_equal(mask, 255 * result.mask) and picture.shape == (48, 32, 3)
    assert np.abs(probability / 65535 - result.probability).max() < 1e-5
    assert np.abs(spread / 131070 - result.uncertainty).max() < 1e-5


def test_a_mask_that_somebody_else_drew_is_not_written_over(result, tmp_path):
    image, drawn = Image.fromarray(result.mask * 255), tmp_path / "a_mask.png"
    image.save(drawn)
    before = drawn.read_bytes()
    with pytest.raises(VerdiffError, match="a_mask.png: not a result of verdiff"):
        save_segmentation(result, image, tmp_path, "a")
    assert drawn.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a_mask.png"]
    drawn.unlink()
    for _ in range(2):  # ours may be replaced
        save_segmentation(result, image, tmp_path, "a")
    assert not is_ours(tmp_path / "missing.png") and is_ours(tmp_path / "a.json")


def test_list_images(tmp_path):
    for name in ("b.PNG", "a/x.png", "a/x.jpg", "a/notes.txt", "out/a/x_mask.png", "out/new.png",
                 ".hidden", "out/more.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"")
    Image.new("L", (3, 3)).save(tmp_path / "out/a/x_mask.png", pnginfo=png_info({}))
    found = list_images([tmp_path], tmp_path / "out")
    names = {str(p.relative_to(tmp_path)): str(stem) for p, stem in found}
    assert names == {
        "a/x.jpg": "a/x.jpg", "a/x.png": "a/x.png", "b.PNG": "b", "out/new.png": "out/new"}
    assert list_images(["some.png"], "out") == [(Path("some.png"), Path("some"))]
    assert list_images(["some.png", "some.png"], "out") == [(Path("some.png"), Path("some"))]
    assert passed_over([tmp_path], tmp_path / "out") == [tmp_path / "a/notes.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(VerdiffError, match="empty: no image in this folder"):
        list_images([tmp_path / "empty"], "out")


@given(st.lists(st.tuples(*map(st.sampled_from, (["", "m", "f", "m/f"], ["a", "b"],
                                                  [".png", ".tif"]))), unique=True, max_size=16))
@settings(max_examples=60, deadline=None)
def test_no_two_results_share_a_name(parts):
    paths = [Path(folder) / (name + suffix) for folder, name, suffix in parts]
    names = distinct(paths, [Path(p.stem) for p in paths])
    assert len(set(names)) == len(names) == len(paths)
    for path, name in zip(paths, names, strict=True):
        assert path.stem in str(name)
        if sum(p.stem == path.stem for p in paths) == 1:
            assert name == Path(path.stem)


def test_draw_samples(model, tmp_path):
    image = torch.rand(2, 1, 48, 32)
    got = sample(model, image, steps=2, ensemble=3)
    figure = draw_samples(image, got, image > 0.5)
    assert [a.get_title() for a in figure.axes[:8]] == [
        "image", "prior", "sample 1", "sample 2", "sample 3", "mean", f"spread\n0 to {got.std.max():.2f}", "truth"]
    save_figure(figure, tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size[0] > 300


# ---------------------------------------------------------------- the table


@pytest.fixture(scope="module")
def packed():
    rng = torch.Generator().manual_seed(0)
    masks = torch.zeros(5, 1, 96, 64, dtype=torch.uint8)
    for i in range(5):
        masks[i, :, 10 + 4 * i:60 + 4 * i, 20:44] = 1
    images = (masks * 150 + torch.randint(0, 60, masks.shape, generator=rng)).to(torch.uint8)
    names = [f"phantom-{i}.jpg" for i in range(4)] + [CROSS_SPLIT_DUPLICATES[0][1]]
    return Packed(images, masks, names)


def test_evaluate_refuses_to_stretch_the_films(model, packed):
    for height, width in ((96, 96), (64, 96), (200, 64)):
        wrong = Packed(*(x[:, :, :1, :1].expand(-1, -1, height, width).contiguous()
                         for x in (packed.images, packed.masks)), packed.names)
        if abs(height * model.size[1] / (width * model.size[0]) - 1) > 0.05:
            with pytest.raises(VerdiffError, match=f"scoring at {height}x{width} would stretch"):
                evaluate(model, wrong, steps=(1,), ensemble=1, progress=False)


def test_evaluate_counts_a_number_of_steps_once_and_knows_the_samplers(model, packed):
    twice = evaluate(model, packed, steps=(2, 2), ensemble=1, progress=False)
    assert [len(s.dice) for s in twice.scores] == [5, 5]
    torch.nn.init.normal_(model.diffusion.out[-1].weight, std=0.3)
    dice = {s: evaluate(model, packed, (5,), 1, progress=False, sampler=s).scores[1].dice.tolist()
            for s in ("ddim", "ddpm")}
    torch.nn.init.zeros_(model.diffusion.out[-1].weight)
    assert dice["ddim"] != dice["ddpm"]


def test_evaluate_with_an_oracle(model, packed, monkeypatch):
    monkeypatch.setattr("verdiff.segmentation.evaluation.sample", oracle)
    got = evaluate(model, packed, steps=(1, 3), ensemble=4, batch_size=2, progress=False)
    assert [(s.method, s.steps, s.samples) for s in got.scores] == [
        ("prior", 0, 0), ("diffusion", 1, 1), ("diffusion", 1, 4), ("diffusion", 3, 1),
        ("diffusion", 3, 4)]
    for s in got.scores:
        assert s.dice.shape == s.iou.shape == (5,) and s.dice.min() > 0.9
        np.testing.assert_allclose(s.iou, s.dice / (2 - s.dice), atol=1e-6)
    assert got.size == (96, 64)


def test_evaluate_does_not_depend_on_the_batch(model, packed):
    one, two = (evaluate(model, packed, (2,), 2, batch_size=n, progress=False) for n in (1, 4))
    for a, b in zip(one.scores, two.scores, strict=True):
        np.testing.assert_allclose(a.dice, b.dice, atol=2e-3)


def test_the_table_in_text_json_and_csv(tmp_path):
    names = [f"{i}.jpg" for i in range(4)] + [CROSS_SPLIT_DUPLICATES[0][1]]
    dice = np.array([0.9, 0.8, 0.85, 0.95, 0.1])
    table = Evaluation(names, [Scores("prior", 0, 0, dice, dice / (2 - dice), 0.0),
                               Scores("diffusion", 5, 3, dice, dice / (2 - dice), 0.2)], (96, 64))
    rows = table.rows()
    assert [(r.images, r.dice.n) for r in rows] == [
        ("all", 5), ("all", 5), ("without duplicates", 4), ("without duplicates", 4)]
    assert rows[0].dice.mean == pytest.approx(0.72) and rows[2].dice.mean == pytest.approx(0.875)
    text = str(table)
    assert "5 images, all" in text and "4 images, without duplicates" in text
    assert "diffusion, 5 steps, mean of 3" in text and "prior alone" in text
    paths = table.save(tmp_path / "new", model="m", seed=3)
    report = json.loads(paths[0].read_text())
    assert report["seed"] == 3 and report["size"] == [96, 64] and len(report["rows"]) == 4
    with open(paths[1], newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["dice"]) for line in lines] == [r["dice"] for r in report["rows"]]
    assert float(lines[0]["dice_low"]) <= 0.72 <= float(lines[0]["dice_high"])
    with open(paths[2], newline="") as file:
        assert [float(line["dice"]) for line in csv.DictReader(file)] == [*dice, *dice]


def test_no_second_block_without_duplicates():
    ones = np.ones(3)
    table = Evaluation(["a", "b", "c"], [Scores("prior", 0, 0, ones, ones, 0.0)], (8, 8))
    assert [r.images for r in table.rows()] == ["all"]


# ---------------------------------------------------------------- small things


def test_words_of_the_command_line():
    assert steps_list("1,5,5,10") == [1, 5, 10] and size_pair("768X256") == (768, 256)
    assert positive("7") == 7
    for function, bads in ((steps_list, ("0", "1,,2", "a", "", "-1", "1.5", "²")),
                           (size_pair, ("768", "768x", "7x8x9", "ax3"))):
        for bad in bads:
            with pytest.raises(argparse.ArgumentTypeError, match="is no"):
                function(bad)


# ---------------------------------------------------------------- confidence


def spine(**more):
    "A segmentation of 90 x 30 with a column that widens downwards."
    mask = np.zeros((90, 30), np.uint8)
    for row in range(10, 85):
        mask[row, 15 - 3 - row // 30:15 + 3 + row // 30] = 1
    probability = np.where(mask, 0.95, 0.02).astype(np.float32)
    return Segmentation(**{"mask": mask, "probability": probability, "prior": probability,
                           "uncertainty": np.zeros_like(probability)} | more)


def test_traits_by_hand():
    image = np.zeros((90, 30), np.uint8)
    image[:, 15:] = 255
    good = traits(image, spine())
    assert list(good) == list(TRAITS)
    assert good["agreement"] == 1 and good["contrast"] == pytest.approx(0.5)
    assert good["margin"] == pytest.approx(0.9, abs=1e-6)
    assert good["extent"] == pytest.approx(75 / 90) and 0 < good["widening"] < 0.5
    assert good["area"] == pytest.approx(spine().mask.mean())
    turned = spine(**{k: getattr(spine(), k)[::-1] for k in ("mask", "probability", "prior")})
    assert traits(image, turned)["widening"] < 0
    other = spine(prior=np.roll(spine().prior, 15, 1))
    assert traits(image, other)["agreement"] < 0.1
    empty = spine(mask=np.zeros((90, 30), np.uint8))
    assert [traits(image, empty)[k] for k in ("agreement", "margin", "area", "extent")] == [0] * 4
    one = np.zeros((90, 30), np.uint8)
    one[4, 4] = 1
    assert all(np.isfinite(v) for v in traits(image, spine(mask=one)).values())


def test_traits_do_not_depend_on_the_size():
    small, image = spine(), (GREY % 256).astype(np.uint8)
    large = spine(**{k: np.kron(getattr(small, k), np.ones((4, 4), getattr(small, k).dtype))
                     for k in ("mask", "probability", "prior", "uncertainty")})
    a, b = traits(image, small), traits(image, large)
    assert all(a[k] == pytest.approx(b[k], abs=1e-6) for k in TRAITS)


FOUND = [dict.fromkeys(TRAITS, 0.5 + 0.01 * i) for i in range(-10, 11)]


def test_limits_lie_a_quarter_farther_than_the_films():
    for low, middle, high in learn_limits(FOUND).values():
        assert (low, middle, high) == pytest.approx((0.5 - 0.1 * SLACK, 0.5, 0.5 + 0.1 * SLACK))
    same = learn_limits([dict.fromkeys(TRAITS, 0.3)] * 9)
    assert all(low < middle < high for low, middle, high in same.values())


def test_confidence_falls_with_the_worst_trait_and_names_it():
    reference, usual = Reference(learn_limits(FOUND)), dict.fromkeys(TRAITS, 0.5)
    assert judge(reference, usual) == (1.0, None)
    assert judge(reference, usual | {"area": 0.5 + 0.1 * SLACK})[0] == pytest.approx(0.5)
    last = 1.0
    for x in (0.45, 0.4, 0.3, 0.1):
        confidence, warning = judge(reference, usual | {"area": x, "margin": 0.49})
        assert confidence < last and (warning is not None) == (confidence < 0.5)
        last = confidence
    assert "unusually small" in warning and warning.startswith(f"confidence {confidence:.2f}")
    assert judge(reference, usual | {"agreement": 0.99, "margin": 0.99, "contrast": 0.99})[0] == 1
    assert "upside down" in judge(reference, usual | {"widening": -0.3})[1]


def test_a_warning_names_the_two_worst_and_a_blank_film_first():
    reference = Reference(learn_limits(FOUND))
    usual = {name: middle for name, (_, middle, _) in reference.limits.items()}
    both = judge(reference, usual | {"area": 0.0, "contrast": 0.0})[1]
    assert both.index("almost blank, and the mask is unusually small") > 0
    assert ", and" not in judge(reference, usual | {"area": 0.0})[1]


def test_the_reference_of_a_model_on_the_hub(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    reference = Reference(learn_limits(FOUND), 21, sha256_of_weights(tmp_path))
    save_reference(reference, tmp_path)

    def fetch(source, name, **hub):
        if not (tmp_path / name).exists():
            raise VerdiffError("not there")
        return tmp_path / name

    monkeypatch.setattr("verdiff.segmentation.confidence.fetch_file", fetch)
    assert find_reference("owner/name") == reference
    (tmp_path / "reference.json").unlink()
    assert find_reference("owner/name") is None


def test_a_run_that_is_not_there_is_no_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VerdiffError, match="runs/demo: no model there"):
        find_model("runs/demo")


def test_calibrate_needs_films_and_masks(model, monkeypatch):
    segmenter = Segmenter(model, "cpu")
    films = [np.full((48, 32), 9, np.uint8)] * 9
    monkeypatch.setattr(Segmenter, "predict", lambda self, image, steps, ensemble: spine())
    with pytest.raises(VerdiffError, match="7 radiographs are too few"):
        calibrate(segmenter, films[:7], progress=False)
    assert calibrate(segmenter, films, "abc", progress=False) == 0
    assert segmenter.reference.films == 9 and segmenter.reference.weights == "abc"
    nothing = spine(mask=np.zeros((90, 30), np.uint8))
    monkeypatch.setattr(Segmenter, "predict", lambda self, image, steps, ensemble: nothing)
    with pytest.raises(VerdiffError, match="finds nothing in 9 of 9"):
        calibrate(segmenter, films, progress=False)


def test_the_reference_travels_with_its_weights_only(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert load_reference(tmp_path) is None
    reference = Reference(learn_limits(FOUND), 21, sha256_of_weights(tmp_path), 2, 1)
    path = save_reference(reference, tmp_path)
    assert load_reference(tmp_path) == reference
    segmenter, image = Segmenter.from_pretrained(tmp_path, "cpu"), (GREY % 256).astype(np.uint8)
    got = segmenter.predict(image)  # with the steps and samples of the calibration
    assert 0 <= got.confidence <= 1 and (got.warning is None) == (got.confidence >= 0.5)
    assert np.array_equal(segmenter.predict(image, 2, 1).mask, got.mask)
    assert segmenter.predict(image, 3).confidence is segmenter.predict(image, 2, 2).confidence is None
    good = path.read_text()
    for bad in (good[:50], "[]", good.replace("area", "aera"), good.replace("21", '"x"'),
                good.replace("0.5,", "NaN,")):
        path.write_text(bad)
        with pytest.raises(VerdiffError, match="reference.json is damaged"):
            Segmenter.from_pretrained(tmp_path, "cpu")
    path.write_text(good)
    torch.nn.init.ones_(model.diffusion.out[-1].weight)
    model.save_pretrained(tmp_path)
    assert load_reference(tmp_path) is None


def test_an_empty_mask_is_warned_about_without_a_reference(model, monkeypatch):
    monkeypatch.setattr("verdiff.segmentation.segmenter.sample", oracle)
    black, white = (np.full((48, 32), v, np.uint8) for v in (0, 255))
    segmenter = Segmenter(model, "cpu")
    assert "empty" in segmenter.predict(black).warning and segmenter.predict(white).warning is None


def test_the_bundled_model_is_calibrated():
    folder = bundled_model()
    if folder is None:
        pytest.skip("no model is bundled")
    reference = load_reference(folder)
    assert reference is not None, "verdiff calibrate --data scoliosis-xray-single-view.zip --model verdiff/weights/xray-384x128"
    assert reference.films >= 40 and reference.dice.films == reference.films


def test_importing_the_command_line_imports_no_torch():
    code = "import sys, verdiff.cli; heavy = {'torch', 'monai', 'scipy', 'matplotlib'}; "
    code += "print(sorted(heavy & set(sys.modules)))"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's peak of memory")
def test_a_folder_is_segmented_at_flat_memory(model, tmp_path):
    "Ten times as many films: held together, their results alone would be 55 MB more."
    model.save_pretrained(tmp_path / "model")
    code = ("import sys; from pathlib import Path; from verdiff.cli import main; "
            "assert main(sys.argv[1:]) == 0; words = Path('/proc/self/status').read_text().split();"
            " print(words[words.index('VmHWM:') + 1])")
    peaks = []
    for films in (10, 100):
        folder = tmp_path / f"{films}"
        folder.mkdir()
        for i in range(films):
            Image.fromarray(np.full((375, 125), i, dtype=np.uint8)).save(folder / f"{i}.png")
        command = [sys.executable, "-c", code, "segment", str(folder), "--quiet", "--device", "cpu",
                   "--model", str(tmp_path / "model"), "--steps", "1", "--ensemble", "1",
                   "--out", str(tmp_path / f"out{films}")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]) / 1024)  # MB
    assert len(list((tmp_path / "out100").glob("*_mask.png"))) == 100
    assert peaks[1] - peaks[0] < 25, peaks


# ---------------------------------------------------------------- what clumsy users bring


def test_a_file_that_is_no_image_says_what_it_is(tmp_path, monkeypatch):
    (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\2\0")
    with pytest.raises(VerdiffError, match="a.dcm: a DICOM file without pixels .*; give"):
        read_image(tmp_path / "a.dcm")
    with pytest.raises(VerdiffError) as error:
        read_image(tmp_path)
    assert "complete" not in str(error.value) and "directory" in str(error.value)
    Image.new("L", (30, 30)).save(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(VerdiffError, match="big.png: too large .*; give a smaller copy"):
        read_image(tmp_path / "big.png")


@pytest.mark.parametrize("tensor", [torch.rand(9, 7, requires_grad=True), torch.rand(9, 7).bfloat16(),
                                    torch.ones(1, 9, 7, dtype=torch.uint8)])
def test_tensors_of_any_kind(tensor):
    assert read_image(tensor).size == (7, 9)


@pytest.mark.parametrize("bad", [[[1, 2], [3]], Image.new("L", (0, 5)), Image.new("LAB", (5, 5))])
def test_what_cannot_become_an_image_is_a_sentence(bad):
    with pytest.raises(VerdiffError, match="image"):
        read_image(bad)


@pytest.mark.parametrize("how", [{"ensemble": 0}, {"ensemble": -1}, {"ensemble": 1.5}, {"steps": "a"},
                                 {"steps": 0}, {"seed": None}, {"seed": -1}, {"seed": 0.5}])
def test_numbers_of_predict_that_are_none(model, how):
    with pytest.raises(VerdiffError, match=f"{next(iter(how))} = .* must be a whole number"):
        Segmenter(model, "cpu").predict(np.zeros((9, 9), np.uint8), **how)


def test_a_device_without_memory_is_no_device():
    with pytest.raises(VerdiffError, match="'meta' does not exist here"):
        pick_device("meta")


def test_the_notes_of_another_program_are_not_written_over(result, tmp_path):
    notes = tmp_path / "a.json"
    notes.write_text('{"version": "5.0", "shapes": []}')  # as labelme writes them
    image = Image.new("L", result.mask.shape[::-1])
    with pytest.raises(VerdiffError, match="a.json: not a result of verdiff"):
        save_segmentation(result, image, tmp_path, "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and "shapes" in notes.read_text()
    for _ in range(2):
        save_segmentation(result, image, tmp_path, "b")


def test_hidden_files_and_folders_of_an_image_s_name_are_no_images(tmp_path):
    for name in ("a.png", "._a.png", ".trash/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "c.png").mkdir()
    assert [str(stem) for _, stem in list_images([tmp_path], "out")] == ["a"]
    with pytest.raises(VerdiffError, match="is empty"):
        list_images([""], "out")


@pytest.mark.parametrize("change", [{"films": float("inf")}, {"limits": [0, 0.5, float("inf")]}])
def test_a_reference_that_is_not_finite_is_damaged(model, tmp_path, change):
    model.save_pretrained(tmp_path)
    limits = dict.fromkeys(TRAITS, change.get("limits", [0, 0.5, 1]))
    content = {"limits": limits, "films": change.get("films", 9), "weights": sha256_of_weights(tmp_path)}
    (tmp_path / "reference.json").write_text(json.dumps(content))
    with pytest.raises(VerdiffError, match="reference.json is damaged"):
        load_reference(tmp_path)
