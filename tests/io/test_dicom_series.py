"Slices in order, by where they lie."
import numpy as np
import pydicom
import pytest

from verdiff.data.phantom_volumes import grid_affine
from verdiff.files import DataError
from verdiff.io.dicom_series import open_series, write_series
from verdiff.io.grids import check_same_grid, load
from verdiff.io.volume_files import open_volume, write_nifti

VOXELS = np.random.default_rng(0).integers(-1000, 2000, (9, 7, 11)).astype(np.int16)


@pytest.mark.parametrize("axes, oblique", [("LPS", 0), ("LPI", 0), ("LPS", 12), ("PSR", 0), ("RSA", 5)])
def test_any_direction(tmp_path, axes, oblique):
    affine = grid_affine(VOXELS.shape, (0.9, 0.8, 2), axes, oblique)
    write_series(tmp_path, VOXELS, affine)
    volume, truth = load(open_series(tmp_path)), tmp_path / "truth.nii.gz"
    assert np.allclose(sorted(volume.spacing), (0.8, 0.9, 2), atol=1e-5)  # SliceThickness says 3
    write_nifti(truth, VOXELS, affine)
    check_same_grid(volume.source, open_volume(truth))
    assert np.array_equal(volume.array, load(open_volume(truth)).array)


def test_tilted_gantry(tmp_path):
    affine = grid_affine(VOXELS.shape, (0.9, 0.8, 2), "LPS")
    affine[1, 2] = 0.5  # each slice lies half a millimetre further to the front
    write_series(tmp_path, VOXELS, affine)
    assert np.allclose(open_series(tmp_path).affine, affine, atol=1e-5)


def refused(folder, *words):
    with pytest.raises(DataError) as caught:
        list(open_series(folder).blocks())
    assert "\n" not in str(caught.value) and all(w in str(caught.value) for w in words), caught.value


def test_refused_in_one_sentence(tmp_path):
    refused(tmp_path, "no DICOM")
    affine = grid_affine(VOXELS.shape, (0.9, 0.8, 2), "LPS")
    write_series(tmp_path, VOXELS, affine)
    middle = tmp_path / "CT.005"
    kept = middle.read_bytes()
    middle.unlink()
    refused(tmp_path, "slices missing", "10 slices", "2 to 4 mm")
    middle.write_bytes(kept)
    (tmp_path / "copy").write_bytes(kept)
    refused(tmp_path, "two slices in one place")
    (tmp_path / "copy").unlink()
    for tag, words in {"ImagePositionPatient": "where the slice lies", "PixelSpacing": "PixelSpacing"}.items():
        ds = pydicom.dcmread(middle)
        delattr(ds, tag)
        ds.save_as(middle)
        refused(tmp_path, "CT.005", words)
        middle.write_bytes(kept)
    ds = pydicom.dcmread(middle)
    ds.Rows, ds.PixelData = 6, ds.PixelData[:6 * 9 * 2]
    ds.save_as(middle)
    refused(tmp_path, "differ in size")
    ds = pydicom.dcmread(middle)
    ds.Rows, ds.PixelData = 7, ds.PixelData[:20]
    ds.save_as(middle)
    refused(tmp_path, "CT.005", "cannot be decoded")
    middle.write_bytes(kept)
    write_series(tmp_path / "..", VOXELS[:, :, :1], affine)
    (tmp_path / "other").write_bytes((tmp_path / "../CT.001").read_bytes())
    refused(tmp_path, "2 series")


def test_no_patient_in_errors(tmp_path):
    affine = grid_affine(VOXELS.shape, (0.9, 0.8, 2), "LPS")
    write_series(tmp_path, VOXELS, affine)
    for path in tmp_path.iterdir():
        ds = pydicom.dcmread(path)
        ds.PatientName, ds.PatientID, ds.StudyDate = "Doe^Jane", "4711", "19991231"
        ds.PixelData = ds.PixelData[:10]
        ds.save_as(path)
    with pytest.raises(DataError) as caught:
        list(open_series(tmp_path).blocks())
    assert not any(word in str(caught.value) for word in ("Doe", "4711", "1999"))
