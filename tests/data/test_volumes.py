"""Phantom volumes through every layout, and what users of such loaders stumbled over.

Real files are tried where they are at hand: in the folder that VERDIFF_SAMPLES names, or in
../shared/data beside the repository.
"""
import gzip
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import verdiff.data.volumes as module
from verdiff.data.datasets import are_volumes, held_for_test, open_dataset, patients, training_data
from verdiff.data.packed import pack
from verdiff.data.pairs import MaskFolder
from verdiff.data.phantom_layouts import (
    WRITERS,
    as_spider,
    as_totalsegmentator,
    as_verse,
    write_volume_set,
)
from verdiff.data.phantom_volumes import draw_phantom_volume
from verdiff.data.sagittal import SliceOptions, open_labels, sagittal_slices, slow_brightness
from verdiff.data.volume_labels import SPINE, find_scheme
from verdiff.data.volume_layouts import find_cases, one_case
from verdiff.data.volumes import VolumeSlices, holds_volumes
from verdiff.files import DataError
from verdiff.io.dicom_series import write_series
from verdiff.io.grids import as_stored, load
from verdiff.io.volume_files import open_volume, read_volume, write_nifti
from verdiff.settings import load_settings

SMALL = {"view": (84, 130, 150), "spacing": (3, 2, 2.5)}
HERE = Path(__file__).resolve().parents[2]
REAL = next((p / "volumes" for p in (Path(os.environ.get("VERDIFF_SAMPLES", "-")), HERE / "../shared/data",
                                     HERE / "../../shared/data") if (p / "volumes").is_dir()), None)
needs_real = pytest.mark.skipif(REAL is None, reason="no real volumes at hand")


@pytest.fixture(scope="module")
def phantom():
    return draw_phantom_volume(7, **SMALL)


def refused(call, *words):
    with pytest.raises(DataError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and all(w in text for w in words), text


def pair(folder, volume, labels=None, name="p", affine=None):
    "An image and its mask as files, as a case."
    (folder / "images").mkdir(exist_ok=True)
    (folder / "masks").mkdir(exist_ok=True)
    labels = as_verse(volume.labels) if labels is None else labels
    image, mask = folder / "images" / f"{name}.nii.gz", folder / "masks" / f"{name}.nii.gz"
    write_nifti(image, volume.image, volume.affine)
    write_nifti(mask, labels, volume.affine if affine is None else affine)
    return one_case(image, mask)


THREE = SliceOptions(slices=3)


def vertebra_pixels(case, options=THREE):
    slices, scheme, _ = sagittal_slices(case, options)
    return [np.isin(s.labels, scheme.values()) for s in slices]


# layouts

@pytest.mark.parametrize("layout", WRITERS)
def test_round_trip(tmp_path, layout):
    "Voxels, labels and geometry of each layout are those that were written."
    drawn = write_volume_set(tmp_path / "set", layout, 2, 1, oblique=10, **SMALL)
    cases = find_cases(tmp_path / "set").cases
    assert len(cases) == len(drawn) == 3
    keep = {"spider": as_spider, "totalsegmentator-map": as_totalsegmentator,
            "pairs": lambda x: x}.get(layout, as_verse)
    for case in cases:
        truth = drawn[case.patient.split("/")[-1].removeprefix("sub-")]
        image, labels = open_volume(case.image), open_labels(case)
        assert np.allclose(image.affine, truth.affine, atol=1e-3)
        assert np.allclose(labels.file.affine, truth.affine, atol=1e-3)
        assert np.array_equal(np.concatenate(list(image.blocks()), 2), truth.image)
        got = np.concatenate(list(labels.blocks()), 2)
        want = keep(truth.labels)
        if layout == "totalsegmentator":  # sacrum and canal are classes too
            want = np.where(np.isin(truth.labels, (26, 100)), truth.labels, want)
        assert np.array_equal(got, want)


@pytest.mark.parametrize("layout", WRITERS)
def test_same_slices_from_every_layout(tmp_path, layout):
    "The picture of a phantom does not depend on axes, format or numbers of the file."
    write_volume_set(tmp_path / "set", layout, 1, 0, seed=7, modality="ct", **SMALL)
    plain = write_volume_set(tmp_path / "plain", "pairs", 1, 0, seed=7, axes="RAS", **SMALL)
    case = find_cases(tmp_path / "set").cases[0]
    options = SliceOptions(slices=3, modality="ct")
    masks = vertebra_pixels(case, options)
    truth = next(iter(plain.values()))
    other = vertebra_pixels(pair(tmp_path, truth), options)
    assert len(masks) == 3
    for mask, expected in zip(masks, other, strict=True):
        assert mask.shape == expected.shape and (mask != expected).mean() < 0.01
        assert mask.any()


def test_parts_and_label_maps(tmp_path):
    write_volume_set(tmp_path / "set", "spider", 1, 0, seed=7, **SMALL)
    data = VolumeSlices(tmp_path / "set", size=(128, 128), cache=tmp_path / "cache", progress=False)
    masks = {}
    for parts in (("vertebra",), ("disc",), ("canal",), ("vertebra", "disc", "canal")):
        some = VolumeSlices(tmp_path / "set", size=(128, 128), cache=tmp_path / "cache", parts=parts, progress=False)
        masks[parts] = some.arrays(0)[1]
        labels, names = some.label_map(0)
        assert set(names) == set(np.unique(labels)) - {0}
        assert np.mean((labels > 0) != (masks[parts] > 0)) < 0.03
    alone = masks[("vertebra",)], masks[("disc",)], masks[("canal",)]
    assert all(m.any() for m in alone) and sum(m.astype(int) for m in alone).max() == 1
    assert (masks[("vertebra", "disc", "canal")] >= np.maximum.reduce(alone)).all()
    labels, names = data.label_map(0)
    assert set(names) == set(range(1, max(names) + 1)) and names[1] == "L5"
    rows = [np.nonzero(labels == k)[0].mean() for k in names]
    assert rows == sorted(rows, reverse=True)  # from the bottom up


# the interface of the radiographs

def test_interface(tmp_path):
    write_volume_set(tmp_path / "set", "ctspine1k", 3, 1, **SMALL)
    for size, fit in (((96, 64), "letterbox"), (module.PAPER_CT, "squash")):
        data = VolumeSlices(tmp_path / "set", "training", size, fit, cache=tmp_path / "cache", progress=False)
        assert len(data) == len(data.names) == len(data.groups) == 15 and len(set(data.names)) == 15
        image, mask, where = data.arrays(4)
        assert image.shape == mask.shape == size and image.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 1} and where.size == size
        assert fit == "letterbox" or where.content == size
        assert data[4].image.shape == (1, *size) and data.truth(0, where)[0].shape == (0, 2)
        packed = pack(data, tmp_path / f"{fit}.npz", progress=False)
        assert np.array_equal(packed.images[4, 0], image) and np.array_equal(packed.masks[4, 0], mask)
        kept = (tmp_path / f"{fit}.npz").stat().st_mtime_ns
        pack(data, tmp_path / f"{fit}.npz", progress=False)
        assert (tmp_path / f"{fit}.npz").stat().st_mtime_ns == kept
    assert len(VolumeSlices(tmp_path / "set", "test", cache=tmp_path / "cache", progress=False)) == 5
    assert holds_volumes(tmp_path / "set") and not holds_volumes(tmp_path / "cache")


def test_geometry_of_the_picture(tmp_path):
    "A block of known size, voxels that are not cubes: millimetres are right and the head is up."
    image = np.full((30, 50, 40), -1000, np.int16)
    image[5:25, 10:30, 8:20] = 400  # 20 x 0.8 mm deep, 12 x 2.5 mm high, its lower end at 20 mm
    labels = (image > 0).astype(np.uint8)
    affine = np.diag([1.5, 0.8, 2.5, 1.0])
    write_nifti(tmp_path / "i.nii.gz", image, affine)
    write_nifti(tmp_path / "m.nii.gz", labels, affine)
    (one,), scheme, modality = sagittal_slices(one_case(tmp_path / "i.nii.gz", tmp_path / "m.nii.gz"),
                                               SliceOptions(slices=1, spacing=0.5))
    assert modality == "ct" and one.image.shape == (200, 80) and one.plane in (14, 15)
    rows, columns = np.nonzero(one.labels)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (60, 32)
    assert rows.max() == 200 - 1 - 40 and columns.min() == 80 - 48  # 20 mm below it, 24 mm behind its front
    assert one.image[150, 40] == round(255 * 900 / 1800) and one.image[10, 10] == 0


@pytest.mark.parametrize("count, step", [(1, 4), (2, 6), (5, 3), (0, 4)])
def test_how_many_and_how_far(tmp_path, phantom, count, step):
    slices, _, _ = sagittal_slices(pair(tmp_path, phantom), SliceOptions(slices=count, step=step))
    planes = [s.plane for s in slices]
    if count:
        assert len(planes) == count
        assert set(np.diff(planes)) <= {max(round(step / 3), 1)}
        assert abs(np.mean(planes) - 13.5) < 3
    else:
        area = read_volume(tmp_path / "masks/p.nii.gz").array.astype(bool).sum((1, 2))
        assert planes == np.flatnonzero(area >= 0.3 * area.max()).tolist()


def test_patients_are_on_one_side(tmp_path):
    for layout in WRITERS:
        write_volume_set(tmp_path / layout, layout, 2, 2, view=(20, 40, 40), spacing=(5, 5, 5))
        cases = find_cases(tmp_path / layout).cases
        sides = {}
        for case in cases:
            sides.setdefault(case.patient, set()).add(case.split)
        assert len(cases) == 4 and all(len(s) == 1 for s in sides.values()), layout
        if layout != "pairs":
            assert sorted(c.split == "training" for c in cases) == [False, False, True, True]


def test_several_scans_of_one_patient(tmp_path, phantom):
    for name in ("anna_t1", "anna_t2", "ben_0000", "ben_0001", "carl"):
        pair(tmp_path, phantom, name=name)
    cases = find_cases(tmp_path).cases
    assert {c.patient for c in cases} == {"anna", "ben", "carl"}
    assert all(len({c.split for c in cases if c.patient == p}) == 1 for p in ("anna", "ben"))


def test_patient_on_both_sides_stays_held_out(tmp_path, capsys):
    write_volume_set(tmp_path / "set", "verse20", 2, 0, **SMALL)
    old = tmp_path / "set/dataset-01training"
    for part in ("rawdata", "derivatives"):  # the same person again, in the test part
        shutil.copytree(old / part / "sub-s0001", tmp_path / "set/dataset-03test" / part / "sub-s0001")
    train = VolumeSlices(tmp_path / "set", "training", cache=tmp_path / "c", progress=False)
    test = VolumeSlices(tmp_path / "set", "test", cache=tmp_path / "c", progress=False)
    assert set(train.groups) == {"sub-s0002"} and set(test.groups) == {"sub-s0001"}
    assert "held-out part" in capsys.readouterr().err


# what users stumbled over

@pytest.mark.parametrize("layout", WRITERS)
def test_the_word_data_takes_every_layout(tmp_path, layout):
    write_volume_set(tmp_path / "set", layout, 4, 1, **SMALL)
    test = open_dataset(tmp_path / "set", "test", (64, 64))
    assert isinstance(test, VolumeSlices) and len(set(test.groups)) == 1 and held_for_test(tmp_path / "set") is None
    for stream in ("true", "false"):
        settings = load_settings("smoke", ["val_fraction=0.3", f"stream={stream}"])
        parts = training_data(tmp_path / "set", settings, tmp_path / "images.npz")
        names = [{n.rsplit("/", 1)[0] for n in part.names} for part in parts]
        assert names[0] and names[1] and not names[0] & names[1]
    known = open_dataset(tmp_path / "set", "training", (64, 64), cache=tmp_path / "slices")
    assert len(list((tmp_path / "slices").iterdir())) == len(set(known.groups)) > 2  # cut once, for all
    packed = pack(known, progress=False)
    assert patients(packed) == known.groups and patients(packed.subset([9, 0])) == [known.groups[9], known.groups[0]]


def test_numbers_say_which_labels_are_vertebrae(tmp_path):
    "A number instead of a scheme: L3 alone; and none where a mask is one file a class."
    write_volume_set(tmp_path / "set", "ctspine1k", 2, 1, **SMALL)
    whole, one = (open_dataset(tmp_path / "set", "all", (64, 64), labels=words) for words in ("auto", "22"))
    for data in (whole, one):
        assert set(data.slice(0)[1].ravel()) > {0, 21, 22}
    assert one.values(0) == [22] and 0 < one[0].mask.sum() < whole[0].mask.sum() / 3
    write_volume_set(tmp_path / "classes", "totalsegmentator", 1, 1, **SMALL)
    refused(lambda: open_dataset(tmp_path / "classes", "all", labels="22"), "one file a class", "leave --labels out")


def test_pictures_in_two_folders_are_no_volumes(tmp_path):
    from PIL import Image
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        (tmp_path / "png" / part).mkdir(parents=True)
        picture = np.zeros((40, 1, 30), np.int16)
        picture[9:20, 0, 9:20] = 1 if part == "masks" else 200
        write_nifti(tmp_path / part / "1_t2.nii.gz", picture, np.eye(4))
        Image.fromarray(picture[:, 0].astype(np.uint8)).save(tmp_path / "png" / part / "1_t2.png")
        (tmp_path / "png" / "overview.csv").write_text("new_file_name,subset\n")
    for folder in (tmp_path, tmp_path / "png"):
        data = open_dataset(folder, "all", (40, 40))
        assert isinstance(data, MaskFolder) and data.arrays(0)[1].sum() == 121
    assert not are_volumes(tmp_path / "nowhere")
    (tmp_path / "rawdata").mkdir()
    write_nifti(tmp_path / "rawdata/sub-1_seg-vert_msk.nii.gz", picture, np.eye(4))
    shutil.rmtree(tmp_path / "images"), shutil.rmtree(tmp_path / "masks")
    refused(lambda: open_dataset(tmp_path, "training"), "1 masks without their volume")


def test_float_labels(tmp_path, phantom):
    labels = as_verse(phantom.labels).astype(np.float64)
    exact = vertebra_pixels(pair(tmp_path, phantom, labels))
    near = vertebra_pixels(pair(tmp_path, phantom, labels - 0.0001 * (labels > 0)))
    assert all(np.array_equal(a, b) for a, b in zip(exact, near, strict=True))
    refused(lambda: vertebra_pixels(pair(tmp_path, phantom, labels * 0.97)), "p.nii.gz", "whole numbers")
    refused(lambda: vertebra_pixels(pair(tmp_path, phantom, -labels)), "labels from -")


def test_directions_off_by_a_little(tmp_path, phantom):
    affine = phantom.affine.copy()
    affine[:3, :3] += 1e-8
    assert vertebra_pixels(pair(tmp_path, phantom, affine=affine))[0].any()


def test_sheared_grid_keeps_angles(tmp_path):
    "A tilted gantry: the picture of the sheared volume shows the block where it is."
    affine = np.diag([2.0, 1, 2, 1])
    affine[2, 1] = 0.4  # one voxel to the front is also 0.4 mm up
    p = np.stack(np.meshgrid(*map(np.arange, (12, 60, 40)), indexing="ij")).reshape(3, -1)
    at = affine[:3, :3] @ p
    block = ((np.abs(at[1] - 30) < 12) & (np.abs(at[2] - 50) < 15)).reshape(12, 60, 40)
    write_nifti(tmp_path / "i.nii.gz", np.where(block, 500, -1000).astype(np.int16), affine)
    write_nifti(tmp_path / "m.nii.gz", block.astype(np.uint8), affine)
    slices, _, _ = sagittal_slices(one_case(tmp_path / "i.nii.gz", tmp_path / "m.nii.gz"),
                                   SliceOptions(slices=1, spacing=1))
    rows, columns = np.nonzero(slices[0].labels)
    box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    assert np.ptp(columns) + 1 == 23 and abs(np.ptp(rows) + 1 - 30) <= 3
    assert len(rows) / box > 0.93  # a rectangle stands upright, and not as a parallelogram


def test_mask_of_another_grid(tmp_path, phantom):
    labels = as_verse(phantom.labels)
    refused(lambda: vertebra_pixels(pair(tmp_path, phantom, labels[:, :, :20])), "another grid")
    coarse = phantom.affine @ np.diag([2, 2, 2, 1.0])
    refused(lambda: vertebra_pixels(pair(tmp_path, phantom, labels[::2, ::2, ::2], affine=coarse)), "another grid")
    refused(lambda: vertebra_pixels(pair(tmp_path, phantom, affine=np.diag([3, 2, 2.5, 1.0]))), "another grid")


def test_dicom_series_with_a_flipped_mask(tmp_path):
    volume = draw_phantom_volume(7, axes="LPS", **SMALL)
    (tmp_path / "images/p").mkdir(parents=True)
    write_series(tmp_path / "images/p", volume.image, volume.affine)
    (tmp_path / "masks").mkdir()
    flip = volume.affine.copy()
    flip[:, 1], flip[:3, 3] = -flip[:, 1], flip[:3, 3] + flip[:3, 1] * (volume.labels.shape[1] - 1)
    write_nifti(tmp_path / "masks/p.nii.gz", as_verse(volume.labels)[:, ::-1], flip)
    case, = find_cases(tmp_path).cases
    (tmp_path / "b").mkdir()
    both = zip(vertebra_pixels(case), vertebra_pixels(pair(tmp_path / "b", volume)), strict=True)
    assert all(np.array_equal(a, b) for a, b in both)
    assert len(VolumeSlices(tmp_path, "all", progress=False)) == 5


def test_gaps_extra_vertebrae_and_unknown_labels(tmp_path, phantom):
    labels = as_verse(phantom.labels)
    there = sorted(set(np.unique(labels)) - {0})
    for old, new in ((there[0], 28), (there[-1], 25), (21, 0)):  # a T13, an L6, and none between
        labels = np.where(labels == old, new, labels).astype(np.uint8)
    case = pair(tmp_path, phantom, labels)
    slices, scheme, _ = sagittal_slices(case, SliceOptions(slices=1))
    assert scheme.parts[28].name == "T13" and scheme.parts[25].name == "L6"
    assert {25, 28} <= set(np.unique(slices[0].labels)) and 21 not in slices[0].labels
    assert vertebra_pixels(case)[1].sum() == (slices[0].labels > 0).sum()
    refused(lambda: vertebra_pixels(pair(tmp_path, phantom, np.where(labels == 20, 61, labels))), "p.nii.gz", "--labels")
    refused(lambda: find_scheme([1, 61], tmp_path, "verse"), "label 61 ", "unknown")


def test_cut_by_the_border(tmp_path, phantom):
    whole = read_volume(pair(tmp_path, phantom).image)
    labels = read_volume(tmp_path / "masks/p.nii.gz")
    cut = [a[:, :, 12:-9].copy() for a in (whole.array, labels.array.astype(np.uint8))]
    write_nifti(tmp_path / "i.nii.gz", cut[0], whole.affine)
    write_nifti(tmp_path / "m.nii.gz", cut[1], whole.affine)
    (one,), scheme, _ = sagittal_slices(one_case(tmp_path / "i.nii.gz", tmp_path / "m.nii.gz"), SliceOptions(slices=1))
    assert one.labels[0].any() and one.labels[-1].any()  # bone at the border stays bone
    assert np.array_equal(np.unique(one.labels), np.unique(cut[1][one.plane]))


def test_partial_vertebrae_without_a_label(tmp_path, phantom):
    labels = as_verse(phantom.labels)
    there = sorted(set(np.unique(labels)) - {0})
    labels = np.where(np.isin(labels, (there[0], there[-1])), 0, labels).astype(np.uint8)
    case = pair(tmp_path, phantom, labels)
    (whole,), *_ = sagittal_slices(case, SliceOptions(slices=1))
    (part,), *_ = sagittal_slices(case, SliceOptions(slices=1, trim=4))
    margin = [int(np.flatnonzero(s.labels.any(1))[0]) for s in (whole, part)]
    assert margin[0] > 5 and margin[1] == round(4 / part.spacing)
    assert (part.labels > 0).sum() == (whole.labels > 0).sum() and len(part.image) < len(whole.image)


def test_empty_and_missing_masks(tmp_path, phantom, capsys):
    pair(tmp_path, phantom, name="good")
    pair(tmp_path, phantom, np.zeros(phantom.labels.shape, np.uint8), "empty")
    pair(tmp_path, phantom, name="lonely")
    (tmp_path / "masks/lonely.nii.gz").unlink()
    data = VolumeSlices(tmp_path, "all", progress=False)
    said = capsys.readouterr().err
    assert set(data.groups) == {"good"}
    assert "lonely" in said and "1 of 2 volumes have no vertebra" in said and "empty" in said
    (tmp_path / "masks/good.nii.gz").unlink()
    refused(lambda: VolumeSlices(tmp_path, "all", progress=False), "no slice with a vertebra")
    (tmp_path / "masks/empty.nii.gz").unlink()
    refused(lambda: VolumeSlices(tmp_path, "all", progress=False), "no volume with its mask")


def test_damaged_volume_among_good_ones(tmp_path, phantom, capsys):
    for name in ("a", "b"):
        pair(tmp_path, phantom, name=name)
    path = tmp_path / "images/b.nii.gz"
    path.write_bytes(path.read_bytes()[:-5000])
    refused(lambda: VolumeSlices(tmp_path, "all", progress=False), "b.nii.gz", "damaged")
    data = VolumeSlices(tmp_path, "all", skip_damaged=True, progress=False)
    assert set(data.groups) == {"a"} and "b.nii.gz" in capsys.readouterr().err
    good = gzip.compress(gzip.decompress((tmp_path / "images/a.nii.gz").read_bytes()))
    path.write_bytes(good[:-8] + b"\0\0\0\0" + good[-4:])
    refused(lambda: VolumeSlices(tmp_path, "all", progress=False), "b.nii.gz", "CRC")


def test_too_coarse_for_a_picture(tmp_path):
    thick = draw_phantom_volume(7, view=(84, 130, 150), spacing=(2, 2, 7.5))
    refused(lambda: vertebra_pixels(pair(tmp_path, thick)), "7.5 mm apart along the body")
    assert vertebra_pixels(pair(tmp_path, thick), SliceOptions(coarsest=8))[0].any()
    flat = draw_phantom_volume(7, view=(84, 130, 2), spacing=(2, 2, 2))
    write_nifti(tmp_path / "images/p.nii.gz", flat.image[:, :, :1], flat.affine)
    write_nifti(tmp_path / "masks/p.nii.gz", (flat.labels[:, :, :1] > 0).astype(np.uint8), flat.affine)
    refused(lambda: vertebra_pixels(one_case(tmp_path / "images/p.nii.gz", tmp_path / "masks/p.nii.gz")), "one slice only")
    single = draw_phantom_volume(7, "t2", view=(15, 130, 150), spacing=(7.5, 1.5, 1.5), axes="RAS")
    write_nifti(tmp_path / "images/p.nii.gz", single.image[1:], single.affine)
    write_nifti(tmp_path / "masks/p.nii.gz", as_verse(single.labels[1:]), single.affine)
    assert vertebra_pixels(one_case(tmp_path / "images/p.nii.gz", tmp_path / "masks/p.nii.gz"))[0].any()


def test_labels_in_no_order(tmp_path, phantom):
    labels = as_verse(phantom.labels)
    mixed = np.zeros_like(labels)
    for new, old in zip((3, 1, 7, 2, 6, 4, 5), sorted(set(np.unique(labels)) - {0}), strict=False):
        mixed[labels == old] = new
    kept = vertebra_pixels(pair(tmp_path, phantom, np.where(mixed > 0, labels, 0).astype(np.uint8)))
    case = pair(tmp_path, phantom, mixed)
    assert all(np.array_equal(a, b) for a, b in zip(kept, vertebra_pixels(case), strict=True))
    data = VolumeSlices([case], "all", (128, 128), options=SliceOptions(slices=1, labels="ids"), progress=False)
    assert data.label_map(0)[1] == {int(k): str(k) for k in np.unique(mixed) if k}


def test_points_are_no_vertebrae(tmp_path, phantom):
    points = np.zeros(phantom.labels.shape, np.uint8)
    points[10, 20, [5, 15, 25]] = 1, 2, 3
    refused(lambda: vertebra_pixels(pair(tmp_path, phantom, points)), "points")


def test_four_dimensions(tmp_path, phantom):
    case = pair(tmp_path, phantom)
    write_nifti(case.image, np.stack([phantom.image] * 2, -1), phantom.affine)
    refused(lambda: vertebra_pixels(case), "4 dimensions")


def test_nan_is_empty(tmp_path, phantom):
    case = pair(tmp_path, phantom)
    image = phantom.image.astype(np.float32)
    image[:, :20] = np.nan
    write_nifti(case.image, image, phantom.affine)
    slices, *_ = sagittal_slices(case, SliceOptions(slices=1))
    assert slices[0].image.min() == 0 and slices[0].image.max() > 100


# grey values

def test_window(tmp_path, phantom):
    case = pair(tmp_path, phantom)
    (wide,), *_ = sagittal_slices(case, SliceOptions(slices=1))
    (narrow,), *_ = sagittal_slices(case, SliceOptions(slices=1, window=(0, 300)))
    assert (narrow.image == 255).mean() > (wide.image == 255).mean()
    assert (narrow.image == 0).mean() > (wide.image == 0).mean()


def test_no_hounsfield_units(tmp_path, phantom):
    case = pair(tmp_path, phantom)
    write_nifti(case.image, (phantom.image + 1024).astype(np.uint16), phantom.affine)
    refused(lambda: vertebra_pixels(case, SliceOptions(modality="ct")), "Hounsfield")
    shifted, *_ = sagittal_slices(case, SliceOptions(slices=1, modality="ct", window=(524, 2324)))
    write_nifti(case.image, phantom.image, phantom.affine)
    plain, *_ = sagittal_slices(case, SliceOptions(slices=1))
    assert np.abs(shifted[0].image.astype(int) - plain[0].image).max() <= 1


def test_mr_brightness_is_divided_out(tmp_path):
    "A coil that is five times brighter at one end: marrow comes out even, and gain does not matter."
    volume = draw_phantom_volume(7, "t2", view=(60, 130, 200), spacing=(4, 2, 2), axes="RAS")
    z = np.linspace(-0.8, 0.8, volume.image.shape[2])
    bright = [np.rint(volume.image * np.exp(z) * gain).astype(np.int16) for gain in (1, 3)]
    pictures, spread = [], {}
    for image, bias in ((bright[0], 30.0), (bright[1], 30.0), (bright[0], 0.0)):
        case = pair(tmp_path, volume)
        write_nifti(case.image, image, volume.affine)
        (one,), _, modality = sagittal_slices(case, SliceOptions(slices=1, bias=bias))
        assert modality == "mr"
        means = [np.median(one.image[one.labels == k]) for k in np.unique(one.labels) if k]
        spread[bias] = np.std(np.log(means))
        pictures.append(one.image.astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 3
    assert spread[30.0] < 0.4 * spread[0.0]


def test_slow_brightness_of_nothing():
    assert np.array_equal(slow_brightness(np.zeros((4, 4, 4)), (1, 1, 1), 40), np.ones((4, 4, 4)))


# cache

def test_cache_notices(tmp_path, phantom, monkeypatch):
    for name in "ab":
        pair(tmp_path, phantom, name=name)

    def opened(**more):
        return VolumeSlices(tmp_path, "all", (96, 96), cache=tmp_path / "cache", progress=False, **more)

    first = opened()
    images = [first.arrays(i)[0] for i in range(len(first))]
    real, cut = module.sagittal_slices, []
    monkeypatch.setattr(module, "sagittal_slices", lambda case, options: cut.append(case.name) or real(case, options))
    again = opened()
    assert cut == [] and again.fingerprint() == first.fingerprint()
    assert all(np.array_equal(again.arrays(i)[0], image) for i, image in enumerate(images))
    pair(tmp_path, phantom, np.where(phantom.labels == 20, 20, 0).astype(np.uint8), "a")
    assert opened().fingerprint() != first.fingerprint() and cut == ["a"]
    cut.clear()
    opened(options=SliceOptions(slices=2))
    assert cut == ["a", "b"]
    cut.clear()
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    opened()
    assert cut == ["a", "b"]  # damaged files are made again


def test_cache_is_compact_and_lazy(tmp_path, phantom):
    import tracemalloc

    for k in range(6):
        pair(tmp_path, phantom, name=f"v{k}")
    peaks = []
    for count in (1, 6):
        cases = find_cases(tmp_path).cases[:count]
        tracemalloc.start()
        data = VolumeSlices(cases, "all", (96, 96), cache=tmp_path / f"c{count}", progress=False)
        for i in range(len(data)):
            data.arrays(i)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]
    volumes = sum(p.stat().st_size for p in (tmp_path / "images").iterdir())
    assert sum(p.stat().st_size for p in (tmp_path / "c6").iterdir()) < volumes


# real files

@needs_real
@pytest.mark.parametrize("layout", ["ctspine1k_layout", "verse_layout", "spider_layout"])
def test_real_layouts(tmp_path, layout):
    data = VolumeSlices(REAL / "layouts" / layout, "all", cache=tmp_path, progress=False)
    assert len(data) == 5
    for i in range(5):
        image, labels = data.slice(i)
        bone = np.isin(labels, data.values(i))
        assert 0.02 < bone.mean() < 0.4
        if layout != "spider_layout":  # CT: bone is brighter than what surrounds it
            assert image[bone].mean() > image[~bone].mean() + 20
        names = data.label_map(i)[1]
        rows = {name: np.nonzero(labels == k)[0].mean() for k, name in names.items()}
        order = [n for n in SPINE if n in rows]
        assert len(order) >= 6 and [rows[n] for n in order] == sorted(rows[n] for n in order)  # head up


@needs_real
def test_real_totalsegmentator():
    folder = REAL / "ct/totalsegmentator"
    image = folder / "example_ct.nii.gz"
    one_a_class = vertebra_pixels(one_case(image, folder / "example_seg_v1_per_class"))
    one_map = vertebra_pixels(one_case(image, folder / "example_seg_v1_104classes_float64.nii.gz", "totalsegmentator-v1"))
    assert all(np.array_equal(a, b) for a, b in zip(one_a_class, one_map, strict=True))
    refused(lambda: vertebra_pixels(one_case(image, folder / "example_seg_v1_104classes_float64.nii.gz")), "--labels")
    refused(lambda: vertebra_pixels(one_case(image, folder / "example_seg.nii.gz")), "122x101x30", "122x101x112")
    small = sagittal_slices(one_case(folder / "example_ct_sm.nii.gz", folder / "example_seg.nii.gz"))
    assert {small[1].parts[k].name for k in np.unique(small[0][2].labels) if k in small[1].values()} == {
        "L2", "L1", "T12", "T11"}
    slices, scheme, _ = sagittal_slices(one_case(folder / "example_ct_dicom", folder / "example_seg_dicom.nii.gz"))
    bone = np.isin(slices[2].labels, scheme.values())
    assert slices[2].image[bone].mean() > slices[2].image[slices[2].labels == 5].mean() + 10  # not the liver
    t12, *_ = sagittal_slices(one_case(folder / "aorta_ct_cropped.nii.gz", folder / "aorta_vertebrae_T12.nii.gz"))
    assert t12[2].image[t12[2].labels > 0].mean() > 90


@needs_real
def test_real_odd_ones():
    sct, verse = REAL / "mr/sct", REAL / "ct/verse"
    refused(lambda: vertebra_pixels(one_case(sct / "t2.nii.gz", sct / "labels.nii.gz")), "points")
    thick = sct / "tut_t2_ms_axial7p5mm.nii.gz"
    refused(lambda: vertebra_pixels(one_case(thick, thick)), "7.5 mm")
    refused(lambda: find_cases(verse), "no volume with its mask")
    for path in sorted((REAL / "mr/fastcleverseg").glob("*.mat")):
        refused(lambda p=path: open_volume(p), "MATLAB")
    for path in sorted((REAL / "mr/fastcleverseg").glob("*.nii.gz")):
        volume = read_volume(path)
        assert np.array_equal(as_stored(volume.array, volume.source), np.concatenate(list(volume.source.blocks()), 2))


@needs_real
def test_every_real_volume_is_read_or_refused():
    for path in sorted(REAL.rglob("*")):
        if path.name.endswith((".nii.gz", ".mha", ".mat")) and "per_class" not in str(path):
            try:
                assert load(open_volume(path)).array.ndim == 3
            except DataError as error:
                assert path.suffix == ".mat" and "\n" not in str(error)
