# %% [markdown]
# # Grey values
# > From whatever a detector counts in to the 256 shades that the networks know

# %% [markdown]
# Everything that is read ends here: an array of numbers becomes 8-bit grey. Detectors count in 12 or 14 bits, CT in signed Hounsfield units, programs in floats; a *window* of two percentiles brings them to 0 to 255. A value that stands apart from all others (padding, a lead marker, a collimator's edge) would push the window off the film, so it is left out of it. What a library throws becomes one sentence.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/grey.ipynb).

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks,medical] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp io.grey

# %%
#| export
import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from verdiff.files import DataError, VerdiffError


# %% [markdown]
# ## One sentence, whatever goes wrong
# Readers of damaged files throw anything: `struct.error`, `TypeError`, `SyntaxError`, `MemoryError`. About 51,000 mutated files gave all of these, so the door catches all of them.

# %%
#| exports
LIBRARIES = ("tifffile", "pydicom", "nibabel.global", "highdicom.seg.sop", "highdicom.base")


@contextmanager
def quiet() -> Iterator[None]:
    "No warnings and log lines of the libraries: an error matters, and some quote a patient."
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [logger.disabled for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.disabled = True
        try:
            yield
        finally:
            for logger, disabled in zip(loggers, before, strict=True):
                logger.disabled = disabled


@contextmanager
def one_sentence(
    name: str,  # of what is read, to begin the sentence with; may be empty
    doing: str = "read as an image",  # or "written"
) -> Iterator[None]:
    "Turn whatever a reader throws into a DataError that names the file."
    start = f"{name}: " if name else ""
    try:
        with quiet():
            yield
    except VerdiffError as error:
        raise DataError(f"{start}{str(error).removeprefix(start)}") from None
    except FileNotFoundError:
        raise DataError(f"{start}no such file") from None
    except UnidentifiedImageError:
        raise DataError(
            f"{start}not an image that can be read; give PNG, JPEG, TIFF, DICOM, NIfTI or MHA"
        ) from None
    except (Image.DecompressionBombError, MemoryError) as error:
        raise DataError(
            f"{start}too large ({str(error) or 'memory'}); give a smaller copy"
        ) from None
    except Exception as error:
        of_disk = getattr(error, "strerror", None) if isinstance(error, OSError) else None
        why = of_disk or " ".join(str(error).split())[:200] or type(error).__name__
        hint = "" if of_disk or doing == "written" else "; is it complete?"
        raise DataError(f"{start}cannot be {doing} ({why}){hint}") from None


# %%
#| exports
def check_size(
    height: int,
    width: int,
    layers: int = 1,  # bytes a pixel, or pages, that are decoded with it
) -> None:
    "DataError before memory is asked for: twice Pillow's `MAX_IMAGE_PIXELS` is the limit."
    if height < 1 or width < 1:
        raise DataError(f"an image of {height}x{width} pixels is no image")
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 2**40)
    if height * width > limit or height * width * layers > 4 * limit:
        raise DataError(f"too large ({height}x{width} pixels); give a smaller copy")


# %%
import struct
import zlib

# %%
for trouble in (
    struct.error("unpack requires a buffer"),
    zlib.error("invalid code"),
    MemoryError(),
):
    try:
        with one_sentence("film.tif"):
            raise trouble
    except DataError as error:
        print(error)


# %% [markdown]
# DICOM and volumes are read by packages of the extra `medical`. They are imported when such a file comes, so that a radiograph needs none of them.

# %%
#| exports
def extra(
    name: str,  # of a module
) -> Any:
    "A module of the extra `medical`; DataError says how to install it."
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(f"reading it takes a package that is not installed ({error.name or name}); "
                        'pip install "verdiff[medical]"') from None


# %%
try:
    extra("no_such_module")
except DataError as error:
    print(error)


# %% [markdown]
# ## The window

# %%
#| exports
def without_outliers(
    values: np.ndarray,  # sorted numbers, (n,)
    least: int = 16,  # different values that make a film
) -> np.ndarray:  # a part of them
    """Leave out values that stand apart: padding, markers.

    They do where the widest gap between neighbouring values is wider than all the range of the
    larger side, as between a film of 0 to 4000 and its padding at 65535. Done at most four times.
    """
    for _ in range(4):
        steps = np.diff(values)
        if np.count_nonzero(steps) < least:
            break
        at = int(steps.argmax()) + 1
        rest = values[:at] if 2 * at >= len(values) else values[at:]
        if steps[at - 1] <= rest[-1] - rest[0] or len(np.unique(rest)) < least:
            break
        values = rest
    return values


# %%
#| exports
def to_uint8(
    pixels: np.ndarray,  # grey values of any kind, (H, W)
    window: tuple[float, float] = (0.5, 99.5),  # percentiles that become black and white
    padding: np.ndarray | None = None,  # bool (H, W): pixels to leave out of the window
) -> np.ndarray:  # uint8, (H, W)
    """Grey values as the networks know them, 0 to 255.

    uint8 passes unchanged, bool and floats in [0, 1] are scaled, everything else (12 or 16 bits,
    signed, any float) is windowed between two percentiles of the values that do not stand apart
    (`without_outliers`). NaN and infinity: DataError.
    """
    if pixels.dtype == np.uint8:
        return pixels
    pixels = pixels.astype(np.float64)
    if not np.isfinite(pixels).all():
        raise DataError("the image holds NaN or infinite values; replace them")
    if pixels.min() >= 0 and pixels.max() <= 1:
        low, high = 0.0, 1.0
    else:
        used = pixels if padding is None or padding.all() else pixels[~padding]
        low, high = np.percentile(without_outliers(np.sort(used, axis=None)), window)
    if high <= low:  # nearly constant: fall back on the whole range
        low, high = pixels.min(), max(pixels.max(), pixels.min() + 1)
    pixels = (pixels - low) / (high - low)
    return np.rint(255 * pixels.clip(0, 1)).astype(np.uint8)


# %%
film = np.add.outer(np.arange(400), np.arange(160)).astype(np.uint16) * 7
padded = film.copy()
padded[:, :9] = 65_535
grey = to_uint8(padded)
print("with padding:", grey[:, 9:].min(), "to", grey[:, 9:].max(), "in the film")
assert np.abs(grey[:, 9:].astype(int) - to_uint8(film)[:, 9:]).max() < 12
assert to_uint8(np.array([[0, 1000]])).tolist() == [[0, 255]]  # two values are no film with padding


# %% [markdown]
# ## Arrays
# What numpy, torch and every reader below give: height and width, maybe colours.

# %%
#| exports
def luma(
    pixels: np.ndarray,  # (H, W, 3) of any numbers
) -> np.ndarray:  # (H, W)
    "Colours to grey, ITU-R 601, as Pillow does it."
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))
    return pixels @ np.array([0.299, 0.587, 0.114])


# %%
#| exports
def plain_array(
    pixels: np.ndarray,  # (H, W), (1, H, W), (H, W, 1), (H, W, 3) or (H, W, 4)
) -> np.ndarray:  # (H, W) or (H, W, 3)
    "Without axes of one and without opacity; DataError for what is no single picture."
    pixels = np.asarray(pixels)
    if pixels.ndim not in (2, 3) or 0 in pixels.shape or pixels.dtype.kind not in "biuf":
        raise DataError(f"an array of shape {pixels.shape} and type {pixels.dtype} is no image; "
                        "give (height, width) or (height, width, 3)")
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[0] == 1:
        return pixels[0]
    if pixels.shape[2] == 1:
        return pixels[..., 0]
    if pixels.shape[2] not in (3, 4):
        raise DataError(f"an array of shape {pixels.shape} is no single image; split it up")
    return pixels[..., :3]


# %%
#| exports
def image_from_array(
    pixels: np.ndarray,  # (H, W), (1, H, W), (H, W, 1), (H, W, 3) or (H, W, 4)
) -> Image.Image:  # mode "L"
    "A grey image from an array; colours become grey, what is no picture is refused."
    pixels = plain_array(pixels)
    grey = luma(pixels) if pixels.ndim == 3 else pixels
    return Image.fromarray(np.ascontiguousarray(to_uint8(grey)))


# %%
shades = np.arange(20, dtype=np.uint8).reshape(5, 4)
for pixels in (shades, shades[None], shades[..., None], np.stack([shades] * 3, -1)):
    assert np.array_equal(image_from_array(pixels), shades)
try:
    image_from_array(np.zeros((7, 5, 5)))
except DataError as error:
    print(error)

# %% [markdown]
# ## What every reader gives
# The numbers of one picture, before anything is made of them: a radiograph becomes 8-bit grey, a mask labels.

# %%
#| exports
class Raw(NamedTuple):
    "The numbers of one picture, upright; the larger, the brighter."

    pixels: np.ndarray  # (H, W) or (H, W, 3), of any type
    kind: str  # "png", "jpeg", "tiff", "dicom", "nifti", "meta", "array"
    palette: np.ndarray | None = None  # uint8 (n, 3): the colours that the numbers stand for
    was_negative: bool = False  # the file said that white is zero; turned round here
    full: tuple[int, int] | None = None  # (height, width) of the file, where less was decoded
    spacing: tuple[float, float] | None = None  # mm between rows and between columns
    about: dict = {}  # geometry that is needed to write a mask back
    notes: tuple[str, ...] = ()  # what a user should know
    held: int | None = None  # bytes of the file, where it was one

    def grey(self) -> np.ndarray:
        "uint8 (H, W), as a radiograph; DataError for so many pixels in so few bytes as none has."
        count = self.pixels.shape[0] * self.pixels.shape[1]
        if self.held is not None and count > max(1 << 24, 100 * self.held):
            raise DataError(f"{count / 1e6:.0f} million pixels in {self.held / 1e6:.1f} MB, which "
                            "is no radiograph; give one, or a smaller copy")
        pixels = self.pixels
        if self.palette is not None:
            pixels = self.palette[np.minimum(pixels, len(self.palette) - 1)]
        return to_uint8(luma(pixels) if pixels.ndim == 3 else pixels)


# %%
indices = Raw(np.uint8([[0, 1]]), "png", palette=np.uint8([[0, 0, 0], [9, 9, 9]]))
assert indices.grey().tolist() == [[0, 9]]


# %%
#| exports
def choose_frame(
    count: int,  # frames in the file
    frame: int | None,  # asked for, from 0
    what: str,  # "TIFF", ...
) -> int:
    "DataError where a stack does not say which of its pictures is meant."
    if frame is not None and not 0 <= frame < count:
        raise DataError(f"there is no frame {frame}; this {what} holds {count}, counted from 0")
    if frame is None and count > 1:
        raise DataError(f"this {what} is a stack of several pages; save the page that you mean as "
                        f"a file of its own, or choose one of {count} with frame=")
    return frame or 0


# %%
assert choose_frame(1, None, "TIFF") == 0 and choose_frame(3, 2, "TIFF") == 2
try:
    choose_frame(3, None, "TIFF")
except DataError as error:
    print(error)
