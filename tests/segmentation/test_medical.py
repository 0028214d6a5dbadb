"""`verdiff segment` on DICOM, NIfTI and MHA: masks on the file's own pixels, and nothing of the patient."""
import json

import numpy as np
import pytest
from formats import IDENTITY, dicom, phantom
from PIL import Image

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")
pytest.importorskip("nibabel")

from verdiff.cli import main
from verdiff.io.masks import read_mask
from verdiff.io.volume_files import open_volume, read_volume, write_meta, write_nifti
from verdiff.networks.config import VerdiffConfig
from verdiff.networks.model import VerdiffNet
from verdiff.segmentation.folder import segment_files
from verdiff.segmentation.segmenter import Segmentation, Segmenter

FILM, BONE = phantom()


@pytest.fixture(scope="module")
def model():
    return VerdiffNet(VerdiffConfig(height=64, width=32, channels=(8, 16), timesteps=8))


@pytest.fixture
def bright(monkeypatch, model):
    "A segmenter that marks what is bright."
    def predict(self, image, steps, ensemble, seed, zoom):
        mask = (np.asarray(image) > 128).astype(np.uint8)
        return Segmentation(mask, mask.astype(np.float32), np.zeros(mask.shape, np.float32), mask.astype(np.float32))
    monkeypatch.setattr(Segmenter, "predict", predict)
    return Segmenter(model, "cpu")


def masks(out, stem, ending):
    "The mask as PNG and in the file's own format, bool."
    return [np.asarray(read_mask(out / f"{stem}_mask{e}")) > 0 for e in (".png", ending)]


def test_dicom_gets_its_mask_on_its_pixels_and_nobody_is_named(bright, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/1.2.840.7").write_bytes(dicom(FILM, PixelSpacing=[0.5, 0.25]))  # found by content
    (tmp_path / "in/other.dcm").write_bytes(dicom(FILM[:40], PixelSpacing=None))
    count = segment_files(bright, [tmp_path / "in"], tmp_path / "out", progress=False)
    assert count["images"] == 2 and not count["could not be done"]
    assert "other.dcm: it tells no pixel spacing" in capsys.readouterr().err
    png, seg = masks(tmp_path / "out", "1.2.840.7", ".dcm")
    assert np.array_equal(png, FILM > 128) and np.array_equal(seg, png)
    record = json.loads((tmp_path / "out/1.2.840.7.json").read_text())
    assert record["spacing_mm"] == [0.5, 0.25] and record["bone_mm2"] == round((FILM > 128).sum() / 8, 1)
    assert "spacing_mm" not in json.loads((tmp_path / "out/other.json").read_text())
    written = b"".join(p.read_bytes() for p in (tmp_path / "out").iterdir())
    assert len(list((tmp_path / "out").iterdir())) == 12
    for value in {**IDENTITY, "PatientSex": "Secret"}.values():
        assert str(value).encode() not in written
    assert not pydicom.dcmread(tmp_path / "out/other_mask.dcm").PatientSex


def test_each_frame_has_results_of_its_own(bright, tmp_path):
    (tmp_path / "cine.dcm").write_bytes(dicom(np.stack([FILM, 255 - FILM])))
    for again in (False, True):
        count = segment_files(bright, [tmp_path / "cine.dcm"], tmp_path / "out", progress=False)
        assert count["images"] == 2 and count["there already"] == 2 * again
    for frame, film in enumerate((FILM, 255 - FILM)):
        png, seg = masks(tmp_path / "out", f"cine_frame00{frame}", ".dcm")
        assert np.array_equal(png, film > 128) and np.array_equal(seg, png)
        assert json.loads((tmp_path / f"out/cine_frame00{frame}.json").read_text())["frame"] == frame


@pytest.mark.parametrize("write, name, ending", [
    (write_nifti, "film.nii.gz", ".nii.gz"), (write_nifti, "film.nii", ".nii.gz"), (write_meta, "film.mha", ".mha")])
def test_a_slice_gets_its_mask_with_its_affine(bright, tmp_path, write, name, ending):
    affine = np.array([[0, 0, -0.5, 3], [0, 4, 0, 5], [2.0, 0, 0, 7], [0, 0, 0, 1]])
    write(tmp_path / name, FILM[:, None, :].astype(np.int16), affine)
    segment_files(bright, [tmp_path / name], tmp_path / "out", progress=False)
    found = open_volume(tmp_path / f"out/film_mask{ending}")
    assert np.allclose(found.affine, affine) and found.shape == (FILM.shape[0], 1, FILM.shape[1])
    shown = read_volume(tmp_path / name).array
    grey, mask = np.asarray(shown), np.asarray(read_volume(tmp_path / f"out/film_mask{ending}").array)
    assert mask.any() and grey[mask > 0].min() >= grey[mask == 0].max()
    assert json.loads((tmp_path / "out/film.json").read_text())["spacing_mm"] == [2, 0.5]


@pytest.mark.parametrize("place", [
    {}, {"SOPInstanceUID": None, "PixelSpacing": None},
    {"ImagePositionPatient": [10, 20, 30], "ImageOrientationPatient": [1, 0, 0, 0, 0, -1]},
    {"ImagePositionPatient": [10, 20, 30], "ImageOrientationPatient": [0, 0.8, -0.6, 0, -0.6, -0.8]}])
def test_the_mask_of_a_dicom_as_nifti(bright, tmp_path, place):
    "Each voxel lies where the DICOM says that its pixel lies (C.7.6.2.1.1 of the standard)."
    place = {"PixelSpacing": [0.5, 0.25], **place}
    (tmp_path / "a.dcm").write_bytes(dicom(FILM, **place))
    for again in (False, True):
        count = segment_files(bright, [tmp_path / "a.dcm"], tmp_path / "out", progress=False, nifti=True)
        assert count["images"] == 1 and count["there already"] == again
    assert not (tmp_path / "out/a_mask.dcm").exists()
    file = open_volume(tmp_path / "out/a_mask.nii.gz")
    stored = np.concatenate(list(file.blocks()), 2)[:, :, 0]
    assert np.array_equal(stored.T > 0, FILM > 128)
    assert np.array_equal(masks(tmp_path / "out", "a", ".nii.gz")[1], FILM > 128)
    turn = place.get("ImageOrientationPatient", [1, 0, 0, 0, 1, 0])
    down, right = place["PixelSpacing"] or (1, 1)
    for column, row in ((0, 0), (7, 30)):
        lps = np.add(place.get("ImagePositionPatient", [0, 0, 0]),
                     np.multiply(turn[:3], right * column) + np.multiply(turn[3:], down * row))
        assert np.allclose(file.affine @ [column, row, 0, 1], [-lps[0], -lps[1], lps[2], 1], atol=1e-4)


def test_a_mask_that_was_changed_by_hand_is_not_written_over(bright, tmp_path, capsys):
    (tmp_path / "a.dcm").write_bytes(dicom(FILM))
    segment_files(bright, [tmp_path / "a.dcm"], tmp_path, progress=False)
    again = segment_files(bright, [tmp_path], tmp_path, progress=False)  # its own results are no images
    assert again["images"] == again["there already"] == 1
    (tmp_path / "a_mask.dcm").unlink()
    assert segment_files(bright, [tmp_path / "a.dcm"], tmp_path, progress=False)["there already"] == 0
    drawn = (tmp_path / "a_mask.dcm").read_bytes() + b"\0\0"
    (tmp_path / "a_mask.dcm").write_bytes(drawn)
    assert segment_files(bright, [tmp_path / "a.dcm"], tmp_path, fresh=True, progress=False)["could not be done"] == 1
    assert "a_mask.dcm: not a result of verdiff" in capsys.readouterr().err
    assert (tmp_path / "a_mask.dcm").read_bytes() == drawn


def test_a_film_that_no_segmentation_can_refer_to(bright, tmp_path):
    (tmp_path / "a.dcm").write_bytes(dicom(FILM, SOPInstanceUID=None))
    assert segment_files(bright, [tmp_path / "a.dcm"], tmp_path / "out", progress=False)["images"] == 1
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_the_word_window(model, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    steep = dicom((FILM.astype(np.uint16) * 16), WindowCenter=[2048, 300], WindowWidth=[4096, 200])
    (tmp_path / "a.dcm").write_bytes(steep)
    pixels = set()
    for window in ("0", "1", "300,200", "2048,4096"):
        out = tmp_path / window
        assert main(["segment", str(tmp_path / "a.dcm"), "-o", str(out), "--model", str(tmp_path / "model"),
                     "--window", window, "--ensemble", "1"]) == 0
        pixels.add(json.loads((out / "a.json").read_text())["pixels"])
    assert len(pixels) == 2
    for window, words in (("2", "there is no window 2"), ("wide", "expected a number from 0, or CENTRE,WIDTH")):
        assert main(["segment", str(tmp_path / "a.dcm"), "-o", str(tmp_path / "no"), "--model", str(tmp_path / "model"),
                     "--window", window]) == 2
        assert words in capsys.readouterr().err


def test_pairs_of_dicom_and_of_slices_train_like_pictures(tmp_path):
    from verdiff.data.datasets import open_dataset
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    (tmp_path / "images/a.dcm").write_bytes(dicom(FILM))
    Image.fromarray(FILM).save(tmp_path / "images/b.png")
    write_nifti(tmp_path / "images/c.nii.gz", FILM[:, None, :].astype(np.int16), np.diag([1.0, 1, 1, 1]))
    for name in "ab":
        Image.fromarray(BONE).save(tmp_path / f"masks/{name}.png")
    write_nifti(tmp_path / "masks/c_mask.nii.gz", BONE[:, None, :], np.diag([1.0, 1, 1, 1]))
    data = open_dataset(tmp_path, "all", (96, 96))
    assert data.names == ["a.dcm", "b.png", "c.nii.gz"]
    assert np.array_equal(data.arrays(0)[1], data.arrays(1)[1]) and data.arrays(2)[1].sum() == BONE.sum()
