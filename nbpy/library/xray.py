# %% [markdown]
# # The X-ray set as a dataset
# > The published layout, one split or both

# %% [markdown]
# `XRaySet` reads the published layout, one split or both, from a folder or a zip, and gives each radiograph with its mask on the canvas:
# 68 landmarks become a mask ([lesson 1](../01_radiograph.ipynb)), a JPEG is decoded no larger than needed.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/xray.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp data.xray

# %%
#| export
import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

from verdiff.data.canvas import CanvasSet, Placement, fit_image, place
from verdiff.data.landmarks import landmarks_to_mask, tilt_angles
from verdiff.files import DataError
from verdiff.io.archive import Store, read_bytes, read_labels
from verdiff.io.images import read_smaller


# %%
import shutil
import tempfile
from collections import Counter

from verdiff.data.phantom_set import write_phantoms
from verdiff.io.download import find_xray

# %%
#| export
def check_landmarks(
    points: np.ndarray,  # (68, 2) x, y in pixels
    angle: float,  # degrees: the largest of the three published ones
    where: str,  # to name in errors
) -> None:
    """DataError where they are not corners down a spine that has this angle.

    Of the 609 published rows none is off by more than 0.02 degrees, and none has more than one
    vertebra out of order.
    """
    quads = points.reshape(17, 4, 2)
    sideways = quads[:, [1, 3], 0].sum(1) <= quads[:, [0, 2], 0].sum(1)
    upwards = quads[:, 2:, 1].sum(1) <= quads[:, :2, 1].sum(1)
    above = np.diff(quads.mean(1)[:, 1]) <= 0
    if max(odd := (sum(sideways | upwards), sum(above))) > 4:
        raise DataError(f"{where}: {max(odd)} of 17 vertebrae are out of order; a row is 68 x, "
                        "then 68 y, from the top vertebra down, of each the corners top left, top "
                        "right, bottom left, bottom right, as shares of width and height")
    ours = tilt_angles(points).max()
    if abs(ours - angle) > 1:
        raise DataError(f"{where}: these landmarks make an angle of {ours:.1f} degrees, and "
                        f"angles.csv says {angle:.1f}; are columns or rows mixed up?")


# %%
#| export
class XRaySet(CanvasSet):
    """The published layout of the AASCE / SpineWeb-16 radiographs, as a folder or a zip.

    The tables of one split, or both, are checked when it is opened; DataError where they are wrong.
    """

    def __init__(
        self,
        root: str | Path,  # folder or zip
        split: str = "training",  # "training", "test" or "all" (training, then test)
        size: tuple[int, int] = (384, 128),  # (height, width) of the canvas
        fit: str = "letterbox",  # or "squash"
    ):
        if split not in ("training", "test", "all"):
            raise ValueError(f"split must be 'training', 'test' or 'all', not {split!r}")
        self.store, self.split, self.size, self.fit = Store(root), split, tuple(size), fit
        if self.store.top is None:
            raise DataError(f"{self.store.root}: no labels/training/filenames.csv inside; expected "
                            "the published layout with data/ and labels/")
        parts = ("training", "test") if split == "all" else (split,)
        tables = [read_labels(self.store, part) for part in parts]
        self.names = [name for t in tables for name in t.names]
        self.splits = [part for part, t in zip(parts, tables, strict=True) for _ in t.names]
        self.shares = np.concatenate([t.shares for t in tables])  # landmarks, (N, 68, 2)
        self.angles = np.concatenate([t.angles for t in tables])  # degrees, (N, 3)

    def fingerprint(self) -> str:
        "Changes when a file, the split or the canvas changes."
        where = zip(self.splits, self.names, strict=True)
        files = [self.store.stamp(f"data/{split}/{name}") for split, name in where]
        facts = [self.names, files, self.split, self.size, self.fit]
        return hashlib.sha256(json.dumps(facts).encode() + self.shares.tobytes()).hexdigest()

    def _load(self, i: int, small: bool = False) -> tuple[Image.Image, tuple[int, int]]:
        name = f"data/{self.splits[i]}/{self.names[i]}"
        data, at_least = read_bytes(self.store, name), self.size if small else None
        return read_smaller(data, at_least, f"{self.store.root}: {name}")

    def read_image(self, i: int) -> Image.Image:
        "The radiograph at its own size, mode L."
        return self._load(i)[0]

    def _points(self, i: int, height: int, width: int) -> np.ndarray:
        points = self.shares[i] * (width, height)
        row = i + 1 - self.splits.index(self.splits[i])
        check_landmarks(points, self.angles[i].max(), f"{self.store.root}: row {row} of "
                        f"labels/{self.splits[i]}/landmarks.csv ({self.names[i]})")
        return points

    def landmarks(self, i: int) -> np.ndarray:
        "(68, 2) x, y in pixels of the original image; DataError where they are not right."
        height, width = self._load(i, small=True)[1]
        return self._points(i, height, width)

    def original_mask(self, i: int) -> np.ndarray:
        "uint8 {0, 1} at the radiograph's own size."
        height, width = self._load(i, small=True)[1]
        return landmarks_to_mask(self._points(i, height, width), height, width, 2)

    def arrays(self, i: int) -> tuple[np.ndarray, np.ndarray, Placement]:
        "Image (0 to 255) and mask (0, 1) on the canvas, uint8 (H, W), and the placement."
        image, (height, width) = self._load(i, small=True)
        where = place(height, width, self.size, self.fit)
        mask = landmarks_to_mask(where.points(self._points(i, height, width)), *self.size)
        return np.asarray(fit_image(image, self.size, self.fit)[0]), mask, where

    def truth(self, i: int, where: Placement) -> tuple[np.ndarray, np.ndarray]:
        "Landmarks in original pixels, and the three published Cobb angles."
        return self.shares[i] * (where.width, where.height), self.angles[i]


# %% [markdown]
# ## Use
# On phantoms in the same layout, and on the radiographs where they are at hand:

# %%
folder = Path(tempfile.mkdtemp())
write_phantoms(folder / "set", 3, 2, image_size=(288, 96))
phantoms = XRaySet(folder / "set", "all", size=(192, 64))
sample = phantoms[0]
print(len(phantoms), phantoms.splits, tuple(sample.image.shape), sample.cobb.round(1))
assert phantoms.original_mask(0).shape == phantoms.read_image(0).size[::-1] == (288, 96)
assert phantoms.fingerprint() != XRaySet(folder / "set", "test", size=(192, 64)).fingerprint()


# %%
if path := find_xray():
    tables = XRaySet(path, "all")
    print(
        len(tables), "radiographs:", dict(Counter(tables.splits)), "landmarks", tables.shares.shape
    )


# %%
#| hide
shutil.rmtree(folder)
