# %% [markdown]
# # One slice of a volume file
# > A NIfTI or MHA that holds a single picture, and masks on its voxels

# %% [markdown]
# Programs for volumes also store pictures: a radiograph as a volume of one slice. They are read by the same reader as volumes, turned by their affine to the way a radiologist looks at them, and the mask goes back to the voxels with the affine of the file. A volume of many slices is not taken here: which slice, at which spacing, in which grey values is a matter of its own.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/slices.ipynb).

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks,medical] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp io.slices

# %%
#| export
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from verdiff.files import DataError, VerdiffError
from verdiff.io.grey import Raw, check_size
from verdiff.io.grids import VolumeFile, as_stored, load
from verdiff.io.volume_files import open_volume, write_meta, write_nifti

# %% [markdown]
# Axes come as R, A, S (to the right, to the front, upwards of the patient). A picture's rows run down and its columns to the right of who looks at it: the patient's left, or the back where the patient is seen from the side.

# %%
#| exports
def picture_of(
    array: np.ndarray,  # (R, A, S), one of them 1
) -> np.ndarray:  # (H, W), a view
    "As a radiologist looks at it: head up, or front up; the patient's right at the left."
    axis = max(k for k in range(3) if array.shape[k] == 1)
    return array.take(0, axis).T[::-1, ::-1]


def voxels_of(
    picture: np.ndarray,  # (H, W)
    shape: tuple[int, int, int],  # (R, A, S)
) -> np.ndarray:  # (R, A, S)
    "Undo `picture_of`."
    return picture[::-1, ::-1].T.reshape(shape)


# %%
for shape in ((1, 3, 4), (3, 1, 4), (3, 4, 1)):
    there = np.arange(12).reshape(shape)
    assert np.array_equal(voxels_of(picture_of(there), shape), there)


# %%
#| exports
def read_slice(
    path: str | Path,  # NIfTI or MetaImage
) -> Raw:
    "The picture of a volume file that holds one slice; DataError for a volume."
    file = open_volume(path)
    if 1 not in file.shape:
        raise DataError(
            f"a volume of {'x'.join(map(str, file.shape))} voxels; its slices are read by "
            "verdiff.data.volumes, or save the slice that you mean"
        )
    axis = max(k for k in range(3) if file.ras_shape[k] == 1)
    columns, rows = (float(file.spacing[k]) for k in range(3) if k != axis)
    check_size(*(n for k, n in enumerate(file.ras_shape) if k != axis), file.dtype.itemsize)
    pixels = picture_of(load(file).array)
    kind = "meta" if Path(path).suffix.lower() in (".mha", ".mhd") else "nifti"
    about = {"shape": list(file.shape), "affine": np.asarray(file.affine, float).tolist()}
    return Raw(pixels, kind, None, False, pixels.shape, (rows, columns), about)


# %%
#| exports
def slice_from_bytes(
    data: bytes,
    kind: str,  # "nifti" or "meta"
) -> Raw:
    """As `read_slice`, of a file that is not on the disk.

    DataError where it is damaged.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("slice.mha" if kind == "meta" else "slice.nii")
        path.write_bytes(data)
        try:
            return read_slice(path)
        except VerdiffError as error:  # the name of the copy helps nobody
            raise DataError(str(error).replace(f"{path}: ", "")) from None


# %% [markdown]
# A DICOM's picture has columns, rows and one slice as axes. Where it does not say where it lies (a radiograph seldom does), columns count as going to
# the patient's left and rows to the back, from 0, as ITK has it; without a spacing a pixel counts as 1 mm.

# %%
#| exports
def dicom_affine(
    about: dict[str, Any],  # of a DICOM's picture
) -> np.ndarray:  # (4, 4), column, row, slice to mm (R, A, S)
    "Where the pixels of a DICOM lie."
    turn = np.array(about.get("ImageOrientationPatient") or (1, 0, 0, 0, 1, 0), float).reshape(2, 3)
    down, right = about.get("PixelSpacing") or about.get("spacing") or (1, 1)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = turn[0] * right, turn[1] * down
    lps[:3, 2] = np.cross(*turn) * (about.get("SliceThickness") or [1])[0]
    lps[:3, 3] = about.get("ImagePositionPatient") or (0, 0, 0)
    return np.diag([-1.0, -1, 1, 1]) @ lps


# %%
#| exports
def slice_bytes(
    mask: np.ndarray,  # bool (H, W), on the picture's pixels
    about: dict[str, Any],  # of the picture: shape and affine, or what a DICOM says
    ending: str,  # .nii, .nii.gz or .mha
) -> bytes:
    "The mask as a volume of one slice, on the voxels of the picture."
    if "affine" in about:
        shape, affine = tuple(about["shape"]), np.array(about["affine"])
        like = VolumeFile(Path("mask"), shape, affine, np.dtype(np.uint8), lambda: iter(()))
        stored = as_stored(voxels_of(mask.astype(np.uint8), like.ras_shape), like)
    else:
        stored, affine = mask.astype(np.uint8).T[:, :, None], dicom_affine(about)
    write = write_meta if ending == ".mha" else write_nifti
    with tempfile.TemporaryDirectory() as folder:
        return write(Path(folder) / f"mask{ending}", stored, affine).read_bytes()


# %% [markdown]
# A picture whose voxels are stored lying and mirrored; and its mask, on them:

# %%
lying = np.arange(12, dtype=np.int16).reshape(4, 1, 3)  # first axis: upwards, third: to the left
place = np.array([[0, 0, -0.5, 0], [0, 1, 0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1]])
with tempfile.TemporaryDirectory() as folder:
    path = write_nifti(Path(folder) / "film.nii.gz", lying, place)
    raw = read_slice(path)
    assert raw.pixels.tolist() == lying[::-1, 0].tolist() and raw.spacing == (2, 0.5)
    data = slice_bytes(raw.pixels > 7, raw.about, ".mha")
    assert np.array_equal(slice_from_bytes(data, "meta").pixels > 0, raw.pixels > 7)
    data = slice_bytes(raw.pixels > 7, {"spacing": (2, 0.5)}, ".nii.gz")  # of a DICOM
    again = slice_from_bytes(data, "nifti")
    assert np.array_equal(again.pixels > 0, raw.pixels > 7) and again.spacing == (2, 0.5)

# %%
print("all checks of this page passed")
