"The same picture in each encoding gives the same mask, where it lies in the picture."
from functools import cache

import numpy as np
import pytest
from formats import deeper, dicom, lying, negative, phantom, pillow_file, tiff
from PIL import Image
from robustness.inputs import meta, nifti, pillow

from verdiff.segmentation.segmenter import Segmenter

CLOSE = 0.94  # Dice; 0.964 to 0.986 were measured, a single sample of each
LPS = np.diag([-1.0, -1, 1, 1])  # of a NIfTI whose first axis runs to the right of the screen


@pytest.fixture(scope="module")
def segment(tmp_path_factory):
    "Bytes of a file -> mask and probability, by the bundled model."
    segmenter, folder = Segmenter.from_pretrained(), tmp_path_factory.mktemp("encodings")

    @cache
    def run(data, ending=".png"):
        path = folder / f"film{ending}"
        path.write_bytes(data)
        result = segmenter.predict(path, steps=1, ensemble=1)
        return result.mask, result.probability
    return run


def palette(film):
    "Grey values behind numbers that are shuffled, so that the palette must be used."
    order = np.random.default_rng(0).permutation(256).astype(np.uint8)  # number -> grey
    image = Image.fromarray(np.argsort(order).astype(np.uint8)[film]).convert("P")
    image.putpalette(np.repeat(order, 3).tolist())
    return pillow(image, "PNG")


def see_through(film):
    "RGBA whose opacity says nothing of the grey."
    image = Image.fromarray(film).convert("RGBA")
    image.putalpha(Image.fromarray(np.random.default_rng(0).integers(1, 256, film.shape, np.uint8)))
    return pillow(image, "PNG")


def in_8_bits(film):
    return {"PNG, palette": (palette(film), ".png"), "PNG, RGBA": (see_through(film), ".png"), "TIFF uint8": (tiff(film), ".tif"),
            "TIFF float32 in [0, 1]": (tiff((film / 255).astype(np.float32)), ".tif"),
            "MONOCHROME2": (dicom(film), ".dcm"), "MONOCHROME1": (dicom(255 - film, PhotometricInterpretation="MONOCHROME1"), ".dcm"),
            "NIfTI": (nifti(film.T[..., None].copy(), LPS), ".nii"), "MHA": (meta(film.T.copy()), ".mha"),
            "MHA, compressed": (meta(film.T[..., None].copy(), True), ".mha")}


def deep(film):
    "Each 16 times as deep, or by steps of a half."
    low, signed, real = (deeper(film, kind) for kind in ("uint16", "int16", "float32"))
    return {"TIFF uint16": (tiff(low), ".tif"), "TIFF int16": (tiff(signed), ".tif"), "TIFF float32": (tiff(real), ".tif"),
            "white is zero": (tiff(negative(low), white_is_zero=True), ".tif"), "DICOM, 16 bits": (dicom(low), ".dcm"),
            "NIfTI int16": (nifti(signed.T[..., None].copy(), LPS), ".nii")}


def dice(a, b):
    return 2 * np.sum(a & b) / np.sum(a + b)


def equal(found, wanted):
    return all(map(np.array_equal, found, wanted))


@pytest.mark.parametrize("seed", [0, 1])
def test_every_encoding_gives_the_same_mask(segment, seed):
    size = tuple(np.random.default_rng(seed).integers((120, 45), (170, 60)) * 2 + 1)  # odd
    film, bone = phantom(seed, tuple(map(int, size)))
    wanted = segment(pillow(Image.fromarray(film), "PNG"))
    assert wanted[0].shape == film.shape and dice(wanted[0], bone) > 0.8  # on the vertebrae, pixel by pixel
    for name, (data, ending) in in_8_bits(film).items():
        assert equal(segment(data, ending), wanted), name
    windowed = segment(pillow(Image.fromarray(deeper(film, "uint16")), "PNG"))
    for name, (data, ending) in deep(film).items():
        assert equal(segment(data, ending), windowed), name
    assert dice(windowed[0], wanted[0]) > CLOSE  # a window of the grey values is another contrast
    assert dice(segment(pillow_file(film, "JPEG", quality=95), ".jpg")[0], wanted[0]) > CLOSE


def test_one_bit_is_black_and_white(segment):
    bright = phantom(0, (301, 97))[0] > 99
    wanted = segment(pillow(Image.fromarray(bright * np.uint8(255)), "PNG"))
    assert wanted[0].any()
    for kind in ("PNG", "TIFF"):
        assert equal(segment(pillow(Image.fromarray(bright), kind), f".{kind[:3].lower()}"), wanted), kind


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_gives_the_same_mask(segment, orientation):
    film, _ = phantom(0, (301, 97))
    stored, wanted = lying(film, orientation), segment(pillow(Image.fromarray(film), "PNG"))
    assert equal(segment(pillow_file(stored, "PNG", orientation)), wanted)
    assert equal(segment(tiff(stored, orientation), ".tif"), wanted)
    lossy = segment(pillow_file(stored, "JPEG", orientation, quality=95), ".jpg")[0]
    assert lossy.shape == film.shape and dice(lossy, wanted[0]) > CLOSE
