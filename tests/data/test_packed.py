"Packing, its cache, and what it refuses."
import numpy as np
import pytest
import torch
from own_pairs import BONE, FILM, pairs, tiff
from PIL import Image

from verdiff.data.datasets import open_dataset
from verdiff.data.packed import pack
from verdiff.data.xray import XRaySet
from verdiff.files import DataError
from verdiff.io.images import read_smaller


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


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_image_that_is_not_finite_is_named(tmp_path, bad):
    pairs(tmp_path, FILM, BONE, tiff(change=lambda x: np.where(x > 99, bad, x).astype(np.float32)), suffix=".tif")
    with pytest.raises(DataError, match="0.tif: .*NaN"):
        pack(open_dataset(tmp_path, "all", (40, 20)), progress=False)
    with pytest.raises(DataError, match="film: .*NaN"):
        read_smaller((tmp_path / "images" / "0.tif").read_bytes(), None, "film")
