"Inputs made by hand: bombs, sizes at the limits, archives that want out of their folder, and what was found on the way."
import gzip
import io
import json
import struct
import zipfile
import zlib
from functools import cache

import numpy as np
import tifffile
from formats import dataset, dicom, phantom, tiff
from PIL import Image
from robustness.inputs import (
    images,
    meta,
    model,
    nifti,
    pairs,
    pillow,
    published,
    radiographs,
    zipped,
)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def zeros(count, bits=-15):
    "So many zero bytes, deflated, in no time: the same block again and again."
    engine, block = zlib.compressobj(9, zlib.DEFLATED, -15), bytes(1 << 20)
    one = engine.compress(block) + engine.flush(zlib.Z_FULL_FLUSH)
    body = one * (count >> 20) + engine.compress(bytes(count % (1 << 20))) + engine.flush()
    return body if bits < 0 else b"\x78\xda" + body + struct.pack(">I", (count % 65521) << 16 | 1)


def png(width, height, depth=8, colour=0, rows=None, extra=b""):
    "A PNG that claims a size; its rows are zeros unless given."
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    if rows is None:
        rows = zeros(height * (1 + -(-width * depth * samples // 8)), 15)
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def sparse_tiff(width, height, **tags):
    "A TIFF whose strips all lie on the same few zero bytes."
    data = bytearray(tiff(np.zeros((8, 8), np.uint8), compression="zlib"))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        for name, value in (("ImageWidth", width), ("ImageLength", height), ("RowsPerStrip", height)):
            tag = file.pages[0].tags[name]
            size = struct.calcsize("<" + {3: "H", 4: "I"}[int(tag.dtype)])
            data[tag.valueoffset:tag.valueoffset + size] = min(value, 256**size - 1).to_bytes(size, "little")
    return bytes(data)


def lying_dicom(rows, columns, **tags):
    ds, file = dataset(np.zeros((8, 8), np.uint16), Rows=rows, Columns=columns, **tags), io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


def deflated_bomb(megabytes):
    plain = dicom(np.zeros((8, 8), np.uint8), "deflated")
    start = plain.index(b"1.2.840.10008.1.2.1.99") + 22
    start = next(i for i in range(start, start + 200) if is_deflate(plain[i:]))
    engine = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = engine.compress(zlib.decompress(plain[start:], -15)) + engine.flush(zlib.Z_FULL_FLUSH)
    return plain[:start] + body + zeros(megabytes << 20)


def is_deflate(data):
    try:
        return len(zlib.decompressobj(-15).decompress(data)) > 100
    except zlib.error:
        return False


def nifti_bomb(megabytes):
    "A small volume, and a long tail of zeros behind it in the same stream."
    return gzip.compress(nifti(np.zeros((8, 9, 1), np.uint8))) + gzip.compress(bytes(1 << 20)) * megabytes


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def dicomdir_like():
    ds = dataset(np.zeros((8, 8), np.uint8))
    del ds.PixelData
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


def pictures():
    "Single pictures, each tried by the reader, the mask reader and `verdiff segment`."
    film, _ = phantom()
    wide = np.tile(np.arange(20000, dtype=np.uint32) % 256, (1, 1)).astype(np.uint8)
    found = {
        "empty.png": b"", "zeros.png": bytes(1000), "text.jpg": b"this is no picture\n" * 9, "html.png": b"<!DOCTYPE html>" * 30,
        "one-pixel.png": pillow(Image.new("L", (1, 1)), "PNG"), "one-row.png": pillow(Image.fromarray(wide), "PNG"),
        "one-column.png": pillow(Image.fromarray(wide.T.copy()), "PNG"), "one-row.tif": tiff(wide.astype(np.uint16)),
        "one-pixel.tif": tiff(np.ones((1, 1), np.float32)), "one-pixel.dcm": dicom(np.ones((1, 1), np.uint16)),
        "flat.tif": tiff(np.full((9, 9), 7, np.uint16)), "nan.tif": tiff(np.full((9, 9), np.nan, np.float32)),
        "huge-floats.tif": tiff(np.array([[3e38, -3e38], [0, 1]], np.float32)),
        "inf.tif": tiff(np.array([[np.inf, 0], [0, 1]], np.float32)), "subnormal.tif": tiff(np.full((9, 9), 1e-42, np.float32)),
        "claims-60000.png": png(60000, 60000, rows=zlib.compress(b"")), "claims-20000.png": png(20000, 8000, rows=zlib.compress(b"")),
        "zero-width.png": png(0, 10, rows=zlib.compress(b"")), "bomb-170-megapixels.png": png(13000, 13000),
        "bomb-rgba.png": png(9000, 9000, colour=6), "bomb-60-megapixels-16.png": png(6000, 10000, 16),
        "bomb-text.png": png(8, 8, extra=b"".join(chunk(b"zTXt", b"a\0\0" + zeros(60 << 20, 15)) for _ in range(4))),
        "bomb-profile.png": png(8, 8, extra=chunk(b"iCCP", b"a\0\0" + zeros(200 << 20, 15))),
        "sparse.tif": sparse_tiff(60000, 60000), "sparse-13000.tif": sparse_tiff(13000, 13000), "claims-wide.tif": sparse_tiff(4000000000, 1),
        "loop.tif": loop_tiff(), "lying.dcm": lying_dicom(65535, 65535), "zero-rows.dcm": lying_dicom(0, 8),
        "many-frames.dcm": lying_dicom(8, 8, NumberOfFrames=2**31 - 1), "no-pixels.dcm": dicomdir_like(), "bomb.dcm": deflated_bomb(1500),
        "bomb.nii.gz": nifti_bomb(3000), "lying.mha": meta(film, DimSize="100000 100000"), "negative.mha": meta(film, DimSize="-8 -8"),
        "elsewhere.mhd": b"NDims = 2\nDimSize = 8 8\nElementType = MET_UCHAR\nElementDataFile = ../secret.raw\n",
        "itself.mhd": b"NDims = 2\nDimSize = 8 8\nElementType = MET_UCHAR\nElementDataFile = itself.mhd\n",
        "device.mhd": b"NDims = 2\nDimSize = 8 8\nElementType = MET_UCHAR\nElementDataFile = /dev/zero\n",
        "two-in-one.png": images()[0][1] * 2, "jpeg.png": next(d for e, d in images() if e == ".jpg"),
        "pairs.zip": zipped(pairs().items()), "pickle.pt": b"\x80\x02cos\nsystem\nU\x04exit\x85R.", "a" * 200 + ".png": images()[0][1],
        "-o.png": images()[0][1], "über \U0001f9b4 %s {0}.png": images()[0][1], "new\nline.png": images()[0][1][:99],
        ".png": images()[0][1], "..png": images()[0][1], "con.png": images()[0][1]}
    return found


def loop_tiff():
    "Its second page is its first."
    data = bytearray(tiff(np.zeros((8, 8), np.uint8)))
    at = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, at)[0]
    struct.pack_into("<I", data, at + 2 + 12 * count, at)
    return bytes(data)


def archives():
    "Zips for `--data`; only what lies in the published layout may be read, and nothing is written beside it."
    good = list(published().items())
    names = [n for n, _ in good]
    csv = "labels/training/filenames.csv"

    def named(name, where=csv):
        return zipped([(k, v if k != where else name.encode() + b"\n" + v) for k, v in good])

    return {
        "traversal": zipped([("../../" + n, d) for n, d in good]), "absolute": zipped([("/" + n, d) for n, d in good]),
        "drive": zipped([("C:\\" + n, d) for n, d in good]), "backslash": zipped([(n.replace("/", "\\"), d) for n, d in good]),
        "twice": zipped(good + good[:1] + [(csv, b"other.jpg\n")]), "nested": zipped([("inner.zip", zipped(good))]),
        "empty": zipped([]), "folders-only": zipped([(n + "/", b"") for n in names]), "bomb": swollen("data/training/0.jpg"),
        "bomb-table": swollen("labels/training/landmarks.csv"),
        "name-out": named("../../../etc/hostname"), "name-absolute": named("/etc/hostname"), "name-nul": named("a\0b"), "name-empty-part": named(".."),
        "many": zipped([*good, *((f"junk/{i}", b"") for i in range(30000))]), "link": linked(good)}


def swollen(name, megabytes=1500):
    "A sound set but for one file, which holds more zeros than there is memory for."
    memory = io.BytesIO(zipped([f for f in published().items() if f[0] != name]))
    with zipfile.ZipFile(memory, "a") as file:
        info, data = zipfile.ZipInfo(name), zeros(megabytes << 20)
        info.compress_type, info.compress_size, info.file_size, info.CRC = zipfile.ZIP_DEFLATED, len(data), megabytes << 20, 0
        info.header_offset = file.start_dir
        file.fp.seek(file.start_dir)
        file.fp.write(info.FileHeader(False) + data)
        file.filelist.append(info)
        file.start_dir, file._didModify = file.fp.tell(), True
    return memory.getvalue()


def linked(files):
    "A zip whose first image is a symbolic link to a file of the system."
    memory = io.BytesIO(zipped([f for f in files if f[0] != "data/training/0.jpg"]))
    with zipfile.ZipFile(memory, "a") as file:
        info = zipfile.ZipInfo("data/training/0.jpg")
        info.external_attr = 0o120777 << 16
        file.writestr(info, "/etc/hostname")
    return memory.getvalue()


def weights():
    "Models that are none."
    sound, config = model(), json.loads(model()["config.json"])

    def other(**keys):
        return {**sound, "config.json": json.dumps({**config, **keys}).encode()}

    def only(data):
        return {**sound, "model.safetensors": data}

    return {
        "no-weights": {k: v for k, v in sound.items() if k != "model.safetensors"}, "no-config": {k: v for k, v in sound.items() if k != "config.json"},
        "header-too-long": only(safetensors({}, length=2**63)), "header-longer": only(safetensors({}, length=10**6)), "empty": only(b""),
        "offsets": only(safetensors({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, bytes(4))),
        "negative": only(safetensors({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4))),
        "deep-header": only(safetensors(b"[" * 100000)), "deep-config": {**sound, "config.json": b"[" * 100000},
        "config-list": {**sound, "config.json": b"[]"}, "config-null": {**sound, "config.json": b"null"}, "config-nan": other(beta_start=float("nan")),
        "wide": other(channels=[2**31]), "many": other(channels=[8192] * 8), "long": other(timesteps=10**9), "zero": other(channels=[]),
        "text": other(height="32"), "bool": other(height=True), "float": other(height=32.0), "big": other(height=10**9, width=10**9), "in": other(in_channels=8192),
        "code": other(_target_="os.system"), "code-map": other(auto_map={"AutoModel": "evil.py"}), "odd": other(height=33),
        "reference-list": {**sound, "reference.json": b"[]"}, "reference-deep": {**sound, "reference.json": b"[" * 100000},
        "reference-huge": {**sound, "reference.json": sound["reference.json"].replace(b'"films": 9', b'"films": ' + b"9" * 5000)}}


def tables():
    "Sets whose tables say something else than their pictures."
    good, out = published(), {}
    marks, angles, names = (f"labels/training/{n}.csv" for n in ("landmarks", "angles", "filenames"))
    for name, path, text in (
            ("nan", marks, good[marks].replace(b"0.4000", b"nan", 1)), ("infinite", marks, good[marks].replace(b"0.4000", b"inf", 1)),
            ("short", marks, good[marks].rsplit(b",", 1)[0]), ("semicolons", marks, good[marks].replace(b",", b";")),
            ("utf-16", marks, good[marks].decode().encode("utf-16")), ("bom", marks, good[marks].decode().encode("utf-8-sig")),
            ("crlf", marks, good[marks].replace(b"\n", b"\r\n")), ("mac", marks, good[marks].replace(b"\n", b"\r")),
            ("pixels", marks, good[marks].replace(b"0.", b"")), ("one-line", marks, b"1" * (50 << 20)), ("angles-text", angles, b"a,b,c\n" * 4),
            ("angles-swapped", angles, b"5,10,5\n" * 4), ("angles-400", angles, b"400,5,5\n" * 4), ("name-out", names, b"../../../../etc/hostname\n" * 4),
            ("name-absolute", names, b"/etc/hostname\n" * 4), ("name-twice", names, b"0.jpg\n" * 4), ("name-long", names, b"a" * 5000), ("name-nul", names, b"\0\n" * 4),
            ("name-dot", names, b".\n" * 4), ("header", names, b"filename\n" + good[names]), ("empty", names, b""), ("blank", marks, b"\n\n\n")):
        out[name] = {**good, path: text}
    return out


@cache
def cases():
    "name -> (what is tried, files, more words)."
    found = {"sound set": ("set", published(), []), "sound pairs": ("set", pairs(), []), "sound model": ("model", model(), []),
             "sound radiographs": ("calibrate", radiographs(), [])}
    for name, data in pictures().items():
        found[f"image {name}"] = "image", {name: data}, []
        if len(data) < 100_000 or "bomb" in name:
            found[f"segment {name}"] = "segment", {name: data}, []
    found |= {f"zip {name}": ("set", {"set.zip": data}, ["set.zip"]) for name, data in archives().items()}
    found |= {f"model {name}": ("model", files, []) for name, files in weights().items()}
    return found | {f"set {name}": ("set", files, []) for name, files in tables().items()}
