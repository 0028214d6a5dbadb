# %% [markdown]
# # Phantom volumes
# > A spine in three dimensions, as CT and as MR, on any grid

# %% [markdown]
# Real CT and MR cannot travel with the package, and every reader needs something to read. A phantom volume is a column of vertebrae along a curve, each with its body, arch and processes; between them discs, behind them a canal with its cord, at the chest ribs, around it all muscle and fat. The geometry depends on the seed alone, so the same spine can be looked at in both modalities, on any grid: fine or thick slices, axes in any order, oblique to the body. The labels are exact, because each voxel is asked where it lies. None of it is anatomy to learn from; it has the traps of real volumes, and masks that are right.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/phantom_volumes.ipynb).

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks,medical] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp data.phantom_volumes

# %%
#| export
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from verdiff.data.volume_labels import SPINE
from verdiff.files import DataError


# %% [markdown]
# ## The spine
# The column's centre line bends forwards in the lumbar part and backwards in the chest; a person may also lean to a side.

# %%
#| export
class Vertebra(NamedTuple):
    "One vertebra: where it is, how it is turned, how large it is. Millimetres."

    label: int  # VerSe's number; 26 sacrum
    centre: np.ndarray  # (3,) R, A, S
    frame: np.ndarray  # (3, 3) rows: its own right, front and up
    width: float  # half, left to right
    depth: float  # half, back to front
    height: float


@dataclass(frozen=True)
class Spine:
    "A column, from the bottom up."

    vertebrae: list[Vertebra]
    bend: float  # mm of the curve seen from the side
    lean: float  # mm of the curve seen from the front
    length: float  # mm from the lowest centre to the highest

    def centre(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        "R and A of the centre line at heights S."
        turn = np.pi * (z + self.length / 2) / self.length
        return self.lean * np.sin(2 * turn), self.bend * np.cos(1.3 * turn - 0.6)

    def slope(self, z: float) -> np.ndarray:
        "(3,) the direction of the centre line at a height."
        (r0, a0), (r1, a1) = self.centre(np.array(z - 1.0)), self.centre(np.array(z + 1.0))
        way = np.array([r1 - r0, a1 - a0, 2.0])
        return way / np.linalg.norm(way)


# %%
#| export
def draw_column(
    seed: int,
    levels: Sequence[str] = SPINE[16:24],  # names, from the top down; default: T10 to L5
) -> Spine:
    "A spine of these vertebrae and a piece of the sacrum."
    rng = np.random.default_rng([seed, 3])
    size = rng.uniform(0.9, 1.1)
    labels = [26, *(SPINE.index(name) + 1 for name in reversed(levels))]
    grow = np.array([1.0 if v >= 24 else max(0.45, 1 - 0.028 * (24 - v)) for v in labels])
    heights = 27 * size * grow * rng.uniform(0.96, 1.04, len(labels))
    gaps = 9.5 * size * grow * rng.uniform(0.8, 1.15, len(labels))
    z = np.cumsum(np.r_[0, (heights[1:] + heights[:-1]) / 2 + gaps[1:]])
    spine = Spine([], rng.uniform(8, 18), rng.uniform(-5, 5), float(z[-1]))
    for label, high, height, g in zip(labels, z - z[-1] / 2, heights, grow, strict=True):
        up = spine.slope(high)
        front = np.cross(up, [1.0, 0, 0]) * 1.0
        front /= np.linalg.norm(front)
        centre = np.array([*map(float, spine.centre(np.array(high))), high])
        spine.vertebrae.append(Vertebra(label, centre, np.stack([np.cross(front, up), front, up]),
                                        23 * size * g, 16.5 * size * g, height))
    return spine


# %% [markdown]
# ## Tissues on a grid
# Every voxel's place in millimetres comes from the affine; in a vertebra's own frame each part is an inequality.

# %%
#| export
AIR, MUSCLE, FAT, CORTEX, MARROW, NUCLEUS, ANNULUS, FLUID, CORD, RIB, VESSEL, GAS = range(12)


def places(
    shape: Sequence[int],
    affine: np.ndarray,  # (4, 4)
) -> np.ndarray:  # float32 (3, i, j, k) mm, R A S
    "Where the voxels lie."
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(np.float32)
    return (np.tensordot(affine[:3, :3].astype(np.float32), index, 1)
            + affine[:3, 3].astype(np.float32).reshape(3, 1, 1, 1))


def in_frame(p: np.ndarray, v: Vertebra) -> np.ndarray:
    "Places (3, n) relative to a vertebra, in its own directions."
    return v.frame.astype(np.float32) @ (p - v.centre.astype(np.float32)[:, None])


# %%
#| export
def draw_vertebra(
    p: np.ndarray,  # (3, n) mm, in its own frame
    v: Vertebra,
) -> tuple[np.ndarray, np.ndarray]:  # bool (n,): bone; of it, the dense shell
    "A body with hollow end plates, pedicles, lamina, spinous and transverse processes."
    r, a, s = np.abs(p[0]), p[1], p[2]
    rim = (r / v.width)**2 + (a / v.depth)**2
    half = v.height / 2 * (0.9 + 0.1 * np.minimum(rim, 1))
    body = (rim < 1) & (np.abs(s) < half)
    shell = body & ((rim > 0.8) | (np.abs(s) > half - 1.8))
    if v.label == 26:
        return body, shell
    behind, k = -a - v.depth, v.width / 23  # mm behind the body; size
    pedicle = (np.abs(r - 12 * k) < 3.5 * k) & (np.abs(s - 0.12 * v.height) < 5 * k) & (
        behind > -3) & (behind < 16 * k)
    ring = (r / (15 * k))**2 + ((behind - 8 * k) / (14 * k))**2
    lamina = (ring < 1) & (behind > 8 * k) & (np.abs(s) < 9 * k)
    drop = s + 0.35 * (behind - 20 * k)
    spinous = (r < 3.2 * k) & (behind > 18 * k) & (behind < 40 * k) & (np.abs(drop) < 8 * k)
    transverse = (np.abs(behind - 10 * k) < 4 * k) & (r > 11 * k) & (r < 30 * k) & (
        np.abs(s - 0.12 * v.height) < 4.5 * k)
    arch = (pedicle | lamina | spinous | transverse) & ~body
    return body | arch, shell | lamina | (spinous & (r > 1.8 * k))


# %%
#| export
def surroundings(p: np.ndarray, spine: Spine, rng: np.random.Generator) -> np.ndarray:
    "Air, fat, muscle, a vessel and some gas, uint8 (i, j, k)."
    cr, ca = spine.centre(p[2])
    skin = (p[0] / 155)**2 + ((p[1] - 42) / 112)**2
    tissue = np.where(skin < 1, FAT, AIR).astype(np.uint8)
    tissue[skin < 0.8] = MUSCLE
    between = (np.abs(p[0] - cr) < 4) & (p[1] < ca - 60)
    tissue[between & (tissue == MUSCLE)] = FAT
    tissue[((p[0] - cr + 14)**2 + (p[1] - ca - 32)**2) < 10**2] = VESSEL
    for _ in range(6):
        at = rng.uniform((-50, 55, -100), (50, 95, 100))
        tissue[
            ((p - at.astype(np.float32).reshape(3, 1, 1, 1)) ** 2).sum(0) < rng.uniform(5, 12) ** 2
        ] = GAS
    return tissue


def canal(p: np.ndarray, spine: Spine) -> np.ndarray:
    "How far out in the canal, 1 at its wall, (i, j, k)."
    cr, ca = spine.centre(p[2])
    depth = np.interp(
        p[2], [v.centre[2] for v in spine.vertebrae], [v.depth for v in spine.vertebrae]
    )
    return ((p[0] - cr) / 9)**2 + ((p[1] - ca + depth + 8.5) / 7.5)**2


# %%
#| export
def draw_tissues(
    p: np.ndarray,  # (3, i, j, k) mm
    spine: Spine,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:  # tissues uint8, labels int16 (i, j, k)
    "Labels as VerSe counts, canal 100, disc below each vertebra 200 + its number."
    tissue, labels = surroundings(p, spine, rng), np.zeros(p.shape[1:], np.int16)
    tube = canal(p, spine)
    tissue[tube < 1], labels[tube < 1] = FLUID, 100
    tissue[tube < 0.3] = CORD
    for below, v in zip([None, *spine.vertebrae], spine.vertebrae, strict=False):
        near = np.abs(p[2] - v.centre[2]) < v.height / 2 + 35
        q = in_frame(p[:, near], v)
        bone, shell = draw_vertebra(q, v)
        bone &= ~(labels[near] == 100)
        part, mark = tissue[near], labels[near]
        if 8 <= v.label <= 19:
            part[draw_rib(q) & (mark == 0)] = RIB
        if below is not None:
            gap = (v.centre - below.centre) @ v.frame[2] - (v.height + below.height) / 2
            rim = (q[0] / v.width)**2 + (q[1] / v.depth)**2
            disc = (
                (rim < 0.95) & (np.abs(q[2] + v.height / 2 + gap / 2) < gap / 2 + 1.5) & (mark == 0)
            )
            part[disc] = np.where(rim[disc] < 0.5, NUCLEUS, ANNULUS)
            mark[disc] = 200 + v.label
        bone &= (mark == 0) | (mark > 200)
        part[bone], mark[bone] = np.where(shell[bone], CORTEX, MARROW), v.label
        tissue[near], labels[near] = part, mark
    return tissue, labels


def draw_rib(q: np.ndarray) -> np.ndarray:
    "A hoop that starts beside the vertebra and slopes down."
    hoop = np.hypot(q[0] / 105, (q[1] - 62) / 84)
    return (
        (np.abs(hoop - 1) < 0.045) & (np.abs(q[2] + 0.2 * np.abs(q[0])) < 5) & (np.abs(q[0]) > 14)
    )


# %% [markdown]
# ## Grey values
# CT in Hounsfield units with noise; T2 in no unit, brighter near the coil at the back.

# %%
#| export
GREYS = {  # air, muscle, fat, cortex, marrow, nucleus, annulus, fluid, cord, rib, vessel, gas
    "ct": (-1000, 55, -100, 800, 210, 85, 110, 15, 40, 500, 150, -900),
    "t2": (0, 90, 420, 25, 210, 330, 60, 700, 260, 90, 20, 5)}


def expose_volume(tissue: np.ndarray, p: np.ndarray, modality: str,
                  rng: np.random.Generator) -> np.ndarray:
    "Tissues as a scanner shows them, int16 (i, j, k)."
    grey = gaussian_filter(np.array(GREYS[modality], np.float32)[tissue], 0.5)
    texture = gaussian_filter(rng.standard_normal(tissue.shape).astype(np.float32), 1.2) * 4
    if modality == "ct":
        grey += 30 * texture * (tissue != AIR) + rng.normal(0, 20, tissue.shape)
        return np.rint(np.clip(grey, -1024, 3071)).astype(np.int16)
    coil = np.exp(-(p[1] + 40) / rng.uniform(90, 160) - (p[2] / rng.uniform(140, 220))**2)
    grey = grey * (1 + 0.08 * texture) * coil * rng.uniform(0.5, 2)
    return np.rint(
        np.hypot(grey + rng.normal(0, 8, grey.shape), rng.normal(0, 8, grey.shape))
    ).astype(np.int16)


# %% [markdown]
# ## A volume
# `axes` names the direction of each axis of the file, as in `LPS`; `oblique` turns the grid against the body.

# %%
#| exports
@dataclass(frozen=True)
class PhantomVolume:
    "A volume and its truth."

    image: np.ndarray  # int16 (i, j, k)
    labels: (
        np.ndarray
    )  # int16 (i, j, k): VerSe's numbers, canal 100, disc 200 + the number above it
    affine: np.ndarray  # (4, 4) index to mm, R, A, S
    modality: str  # "ct" or "t2"


# %%
#| exports
def grid_affine(
    shape: Sequence[int],  # voxels along each axis of the file
    spacing: Sequence[float],  # mm along each axis of the file
    axes: str = "RAS",  # direction of each axis of the file: one of RL, of AP, of SI, in any order
    oblique: float = 0.0,  # degrees that the grid is turned by, about a slanted axis
) -> np.ndarray:  # (4, 4), the grid's middle at 0
    "The affine of a grid around the origin."
    turn = np.zeros((3, 3))
    for k, code in enumerate(axes):
        row = next(i for i, pair in enumerate(("RL", "AP", "SI")) if code in pair)
        turn[row, k] = 1 if code in "RAS" else -1
    axis, angle = np.array([0.9, 0.3, 0.3]) / np.sqrt(0.99), np.radians(oblique)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    tilt = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross  # Rodrigues
    out = np.eye(4)
    out[:3, :3] = tilt @ turn * np.asarray(spacing, float)
    out[:3, 3] = -out[:3, :3] @ (np.asarray(shape) - 1) / 2
    return out


# %%
#| exports
def draw_phantom_volume(
    seed: int = 0,
    modality: str = "ct",  # or "t2"
    spacing: Sequence[float]
    | None = None,  # mm to the right, front and up; default 1.5 1.5 2.5, T2 4 1.2 1.2
    axes: str = "LPS",  # of the file, see `grid_affine`
    oblique: float = 0.0,  # degrees
    view: Sequence[float] = (96, 160, 240),  # mm shown to the right, front and up
    levels: Sequence[str] = SPINE[16:24],
) -> PhantomVolume:
    """The same seed is the same spine in every modality and on every grid.

    DataError for another modality.
    """
    if modality not in GREYS:
        raise DataError(f"modality={modality!r}: a phantom is {' or '.join(GREYS)}")
    spacing = spacing or ((1.5, 1.5, 2.5) if modality == "ct" else (4.0, 1.2, 1.2))
    order = [next(i for i, pair in enumerate(("RL", "AP", "SI")) if code in pair) for code in axes]
    shape = [max(2, round(view[i] / spacing[i])) for i in order]
    affine = grid_affine(shape, [spacing[i] for i in order], axes, oblique)
    spine, p = draw_column(seed, levels), places(shape, affine)
    tissue, labels = draw_tissues(p, spine, np.random.default_rng([seed, 4]))
    image = expose_volume(
        tissue, p, modality, np.random.default_rng([seed, 5, len(modality), shape[0]])
    )
    return PhantomVolume(image, labels, affine, modality)


# %%
from pathlib import Path

import matplotlib.pyplot as plt

from verdiff.io.grids import VolumeFile, load

# %%
ct, mr = draw_phantom_volume(1), draw_phantom_volume(1, "t2", axes="RAS")
print(ct.image.shape, ct.image.dtype, "labels", *np.unique(ct.labels))
assert np.array_equal(draw_phantom_volume(1).image, ct.image)  # the seed says all


# %%
#| fig-alt: "The same phantom spine from the side in CT (bright bone, dark fat), its labels, and in T2 (grey marrow, dark rims, white canal), the patient looking to the left; beside it the CT from the front and from above."
def side(volume, array):
    "The array turned to R, A, S."
    file = VolumeFile(
        Path("phantom"), array.shape, volume.affine, array.dtype, lambda: iter([array])
    )
    return load(file).array


fig, axes = plt.subplots(1, 5, figsize=(9.5, 3.2), layout="constrained")
seen, marks, t2 = side(ct, ct.image), side(ct, ct.labels), side(mr, mr.image)
middle = seen.shape[0] // 2
axes[0].imshow(seen[middle].T[::-1, ::-1], cmap="gray", aspect=2.5 / 1.5, vmin=-500, vmax=1300)
axes[1].imshow(
    marks[middle].T[::-1, ::-1] % 29,
    cmap="nipy_spectral",
    aspect=2.5 / 1.5,
    interpolation="nearest",
)
axes[2].imshow(t2[t2.shape[0] // 2].T[::-1, ::-1], cmap="gray", vmax=np.percentile(t2, 99.5))
axes[3].imshow(seen[:, 40:80].max(1).T[::-1], cmap="gray", aspect=2.5 / 1.5, vmin=-200, vmax=1300)
axes[4].imshow(seen[:, ::-1, 30].T, cmap="gray", vmin=-500, vmax=1300)
for axis, title in zip(axes, ("CT", "labels", "T2", "CT, front", "CT, above"), strict=True):
    axis.set(title=title, xticks=[], yticks=[])

# %% [markdown]
# Oblique, on another grid, each voxel still knows where it is. Two grids agree on what lies in the middle:

# %%
tilted = draw_phantom_volume(1, "ct", (2, 2, 2), "PIR", oblique=15)
a, b = (np.linalg.inv(v.affine) for v in (ct, tilted))
points = np.random.default_rng(0).uniform(-30, 30, (4000, 3))
at = [tuple(np.rint(points @ m[:3, :3].T + m[:3, 3]).astype(int).T) for m in (a, b)]
same = ct.labels[at[0]] == tilted.labels[at[1]]
print(f"labels agree at {same.mean():.1%} of the points (voxels of 1.5 to 2.5 mm, borders differ)")
assert same.mean() > 0.85
