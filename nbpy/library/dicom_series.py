# %% [markdown]
# # A DICOM series as a volume
# > One file a slice, put in order by where each slice lies

# %% [markdown]
# A hospital's CT or MR is a folder of files, one a slice, named at random. Their order, spacing and direction are in the headers, and the obvious fields mislead: `SliceThickness` is how thick a slice is, not how far it is from the next (3 mm against 2 mm in one of our examples), `InstanceNumber` may count downwards, and half a series may be missing. So the slices are sorted by their position along the normal of their own plane, the distance is measured between positions, and a series with a hole is refused. Only the geometry and the pixels are read; no name, number or date of a patient is looked at.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/dicom_series.ipynb).

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks,medical] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp io.dicom_series

# %%
#| export
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from verdiff.files import DataError
from verdiff.io.dicom import dataset_of, decode_frame, frame_header, stored_bits
from verdiff.io.grey import extra
from verdiff.io.grids import VolumeFile, check_geometry

# %%
#| export
TAGS = ["SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
        "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "RescaleSlope", "RescaleIntercept"]


def slice_headers(
    folder: Path,
) -> list[tuple[Path, Any]]:  # files that hold a picture, with the few tags that are needed
    """Everything in a folder that is DICOM by content.

    DataError for a file that breaks off.
    """
    pydicom, found = extra("pydicom"), []
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        with open(path, "rb") as file:
            if file.read(132)[128:] != b"DICM":
                continue
        try:
            tags = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
        except Exception as error:  # pydicom raises whatever its parts raise
            raise DataError(f"{path}: not readable as DICOM ({type(error).__name__}); copy it "
                            "again") from None
        if "Rows" in tags:
            found.append((path, tags))
    return found


# %%
#| export
def one_series(
    folder: Path,
    headers: list[tuple[Path, Any]],
) -> None:
    "DataError where the files are not the slices of one volume."
    if not headers:
        raise DataError(f"{folder}: no DICOM slices inside")
    series = Counter(str(tags.get("SeriesInstanceUID")) for _, tags in headers)
    if len(series) > 1:
        raise DataError(
            f"{folder}: holds {len(series)} series (of {', '.join(map(str, series.values()))}"
            " slices); put each in a folder of its own"
        )
    for path, tags in headers:
        if int(tags.get("NumberOfFrames") or 1) > 1 or int(tags.get("SamplesPerPixel") or 1) > 1:
            raise DataError(
                f"{path}: holds several frames or colours; expected one grey slice a file"
            )
        lacks = [k for k in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
                 if not tags.get(k)]
        if lacks:
            raise DataError(
                f"{path}: does not say where the slice lies ({', '.join(lacks)} missing); "
                "export the series again"
            )
    kinds = {(t.Rows, t.Columns, tuple(np.round(t.ImageOrientationPatient, 3)),
              tuple(np.round(t.PixelSpacing, 3))) for _, t in headers}
    if len(kinds) > 1:
        raise DataError(
            f"{folder}: its slices differ in size or direction (a localiser among them?); "
            "keep only those of one volume"
        )


# %% [markdown]
# Slices in order, and the affine. The third column is the way from the first slice to the last over their number, which is right for a tilted gantry too.

# %%
#| exports
def in_order(
    folder: Path,
    headers: list[tuple[Path, Any]],  # of one series
) -> tuple[list[tuple[Path, Any]], np.ndarray]:  # sorted; (4, 4) column, row, slice to mm (R, A, S)
    "DataError where slices are missing or lie twice in one place."
    turn = np.array(headers[0][1].ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(*turn)

    def depth(header: tuple[Path, Any]) -> float:
        return float(np.dot(normal, np.array(header[1].ImagePositionPatient, float)))

    headers = sorted(headers, key=depth)
    steps = np.diff([depth(h) for h in headers])
    if len(steps) and (steps.min() < 0.01 or steps.max() > 1.05 * np.median(steps) + 0.01):
        what = "two slices in one place" if steps.min() < 0.01 else "slices missing"
        raise DataError(f"{folder}: {what} ({len(headers)} slices, {steps.min():.3g} to "
                        f"{steps.max():.3g} mm apart); export the series again")
    first, last = (np.array(headers[k][1].ImagePositionPatient, float) for k in (0, -1))
    down, right = map(float, headers[0][1].PixelSpacing)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 3] = turn[0] * right, turn[1] * down, first
    lps[:3, 2] = (last - first) / len(steps) if len(steps) else normal
    return headers, np.diag([-1.0, -1, 1, 1]) @ lps


# %%
#| export
def slice_pixels(
    headers: list[tuple[Path, Any]],  # in order
) -> Iterator[np.ndarray]:  # float32 (columns, rows, 1) each
    "Decode and rescale, one slice at a time; DataError names a file that does not decode."
    for path, tags in headers:
        try:
            ds = dataset_of(path.read_bytes())
            pixels = stored_bits(decode_frame(ds, 0), frame_header(ds, 0))
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        except Exception as error:  # a header's words are not quoted
            raise DataError(f"{path}: damaged ({type(error).__name__}); copy it again") from None
        slope, inter = (float(tags.get(k) if tags.get(k) is not None else default)
                        for k, default in (("RescaleSlope", 1), ("RescaleIntercept", 0)))
        yield (pixels.astype(np.float32) * np.float32(slope) + np.float32(inter)).T[:, :, None]


# %%
#| exports
def open_series(
    folder: str | Path,  # with the files of one series
) -> VolumeFile:
    "A folder of DICOM slices as a volume; DataError in one sentence."
    folder = Path(folder)
    headers = slice_headers(folder)
    one_series(folder, headers)
    headers, affine = in_order(folder, headers)
    shape = (int(headers[0][1].Columns), int(headers[0][1].Rows), len(headers))
    shape, affine = check_geometry(folder, shape, affine)
    return VolumeFile(folder, shape, affine, np.dtype(np.float32), lambda: slice_pixels(headers))


# %% [markdown]
# ## Writing one
# For tests: named against its order, with a thickness that is no distance, as real ones are.

# %%
#| export
def write_series(
    folder: str | Path,  # must exist
    voxels: np.ndarray,  # int16 (columns, rows, slices), above -1024
    affine: np.ndarray,  # (4, 4) index to mm, R, A, S
    series: str | None = None,  # UID; None: a new one
) -> None:
    "A CT of one file a slice, without any name."
    dataset, uid = extra("pydicom.dataset"), extra("pydicom.uid")
    lps, series = np.diag([-1.0, -1, 1, 1]) @ affine, series or uid.generate_uid()
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    for k in range(voxels.shape[2]):
        meta = dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = (
            uid.CTImageStorage,
            uid.ExplicitVRLittleEndian,
        )
        meta.MediaStorageSOPInstanceUID = uid.generate_uid()
        ds = dataset.FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = uid.CTImageStorage, meta.MediaStorageSOPInstanceUID
        ds.SeriesInstanceUID, ds.Modality, ds.SliceThickness = series, "CT", 3
        ds.Columns, ds.Rows = voxels.shape[:2]
        turn = (lps[:3, :2] / spacing[:2]).T.ravel()
        ds.ImageOrientationPatient = [f"{x:.10f}"[:16] for x in turn]
        ds.ImagePositionPatient = [f"{x:.8f}"[:16] for x in (lps @ [0, 0, k, 1])[:3]]
        ds.PixelSpacing = [f"{x:.10f}"[:16] for x in spacing[1::-1]]
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        ds.PixelData = (
            np.ascontiguousarray(voxels[:, :, k].T.astype(np.int32) + 1024).astype("<u2").tobytes()
        )
        ds.save_as(Path(folder) / f"CT.{voxels.shape[2] - k:03d}", enforce_file_format=True)


# %%
import tempfile

from verdiff.io.grids import load

# %%
folder = Path(tempfile.mkdtemp())
voxels = np.random.default_rng(0).integers(-1000, 2000, (20, 24, 12)).astype(np.int16)
affine = np.array([[-0.9, 0, 0, 40], [0, -0.8, 0, 30], [0, 0, 2, -20], [0, 0, 0, 1.0]])
write_series(folder, voxels, affine)
file = open_series(folder)
assert np.allclose(file.affine, affine) and np.array_equal(
    np.concatenate(list(file.blocks()), 2), voxels
)
print(file.shape, file.spacing.round(2), "mm")

# %%
next(folder.glob("CT.006")).unlink()
try:
    open_series(folder)
except DataError as error:
    print(str(error).replace(str(folder), "..."))

# %% [markdown]
# The series seen from the side, as it lies in the body:

# %%
import matplotlib.pyplot as plt

# %%
#| fig-alt: "A wedge seen from the side, head up: 12 slices, each a bright bar that grows towards the feet."
wedge = np.full((20, 24, 12), -1000, np.int16)
for k in range(12):
    wedge[:, 2:23 - 2 * k if k < 10 else 3, k] = 300
folder = Path(tempfile.mkdtemp())
write_series(folder, wedge, affine)
volume = load(open_series(folder))
fig, axis = plt.subplots(figsize=(2.6, 2.2), layout="constrained")
axis.imshow(volume.array[10].T[::-1, ::-1], cmap="gray", aspect=2 / 0.8)
axis.set(xlabel="to the back", ylabel="to the feet", xticks=[], yticks=[])
None
