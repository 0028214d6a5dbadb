# %% [markdown]
# # PNG, JPEG and TIFF
# > The numbers that a picture file holds, upright, with white bright

# %% [markdown]
# A picture file holds numbers, and tags that say how to look at them: which way up, whether zero is black or white, which of several pages is the picture. Libraries obey these tags by halves. Pillow 11 to 13 read an uncompressed grey TIFF with an orientation tag as stripes when it is opened by its path, and turn zero-is-white round in some depths only; tifffile ignores the orientation; both take a preview for the radiograph if it comes first. So the tags are read here, once, the libraries are asked for the bare numbers, and everything is opened from bytes.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/raster.ipynb).

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks,medical] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp io.raster

# %%
#| export
import io
import struct
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from verdiff.files import DataError
from verdiff.io.grey import Raw, check_size, choose_frame, plain_array

# %% [markdown]
# ## Tags
# EXIF and TIFF number eight ways of holding a radiograph. From 5 on rows and columns are exchanged first; then left and right, up and down.

# %%
#| exports
ORIENTATION = 274


def upright(
    pixels: np.ndarray,  # (H, W, ...)
    orientation: Any,  # 1 to 8; anything else is no orientation
) -> np.ndarray:
    "Turn an array as its orientation tag says, whatever its type."
    if orientation not in range(1, 9):
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels[::-1] if orientation in (3, 4, 7, 8) else pixels


# %%
from PIL import ImageOps

# %%
letter = np.zeros((7, 5), np.uint8)
letter[1:6, 1] = letter[1, 1:4] = letter[3, 1:3] = 255  # an F
for number in range(1, 9):  # Pillow holds the other opinion on each of them
    exif, file = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = number
    Image.fromarray(letter).save(file, "PNG", exif=exif)
    assert np.array_equal(upright(letter, number), ImageOps.exif_transpose(Image.open(file)))


# %%
#| exports
def positive(
    pixels: np.ndarray,  # stored so that zero is white
) -> np.ndarray:
    "Turn the grey values round, in every depth and sign."
    if pixels.dtype.kind in "biu":
        return ~pixels  # 255 - x of eight bits, -1 - x of signed ones
    return (1 if pixels.min() >= 0 and pixels.max() <= 1 else pixels.max()) - pixels


# %%
assert positive(np.uint8([0, 255])).tolist() == [255, 0]
assert positive(np.int16([-32768, 5])).tolist() == [32767, -6]
assert positive(np.float32([0.25, 1])).tolist() == [0.75, 0]


# %% [markdown]
# ## Pillow
# EXIF with a malformed entry is no reason to lose a sound picture: only the one number is asked for, and nothing is written back.

# %%
#| exports
def exif_orientation(
    image: Image.Image,
) -> int:
    "1 to 8; 1 where there is none, or none that can be read."
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # whatever a broken EXIF makes Pillow throw
        return 1


# %%
#| exports
PLAIN = ("1", "L", "P", "I", "F", "RGB", "RGBA")  # modes whose numbers are the picture's


def pillow_raw(
    image: Image.Image,  # opened, its frame chosen
    kind: str,
    orientation: int | None = None,  # None: as EXIF says
) -> Raw:
    """The numbers of a Pillow image; deep ones stay deep, indices keep their palette.

    DataError for colours that have no grey of their own.
    """
    check_size(image.height, image.width)
    orientation = exif_orientation(image) if orientation is None else orientation
    palette = None
    if image.mode == "P":
        palette = np.reshape(image.getpalette("RGB"), (-1, 3)).astype(np.uint8)
    elif image.mode == "LA":
        image = image.getchannel(0)
    elif image.mode == "LAB":
        raise DataError("an image in LAB colours, whose grey depends on a profile; save it as grey")
    elif image.mode not in PLAIN and not image.mode.startswith("I;"):
        image = image.convert("RGB")
    pixels = np.asarray(image)
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return Raw(upright(plain_array(pixels), orientation), kind, palette)


# %%
turned = Image.fromarray(letter.astype(np.uint16) * 200)
turned.getexif()[ORIENTATION] = 6
assert np.array_equal(pillow_raw(turned, "png").pixels, np.rot90(letter, -1) * np.uint16(200))


# %%
#| exports
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")  # no format that runs programs


# %%
#| exports
def read_raster(
    data: bytes,  # of a PNG, JPEG, BMP, ...
    frame: int | None = None,  # of an animation
    at_least: tuple[int, int] | None = None,  # (height, width): decode a JPEG no larger than needed
) -> Raw:
    "A picture file by Pillow; what is not a single sound picture is refused."
    Image.init()  # else Pillow knows only five of them
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    kind = "jpeg" if image.format == "MPO" else image.format.lower()
    if image.format == "MPO":  # a photograph with its gain map or preview behind it
        image.seek(0)
    else:
        image.seek(choose_frame(getattr(image, "n_frames", 1), frame, image.format))
    if (
        image.format == "PNG"
        and image.mode in ("RGB", "RGBA", "LA")
        and ";16" in str(image.tile[:1])
    ):
        raise DataError(
            "a PNG with 16 bits a colour, of which only the upper 8 can be read; save it as grey"
        )
    lies = exif_orientation(image) >= 5
    full = (image.width, image.height) if lies else (image.height, image.width)
    check_size(*full)
    if at_least is not None:  # by 2, 4 or 8 while it decodes: several times faster
        image.draft("L", at_least if lies else at_least[::-1])
    return pillow_raw(image, kind)._replace(full=full)


# %%
file = io.BytesIO()
Image.fromarray(np.tile(letter, (60, 60))).save(file, "JPEG")
small = read_raster(file.getvalue(), at_least=(100, 70))
print(small.pixels.shape, "decoded of", small.full)
assert small.pixels.shape == (105, 75)


# %% [markdown]
# ## TIFF
# tifffile reads the tags of every page. The page that is meant is the one that is no preview, by its tag (`NewSubfileType`) or, where no page says so, the first if all others are smaller. Two full pages are a stack.

# %%
#| exports
def is_preview(
    page: tifffile.TiffPage,
) -> bool:
    "Whether the page says that it is a smaller copy, or a transparency mask, of another."
    old = page.tags.get(255)
    return bool(int(page.subfiletype or 0) & 5) or (old is not None and old.value == 2)


def full_page(
    pages: Sequence[tifffile.TiffPage],
    frame: int | None,  # asked for, from 0
) -> int:
    "Index of the one page that is the picture; DataError for a stack."
    sizes = [page.imagelength * page.imagewidth for page in pages]
    full = [i for i, page in enumerate(pages) if not is_preview(page)] or list(range(len(pages)))
    if frame is None and len(full) > 1 and sizes[full[0]] > max(sizes[i] for i in full[1:]):
        return full[0]
    return full[choose_frame(len(full), frame, "TIFF")]


# %% [markdown]
# Damaged files promise more than they hold; so the promise is checked before memory is asked for.

# %%
#| exports
PACKED_AT_MOST = 1500  # bytes that one byte of a compressed strip can become


def check_page(
    page: tifffile.TiffPage,
    length: int,  # of the file, bytes
) -> None:
    "DataError where a page is too large, has depth, or lies outside of its file."
    layers = page.samplesperpixel * max(1, -(-page.bitspersample // 8))
    check_size(page.imagelength, page.imagewidth, layers)
    if page.imagedepth > 1:
        raise DataError("this TIFF is a volume; save one slice of it")
    strips = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    wanted = page.imagelength * page.imagewidth * page.samplesperpixel * page.bitspersample // 8
    held = sum(count for _, count in strips) * (1 if page.compression == 1 else PACKED_AT_MOST)
    if not strips or held < wanted or any(at + count > length for at, count in strips):
        raise DataError("a TIFF whose pixels are not all there; is it complete?")


# %% [markdown]
# Grey pages without compression or with *deflate* are decoded by tifffile, which knows every depth; the rest by Pillow, which knows LZW, JPEG and fax. Pillow gets a copy that says nothing of orientation and zero-is-white, so that both give the bare numbers.

# %%
#| exports
PHOTOMETRIC = 262


def page_by_tifffile(
    page: tifffile.TiffPage,
) -> np.ndarray:  # (H, W) or (H, W, samples)
    """The numbers as stored.

    DataError for several grey values a pixel.
    """
    pixels = page.asarray()
    if page.axes.startswith("S") and pixels.ndim == 3:
        pixels = np.moveaxis(pixels, 0, -1)
    if page.photometric < 2 and pixels.ndim == 3:  # grey, and opacity
        if pixels.shape[2] > 2:
            raise DataError(
                f"a TIFF with {pixels.shape[2]} grey values a pixel is no single image; split it up"
            )
        pixels = pixels[..., 0]
    return pixels


def page_by_pillow(
    data: bytes,
    file: tifffile.TiffFile,
    index: int,
) -> Raw:  # not turned
    """The numbers as stored, from a copy of the file without tags that Pillow would half obey.

    DataError for what Pillow would cut to 8 bits.
    """
    page, copy = file.pages[index], bytearray(data)
    for code, plain in ((ORIENTATION, 1), (PHOTOMETRIC, max(int(page.photometric), 1))):
        if (tag := page.tags.get(code)) is not None and tag.count == 1 and int(tag.dtype) == 3:
            copy[tag.valueoffset:tag.valueoffset + 2] = struct.pack(f"{file.byteorder}H", plain)
    image = Image.open(io.BytesIO(copy), formats=["TIFF"])
    image.seek(index)
    if page.photometric == 2 and page.bitspersample > 8:
        raise DataError("a compressed TIFF with more than 8 bits a colour; save it as grey, or "
                        "without compression")
    raw = pillow_raw(image, "tiff", 1)
    pixels, stored = raw.pixels, page.dtype
    if stored is not None and pixels.dtype.itemsize == stored.itemsize and pixels.dtype != bool:
        pixels = pixels.view(stored.newbyteorder("="))  # Pillow knows few signs
    if page.bitspersample in (2, 4) and raw.palette is None:
        pixels = pixels // (255 // (2**page.bitspersample - 1))  # Pillow stretches them
    return raw._replace(pixels=pixels)


# %%
#| exports
def read_tiff(
    data: bytes,
    frame: int | None = None,  # of a stack, from 0, previews not counted
) -> Raw:
    """The one page of a TIFF that is the picture, by its tags.

    DataError for a damaged file, or one without a picture.
    """
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        index = full_page(list(islice(file.pages, 64)), frame)
        page = file.pages[index]
        check_page(page, len(data))
        plain = page.compression in (1, 8, 32946) and page.photometric in (0, 1, 2) and (
            page.photometric < 2 or page.bitspersample != 8)
        raw = None
        if plain:
            try:
                raw = Raw(page_by_tifffile(page), "tiff")
            except DataError:
                raise
            except Exception:  # 12 bits or a predictor that only imagecodecs knows
                raw = None
        raw = raw or page_by_pillow(data, file, index)
        orientation = page.tags.get(ORIENTATION)
        negative = page.photometric == 0
    pixels = positive(raw.pixels) if negative else raw.pixels
    pixels = upright(plain_array(pixels), orientation.value if orientation else 1)
    return raw._replace(pixels=pixels, was_negative=negative, full=pixels.shape[:2])


# %% [markdown]
# The same radiograph in every depth, lying and negative, with its preview first:

# %%
stored = np.rot90(positive(letter)).repeat(3, 0).repeat(3, 1)
for depth in (np.uint8, np.uint16, np.int16, np.uint32, np.float64):
    file = io.BytesIO()
    tags = [(ORIENTATION, 3, 1, 6, True)]
    with tifffile.TiffWriter(file) as writer:
        writer.write(
            stored[::3, ::3].astype(depth), photometric="miniswhite", subfiletype=1, extratags=tags
        )
        writer.write(stored.astype(depth), photometric="miniswhite", extratags=tags)
    raw = read_tiff(file.getvalue())
    assert np.array_equal(raw.grey(), letter.repeat(3, 0).repeat(3, 1)), depth

# %%
import matplotlib.pyplot as plt

# %%
#| fig-alt: "Two pictures of the letter F: as a TIFF stores it, lying on its side with white and black exchanged, and as it is read, upright and bright on dark."
fig, axes = plt.subplots(1, 2, figsize=(4, 1.8), layout="constrained")
for axis, picture, title in zip(axes, (stored, raw.grey()), ("as stored", "as read"), strict=True):
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()
