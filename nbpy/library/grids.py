# %% [markdown]
# # Grids in the body
# > Which way is up in a volume, and whether two volumes share their voxels

# %% [markdown]
# A volume is an array and an affine matrix that says where in the body each voxel lies. Files store their axes in any order, any direction, oblique to the body or sheared; a program that looks at the array alone gets pictures that stand on their head, or a left that is a right. This module holds what every reader fills in, a `VolumeFile`, and the two things that the datasets need of it: the turn to one common order of axes, and the question whether a mask lies on its image.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/grids.ipynb).

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks,medical] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp io.grids

# %%
#| export
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from verdiff.files import DataError
from verdiff.io.grey import extra

# %% [markdown]
# ## The place in the body
# Everything here speaks of millimetres to the **R**ight, **A**nterior and **S**uperior of the patient, as NIfTI does. A file may store its axes in any order and direction; `to_ras` tells the order and the flips that bring them to R, A, S.

# %%
#| exports
def to_ras(
    affine: np.ndarray,  # (4, 4) voxel index to mm
) -> tuple[
    list[int], list[bool]
]:  # for R, A, S: which axis of the file, and whether it runs backwards
    "The order of a file's axes; an oblique one counts as the direction it is closest to."
    ornt = extra("nibabel").orientations.io_orientation(affine)
    order = [int(np.flatnonzero(ornt[:, 0] == k)[0]) for k in range(3)]
    return order, [bool(ornt[axis, 1] < 0) for axis in order]


# %%
#| exports
def ras_affine(
    affine: np.ndarray,  # (4, 4) of the file
    shape: tuple[int, int, int],  # of the file
) -> np.ndarray:  # (4, 4) of the same voxels with the axes in the order R, A, S
    "The affine after `to_ras`."
    order, back = to_ras(affine)
    out = np.eye(4)
    out[:3, 3] = affine[:3, 3]
    for k, (axis, flip) in enumerate(zip(order, back, strict=True)):
        out[:3, k] = -affine[:3, axis] if flip else affine[:3, axis]
        if flip:
            out[:3, 3] += affine[:3, axis] * (shape[axis] - 1)
    return out


# %%
tilted = np.array([[0, 0, -1, 90], [-1, 0.1, 0, 80], [-0.1, -1, 0, 70], [0, 0, 0, 1.0]])  # P I L
assert to_ras(tilted) == ([2, 0, 1], [True, True, True])
assert np.allclose(ras_affine(tilted, (5, 6, 7)) @ [0, 0, 0, 1], tilted @ [4, 5, 6, 1])


# %%
#| export
@dataclass(frozen=True)
class VolumeFile:
    "The header of a volume, and a way to stream its voxels."

    path: Path
    shape: tuple[int, int, int]  # in the file's own order of axes
    affine: np.ndarray  # (4, 4) voxel index to mm (R, A, S)
    dtype: np.dtype  # of the voxels that `blocks` gives
    blocks: Callable[[], Iterator[np.ndarray]]  # arrays (nx, ny, n) along the last axis, in order
    names: dict[int, str] = field(default_factory=dict)  # of labels, where the file tells them

    @property
    def order(self) -> tuple[list[int], list[bool]]:
        "For R, A, S: which axis of the file, and whether it runs backwards."
        return to_ras(self.affine)

    @property
    def ras_shape(self) -> tuple[int, int, int]:
        "Voxels to the right, to the front and upwards."
        return tuple(self.shape[axis] for axis in self.order[0])

    @property
    def ras_affine(self) -> np.ndarray:
        "(4, 4), for the axes in the order R, A, S."
        return ras_affine(self.affine, self.shape)

    @property
    def spacing(self) -> np.ndarray:
        "(3,) mm between voxels to the right, to the front and upwards."
        return np.linalg.norm(self.ras_affine[:3, :3], axis=0)


# %%
#| export
def check_geometry(
    path: Path,
    shape: tuple[int, ...],
    affine: np.ndarray,  # (4, 4)
) -> tuple[tuple[int, int, int], np.ndarray]:  # the same, with three axes
    "DataError where a volume has no three axes or its affine places nothing."
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 3:
        raise DataError(f"{path}: has {len(shape)} dimensions ({'x'.join(map(str, shape))}); "
                        "expected one volume, so save one of them as a file of its own")
    if len(shape) == 2:  # a picture: one slice
        shape = (*shape, 1)
    if len(shape) < 3:
        raise DataError(f"{path}: has {len(shape)} dimensions; expected a volume")
    if min(shape) < 1:
        raise DataError(f"{path}: is empty ({'x'.join(map(str, shape))} voxels)")
    length = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or length.min() <= 0 or (
            abs(np.linalg.det(affine[:3, :3] / length)) < 0.1):
        raise DataError(f"{path}: its affine does not place the voxels in space (an axis of no "
                        "length, or two axes alike); write the file again from its source")
    return tuple(map(int, shape)), affine


# %% [markdown]
# ## A whole volume
# For looking at one; the dataset streams instead.

# %%
#| exports
@dataclass(frozen=True)
class Volume:
    "A volume in memory, its axes turned to R, A, S."

    array: np.ndarray  # (right, anterior, superior)
    affine: np.ndarray  # (4, 4) index to mm
    source: VolumeFile

    @property
    def spacing(self) -> np.ndarray:
        "(3,) mm between voxels."
        return np.linalg.norm(self.affine[:3, :3], axis=0)


# %%
#| exports
def load(
    file: VolumeFile,
) -> Volume:
    """Read every voxel and turn the axes.

    DataError where the voxels do not fit into memory or cannot be read.
    """
    try:
        native = np.empty(file.shape, file.dtype.newbyteorder("="), order="F")
    except MemoryError:
        raise DataError(
            f"{file.path}: claims {'x'.join(map(str, file.shape))} voxels, more than fit "
            "into memory; is its header damaged?"
        ) from None
    k = 0
    for block in file.blocks():
        native[:, :, k:k + block.shape[2]] = block
        k += block.shape[2]
    order, back = file.order
    turned = np.flip(native.transpose(order), [k for k in range(3) if back[k]])
    return Volume(turned, file.ras_affine, file)


# %% [markdown]
# A result made on the turned axes goes back the same way:

# %%
#| exports
def as_stored(
    array: np.ndarray,  # (right, anterior, superior), as `load` gives
    file: VolumeFile,
) -> np.ndarray:  # in the file's own order of axes
    "Undo the turn of `load`."
    order, back = file.order
    return np.flip(array, [k for k in range(3) if back[k]]).transpose(np.argsort(order))


# %% [markdown]
# ## Do two files share a grid?
# A mask belongs to its image when the two, turned to R, A, S, have one shape and their corners lie in one place. A tenth of a voxel is allowed: programs round affines to single precision, or keep a direction that is off by 1e-8. More is refused. Cutting or resampling on a guess would teach background where nobody has looked.

# %%
#| exports
def corners(
    file: VolumeFile,
) -> np.ndarray:  # (8, 3) mm
    "Where the corner voxels lie."
    ends = np.stack(np.meshgrid(*[(0, n - 1) for n in file.ras_shape], indexing="ij"), -1)
    return ends.reshape(8, 3) @ file.ras_affine[:3, :3].T + file.ras_affine[:3, 3]


# %%
#| exports
def check_same_grid(
    image: VolumeFile,
    mask: VolumeFile,
    tolerance: float = 0.1,  # voxels that the corners may be apart
) -> None:
    "DataError where a mask does not lie on its image's voxels."
    apart = np.abs(corners(image) - corners(mask)).max()
    if image.ras_shape == mask.ras_shape and apart <= tolerance * image.spacing.min():
        return
    sizes = [f"{'x'.join(map(str, f.ras_shape))} voxels of "
             f"{'x'.join(f'{s:.4g}' for s in f.spacing)} mm" for f in (mask, image)]
    raise DataError(
        f"{mask.path}: lies on another grid than its image {image.path.name}: {sizes[0]} "
        f"(R, A, S) against {sizes[1]}, corners up to {apart:.3g} mm apart; bring the "
        "mask onto the image's grid, or pair other files"
    )


# %%
def made(array, affine, name="a.nii.gz"):
    "A volume that never was a file."
    return VolumeFile(Path(name), array.shape, affine, array.dtype, lambda: iter([array]))


shown = np.arange(24).reshape(2, 3, 4)
one = made(shown, np.diag([2.0, 1, 3, 1]))
there = load(one)
assert np.array_equal(there.array, shown) and np.array_equal(as_stored(there.array, one), shown)
mirrored = made(shown[::-1], np.array([[-2.0, 0, 0, 2], [0, 1, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]]))
assert np.array_equal(
    load(mirrored).array, shown
)  # stored the other way round, the same in the body
check_same_grid(one, mirrored)
try:
    check_same_grid(one, made(shown, np.diag([2.0, 1, 3.5, 1]), "mask.nii.gz"))
except DataError as error:
    print(error)

# %% [markdown]
# A picture: a letter that stands in one file and lies in the other. Turned, they are one.

# %%
import matplotlib.pyplot as plt

# %%
#| fig-alt: "Three panels with the letter F: as the first file stores it, as the second stores it (lying, mirrored), and the second after the turn, equal to the first."
letter = np.zeros((1, 7, 9), np.uint8)
letter[0, 1, 1:8] = letter[0, 1:6, 7] = letter[0, 1:4, 4] = 1
lying = made(letter.transpose(2, 1, 0)[::-1], np.array(
    [[0, 0, 1, 0], [0, 1, 0, 0], [-1, 0, 0, 8], [0, 0, 0, 1.0]]))
fig, axes = plt.subplots(1, 3, figsize=(5, 1.9), layout="constrained")
for axis, picture, title in zip(axes, (letter[0].T[::-1], next(lying.blocks())[:, :, 0],
                                       load(lying).array[0].T[::-1]),
                                ("A to the right, S up", "as stored", "turned"), strict=True):
    axis.imshow(picture, cmap="gray")
    axis.set(title=title, xticks=[], yticks=[])
assert np.array_equal(load(lying).array, letter)
