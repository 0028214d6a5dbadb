# %% [markdown]
# # DICOM
# > A hospital's radiograph as the 256 shades that its screen would show, and nothing of its patient

# %% [markdown]
# A DICOM file holds stored values, and half a dozen instructions that turn them into a picture: which bits count, how to rescale, which window to look through, whether white is zero. pydicom parses the file, pylibjpeg's codecs decode it. The codecs were chosen by trying: 300 mutations each of a small JPEG-lossless and JPEG-LS stream made GDCM abort or crash three times; imagecodecs crashed once, and ran for more than ten seconds on 52 of the JPEG-LS ones; pylibjpeg gave a picture or an error each time. It decodes every file of our samples but one, a 12-bit JPEG whose scan header breaks the standard, which is put right below. It is therefore named explicitly: pydicom would take whatever else is installed, such as pyjpegls, which comes with highdicom and was still busy after four seconds with 21 of 100 mutations. RLE is left to pydicom itself, since pylibjpeg's decoder in Rust *panics* on damaged data, past every `except Exception`. Names, numbers and dates are never looked at, and no message quotes what a header holds.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/dicom.ipynb).

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks,medical] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp io.dicom

# %%
#| export
import io
import re
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from verdiff.files import DataError
from verdiff.io.dicom_display import numbers, shades
from verdiff.io.grey import Raw, check_size, choose_frame, extra

# %% [markdown]
# ## The header
# Files without preamble or meta header are common, and a deflated one can promise gigabytes.

# %%
#| exports
DEFLATED = b"1.2.840.10008.1.2.1.99"
INFLATED_AT_MOST = 1 << 30  # bytes


def check_deflated(
    data: bytes,
) -> None:
    "DataError where the inflated data set would be larger than `INFLATED_AT_MOST`."
    if data[128:132] != b"DICM" or DEFLATED not in data[:1024]:
        return
    start, engine, size = 144 + int.from_bytes(data[140:144], "little"), zlib.decompressobj(-15), 0
    rest = data[start:]
    while rest and not engine.eof and size <= INFLATED_AT_MOST:
        size += len(engine.decompress(rest, 1 << 24))
        rest = engine.unconsumed_tail
    if size > INFLATED_AT_MOST:
        raise DataError("a deflated DICOM file that is too large; save it uncompressed")


# %%
#| exports
SEQUENTIAL = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")  # JPEG baseline and extended


def mend_scan(
    stream: bytes,  # a JPEG
) -> bytes:
    """A sequential JPEG whose scan header says 0 to 63, as it must.

    An encoder that is still around writes 0 to 0 in 12-bit files. Most decoders do not look;
    pylibjpeg's does.
    """
    at = 2
    while at + 4 <= len(stream) and stream[at] == 0xFF and stream[at + 1] != 0xDA:
        at += 2 + int.from_bytes(stream[at + 2:at + 4], "big")
    end = at + 2 + int.from_bytes(stream[at + 2:at + 4], "big")
    if stream[at:at + 2] != b"\xff\xda" or stream[end - 3:end] != b"\0\0\0":
        return stream
    return stream[:end - 3] + b"\0\x3f\0" + stream[end:]


# %%
scan = b"\xff\xd8\xff\xda\0\x08\1\1\0"  # start, scan header of one component
assert (
    mend_scan(scan + b"\0\0\0data") == scan + b"\0\x3f\0data" == mend_scan(scan + b"\0\x3f\0data")
)


# %% [markdown]
# In a damaged file one field can swallow the next, and the "kind of object" hold a patient's name. So words of a header are repeated only where they are words of the standard.

# %%
#| exports
KINDS = (
    "MONOCHROME1",
    "MONOCHROME2",
    "PALETTE COLOR",
    "RGB",
    "YBR_FULL",
    "YBR_FULL_422",
    "YBR_PARTIAL_422",
    "YBR_PARTIAL_420",
    "YBR_ICT",
    "YBR_RCT",
    "XYB",
)  # photometric interpretations


def known_name(
    uid: Any,
) -> str:
    "The standard's name of an object's class."
    name = str(getattr(uid, "name", uid))
    return name if uid and name != str(uid) else "of an unknown kind"


# %%
#| exports
def dataset_of(
    data: bytes,  # of a DICOM file
) -> Any:  # pydicom's Dataset, with pixels and a transfer syntax
    "DataError for what is no DICOM or holds no pixels."
    pydicom = extra("pydicom")
    check_deflated(data)
    try:
        ds = pydicom.dcmread(io.BytesIO(data), force=True)
        if not getattr(ds.file_meta, "TransferSyntaxUID", None):
            implicit, little = ds.original_encoding
            ds.file_meta.TransferSyntaxUID = (
                pydicom.uid.ImplicitVRLittleEndian if implicit else
                pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian)
        size = int(ds.get("Rows") or 0), int(ds.get("Columns") or 0)
        what = known_name(ds.get("SOPClassUID"))
        if "PixelData" in ds:
            check_size(*size)
            check_size(1, frame_count(ds), 16)
        if "PixelData" in ds and ds.file_meta.TransferSyntaxUID in SEQUENTIAL:
            encaps = extra("pydicom.encaps")
            frames = encaps.generate_frames(ds.PixelData, number_of_frames=frame_count(ds))
            ds.PixelData = encaps.encapsulate([mend_scan(frame) for frame in frames])
    except DataError:
        raise
    except Exception as error:  # pydicom raises whatever its parts raise
        raise DataError(f"damaged, or no DICOM file after all ({type(error).__name__}); is it "
                        "complete?") from None
    if "PixelData" not in ds:
        raise DataError(f"a DICOM file without pixels ({what}); give the image itself")
    return ds


def frame_count(
    ds: Any,
) -> int:
    "Pictures in the file."
    return max(1, int(ds.get("NumberOfFrames") or 1))


# %%
#| exports
def check_grey(
    ds: Any,
) -> None:
    "DataError for a colour picture, and for a segmentation that is no picture."
    kind, what = str(ds.get("PhotometricInterpretation")), known_name(ds.get("SOPClassUID"))
    if ds.get("SamplesPerPixel", 1) != 1 or kind not in KINDS[:2]:
        raise DataError(
            f"a DICOM picture in colours ({kind if kind in KINDS else 'unknown'}, {what}); "
            "verdiff reads grey radiographs, CT and MR"
        )
    if ds.get("BitsAllocated") == 1 or ds.get("Modality") == "SEG":
        raise DataError("a DICOM segmentation, no image; give the image that it belongs to")


# %% [markdown]
# Enhanced multi-frame files keep a frame's window, rescale and spacing in *functional groups*: one for all frames, one a frame. `frame_header` brings them to where a plain file has them.

# %%
#| exports
WANTED = (
    "Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation PhotometricInterpretation "
    "RescaleSlope RescaleIntercept ModalityLUTSequence WindowCenter WindowWidth VOILUTFunction "
    "VOILUTSequence PixelPaddingValue PixelPaddingRangeLimit PixelSpacing ImagerPixelSpacing "
    "NominalScannedPixelSpacing SliceThickness ImagePositionPatient ImageOrientationPatient"
).split()


def frame_header(
    ds: Any,  # pydicom's Dataset
    frame: int,
) -> Any:  # pydicom's Dataset, with a few tags only
    "What is needed to show one frame, and to find its place."
    view = extra("pydicom").Dataset()
    for word in WANTED:
        if word in ds:
            view[word] = ds[word]
    for name, at in (
        ("SharedFunctionalGroupsSequence", 0),
        ("PerFrameFunctionalGroupsSequence", frame),
    ):
        groups = ds.get(name) or []
        for group in groups[at] if at < len(groups) else ():
            for element in (group.value[0] if group.VR == "SQ" and group.value else ()):
                if element.keyword in WANTED:
                    view[element.keyword] = element
    return view


# %% [markdown]
# ## Stored values
# Codecs give all bits that were allocated; those above the stored ones may hold an overlay, and a signed number of 12 bits has to be told so.

# %%
#| exports
def stored_bits(
    pixels: np.ndarray,  # integers as decoded
    view: Any,  # of `frame_header`
) -> np.ndarray:
    "The bits that count, with their sign."
    allocated = pixels.dtype.itemsize * 8
    stored = int(view.get("BitsStored") or allocated)
    high = int(view.get("HighBit", stored - 1))
    if not 1 <= stored <= high + 1 <= allocated:
        return pixels
    kind = f"{'i' if view.get('PixelRepresentation') else 'u'}{pixels.dtype.itemsize}"
    return (pixels << (allocated - 1 - high)).astype(kind) >> (allocated - stored)


# %%
twelve = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 1}
assert stored_bits(np.uint16([0xF001, 0x0FFF]), twelve).tolist() == [1, -1]  # four bits of overlay


# %%
#| exports
RLE = "1.2.840.10008.1.2.5"


def decode_frame(
    ds: Any,  # pydicom's Dataset
    frame: int,
) -> np.ndarray:  # integers (H, W) as stored
    "One frame, by pydicom itself or pylibjpeg; DataError for a broken one."
    pixels = extra("pydicom.pixels")
    syntax, how = ds.file_meta.TransferSyntaxUID, {}
    try:
        if syntax == RLE:
            how = {"decoding_plugin": "pydicom"}
        elif syntax.is_compressed and not syntax.is_deflated:
            extra("pylibjpeg")
            how = {"decoding_plugin": "pylibjpeg"}
        array = pixels.pixel_array(ds, index=frame, raw=True, **how)
    except DataError:
        raise
    except Exception as error:  # pydicom's words may quote a header, the codec's do not
        text = str(error)
        why = re.search(r"pylibjpeg: (.{1,120})", text)
        lacks = "missing" in text.lower() and "dependenc" in text.lower()
        hint = '; pip install "verdiff[medical]"' if lacks else "; is it complete?"
        raise DataError(f"its pixels cannot be decoded ({why[1] if why else type(error).__name__})"
                        f"{hint}") from None
    if array.ndim != 2 or array.dtype.kind not in "biu":
        raise DataError(f"its pixels are no single grey picture ({array.shape}, {array.dtype})")
    return array.astype(array.dtype.newbyteorder("="))


# %% [markdown]
# ## Its place
# The distance between pixels, where the file tells it: in the body, or at least at the detector.

# %%
#| exports
def spacing_of(
    view: Any,
) -> tuple[tuple[float, float] | None, tuple[str, ...]]:  # mm between rows and columns; notes
    "None, and a note, where it is missing, zero or no number."
    for word, note in (
        ("PixelSpacing", ()),
        (
            "ImagerPixelSpacing",
            ("its spacing is that of the detector, so lengths in the body are somewhat smaller",),
        ),
        ("NominalScannedPixelSpacing", ("its spacing is that of the scanned film",)),
    ):
        found = numbers(view.get(word))
        if len(found) == 2 and np.isfinite(found).all() and min(found) > 0:
            return (found[0], found[1]), note
    return None, ("it tells no pixel spacing, so lengths are in pixels",)


PLACE = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
)


def place_of(
    ds: Any,
    view: Any,
    frame: int,
) -> dict[str, Any]:
    "What a DICOM segmentation refers to the picture by: UIDs, geometry, nothing of the patient."
    found = {word: str(ds.get(word) or "") for word in PLACE}
    about: dict[str, Any] = {
        word: uid for word, uid in found.items() if re.fullmatch(r"[0-9.]{1,64}", uid)
    }
    about |= (
        {"Modality": modality}
        if re.fullmatch("[A-Z]{2,4}", modality := str(ds.get("Modality")))
        else {}
    )
    about |= {"Rows": int(ds.Rows), "Columns": int(ds.Columns), "frame": frame,
              "frames": frame_count(ds)}
    for word, count in (
        ("ImagePositionPatient", 3),
        ("ImageOrientationPatient", 6),
        ("PixelSpacing", 2),
        ("SliceThickness", 1),
    ):
        found = numbers(view.get(word))
        if len(found) == count and np.isfinite(found).all():
            about[word] = found
    return about


# %% [markdown]
# ## The reader

# %%
#| exports
def frame_raw(
    ds: Any,
    frame: int,
    window: int | tuple[float, float] | None = None,
    stored: bool = False,  # labels of a mask: no window, no units
) -> Raw:
    """One frame of a data set.

    DataError for a damaged header or pixels that cannot be shown.
    """
    try:
        view, little = frame_header(ds, frame), ds.original_encoding[1] is not False
        pixels = stored_bits(decode_frame(ds, frame), view)
        spacing, notes = spacing_of(view)
        if not stored:
            pixels, more = shades(pixels, view, little, window)
            notes += more
        negative = stored and str(view.PhotometricInterpretation) == "MONOCHROME1"
        about = place_of(ds, view, frame)
    except DataError:
        raise
    except Exception as error:  # a header's words are not quoted
        raise DataError(
            f"its DICOM header is damaged ({type(error).__name__}); export it again"
        ) from None
    pixels = ~pixels if negative else pixels
    return Raw(pixels, "dicom", None, negative, pixels.shape, spacing, about, notes)


# %%
#| exports
def read_dicom(
    data: bytes,  # of a DICOM file
    frame: int | None = None,  # of a multi-frame file, from 0
    window: int | tuple[float, float] | None = None,  # which of its windows, or (centre, width)
    stored: bool = False,  # labels of a mask: no window, no units
) -> Raw:
    "A grey DICOM picture; DataError in words that hold nothing of the patient."
    ds = dataset_of(data)
    check_grey(ds)
    return frame_raw(ds, choose_frame(frame_count(ds), frame, "DICOM"), window, stored)


def read_frames(
    data: bytes,
    window: int | tuple[float, float] | None = None,
) -> Iterator[Raw]:
    "Each frame of a DICOM file, one at a time."
    ds = dataset_of(data)
    check_grey(ds)
    for frame in range(frame_count(ds)):
        yield frame_raw(ds, frame, window)


# %% [markdown]
# A phantom of an R, written with white as zero, in 12 of 16 bits with an overlay above them, and read:

# %%
import matplotlib.pyplot as plt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

# %%
made = Dataset()
made.file_meta = FileMetaDataset()
made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
made.Rows, made.Columns, made.SamplesPerPixel, made.PixelRepresentation = 40, 30, 1, 0
made.BitsAllocated, made.BitsStored, made.HighBit = 16, 12, 11
made.PhotometricInterpretation, made.PixelSpacing = "MONOCHROME1", [0.2, 0.2]
made.WindowCenter, made.WindowWidth = [2048, 500], [4096, 100]
slope = np.add.outer(np.arange(40) * 60, np.arange(30) * 50).astype(np.uint16)
overlay = np.uint16(0x8000) * (np.add.outer(np.arange(40), np.arange(30)) % 7 == 0)
made.PixelData = (4095 - slope | overlay).tobytes()
file = io.BytesIO()
made.save_as(file, implicit_vr=False, little_endian=True)
shown = read_dicom(file.getvalue())
assert np.abs(shown.pixels - slope / 4095 * 255).max() < 0.51 and shown.spacing == (0.2, 0.2)

# %%
#| fig-alt: "Two squares of grey: the stored values with diagonal stripes of an overlay, dark at the lower right; and the picture as read, without stripes, bright at the lower right."
fig, axes = plt.subplots(1, 2, figsize=(4, 2.4), layout="constrained")
for axis, picture, title in zip(
    axes, (4095 - slope | overlay, shown.pixels), ("stored", "read"), strict=True
):
    axis.imshow(picture, cmap="gray")
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()
