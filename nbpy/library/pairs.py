# %% [markdown]
# # Your own pairs
# > Two folders, images and masks of the same name

# %% [markdown]
# Two folders, `images/` and `masks/`, with the same file names, are a dataset. A mask may also be called `X_mask`, as `verdiff segment` writes
# it; subfolders are read too. What has no partner is named, and masks that are blank or inside out are refused before hours of training.
# Where a mask holds several labels (discs, sacrum), `--labels 1-24` says which of them are vertebrae.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/pairs.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp data.pairs

# %%
#| export
import hashlib
import itertools
import json
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from verdiff.data.canvas import CanvasSet, Placement, fit_image
from verdiff.data.splits import drawn_split
from verdiff.files import DataError, files_below
from verdiff.io.images import SUFFIXES, is_image_file, read_image, without_suffix
from verdiff.io.masks import ranges, read_mask

# %%
import shutil
import tempfile

import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.landmarks import landmarks_to_mask
from verdiff.data.phantoms import draw_phantom


# %%
#| code-fold: true
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 80})


# %%
#| export
def images_by_stem(
    folder: Path,
) -> dict[str, Path]:
    """The image files of a folder and its subfolders, by their path below it without the suffix.

    DataError where two files differ only in the suffix.
    """
    found: dict[str, Path] = {}
    for path in sorted(filter(is_image_file, files_below(folder))):
        below = path.relative_to(folder)
        stem = unicodedata.normalize("NFC", without_suffix(below).as_posix())  # a Mac writes NFD
        if stem in found:
            raise DataError(f"{path}: {found[stem].name} has the same name; keep one of the two")
        found[stem] = path
    return found


def pair_files(
    images: Path,  # folder
    masks: Path,  # folder
) -> list[tuple[Path, Path]]:
    "Image and mask of the same stem, or X and X_mask; DataError where one of the two is missing."
    films, drawn = images_by_stem(images), {}
    for stem, path in images_by_stem(masks).items():
        partner = stem if stem in films else stem.removesuffix("_mask")
        if partner in drawn:
            raise DataError(f"{path}: {drawn[partner].name} belongs to the same image; keep one")
        drawn[partner] = path
    if not films and not drawn:
        raise DataError(
            f"{images}: no image here ({', '.join(SUFFIXES)}); add some, and their masks"
        )
    if single := sorted(films.keys() ^ drawn.keys()):
        stem = single[0]
        path, lacks, there = (
            (films[stem], "mask", masks) if stem in films else (drawn[stem], "image", images)
        )
        other = [p.name for p in files_below(there)
                 if p.relative_to(there).with_suffix("").as_posix() == stem]
        raise DataError(
            f"{path}: there is no {lacks} {stem}.png (or {', '.join(SUFFIXES[1:])}) in {there}"
            f"{f'; {other[0]} is of another kind' if other else ''}; "
            f"add it, or move this file away; without a partner: {len(single)}"
        )
    return [(films[stem], drawn[stem]) for stem in films]


# %%
#| export
class MaskFolder(CanvasSet):
    "Anyone's own pairs: an image and a mask of the same stem, of one split."

    def __init__(
        self,
        images: str | Path,  # folder
        masks: str | Path,  # folder
        size: tuple[int, int] = (384, 128),  # (height, width) of the canvas
        fit: str = "letterbox",
        split: str = "all",  # or "training", "test": four fifths, one fifth, see `drawn_split`
        labels: Sequence[int] | None = None,  # of the masks that are vertebra; None: all but 0
    ):
        self.size, self.fit, self.labels = tuple(size), fit, labels and list(labels)
        pairs = pair_files(Path(images), Path(masks))
        names = [film.relative_to(images) for film, _ in pairs]
        inside = [split in ("all", drawn_split(without_suffix(n).as_posix())) for n in names]
        self.pairs = list(itertools.compress(pairs, inside))
        self.names = [name.as_posix() for name in itertools.compress(names, inside)]
        if not self.pairs:
            raise DataError(
                f"{images}: none of the {len(pairs)} images here ({', '.join(SUFFIXES)}) "
                f"is in the split {split!r}; add some, or make folders training/ and "
                "test/ with images/ and masks/"
            )

    def fingerprint(self) -> str:
        "Changes when a file or the canvas changes."
        stats = ((p.name, p.stat()) for pair in self.pairs for p in pair)
        files = [(name, stat.st_mtime_ns, stat.st_size) for name, stat in stats]
        facts = [files, self.size, self.fit, "one reader"]  # how: so older caches count no more
        facts += [self.labels] if self.labels else []
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def read_image(self, i: int) -> Image.Image:
        "The image at its own size, mode L, read as `verdiff segment` reads it."
        return read_image(self.pairs[i][0])

    def arrays(self, i: int) -> tuple[np.ndarray, np.ndarray, Placement]:
        """Image (0 to 255) and mask (0, 1) on the canvas, uint8 (H, W), and the placement.

        DataError where they cannot be read or differ in size.
        """
        image, mask = self.read_image(i), read_mask(self.pairs[i][1], self.labels)
        if mask.size != image.size:
            raise DataError(f"{self.pairs[i][1]}: the mask is {mask.height}x{mask.width} but "
                            f"{self.names[i]} is {image.height}x{image.width}; both must have one "
                            "size")
        canvas, where = fit_image(image, self.size, self.fit)
        small, _ = fit_image(mask, self.size, self.fit)
        return np.asarray(canvas), (np.asarray(small) >= 128).astype(np.uint8), where


# %%
#| export
def check_masks(
    dataset: MaskFolder,
    parts: Sequence[tuple[np.ndarray, np.ndarray, Placement]],  # by `arrays`
    index: Sequence[int] | None = None,  # which pairs these are; None: all
) -> None:
    "DataError where all masks are empty, or most turned inside out; single odd ones are named."
    pairs = dataset.pairs if index is None else [dataset.pairs[i] for i in index]
    share = np.array([mask[w.top:w.top + w.content[0], w.left:w.left + w.content[1]].mean()
                      for _, mask, w in parts])
    folder, rule = pairs[0][1].parent, "0 is background, all else vertebra (in a JPEG: from 128)"
    rule = f"{ranges(dataset.labels)} are vertebra, by --labels" if dataset.labels else rule
    if share.max() == 0:
        raise DataError(f"{folder}: each of the {len(parts)} masks is empty; {rule}")
    if (middle := np.median(share)) > 0.6:
        raise DataError(f"{folder}: the masks mark {middle:.0%} of an image (median); are they "
                        f"inverted, or are images/ and masks/ exchanged? {rule}")
    for what, odd in (("empty", share == 0), ("more than half of the image", share > 0.5)):
        if names := [mask.name for (_, mask), yes in zip(pairs, odd, strict=True) if yes]:
            print(f"note: {len(names)} of {len(parts)} masks: {what} ({', '.join(names[:3])}"
                  f"{', ...' if names[3:] else ''})", file=sys.stderr)


# %% [markdown]
# ## Use

# %%
folder = Path(tempfile.mkdtemp())
for part in ("images", "masks"):
    (folder / part).mkdir()
for i in range(5):
    drawn = draw_phantom(50 + i, (300, 120))
    mask = 255 * landmarks_to_mask(drawn.landmarks, 300, 120)
    Image.fromarray(drawn.image).save(folder / f"images/scan{i}.png")
    Image.fromarray(mask).save(folder / f"masks/scan{i}_mask.png")
own = MaskFolder(folder / "images", folder / "masks", size=(150, 60))
assert len(own) == 5 and 0.04 < own[0].mask.mean() < 0.25
print(own.names, "in the training part:",
      MaskFolder(folder / "images", folder / "masks", split="training").names)


# %%
#| code-fold: true
#| fig-alt: "Five pairs: drawn radiographs with the outline of their masks."
fig, axes = plt.subplots(1, 5, figsize=(6, 3), layout="constrained")
for axis, sample in zip(axes, map(own.__getitem__, range(5))):
    axis.imshow(sample.image[0], cmap="gray")
    axis.contour(sample.mask[0], [0.5], colors="orange", linewidths=0.6)
    axis.set_axis_off()


# %%
def complaint(f):
    "The sentence with which f refuses."
    try:
        f()
    except DataError as error:
        return str(error).replace(str(folder), "...")
    raise AssertionError("not refused")


Image.new("L", (119, 300)).save(folder / "masks/scan1_mask.png")
print("-", complaint(lambda: own[1]))
for path in (folder / "masks").iterdir():
    Image.new("L", (120, 300)).save(path)
print("-", complaint(lambda: check_masks(own, [own.arrays(i) for i in range(5)])))
(folder / "masks/scan1_mask.png").unlink()
print("-", complaint(lambda: pair_files(folder / "images", folder / "masks")))


# %%
#| hide
shutil.rmtree(folder)
