"What neighbouring projects' users reported, as it should be here."
import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, ImageDraw
from robustness.inputs import TINY

import verdiff
from verdiff.cli import main
from verdiff.data.datasets import open_dataset
from verdiff.data.phantom_set import PhantomSet
from verdiff.data.phantoms import draw_phantom
from verdiff.data.volume_layouts import volumes_below
from verdiff.data.xray import XRaySet
from verdiff.files import VerdiffError, files_below, read_json, tell_once
from verdiff.io import masks
from verdiff.io.archive import Store
from verdiff.io.images import read_image
from verdiff.lab.methods import make_network
from verdiff.segmentation.results import refuse_another
from verdiff.segmentation.segmenter import Segmenter
from verdiff.settings import load_settings


@pytest.fixture
def linked(tmp_path):
    "Two films in a folder: one in a folder elsewhere that a link names twice, beside a link that runs in a circle."
    film = Image.fromarray(np.arange(80, dtype=np.uint8).reshape(10, 8))
    for path in ("in/a.png", "elsewhere/b.png", "elsewhere/v.nii"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        film.save(tmp_path / path, "PNG")
    for name, target in (("one", "elsewhere"), ("two", "elsewhere"), ("circle", "in")):
        (tmp_path / "in" / name).symlink_to(tmp_path / target, target_is_directory=True)
    return tmp_path / "in"


def test_links_are_followed_once(linked):
    assert sorted(p.name for p in files_below(linked)) == ["a.png", "b.png", "v.nii"]
    assert [p.name for p in volumes_below(linked)] == ["v.nii"]


def test_a_set_behind_a_link_is_found(root, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/set").symlink_to(root, target_is_directory=True)
    assert Store(tmp_path / "in").stamp("labels/training/filenames.csv")


def test_names_in_a_table_stay_inside(root, tmp_path):
    store = Store(root)
    (root.parent / "secret.jpg").write_bytes(b"x")
    assert store.stamp("data/training/../../../secret.jpg") is None and store.stamp("\0") is None
    assert store.stamp("labels/training/filenames.csv")
    (tmp_path / "below").mkdir()
    (tmp_path / "set").symlink_to(root, target_is_directory=True)
    assert Store(tmp_path / "below/../set").stamp("labels/training/filenames.csv")


@pytest.mark.parametrize("lost", ["data/training", "labels/test/angles.csv", "labels"])
def test_phantoms_half_gone_are_drawn_again(tmp_path, monkeypatch, lost):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first = PhantomSet(None, "test", (32, 16), n_training=1, n_test=1, image_size=(96, 32))
    path = next(tmp_path.rglob(lost))
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    for split in ("training", "test"):
        again = PhantomSet(None, split, (32, 16), n_training=1, n_test=1, image_size=(96, 32))
        assert len(again) == 1
    assert np.array_equal(np.asarray(first.read_image(0)), np.asarray(again.read_image(0)))
    with pytest.raises(VerdiffError):  # but a folder that somebody named is not written over
        write = tmp_path / "mine"
        write.mkdir()
        PhantomSet(write)
    assert not list((tmp_path / "mine").iterdir())


@pytest.mark.parametrize("name", ["film.png", "other.png"])
def test_other_pixels_are_never_written_over(tmp_path, name):
    path, about = tmp_path / "film.json", {"file": name, "pixels": "new"}
    refuse_another(path, about, False)  # nothing there
    path.write_text('{"file": "film.png", "pixels": "old"}')
    with pytest.raises(VerdiffError, match="other pixels, those of film.png"):
        refuse_another(path, about, False)
    refuse_another(path, about, True)
    path.write_text('{"file": "film.png", "pixels": "new", "steps": 3}')
    refuse_another(path, about, False)  # the same film in another way


@pytest.mark.parametrize("text", [b"[" * 100_000, b"\xff", b"", b"{", b"9" * 5000])
def test_json_that_is_none_is_one_sentence(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(VerdiffError, match="x.json is not JSON"):
        read_json(path)


def test_many_pixels_in_few_bytes_are_no_radiograph(tmp_path):
    path = tmp_path / "blank.png"
    Image.new("L", (5000, 4000)).save(path)
    with pytest.raises(VerdiffError, match="20 million pixels in 0.0 MB"):
        read_image(path)
    noise = np.random.default_rng(0).integers(0, 256, (64, 5000), np.uint8)
    Image.fromarray(np.tile(noise, (4096 // 64, 1))).save(path)
    assert Path(path).stat().st_size > 200_000 and np.asarray(read_image(path)).shape == (4096, 5000)


def labelled(seed, size):
    "A radiograph and its label map: vertebrae 1 to 17, and between them discs 201 to 216."
    drawn = draw_phantom(seed, image_size=size)
    corners, labels = drawn.landmarks.reshape(17, 4, 2), Image.new("L", size[::-1])
    draw = ImageDraw.Draw(labels)
    for i in range(16):  # the lower corners of one, the upper of the next
        a, b, c, d = *corners[i, 2:], *corners[i + 1, :2]
        draw.polygon([tuple(p) for p in (a, b, d, c)], 201 + i)
    for i, (a, b, c, d) in enumerate(corners):
        draw.polygon([tuple(p) for p in (a, b, d, c)], i + 1)
    return Image.fromarray(drawn.image), labels


@pytest.mark.parametrize("size", [(384, 128), (451, 147)])
def test_case_06_labels_of_more_than_32_are_no_probability(tmp_path, capsys, size):
    kinds = {"images": 0, "masks": 1}
    for i in range(3):
        both = labelled(i, size)
        for kind, k in kinds.items():
            (tmp_path / "own" / kind).mkdir(parents=True, exist_ok=True)
            both[k].save(tmp_path / f"own/{kind}/{i}.png")
    values = np.asarray(both[1])
    bone, disc = (values > 0) & (values < 100), values > 200
    assert len(np.unique(values)) == 34 and bone.sum() > 3 * disc.sum() > 99
    masks._said.clear()
    for labels, of_disc in (("auto", 1), ("1-17", 0), ("verse", 0)):
        got = [open_dataset(tmp_path / "own", "all", size, labels=labels).arrays(i)[1] > 0 for i in range(3)][2]
        assert got.shape == values.shape
        assert (got[bone].mean(), got[disc].mean(), got[values == 0].mean()) == (1, of_disc, 0), labels
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "labels 1-17, 201-216: each of them counts as vertebra; --labels chooses" in said
    masks._said.clear()
    words = ["train", "--data", str(tmp_path / "own"), "--profile", "smoke", *(w for t in TINY for w in ("--set", t)), "--out"]
    assert main([*words, str(tmp_path / "a")]) == 0 and "labels 1-17, 201-216" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "b"), "--labels", "1-17"]) == 0 and "--labels 1-17" not in capsys.readouterr().err
    whole, chosen = (np.load(tmp_path / run / "images.npz") for run in "ab")
    assert np.sum(whole["masks"] > 0) > np.sum(chosen["masks"] > 0) > 0


@pytest.mark.parametrize("made", [{"Pillow": "9.9", "numpy": np.__version__}, None, ["9.9"], {"Pillow": ["9.9\n"]}])
def test_versions_that_matter_are_written_and_compared(tmp_path, capsys, made):
    film = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 20), np.uint8))
    film.save(tmp_path / "a.png")
    words = ["segment", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--ensemble", "1", "-q"]
    assert main(words) == 0
    path = tmp_path / "out/a.json"
    said = read_json(path)
    assert said["versions"] == {"torch": torch.__version__, "numpy": np.__version__, "Pillow": PIL.__version__}
    assert said["verdiff"] == verdiff.__version__ and said["fingerprint"] == Segmenter.from_pretrained().fingerprint()
    assert main(words) == 0 and "versions" not in capsys.readouterr().err
    path.write_text(json.dumps(said | {"versions": made}))
    tell_once.cache_clear()
    assert main(words) == 0
    read = capsys.readouterr()
    assert "1 there already" in read.out and path.read_text() == json.dumps(said | {"versions": made})
    told = f"was made with Pillow 9.9 (here {PIL.__version__});" in read.err
    assert told == (isinstance(made, dict) and made["Pillow"] == "9.9"), read.err
    assert main([*words, "--fresh"]) == 0 and read_json(path) == said


def rows(change):
    "A change of all rows of a table: (N, 2, 17, 4), x before y, the vertebrae, their corners."
    def of(table):
        return change(table.reshape(-1, 2, 17, 4)).reshape(len(table), -1)
    return of


@pytest.mark.parametrize("table, change, words", [
    ("landmarks", rows(lambda t: t[:, ::-1]), "out of order"),  # y first
    ("landmarks", lambda t: t.reshape(-1, 2, 68).transpose(0, 2, 1).reshape(-1, 136), "out of order"),  # x, y, x, y
    ("landmarks", rows(lambda t: t[:, :, ::-1]), "out of order"),  # from the bottom upwards
    ("landmarks", rows(lambda t: t.transpose(0, 1, 3, 2)), "out of order"),  # corner by corner
    ("landmarks", rows(lambda t: t[..., [0, 2, 1, 3]]), "out of order"),  # corners down, then right
    ("landmarks", lambda t: np.roll(t, 1, 0), "rows mixed up"), ("angles", lambda t: np.roll(t, 1, 0), "rows mixed up"),
    ("angles", lambda t: t * np.pi / 180, "angles.csv says")])
def test_landmarks_in_another_order_are_refused(root, tmp_path, table, change, words):
    shutil.copytree(root, tmp_path / "set")
    path = next((tmp_path / "set").rglob(f"training/{table}.csv"))
    np.savetxt(path, change(np.loadtxt(path, delimiter=",")), "%.7f", ",")
    data = XRaySet(tmp_path / "set", "training", (64, 32))
    with pytest.raises(VerdiffError, match=f"row . of labels/training/landmarks.csv .phantom-000.*{words}"):
        for i in range(len(data)):
            data.arrays(i)


def test_a_canvas_that_leaves_one_pixel_is_refused():
    pytest.importorskip("monai")
    for size, fits in ((["height=32", "width=16"], False), (["height=64", "width=16"], True)):
        with nullcontext() if fits else pytest.raises(VerdiffError, match="more than 32 pixels"):
            make_network("swin", load_settings("smoke", size))
