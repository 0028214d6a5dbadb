# %% [markdown]
# # Volume files
# > NIfTI and MetaImage volumes, read block by block, with their place in the body

# %% [markdown]
# CT and MR come as volumes: numbers on a grid, and an affine matrix that says where in the body each number lies. Two thirds of the mistakes that users of such files report are about that matrix, the rest about damaged files. We tried the two usual readers on both kinds. SimpleITK refuses a sheared NIfTI, and gives back the first half of one that is cut off, followed by zeros, without an error; so it does with a compressed `.mha` whose bytes are damaged. nibabel takes every affine, but stops before the checksum of a `.nii.gz`, so a flipped bit passes as a voxel, and it knows no `.mha`. So nibabel reads the headers here, MetaImage's header (a dozen lines of text) is read below, and the voxels of both come as a stream that is followed to its very end, checksum included. A stream also keeps memory flat: no volume is ever held whole unless `read_volume` is asked for it.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/volume_files.ipynb).

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks,medical] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp io.volume_files

# %%
#| export
import gzip
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from verdiff.files import DataError
from verdiff.io.grey import extra
from verdiff.io.grids import Volume, VolumeFile, check_geometry, load

# %% [markdown]
# ## Streams
# `gzip` and `zlib` check their sums only when they are read to the end, so the last thing a stream does is to ask for more.

# %%
#| export
BLOCK = 8 << 20  # bytes that are held at a time, roughly
BROKEN = (EOFError, zlib.error, gzip.BadGzipFile, OSError, MemoryError)


class Inflated:
    "A zlib stream inside a file, read like a file; it ends with its checksum."

    def __init__(self, file: BinaryIO):
        self.file, self.engine = file, zlib.decompressobj(32 + zlib.MAX_WBITS)

    def read(self, count: int) -> bytes:
        "`count` bytes, fewer at the end; EOFError where the stream breaks off before its end."
        parts, have = [], 0
        while have < count and not self.engine.eof:
            packed = self.engine.unconsumed_tail or self.file.read(1 << 18)
            if not packed:
                raise EOFError("the compressed data end too early")
            parts.append(self.engine.decompress(packed, count - have))
            have += len(parts[-1])
        return b"".join(parts)

    def close(self) -> None:
        self.file.close()


# %%
#| export
def stream_blocks(
    path: Path,  # to name in errors
    opened: Callable[[], Any],  # gives something with read and close, at the first voxel
    shape: tuple[int, int, int],
    stored: np.dtype,
    slope: float = 1.0,
    inter: float = 0.0,
) -> Iterator[np.ndarray]:  # (nx, ny, n), first axis fastest in the file
    "The voxels, some planes at a time; DataError where there are too few or a checksum is wrong."
    plane = shape[0] * shape[1] * stored.itemsize
    step = max(1, BLOCK // (shape[0] * shape[1] * 8))  # the same for every type of voxel
    again = "copy or download the file again"
    file = None
    try:
        file = opened()
        for k in range(0, shape[2], step):
            n = min(step, shape[2] - k)
            data = file.read(plane * n)
            if len(data) < plane * n:
                raise DataError(f"{path}: ends in plane {k + len(data) // plane} of {shape[2]}; "
                                f"{again}")
            block = np.frombuffer(data, stored).reshape((*shape[:2], n), order="F")
            yield block if (slope, inter) == (1, 0) else block * slope + inter
        for _ in range(256):  # the checksum comes last
            if not file.read(1 << 18):
                return
        raise DataError(f"{path}: goes on for more than 64 MiB behind its voxels; {again}")
    except BROKEN as error:
        raise DataError(f"{path}: damaged ({error}); {again}") from None
    finally:
        if file is not None:
            file.close()


# %% [markdown]
# ## NIfTI
# `.nii` and `.nii.gz`, version 1 and 2, of either byte order, and pairs of `.hdr` and `.img`. The affine is the *sform* where there is one, else the *qform*; a file with neither does not say which side is which, and a guess would be wrong one time in two (nibabel and SimpleITK guess differently). TotalSegmentator writes the names of its labels into the header; they are kept.

# %%
#| export
UNITS = {1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI's codes of metre, mm and micron, in mm


def maybe_gzip(path: Path) -> BinaryIO:
    "The file's content, unpacked if it is packed, whatever its name says."
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else open(path, "rb")


def label_names(header: Any) -> dict[int, str]:
    "Names that a NIfTI's extensions give to its labels, as TotalSegmentator writes them."
    text = " ".join(str(e.get_content()) for e in getattr(header, "extensions", ()))
    found = re.findall(r'<Label Key="(\d+)"[^>]*>\s*<!\[CDATA\[([^\]]*)\]\]>', text)
    return {int(key): name for key, name in found if int(key)}


def nifti_header(
    path: Path,
) -> tuple[Any, Path]:  # nibabel's header, and the file of the voxels
    "DataError for what is no NIfTI after all."
    nib, pair = extra("nibabel"), path.suffix.lower() in (".hdr", ".img")
    try:
        with maybe_gzip(path.with_suffix(".hdr") if pair else path) as file:
            start = file.read(4)
            file.seek(0)
            two = 540 in (int.from_bytes(start, order) for order in ("little", "big"))
            header = (nib.Nifti2Header if two else nib.Nifti1Header).from_fileobj(file, check=False)
            header.get_data_dtype(), header.get_data_shape(), header.get_slope_inter()
            int(header.get_data_offset())
    except (*BROKEN, nib.spatialimages.HeaderDataError, nib.wrapstruct.WrapStructError,
            ValueError, KeyError, OverflowError) as error:
        raise DataError(f"{path}: not readable as NIfTI ({error}); copy it again, or convert "
                        "it") from None
    if bytes(header["magic"])[:3] not in (b"n+1", b"ni1", b"n+2", b"ni2"):
        raise DataError(f"{path}: no NIfTI; convert it to .nii.gz from its source (an Analyze file "
                        "does not say which side is left)")
    return header, path.with_suffix(".img") if pair else path


# %%
#| export
def nifti_file(
    path: Path,
) -> VolumeFile:
    "A .nii, .nii.gz or .hdr/.img; DataError says what is wrong with it."
    header, data = nifti_header(path)
    if not (header["sform_code"] or header["qform_code"]):
        raise DataError(f"{path}: says nothing of its orientation (sform and qform codes are 0); "
                        "convert it again from its source")
    try:
        affine = header.get_best_affine() * 1.0
    except extra("nibabel").spatialimages.HeaderDataError as error:
        raise DataError(f"{path}: its qform is no rotation ({error}); write it again") from None
    affine[:3] *= UNITS.get(int(header["xyzt_units"]) % 8, 1.0)
    shape, affine = check_geometry(path, tuple(header.get_data_shape()), affine)
    stored = header.get_data_dtype()
    if stored.kind not in "iuf":
        raise DataError(f"{path}: its voxels are no plain numbers ({stored}); save it as grey "
                        "values")
    slope, inter = (1.0, 0.0) if None in (got := header.get_slope_inter()) else got
    offset = max(int(header.get_data_offset()), 0)

    def opened() -> BinaryIO:
        file = maybe_gzip(data)
        file.seek(offset)
        return file

    plain = (slope, inter) == (1, 0)
    return VolumeFile(path, shape, affine, stored if plain else np.dtype(np.float64),
                      lambda: stream_blocks(path, opened, shape, stored, slope, inter),
                      label_names(header))


# %% [markdown]
# ## MetaImage
# `.mha`, and `.mhd` with its `.raw` or `.zraw`: lines of `key = value`, which may end as in DOS, then the voxels. Row *i* of `TransformMatrix` is the direction of axis *i*, and directions count to the left and backwards (L, P, S), the negative of NIfTI's.

# %%
#| export
META_TYPES = {"CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4",
              "LONG": "i4", "ULONG": "u4", "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4",
              "DOUBLE": "f8"}


def meta_header(
    path: Path,
) -> tuple[dict[str, str], int]:  # keys and values; bytes until after the last line
    """The text at the start of a MetaImage.

    DataError where it is cut off.
    """
    keys: dict[str, str] = {}
    with open(path, "rb") as file:
        while line := file.readline(4096):
            key, equals, value = line.decode("latin-1").partition("=")
            if not equals or len(keys) > 200:
                break
            keys[key.strip()] = value.strip()
            if key.strip() == "ElementDataFile":
                return keys, file.tell()
    raise DataError(f"{path}: its header is cut off or damaged; copy or download it again")


def meta_affine(
    keys: dict[str, str],
) -> np.ndarray:  # (4, 4) voxel index to mm, R, A, S
    "ValueError where a line does not hold the numbers it should."
    def numbers(names: tuple[str, ...], default: str, count: int) -> np.ndarray:
        text = next((keys[n] for n in names if n in keys), default)
        return np.array(text.split(), float).reshape(count)

    spacing = numbers(("ElementSpacing", "ElementSize"), "1 1 1", 3)
    turn = numbers(("TransformMatrix", "Rotation", "Orientation"), "1 0 0 0 1 0 0 0 1", 9)
    affine = np.eye(4)
    affine[:3, :3] = turn.reshape(3, 3).T * spacing
    affine[:3, 3] = numbers(("Offset", "Position", "Origin"), "0 0 0", 3)
    return np.diag([-1.0, -1, 1, 1]) @ affine


# %%
#| export
def third_axis(
    keys: dict[str, str],  # of a picture with two axes
) -> dict[str, str]:
    "The same picture as a volume of one slice, 1 mm thick."
    out = dict(keys)
    for name in ("ElementSpacing", "ElementSize"):
        if name in keys:
            out[name] = f"{keys[name]} 1"
    for name in ("Offset", "Position", "Origin"):
        if name in keys:
            out[name] = f"{keys[name]} 0"
    for name in ("TransformMatrix", "Rotation", "Orientation"):
        if len(turn := keys.get(name, "").split()) == 4:
            out[name] = f"{turn[0]} {turn[1]} 0 {turn[2]} {turn[3]} 0 0 0 1"
    return out


def meta_file(
    path: Path,
) -> VolumeFile:
    "A .mha or .mhd; DataError says what is wrong with it."
    keys, end = meta_header(path)
    true = {k for k, v in keys.items() if v.lower() in ("true", "1")}
    name, kind = keys["ElementDataFile"], keys.get("ElementType", "").removeprefix("MET_")
    axes = keys.get("DimSize", "").split()
    if len(axes) == 2:  # a picture: one slice
        axes, keys = [*axes, "1"], third_axis(keys)
    if len(axes) != 3:
        raise DataError(f"{path}: has {len(axes)} dimensions; expected one volume of three")
    if kind not in META_TYPES or keys.get("ElementNumberOfChannels", "1") != "1" or (
            "BinaryData" in keys and "BinaryData" not in true):
        raise DataError(f"{path}: its voxels are no plain binary numbers ({kind or 'no type'}); "
                        "save it as grey values")
    if name == "LIST" or "%" in name:
        raise DataError(f"{path}: is spread over many files; save it as one .mha")
    try:
        shape, affine = check_geometry(path, tuple(map(int, axes)), meta_affine(keys))
        skip = int(keys.get("HeaderSize", 0))
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: a number in its header is none ({error})") from None
    big = true & {"BinaryDataByteOrderMSB", "ElementByteOrderMSB"}
    stored = np.dtype(META_TYPES[kind]).newbyteorder(">" if big else "<")
    data, start = (path, end) if name.upper() == "LOCAL" else (path.parent / name, max(skip, 0))
    if not data.is_file():
        raise DataError(f"{path}: its voxels should lie in {name} beside it, which is not there")

    def opened() -> BinaryIO | Inflated:
        file = open(data, "rb")
        last = data.stat().st_size - int(np.prod(shape)) * stored.itemsize
        file.seek(max(last, 0) if skip == -1 else start)
        return Inflated(file) if "CompressedData" in true else file

    return VolumeFile(
        path, shape, affine, stored, lambda: stream_blocks(path, opened, shape, stored)
    )


# %% [markdown]
# ## One door
# What a file is, its first bytes say; its name is not asked.

# %%
#| export
REFUSED = {b"MATLAB": "a MATLAB file, which knows neither spacing nor orientation",
           b"NRRD": "an NRRD file", b"\x89HDF": "an HDF5 or MINC 2 file", b"CDF": "a MINC file"}


def open_volume(
    path: str | Path,
) -> VolumeFile:
    "The header of a volume; DataError in one sentence where it is none, or damaged."
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: is a folder; expected the file of a volume")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
        packed = start[:2] == b"\x1f\x8b"
        if re.match(rb"\s*(ObjectType|NDims|Comment|ObjectSubType)\s*=", start):
            return meta_file(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not start:
        raise DataError(f"{path}: is empty; copy or download it again")
    for magic, what in REFUSED.items():
        if start.startswith(magic):
            raise DataError(f"{path}: {what}; convert it to .nii.gz")
    if packed or path.suffix.lower() in (".nii", ".hdr", ".img") or start[344:347] in (
            b"n+1", b"ni1") or start[4:7] in (b"n+2", b"ni2"):
        return nifti_file(path)
    raise DataError(f"{path}: no volume that verdiff knows; expected NIfTI or MetaImage")



# %%
#| exports
def read_volume(
    path: str | Path,
) -> Volume:
    "The whole volume, axes turned to R, A, S; DataError as in `open_volume`."
    return load(open_volume(path))


# %% [markdown]
# ## Writing
# For phantoms, results and tests.

# %%
#| exports
def write_nifti(
    path: str | Path,  # .nii or .nii.gz; its folder must exist
    array: np.ndarray,  # (i, j, k)
    affine: np.ndarray,  # (4, 4) index to mm, R, A, S
    names: dict[int, str] | None = None,  # of labels, kept in the header as TotalSegmentator does
) -> Path:
    "A NIfTI with sform, and qform where the axes are at right angles."
    nib, unit = extra("nibabel"), affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 1)
    image.set_qform(affine, int(np.allclose(unit.T @ unit, np.eye(3), atol=1e-4)))
    if names:
        text = "".join(f'<Label Key="{k}"><![CDATA[{name}]]></Label>' for k, name in names.items())
        content = f"<CaretExtension><LabelTable>{text}</LabelTable></CaretExtension>".encode()
        image.header.extensions.append(nib.nifti1.Nifti1Extension(0, content))
    nib.save(image, path)
    return Path(path)


# %%
#| exports
def write_meta(
    path: str | Path,  # .mha; its folder must exist
    array: np.ndarray,  # (i, j, k)
    affine: np.ndarray,  # (4, 4) index to mm, R, A, S
) -> Path:
    "A compressed MetaImage, as SPIDER's are."
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    data = zlib.compress(array.astype(array.dtype.newbyteorder("<")).tobytes("F"))
    kind = next(k for k, v in META_TYPES.items() if np.dtype(v) == array.dtype)

    def words(numbers: np.ndarray) -> str:
        return " ".join(repr(float(x)) for x in numbers)

    lines = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": False,
        "CompressedData": True,
        "CompressedDataSize": len(data),
        "TransformMatrix": words((lps[:3, :3] / spacing).T.ravel()),
        "Offset": words(lps[:3, 3]),
        "ElementSpacing": words(spacing),
        "DimSize": " ".join(map(str, array.shape)),
        "ElementType": f"MET_{kind}",
        "ElementDataFile": "LOCAL",
    }
    text = "".join(f"{key} = {value}\n" for key, value in lines.items())
    Path(path).write_bytes(text.encode() + data)
    return Path(path)


# %% [markdown]
# The same voxels through both formats, and a bit flipped in each:

# %%
import tempfile

# %%
folder = Path(tempfile.mkdtemp())
voxels = np.random.default_rng(0).integers(-1000, 2000, (20, 24, 30)).astype(np.int16)
place = np.array([[0, 0.1, -2, 40], [-1, 0, 0, 30], [0, -1.5, -0.1, 20], [0, 0, 0, 1.0]])
for path in (
    write_nifti(folder / "a.nii.gz", voxels, place),
    write_meta(folder / "a.mha", voxels, place),
):
    file = open_volume(path)
    assert np.array_equal(np.concatenate(list(file.blocks()), 2), voxels)
    assert np.allclose(file.affine, place)
    print(
        path.name, file.shape, "turned:", read_volume(path).array.shape, file.spacing.round(2), "mm"
    )

# %%
for name in ("a.nii.gz", "a.mha"):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    try:
        read_volume(folder / name)
        raise AssertionError("a flipped bit went unnoticed")
    except DataError as error:
        print(str(error).replace(str(folder), "..."))
