"Inputs that nobody should have, each made again from its name: a number, or a word for one that was made by hand."
import gzip
import hashlib
import io
import json
import warnings
import zipfile
import zlib
from functools import cache

import numpy as np
import torch
from formats import deeper, dicom, negative, phantom, pillow_file, tiff
from PIL import Image
from safetensors.torch import save as safe_bytes

from verdiff.networks.config import VerdiffConfig
from verdiff.networks.model import VerdiffNet
from verdiff.segmentation.confidence import TRAITS
from verdiff.settings import load_settings, settings_path

TINY = ["height=32", "width=16", "eval_height=32", "eval_width=16", "channels=4,8", "max_steps=1", "val_images=1",
        "batch_size=2", "sample_steps=1"]
EXTREME = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def pillow(image, kind, **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def nifti(array, affine=None, two=False):
    import nibabel as nib

    made = (nib.Nifti2Image if two else nib.Nifti1Image)(array, np.eye(4) if affine is None else affine)
    made.set_sform(made.affine, 1)
    return made.to_bytes()


def meta(array, packed=False, **lines):
    data = zlib.compress(array.tobytes("F")) if packed else array.tobytes("F")
    words = {"ObjectType": "Image", "NDims": array.ndim, "BinaryData": True, "BinaryDataByteOrderMSB": False,
             "CompressedData": packed, "Offset": " ".join("0" * array.ndim), "ElementSpacing": " ".join("1" * array.ndim),
             "DimSize": " ".join(map(str, array.shape)), "ElementType": "MET_UCHAR", **lines, "ElementDataFile": "LOCAL"}
    return "".join(f"{k} = {v}\n" for k, v in words.items()).encode() + data


@cache
def images():
    "Sound picture files of every kind: (ending, bytes)."
    film, _ = phantom()
    grey, deep = Image.fromarray(film), deeper(film, "uint16")
    colour = grey.convert("RGB")
    volume = np.stack([film] * 3)
    gif = pillow(grey.convert("P"), "GIF")
    animated = pillow(grey, "PNG", save_all=True, append_images=[grey.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    found = [(".png", pillow(grey.convert(mode), "PNG")) for mode in ("L", "1", "P", "RGB", "RGBA", "LA", "I;16")]
    found += [(".png", animated), (".gif", gif), (".bmp", pillow(colour, "BMP")), (".png", pillow(grey, "PPM"))]
    found += [(".jpg", pillow_file(film, "JPEG", 6)), (".jpg", pillow(grey.convert("CMYK"), "JPEG")),
              (".jpg", pillow(colour, "JPEG", progressive=True)), (".webp", pillow(colour, "WEBP")),
              (".jp2", pillow(grey, "JPEG2000"))]
    found += [(".tif", tiff(deeper(film, depth))) for depth in ("uint8", "uint16", "int16", "float32", "float16")]
    found += [(".tif", tiff(deep, 8, True, 1, 1)), (".tif", tiff(film, big=True, order=">")),
              (".tif", tiff(deep, compression="zlib", predictor=True)), (".tif", tiff(film, tile=(16, 16))),
              (".tif", pillow(grey, "TIFF", compression="tiff_lzw")), (".tif", pillow(grey.convert("1"), "TIFF", compression="group4")),
              (".tif", pillow(grey, "TIFF", compression="jpeg")), (".tif", pillow(grey, "TIFF", save_all=True, append_images=[grey]))]
    found += [(".dcm", dicom(deep, syntax)) for syntax in ("explicit", "implicit", "big", "deflated", "rle", "j2k", "bare")]
    found += [(".dcm", dicom(negative(film), PhotometricInterpretation="MONOCHROME1")), (".dcm", dicom(volume)), ("", dicom(film))]
    flat = film.T[..., None].copy()
    found += [(".nii", nifti(flat)), (".nii.gz", gzip.compress(nifti(flat, two=True))), (".nii", nifti(np.asfortranarray(volume.T))),
              (".mha", meta(flat, True)), (".mha", meta(film.T.copy()))]
    return found


@cache
def radiographs():
    "Ten sound radiographs, each another one, in every kind of file: name -> bytes."
    films = [phantom(i)[0] for i in range(10)]
    flat = [f.T[..., None].copy() for f in films]
    data = [pillow(Image.fromarray(films[0]), "PNG"), pillow(Image.fromarray(deeper(films[1], "uint16")), "PNG"),
            pillow_file(films[2], "JPEG"), pillow_file(films[3], "JPEG", 6), tiff(films[4]), tiff(deeper(films[5], "uint16"), 1, True),
            tiff(deeper(films[6], "float32")), dicom(deeper(films[7], "uint16")), nifti(flat[8]), meta(flat[9])]
    ends = ("png", "png", "jpg", "jpg", "tif", "tif", "tif", "dcm", "nii", "mha")
    return {f"{i}.{end}": d for i, (end, d) in enumerate(zip(ends, data, strict=True))}


@cache
def masks():
    "Sound masks and label maps: (ending, bytes)."
    _, mask = phantom()
    labels = (mask * np.arange(len(mask))[:, None]).astype(np.uint8)
    found = [(".png", pillow(Image.fromarray(x), "PNG")) for x in (mask, mask * 255, labels, labels.astype(np.uint16) * 9)]
    return found + [(".tif", tiff(x)) for x in (mask.astype(np.float32), labels.astype(np.int32), mask * 0.5)]


@cache
def published():
    "A sound set in the published layout: path -> bytes."
    film, _ = phantom()
    marks = np.tile(np.linspace(0.2, 0.8, 68), (4, 2))
    names = [f"{i}.jpg" for i in range(4)]
    files = {}
    for split in ("training", "test"):
        top = f"labels/{split}"
        files |= {f"data/{split}/{name}": pillow_file(film, "JPEG") for name in names}
        files[f"{top}/filenames.csv"] = "\n".join(names).encode()
        files[f"{top}/landmarks.csv"] = "\n".join(",".join(f"{x:.4f}" for x in row) for row in spread(marks)).encode()
        files[f"{top}/angles.csv"] = b"0,0,0\n" * 4
        files |= {f"{top}/{name}.mat": b"MATLAB 5.0 MAT-file" + bytes(200) for name in names}
    return files


def spread(marks):
    "Four corners a vertebra, all x before all y, as the tables hold them."
    y = np.repeat(np.linspace(0.1, 0.9, 17), 4) + np.tile([-0.015, -0.015, 0.015, 0.015], 17)
    x = np.tile([0.4, 0.6, 0.4, 0.6], 17)
    return np.tile(np.concatenate([x, y]), (len(marks), 1))


@cache
def model():
    "A sound, very small model: name -> bytes."
    config = VerdiffConfig.from_settings(load_settings("smoke", TINY))
    torch.manual_seed(0)
    net = VerdiffNet(config)
    torch.nn.init.normal_(net.diffusion.out[-1].weight, std=0.3)  # an untrained one says nothing
    weights = {k: v.contiguous() for k, v in net.state_dict().items()}
    data = safe_bytes(weights)
    limits = {name: [-1, 0, 1] for name in TRAITS}
    return {"config.json": json.dumps(config.to_dict()).encode(), "model.safetensors": data,
            "reference.json": json.dumps({"limits": limits, "films": 9, "weights": hashlib.sha256(data).hexdigest(), "steps": 1, "ensemble": 1}).encode()}


def zipped(files, how=zipfile.ZIP_DEFLATED):
    memory = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(memory, "w", how) as file:
        warnings.simplefilter("ignore")
        for name, data in files:
            file.writestr(name, data)
    return memory.getvalue()


def pairs():
    "Own pairs: path -> bytes."
    film, _ = phantom()
    files = {f"images/{i}.png": pillow(Image.fromarray(film), "PNG") for i in range(4)}
    return files | {f"masks/{i}{end}": data for i, (end, data) in enumerate(masks()[:4])}


# ---------------------------------------------------------------- changes

def change(data, rng):
    "Bytes that are nearly the given ones."
    data, how = bytearray(data or b"\0"), int(rng.integers(9))
    at = int(rng.integers(len(data)))
    if how == 0:
        return bytes(data[:at])
    if how == 1:
        return bytes(data[:at] + rng.bytes(int(rng.integers(1, 40))) + data[at:])
    if how == 2:
        return bytes(data[:at] + data[at + int(rng.integers(1, 200)):])
    if how == 3:
        return bytes(data[:at] + bytes(min(400, len(data) - at)) + data[at + 400:])
    if how == 4:
        return bytes(data[at:] + data[:at])
    if how == 5:  # a number becomes an extreme one
        size, order = int(rng.choice([1, 2, 4, 8])), str(rng.choice(["little", "big"]))
        value = int(rng.choice(EXTREME)) & (256**size - 1)
        at = int(rng.integers(min(len(data), int(rng.choice([64, 400, 1 << 30])))))
        data[at:at + size] = value.to_bytes(size, order)
        return bytes(data)
    end = len(data) if how == 6 else min(len(data), 300)
    for at in rng.integers(0, end, rng.integers(1, 9)):
        data[at] = rng.integers(256) if how < 8 else data[at] ^ (1 << int(rng.integers(8)))
    return bytes(data)


def change_text(data, rng):
    "A table, a settings file or JSON with its words changed."
    text = data.decode("utf-8", "replace")
    how = int(rng.integers(10))
    lines = text.split("\n")
    at = int(rng.integers(len(lines)))
    words = lines[at].replace("=", ",=,").split(",")
    where = int(rng.integers(len(words)))
    if how == 0:
        return text.replace("\n", "\r\n").encode("utf-8-sig")
    if how == 1:
        return text.encode(str(rng.choice(["utf-16", "utf-32", "latin-1", "cp037"])), "replace")
    if how == 2:
        return text.replace(",", str(rng.choice([";", "\t", ", ", ",,"]))).encode()
    if how == 3:
        del lines[at]
    elif how == 4:
        lines.insert(at, lines[at])
    elif how == 5:
        words[::-1], lines[at] = list(words), ",".join(words[::-1])
    else:
        bad = ["nan", "inf", "-inf", "", "-1", "1e999", "0x10", "９", "1_000", "9" * 5000, "null", "[]", "{}", "true", '"a"',
               "\0", "a\"b", "-0", "1e-400", "../../x", "\U0001f600", "1" * 20]
        words[where] = str(rng.choice(bad))
        lines[at] = ",".join(words).replace(",=,", "=")
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def pick(rng, things):
    return things[int(rng.integers(len(things)))]


def change_files(files, rng, table=0.7):
    "One or two files of a set, changed; sometimes one is gone or is a folder."
    files = dict(files)
    for _ in range(int(rng.integers(1, 3))):
        texts = [n for n in files if n.endswith((".csv", ".json"))]
        name = pick(rng, texts if texts and rng.random() < table else list(files))
        if rng.random() < 0.06:
            del files[name]
            if not files:
                break
            continue
        text = name in texts and rng.random() < 0.8
        files[name] = (change_text if text else change)(files[name], rng)
    return files


def change_radiographs(rng):
    "Up to three of them changed, gone, or under another's ending."
    files = dict(radiographs())
    for name in rng.choice(list(files), int(rng.integers(1, 4)), replace=False):
        data, how = files.pop(str(name)), rng.random()
        if how < 0.8:
            files[str(name)] = change(data, rng)
        elif how < 0.9:
            files[f"other{pick(rng, ['.png', '.dcm', '.nii.gz', '.mha', '.tif'])}"] = data
    return files


def random_image(rng):
    "A picture: changed, or sound with a wrong ending."
    ending, data = pick(rng, images() + masks())
    if rng.random() < 0.1:
        return pick(rng, [".png", ".dcm", ".nii.gz", ".mha", ".tif", "", ".mhd"]), data
    for _ in range(int(rng.integers(1, 3))):
        data = change(data, rng)
    return ending, data


def random_case(number):
    "(what is tried, files: path -> bytes, more words)."
    rng = np.random.default_rng([18, number])
    kind = pick(rng, ["image"] * 14 + ["volume"] * 3 + ["segment"] * 5 + ["pairs", "zip", "zip", "set", "set", "settings",
                "settings", "words", "words", "words", "model", "model", "checkpoint", "cache", "results", "series", "train",
                "evaluate", "calibrate", "compare"])
    if kind in ("image", "volume", "segment"):
        chosen = random_image(rng) if kind != "volume" else (pick(rng, [".nii", ".nii.gz", ".mha"]), None)
        if chosen[1] is None:
            plain = [x for x in images() if x[0] == chosen[0]]
            chosen = chosen[0], change(pick(rng, plain)[1], rng)
        return kind, {f"film{chosen[0]}": chosen[1]}, []
    if kind == "series":
        return "segment", {f"series/{i}.dcm": change(d, rng) if i else d for i, (_, d) in enumerate([x for x in images()
                if x[0] == ".dcm"][:4])}, []
    if kind == "pairs" or (kind in ("train", "evaluate", "compare") and rng.random() < 0.5):
        return kind.replace("pairs", "set"), change_files(pairs(), rng), []
    if kind in ("set", "train", "evaluate", "compare"):
        return kind, change_files(published(), rng, 0.8), []
    if kind == "zip":
        return "set", {"set.zip": change(zipped(published().items()), rng)}, ["set.zip"]
    if kind == "settings":
        return kind, {"settings.ini": (change_text if rng.random() < 0.8 else change)(settings_path().read_bytes(), rng)}, []
    if kind == "words":
        return kind, {}, [number]
    if kind == "model":
        return kind, change_files(model(), rng, 0.5), []
    if kind == "calibrate":
        return kind, change_radiographs(rng), []
    return kind, {}, [number]  # checkpoint, cache, results: made by the worker, then changed
