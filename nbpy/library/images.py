# %% [markdown]
# # One door for images
# > Path, open file, bytes, Pillow image, array or tensor: the same picture, or the same sentence

# %% [markdown]
# Radiographs, masks and the published layout are all read here, so that training sees what segmenting sees. What a file is, its first bytes say, not its name. A picture file, a DICOM and a volume's slice each have a reader of their own below this door; what comes out is 8-bit grey at the image's own size, and what is needed to write a mask back onto it.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/images.ipynb).

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks,medical] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp io.images

# %%
#| export
import io
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from verdiff.files import DataError
from verdiff.io.dicom import read_dicom, read_frames
from verdiff.io.dicom_seg import read_dicom_mask
from verdiff.io.grey import Raw, one_sentence, plain_array
from verdiff.io.raster import pillow_raw, positive, read_raster, read_tiff
from verdiff.io.slices import read_slice, slice_from_bytes

# %% [markdown]
# ## What is it?
# DICOM comes with and without an ending, and now and then without the 128 bytes and the word DICM that it should begin with.

# %%
#| exports
SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".tif",
    ".tiff",
    ".bmp",
    ".dcm",
    ".dicom",
    ".nii",
    ".nii.gz",
    ".mha",
    ".mhd",
)
HEAD = 4096  # bytes that tell
MAGIC = re.compile(
    rb"\x89PNG|\xff\xd8\xff|BM|GIF8|RIFF....WEBP|P[1-6f]\s|\0\0\0\x0cjP|\xff\x4f\xff\x51", re.DOTALL
)


def content_kind(
    head: bytes,  # the first `HEAD` bytes of a file
) -> str:  # "raster", "tiff", "dicom", "nifti", "meta" or ""
    "What a file is by its content; the empty word for what is no image."
    if head[128:132] == b"DICM":
        return "dicom"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if MAGIC.match(head):
        return "raster"
    if head[:2] == b"\x1f\x8b":
        with_gzip = zlib.decompressobj(31)
        try:
            head = with_gzip.decompress(head, 400)
        except zlib.error:
            return ""
    if head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2"):
        return "nifti"
    if re.match(rb"\s*(ObjectType|NDims|Comment)\s*=", head):
        return "meta"
    bare = re.match(rb"[\2\x08]\0.\0(UI|UL|CS|SH|OB|DA|LO|..\0\0)|\0\x08\0.(UI|UL|CS|SH|DA|LO)",
                    head, re.DOTALL)
    return "dicom" if bare else ""


# %%
#| exports
def is_image_file(
    path: str | Path,
) -> bool:
    "Whether a file in a folder is one to read: by its ending, or as DICOM by its content."
    path = Path(path)
    if path.name.lower().endswith(SUFFIXES):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


# %%
#| exports
def without_suffix(
    path: Path,
) -> Path:
    "A name without the ending of a kind of file: `.nii.gz` goes whole, numbers as in 1.2.840 stay."
    for ending in sorted(SUFFIXES, key=len, reverse=True):
        if path.name.lower().endswith(ending) and len(path.name) > len(ending):
            return path.with_name(path.name[:-len(ending)])
    return path.with_suffix("") if path.suffix[1:2].isalpha() else path


# %%
names = [
    without_suffix(Path(name)).name for name in ("a.nii.gz", "b.1.PNG", "1.2.840.113", "c.webp")
]
assert names == ["a", "b.1", "1.2.840.113", "c"]
assert content_kind(b"\x89PNG\r\n\x1a\n") == "raster" and content_kind(b"Dear colleague, ...") == ""
assert content_kind(bytes(128) + b"DICM") == "dicom"
assert content_kind(b"NDims = 2") == "meta" and content_kind(bytes(344) + b"n+1\0") == "nifti"

# %% [markdown]
# ## Bytes, from whatever holds them
# The caller's open file is read from its start and put back where it was, never closed.

# %%
#| exports
def bytes_of(
    file: Any,  # open, binary
) -> bytes:
    """All of a file, which stays open and where it was.

    DataError for a file that is open as text.
    """
    seekable = getattr(file, "seekable", lambda: True)()
    at = file.tell() if seekable else 0
    if seekable:
        file.seek(0)
    data = file.read()
    if seekable:
        file.seek(at)
    if not isinstance(data, bytes):
        raise DataError("opened as text, so its bytes are lost; open it with 'rb'")
    return data


# %% [markdown]
# `Image.open` only reads a header, and Pillow's idea of orientation, zero-is-white and pages is not ours. So an image that still shows what its file holds is read from that file. One that was changed since, or made, is taken as it is.

# %%
#| exports
def bytes_behind(
    image: Image.Image,
) -> bytes | None:
    "The file of an image that `Image.open` gave and nobody changed or moved to another frame."
    if not isinstance(image, ImageFile.ImageFile) or image.tell():
        return None
    try:
        if image.fp is not None and not image.fp.closed:
            data = bytes_of(image.fp)
        else:
            data = Path(image.filename).read_bytes() if image.filename else b""
        if not image.tile:  # decoded, perhaps changed
            fresh = Image.open(image.filename or io.BytesIO(data))  # the same way: Pillow's differ
            fresh.load()
            if (fresh.mode, fresh.size, fresh.tobytes()) != (
                image.mode,
                image.size,
                image.tobytes(),
            ):
                return None
        return data
    except Exception:  # no file any more
        return None


# %%
#| exports
def raw_of_image(
    image: Image.Image,  # whose file is not at hand
) -> Raw:
    "The numbers of a Pillow image, with the tags that it carries."
    raw = pillow_raw(image, "array")
    negative = getattr(image, "tag_v2", {}).get(262) == 0 and image.mode[0] in "IF"
    return raw._replace(pixels=positive(raw.pixels), was_negative=True) if negative else raw


# %% [markdown]
# ## The numbers of anything

# %%
#| exports
def name_of(
    source: Any,
) -> str:
    "What to call it in an error."
    if isinstance(source, (str, os.PathLike)):
        return str(source)
    named = getattr(source, "filename", None) or getattr(source, "name", None)
    if named and isinstance(named, (str, os.PathLike)):
        return str(named)
    return "the image" if hasattr(source, "read") or isinstance(source, (bytes, bytearray)) else ""


# %%
#| exports
@dataclass(frozen=True)
class How:
    "What is asked of a reader."

    frame: int | None = None  # of a stack, from 0
    window: int | tuple[float, float] | None = (
        None  # which of a DICOM's, or (centre, width) in its units
    )
    at_least: tuple[int, int] | None = None  # (height, width): decode a JPEG no larger than needed
    labels: bool = False  # a mask: the numbers as stored, no window


def decode(
    data: bytes,
    how: How,
    path: Path | None = None,  # where the bytes come from
) -> Raw:
    """The numbers of a file's content.

    DataError where they are no image of a known kind, or a damaged one.
    """
    kind, held = content_kind(data[:HEAD]), path.stat().st_size if path else len(data)
    return decode_kind(kind, data, how, path)._replace(held=held)


def decode_kind(
    kind: str,  # by `content_kind`
    data: bytes,
    how: How,
    path: Path | None = None,  # where the bytes come from
) -> Raw:
    "The same by the reader of that kind; DataError too."
    if kind == "tiff":
        return read_tiff(data, how.frame)
    if kind == "raster":
        return read_raster(data, how.frame, how.at_least)
    if kind == "dicom":
        return (
            read_dicom_mask(data, how.frame)
            if how.labels
            else read_dicom(data, how.frame, how.window)
        )
    if kind in ("nifti", "meta"):
        return read_slice(path) if path else slice_from_bytes(data, kind)
    why = "not an image that can be read" if data else "is empty"
    raise DataError(f"{why}; give PNG, JPEG, TIFF, DICOM, NIfTI or MHA")


# %%
#| exports
FILE_AT_MOST = 1 << 29  # bytes of one picture's file


def all_of(
    file: Any,  # open, binary, at its start
    kinds: tuple[str, ...],  # by `content_kind`, of which all bytes are wanted
) -> bytes:  # of other kinds the first `HEAD`: of a volume they are enough, of no image too
    "DataError for a file that is too large to be one picture."
    head = file.read(HEAD)
    if content_kind(head) not in kinds:
        return head
    if (size := os.fstat(file.fileno()).st_size) > FILE_AT_MOST:
        raise DataError(f"too large ({size >> 20} MiB in one file); give a smaller copy")
    file.seek(0)
    return file.read()


# %%
#| exports
def read_raw(
    source: Any,  # path, open file, bytes, Pillow image, array or tensor
    how: How = How(),
    name: str | None = None,  # to name in errors instead of the source's own
) -> Raw:
    "The numbers that it holds, upright; DataError in one sentence for everything else."
    with one_sentence(name_of(source) if name is None else name):
        if isinstance(source, (str, os.PathLike)):
            with open(source, "rb") as file:
                data = all_of(file, ("tiff", "raster", "dicom"))
            return decode(data, how, Path(source))
        if isinstance(source, Image.Image):
            data = bytes_behind(source)
            return raw_of_image(source) if data is None else decode(data, how)
        if isinstance(source, (bytes, bytearray, memoryview)):
            return decode(bytes(source), how)
        if hasattr(source, "read"):
            return decode(bytes_of(source), how)
        if hasattr(source, "detach") and hasattr(source, "cpu"):  # a tensor, wherever it lies
            source = source.detach().cpu()
            source = source.float() if source.is_floating_point() else source
        return Raw(plain_array(np.asarray(source)), "array")


# %% [markdown]
# ## Radiographs

# %%
#| exports
@dataclass(frozen=True)
class Picture:
    "A radiograph or slice, and what is needed to write a mask back onto it."

    pixels: np.ndarray  # uint8 (H, W), upright, white bright
    spacing: tuple[float, float] | None  # mm between rows and between columns, where it is known
    kind: str  # "png", "jpeg", "tiff", "dicom", "nifti", "meta", "array", ...
    about: dict[str, Any] = field(default_factory=dict)  # its place: never a name, number or date
    notes: tuple[str, ...] = ()  # what a user should know


def picture(
    raw: Raw,
) -> Picture:
    "The numbers as grey."
    return Picture(np.ascontiguousarray(raw.grey()), raw.spacing, raw.kind, raw.about, raw.notes)


# %%
#| exports
def open_image(
    source: Any,  # path, open file, bytes, Pillow image, array or tensor
    window: int
    | tuple[float, float]
    | None = None,  # which of a DICOM's windows, or (centre, width)
    frame: int | None = None,  # of a stack or multi-frame file, from 0
    name: str | None = None,  # to name in errors instead of the source's own
) -> Picture:
    """Whatever a radiograph comes as, as 8-bit grey with its spacing and its place.

    DataError, in one sentence that names the file, for what is no single grey picture.
    """
    raw = read_raw(source, How(frame, window), name)
    with one_sentence(name_of(source) if name is None else name):
        return picture(raw)


def read_image(
    source: Any,  # path, open file, bytes, Pillow image, array or tensor
    window: int | tuple[float, float] | None = None,
    frame: int | None = None,  # of a stack, from 0
    name: str | None = None,
) -> Image.Image:  # mode "L", at the image's own size
    "The pixels of `open_image` as a Pillow image; DataError as there."
    return Image.fromarray(open_image(source, window, frame, name).pixels)


# %%
#| exports
def window_of(
    text: Any,  # of `--window`; anything but text passes
) -> int | tuple[float, float] | None:  # which of a file's windows, from 0; or centre and width
    "What `1` or `40,400` asks for; DataError for other words."
    if not isinstance(text, str):
        return text
    try:
        numbers = [float(word) for word in text.split(",")]
        if len(numbers) == 2:
            return numbers[0], numbers[1]
        return int(text)
    except ValueError:
        raise DataError(
            f"--window {text}: expected a number from 0, or CENTRE,WIDTH as 40,400"
        ) from None


# %%
#| exports
def open_images(
    path: str | Path,  # any image; of a multi-frame DICOM each frame comes
    window: int | tuple[float, float] | None = None,
) -> Iterator[Picture]:
    "The pictures of a file, one at a time; DataError as `open_image`."
    with one_sentence(str(path)):
        with open(path, "rb") as file:
            data = all_of(file, ("dicom",))
            data = data if content_kind(data[:HEAD]) == "dicom" else b""
        frames = iter(
            read_frames(data, window) if data else [read_raw(path, How(None, window), "")]
        )
    while True:
        with one_sentence(str(path)):
            if (raw := next(frames, None)) is None:
                return
            shown = picture(raw)
        yield shown


# %%
assert window_of("1") == 1 and window_of("40,400") == (40, 400)


class Tensor:  # what torch's looks like from here
    def __init__(self, array): self.array = array
    def detach(self): return self
    def cpu(self): return self
    def is_floating_point(self): return False
    def __array__(self, dtype=None, copy=None): return self.array


film = np.add.outer(np.arange(60), np.arange(20)).astype(np.uint8) * 3
with io.BytesIO() as file:
    Image.fromarray(film).save(file, "PNG")
    data = file.getvalue()
    for source in (file, data, Image.open(file), film, Tensor(film)):
        assert np.array_equal(read_image(source), film), type(source)
    assert not file.closed

# %% [markdown]
# The network's canvas is smaller than most radiographs, and a JPEG can be decoded at half, a quarter or an eighth of its size, several times faster. The size of the original goes with it.

# %%
#| exports
def read_smaller(
    source: Any,  # as `read_image` takes it
    at_least: tuple[int, int] | None,  # (height, width) that are wanted; None: all pixels
    name: str | None = None,
) -> tuple[Image.Image, tuple[int, int]]:  # mode "L", and the (height, width) of the original
    "As `read_image`, at any size from `at_least` to the original's."
    raw = read_raw(source, How(at_least=at_least), name)
    with one_sentence(name_of(source) if name is None else name):
        grey = raw.grey()
        return Image.fromarray(np.ascontiguousarray(grey)), raw.full or grey.shape


# %%
with io.BytesIO() as file:
    Image.fromarray(np.tile(film, (8, 8))).save(file, "JPEG")
    small, full = read_smaller(file, (120, 40))
assert full == (480, 160) and small.size == (40, 120)

# %%
print("all checks of this page passed")
