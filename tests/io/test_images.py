"""One reader for radiographs and masks, by whatever name they come."""
import io
import os
import struct
import warnings

import numpy as np
import pytest
import tifffile
from formats import DEPTHS, deeper, lying, mutate, negative, phantom, pillow_file, tiff
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from verdiff.files import DataError, VerdiffError
from verdiff.io import images, masks
from verdiff.io.grey import to_uint8
from verdiff.io.images import is_image_file, read_image, read_smaller
from verdiff.io.masks import read_mask

FILM, BONE = phantom()


def doors(data, path):
    """The same file through every door."""
    path.write_bytes(data)
    yield path
    yield str(path)
    yield data
    yield io.BytesIO(data)
    with open(path, "rb") as file:
        yield file
        assert not file.closed and file.tell() == 0
    try:
        opened = [Image.open(path), Image.open(path), Image.open(io.BytesIO(data))]
    except OSError:  # a kind that only tifffile knows
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened[1].load()
    yield from opened


def same(source, wanted, within=0):
    read = np.asarray(read_image(source)).astype(int)
    return read.shape == wanted.shape and np.abs(read - wanted).max() <= within


# ---------------------------------------------------------------- the property: pixels come back


@settings(max_examples=150, deadline=None)
@given(depth=st.sampled_from(sorted(DEPTHS)), orientation=st.integers(1, 8), white=st.booleans(),
       before=st.integers(0, 2), after=st.integers(0, 2), order=st.sampled_from("<>"), big=st.booleans(),
       rows=st.sampled_from([None, 7]), packed=st.sampled_from([None, "zlib"]), seed=st.integers(0, 3))
def test_a_tiff_of_every_depth_sign_tag_and_page_order(
        tmp_path_factory, depth, orientation, white, before, after, order, big, rows, packed, seed):
    film, mask = phantom(seed)
    folder = tmp_path_factory.mktemp("tiff")
    how = dict(orientation=orientation, white_is_zero=white, before=before, after=after, order=order,
               big=big, rowsperstrip=rows, compression=packed)
    pixels = deeper(film, depth)
    data = tiff(lying(negative(pixels) if white else pixels, orientation), **how)
    for source in doors(data, folder / "film.tif"):
        assert same(source, to_uint8(pixels), 1), type(source)
    bone = mask.astype(depth)
    data = tiff(lying(negative(bone) if white else bone, orientation), **how)
    for source in doors(data, folder / "mask.tif"):
        assert np.array_equal(read_mask(source), mask * 255), type(source)


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(["PNG", "JPEG", "BMP", "WEBP"]), orientation=st.integers(1, 8),
       mode=st.sampled_from(["L", "RGB", "I;16", "1", "P", "LA", "RGBA"]), seed=st.integers(0, 3))
def test_other_files_of_every_mode_and_orientation(tmp_path_factory, kind, orientation, mode, seed):
    film, _ = phantom(seed)
    if kind != "PNG" and mode not in ("L", "RGB") or kind == "BMP" and orientation > 1:
        return
    wanted, within = film, 0
    if mode == "I;16":
        picture, wanted = film.astype(np.uint16) * 9, to_uint8(film.astype(np.uint16) * 9)
    elif mode == "1":
        picture, wanted = film > 99, (film > 99) * np.uint8(255)
    else:
        picture = np.asarray(Image.fromarray(film).convert(mode))
    turned = lying(picture, orientation)
    how = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    within = 10 if kind == "JPEG" else 1
    if mode == "P":
        file, exif = io.BytesIO(), Image.Exif()
        exif[274] = orientation
        image = Image.fromarray(turned).convert("P")
        image.putpalette(np.repeat(np.arange(256, dtype=np.uint8), 3).tolist())
        image.save(file, "PNG", exif=exif)
        data = file.getvalue()
    else:
        data = pillow_file(turned, kind, orientation, **how)
    for source in doors(data, tmp_path_factory.mktemp("other") / "film.dat"):
        assert same(source, wanted, within), type(source)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg"])
@pytest.mark.parametrize("depth", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("white", [False, True])
def test_compressed_tiffs(tmp_path, compression, depth, orientation, white):
    if compression == "jpeg" and depth != "uint8":
        return
    pixels = deeper(FILM, depth)
    stored = np.ascontiguousarray(lying(negative(pixels) if white else pixels, orientation))
    file = io.BytesIO()
    Image.fromarray(stored).save(file, "TIFF", compression=compression, tiffinfo={274: orientation},
                                 **({"quality": 95} if compression == "jpeg" else {}))
    data = bytearray(file.getvalue())
    if white:  # Pillow would turn the numbers round itself, so the tag is set afterwards
        with tifffile.TiffFile(io.BytesIO(data)) as written:
            at = written.pages[0].tags[262].valueoffset
        data[at:at + 2] = struct.pack("<H", 0)
    for source in doors(bytes(data), tmp_path / "film.tif"):
        assert same(source, to_uint8(pixels), 12 if compression == "jpeg" else 1), type(source)


@pytest.mark.parametrize("depth", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_colours_of_every_depth(tmp_path, depth, planes):
    pixels = deeper(FILM, depth)
    colours = np.stack([pixels] * 3, 0 if planes == "separate" else 2)
    tifffile.imwrite(tmp_path / "a.tif", colours, photometric="rgb", planarconfig=planes)
    assert same(tmp_path / "a.tif", to_uint8(pixels), 1)


@pytest.mark.parametrize("depth", sorted(DEPTHS))
def test_arrays_and_tensors_of_every_type(depth):
    pixels = deeper(FILM, depth)
    assert same(pixels, to_uint8(pixels)) and same(pixels[None], to_uint8(pixels))
    torch = pytest.importorskip("torch")
    assert same(torch.from_numpy(pixels), to_uint8(pixels))
    assert np.array_equal(read_mask(BONE.astype(depth)), BONE * 255)


# ---------------------------------------------------------------- each public bug report


def test_case_01_a_turned_grey_tiff_by_path_in_one_strip(tmp_path):
    for depth in ("uint8", "uint16"):
        pixels = deeper(FILM, depth)
        path = tmp_path / f"{depth}.tif"
        path.write_bytes(tiff(lying(pixels, 6), 6, rowsperstrip=pixels.size))
        assert same(path, to_uint8(pixels))


def test_case_03_white_is_zero_in_deep_films_and_masks(tmp_path):
    for depth in ("uint16", "int16", "uint32", "float64", "float16"):
        (tmp_path / "a.tif").write_bytes(tiff(negative(deeper(FILM, depth)), white_is_zero=True))
        assert same(tmp_path / "a.tif", to_uint8(deeper(FILM, depth)), 1)
    for inside in (1, 17, 255, 65535):
        (tmp_path / "m.tif").write_bytes(tiff(negative(BONE * np.uint16(inside)), white_is_zero=True))
        assert np.array_equal(read_mask(tmp_path / "m.tif"), BONE * 255)


def broken_exif(data, orientation=6):
    """A JPEG whose EXIF names its software by a fraction, and lies about the length of a comment."""
    entries = [(274, 3, 1, struct.pack("<HH", orientation, 0)), (305, 5, 1, struct.pack("<I", 8)),
               (315, 2, 99, struct.pack("<I", 9_999_999))]
    ifd = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHI", *e[:3]) + e[3] for e in entries) + b"\0\0\0\0"
    body = b"Exif\0\0II*\0\x08\0\0\0" + ifd
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


def test_case_04_a_broken_exif_is_no_reason_to_lose_the_film(tmp_path):
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(lying(FILM, 6))).save(file, "JPEG", quality=95)
    data = broken_exif(file.getvalue())
    with pytest.raises(Exception):  # noqa: B017  what Pillow's own turn makes of it
        ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    for source in doors(data, tmp_path / "a.jpg"):
        assert same(source, FILM, 12), type(source)


def label_map():
    labels = np.zeros((120, 60), np.uint8)
    for i in range(17):
        labels[7 * i:7 * i + 5, 20:40] = i + 1
        labels[7 * i + 5:7 * i + 7, 20:40] = 201 + i
    return labels


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float64])
def test_case_06_whole_numbers_are_labels_however_many(tmp_path, capsys, kind):
    masks._said.clear()
    labels = label_map()
    tifffile.imwrite(tmp_path / "a.tif", labels.astype(kind))
    assert np.array_equal(read_mask(tmp_path / "a.tif"), (labels > 0) * np.uint8(255))
    said = capsys.readouterr().err
    assert "1-17, 201-217" in said and "labels" in said and said.count("\n") == 1
    read_mask(tmp_path / "a.tif")
    assert not capsys.readouterr().err
    only = read_mask(tmp_path / "a.tif", labels=range(1, 25))
    assert np.array_equal(only, ((labels > 0) & (labels < 100)) * np.uint8(255))


def test_case_13_padding_stays_out_of_the_window(tmp_path):
    deep = FILM.astype(np.uint16) * 16
    for fill, share in ((65535, 0.004), (65535, 0.008), (65535, 0.2), (65535, 0.45)):
        padded = deep.copy()
        padded.ravel()[:int(share * deep.size)] = fill
        Image.fromarray(padded).save(tmp_path / "a.png")
        grey = np.asarray(read_image(tmp_path / "a.png"))[padded < 65535]
        assert grey.min() == 0 and grey.max() == 255 and grey.std() > 30
    signed = deep.astype(np.int16)
    signed[:9] = -32768
    assert np.asarray(read_image(signed))[9:].std() > 30 and not np.asarray(read_image(signed))[:9].any()


def test_case_14_open_files_and_bytes_stay_the_callers(tmp_path):
    Image.fromarray(FILM).save(tmp_path / "a.png")
    with open(tmp_path / "a.png", "rb") as file:
        file.seek(5)
        for _ in range(2):
            assert same(file, FILM) and file.tell() == 5 and not file.closed
    for kind in (bytes, bytearray, memoryview):
        assert same(kind((tmp_path / "a.png").read_bytes()), FILM)
    with open(tmp_path / "a.png", encoding="latin-1") as file, pytest.raises(DataError, match="open it with 'rb'"):
        read_image(file)


class Stranger:
    "Something with a method `detach` that is no tensor."
    def detach(self):
        raise AssertionError("called")


def test_case_14_a_strangers_detach_is_left_alone():
    with pytest.raises(DataError, match="no image"):
        read_image(Stranger())


def test_case_15_a_stack_is_refused_named_or_opened(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([FILM, 255 - FILM]), photometric="minisblack")
    Image.fromarray(FILM).save(tmp_path / "b.png", save_all=True, append_images=[Image.fromarray(255 - FILM)])
    Image.fromarray(FILM).save(tmp_path / "c.gif", save_all=True, append_images=[Image.fromarray(255 - FILM)])
    for path in sorted(tmp_path.iterdir()):
        for source in (path, Image.open(path), path.read_bytes()):
            with pytest.raises(DataError, match="is a stack of several pages; save the page"):
                read_image(source)
        assert np.abs(np.int16(read_image(path, frame=1)) - (255 - FILM)).max() <= 2
        with pytest.raises(DataError, match="no frame 2; this .* holds 2"):
            read_image(path, frame=2)
    second = Image.open(tmp_path / "a.tif")
    second.seek(1)  # whoever turns the pages has chosen one
    assert same(second, 255 - FILM)


def test_case_15_an_opened_image_that_was_changed_is_taken_as_it_is(tmp_path):
    Image.fromarray(FILM).save(tmp_path / "a.png")
    image = Image.open(tmp_path / "a.png")
    image.putpixel((3, 4), 99)
    assert np.asarray(read_image(image))[4, 3] == 99
    image = Image.open(tmp_path / "a.png")
    image.thumbnail((20, 20))
    assert read_image(image).size == image.size
    assert same(Image.open(tmp_path / "a.png").crop((1, 2, 9, 8)), FILM[2:8, 1:9])


def test_case_16_the_fast_reader_of_the_published_layout_is_the_same(tmp_path):
    large = np.kron(FILM, np.ones((8, 8), np.uint8))
    for orientation in range(1, 9):
        data = pillow_file(lying(large, orientation), "JPEG", orientation, quality=95)
        small, full = read_smaller(data, (90, 40), "zip: film.jpg")
        assert full == large.shape and np.abs(np.int16(small) - np.int16(
            Image.fromarray(large).resize(small.size, Image.Resampling.BOX))).mean() < 2
        assert small.height < large.shape[0]
        assert same(data, large, 60) and np.abs(np.int16(read_image(data)) - large).mean() < 1
    with pytest.raises(DataError, match="zip: film.jpg: "):
        read_smaller(data[:300], (90, 40), "zip: film.jpg")


def test_case_20_the_page_that_is_no_preview(tmp_path):
    for before, after in ((1, 0), (0, 1), (2, 2)):
        (tmp_path / "a.tif").write_bytes(tiff(FILM, before=before, after=after))
        assert same(tmp_path / "a.tif", FILM)
    with tifffile.TiffWriter(tmp_path / "b.tif") as writer:  # a preview that does not say so
        writer.write(np.ascontiguousarray(FILM[::4, ::4]), photometric="minisblack", metadata=None)
        writer.write(FILM, photometric="minisblack", metadata=None)
    with pytest.raises(DataError, match="stack"):
        read_image(tmp_path / "b.tif")


@pytest.mark.parametrize("kind", ["int64", "uint64", "float64", "float32", "int8", "bool"])
def test_case_21_masks_as_arrays_write_them(tmp_path, kind):
    tifffile.imwrite(tmp_path / "a.tif", BONE.astype(kind))
    if kind == "bool":
        with pytest.raises(DataError, match="a.tif: a mask of 1 bit .* save it as a PNG"):
            read_mask(tmp_path / "a.tif")
    else:
        assert np.array_equal(read_mask(tmp_path / "a.tif"), BONE * 255)
    assert np.array_equal(read_mask(BONE.astype(kind)), BONE * 255)


# ---------------------------------------------------------------- masks


def test_a_soft_border_is_cut_at_half_and_said(tmp_path, capsys):
    masks._said.clear()
    large = np.kron(BONE, np.ones((6, 6), np.uint8))
    soft = Image.fromarray(BONE * 255).resize(large.shape[::-1], Image.Resampling.BICUBIC)
    soft.save(tmp_path / "a.png")
    cut = np.asarray(read_mask(tmp_path / "a.png")) > 0
    assert 2 * (cut & (large > 0)).sum() / (cut.sum() + large.sum()) > 0.95
    assert "cut at half" in capsys.readouterr().err


def test_labels_that_are_nearly_whole():
    nearly = label_map().astype(float) - 1e-4
    assert np.array_equal(read_mask(np.where(nearly < 0, 0, nearly)), (label_map() > 0) * np.uint8(255))


@pytest.mark.parametrize("bad, words", [
    (np.float32([[np.nan, 1]]), "NaN"), (np.int16([[-1, 1]]), "negative"), (np.zeros((3, 0)), "no image"),
    (np.complex64([[1]]), "no image")])
def test_what_is_no_mask(bad, words):
    with pytest.raises(DataError, match=words):
        read_mask(bad)


def test_labels_in_a_jpeg_cannot_be_chosen(tmp_path):
    Image.fromarray(BONE * 255).save(tmp_path / "a.jpg")
    assert np.mean(np.asarray(read_mask(tmp_path / "a.jpg")) == BONE * 255) > 0.97
    with pytest.raises(DataError, match="a.jpg: labels can only be chosen"):
        read_mask(tmp_path / "a.jpg", labels=[1])


# ---------------------------------------------------------------- nothing but a sentence


def seeds():
    colours = np.stack([FILM, FILM // 2, FILM], -1)
    yield "png", pillow_file(FILM, "PNG")
    yield "png", pillow_file(FILM.astype(np.uint16) * 9, "PNG", 6)
    yield "jpg", pillow_file(colours, "JPEG", 6)
    yield "bmp", pillow_file(FILM, "BMP")
    yield "tif", tiff(FILM, 6, before=1)
    yield "tif", tiff(FILM.astype(np.float32), compression="zlib", white_is_zero=True)
    file = io.BytesIO()
    Image.fromarray(FILM).save(file, "TIFF", compression="tiff_lzw")
    yield "tif", file.getvalue()


@pytest.mark.parametrize("number", range(7))
def test_a_mutated_file_is_an_image_or_one_sentence(number):
    suffix, data = list(seeds())[number]
    rng = np.random.default_rng(number)
    for _ in range(60):
        for read in (read_image, read_mask):
            try:
                assert read(mutate(data, rng), name=f"film.{suffix}").mode == "L"
            except DataError as error:
                assert str(error).startswith(f"film.{suffix}: ") and "\n" not in str(error)


@pytest.mark.parametrize("error", [TypeError, struct.error, AttributeError, MemoryError, SyntaxError, RecursionError,
                                   ZeroDivisionError, Image.DecompressionBombError])
def test_whatever_a_library_throws_becomes_a_sentence(monkeypatch, error):
    def broken(*_, **__):
        raise error("of the library\nand more")
    monkeypatch.setattr(images, "read_raster", broken)
    with pytest.raises(DataError, match="film.png: .*of the library and more|film.png: too large"):
        read_image(pillow_file(FILM, "PNG"), name="film.png")
    assert issubclass(DataError, VerdiffError)


def test_what_a_folder_holds(tmp_path):
    for name, data in (("a.PNG", b""), ("b.txt", b"text"), ("c", bytes(128) + b"DICM"), ("d", b"text")):
        (tmp_path / name).write_bytes(data)
    assert [is_image_file(p) for p in sorted(tmp_path.iterdir())] == [True, False, True, False]
    with pytest.raises(DataError, match="directory"):
        read_image(tmp_path)
    with pytest.raises(DataError, match="gone.png: .*no such file"):
        read_image(tmp_path / "gone.png")
    os.truncate(tmp_path / "b.txt", 2**31)  # sparse: it is not read to the end to learn that it is no image
    with pytest.raises(DataError, match="b.txt: not an image that can be read"):
        read_image(tmp_path / "b.txt")


def test_a_promise_of_more_pixels_than_there_are(tmp_path):
    data = bytearray(tiff(FILM))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        at = file.pages[0].tags[257].valueoffset
    data[at:at + 4] = struct.pack("<I", 60_000)
    with pytest.raises(DataError, match="not all there"):
        read_image(bytes(data))
    data[at:at + 4] = struct.pack("<I", 2**31 - 1)
    with pytest.raises(DataError, match="too large"):
        read_image(bytes(data))
