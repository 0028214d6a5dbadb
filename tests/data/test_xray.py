"The published layout: the set itself, and copies that are spoilt, as a user meets them."
import shutil

import numpy as np
import pytest

from verdiff.data.landmarks import cobb_angles, is_crooked
from verdiff.data.splits import (
    CROSS_SPLIT_DUPLICATES,
    MORE_CROSS_SPLIT_DUPLICATES,
    clean_test_indices,
)
from verdiff.data.xray import XRaySet
from verdiff.io.download import find_xray

XRAY = find_xray()
needs_xray = pytest.mark.skipif(XRAY is None, reason="needs the X-ray set")


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
