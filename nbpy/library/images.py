# %% [markdown]
# # Images
# > Whatever a radiograph or a mask comes as

# %%
#| default_exp io.images

# %%
#| export
import io
import itertools
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from verdiff.files import DataError

# %%
import tempfile

import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
folder = Path(tempfile.mkdtemp())

# %%
#| export
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

# %% [markdown]
# One canvas also wants one scale of grey. The X-ray set is 8-bit JPEG, but detectors count in 12 or 14 bits, and hospitals export 16-bit files. Here is the wave with 12 bits and one far brighter lead marker (a square for the usual "R"), and two naive ways back to 8 bits: divide by 256, or stretch minimum and maximum to black and white.

# %%
deep = np.asarray(wave).astype(np.uint16) * 9 + 400
deep[40:70, 15:45] = 60_000
naive = (deep / 256).astype(np.uint8)
stretched = (255.0 * (deep - deep.min()) / np.ptp(deep)).astype(np.uint8)


# %% [markdown]
# Both leave little but the marker (the picture below): the film uses a small part of the 16 bits. The cure is a *window*: the 0.5th percentile becomes black, the 99.5th white, and what lies outside saturates.

# %%
#| export
def to_uint8(
    pixels: np.ndarray,  # grey values of any kind, (H, W)
    window: tuple[float, float] = (0.5, 99.5),  # percentiles that become black and white
) -> np.ndarray:  # uint8, (H, W)
    """Grey values as the networks know them, 0 to 255.

    uint8 passes unchanged, bool and floats in [0, 1] are scaled, everything else (12 or 16 bits,
    signed, any float) is windowed between two percentiles. NaN and infinity: DataError.
    """
    if pixels.dtype == np.uint8:
        return pixels
    pixels = pixels.astype(np.float64)
    if not np.isfinite(pixels).all():
        raise DataError("the image holds NaN or infinite values; replace them")
    unit = pixels.min() >= 0 and pixels.max() <= 1
    low, high = (0.0, 1.0) if unit else np.percentile(pixels, window)
    if high <= low:  # nearly constant: fall back on the whole range
        low, high = pixels.min(), max(pixels.max(), pixels.min() + 1)
    return np.rint(255 * np.clip((pixels - low) / (high - low), 0, 1)).astype(np.uint8)


# %%
windowed = to_uint8(deep)
fig, axes = plt.subplots(1, 4, figsize=(5, 3.2), layout="constrained")
pictures = {"8 bits": wave, "16 bits / 256": naive, "min to max": stretched, "window": windowed}
for axis, (title, picture) in zip(axes, pictures.items()):
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
    axis.set_title(title, fontsize=8)
    axis.set_axis_off()
levels = [len(np.unique(picture)) for picture in (naive, stretched, windowed)]
print("grey levels that are left:", levels)
assert levels[2] > 100 > max(levels[:2])

# %%
#| export
IMAGE_TROUBLE = (UnidentifiedImageError, Image.DecompressionBombError, struct.error, zlib.error,
                 OSError, EOFError, SyntaxError, ValueError, IndexError, KeyError, TypeError,
                 OverflowError)


def decode(
    data: bytes,  # of an image file
    where: str,  # to name in errors
    at_least: tuple[int, int] | None = None,  # (height, width): decode a JPEG no larger than needed
    grey: bool = True,  # False: keep the picture's own mode
) -> tuple[Image.Image, tuple[int, int]]:  # mode "L", and the (height, width) of the original
    "An image file as a grey picture; deep files are windowed; DataError names what is no image."
    try:
        image = Image.open(io.BytesIO(data))
        height, width = image.height, image.width
        if at_least is not None:
            image.draft("L", at_least[::-1])  # by 2, 4 or 8 while it decodes: several times faster
        if grey and image.mode[0] in "IF":
            image = Image.fromarray(to_uint8(np.asarray(image)))
        image.load()
        return image.convert("L") if grey else image, (height, width)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except IMAGE_TROUBLE as error:
        why = "not an image" if isinstance(error, UnidentifiedImageError) else f"damaged ({error})"
        raise DataError(f"{where}: {why}; replace the file or take it out of the set") from None


# %%
Image.fromarray(deep).save(folder / "deep.png")
assert np.array_equal(decode((folder / "deep.png").read_bytes(), "deep.png")[0], windowed)
print(complaint(lambda: decode(b"Dear colleague, ...", "film.jpg")))


# %% [markdown]
# Pillow reads the files, tifffile those that Pillow cannot (16 bits per colour). Easily missed: the
# EXIF orientation is obeyed, a TIFF that says "white is zero" is inverted, and one that is a stack of pages is refused, since nobody knows which page is meant.

# %%
#| export
def image_from_array(
    pixels: np.ndarray,  # (H, W), (1, H, W), (H, W, 1), (H, W, 3) or (H, W, 4)
) -> Image.Image:  # mode "L"
    "A grey image from an array; colours become grey, what is no picture is refused."
    pixels = np.asarray(pixels)
    if pixels.ndim not in (2, 3) or 0 in pixels.shape or pixels.dtype.kind not in "biuf":
        raise DataError(f"an array of shape {pixels.shape} and type {pixels.dtype} is no image; "
                           "give (height, width) or (height, width, 3)")
    if pixels.ndim == 3 and pixels.shape[0] == 1:
        pixels = pixels[0]
    elif pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    elif pixels.ndim == 3 and pixels.shape[2] in (3, 4):
        if pixels.dtype == np.uint8:
            return Image.fromarray(np.ascontiguousarray(pixels[..., :3])).convert("L")
        pixels = pixels[..., :3] @ np.array([0.299, 0.587, 0.114])  # luma, ITU-R 601
    elif pixels.ndim == 3:
        raise DataError(f"an array of shape {pixels.shape} is no single image; split it up")
    return Image.fromarray(np.ascontiguousarray(to_uint8(pixels)))


# %%
(
    image_from_array(np.zeros((40, 30, 3))).size,
    image_from_array(np.ones((1, 40, 30), bool)).getextrema(),
)


# %%
#| export
def refuse_a_stack(shapes: list[Any]) -> None:
    "DataError for a TIFF whose second page is as large as its first: no preview."
    if len(shapes) > 1 and shapes[0] == shapes[1]:
        raise DataError("this TIFF is a stack of several pages; save the page that you mean as a "
                        "file of its own")


# %%
#| export
BITS, PHOTOMETRIC = 258, 262  # tags of TIFF


def read_with_pillow(
    path: Path,  # PNG, JPEG, TIFF or what else Pillow knows
) -> Image.Image:  # mode "L"
    "One image file as 8-bit grey; deeper files are windowed. Errors are Pillow's."
    with Image.open(path) as file:
        tags = getattr(file, "tag_v2", {})
        bits, white_is_zero = np.max(tags.get(BITS, 8)), tags.get(PHOTOMETRIC) == 0
        if tags:
            refuse_a_stack([page.size for page in itertools.islice(ImageSequence.Iterator(file), 2)])
            file.seek(0)
        colours = file.mode in ("RGB", "RGBA", "LA")
        if file.format == "PNG" and colours and ";16" in str(file.tile[:1]):
            raise DataError("a PNG with 16 bits a colour, of which only the upper 8 can be read; "
                            "save it as grey")
        image = ImageOps.exif_transpose(file)
        if image.mode[0] in "IF":  # 16 or 32 bits
            pixels = np.asarray(image)
            return image_from_array(pixels.max() - pixels if white_is_zero else pixels)
        return image.convert("L") if bits <= 8 else read_tiff(path)  # Pillow cuts colours to 8 bits


# %%
#| export
def read_file(
    path: Path,  # PNG, JPEG, TIFF or what else Pillow and tifffile know
) -> Image.Image:  # mode "L"
    "One image file as 8-bit grey; DataError names what is no image."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow; what matters is an error
            return read_with_pillow(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        return read_tiff(path)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: too large ({error}); give a smaller copy") from None
    except (OSError, SyntaxError, ValueError) as error:
        of_disk = getattr(error, "strerror", None)  # not of Pillow
        hint = "" if of_disk else "; is it complete?"
        raise DataError(f"{path}: cannot be read as an image ({of_disk or error}){hint}") from None


# %%
#| export
def read_tiff(
    path: Path,  # a TIFF that Pillow does not know, for example 16 bits per colour
) -> Image.Image:  # mode "L"
    "The page of a scientific TIFF, by tifffile."
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            refuse_a_stack([page.shape for page in file.pages[:2]])
            return image_from_array(file.pages[0].asarray())
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:
        why = f" ({error})" if path.suffix.lower() in (".tif", ".tiff") else ""
        with open(path, "rb") as file:
            dicom = file.read(132)[128:] == b"DICM"
        kind = "a DICOM file, which verdiff does not read" if dicom else "not an image that can be read"
        raise DataError(f"{path}: {kind}{why}; give a PNG, JPEG or TIFF file") from None


# %%
#| export
def read_image(
    source: Any,  # a path, a PIL image, a numpy array or a tensor
) -> Image.Image:  # mode "L", at the image's own size
    "Whatever a radiograph comes as, as 8-bit grey."
    if isinstance(source, (str, Path)):
        return read_file(Path(source))
    if hasattr(source, "detach"):  # a tensor, wherever it lies
        source = source.detach().cpu()
        source = source.float() if source.is_floating_point() else source
    try:
        if isinstance(source, Image.Image) and source.mode[0] not in "IF" and all(source.size):
            return source.convert("L")
        pixels = np.asarray(source)
    except (TypeError, ValueError) as error:
        raise DataError(f"{type(source).__name__}: not an image ({error})") from None
    return image_from_array(pixels)


# %%
Image.fromarray(phantoms[0].image).save(folder / "plain.png")
assert np.array_equal(read_image(folder / "plain.png"), phantoms[0].image)
assert np.array_equal(read_image(folder / "deep.png"), windowed)
(folder / "letter.png").write_text("Dear colleague, …")
print(complaint(lambda: read_image(folder / "letter.png")))


# %% [markdown]
# In a mask, zero is background and all else vertebra. A lossy JPEG has no clean zeros, so there the threshold is 128; so it is, as a share of the brightest value, where more than 32 grey values tell of a blurred border.

# %%
#| export
def read_mask(
    path: Path,
) -> Image.Image:  # mode "L", 0 and 255
    "A mask file: what is not background becomes 255; DataError names what is no mask."
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    raw, _ = decode(data, str(path), grey=False)
    try:
        refuse_a_stack([page.size for page in itertools.islice(ImageSequence.Iterator(raw), 2)])
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    raw.seek(0)
    raw = ImageOps.exif_transpose(raw)
    values = np.asarray(raw.convert("RGB") if raw.mode == "CMYK" else raw)
    if values.ndim == 3:  # colours, without the opacity
        values = values[..., :len([band for band in raw.getbands() if band != "A"])].max(2)
    low = 127 if path.suffix.lower() in (".jpg", ".jpeg") else 0
    if 0 < values.max() <= low:
        raise DataError(f"{path}: its brightest value is {values.max()}, but a mask in a JPEG must be "
                        "0 and 255, since JPEG blurs smaller numbers; save it as PNG")
    if len(np.unique(values)) > 32:  # more than a label a vertebra
        low = max(low, values.max() / 2)
    return Image.fromarray((values > low).astype(np.uint8) * 255)


# %%
levels = Image.fromarray(np.uint8([[0, 1, 17]])).convert("LA")  # grey and opacity
levels.save(folder / "levels.png")
assert np.asarray(read_mask(folder / "levels.png")).tolist() == [[0, 255, 255]]
Image.fromarray(np.arange(256, dtype=np.uint8)[None]).save(folder / "soft.png")
assert (np.asarray(read_mask(folder / "soft.png")) > 0).sum() == 128
