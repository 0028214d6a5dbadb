"""The command `verdiff`: what it does, and a sentence with exit code 2 for all that is bad."""
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from verdiff.cli import main
from verdiff.data.datasets import held_for_test, tell_held
from verdiff.data.phantom_set import write_phantoms
from verdiff.data.splits import drawn_split
from verdiff.io.images import open_images
from verdiff.networks.model import VerdiffNet
from verdiff.segmentation.confidence import (
    TRAITS,
    Reference,
    save_reference,
    sha256_of_weights,
)
from verdiff.segmentation.results import KINDS, save_segmentation
from verdiff.segmentation.segmenter import Segmenter
from verdiff.training.loss import training_loss

SMOKE = "--profile smoke".split()


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "phantom"
    write_phantoms(root, n_training=8, n_test=3, seed=0, image_size=(192, 64))
    return root


@pytest.fixture(scope="session")
def archive(phantoms):
    path = phantoms.parent / "phantom.zip"
    with zipfile.ZipFile(path, "w") as file:
        for item in sorted(phantoms.rglob("*")):
            file.write(item, item.relative_to(phantoms))
    return path


@pytest.fixture(scope="session")
def run(phantoms, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "smoke"
    assert main(["train", "--data", str(phantoms), *SMOKE, "--out", str(out)]) == 0
    return out


@pytest.fixture
def mine(run, tmp_path):
    "A copy of the run that a test may spoil."
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture
def data(phantoms, tmp_path):
    "A copy of the data that a test may spoil."
    return Path(shutil.copytree(phantoms, tmp_path / "data"))


def files(folder):
    "What lies in a folder: names and contents."
    return {p: p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def one(data, pattern):
    return sorted(Path(data).rglob(pattern))[0]


# ---------------------------------------------------------------- what works


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert all(word in out for word in "demo data train segment evaluate calibrate diagnosis".split())


@pytest.mark.parametrize("command", ["demo", "data", "train", "segment", "evaluate",
                                     "calibrate"])
def test_help_of_each_command_has_an_example(capsys, command):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0 and f"example: verdiff {command}" in capsys.readouterr().out


def test_version_as_a_process():
    done = subprocess.run([sys.executable, "-m", "verdiff", "--version"],
                          capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0 and done.stdout.startswith("verdiff ")


def test_training_leaves_a_model_and_says_what_next(run, phantoms, capsys):
    assert (run / "model" / "model.safetensors").exists()
    assert json.loads((run / "model" / "config.json").read_text())["height"] == 64
    before = files(run / "model")
    assert main(["train", "--data", str(phantoms), *SMOKE, "--out", str(run)]) == 0  # done already
    assert files(run / "model") == before
    assert f"--model {run}" in capsys.readouterr().out


def test_an_interrupted_training_goes_on_to_the_same_weights(run, phantoms, tmp_path, monkeypatch):
    command = ["train", "--data", str(phantoms), *SMOKE, "--out", str(tmp_path / "run")]
    loss, calls = training_loss, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(*args, **kwargs)

    monkeypatch.setattr("verdiff.training.loss.training_loss", interrupted)
    assert main(command) == 130
    monkeypatch.setattr("verdiff.training.loss.training_loss", loss)
    assert main(command) == 0
    ours, wanted = (p / "model" / "model.safetensors" for p in (tmp_path / "run", run))
    assert ours.read_bytes() == wanted.read_bytes()


def test_a_zip_and_the_word_phantom_are_data_too(archive, tmp_path):
    for i, data in enumerate((archive, "phantom")):
        assert main(["train", "--data", str(data), *SMOKE, "--set", "max_steps=1",
                     "--out", str(tmp_path / str(i))]) == 0
        assert (tmp_path / str(i) / "model" / "config.json").exists()


def test_own_pairs_are_data_too(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / "own" / part).mkdir(parents=True)
    for i in range(12):
        for part in ("images", "masks"):
            pixels = np.uint8(rng.random((80, 40)) < 0.3) * 255
            Image.fromarray(pixels).save(tmp_path / "own" / part / f"{i}.png")
    assert main(["train", "--data", str(tmp_path / "own"), *SMOKE, "--set", "max_steps=1",
                 "--out", str(tmp_path / "run")]) == 0


def test_set_changes_the_run(phantoms, tmp_path):
    assert main(["train", "--data", str(phantoms), *SMOKE, "--set", "channels=8", "--set",
                 "max_steps=1", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "model" / "config.json").read_text())["channels"] == [8]


def test_segment_files_and_folders(run, phantoms, tmp_path, capsys):
    image = one(phantoms, "*.jpg")
    Image.open(image).save(tmp_path / "own.png")
    folder = sorted(phantoms.rglob("test"))[0]
    out = tmp_path / "results"
    command = ["segment", str(tmp_path / "own.png"), str(folder), "-o", str(out),
               "--model", str(run), "--steps", "2", "--ensemble", "2"]
    assert main(command) == 0
    stems = {"own"} | {p.stem for p in folder.rglob("*.jpg")}
    assert {p.name for p in out.rglob("*.png")} == {f"{s}_{k}.png" for s in stems for k in KINDS}
    assert Image.open(out / "own_mask.png").size == Image.open(image).size
    assert "4 of 4 images segmented" in capsys.readouterr().out
    before = files(out)
    assert main([*command, "-q"]) == 0 and files(out) == before


def test_evaluate_prints_and_writes_the_table(run, phantoms, tmp_path, capsys):
    assert main(["evaluate", "--data", str(phantoms), "--model", str(run), "--steps", "1,2",
                 "--ensemble", "2", "--size", "128x64", "-o", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "prior alone" in out and "diffusion, 2 steps, mean of 2" in out and "3 images" in out
    rows = json.loads((tmp_path / "evaluation.json").read_text())["rows"]
    assert len(rows) == 5 and all(0 <= r["dice"] <= 1 and r["n"] == 3 for r in rows)
    assert (tmp_path / "scores.csv").read_text().count("\n") == 16
    assert main(["evaluate", "--data", str(phantoms), "--model", str(run), "--steps", "1",
                 "--ensemble", "1", "--limit", "2", "--size", "64x32"]) == 0
    assert "2 images" in capsys.readouterr().out


def test_data_phantom_then_train(tmp_path, capsys):
    out = tmp_path / "phantoms"
    assert main(["data", "phantom", "--out", str(out), "--training", "6", "--test", "2"]) == 0
    assert len(list(out.rglob("*.jpg"))) == 8 and f"--data {out}" in capsys.readouterr().out


def test_demo(tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "--profile", "smoke", "--training", "8", "--test", "3",
                 "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["rows"][0]["method"] == "prior" and metrics["rows"][0]["n"] == 3
    assert Image.open(out / "result.png").size[0] > 300
    assert "prior alone" in capsys.readouterr().out


# ---------------------------------------------------------------- data that is bad


def test_a_missing_zip(fails, tmp_path):
    out = tmp_path / "run"
    fails("train", "--data", tmp_path / "no.zip", *SMOKE, "--out", out, words=["no.zip"])
    assert not list(out.rglob("*.pt")) and not (out / "model").exists()


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_zip(fails, archive, run, tmp_path, share):
    path = tmp_path / "cut.zip"
    path.write_bytes(archive.read_bytes()[: int(share * archive.stat().st_size)])
    fails("train", "--data", path, *SMOKE, "--out", tmp_path / "run", words=["cut.zip"])
    fails("evaluate", "--data", path, "--model", run, words=["cut.zip"])


def test_an_image_that_is_none(fails, data, tmp_path):
    image = one(data, "*.jpg")
    image.write_bytes(b"Dear colleague")
    split = "training" if "training" in str(image) else "test"
    assert split == "test" or fails(
        "train", "--data", data, *SMOKE, "--out", tmp_path / "run", words=[image.name])
    for image in data.rglob("*.jpg"):
        image.write_bytes(image.read_bytes()[:400])
    fails("train", "--data", data, *SMOKE, "--out", tmp_path / "run", words=[".jpg"])


def test_a_mask_of_another_size(fails, tmp_path):
    for part, shape in (("images", (80, 40)), ("masks", (80, 41))):
        folder = tmp_path / "own" / part
        folder.mkdir(parents=True)
        for i in range(12):
            Image.fromarray(np.zeros(shape, np.uint8)).save(folder / f"{i}.png")
    fails("train", "--data", tmp_path / "own", *SMOKE, "--out", tmp_path / "run",
          words=["80", "40", "41", ".png"])


@pytest.mark.parametrize("name", ["landmarks.csv", "angles.csv"])
def test_a_missing_row(fails, data, tmp_path, name):
    for path in data.rglob(name):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    fails("train", "--data", data, *SMOKE, "--out", tmp_path / "run", words=[name, "7", "8"])


@pytest.mark.parametrize("bad", ["nan", "inf", "word", "7.5"])
def test_a_landmark_that_is_no_coordinate(fails, data, tmp_path, bad):
    for path in data.rglob("landmarks.csv"):
        lines = path.read_text().splitlines()
        numbers = lines[2].split(",")
        numbers[5] = bad
        lines[2] = ",".join(numbers)
        path.write_text("\n".join(lines) + "\n")
    fails("train", "--data", data, *SMOKE, "--out", tmp_path / "run", words=["landmarks.csv"])


def test_an_empty_folder(fails, run, tmp_path):
    (tmp_path / "empty").mkdir()
    fails("train", "--data", tmp_path / "empty", *SMOKE, "--out", tmp_path / "run", words=["empty"])
    fails("evaluate", "--data", tmp_path / "empty", "--model", run, words=["empty"])
    fails("segment", tmp_path / "empty", "-o", tmp_path / "out", "--model", run, words=["no image"])
    assert not (tmp_path / "out").exists()


def test_one_bad_image_does_not_stop_the_others(fails, run, phantoms, tmp_path, capsys):
    folder = tmp_path / "scans"
    folder.mkdir()
    for i, image in enumerate(sorted(phantoms.rglob("*.jpg"))[:3]):
        shutil.copy(image, folder / f"{i}.jpg")
    (folder / "1.jpg").write_bytes(b"no image")
    error = fails("segment", folder, "-o", tmp_path / "out", "--model", run, "--steps", "1",
                  "--ensemble", "1", words=["1.jpg"])
    assert "0.jpg" not in error
    assert {p.name[0] for p in (tmp_path / "out").iterdir()} == {"0", "2"}
    (folder / "1.jpg").rename(folder / "1.webp")
    assert main(["segment", str(folder), "-o", str(tmp_path / "out"), "--model", str(run), "--steps",
                 "1", "--ensemble", "1"]) == 0
    assert "passed over" in (err := capsys.readouterr().err) and "1.webp" in err


def test_a_name_of_somebody_else_does_not_stop_the_others(fails, run, phantoms, tmp_path):
    folder, out = tmp_path / "scans", tmp_path / "out"
    folder.mkdir(), out.mkdir()
    for i, image in enumerate(sorted(phantoms.rglob("*.jpg"))[:3]):
        shutil.copy(image, folder / f"{i}.jpg")
    (out / "1.json").write_text('{"shapes": []}')
    fails("segment", folder, "-o", out, "--model", run, "--steps", "1", "--ensemble", "1",
          words=["1.json", "not a result of verdiff"])
    assert (out / "1.json").read_text() == '{"shapes": []}' and len(list(out.iterdir())) == 11


def test_segment_leaves_out_what_is_done_and_nothing_else(mine, phantoms, tmp_path, capsys):
    folder, out = tmp_path / "scans", tmp_path / "out"
    folder.mkdir()
    films = sorted(phantoms.rglob("*.jpg"))[:4]
    for i, image in enumerate(films[:3]):
        shutil.copy(image, folder / f"{i}.jpg")

    def redone(*more, steps="1"):
        "Which images the command segments now."
        before = {p: p.stat().st_mtime_ns for p in out.rglob("*.json")}
        assert main(["segment", str(folder), "-o", str(out), "--model", str(mine), "--steps",
                     steps, "--ensemble", "1", *more]) == 0
        said = capsys.readouterr().out
        new = {p.stem for p in out.rglob("*.json") if before.get(p) != p.stat().st_mtime_ns}
        assert (f"{3 - len(new)} there already" in said) == (len(new) < 3)
        assert "3 of 3 images segmented" in said
        return "".join(sorted(new))

    assert redone() == "012" and redone() == ""
    assert redone("--fresh") == "012" and redone("--seed", "1") == "012" and redone() == "012"
    (out / "1_overlay.png").unlink()
    assert redone() == "1"
    shutil.copy(films[3], folder / "2.jpg")
    old = (out / "2.json").read_bytes()
    assert main(["segment", str(folder), "-o", str(out), "--model", str(mine), "--steps", "1", "--ensemble", "1"]) == 2
    assert "2.json holds the result of other pixels" in capsys.readouterr().err and (out / "2.json").read_bytes() == old
    assert redone("--fresh") == "012"
    (out / "0.json").unlink()
    shutil.copy(out / "2_mask.png", out / "1_mask.png")  # ours, of another image
    assert redone() == "01"
    assert redone(steps="2") == "012"
    shutil.copy(out / "0_mask.png", out / "kept.png")
    assert redone() == "012"
    shutil.copy(out / "kept.png", out / "0_mask.png")  # broken off after a mask of two steps
    assert redone() == "0"
    net = VerdiffNet.from_pretrained(mine / "model")
    next(net.parameters()).data += 0.01
    net.save_pretrained(mine / "model")
    assert redone() == "012"


def test_images_of_one_name_from_two_folders(run, phantoms, tmp_path):
    for folder in ("monday", "friday"):
        (tmp_path / folder).mkdir()
        shutil.copy(one(phantoms, "*.jpg"), tmp_path / folder / "a.jpg")
    assert main(["segment", str(tmp_path / "monday"), str(tmp_path / "friday"), "-o",
                 str(tmp_path / "out"), "--model", str(run), "--steps", "1", "--ensemble", "1"]) == 0
    assert len(list((tmp_path / "out").rglob("*_mask.png"))) == 2


def test_a_folder_is_streamed(run, phantoms, tmp_path, monkeypatch):
    "Each image is saved before the next one is read, so memory does not grow with the folder."
    order, read, save = [], open_images, save_segmentation

    def spy(word, function):
        def inner(*args, **kwargs):
            order.append(word)
            return function(*args, **kwargs)
        return inner

    monkeypatch.setattr("verdiff.segmentation.folder.save_segmentation", spy("save", save))
    monkeypatch.setattr("verdiff.segmentation.results.overlay", lambda image, result: image)
    monkeypatch.setattr("verdiff.segmentation.folder.open_images", spy("read", open_images))
    folder = sorted(phantoms.rglob("test"))[0]
    assert main(["segment", str(folder), "-o", str(tmp_path), "--model", str(run), "--steps", "1",
                 "--ensemble", "1"]) == 0
    assert order == ["read", "save"] * 3 and read is open_images


def test_a_warning_is_printed_and_written_and_is_no_error(mine, phantoms, tmp_path, capsys):
    image, model = one(phantoms, "*.jpg"), mine / "model"
    for middle, odd in ((0.5, False), (-0.9, True)):  # limits that everything, and nothing, meets
        wide = dict.fromkeys(TRAITS, (middle - (0.01 if odd else 5), middle, middle + (
            0.01 if odd else 5)))
        save_reference(Reference(wide, 9, sha256_of_weights(model), 1, 1), model)
        assert main(["segment", str(image), "-o", str(tmp_path), "--model", str(mine)]) == 0
        said = capsys.readouterr()
        record = json.loads((tmp_path / f"{image.stem}.json").read_text())
        assert (record["warning"] is not None) == odd == (record["confidence"] < 0.5)
        assert (f"verdiff: warning: {image}: confidence 0.00" in said.err) == odd
        assert ("1 with a warning" in said.out) == odd


def test_calibrate(fails, mine, phantoms, tmp_path, monkeypatch, capsys):
    fails("calibrate", "--data", phantoms, "--model", mine, words=["too few"])
    fails("calibrate", "--data", tmp_path / "no.zip", "--model", mine, words=["no.zip"])
    assert not (mine / "model" / "reference.json").exists()
    for place in ("segmenter", "confidence"):
        monkeypatch.setattr(f"verdiff.segmentation.{place}.traits", lambda image, result: dict.fromkeys(
        TRAITS, 0.5))
    assert main(["calibrate", "--data", "phantom", "--model", str(mine)]) == 0
    said = capsys.readouterr().out
    assert "from 24 radiographs" in said and "with a predicted Dice" in said
    known = Segmenter.from_pretrained(mine, "cpu").reference
    assert known.films == known.dice.films == 24 and known.dice.limit < known.dice.usual
    assert (known.steps, known.ensemble) == (1, 5)


def test_calibrate_where_too_few_have_masks(mine, tmp_path, monkeypatch, capsys):
    for place in ("segmenter", "confidence"):
        monkeypatch.setattr(f"verdiff.segmentation.{place}.traits", lambda image, result: dict.fromkeys(
        TRAITS, 0.5))
    data = tmp_path / "more"
    write_phantoms(data, n_training=40, n_test=1, seed=3, image_size=(96, 32))
    about = json.loads((mine / "run.json").read_text())
    about["settings"]["val_fraction"] = 0.25
    (mine / "run.json").write_text(json.dumps(about))
    assert main(["calibrate", "--data", str(data), "--model", str(mine), "--ensemble", "1"]) == 0
    assert Segmenter.from_pretrained(mine, "cpu").reference.dice.films >= 8  # a study a phantom
    monkeypatch.setattr("verdiff.segmentation.uncertainty.study", lambda name: "one patient")
    assert main(["calibrate", "--data", str(data), "--model", str(mine), "--ensemble", "1"]) == 0
    said = capsys.readouterr()
    assert "note: no predicted Dice: too few studies" in said.err and "without a predicted Dice" in said.out
    assert Segmenter.from_pretrained(mine, "cpu").reference.dice is None


def test_calibrate_with_own_films_and_own_steps(fails, mine, phantoms, tmp_path, monkeypatch, capsys):
    for place in ("segmenter", "confidence"):
        monkeypatch.setattr(f"verdiff.segmentation.{place}.traits", lambda image, result: dict.fromkeys(TRAITS, 0.5))
    films = phantoms / "boostnet_labeldata/data/training"
    fails("calibrate", "--images", films, "--steps", 2, words=["name a folder with --out"])
    before = files(mine)
    assert main(["calibrate", "--images", str(films), "--model", str(mine), "--steps", "2", "--ensemble", "1",
                 "-o", str(tmp_path / "copy")]) == 0
    said = capsys.readouterr().out
    assert "from 8 radiographs" in said and "without a predicted Dice" in said and files(mine) == before
    known = Segmenter.from_pretrained(tmp_path / "copy", "cpu").reference
    assert (known.films, known.steps, known.ensemble) == (8, 2, 1)
    image = one(phantoms, "*.jpg")
    for more, note in ((), ""), (["--steps", "3"], "calibrated with --steps 2 --ensemble 1"):
        assert main(["segment", str(image), "-o", str(tmp_path / "out"), "--model", str(tmp_path / "copy"), *more]) == 0
        record = json.loads((tmp_path / f"out/{image.stem}.json").read_text())
        assert (record["confidence"] is None) == bool(note) and note in capsys.readouterr().err
        assert record["steps"] == (3 if more else 2) and record["ensemble"] == 1


def test_the_film_of_another_folder_is_not_lost(fails, run, phantoms, tmp_path, capsys):
    first, second = sorted(phantoms.rglob("*.jpg"))[:2]
    for i, path in enumerate((first, second)):
        (tmp_path / str(i)).mkdir()
        shutil.copy(path, tmp_path / str(i) / "film.jpg")
    words = ["segment", "-o", str(tmp_path / "out"), "--model", str(run), "--steps", "1"]
    assert main([*words, str(tmp_path / "0/film.jpg")]) == 0
    before = files(tmp_path / "out")
    fails(*words, tmp_path / "1/film.jpg", words=["film.json holds the result of other pixels", "0/film.jpg"])
    assert files(tmp_path / "out") == before
    assert main([*words, str(tmp_path / "1/film.jpg"), "--fresh"]) == 0 and files(tmp_path / "out") != before


def test_the_masks_of_a_folder_of_pairs_are_no_radiographs(run, phantoms, tmp_path, capsys):
    for part in ("images", "masks"):
        (tmp_path / "own" / part).mkdir(parents=True)
        shutil.copy(one(phantoms, "*.jpg"), tmp_path / "own" / part / "film.jpg")
    assert main(["segment", str(tmp_path / "own"), "-o", str(tmp_path / "out"), "--model", str(run), "--steps", "1"]) == 0
    assert "1 of 1 images" in capsys.readouterr().out


def test_a_name_that_is_too_long_stops_nothing(run, phantoms, tmp_path, capsys):
    films = tmp_path / "films"
    films.mkdir()
    for name in ("a" * 245, "b"):
        shutil.copy(one(phantoms, "*.jpg"), films / f"{name}.jpg")
    assert main(["segment", str(films), "-o", str(tmp_path / "out"), "--model", str(run), "--steps", "1"]) == 2
    said = capsys.readouterr()
    assert "1 of 2 images" in said.out and "too long a name" in said.err
    assert (tmp_path / "out/b.json").exists()


def test_films_held_back_for_the_test_are_counted(tmp_path, capsys):
    for part in ("images", "masks"):
        (tmp_path / "own" / part).mkdir(parents=True)
        for i in range(20):
            Image.new("L", (9, 20), 255).save(tmp_path / "own" / part / f"film{i}.png")
    count = sum(drawn_split(f"film{i}") == "test" for i in range(20))
    assert held_for_test(str(tmp_path / "own")) == count and tell_held(count).startswith(f", {count} held back") and count
    (tmp_path / "apart").mkdir()
    (tmp_path / "own").rename(tmp_path / "apart/training")
    assert held_for_test(str(tmp_path / "apart")) is held_for_test("phantom") is None and tell_held(None) == ""


def test_scores_at_another_shape_are_refused_before_the_work(fails, tmp_path):
    shape = ["--profile", "smoke", "--set", "eval_width=64", "--out", tmp_path / "out"]
    for words in (["demo"], ["ablate"], ["compare", "--data", "phantom", "--methods", "unet"]):
        fails(*words, *shape, words=["would stretch the images"])
    assert not list((tmp_path / "out").rglob("checkpoint*"))


def test_a_missing_image_is_named_too(fails, run, tmp_path):
    fails("segment", tmp_path / "no.png", "-o", tmp_path / "out", "--model", run, words=["no.png"])


# ---------------------------------------------------------------- models that are bad


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_model_cut_in_half(fails, mine, phantoms, tmp_path, share):
    path = mine / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    image = one(phantoms, "*.jpg")
    fails("segment", image, "-o", tmp_path / "out", "--model", mine, words=["model.safetensors"])
    fails("evaluate", "--data", phantoms, "--model", mine, words=["model.safetensors"])
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_architecture(fails, mine, phantoms):
    path = mine / "model" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"channels": [8, 24]}))
    fails("evaluate", "--data", phantoms, "--model", mine, words=["model.safetensors", "24"])
    path.write_text(json.dumps(config | {"wings": 2}))
    fails("evaluate", "--data", phantoms, "--model", mine, words=["config.json", "wings"])
    path.write_text(path.read_text()[:30])
    fails("evaluate", "--data", phantoms, "--model", mine, words=["config.json"])


def test_a_model_that_is_not_there(fails, phantoms, tmp_path):
    fails("evaluate", "--data", phantoms, "--model", tmp_path / "nothing", words=["nothing"])
    fails("evaluate", "--data", phantoms, "--model", tmp_path, words=[tmp_path.name])


@pytest.fixture
def unfinished(phantoms, tmp_path, monkeypatch):
    "A run that was interrupted after its checkpoint of step 2, and the command that goes on."
    out, loss, calls = tmp_path / "unfinished", training_loss, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(*args, **kwargs)

    monkeypatch.setattr("verdiff.training.loss.training_loss", interrupted)
    command = ["train", "--data", str(phantoms), *SMOKE, "--out", str(out)]
    assert main(command) == 130
    monkeypatch.setattr("verdiff.training.loss.training_loss", loss)
    assert sorted(out.glob("checkpoint-*.pt"))
    return out, command


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_checkpoints_cut_in_half(fails, unfinished, share):
    out, command = unfinished
    for path in out.glob("checkpoint-*.pt"):
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    fails(*command, words=["checkpoint-"])


def test_the_newest_checkpoint_cut_in_half(unfinished, run, capsys):
    out, command = unfinished
    paths = sorted(out.glob("checkpoint-*.pt"))
    assert len(paths) >= 2
    paths[-1].write_bytes(paths[-1].read_bytes()[:1000])
    assert main(command) == 0  # the one before it serves
    said = capsys.readouterr()
    assert paths[-1].name in said.out + said.err
    assert (out / "model/model.safetensors").read_bytes() == (
        run / "model/model.safetensors").read_bytes()


def test_a_checkpoint_of_another_architecture(fails, unfinished):
    out, command = unfinished
    before = files(out)
    fails(*command, "--set", "channels=8,24", words=["channels"])
    assert files(out) == before


# ---------------------------------------------------------------- settings that are bad


def test_unknown_profile_and_key_name_the_nearest(fails, phantoms, tmp_path):
    command = ["train", "--data", phantoms, "--out", tmp_path / "run"]
    fails(*command, "--profile", "latpop", words=["latpop", "laptop"])
    fails(*command, *SMOKE, "--set", "chanels=8", words=["chanels", "channels"])
    fails(*command, *SMOKE, "--set", "max_steps", words=["max_steps"])
    fails(*command, *SMOKE, "--set", "max_steps=many", words=["max_steps", "many"])
    fails(*command, *SMOKE, "--set", "batch_size=0", words=["batch_size"])
    fails("demo", "--profile", "dema", "--out", tmp_path / "run", words=["dema", "demo"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("argv", [[], ["fly"], ["train"], ["segment", "a.png"],
                                  ["evaluate", "--data", "phantom", "--steps", "0"]])
def test_words_that_do_not_exist(argv, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2 and "verdiff" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["segment", "evaluate"])
def test_more_steps_than_the_model_has(fails, run, phantoms, tmp_path, command):
    where = [one(phantoms, "*.jpg")] if command == "segment" else ["--data", phantoms]
    fails(command, *where, "-o", tmp_path / "out", "--model", run, "--steps", "5000",
          words=["5000", "50"])
    assert not (tmp_path / "out").exists()
    fails("train", "--data", phantoms, *SMOKE, "--set", "sample_steps=51", "--out",
          tmp_path / "out", words=["sample_steps", "51", "timesteps"])


@pytest.mark.parametrize("words", [["--steps", "0"], ["--ensemble", "-1"], ["--steps", "ten"]])
def test_numbers_that_are_none_get_one_sentence(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(["segment", "a.png", "-o", "out", *words])
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1 and words[1] in err and words[0] in err


@pytest.mark.parametrize("words", ["data phantom --seed -1", "segment a.png -o out --seed -1",
                                   "segment a.png -o out --ensemble 1000000",
                                   "data phantom --training 99999999999999999999"])
def test_numbers_out_of_range_get_one_sentence(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words.split())
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1 and words.split()[-1] in err


def test_empty_names(fails, run, phantoms, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails("segment", "", "-o", "out", "--model", run, words=["is empty"])
    fails("segment", one(phantoms, "*.jpg"), "-o", "", "--model", run, words=["is empty"])
    assert not files(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"settings": {}}', '{"settings": {"val_fraction": "a", "seed": 1}}'])
def test_calibrate_with_a_damaged_run_json(fails, mine, phantoms, text):
    (mine / "run.json").write_text(text)
    fails("calibrate", "--data", phantoms, "--model", mine, words=["run.json is damaged"])


def test_a_demo_of_other_settings_can_start_over(fails, tmp_path):
    command = ["demo", *SMOKE, "--training", "4", "--test", "2", "--out", str(tmp_path)]
    assert main(command) == 0
    fails(*command, "--set", "timesteps=40", words=["--fresh"])
    assert main([*command, "--set", "timesteps=40", "--fresh"]) == 0


def test_the_next_command_can_be_copied(tmp_path, capsys):
    out = tmp_path / "two words"
    assert main(["data", "phantom", "--out", str(out), "--training", "1", "--test", "1"]) == 0
    assert f"--data '{out}'" in capsys.readouterr().out


def test_a_terminal_that_lacks_letters(run):
    command = [sys.executable, "-m", "verdiff", "evaluate", "--data", "phantom", "--limit", "1",
               "--size", "64x32", "--steps", "1", "--ensemble", "1", "--model", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent,
                          env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and "mean \\xb1 sd" in done.stdout


def test_torch_without_memory_is_a_sentence(fails, phantoms, run, tmp_path, monkeypatch):

    def greedy(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
    monkeypatch.setattr("verdiff.segmentation.segmenter.segment_image", greedy)
    fails("segment", one(phantoms, "*.jpg"), "-o", tmp_path, "--model", run, words=["not enough memory"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(fails, run, tmp_path):
    (tmp_path / "scans" / "locked").mkdir(parents=True)
    (tmp_path / "scans" / "locked").chmod(0)
    fails("segment", tmp_path / "scans", "-o", tmp_path / "out", "--model", run, words=["locked: Permission"])


# ---------------------------------------------------------------- a disk that is full


def full_disk(monkeypatch):
    def fsync(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", fsync)


def test_full_disk_while_training(fails, unfinished, monkeypatch):
    out, command = unfinished
    before = files(out)
    full_disk(monkeypatch)
    fails(*command, words=["No space left on device"])
    after = files(out)
    assert {p: after[p] for p in before if p.suffix in (".pt", ".safetensors")} == {
        p: b for p, b in before.items() if p.suffix in (".pt", ".safetensors")}
    assert {p.name for p in after if "checkpoint" in p.name} == {
        p.name for p in before if "checkpoint" in p.name}
    monkeypatch.undo()
    assert main(command) == 0


def test_full_disk_while_segmenting(fails, run, phantoms, tmp_path, monkeypatch):
    image, out = one(phantoms, "*.jpg"), tmp_path / "out"
    command = ["segment", image, "-o", out, "--model", run, "--steps", "1", "--ensemble", "1"]
    assert main([str(word) for word in command]) == 0
    before = files(out)
    full_disk(monkeypatch)
    fails(*command, "--seed", "1", words=["No space left on device", "_mask.png"])
    assert files(out) == before


def test_full_disk_while_writing_a_report(fails, run, phantoms, tmp_path, monkeypatch):
    full_disk(monkeypatch)
    fails("evaluate", "--data", phantoms, "--model", run, "--steps", "1", "--ensemble", "1",
          "--size", "64x32", "-o", tmp_path / "out", words=["evaluation.json", "No space left"])
    assert not files(tmp_path / "out")


def test_a_write_that_stops_in_the_middle(fails, unfinished):
    "Not simulated: the operating system refuses to let a file grow beyond 20 kB."
    out, command = unfinished
    before = {p: b for p, b in files(out).items() if p.suffix == ".pt"}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        fails(*command, words=["could not save", "File too large"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {p: b for p, b in files(out).items() if "checkpoint" in p.name} == before


def test_an_output_folder_that_is_a_file(fails, run, phantoms, tmp_path):
    (tmp_path / "out").write_text("")
    for out in (tmp_path / "out", tmp_path / "out" / "below"):
        fails("segment", one(phantoms, "*.jpg"), "-o", out, "--model", run, words=["out is a file"])
        fails("train", "--data", phantoms, *SMOKE, "--out", out, words=["out is a file"])
        fails("demo", *SMOKE, "--out", out, words=["out is a file"])
        fails("evaluate", "--data", phantoms, "--model", run, "-o", out, words=["out is a file"])
    assert (tmp_path / "out").read_text() == ""


def test_an_output_folder_without_permission(fails, run, phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *args: False)  # root may write everywhere
    fails("segment", one(phantoms, "*.jpg"), "-o", tmp_path / "a" / "b", "--model", run,
          words=[tmp_path, "no permission"])
    assert not (tmp_path / "a").exists()


# ---------------------------------------------------------------- interruptions and devices


def test_interrupted(run, phantoms, tmp_path, monkeypatch, capsys):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt
    monkeypatch.setattr("verdiff.segmentation.segmenter.sample", stop)
    image = str(one(phantoms, "*.jpg"))
    assert main(["segment", image, "-o", str(tmp_path), "--model", str(run)]) == 130
    err = capsys.readouterr().err
    assert "verdiff: interrupted" in err and "Traceback" not in err


def test_ctrl_c_leaves_whole_files_and_the_same_command_goes_on(run, phantoms, tmp_path, capsys):
    "A real process and a real signal."
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for i in range(200):
        shutil.copy(one(phantoms, "*.jpg"), scans / f"{i:03d}.jpg")
    command = [sys.executable, "-m", "verdiff", "segment", scans, "-o", out, "--model", run,
               "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True,
                          cwd=Path(__file__).parent.parent,  # heard also where the tests run in the background
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as process:
        deadline = time.monotonic() + 120
        while not (out / "001.json").exists() and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "verdiff: interrupted" in err and "Traceback" not in err
    left = sorted(p.name for p in out.iterdir())
    assert 10 <= len(left) < 1000 and not [name for name in left if name.endswith(".part")]
    for name in left:
        if name.endswith(".png"):
            Image.open(out / name).load()
        else:
            json.loads((out / name).read_text())
    first = (out / "000.json").stat().st_mtime_ns
    words = [str(word) for word in command[3:]]
    assert main(words) == 0 and first == (out / "000.json").stat().st_mtime_ns
    assert len(list(out.iterdir())) == 1000
    assert f"; {len(list(p for p in left if p.endswith('.json')))} there" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_does_not_exist(fails, run, phantoms, tmp_path):
    fails("segment", one(phantoms, "*.jpg"), "-o", tmp_path, "--model", run, "--device", "cuda",
          words=["cuda", "--device cpu"])
