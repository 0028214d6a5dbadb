# %% [markdown]
# # Masks
# > Zero is background, whole numbers are labels, and what is neither is said

# %% [markdown]
# In a mask zero is background, and whole numbers are labels: a number a vertebra, or 255 for all of them. They are never probabilities, however many there are. A soft border, as resizing and JPEG leave it, is something else: few of its pixels have neighbours of their own value. Fractions are probabilities. Whatever is not plainly 0 and one label is said once: which labels were taken, or where it was cut. Masks come through the same door as images, and go back onto the image's own pixels, in its format if it is a medical one.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/masks.ipynb).

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks,medical] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp io.masks

# %%
#| export
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from verdiff.files import DataError, atomic_write, say
from verdiff.io.dicom_seg import IDENTITY, segmentation_bytes
from verdiff.io.grey import Raw, one_sentence
from verdiff.io.images import How, Picture, name_of, read_raw
from verdiff.io.slices import slice_bytes

# %% [markdown]
# ## Labels or a border?

# %%
#| exports
_said: set[Any] = set()


def say_once(
    text: str,
    about: set[Any],  # what it speaks of
) -> None:
    "A note on stderr, unless all that it speaks of was spoken of before in this process."
    if not about <= _said:
        _said.update(about)
        say(f"note: {text}")


# %%
#| exports
def ranges(
    labels: Sequence[int],
    most: int = 12,  # ranges that are written
) -> str:
    "1, 2, 3, 7 as 1-3, 7."
    parts: list[list[int]] = []
    for label in sorted(labels):
        if parts and label == parts[-1][1] + 1:
            parts[-1][1] = label
        else:
            parts.append([label, label])
    texts = [str(a) if a == b else f"{a}-{b}" for a, b in parts]
    return ", ".join(texts[:most] + (["..."] if len(texts) > most else []))


# %%
#| exports
def is_soft(
    values: np.ndarray,  # whole numbers (H, W)
) -> bool:
    "Whether most values between 0 and the largest are borders: unlike the pixels around them."
    inside = (values > 0) & (values < values.max())
    if np.unique(values[inside]).size < 32:  # no more than a label a vertebra
        return False
    around = np.pad(values, 1, mode="edge")
    flat = (around[1:-1, :-2] == values) & (values == around[1:-1, 2:]) & (
        around[:-2, 1:-1] == values) & (values == around[2:, 1:-1])
    return flat[inside].mean() < 0.25


# %%
labels = np.kron(np.arange(40).reshape(8, 5), np.ones((9, 9), int))
soft = np.asarray(Image.fromarray((labels == 12).astype(np.uint8) * 255).resize((200, 300)))
assert ranges([1, 2, 3, 7]) == "1-3, 7" and is_soft(soft) and not is_soft(labels)


# %% [markdown]
# ## Reading

# %%
#| exports
def mask_values(
    raw: Raw,
) -> np.ndarray:  # (H, W), numbers from 0
    "What the file says of each pixel; DataError for what cannot be a mask."
    values = raw.pixels
    if values.dtype == bool and raw.was_negative:
        raise DataError("a mask of 1 bit that says white is zero, where programs disagree which of "
                        "the two is bone; save it as a PNG of 0 and 255")
    if values.ndim == 3:  # colours
        values = values.max(2)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise DataError("the mask holds NaN or infinite values; replace them by 0")
        whole = np.rint(values)
        values = whole.astype(np.int64) if np.abs(values - whole).max() < 0.01 else values
    if raw.was_negative:
        values = values.astype(np.float64 if values.dtype.kind == "f" else np.int64)
        values = values - values.min()
    if values.min() < 0:
        raise DataError(f"the mask holds negative numbers ({values.min():g}); background is 0, a "
                        "vertebra any other number")
    return values


# %%
#| exports
def cut_mask(
    values: np.ndarray,  # (H, W), numbers from 0
    kind: str,  # "jpeg" blurs
    labels: Sequence[int] | None = None,  # that count; None: all but 0
) -> np.ndarray:  # bool (H, W)
    """Which pixels are vertebra: by labels, half a probability, or half of a soft border's height.

    DataError for labels in a file that blurs them.
    """
    top = values.max()
    if values.dtype == bool:
        return values
    if labels is not None:
        if kind == "jpeg" or values.dtype.kind == "f":
            raise DataError(
                "labels can only be chosen where a mask holds whole numbers; save it as PNG "
                "without blur"
            )
        return np.isin(values, list(labels))
    if kind == "jpeg":
        if 0 < top <= 127:
            raise DataError(
                f"its brightest value is {top}, but a mask in a JPEG must be 0 and 255, "
                "since JPEG blurs smaller numbers; save it as PNG"
            )
        return values > 127
    if values.dtype.kind == "f" or is_soft(values):
        half = 0.5 if top <= 1 else top / 2
        say_once(
            f"masks with fractions or soft borders are cut at half of their height (here {half:g})",
            {"soft"},
        )
        return values >= half if values.dtype.kind == "f" else values > half
    found = np.unique(values[values > 0])
    if len(found) > 1 and (len(found) > 31 or top > 31):
        say_once(
            f"a mask with the labels {ranges(found.tolist())}: each of them counts as vertebra; "
            "--labels chooses (labels= in Python)",
            set(found.tolist()),
        )
    return values > 0


# %%
#| exports
def read_mask(
    source: Any,  # path, open file, bytes, Pillow image, array or tensor
    labels: Sequence[int] | None = None,  # that count as vertebra; None: all but 0
    name: str | None = None,  # to name in errors instead of the source's own
) -> Image.Image:  # mode "L", 0 and 255
    """A mask, read as a radiograph is: turned, made positive, the full page chosen.

    Whole numbers are labels, fractions probabilities, and what lies between the two is said.
    DataError names what is no mask.
    """
    raw = read_raw(source, How(labels=True), name)
    with one_sentence(name_of(source) if name is None else name):
        inside = cut_mask(mask_values(raw), raw.kind, labels)
        return Image.fromarray(np.ascontiguousarray(inside).astype(np.uint8) * 255)


# %%
for numbers in (np.uint8([[0, 1, 17]]), np.int64([[0, 1, 17]]), np.float64([[0, 1.001, 16.999]]),
                np.array([[False, True, True]])):
    assert np.asarray(read_mask(numbers)).tolist() == [[0, 255, 255]]
assert np.asarray(read_mask(np.float32([[0.2, 0.7, 1]]))).tolist() == [[0, 255, 255]]
assert np.asarray(read_mask(np.uint8([[1, 19, 201]]), labels=range(1, 20))).tolist() == [
    [255, 255, 0]
]
read_mask(labels);

# %% [markdown]
# ## Writing
# A mask belongs to the picture's pixels. As PNG it is the picture as it is seen, upright; as NIfTI, MHA or DICOM segmentation it lies on the voxels of the file.

# %%
#| exports
def medical_ending(
    picture: Picture,
    nifti: bool = False,  # of a DICOM: NIfTI, not a segmentation
) -> str:  # ".dcm", ".nii.gz", ".mha", or "" where only a PNG can be written
    "In which format a mask lies on a medical file's own pixels."
    place = picture.about
    if picture.kind == "dicom":
        if nifti:
            return ".nii.gz"
        return ".dcm" if all(place.get(word) for word in IDENTITY) else ""
    return {"nifti": ".nii.gz", "meta": ".mha"}.get(picture.kind, "") if "affine" in place else ""


def mask_bytes(
    mask: np.ndarray,  # bool (H, W), on the picture's pixels
    picture: Picture,
    ending: str,  # .png, .dcm, .nii, .nii.gz or .mha
    version: str = "0",  # of the program or network, for the DICOM segmentation
    name: str = "",  # to name in errors
) -> bytes:
    "What a file holds that ends so; DataError where it cannot be made."
    with one_sentence(name, "written"):
        if ending == ".dcm":
            return segmentation_bytes(mask, picture.about, version)
        if ending != ".png":
            return slice_bytes(mask, {"spacing": picture.spacing, **picture.about}, ending)
        file = io.BytesIO()
        Image.fromarray(mask.astype(np.uint8) * 255).save(file, "PNG")
        return file.getvalue()


# %%
#| exports
def write_mask_like(
    mask: Any,  # bool or 0 and anything, (H, W), on the picture's pixels
    picture: Picture,  # as `open_image` gave it
    path: str
    | Path,  # .png; .dcm for a DICOM picture; .nii, .nii.gz or .mha for it or a slice of a volume
    version: str = "0",  # of the program or network, for the DICOM segmentation
) -> Path:
    "The mask in the picture's geometry; DataError where the two have different sizes or formats."
    path, mask = Path(path), np.asarray(mask) > 0
    ending = next(
        (e for e in (".png", ".dcm", ".nii.gz", ".nii", ".mha") if path.name.lower().endswith(e)),
        "",
    )
    of_dicom = picture.kind == "dicom"
    placed = of_dicom or "affine" in picture.about
    fits = {".png": True, ".dcm": of_dicom}.get(ending, placed)
    if mask.shape != picture.pixels.shape:
        raise DataError(
            f"{path}: the mask is {mask.shape[0]}x{mask.shape[1]}, but its image is "
            f"{picture.pixels.shape[0]}x{picture.pixels.shape[1]}; both must have one size"
        )
    if not ending or not fits:
        volume = ", .nii.gz or .mha"
        more = {"dicom": f", .dcm{volume}", "nifti": volume, "meta": volume}
        raise DataError(
            f"{path}: a mask cannot be written so for an image of the kind {picture.kind}; "
            f"use .png{more.get(picture.kind, '')}"
        )
    data = mask_bytes(mask, picture, ending, version, str(path))
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
    return path


# %%
import tempfile

from verdiff.io.images import open_image

# %%
film = np.add.outer(np.arange(90), np.arange(40)).astype(np.uint8)
drawn = np.zeros((90, 40), bool)
drawn[20:50, 10:25] = True
with tempfile.TemporaryDirectory() as folder:
    back = read_mask(write_mask_like(drawn, open_image(film), Path(folder) / "mask.png"))
    assert np.array_equal(np.asarray(back) > 0, drawn)
    try:
        write_mask_like(drawn, open_image(film), "mask.dcm")
    except DataError as error:
        print(error)
