"Landmarks, placements, phantoms in the published layout, splits, packing, download."
import io
import os
import pickle
import shutil
import tempfile
import threading
import unicodedata
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import loadmat

from verdiff.cli import main
from verdiff.data.canvas import fit_image, place, unfit
from verdiff.data.datasets import open_dataset
from verdiff.data.landmarks import (
    cobb_angles,
    fill_convex,
    is_crooked,
    landmarks_to_mask,
    outline,
)
from verdiff.data.packed import pack
from verdiff.data.pairs import MaskFolder
from verdiff.data.phantom_set import PhantomSet, write_phantoms
from verdiff.data.phantoms import draw_phantom
from verdiff.data.splits import (
    CROSS_SPLIT_DUPLICATES,
    MORE_CROSS_SPLIT_DUPLICATES,
    clean_test_indices,
    drawn_split,
    grouped_split,
    study,
)
from verdiff.data.xray import XRaySet
from verdiff.files import DataError
from verdiff.io.archive import Store, read_bytes
from verdiff.io.download import download_xray, fetch, find_xray, manifest
from verdiff.io.images import read_image, read_smaller
from verdiff.io.masks import read_mask

XRAY = find_xray()
needs_xray = pytest.mark.skipif(XRAY is None, reason="needs the X-ray set")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("data") / "phantoms", 6, 3, 0, (192, 64))


@given(st.integers(1, 900), st.integers(1, 900), st.integers(8, 200), st.integers(8, 200),
       st.sampled_from(["letterbox", "squash"]))
@settings(max_examples=60, deadline=None)
def test_there_and_back_gives_the_size_back(height, width, rows, columns, fit):
    canvas, where = fit_image(Image.new("L", (width, height), 200), (rows, columns), fit)
    assert canvas.size == (columns, rows)
    assert 0 <= where.top <= rows - where.content[0] and 0 <= where.left <= columns - where.content[1]
    back = unfit(np.asarray(canvas, np.float32), where)
    assert back.shape == (height, width) and np.abs(back - 200).max() < 1
    if fit == "squash":
        assert where.content == (rows, columns)


def test_corners_go_where_the_image_goes():
    where = place(400, 100, (200, 100), "letterbox")
    assert where.points(np.array([[0, 0], [100, 400]])).tolist() == [[25, 0], [75, 200]]
    with pytest.raises(ValueError, match="fit"):
        place(4, 4, (2, 2), "stretch")


@given(st.permutations(range(4)))
@settings(max_examples=24, deadline=None)
def test_no_order_of_the_clicks_loses_a_vertebra(order):
    quad = np.array([[10.0, 10], [40, 14], [8, 30], [42, 33]])
    mask = landmarks_to_mask(quad[list(order)], 50, 50)
    whole = landmarks_to_mask(quad, 50, 50)
    assert is_crooked(quad) is False and (mask == whole).all() and len(outline(quad)) == 4


def test_area_of_a_tilted_rectangle():
    c, s = np.cos(0.3), np.sin(0.3)
    quad = np.array([[0, 0], [40, 0], [0, 22], [40, 22]]) @ np.array([[c, s], [-s, c]]) + (20, 10)
    assert abs(landmarks_to_mask(quad, 60, 80).sum() / (40 * 22) - 1) < 0.01


@pytest.mark.parametrize("cobb", [3, 20, 55])
def test_a_phantom_has_the_curve_it_was_asked_for(cobb):
    p = draw_phantom(11, cobb=cobb)
    assert p.image.shape == (576, 192) and p.image.dtype == np.uint8
    assert np.isclose(p.cobb[0], cobb) and np.allclose(cobb_angles(p.landmarks, 576), p.cobb)
    assert not any(is_crooked(q) for q in p.landmarks.reshape(17, 4, 2))
    assert (draw_phantom(11, cobb=cobb).image == p.image).all()


def test_phantoms_are_read_as_radiographs_are(root):
    data = XRaySet(root, "all", (96, 32))
    assert len(data) == 9 and data.splits.count("test") == 3
    sample = data[4]
    assert sample.image.dtype == sample.mask.dtype == torch.float32
    assert set(sample.mask.unique().tolist()) == {0.0, 1.0} and 0.04 < sample.mask.mean() < 0.25
    mat = loadmat(root / f"boostnet_labeldata/labels/{data.splits[4]}/{sample.name}.mat")["p2"]
    assert np.abs(mat - sample.landmarks).max() < 0.04
    assert data.original_mask(4).shape == (192, 64) and pickle.loads(pickle.dumps(data))[4].name == sample.name


def test_a_zip_reads_like_its_folder(root, tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as file:
        for item in sorted(root.rglob("*")):
            file.write(item, item.relative_to(root))
    a, b = (open_dataset(p, "training", (96, 32)) for p in (root, path))
    assert torch.equal(a[2].image, b[2].image) and torch.equal(a[2].mask, b[2].mask)
    assert len(open_dataset(tmp_path, "test", (96, 32))) == 3  # a folder that holds the zip
    assert len(manifest(path)) == 64


def test_nothing_is_overwritten(root):
    with pytest.raises(DataError, match="already exists"):
        write_phantoms(root, 1, 1)


def test_phantom_set_is_drawn_once(tmp_path):
    first = PhantomSet(tmp_path / "p", n_training=2, n_test=1, image_size=(96, 32), size=(48, 16))
    stamp = first.fingerprint()
    again = PhantomSet(tmp_path / "p", n_training=2, n_test=1, image_size=(96, 32), size=(48, 16))
    assert again.fingerprint() == stamp != PhantomSet(tmp_path / "p", size=(64, 16)).fingerprint()


def test_packing_is_cached_by_content(root, tmp_path):
    cache, data = tmp_path / "c.npz", XRaySet(root, "training", (48, 16))
    one = pack(data, cache, progress=False)
    two = pack(data, cache, progress=False)
    other = pack(XRaySet(root, "training", (64, 16)), cache, progress=False)
    assert torch.equal(one.images, two.images) and other.images.shape[-2:] == (64, 16)
    cache.write_bytes(b"junk")
    assert torch.equal(pack(data, cache, progress=False).masks, one.masks)
    part = one.subset([3, 1])
    assert part.names == [one.names[3], one.names[1]] and torch.equal(part.images[0], one.images[3])


def test_own_pairs(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for i in range(30):
        Image.new("L", (20, 40), 90).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(np.pad(np.full((20, 10), 1, np.uint8), ((10, 10), (5, 5)))).save(tmp_path / "masks" / f"{i}.png")
    data = open_dataset(tmp_path, "all", (40, 20))
    assert isinstance(data, MaskFolder) and data[0].mask.sum() == 200
    names = [open_dataset(tmp_path, s).names for s in ("training", "test")]
    assert sorted(sum(names, [])) == sorted(data.names) and not set(names[0]) & set(names[1])
    (tmp_path / "masks" / "7.png").unlink()
    with pytest.raises(DataError, match="no mask 7.png"):
        open_dataset(tmp_path, "all")
    (tmp_path / "images" / "7.png").unlink()
    (tmp_path / "images" / "8.png").unlink()
    with pytest.raises(DataError, match="no image 8.png"):
        open_dataset(tmp_path, "all")
    (tmp_path / "masks" / "8.png").rename(tmp_path / "masks" / "9.tif")
    with pytest.raises(DataError, match="9.tif: 9.png has the same name"):
        open_dataset(tmp_path, "all")


@pytest.mark.parametrize("mode, name, inside", [
    ("L", "a.png", 255), ("L", "a.png", 3), ("LA", "a.png", 3), ("RGB", "a.png", 200), ("RGBA", "a.tif", 200),
    ("I;16", "a.png", 17), ("1", "a.png", 1), ("P", "a.png", 2), ("L", "a.jpg", 255)])
def test_zero_is_background_in_any_kind_of_mask(tmp_path, mode, name, inside):
    shape = np.zeros((40, 32), np.uint16)
    shape[8:32, 8:24] = inside
    picture = Image.fromarray(shape) if mode == "I;16" else Image.fromarray(shape.astype(np.uint8))
    if mode == "P":
        picture = Image.frombytes("P", picture.size, picture.tobytes())
        picture.putpalette([255] * 768)
    picture = picture if mode in ("I;16", "P") else picture.point(lambda v: 255 * (v > 0)).convert("1") if mode == "1" \
        else picture.convert(mode)
    picture.save(tmp_path / name)
    assert (np.asarray(read_mask(tmp_path / name)) == 255 * (shape > 0)).mean() == 1


def pairs(root, image, mask, save_image=None, save_mask=None, suffix=".png", count=3):
    "A folder of own pairs, all alike."
    for part, pixels, save in (("images", image, save_image), ("masks", mask, save_mask)):
        (root / part).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            end = suffix if part == "images" else ".png"
            (save or (lambda p, x: Image.fromarray(x).save(p)))(root / part / f"{i}{end}", pixels)
    return root


FILM = np.random.default_rng(0).integers(0, 250, (40, 20)).astype(np.uint8)
BONE = np.pad(np.ones((20, 10), np.uint8), ((15, 5), (2, 8)))


def tiff(**how):
    return lambda path, pixels: tifffile.imwrite(path, how["change"](pixels), **how.get("tags", {}))


def turned(orientation, turn):
    def save(path, pixels):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(turn(pixels).copy()).save(path, exif=exif)
    return save


@pytest.mark.parametrize("save, suffix", [
    (turned(3, lambda x: np.rot90(x, 2)), ".png"), (turned(6, np.rot90), ".png"),
    (tiff(change=lambda x: x / 255), ".tif"), (tiff(change=lambda x: np.stack([x * np.uint16(9)] * 3, -1)), ".tif"),
    (tiff(change=lambda x: (255 - x) * np.uint16(9), tags={"photometric": "miniswhite"}), ".tif")])
def test_own_images_are_read_as_the_command_segment_reads_them(tmp_path, save, suffix):
    data = open_dataset(pairs(tmp_path, FILM, BONE, save, suffix=suffix), "all", (40, 20))
    read = np.asarray(data.read_image(0), float)
    assert read.shape == FILM.shape and np.corrcoef(read.ravel(), FILM.ravel())[0, 1] > 0.999
    assert np.array_equal(read, np.asarray(read_image(data.pairs[0][0]))) and data[0].mask.sum() == 200


def test_a_mask_is_turned_as_its_exif_says(tmp_path):
    data = open_dataset(pairs(tmp_path, FILM, BONE, None, turned(6, np.rot90)), "all", (40, 20))
    assert np.array_equal(data.arrays(0)[1], BONE)


def test_a_mask_in_cmyk(tmp_path):
    Image.fromarray(BONE * 255).convert("RGB").convert("CMYK").save(tmp_path / "a.tif")
    assert np.array_equal(np.asarray(read_mask(tmp_path / "a.tif")), BONE * 255)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_image_that_is_not_finite_is_named(tmp_path, bad):
    pairs(tmp_path, FILM, BONE, tiff(change=lambda x: np.where(x > 99, bad, x).astype(np.float32)), suffix=".tif")
    with pytest.raises(DataError, match="0.tif: .*NaN"):
        pack(open_dataset(tmp_path, "all", (40, 20)), progress=False)
    with pytest.raises(DataError, match="film: .*NaN"):
        read_smaller((tmp_path / "images" / "0.tif").read_bytes(), None, "film")


@pytest.mark.parametrize("value, words", [(0, "each of the 3 masks is empty"), (1, "masks mark 100% of an image")])
def test_masks_that_mark_nothing_or_everything(tmp_path, value, words, capsys):
    pairs(tmp_path, FILM, np.full((40, 20), value, np.uint8))
    with pytest.raises(DataError, match=f"masks: .*{words}"):
        pack(open_dataset(tmp_path, "all", (60, 60)), progress=False)
    for i in (1, 2):
        Image.fromarray(BONE).save(tmp_path / "masks" / f"{i}.png")
    assert len(pack(open_dataset(tmp_path, "all", (60, 60)), progress=False)) == 3
    assert "note: 1 of 3 masks: " in capsys.readouterr().err


def test_masks_turned_inside_out(tmp_path):
    pairs(tmp_path, FILM, 1 - BONE)
    with pytest.raises(DataError, match="masks mark 7.% of an image .*inverted"):
        pack(open_dataset(tmp_path, "all", (60, 60)), progress=False)


def test_a_mask_with_soft_borders_is_cut_at_half(tmp_path):
    soft = Image.fromarray(BONE * 255).resize((200, 400), Image.Resampling.BICUBIC)
    soft.save(tmp_path / "a.png")
    assert np.mean(np.asarray(read_mask(tmp_path / "a.png")) > 0) == pytest.approx(BONE.mean(), abs=0.01)


def test_a_stack_of_masks_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([BONE, BONE]), photometric="minisblack")
    with pytest.raises(DataError, match="a.tif: this TIFF is a stack"):
        read_mask(tmp_path / "a.tif")


def test_a_mask_that_vanished_is_named(tmp_path):
    with pytest.raises(DataError, match="gone.png: .*no such file"):
        read_mask(tmp_path / "gone.png")


def test_masks_as_segment_writes_them(tmp_path):
    pairs(tmp_path, FILM, BONE)
    for path in (tmp_path / "masks").iterdir():
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    data = open_dataset(tmp_path, "all", (60, 60))
    assert len(data) == 3 and data[0].mask.any()
    Image.fromarray(BONE).save(tmp_path / "masks" / "1.png")
    with pytest.raises(DataError, match="belongs to the same image"):
        open_dataset(tmp_path, "all", (60, 60))


def test_a_partner_of_another_kind_is_named(tmp_path):
    pairs(tmp_path, FILM, BONE)
    (tmp_path / "images/1.png").rename(tmp_path / "images/1.webp")
    with pytest.raises(DataError, match="1.webp is of another kind"):
        open_dataset(tmp_path, "all", (60, 60))


def test_a_png_of_16_bits_a_colour_is_refused(tmp_path):
    import struct
    import zlib
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    rows = b"".join(b"\0" + np.full((5, 3), 4000, ">u2").tobytes() for _ in range(6))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 6, 16, 2, 0, 0, 0))
                                     + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    with pytest.raises(DataError, match="a.png: a PNG with 16 bits a colour"):
        read_image(tmp_path / "a.png")


def test_a_jpeg_mask_of_zeros_and_ones(tmp_path):
    Image.fromarray(BONE * 7).save(tmp_path / "a.jpg", quality=95)
    with pytest.raises(DataError, match="a.jpg: its brightest value is .*save it as PNG"):
        read_mask(tmp_path / "a.jpg")


def test_own_pairs_in_subfolders_with_any_name(tmp_path):
    pairs(tmp_path, FILM, BONE)
    for part, form in (("images", "NFC"), ("masks", "NFD")):
        folder = tmp_path / part
        (folder / "later").mkdir()
        (folder / "0.png").rename(folder / "later" / unicodedata.normalize(form, "Röntgen 0.png"))
        (folder / "1.png").rename(os.fsdecode(bytes(folder) + b"/r\xf6ntgen.png"))  # no UTF-8
        (folder / "x.png").mkdir()
        (folder / ".hidden.png").touch()
    data = open_dataset(tmp_path, "all", (40, 20))
    assert [unicodedata.normalize("NFC", n) for n in sorted(data.names)] == [
        "2.png", "later/Röntgen 0.png", "r\udcf6ntgen.png"]
    assert len(pack(data, tmp_path / "cache.npz", progress=False)) == 3
    names = [n for s in ("training", "test") for n in MaskFolder(
        tmp_path / "images", tmp_path / "masks", split=s).names]
    assert sorted(names) == sorted(data.names)


def test_own_pairs_that_are_not_complete(tmp_path):
    (tmp_path / "training" / "images").mkdir(parents=True)
    with pytest.raises(DataError, match="training: there is images/ but no masks/"):
        open_dataset(tmp_path, "training")
    (tmp_path / "training" / "masks").mkdir()
    with pytest.raises(DataError, match="images: no image here"):
        open_dataset(tmp_path, "training")
    with pytest.raises(DataError, match="there is training/images, but no test/images and test/masks"):
        open_dataset(tmp_path, "test")


# ---------------------------------------------------------------- data that is bad, as a user meets it


def table(name, change):
    "Spoil the third row of a table of the training and of the test split."
    def spoil(top):
        for path in top.rglob(name):
            lines = path.read_text().splitlines()
            lines[2:3] = change(lines[2])
            path.write_text("\n".join(lines) + "\n")
    return spoil


def every(pattern, change):
    "Do something to each file of that name."
    def spoil(top):
        for path in sorted(top.rglob(pattern)):
            change(path)
    return spoil


def first(value):
    return lambda row: [",".join([value, *row.split(",")[1:]])]


def junk(path):
    path.write_bytes(b"Dear colleague")


def half(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


BAD = {
    "row missing": (table("landmarks.csv", lambda row: []), ["landmarks.csv", "rows but filenames.csv has"]),
    "angle missing": (table("angles.csv", lambda row: []), ["angles.csv", "rows but filenames.csv has"]),
    "name missing": (table("filenames.csv", lambda row: []), ["landmarks.csv", "rows but filenames.csv has"]),
    "NaN": (table("landmarks.csv", first("nan")), ["row 3 of", "landmarks.csv", "'nan'"]),
    "no number": (table("landmarks.csv", first("12,5"[:1] + "x")), ["row 3 of", "landmarks.csv", "'1x'"]),
    "pixels, not shares": (table("landmarks.csv", first("412")), ["row 3 of", "'412'", "between -0.1 and 1.1"]),
    "empty cell": (table("angles.csv", first("")), ["row 3 of", "angles.csv", "''"]),
    "too few columns": (table("landmarks.csv", lambda row: [row.rsplit(",", 1)[0]]), ["row 3 of", "135 values, not 136"]),
    "too many columns": (table("angles.csv", lambda row: [row + ",7"]), ["row 3 of", "4 values, not 3"]),
    "name of no file": (table("filenames.csv", lambda row: ["ghost.jpg"]), ["filenames.csv names ghost.jpg"]),
    "images gone": (every("*.jpg", lambda path: path.unlink()), ["filenames.csv names phantom-", "missing"]),
    "tables empty": (every("filenames.csv", lambda path: path.write_text("\n")), ["filenames.csv names no image"]),
    "no landmarks": (every("landmarks.csv", lambda path: path.unlink()), ["landmarks.csv is missing"]),
    "no image": (every("*.jpg", junk), ["phantom-", "not an image"]),
    "half an image": (every("*.jpg", half), ["phantom-", "is it complete?"]),
    "tables of zeros": (every("*.csv", lambda path: path.write_bytes(bytes(99))), [".csv"]),
}


@pytest.fixture
def fails(capsys):
    "Run the command line; it must end with 2 and one sentence that holds the words."

    def check(*argv, words=()):
        capsys.readouterr()
        assert main([str(a) for a in argv]) == 2
        err = capsys.readouterr().err
        lines = [line for line in err.splitlines() if line.startswith("verdiff: error: ")]
        assert len(lines) == 1 and "Traceback" not in err, err
        for word in words:
            assert word in lines[0], (word, lines[0])
    return check


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_one_sentence(root, tmp_path, fails, name, packed):
    data = tmp_path / "data"
    shutil.copytree(root, data)
    spoil, words = BAD[name]
    spoil(data)
    if packed:
        data = shutil.make_archive(str(tmp_path / "set"), "zip", data)
    fails("train", "--data", data, "--profile", "smoke", "--out", tmp_path / "run", words=words)
    fails("evaluate", "--data", data, "--model", "bundled", words=words)
    assert not list(tmp_path.rglob("*.npz")) and not list(tmp_path.rglob("*.safetensors"))


@given(st.floats(0, 1), st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_a_zip_with_a_wrong_byte_is_read_or_refused(where, change):
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("labels/test/filenames.csv", "a.jpg\n" * 20)
        file.writestr("labels/test/angles.csv", "1,2,3\n" * 20)
    data = bytearray(memory.getvalue())
    data[int(where * (len(data) - 1))] ^= change
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set.zip"
        path.write_bytes(data)
        try:
            store = Store(path)
            if store.top is not None:
                read_bytes(store, "labels/test/angles.csv")
                manifest(path)
        except DataError as error:
            assert "set.zip" in str(error)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "bmp"])
def test_an_image_with_wrong_bytes_is_read_or_refused(kind):
    rng, memory = np.random.default_rng(0), io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (30, 20), dtype=np.uint8)).save(memory, kind)
    good = memory.getvalue()
    for _ in range(150):
        data = bytearray(good[:rng.integers(1, len(good) + 1)] if rng.random() < 0.3 else good)
        for at in rng.integers(0, min(len(data), 200), 3):
            data[at] = rng.integers(256)
        try:
            image, size = read_smaller(bytes(data), None, "film")
            assert image.mode == "L" and len(size) == 2
        except DataError as error:
            assert str(error).startswith("film: ")


def test_a_folder_or_file_that_is_something_else(tmp_path, fails):
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"x")
    (tmp_path / "text.zip").write_text("no zip")
    (tmp_path / "only" / "images").mkdir(parents=True)
    (tmp_path / "none" / "images").mkdir(parents=True)
    (tmp_path / "none" / "masks").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("holiday.jpg", "")
    for name, word in (("empty", "empty"), ("photos", "images/ and masks/"), ("text.zip", "not a complete zip"),
                       ("only", "images/ and masks/"), ("none", "no image here"), ("other.zip", "published layout"),
                       ("nowhere", "verdiff data xray")):
        fails("train", "--data", tmp_path / name, "--profile", "smoke", "--out", tmp_path / "run", words=[name, word])


@given(st.lists(st.tuples(st.integers(1, 30), st.sampled_from("ABCD")), min_size=2, max_size=80, unique=True),
       st.floats(0.05, 0.5), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_no_study_on_both_sides(films, fraction, seed):
    names = [f"x-1th-10-Jan-2017-{n} {letter} AP.jpg" for n, letter in films]
    train, val = grouped_split(names, fraction, seed)
    assert sorted(train + val) == list(range(len(names))) and train
    assert not {study(names[i]) for i in train} & {study(names[i]) for i in val}


def test_known_twins():
    test = {b for _, b in CROSS_SPLIT_DUPLICATES}
    more = {b for _, b in MORE_CROSS_SPLIT_DUPLICATES}
    assert len(CROSS_SPLIT_DUPLICATES) == 12 and len(test) == len(more) == 8 and not test & more
    assert study("sunhl-1th-10-Jan-2017-239 A AP.jpg") == study("sunhl-1th-10-Jan-2017-238 A AP.jpg")


class Server(ThreadingHTTPServer):
    def __init__(self, handler):
        super().__init__(("127.0.0.1", 0), handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}/x.zip"


def serving(content, ranges=True, status=200):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if ranges else 0
            self.send_response(206 if start else status)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:])

        def log_message(self, *words):
            pass
    return Server(Handler)


def test_download_tries_the_next_source_resumes_and_verifies(root, tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as file:
        for item in sorted(root.rglob("*")):
            file.write(item, item.relative_to(root))
    good, wanted = path.read_bytes(), manifest(path)
    broken, junk, right = serving(b"", status=500), serving(b"no zip"), serving(good)
    out = tmp_path / "out"
    out.mkdir()
    (out / ".scoliosis-xray-single-view.zip.2.part").write_bytes(good[:1000])  # an earlier try
    got = download_xray(out, [broken.url, junk.url, right.url], wanted, 5, False)
    assert got.read_bytes() == good and [p.name for p in out.iterdir()] == [got.name]
    right.shutdown()
    assert download_xray(out, [right.url], wanted, 5, False) == got  # nothing to fetch any more


def test_download_says_what_to_do_by_hand(root, tmp_path):
    junk = serving(b"no zip")
    with pytest.raises(DataError, match="browser") as error:
        download_xray(tmp_path / "out", [junk.url], "0" * 64, 5, False)
    assert junk.url in str(error.value) and not list((tmp_path / "out").iterdir())


def other_set(root, tmp_path):
    "The same files but for one letter of one table."
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    path = next(copy.rglob("angles.csv"))
    path.write_text(path.read_text()[:-2] + "9\n")
    return Path(shutil.make_archive(str(tmp_path / "copy"), "zip", copy)).read_bytes()


def test_a_set_with_another_checksum_is_not_taken(root, tmp_path):
    good = Path(shutil.make_archive(str(tmp_path / "set"), "zip", root))
    changed, right = serving(other_set(root, tmp_path)), serving(good.read_bytes())
    out = tmp_path / "out"
    with pytest.raises(DataError, match="not those of the published set.*browser"):
        download_xray(out, [changed.url], manifest(good), 5, False)
    assert not list(out.iterdir())
    assert download_xray(out, [changed.url, right.url], manifest(good), 5, False).read_bytes() == good.read_bytes()


def test_a_damaged_set_that_lies_there_is_fetched_again(root, tmp_path):
    good = Path(shutil.make_archive(str(tmp_path / "set"), "zip", root))
    wanted, out = manifest(good), tmp_path / "out"
    right = serving(good.read_bytes())
    target = download_xray(out, [right.url], wanted, 5, False)
    target.write_bytes(target.read_bytes()[:-500])
    assert download_xray(out, [right.url], wanted, 5, False).read_bytes() == good.read_bytes()


def breaking(content, chunked):
    "A server whose connection breaks after a third of what is left, in the way of either kind of answer."
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1" if chunked else "HTTP/1.0"

        def do_GET(self):
            start = int(self.headers.get("Range", "bytes=0-")[6:-1])
            if start >= len(content):
                return self.send_error(416)
            rest = content[start:start + max(1000, (len(content) - start) // 3)]
            self.send_response(206 if start else 200)
            if chunked:
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(f"{len(content) - start:x}\r\n".encode() + rest)
            else:
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                self.wfile.write(rest)
            self.close_connection = True

        def log_message(self, *words):
            pass
    return Server(Handler)


def test_a_connection_that_breaks_again_and_again(tmp_path):
    content = np.random.default_rng(0).bytes(50_000)
    server, part = breaking(content, chunked=False), tmp_path / "part"
    for _ in range(30):
        try:
            fetch(server.url, part, 5, False)
            break
        except OSError as error:
            assert "ended after" in str(error)
    assert part.read_bytes() == content
    with pytest.raises(OSError, match="broke off"):
        fetch(breaking(content, chunked=True).url, tmp_path / "other", 5, False)
    with pytest.raises(OSError, match="refused|Connection"):
        fetch("http://127.0.0.1:9/x.zip", tmp_path / "none", 2, False)


def test_a_server_that_knows_no_ranges_starts_afresh(tmp_path):
    content = np.random.default_rng(1).bytes(5_000)
    (tmp_path / "part").write_bytes(content[:700])
    fetch(serving(content, ranges=False).url, tmp_path / "part", 5, False)
    assert (tmp_path / "part").read_bytes() == content


@needs_xray
def test_the_xray_set():
    data = XRaySet(XRAY, "all", (96, 32))
    assert len(data) == 609 and data.splits.count("test") == 128 and len(set(data.names)) == 609
    crooked = [(i, v) for i in range(609) for v in range(17) if is_crooked(data.shares[i, 4 * v:4 * v + 4])]
    assert len(crooked) == 7 and [i for i, _ in crooked] == [193, 265, 480, 484, 526, 566, 570]
    names = [n for n, s in zip(data.names, data.splits, strict=True) if s == "test"]
    assert [len(clean_test_indices(names, s)) for s in (False, True)] == [120, 112]
    known = set(data.names)
    assert all(a in known and b in known for a, b in CROSS_SPLIT_DUPLICATES + MORE_CROSS_SPLIT_DUPLICATES)
    ours = []
    for i in range(0, 609, 12):
        height, width = data._load(i, small=True)[1]
        ours.append(cobb_angles(data.shares[i] * (width, height), height) - data.angles[i])
    assert np.abs(np.array(ours)[:, :2]).max() < 0.5
    known = [data.names[481:].index(b) for _, b in CROSS_SPLIT_DUPLICATES]
    assert set(known) == {i - 481 for i in (548, 549, 550, 551, 553, 554, 555, 556)}


@pytest.mark.parametrize("box", [(-30, 5, -10, 20), (5, -30, 20, -10), (-30, -30, -10, -10),
                                 (70, 5, 90, 20), (5, 70, 20, 90)])
def test_a_vertebra_outside_of_the_canvas_marks_nothing(box):
    left, top, right, bottom = box
    mask = np.zeros((64, 64), bool)
    fill_convex(mask, np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float))
    assert not mask.any()


def test_the_split_does_not_depend_on_how_a_system_writes_umlauts():
    for i in range(50):
        a, b = (unicodedata.normalize(form, f"Rücken {i}") for form in ("NFC", "NFD"))
        assert a != b and drawn_split(a) == drawn_split(b)


def test_all_does_not_join_what_is_kept_apart(tmp_path):
    for half in ("training", "test"):
        for part in ("images", "masks"):
            (tmp_path / half / part).mkdir(parents=True)
    with pytest.raises(DataError, match="kept apart"):
        open_dataset(tmp_path, "all")
