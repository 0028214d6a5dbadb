"""DICOM radiographs: the picture that a screen shows, in every transfer syntax, and masks on its pixels."""
import io
import logging
import time
import tracemalloc
import warnings

import numpy as np
import pytest
from formats import IDENTITY, dataset, dicom, jpeg_12_bit, mutate, phantom, samples
from hypothesis import given, settings
from hypothesis import strategies as st

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("libjpeg")
pytest.importorskip("highdicom")

from pydicom.encaps import encapsulate

from verdiff.files import DataError
from verdiff.io import dicom as reader
from verdiff.io import grey
from verdiff.io.grey import to_uint8
from verdiff.io.images import is_image_file, open_image, open_images, read_image
from verdiff.io.masks import read_mask, write_mask_like

FILM, BONE = phantom()
SYNTAXES = ["explicit", "implicit", "big", "deflated", "rle", "j2k", "jpegls", "jpegll", "bare", "headless"]
DEEP = FILM.astype(np.uint16) * 16  # 12 bits
TWELVE = {"BitsStored": 12, "HighBit": 11}


def off(shown, wanted):
    return np.abs(np.asarray(shown).astype(int) - wanted).max()


# ---------------------------------------------------------------- transfer syntaxes


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16"])
@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2"])
def test_every_transfer_syntax_depth_sign_and_polarity(tmp_path, syntax, kind, polarity):
    pixels = {"uint8": FILM, "uint16": DEEP, "int16": DEEP.astype(np.int16) - 2048}[kind]
    tags = {"PhotometricInterpretation": polarity, **({} if kind == "uint8" else TWELVE)}
    (tmp_path / "film").write_bytes(dicom(pixels, syntax, **tags))
    wanted = to_uint8(pixels) if polarity == "MONOCHROME2" else 255 - to_uint8(pixels)
    for source in (tmp_path / "film", dicom(pixels, syntax, **tags), io.BytesIO(dicom(pixels, syntax, **tags))):
        assert off(read_image(source), wanted) == 0
    assert is_image_file(tmp_path / "film") == (syntax not in ("bare", "headless"))


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_mask_drawn_on_a_dicom_comes_back_on_the_same_pixels(tmp_path, syntax):
    (tmp_path / "film.dcm").write_bytes(dicom(DEEP, syntax, PixelSpacing=[0.2, 0.3], **TWELVE))
    film = open_image(tmp_path / "film.dcm")
    for name in ("mask.png", "mask.dcm"):
        assert np.array_equal(read_mask(write_mask_like(BONE, film, tmp_path / name)), BONE * 255), name
    mask = BONE.astype(np.uint8) * 3  # a mask that is an ordinary DICOM picture, of labels
    assert np.array_equal(read_mask(dicom(mask, syntax)), BONE * 255)
    assert np.array_equal(read_mask(dicom(mask, syntax), labels=[3]), BONE * 255)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 5), stored=st.integers(9, 16), signed=st.booleans(), white=st.booleans(),
       syntax=st.sampled_from(["explicit", "big", "deflated", "rle"]), overlay=st.booleans())
def test_bits_stored_sign_and_overlays(seed, stored, signed, white, syntax, overlay):
    film, _ = phantom(seed)
    values = (film.astype(np.int64) << (stored - 9)) - (1 << (stored - 1) if signed else 0)
    raw = (values & ((1 << stored) - 1)).astype(np.uint16)
    if overlay and stored < 16:
        raw |= np.uint16(0xFFFF << stored & 0xFFFF) * (film % 3 == 0)
    data = dicom(raw, syntax, BitsStored=stored, HighBit=stored - 1, PixelRepresentation=int(signed),
                 PhotometricInterpretation="MONOCHROME1" if white else "MONOCHROME2")
    wanted = to_uint8(values)
    assert off(read_image(data), 255 - wanted if white else wanted) == 0


@pytest.mark.parametrize("end", [0x3F, 0])
def test_12_bit_jpeg_with_the_scan_header_that_breaks_the_standard(end):
    blocks = (np.arange(48).reshape(8, 6) * 80 + 100).astype(np.uint16)
    wanted = np.kron(blocks, np.ones((8, 8), np.uint16))
    ds, file = dataset(wanted, **TWELVE), io.BytesIO()
    ds.PixelData = encapsulate([jpeg_12_bit(blocks, end)])
    ds["PixelData"].VR, ds.file_meta.TransferSyntaxUID = "OB", pydicom.uid.JPEGExtended12Bit
    ds.save_as(file, enforce_file_format=True)
    assert off(read_image(file.getvalue()), to_uint8(wanted)) <= 1


# ---------------------------------------------------------------- what the screen shows


def test_rescale_and_windows_the_first_or_the_one_asked_for():
    hounsfield = FILM.astype(np.int16) * 12 - 1000
    data = dicom(hounsfield + 1024, RescaleSlope="1", RescaleIntercept="-1024", WindowCenter=[40, 500],
                 WindowWidth=[400, 2000])
    def through(centre, width):
        return np.rint(255 * ((hounsfield - (centre - 0.5)) / (width - 1) + 0.5).clip(0, 1))
    assert off(read_image(data), through(40, 400)) == 0
    assert off(read_image(data, window=1), through(500, 2000)) == 0
    assert off(read_image(data, window=(100, 300)), through(100, 300)) == 0
    for bad, words in ((2, "no window 2; the file has 2"), ((40, 0), "no window has the width 0")):
        with pytest.raises(DataError, match=words):
            read_image(data, window=bad)


@pytest.mark.parametrize("function, least", [("LINEAR_EXACT", 250), ("SIGMOID", 200), ("LINEAR ", 250)])
def test_window_functions(function, least):
    shown = np.asarray(read_image(dicom(DEEP, WindowCenter=2048, WindowWidth=4096, VOILUTFunction=function, **TWELVE)))
    order = np.argsort(DEEP.ravel(), kind="stable")
    assert (np.diff(shown.ravel()[order].astype(int)) >= 0).all() and np.ptp(shown) > least * 0.6


def table(values, first, bits, packed=False):
    item = pydicom.Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item.LUTData = values.astype("<u2").tobytes() if packed else values.tolist()
    item["LUTDescriptor"].VR = "SS" if first < 0 else "US"
    item["LUTData"].VR = "OW" if packed else "US"
    return item


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("syntax", ["explicit", "implicit"])
def test_tables(packed, syntax):
    falling = np.arange(255, -1, -1)
    voi = dicom(FILM, syntax, VOILUTSequence=[table(falling, 0, 8, packed)], WindowCenter=10, WindowWidth=2)
    assert off(read_image(voi), 255 - FILM.astype(int)) == 0
    curve = np.arange(512) ** 2 // 4
    modality = dicom(FILM.astype(np.int16) - 128, syntax, ModalityLUTSequence=[table(curve, -128, 16, packed)])
    assert off(read_image(modality), to_uint8(curve[FILM.astype(int)])) == 0


def test_the_lut_shape_is_not_obeyed_twice():
    data = dicom(FILM, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE")
    assert off(read_image(data), 255 - FILM.astype(int)) == 0


@pytest.mark.parametrize("pad, limit", [(-32768, None), (-2000, -1990), (63536, None)])
@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_out_of_the_window(pad, limit, polarity):
    padded = FILM.astype(np.int16) * 10
    padded[:20] = pad - 65536 if pad > 32767 else pad
    ds = dataset(padded, PhotometricInterpretation=polarity)
    ds.add_new("PixelPaddingValue", "US" if pad > 0 else "SS", pad)
    if limit:
        ds.add_new("PixelPaddingRangeLimit", "SS", limit)
        padded[5:9] = ds.PixelData and limit - 3
        ds.PixelData = padded.tobytes()
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    shown, rest = np.asarray(read_image(file.getvalue())), to_uint8(FILM[20:] * np.int16(10))
    assert not shown[:20].any() and off(shown[20:], rest if polarity == "MONOCHROME2" else 255 - rest) == 0


def test_a_window_for_other_values_is_not_obeyed_and_said():
    film = open_image(dicom(DEEP, WindowCenter=30_000, WindowWidth=100, **TWELVE))
    assert film.pixels.std() > 30 and "window shows nothing" in " ".join(film.notes)


@pytest.mark.parametrize("tags, spacing, words", [
    ({"PixelSpacing": [0.2, 0.3]}, (0.2, 0.3), ""), ({"PixelSpacing": [0, 0]}, None, "no pixel spacing"),
    ({}, None, "no pixel spacing"), ({"ImagerPixelSpacing": [0.15, 0.15]}, (0.15, 0.15), "detector")])
def test_spacing_is_kept_or_said_to_be_missing(tags, spacing, words):
    film = open_image(dicom(FILM, **tags))
    assert film.spacing == spacing and words in " ".join(film.notes) and film.kind == "dicom"


# ---------------------------------------------------------------- several frames


def enhanced(frames):
    ds = dataset(frames, SOPClassUID="1.2.840.10008.5.1.4.1.1.4.1")
    shared, per_frame = pydicom.Dataset(), []
    measures = pydicom.Dataset()
    measures.PixelSpacing = [0.5, 0.6]
    shared.PixelMeasuresSequence = [measures]
    for k in range(len(frames)):
        group, window = pydicom.Dataset(), pydicom.Dataset()
        window.WindowCenter, window.WindowWidth = 1000 * (k + 1), 2000 * (k + 1)
        group.FrameVOILUTSequence = [window]
        per_frame.append(group)
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [shared], per_frame
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


def test_each_frame_with_its_own_window(tmp_path):
    frames = np.stack([DEEP, DEEP[::-1], DEEP[:, ::-1]])
    (tmp_path / "cine.dcm").write_bytes(enhanced(frames))
    got = list(open_images(tmp_path / "cine.dcm"))
    for k, (shown, frame) in enumerate(zip(got, frames, strict=True)):
        wanted = np.rint(255 * ((frame - (1000.0 * (k + 1) - 0.5)) / (2000 * (k + 1) - 1) + 0.5).clip(0, 1))
        assert off(shown.pixels, wanted) == 0 and shown.spacing == (0.5, 0.6) and shown.about["frame"] == k
        assert np.array_equal(open_image(tmp_path / "cine.dcm", frame=k).pixels, shown.pixels)
        written = write_mask_like(BONE, shown, tmp_path / f"{k}.dcm")
        again = pydicom.dcmread(written).PerFrameFunctionalGroupsSequence[0]
        assert again.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber == k + 1
        assert np.array_equal(read_mask(written), BONE * 255)
    with pytest.raises(DataError, match="cine.dcm: this DICOM is a stack .* one of 3 with frame="):
        read_image(tmp_path / "cine.dcm")


@pytest.mark.parametrize("syntax", ["explicit", "rle", "j2k", "jpegll"])
def test_frames_of_a_compressed_file(syntax):
    frames = np.stack([FILM, FILM[::-1]])
    assert off(read_image(dicom(frames, syntax), frame=1), FILM[::-1]) == 0


# ---------------------------------------------------------------- segmentations of other programs


def test_segments_are_labels_and_slices_are_refused(tmp_path):
    import highdicom
    from pydicom.sr.codedict import codes
    labels = np.where(BONE, 1 + (np.arange(96)[:, None] > 48), 0).astype(np.uint8)
    source = dataset(FILM, ImagePositionPatient=[0, 0, 0], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
                     PixelSpacing=[1, 1], SliceThickness=1, FrameOfReferenceUID="1.2.3.9", StudyTime="")
    kinds = [highdicom.seg.SegmentDescription(k, f"L{k}", codes.SCT.Tissue, codes.SCT.Bone, "MANUAL") for k in (1, 2)]
    how = dict(series_instance_uid="1.2.3.1", series_number=1, sop_instance_uid="1.2.3.2", instance_number=1,
               manufacturer="x", manufacturer_model_name="x", software_versions="1", device_serial_number="1")
    for kind in ("BINARY", "LABELMAP"):
        highdicom.seg.Segmentation([source], labels[None], kind, kinds, **how).save_as(tmp_path / "seg.dcm")
        assert np.array_equal(read_mask(tmp_path / "seg.dcm"), BONE * 255)
        assert np.array_equal(read_mask(tmp_path / "seg.dcm", labels=[2]), (labels == 2) * 255)
    other = dataset(FILM, SOPInstanceUID="1.2.3.8", ImagePositionPatient=[0, 0, 1], PixelSpacing=[1, 1], SliceThickness=1,
                    ImageOrientationPatient=[1, 0, 0, 0, 1, 0], FrameOfReferenceUID="1.2.3.9", StudyTime="")
    highdicom.seg.Segmentation([source, other], np.stack([labels, labels]), "BINARY", kinds, **how).save_as(tmp_path / "two.dcm")
    with pytest.raises(DataError, match="two.dcm: a segmentation of several slices"):
        read_mask(tmp_path / "two.dcm")
    with pytest.raises(DataError, match="seg.dcm: a DICOM .*segmentation, no image|seg.dcm: .*colours"):
        read_image(tmp_path / "seg.dcm")


def test_an_empty_mask_is_written_too(tmp_path):
    film = open_image(dicom(FILM))
    assert not np.asarray(read_mask(write_mask_like(BONE * 0, film, tmp_path / "m.dcm"))).any()
    with pytest.raises(DataError, match="m.dcm: the mask is 95x40, but its image is 96x40"):
        write_mask_like(BONE[1:], film, tmp_path / "m.dcm")
    with pytest.raises(DataError, match="m.dcm: .* use .png"):
        write_mask_like(BONE, open_image(FILM), tmp_path / "m.dcm")
    nameless = open_image(dicom(FILM, SOPInstanceUID=None))
    with pytest.raises(DataError, match="no SOPInstanceUID"):
        write_mask_like(BONE, nameless, tmp_path / "m.dcm")


# ---------------------------------------------------------------- nothing of the patient


def test_no_name_number_or_date_goes_anywhere(tmp_path, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    secrets = [value for value in IDENTITY.values() if len(value) > 1]
    bad = dict(PatientName="Secret^Name", PixelSpacing=[0.2, 0.2])
    film = open_image(dicom(DEEP, **bad, **TWELVE))
    write_mask_like(BONE, film, tmp_path / "m.dcm")
    write_mask_like(BONE, film, tmp_path / "m.png")
    said = [repr(film.about), repr(film.notes), *(p.read_bytes().decode("latin-1") for p in tmp_path.iterdir())]
    data = dicom(DEEP, **bad, **TWELVE)
    for at in (b"MRN-777", b"19511224", b"Secret^Name", b"20250203"):
        for cut in (data[:data.index(at) + 3], data.replace(at, at[::-1]), data[:data.index(at)] + b"\xff" * 9 + data[data.index(at):]):
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")
                try:
                    open_image(cut, name="film.dcm")
                except DataError as error:
                    said.append(str(error))
            said += [str(w.message) for w in heard]
    for syntax in ("explicit", "implicit", "bare", "headless"):  # fields that swallow the next
        data, rng = dicom(FILM, syntax), np.random.default_rng(3)
        for at in range(0, min(700, len(data)), 3):
            bad = bytearray(data)
            bad[at] = rng.integers(256)
            try:
                film = open_image(bytes(bad), name="film.dcm")
                said += [repr(film.about), repr(film.notes)]
            except DataError as error:
                said.append(str(error))
    text = "\n".join([*said, *capfd.readouterr(), caplog.text])
    assert not [s for s in secrets if s in text or s[::-1] in text]


# ---------------------------------------------------------------- one sentence


def as_film(ds):
    ds.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
    ds.PixelData = encapsulate([b"no such film"])
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True


@pytest.mark.parametrize("change, words", [
    (lambda ds: ds.__delitem__("PixelData"), "without pixels"),
    (lambda ds: setattr(ds, "PhotometricInterpretation", "PALETTE COLOR"), "in colours .PALETTE COLOR"),
    (lambda ds: setattr(ds, "Rows", 9999), "cannot be decoded"),
    (lambda ds: setattr(ds, "Rows", 0), "no image"),
    (lambda ds: (setattr(ds, "Rows", 65535), setattr(ds, "Columns", 65535)), "too large"),
    (lambda ds: setattr(ds, "PixelData", b""), "cannot be decoded"),
    (lambda ds: as_film(ds), "cannot be decoded")])
def test_what_cannot_be_shown_is_one_sentence(change, words):
    ds, file = dataset(FILM), io.BytesIO()
    change(ds)
    ds.save_as(file, enforce_file_format=True)
    with pytest.raises(DataError, match=f"film: .*{words}") as caught:
        read_image(file.getvalue(), name="film")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    real = grey.importlib.import_module
    def missing(name):
        if name.startswith(("pydicom", "pylibjpeg")):
            raise ModuleNotFoundError(name=name)
        return real(name)
    data = dicom(FILM)
    monkeypatch.setattr(grey.importlib, "import_module", missing)
    with pytest.raises(DataError, match=r'film: reading it takes a package .*pip install "verdiff\[medical\]"'):
        read_image(data, name="film")


def test_a_deflated_promise_of_gigabytes(monkeypatch):
    monkeypatch.setattr(reader, "INFLATED_AT_MOST", 1000)
    with pytest.raises(DataError, match="deflated .* too large"):
        read_image(dicom(FILM, "deflated"))


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_mutated_dicom_is_a_picture_or_one_sentence(syntax):
    data, rng = dicom(FILM, syntax), np.random.default_rng(len(syntax))
    tracemalloc.start()
    for _ in range(40):
        start = time.process_time()
        for read in (read_image, read_mask):
            try:
                assert read(mutate(data, rng), name="film.dcm").mode == "L"
            except DataError as error:
                assert str(error).startswith("film.dcm: ") and "\n" not in str(error)
        assert time.process_time() - start < 20
    assert tracemalloc.get_traced_memory()[1] < 1 << 29
    tracemalloc.stop()


# ---------------------------------------------------------------- real files, where they are at hand


REAL = samples() and samples() / "dicom"
REFUSED = {"DX_mono1_j2kr_BROKEN_codestream": "cannot be decoded", "US_no_pixel_spacing": "in colours"}


@pytest.mark.skipif(not REAL or not REAL.is_dir(), reason="no real files here")
@pytest.mark.parametrize("path", sorted(REAL.glob("*.dcm")) if REAL else [], ids=lambda p: p.stem)
def test_real_files(path, tmp_path):
    if path.stem in REFUSED:
        with pytest.raises(DataError, match=REFUSED[path.stem]):
            list(open_images(path))
        return
    shown = list(open_images(path))
    count = 10 if "multiframe10" in path.stem else 16 if "multiframe16" in path.stem else 1
    assert len(shown) == count and all(p.pixels.std() > 20 for p in shown)
    mask = shown[0].pixels > 128
    assert np.array_equal(np.asarray(read_mask(write_mask_like(mask, shown[0], tmp_path / "m.dcm"))) > 0, mask)
    known = {"CR_mono2": (0.2, 0.2), "DX_mono1_12in16": (0.16, 0.16), "CT_bigendian": (0.675781, 0.675781)}
    assert all(shown[0].spacing == v for k, v in known.items() if path.stem.startswith(k))
    if "zero_spacing" in path.stem or "nospacing" in path.stem:
        assert shown[0].spacing is None and "no pixel spacing" in shown[0].notes[0]


@pytest.mark.skipif(not REAL or not REAL.is_dir(), reason="no real files here")
def test_the_same_hip_in_every_codec():
    hips = {p.stem: np.asarray(read_image(p)).astype(int) for p in sorted(REAL.glob("*_hip.dcm"))}
    first = hips["CR_mono2_10in16_RLE_hip"]
    assert len(hips) == 5
    for name, hip in hips.items():
        assert np.abs(hip - first).max() <= (30 if "lossy" in name else 0), name
    lit = np.asarray(read_image(REAL / "DX_mono1_12in16_j2kr_chestPA.dcm"))
    assert lit[1000:1400, 900:1100].mean() > lit[600:900, 450:650].mean() + 20  # a spine is brighter than a lung

