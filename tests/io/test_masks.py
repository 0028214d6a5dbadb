"Masks of any kind, read by one door."
import numpy as np
import pytest
import tifffile
from own_pairs import BONE
from PIL import Image

from verdiff.files import DataError
from verdiff.io.masks import read_mask


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


def test_a_mask_in_cmyk(tmp_path):
    Image.fromarray(BONE * 255).convert("RGB").convert("CMYK").save(tmp_path / "a.tif")
    assert np.array_equal(np.asarray(read_mask(tmp_path / "a.tif")), BONE * 255)


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


def test_a_jpeg_mask_of_zeros_and_ones(tmp_path):
    Image.fromarray(BONE * 7).save(tmp_path / "a.jpg", quality=95)
    with pytest.raises(DataError, match="a.jpg: its brightest value is .*save it as PNG"):
        read_mask(tmp_path / "a.jpg")
