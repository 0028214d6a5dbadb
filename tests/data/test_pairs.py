"Own images and masks: who belongs to whom, and what is refused."
import os
import unicodedata

import numpy as np
import pytest
from own_pairs import BONE, FILM, pairs, tiff, turned
from PIL import Image

from verdiff.data.datasets import open_dataset
from verdiff.data.packed import pack
from verdiff.data.pairs import MaskFolder
from verdiff.files import DataError
from verdiff.io.images import read_image


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


def test_labels_say_what_is_vertebra(tmp_path, capsys):
    "Vertebrae 1 to 9, canal 100, discs from 201 on, as SPIDER has them, in a mask of pictures."
    drawn = np.zeros((60, 40), np.uint8)
    drawn[5:15, 10:20], drawn[15:18, 10:20], drawn[5:30, 22:26] = 3, 203, 100
    for part, pixels in (("images", np.full((60, 40), 9, np.uint8)), ("masks", drawn)):
        (tmp_path / part).mkdir()
        Image.fromarray(pixels).save(tmp_path / part / "a.png")
    areas = {words: int(open_dataset(tmp_path, "all", (60, 40), labels=words)[0].mask.sum())
             for words in ("auto", "1-25", "spider", "203", "7,8")}
    assert areas == {"auto": 230, "1-25": 100, "spider": 100, "203": 30, "7,8": 0}
    keys = {open_dataset(tmp_path, "all", (60, 40), labels=words).fingerprint() for words in areas}
    assert len(keys) == 5
    assert "--labels chooses" in capsys.readouterr().err
    for wrong in ("some", "0", "3-1", "1,,2", "-4", "70000"):
        with pytest.raises(DataError, match="expected numbers such as 1-24,28, or one of verse"):
            open_dataset(tmp_path, "all", (60, 40), labels=wrong)
    with pytest.raises(DataError, match="each of the 1 masks is empty; 7, 8|each of the 1 masks is empty; 7-8"):
        pack(open_dataset(tmp_path, "all", (60, 40), labels="7,8"), progress=False)
    with pytest.raises(DataError, match="no labels to choose"):
        open_dataset("phantom", labels="1-24")
