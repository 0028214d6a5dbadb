# %% [markdown]
# # Phantoms as files
# > Drawn into the published layout on first use

# %% [markdown]
# [Phantoms](../02_phantoms.ipynb) are *written* in exactly the published layout and read by the same class as the radiographs, so whatever works
# on them works on the real set. `PhantomSet` draws them when they are first asked for, into a folder for temporary files that runs share.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/phantom_set.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp data.phantom_set

# %%
#| export
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat
from tqdm import tqdm

from verdiff.data.phantoms import draw_phantom
from verdiff.data.xray import XRaySet
from verdiff.files import DataError, fresh_folder

# %%
import shutil

import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.landmarks import landmarks_to_mask


# %%
#| code-fold: true
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 80})


# %%
#| export
def write_mat(
    path: Path,
    **arrays: np.ndarray,
) -> None:
    "Arrays as a .mat file of version 5, whose header does not tell the time: the same each time."
    savemat(path, arrays)
    with open(path, "r+b") as file:
        file.write(b"MATLAB 5.0 MAT-file, written by verdiff".ljust(116))


# %%
#| export
def write_split(
    top: Path,  # the folder that gets data/ and labels/
    split: str,  # "training" or "test"
    seeds: Sequence[int],  # of the phantoms
    image_size: tuple[int, int],  # (height, width)
    first: int = 0,  # number of the first file
) -> None:
    "Draw phantoms as images, three tables and a .mat file each."
    data, labels = top / "data" / split, top / "labels" / split
    data.mkdir(parents=True)
    labels.mkdir(parents=True)
    tables: dict[str, list[str]] = {"filenames": [], "landmarks": [], "angles": []}
    bar = tqdm(seeds, f"{split} phantoms", unit="image", disable=None, leave=False)
    for number, seed in enumerate(bar, first):
        film, name = draw_phantom(seed, image_size), f"phantom-{number:04d}.jpg"
        Image.fromarray(film.image).save(data / name, quality=92)
        write_mat(labels / f"{name}.mat", p2=film.landmarks)
        shares = (film.landmarks / image_size[::-1]).T.reshape(-1)  # 68 x, then 68 y
        tables["filenames"].append(name)
        tables["landmarks"].append(",".join(f"{v:.7f}" for v in shares))
        tables["angles"].append(",".join(f"{v:.4f}" for v in film.cobb))
    for name, lines in tables.items():
        (labels / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


# %%
#| export
def write_phantoms(
    root: str | Path,  # a folder that does not exist yet, or an empty one
    n_training: int = 64,
    n_test: int = 24,
    seed: int = 0,
    image_size: tuple[int, int] = (576, 192),  # (height, width)
) -> Path:
    "Draw phantoms into the published layout; a folder is complete or not there at all."
    seeds = range(10_000 * seed, 10_000 * seed + n_training + n_test)
    with fresh_folder(Path(root)) as fresh:
        top = fresh / "boostnet_labeldata"
        write_split(top, "training", seeds[:n_training], image_size)
        write_split(top, "test", seeds[n_training:], image_size, n_training)
    return Path(root)


# %%
#| export
class PhantomSet(XRaySet):
    "Phantoms in the published layout, drawn on first use, and again where half of them are gone."

    def __init__(
        self,
        root: str | Path | None = None,  # None: a folder for temporary files, shared by runs
        split: str = "training",
        size: tuple[int, int] = (192, 64),  # (height, width) of the canvas
        fit: str = "letterbox",
        n_training: int = 64,
        n_test: int = 24,
        seed: int = 0,
        image_size: tuple[int, int] = (576, 192),  # (height, width) of the phantoms
    ):
        own = root is None
        if root is None:
            user = os.getuid() if hasattr(os, "getuid") else 0
            key = f"{n_training}-{n_test}-{seed}-{image_size[0]}x{image_size[1]}-v1"
            root = Path(tempfile.gettempdir()) / f"verdiff-{user}" / f"phantoms-{key}"
        for last in (not own, True):
            if not Path(root).exists():
                try:
                    write_phantoms(root, n_training, n_test, seed, image_size)
                except DataError:
                    if not Path(root).exists():  # else another process was faster
                        raise
            try:
                super().__init__(root, split, size, fit)
                break
            except DataError:  # of a temporary folder that somebody cleaned
                if last:
                    raise
                shutil.rmtree(root, ignore_errors=True)


# %% [markdown]
# ## Use

# %%
folder = Path(tempfile.mkdtemp())
two = write_phantoms(folder / "two", 1, 1, image_size=(96, 32))
print(*sorted(p.relative_to(two).as_posix() for p in two.rglob("*") if p.is_file()), sep="\n")
try:
    write_phantoms(two)
except DataError as error:
    print(str(error).replace(str(folder), "..."))


# %%
#| code-fold: true
#| fig-alt: "Six drawn spine radiographs side by side, the mask of each outlined in orange, with Cobb angles from small to large."
phantoms = PhantomSet(folder / "phantoms", n_training=6, n_test=3)
fig, axes = plt.subplots(1, 6, figsize=(7, 3.6), layout="constrained")
for axis, sample in zip(axes, map(phantoms.__getitem__, range(6))):
    axis.imshow(sample.image[0], cmap="gray")
    axis.contour(sample.mask[0], [0.5], colors="orange", linewidths=0.6)
    axis.set_title(f"Cobb {sample.cobb[0]:.0f}°", fontsize=8)
    axis.set_axis_off()


# %%
drawn = draw_phantom(2)
mask = landmarks_to_mask(drawn.landmarks / 3, 192, 64)  # 576x192 -> 192x64
assert (phantoms[2].mask[0].numpy() == mask).mean() > 0.9999
assert np.allclose(phantoms[2].cobb, drawn.cobb, atol=1e-3)


# %%
#| hide
shutil.rmtree(folder)
