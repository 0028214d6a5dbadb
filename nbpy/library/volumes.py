# %% [markdown]
# # Volumes as a data set
# > Sagittal slices of CT and MR behind the interface of the radiographs

# %% [markdown]
# Training, packing and evaluation know a data set by three things: its names, its canvas, and `arrays(i)`, which gives an image, a mask and where they lie on the canvas. `VolumeSlices` gives the same for volumes. A volume of half a gigabyte is read once, one volume at a time and some planes of it at a time; its slices go into a small file of the cache. That file also says what it was made from: the sizes and dates of the volume's files and the settings. When one of them changes, the slices are cut again, and when none does, no volume is opened.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/volumes.ipynb).

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks,medical] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp data.volumes

# %%
#| export
import hashlib
import json
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from verdiff.data.canvas import CanvasSet, Placement, fit_image, place
from verdiff.data.sagittal import DEFAULT, SliceOptions, sagittal_slices
from verdiff.data.volume_layouts import Case, Found, find_cases, guess_layout
from verdiff.files import DataError, atomic_write

# %% [markdown]
# The paper's own sizes, which squash: 166×369 for CT, 880×880 for MR (it prints the width first; heights come first here).

# %%
#| exports
PAPER_CT, PAPER_MR = (369, 166), (880, 880)

# %% [markdown]
# ## The cache
# One `.npz` a volume, named by the volume and the settings. Inside: the pictures, and `about`, the manifest.

# %%
#| export
VERSION = 1  # of the files of the cache: another one, and they count no more


def stamp(case: Case) -> list[list[Any]]:
    "Name, size and time of every file that a case is made of."
    files: list[Path] = []
    for path in (case.image, *case.masks):
        if path.is_dir():
            files += sorted(p for p in path.iterdir() if p.is_file())
        elif path.suffix.lower() in (".mhd", ".hdr"):  # and the voxels beside it
            files += sorted(p for p in path.parent.iterdir() if p.name.startswith(path.stem + "."))
        else:
            files.append(path)
    return [[p.name, (s := p.stat()).st_size, s.st_mtime_ns] for p in files]


def cache_file(cache: Path, case: Case, options: SliceOptions) -> Path:
    "Where the slices of a case lie."
    facts = [VERSION, case.name, str(case.image.absolute()), case.modality, case.labels,
             [str(m.absolute()) for m in case.masks], asdict(options)]
    return cache / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]}.npz"


def read_about(path: Path, key: list[list[Any]]) -> dict[str, Any] | None:
    "The manifest; None where there is none, or the volume's files are others now."
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
        return about if about["key"] == key else None
    except Exception:  # whatever a damaged file makes numpy throw: it is cut again
        return None


# %%
#| export
def cut(
    case: Case,
    options: SliceOptions,
    path: Path,  # of the cache
    key: list[list[Any]],  # by `stamp`
) -> dict[str, Any]:  # the manifest
    "Cut the slices of a volume and keep them; DataError where that cannot be right."
    slices, scheme, modality = sagittal_slices(case, options)
    about = {"key": key, "modality": modality,
             "parts": {str(value): list(part) for value, part in scheme.parts.items()},
             "planes": [[s.plane, s.spacing, *s.image.shape] for s in slices]}
    pictures = {f"image_{k}": s.image for k, s in enumerate(slices)}
    pictures |= {f"labels_{k}": s.labels for k, s in enumerate(slices)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, about=np.array(json.dumps(about)), **pictures)
    return about


# %% [markdown]
# ## The data set

# %%
#| export
class Where(NamedTuple):
    "Where a picture comes from."

    case: Case
    file: Path  # of the cache
    number: int  # of the picture in it
    plane: int  # index in the volume, from left to right
    spacing: float  # mm a pixel
    modality: str  # "ct" or "mr"


def note(text: str) -> None:
    "One line for the user."
    print(f"note: {text}", file=sys.stderr)


def on_side(found: Found, split: str, root: Any) -> list[Case]:
    """The cases of a split; test is the validation part where a set publishes no test.

    DataError where the split is empty.
    """
    sides = {c.split for c in found.cases}
    if split == "test" and "test" not in sides:
        split = "validation"
    cases = [c for c in found.cases if split in ("all", c.split)]
    if not cases:
        raise DataError(
            f"{root}: none of its {len(found.cases)} volumes is in the split {split!r}; "
            f"there is {', '.join(sorted(sides)) or 'nothing'}"
        )
    return cases


# %%
#| exports
class VolumeSlices(CanvasSet):
    "Sagittal slices of the volumes in a folder."

    def __init__(
        self,
        root: str | Path | Sequence[Case],  # folder of any layout, or cases
        split: str = "training",  # "training", "validation", "test" or "all"
        size: tuple[int, int] = (384, 384),  # (height, width) of the canvas
        fit: str = "letterbox",  # or "squash", as the paper does
        options: SliceOptions = DEFAULT,
        layout: str = "auto",  # see `volume_layouts`
        cache: str
        | Path
        | None = None,  # folder that keeps the slices; None: until the program ends
        parts: Iterable[str] = ("vertebra",),  # of the mask; also "sacrum", "canal", "disc"
        skip_damaged: bool = False,  # leave out what cannot be read, with a note
        progress: bool = True,
    ):
        if split not in ("training", "validation", "test", "all"):
            raise ValueError(f"split must be training, validation, test or all, not {split!r}")
        self.size, self.fit, self.options, self.parts = tuple(size), fit, options, tuple(parts)
        given = not isinstance(root, (str, Path))
        found = Found(list(root), []) if given else find_cases(root, layout)
        for text in found.notes:
            note(text)
        cases = (
            found.cases
            if given and split == "all"
            else on_side(found, split, "the cases" if given else root)
        )
        if cache is None:
            cache = tempfile.mkdtemp(prefix="verdiff-slices-")
            weakref.finalize(self, shutil.rmtree, cache, ignore_errors=True)
        self.cache = Path(cache)
        self._open(cases, skip_damaged, progress)

    def _open(self, cases: Sequence[Case], skip_damaged: bool, progress: bool) -> None:
        self.where: list[Where] = []
        self.tables: dict[str, dict[int, tuple[str, str]]] = {}  # case -> label -> kind, name
        empty, keys = [], []
        for case in tqdm(cases, "volumes", disable=None if progress else True, leave=False):
            path, key = cache_file(self.cache, case, self.options), stamp(case)
            try:
                about = read_about(path, key) or cut(case, self.options, path, key)
            except DataError as error:
                if not skip_damaged:
                    raise
                note(f"left out: {error}")
                continue
            keys.append([case.name, key])
            self.tables[case.name] = {int(v): tuple(p) for v, p in about["parts"].items()}
            self.where += [Where(case, path, k, plane, spacing, about["modality"])
                           for k, (plane, spacing, *_) in enumerate(about["planes"])]
            empty += [] if about["planes"] else [case.name]
        if empty:
            few = ", ".join(empty[:3] + ["..."] * (len(empty) > 3))
            note(f"{len(empty)} of {len(cases)} volumes have no vertebra in their mask ({few})")
        if not self.where:
            raise DataError(
                f"{cases[0].image.parent}: no slice with a vertebra in {len(cases)} volumes"
            )
        self.names = [f"{w.case.name}/{w.plane:04d}" for w in self.where]
        self.groups = [w.case.patient for w in self.where]  # to split by
        self._keys = keys

    def fingerprint(self) -> str:
        "Changes when a file, a setting or the canvas changes."
        facts = [
            VERSION,
            self.names,
            self._keys,
            self.size,
            self.fit,
            self.parts,
            asdict(self.options),
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def slice(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (uint8) and labels (int16), both (H, W): square pixels of `where[i].spacing` mm.

        DataError where the file of slices is damaged.
        """
        place = self.where[i]
        try:
            with np.load(place.file, allow_pickle=False) as file:
                return file[f"image_{place.number}"], file[f"labels_{place.number}"]
        except Exception as error:  # whatever a damaged file makes numpy throw
            raise DataError(f"{place.file}: damaged or gone ({type(error).__name__}); remove it, "
                            "so that its slices are cut again") from None

    def read_image(self, i: int) -> Image.Image:
        "The slice at its own size, mode L."
        return Image.fromarray(self.slice(i)[0])

    def values(self, i: int) -> list[int]:
        "The labels that make up the mask of picture `i`."
        table = self.tables[self.where[i].case.name]
        return [value for value, (kind, _) in table.items() if kind in self.parts]

    def arrays(self, i: int) -> tuple[np.ndarray, np.ndarray, Placement]:
        "Image (0 to 255) and mask (0, 1) on the canvas, uint8 (H, W), and the placement."
        image, labels = self.slice(i)
        mask = np.isin(labels, self.values(i)).astype(np.uint8) * 255
        canvas, where = fit_image(Image.fromarray(image), self.size, self.fit)
        small, _ = fit_image(Image.fromarray(mask), self.size, self.fit)
        return np.asarray(canvas), (np.asarray(small) >= 128).astype(np.uint8), where

    def label_map(self, i: int) -> tuple[np.ndarray, dict[int, str]]:
        "Labels kept apart, int16 (H, W) on the canvas, of the parts of the mask; and their names."
        labels = self.slice(i)[1]
        labels = np.where(np.isin(labels, self.values(i)), labels, 0)
        where, out = place(*labels.shape, self.size, self.fit), np.zeros(self.size, np.int16)
        rows, columns = (np.minimum(((np.arange(n) + 0.5) * old / n).astype(int), old - 1)
                         for n, old in zip(where.content, labels.shape, strict=True))
        out[where.top:where.top + len(rows), where.left:where.left + len(columns)] = labels[
            np.ix_(rows, columns)]
        table = self.tables[self.where[i].case.name]
        return out, {int(v): table[int(v)][1] for v in np.unique(out) if v}


# %%
#| exports
def holds_volumes(
    root: str | Path,
) -> bool:
    "Whether a folder holds a layout of volumes (radiographs in images/ and masks/ are none)."
    try:
        return bool(find_cases(root, guess_layout(Path(root))).cases)
    except (DataError, OSError):
        return False


# %% [markdown]
# ## Tried
# Two small volumes, a bright block in each; a label map with a vertebra and a disc:

# %%
from verdiff.io.volume_files import write_nifti

# %%
root = Path(tempfile.mkdtemp())
affine = np.diag([2.0, 1.5, 3, 1])
for k in range(2):
    image, mask = np.full((20, 40, 30), -1000, np.int16), np.zeros((20, 40, 30), np.uint8)
    image[6:14, 10:30, 5:20], mask[6:14, 10:30, 5:12], mask[6:14, 10:30, 14:20] = 400, 1, 201
    for part, array in (("images", image), ("masks", mask)):
        (root / part).mkdir(exist_ok=True)
        write_nifti(root / part / f"{'ab'[k]}.nii.gz", array, affine)
data = VolumeSlices(root, "all", (96, 96), options=SliceOptions(slices=3), cache=root / "cache")
image, mask, where = data.arrays(1)
assert image.shape == mask.shape == (96, 96) and set(np.unique(mask)) == {0, 1}
assert where.content == (96, 64)  # 90 mm high, 60 mm deep
print(data.names, data.groups, sep="\n")

# %% [markdown]
# The second time nothing is read; a changed file is noticed:

# %%
import os

# %%
before, files = data.fingerprint(), {p: p.stat().st_mtime_ns for p in (root / "cache").iterdir()}
again = VolumeSlices(root, "all", (96, 96), options=SliceOptions(slices=3), cache=root / "cache")
assert again.fingerprint() == before and files == {p: p.stat().st_mtime_ns for p in files}
os.utime(root / "masks/a.nii.gz", (0, 0))
changed = VolumeSlices(root, "all", (96, 96), options=SliceOptions(slices=3), cache=root / "cache")
assert changed.fingerprint() != before
assert sum(files[p] != p.stat().st_mtime_ns for p in files) == 1

# %% [markdown]
# What the mask is made of is a choice; the labels stay apart on request:

# %%
discs = VolumeSlices(root, "all", (96, 96), options=SliceOptions(slices=3), parts=("disc",))
labels, names = VolumeSlices(root, "all", (96, 96), parts=("vertebra", "disc")).label_map(0)
print(names)
assert (discs.arrays(1)[1] & mask).sum() == 0

# %%
import matplotlib.pyplot as plt

# %%
#| fig-alt: "Left, a bright block on black, letterboxed on a square canvas; right, its labels: vertebra below, disc above, a gap between them."
fig, axes = plt.subplots(1, 2, figsize=(4.4, 2.3), layout="constrained")
axes[0].imshow(image, cmap="gray")
axes[1].imshow(np.where(labels > 200, 2, labels), cmap="viridis")
for axis in axes:
    axis.set(xticks=[], yticks=[])
assert holds_volumes(root) and not holds_volumes(root / "cache")
