# %% [markdown]
# # Phantom volumes in every layout
# > The folders of CTSpine1K, VerSe, SPIDER and TotalSegmentator, written with phantoms

# %% [markdown]
# A loader that was only tried on one download is a loader of that download. So phantom volumes are written here as each data set publishes its own: in its folders and file formats, with its axes, its numbers for the vertebrae (float64 ones, counted from the bottom, one file a class), its tables of centroids and splits. Everything that reads volumes is tested on all of them, anywhere, with labels that are known voxel by voxel.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/phantom_layouts.ipynb).

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks,medical] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp data.phantom_layouts

# %%
#| export
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from verdiff.data.phantom_volumes import PhantomVolume, draw_phantom_volume
from verdiff.data.volume_labels import SPINE
from verdiff.files import DataError
from verdiff.io.volume_files import write_meta, write_nifti

# %% [markdown]
# ## Numbers
# The phantoms' labels (VerSe's numbers, canal 100, discs from 200) become the set's.

# %%
#| export
def as_verse(labels: np.ndarray) -> np.ndarray:
    "Vertebrae only, as CTSpine1K and VerSe number them."
    return np.where((labels > 0) & (labels < 29) & (labels != 26), labels, 0).astype(np.uint8)


def as_spider(labels: np.ndarray) -> np.ndarray:
    "From the lowest vertebra up, canal 100, disc 200 + the number of the vertebra above it."
    there = sorted(set(np.unique(as_verse(labels))) - {0}, reverse=True)
    out = np.where(labels == 100, 100, 0).astype(np.int16)
    for k, value in enumerate(there, 1):
        out[labels == value], out[labels == 200 + value] = k, 200 + k
    return out


def as_totalsegmentator(labels: np.ndarray) -> np.ndarray:
    "Version 2's numbers: L5 27 to C1 50, sacrum 25, cord 79, and a liver to be ignored."
    out = np.where((labels > 0) & (labels < 25), 51 - labels, 0)
    out[labels == 26], out[labels == 100] = 25, 79
    out[:3, :3, :3] = 5
    return out.astype(np.uint8)


# %% [markdown]
# ## Folders

# %%
#| export
def write_ctspine(out: Path, name: str, v: PhantomVolume, split: str, old: bool = False) -> None:
    "CTSpine1K: float64 labels, the split in a text file."
    folders = (
        ("data/colon", "label/colon")
        if old
        else ("raw_data/volumes/COLONOG", "raw_data/labels/COLONOG")
    )
    for folder, end, array in zip(
        folders, ("", "_seg"), (v.image, as_verse(v.labels).astype(float)), strict=True
    ):
        (out / folder).mkdir(parents=True, exist_ok=True)
        write_nifti(out / folder / f"{name}{end}.nii.gz", array, v.affine)
    table = out / ("data_split.txt" if old else "metadata/data_split.txt")
    table.parent.mkdir(exist_ok=True)
    old_text = (
        table.read_text() if table.exists() else "trainset:\n\ntest_public:\n\ntest_private:\n"
    )
    head = "trainset:\n" if split == "training" else "test_public:\n"
    table.write_text(old_text.replace(head, f"{head}{name}.nii.gz\n"))


def write_verse(out: Path, name: str, v: PhantomVolume, split: str, year: int = 2020) -> None:
    "VerSe: volume, mask and centroids, a folder a split."
    verse19 = f"dataset-verse19{split}"
    top = out / (
        verse19
        if year == 2019
        else "dataset-0" + {"training": "1", "validation": "2"}.get(split, "3") + split
    )
    mark = "" if year == 2019 else "_dir-sag"
    labels = as_verse(v.labels)
    for part in ("rawdata", "derivatives"):
        (top / part / f"sub-{name}").mkdir(parents=True, exist_ok=True)
    write_nifti(top / f"rawdata/sub-{name}/sub-{name}{mark}_ct.nii.gz", v.image, v.affine)
    start = top / f"derivatives/sub-{name}/sub-{name}{mark}"
    write_nifti(f"{start}_seg-vert_msk.nii.gz", labels, v.affine)
    points = [
        {
            "label": int(k),
            **dict(zip("XYZ", np.argwhere(labels == k).mean(0).round(1).tolist(), strict=True)),
        }
        for k in np.unique(labels)
        if k
    ]
    Path(f"{start}_seg-subreg_ctd.json").write_text(
        json.dumps([{"direction": ["P", "I", "R"]}, *points])
    )


def write_spider(out: Path, name: str, v: PhantomVolume, split: str) -> None:
    "SPIDER: compressed .mha and a table."
    for part, array in (("images", v.image), ("masks", as_spider(v.labels))):
        (out / part).mkdir(parents=True, exist_ok=True)
        write_meta(out / part / f"{name}_t2.mha", array, v.affine)
    table = out / "overview.csv"
    head = "" if table.exists() else "new_file_name,num_vertebrae,subset\n"
    with open(table, "a") as file:
        file.write(f"{head}{name}_t2,{len(np.unique(as_verse(v.labels))) - 1},{split}\n")


def write_total(out: Path, name: str, v: PhantomVolume, split: str, one: bool = False) -> None:
    "TotalSegmentator: a folder a patient, a file a class or one map with names in its header."
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    write_nifti(folder / ("ct.nii.gz" if v.modality == "ct" else "mri.nii.gz"), v.image, v.affine)
    labels = as_totalsegmentator(v.labels)
    names = {51 - k: f"vertebrae_{SPINE[k - 1]}" for k in range(1, 25)} | {
        5: "liver",
        25: "sacrum",
        79: "spinal_cord",
    }
    if one:
        write_nifti(folder / "segmentations.nii.gz", labels, v.affine, names)
    else:
        (folder / "segmentations").mkdir(exist_ok=True)
        for value, title in names.items():
            write_nifti(
                folder / "segmentations" / f"{title}.nii.gz",
                (labels == value).astype(np.uint8),
                v.affine,
            )
    table = out / "meta.csv"
    head = "" if table.exists() else "image_id;age;split\n"
    with open(table, "a") as file:
        file.write(
            f"{head}{name};50;{ {'training': 'train', 'validation': 'val'}.get(split, split) }\n"
        )


def write_pairs(out: Path, name: str, v: PhantomVolume, split: str) -> None:
    "Two folders, split by the hash of the name."
    for part, array in (("images", v.image), ("masks", v.labels)):
        (out / part).mkdir(parents=True, exist_ok=True)
        write_nifti(out / part / f"{name}_{v.modality}.nii.gz", array, v.affine)


# %%
#| export
def as_old(out: Path, name: str, v: PhantomVolume, split: str) -> None:
    "CTSpine1K as it was."
    write_ctspine(out, name, v, split, old=True)


def as_2019(out: Path, name: str, v: PhantomVolume, split: str) -> None:
    "VerSe 2019."
    write_verse(out, name, v, split, 2019)


def as_map(out: Path, name: str, v: PhantomVolume, split: str) -> None:
    "TotalSegmentator, one map."
    write_total(out, name, v, split, one=True)


WRITERS: dict[str, tuple[Callable[[Path, str, PhantomVolume, str], None], str, str]] = {
    # name: writer, modality, axes of the files
    "ctspine1k": (write_ctspine, "ct", "LAS"), "ctspine1k-old": (as_old, "ct", "LPS"),
    "verse19": (as_2019, "ct", "PIR"), "verse20": (write_verse, "ct", "PIR"),
    "spider": (write_spider, "t2", "LPS"), "totalsegmentator": (write_total, "ct", "RAS"),
    "totalsegmentator-map": (as_map, "ct", "RAS"), "pairs": (write_pairs, "ct", "RAS")}


# %%
#| exports
def write_volume_set(
    out: str | Path,  # folder; must be new or empty
    layout: str,  # one of WRITERS
    training: int = 3,  # patients
    held_out: int = 1,  # of the test (SPIDER: validation) part
    seed: int = 0,
    **drawing: object,  # of `draw_phantom_volume`: spacing, view, oblique, ...
) -> dict[str, PhantomVolume]:  # name -> what was written
    """Phantoms in the folders of a data set.

    DataError for an unknown layout, or a folder that holds something.
    """
    if layout not in WRITERS:
        raise DataError(f"layout={layout!r}: no such layout; one of {', '.join(WRITERS)}")
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out}: is not empty; name a new folder")
    write, modality, axes = WRITERS[layout]
    drawn = {}
    for k in range(training + held_out):
        split = "training" if k < training else "validation" if layout == "spider" else "test"
        name = f"{k + 1}" if layout == "spider" else f"s{k + 1:04d}"
        drawn[name] = draw_phantom_volume(
            seed + k, **{"modality": modality, "axes": axes} | drawing
        )
        write(out, name, drawn[name], split)
    return drawn


# %% [markdown]
# Written and read again, in every layout. What each set keeps, comes back on the same voxels:

# %%
import tempfile

from verdiff.data.volume_layouts import find_cases
from verdiff.io.grids import as_stored
from verdiff.io.volume_files import open_volume, read_volume

# %%
small = {"view": (80, 120, 120), "spacing": (4, 2, 3)}
for layout in WRITERS:
    root = Path(tempfile.mkdtemp())
    drawn = write_volume_set(root, layout, 1, 1, oblique=8, **small)
    cases = find_cases(root).cases
    truth = next(v for name, v in drawn.items() if name in cases[0].name)
    image = read_volume(cases[0].image)
    assert np.allclose(image.source.affine, truth.affine, atol=1e-3)
    assert np.array_equal(as_stored(image.array, image.source), truth.image)
    print(
        f"{layout:21s}",
        *sorted({c.split for c in cases}),
        image.array.shape,
        cases[0].masks[0].name,
    )

# %%
import matplotlib.pyplot as plt

# %%
#| fig-alt: "The labels of one phantom in three sets, in the file's own axes: CTSpine1K from above, VerSe from the side, SPIDER across thick slices, each in other numbers."
fig, axes = plt.subplots(1, 3, figsize=(7, 2.4), layout="constrained")
for axis, layout in zip(axes, ("ctspine1k", "verse20", "spider"), strict=True):
    root = Path(tempfile.mkdtemp())
    write_volume_set(root, layout, 1, 0, view=(90, 140, 220))
    stored = next(iter(open_volume(find_cases(root).cases[0].masks[0]).blocks()))
    shown = axis.imshow(
        stored[:, :, stored.shape[2] // 2].T % 100, cmap="nipy_spectral", interpolation="nearest"
    )
    axis.set(title=f"{layout}: {stored.dtype}", xticks=[], yticks=[])
    fig.colorbar(shown, ax=axis)
