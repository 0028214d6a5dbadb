"""NIfTI and MHA files that hold one picture."""
import io

import numpy as np
import pytest
from formats import mutate, phantom
from hypothesis import given, settings
from hypothesis import strategies as st

nib = pytest.importorskip("nibabel")

from verdiff.files import DataError
from verdiff.io.grey import to_uint8
from verdiff.io.images import is_image_file, open_image, read_image
from verdiff.io.masks import read_mask, write_mask_like
from verdiff.io.volume_files import write_meta, write_nifti

FILM, BONE = phantom()


def as_stored(picture, axis, order, flips, spacing):
    """A picture as a volume of one slice whose axes lie in any order and direction, and its affine."""
    body = np.expand_dims(picture[::-1, ::-1].T, axis)  # R, A, S
    stored = body.transpose(order)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for k, world in enumerate(order):
        affine[world, k] = -spacing[world] if flips[k] else spacing[world]
        affine[world, 3] = spacing[world] * (stored.shape[k] - 1) if flips[k] else 0
    return np.flip(stored, [k for k in range(3) if flips[k]]), affine


@settings(max_examples=60, deadline=None)
@given(axis=st.integers(0, 2), order=st.permutations(range(3)), flips=st.tuples(*[st.booleans()] * 3),
       ending=st.sampled_from([".nii", ".nii.gz", ".mha"]), kind=st.sampled_from(["uint8", "int16", "float32"]))
def test_a_slice_of_any_axes_is_upright_and_its_mask_lies_on_its_voxels(tmp_path_factory, axis, order, flips, ending, kind):
    folder = tmp_path_factory.mktemp("slice")
    pixels = FILM if kind == "uint8" else FILM.astype(kind) * 10 - 900
    stored, affine = as_stored(pixels, axis, order, flips, (0.5, 0.7, 0.9))
    path = folder / f"film{ending}"
    (write_meta if ending == ".mha" else write_nifti)(path, stored, affine)
    across = [(0.7, 0.9), (0.5, 0.9), (0.5, 0.7)][axis]  # mm between columns, rows
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        film = open_image(source)
        assert np.array_equal(film.pixels, to_uint8(pixels))
        assert film.spacing == pytest.approx(across[::-1], rel=1e-5)
    assert is_image_file(path)
    for name in ("mask.png", "mask.nii.gz", "mask.mha", "mask.nii"):
        written = write_mask_like(BONE, film, folder / name)
        assert np.array_equal(read_mask(written), BONE * 255)
    mask = nib.load(folder / "mask.nii.gz")
    wanted, _ = as_stored(BONE, axis, order, flips, (0.5, 0.7, 0.9))
    assert np.allclose(mask.affine, affine, atol=1e-5) and np.array_equal(np.asarray(mask.dataobj), wanted)


def test_a_volume_is_refused_and_named(tmp_path):
    for name, write in (("ct.nii.gz", write_nifti), ("mr.mha", write_meta)):
        write(tmp_path / name, np.zeros((9, 8, 7), np.int16), np.eye(4))
        with pytest.raises(DataError, match=f"{name}: a volume of 9x8x7 voxels; .*verdiff.data.volumes"):
            read_image(tmp_path / name)
        with pytest.raises(DataError, match="scan: a volume of 9x8x7 voxels"):
            read_image((tmp_path / name).read_bytes(), name="scan")


@pytest.mark.parametrize("number", range(3))
def test_a_mutated_volume_file_is_a_picture_or_one_sentence(tmp_path, number):
    name = ["a.nii", "a.nii.gz", "a.mha"][number]
    path = (write_meta if number == 2 else write_nifti)(tmp_path / name, FILM.T[:, :, None], np.diag([-1.0, -1, 1, 1]))
    data, rng = path.read_bytes(), np.random.default_rng(number)
    for _ in range(60):
        for read in (read_image, read_mask):
            try:
                assert read(mutate(data, rng), name=name).mode == "L"
            except DataError as error:
                assert str(error).startswith(f"{name}: ") and "\n" not in str(error) and "/tmp" not in str(error)
