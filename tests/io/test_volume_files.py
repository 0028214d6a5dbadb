"""Volumes of every format, order of axes and kind of damage, read to their last byte."""
import gzip
import itertools
import zlib

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verdiff.data.phantom_volumes import grid_affine
from verdiff.files import DataError
from verdiff.io.grids import VolumeFile, as_stored, check_same_grid, load
from verdiff.io.volume_files import open_volume, read_volume, write_meta, write_nifti

CODES = ["".join(c) for p in itertools.permutations(("RL", "AP", "SI")) for c in itertools.product(*p)]
VOXELS = np.random.default_rng(0).integers(-1000, 2000, (9, 7, 11)).astype(np.int16)
PLACE = np.array([[2.0, 0, 0, 5], [0, 1, 0, -6], [0, 0, 1.5, 7], [0, 0, 0, 1]])
META = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = {big}
CompressedData = {packed}
TransformMatrix = {turn}
Offset = -5 6 7
ElementSpacing = 2 1 1.5
DimSize = 9 7 11
ElementType = MET_SHORT
ElementDataFile = {data}
"""
NO_TURN = "-1 0 0 0 -1 0 0 0 1"


def meta(path, data, voxels=b"", big=False, packed=False, ends="\n", turn=NO_TURN):
    text = META.format(data=data, big=big, packed=packed, turn=turn).replace("\n", ends)
    path.write_bytes(text.encode() + voxels)
    return path


def nifti(path, voxels=VOXELS, affine=PLACE, sform=1, qform=0, kind=nib.Nifti1Image, order="<"):
    header = kind.header_class(endianness=order)
    image = kind(voxels, affine, header)
    if qform:
        image.set_qform(affine, qform)
    nib.save(image, path)
    if sform == 0:  # nibabel would put one in
        data = bytearray(gzip.decompress(path.read_bytes()))
        data[254:256] = b"\0\0"
        data[280:328] = bytes(48)  # the sform's rows
        path.write_bytes(gzip.compress(data))
        head = nib.load(path).header
        assert head["sform_code"] == 0 and head["qform_code"] == qform
    return path


def stored(path):
    return np.concatenate(list(open_volume(path).blocks()), 2)


def refused(call, *words):
    with pytest.raises(DataError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and all(w in text for w in words), text
    return text


@settings(max_examples=40, deadline=None)
@given(code=st.sampled_from(CODES), oblique=st.floats(0, 25), seed=st.integers(0, 99),
       kind=st.sampled_from(["uint8", "int16", "uint16", "int32", "float32", "float64"]),
       ending=st.sampled_from([".nii", ".nii.gz", ".mha"]))
def test_every_order_of_axes(tmp_path_factory, code, oblique, seed, kind, ending):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(2, 9, 3))
    voxels = rng.integers(0, 200, shape).astype(kind)
    affine = grid_affine(shape, rng.uniform(0.5, 4, 3), code, oblique)
    path = tmp_path_factory.mktemp("v") / f"a{ending}"
    (write_meta if ending == ".mha" else write_nifti)(path, voxels, affine)
    file = open_volume(path)
    assert np.array_equal(np.concatenate(list(file.blocks()), 2), voxels)
    assert np.allclose(file.affine, affine, atol=1e-4)
    volume = load(file)
    assert np.array_equal(as_stored(volume.array, file), voxels)
    index = rng.integers(0, volume.array.shape, (20, 3))  # the same voxel at the same millimetre
    at = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    back = np.rint((at - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T).astype(int)
    assert np.array_equal(volume.array[tuple(index.T)], voxels[tuple(back.T)])
    main = volume.affine[:3, :3] / volume.spacing
    assert (np.diag(main) > 0.7).all()  # right, front, up


def test_nifti_of_every_kind(tmp_path):
    paths = [nifti(tmp_path / "a.nii"), nifti(tmp_path / "a.nii.gz"),
             nifti(tmp_path / "two.nii.gz", kind=nib.Nifti2Image),
             nifti(tmp_path / "big.nii.gz", VOXELS.astype(">i2"), order=">"),
             nifti(tmp_path / "one.nii.gz", VOXELS[..., None]),
             nifti(tmp_path / "pair.img", kind=nib.Nifti1Pair)]
    (tmp_path / "unpacked.nii.gz").write_bytes((tmp_path / "a.nii").read_bytes())
    (tmp_path / "packed.nii").write_bytes((tmp_path / "a.nii.gz").read_bytes())
    for path in [*paths, tmp_path / "unpacked.nii.gz", tmp_path / "packed.nii", tmp_path / "pair.hdr"]:
        assert np.array_equal(stored(path), VOXELS), path
        assert np.allclose(open_volume(path).affine, PLACE), path


def test_slope_and_units(tmp_path):
    image = nib.Nifti1Image(VOXELS, PLACE / [[1000], [1000], [1000], [1]])
    image.header.set_xyzt_units("meter")
    image.header.set_slope_inter(2, -5)
    nib.save(image, tmp_path / "a.nii.gz")
    raw = np.asanyarray(nib.load(tmp_path / "a.nii.gz").dataobj)
    assert np.allclose(stored(tmp_path / "a.nii.gz"), raw)
    assert np.allclose(open_volume(tmp_path / "a.nii.gz").spacing, (2, 1, 1.5))


def test_qform_only_and_neither(tmp_path):
    turned = grid_affine(VOXELS.shape, (2, 1, 1.5), "RAS", 12)
    path = nifti(tmp_path / "q.nii.gz", affine=turned, sform=0, qform=1)
    assert np.allclose(open_volume(path).affine, turned, atol=1e-4)
    refused(lambda: open_volume(nifti(tmp_path / "n.nii.gz", sform=0)), "n.nii.gz", "orientation")


def test_affines_that_are_not_orthonormal(tmp_path):
    sheared = PLACE.copy()
    sheared[2, 1] = 0.3
    assert np.allclose(open_volume(nifti(tmp_path / "s.nii.gz", affine=sheared)).affine, sheared)
    rounded = grid_affine(VOXELS.shape, (2, 1, 1.5), "RAS", 12).round(3)
    assert np.allclose(read_volume(nifti(tmp_path / "r.nii.gz", affine=rounded)).spacing, (2, 1, 1.5), atol=0.01)
    flat = nifti(tmp_path / "f.nii", affine=PLACE)
    data = bytearray(flat.read_bytes())
    data[312:328] = np.array([0, 0, 0, 7], "<f4").tobytes()  # srow_z: no direction upwards
    flat.write_bytes(data)
    refused(lambda: open_volume(flat), "f.nii", "affine")


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_metaimage_of_every_kind(tmp_path, ends, big, packed):
    data = VOXELS.astype(">i2" if big else "<i2").tobytes("F")
    data = zlib.compress(data) if packed else data
    (tmp_path / "a.raw").write_bytes(data)
    for path in (meta(tmp_path / "a.mhd", "a.raw", b"", big, packed, ends),
                 meta(tmp_path / "a.mha", "LOCAL", data, big, packed, ends)):
        assert np.array_equal(stored(path), VOXELS)
        assert np.allclose(open_volume(path).affine, PLACE)


def test_metaimage_agrees_with_simpleitk(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    turn = "0 0.6 0.8 1 0 0 0 0.8 -0.6"
    (tmp_path / "a.raw").write_bytes(VOXELS.astype("<i2").tobytes("F"))
    image = sitk.ReadImage(str(meta(tmp_path / "a.mhd", "a.raw", turn=turn)))
    ours = open_volume(tmp_path / "a.mhd")
    assert np.array_equal(sitk.GetArrayFromImage(image).T, stored(tmp_path / "a.mhd"))
    for index in ((0, 0, 0), (3, 2, 5)):
        lps = np.array(image.TransformIndexToPhysicalPoint(index))
        assert np.allclose((ours.affine @ [*index, 1])[:3], lps * (-1, -1, 1))


def test_damage_is_noticed(tmp_path):
    whole = nifti(tmp_path / "a.nii.gz").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    packed = zlib.compress(VOXELS.astype("<i2").tobytes("F"))
    for name, data in {"cut": whole[:len(whole) // 2], "sum": whole[:-8] + b"\0\0\0\0" + whole[-4:],
                       "flip": bytes(flipped), "length": whole[:-4] + b"\1\2\3\4",
                       "short": gzip.compress(gzip.decompress(whole)[:-50])}.items():
        path = tmp_path / f"{name}.nii.gz"
        path.write_bytes(data)
        refused(lambda p=path: read_volume(p), path.name, "again")
    for name, data in {"cut": packed[:-300], "sum": packed[:-2] + b"xx"}.items():
        path = meta(tmp_path / f"{name}.mha", "LOCAL", data, packed=True)
        refused(lambda p=path: read_volume(p), path.name, "again")
    path = meta(tmp_path / "few.mha", "LOCAL", VOXELS.tobytes("F")[:-20])
    refused(lambda: read_volume(path), "few.mha", "ends in plane")
    (tmp_path / "headless.mha").write_bytes(b"ObjectType = Image\nNDims = 3\n")
    refused(lambda: open_volume(tmp_path / "headless.mha"), "header")


def test_refused_in_one_sentence(tmp_path):
    nib.save(nib.AnalyzeImage(VOXELS, PLACE), tmp_path / "ana.img")
    for name, data in {"empty.nii.gz": b"", "text.nii.gz": b"hello", "m.mat": b"MATLAB 5.0 MAT-file",
                       "n.nrrd": b"NRRD0004\n", "gz.nii.gz": gzip.compress(b"hello")}.items():
        (tmp_path / name).write_bytes(data)
    for name in ("empty.nii.gz", "text.nii.gz", "m.mat", "n.nrrd", "gz.nii.gz", "ana.img", "ana.hdr", "none.nii"):
        refused(lambda n=name: open_volume(tmp_path / n), name)
    four = nifti(tmp_path / "four.nii.gz", np.stack([VOXELS] * 2, -1))
    refused(lambda: open_volume(four), "4 dimensions")
    assert open_volume(nifti(tmp_path / "two.nii.gz", VOXELS[:, :, 0])).shape == (*VOXELS.shape[:2], 1)
    refused(lambda: open_volume(nifti(tmp_path / "one.nii.gz", VOXELS[:, 0, 0])), "1 dimensions")
    refused(lambda: open_volume(meta(tmp_path / "gone.mhd", "gone.raw")), "gone.raw")
    text = META.format(data="LOCAL", big=False, packed=False, turn=NO_TURN).replace("2 1 1.5", "0 1 1")
    (tmp_path / "zero.mha").write_text(text)
    refused(lambda: open_volume(tmp_path / "zero.mha"), "affine")
    (tmp_path / "word.mha").write_text(text.replace("0 1 1", "a b c"))
    refused(lambda: open_volume(tmp_path / "word.mha"), "number")


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), name=st.sampled_from(["a.nii", "a.nii.gz", "a.mha"]))
def test_changed_bytes_are_read_or_refused(tmp_path_factory, seed, name):
    folder, rng = tmp_path_factory.mktemp("v"), np.random.default_rng(seed)
    path = (write_meta if name == "a.mha" else write_nifti)(folder / name, VOXELS, PLACE)
    data = bytearray(path.read_bytes())
    for at in rng.integers(0, 352, 2):  # mostly of the header
        data[at % len(data)] = rng.choice([0, 255, 45, 57, rng.integers(256)])
    path.write_bytes(data[:rng.integers(len(data))] if seed % 5 == 0 else data)
    try:
        read_volume(path)
    except DataError as error:
        assert "\n" not in str(error) and name in str(error)


def grid(affine, shape=VOXELS.shape, name="mask.nii.gz"):
    return VolumeFile(name, shape, np.asarray(affine, float), np.dtype("u1"), lambda: iter(()))


def test_same_grid():
    from pathlib import Path

    image, off = grid(PLACE, name=Path("image.nii.gz")), PLACE.copy()
    off[0, 1] += 1e-8
    check_same_grid(image, grid(off))
    check_same_grid(image, grid(np.float32(PLACE) + np.float32(1e-5)))
    flipped = PLACE.copy()
    flipped[:, 0], flipped[:3, 3] = -PLACE[:, 0], PLACE[:3, 3] + PLACE[:3, 0] * (VOXELS.shape[0] - 1)
    check_same_grid(image, grid(flipped))
    refused(lambda: check_same_grid(image, grid(PLACE, (9, 7, 3))), "another grid", "9x7x3", "9x7x11")
    coarse = PLACE @ np.diag([1, 1, 1.2, 1])
    refused(lambda: check_same_grid(image, grid(coarse)), "another grid", "1.8")
    moved = PLACE.copy()
    moved[2, 3] += 1
    refused(lambda: check_same_grid(image, grid(moved)), "1 mm apart")


def test_blocks_are_small(tmp_path):
    import tracemalloc

    path = write_nifti(tmp_path / "a.nii.gz", np.zeros((200, 200, 400), np.float32), PLACE)
    file = open_volume(path)
    tracemalloc.start()
    assert sum(block.shape[2] for block in file.blocks()) == 400
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24e6 < 64e6  # the volume has 64 MB
