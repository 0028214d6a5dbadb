"""Phantoms written in every format, for the tests of the readers."""
import io
import os
from functools import cache
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from verdiff.data.landmarks import landmarks_to_mask
from verdiff.data.phantoms import draw_phantom

ORIENTATION = 274
DEPTHS = {  # stored type: what a grey value of 8 bits becomes in it
    "uint8": (1, 0), "int8": (0.5, -64), "uint16": (16, 100), "int16": (16, -2000), "uint32": (70_000, 9),
    "int32": (70_000, -8_000_000), "float32": (0.5, -3), "float64": (1 / 255, 0), "float16": (1, 0),
    "int64": (3, -40), "uint64": (3, 40)}


@cache
def phantom(seed=0, size=(96, 40)):
    """uint8 film and uint8 mask (0, 1) of one size."""
    drawn = draw_phantom(seed, image_size=size)
    mask = landmarks_to_mask(drawn.landmarks, *size)
    return np.asarray(drawn.image), np.asarray(mask, np.uint8)


def deeper(film, depth):
    """The film as numbers of another type."""
    gain, offset = DEPTHS[depth]
    return (film.astype(float) * gain + offset).astype(depth)


def negative(pixels):
    """The numbers that a file stores in which zero is white."""
    if pixels.dtype.kind in "ui":
        info = np.iinfo(pixels.dtype)
        return (info.max - (pixels.astype(object) - info.min)).astype(pixels.dtype)
    white = 1 if pixels.min() >= 0 and pixels.max() <= 1 else pixels.max()
    return (white - pixels).astype(pixels.dtype)


def lying(pixels, orientation):
    """The array that the tag turns upright again (by Pillow's own table, backwards)."""
    t = Image.Transpose
    back = {2: t.FLIP_LEFT_RIGHT, 3: t.ROTATE_180, 4: t.FLIP_TOP_BOTTOM, 5: t.TRANSPOSE, 6: t.ROTATE_90,
            7: t.TRANSVERSE, 8: t.ROTATE_270}
    if orientation == 1:
        return pixels
    index = np.arange(pixels.shape[0] * pixels.shape[1], dtype=np.int32).reshape(pixels.shape[:2])
    moved = np.asarray(Image.fromarray(index).transpose(back[orientation]))
    return pixels.reshape(-1, *pixels.shape[2:])[moved]


def tiff(pixels, orientation=1, white_is_zero=False, before=0, after=0, order="<", big=False, **how):
    """Bytes of a TIFF by tifffile, with previews before and after the page."""
    file = io.BytesIO()
    tags = [(ORIENTATION, 3, 1, orientation, True)]
    kind = "miniswhite" if white_is_zero else "minisblack"
    with tifffile.TiffWriter(file, byteorder=order, bigtiff=big) as writer:
        for page in [1] * before + [0] + [1] * after:
            shown = np.ascontiguousarray(pixels[::4, ::4]) if page else np.ascontiguousarray(pixels)
            writer.write(shown, photometric=kind, subfiletype=page, extratags=tags, metadata=None, **how)
    return file.getvalue()


def pillow_file(pixels, kind, orientation=1, **how):
    """Bytes of what Pillow writes, with EXIF."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[ORIENTATION] = orientation
    if kind != "BMP":
        how["exif"] = exif
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, kind, **how)
    return file.getvalue()


def mutate(data, rng):
    """Bytes flipped, cut off, put in."""
    data, how = bytearray(data), rng.integers(4)
    if how == 0:
        return bytes(data[:rng.integers(len(data))])
    if how == 3:
        at = rng.integers(len(data))
        return bytes(data[:at] + rng.bytes(int(rng.integers(1, 40))) + data[at:])
    end = len(data) if how == 1 else min(len(data), 200)
    for at in rng.integers(0, end, rng.integers(1, 8)):
        data[at] = rng.integers(256)
    return bytes(data)


def samples():
    """The folder of real files, or None."""
    root = Path(__file__).resolve().parents[2]
    named = os.environ.get("VERDIFF_SAMPLES")
    return next((p for p in ([Path(named)] if named else []) + [root.parent / "shared" / "data"] if p.is_dir()), None)


# ---------------------------------------------------------------- DICOM

IDENTITY = {"PatientName": "Secret^Name", "PatientID": "MRN-777", "PatientBirthDate": "19511224", "PatientSex": "F",
            "StudyDate": "20250203", "StudyID": "study-888", "AccessionNumber": "acc-999", "InstitutionName": "St. Hidden"}


def dataset(pixels, **tags):
    """A radiograph as pydicom's Dataset, with a patient in it."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    pixels = np.ascontiguousarray(pixels)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.2", "1.2.826.0.1.3680043.8.498.3"
    ds.Modality = "CR"
    ds.Rows, ds.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        ds.NumberOfFrames = len(pixels)
    bits = pixels.dtype.itemsize * 8
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = bits
    ds.HighBit, ds.PixelRepresentation = bits - 1, int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    for word, value in {**IDENTITY, **tags}.items():
        setattr(ds, word, value)
    return ds


def dicom(pixels, syntax="explicit", **tags):
    """Bytes of a DICOM file in any transfer syntax."""
    from pydicom import uid
    from pydicom.encaps import encapsulate

    ds, file = dataset(pixels, **tags), io.BytesIO()
    kinds = {"explicit": uid.ExplicitVRLittleEndian, "implicit": uid.ImplicitVRLittleEndian, "big": uid.ExplicitVRBigEndian,
             "deflated": uid.DeflatedExplicitVRLittleEndian, "rle": uid.RLELossless, "j2k": uid.JPEG2000Lossless,
             "jpegls": uid.JPEGLSLossless, "jpegll": uid.JPEGLosslessSV1, "bare": uid.ImplicitVRLittleEndian,
             "headless": uid.ExplicitVRLittleEndian}
    if syntax in ("rle", "j2k", "jpegls"):
        ds.compress(kinds[syntax], generate_instance_uid=False)
    if syntax == "jpegll":
        frames = np.reshape(pixels, (-1, ds.Rows, ds.Columns))
        ds.PixelData = encapsulate([jpeg_lossless(frame, ds.BitsStored) for frame in frames])
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    if syntax == "big":
        ds.PixelData = np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder(">")).tobytes()
        ds["PixelData"].VR = "OW" if ds.BitsAllocated > 8 else "OB"
    ds.file_meta.TransferSyntaxUID = kinds[syntax]
    if syntax == "bare":  # no preamble, no meta header
        del ds.file_meta
        ds.save_as(file, implicit_vr=True, little_endian=True, enforce_file_format=False)
        return file.getvalue()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()[132:] if syntax == "headless" else file.getvalue()


class Bits:
    """Bits of a JPEG's scan."""
    def __init__(self):
        self.parts = []

    def add(self, value, count):
        if count:
            self.parts.append(format(value, f"0{count}b"))

    def data(self):
        text = "".join(self.parts)
        text += "1" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")


def segment(marker, body):
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def fixed_codes(kind, count):
    """A Huffman table whose `count` symbols have five bits each."""
    return segment(0xC4, bytes([kind]) + bytes([0, 0, 0, 0, count] + [0] * 11) + bytes(range(count)))


def difference(bits, value):
    """A number as its category and the bits that tell it apart."""
    size = int(abs(value)).bit_length()
    bits.add(size, 5)
    if size < 16:
        bits.add(value if value > 0 else value + (1 << size) - 1, size)


def jpeg_lossless(pixels, depth):
    """Process 14, selection value 1: each pixel's difference to its left neighbour."""
    stored = pixels.astype(np.int64) & ((1 << depth) - 1)
    left = np.empty_like(stored)
    left[:, 1:], left[1:, 0], left[0, 0] = stored[:, :-1], stored[:-1, 0], 1 << (depth - 1)
    bits = Bits()
    for value in ((stored - left + 32768) % 65536 - 32768).ravel().tolist():
        difference(bits, value)
    size = bytes([depth]) + stored.shape[0].to_bytes(2, "big") + stored.shape[1].to_bytes(2, "big")
    return (b"\xff\xd8" + segment(0xC3, size + b"\1\1\x11\0") + fixed_codes(0, 17)
            + segment(0xDA, b"\1\1\0\1\0\0") + bits.data() + b"\xff\xd9")


def jpeg_12_bit(blocks, end=0x3F):
    """Process 4 (extended), 12 bits: flat blocks of 8 x 8 pixels, by their DC coefficients only."""
    bits, before = Bits(), 0
    for value in (8 * (blocks.astype(int) - 2048)).ravel().tolist():
        difference(bits, value - before)
        bits.add(0, 1)  # the end of the block
        before = value
    size = bytes([12]) + (8 * blocks.shape[0]).to_bytes(2, "big") + (8 * blocks.shape[1]).to_bytes(2, "big")
    end_only = segment(0xC4, b"\x10\1" + bytes(15) + b"\0")
    return (b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64) + segment(0xC1, size + b"\1\1\x11\0") + fixed_codes(0, 16)
            + end_only + segment(0xDA, b"\1\1\0\0" + bytes([end]) + b"\0") + bits.data() + b"\xff\xd9")
