# %% [markdown]
# # Layouts of volume sets
# > From a folder to a list: patient, image, mask, split

# %% [markdown]
# CTSpine1K, VerSe, SPIDER and TotalSegmentator each publish their volumes in folders of their own shape, and people keep theirs in two folders side by side. A layout here is one function that looks into a folder and gives back the same list, whatever the shape; nothing but names is read. Three decisions belong to the list and not to the reader of voxels. A volume without a mask (or a mask without its volume) is left out and named. The published split holds where there is one, else patients are drawn by the hash of their name. And no patient is ever on both sides: several scans of one person share a `patient`, and where the published folders of two years disagree, the test side keeps the person.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/volume_layouts.ipynb).

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks,medical] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp data.volume_layouts

# %%
#| export
import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from verdiff.data.splits import drawn_split
from verdiff.files import DataError, files_below


# %%
#| exports
@dataclass(frozen=True)
class Case:
    "One volume and its mask."

    name: str  # unique in the set: the path below its folder, without suffixes
    patient: str
    image: Path  # a file, or a folder of DICOM slices
    masks: tuple[Path, ...]  # one label map, or one file a class, named by it
    split: str = ""  # "training", "validation" or "test" as published; "" where nobody says
    modality: str = "auto"  # or "ct", "mr"
    labels: str = "auto"  # scheme of the labels, see `volume_labels`; "classes": one file a class


class Found(NamedTuple):
    "What a layout finds in a folder."

    cases: list[Case]
    notes: list[str]  # what was left out, a sentence each


# %% [markdown]
# ## Names
# `.nii.gz` is one suffix. Anything hidden is skipped.

# %%
#| export
SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".hdr")


def stem(path: Path) -> str:
    "The name without the suffix of a volume."
    low = path.name.lower()
    return path.name[:-len(next((s for s in SUFFIXES if low.endswith(s)), ""))] if (
        low.endswith(SUFFIXES)) else path.name


def volumes_below(folder: Path) -> list[Path]:
    "All volume files, sorted."
    found = (p for p in sorted(files_below(folder)) if p.name.lower().endswith(SUFFIXES))
    return [p for p in found if not p.name.startswith(".") and p.is_file()]


def by_key(
    paths: Iterable[Path],
    key: Callable[[Path], str],
) -> dict[str, Path]:
    "DataError where two files share a key."
    out: dict[str, Path] = {}
    for path in paths:
        if (other := out.setdefault(key(path), path)) != path:
            raise DataError(f"{path}: pairs with the same file as {other}; rename one of them")
    return out


# %%
#| export
def paired(
    root: Path,
    images: dict[str, Path],
    masks: dict[str, Path],
    make: Callable[[str, Path, Path], Case],
) -> Found:
    "Those that have both; the others in a note. DataError where nothing pairs."
    both = sorted(images.keys() & masks.keys())
    notes = []
    for what, lonely in (("volumes without a mask", images.keys() - masks.keys()),
                         ("masks without their volume", masks.keys() - images.keys())):
        if lonely:
            some = ", ".join(sorted(lonely)[:3]) + ", ..." * (len(lonely) > 3)
            notes.append(f"{root}: {len(lonely)} {what} left out ({some})")
    if not both:
        raise DataError(
            f"{root}: {len(images)} volumes and {len(masks)} masks, but no volume with "
            f"its mask{'; ' * bool(notes)}{'; '.join(n.split(': ', 1)[1] for n in notes)}; "
            "download the missing part"
        )
    return Found([make(key, images[key], masks[key]) for key in both], notes)


# %% [markdown]
# ## CTSpine1K
# `raw_data/volumes/SET/NAME.nii.gz` with `raw_data/labels/SET/NAME_seg.nii.gz` and `metadata/data_split.txt`; before, `data/SET` and `label/SET`. Its split says trainset, test_public and test_private; both tests are tests.

# %%
#| export
def ctspine_folders(root: Path) -> tuple[Path, Path] | None:
    "Where the volumes and where the labels lie."
    for top, image, mask in ((root / "raw_data", "volumes", "labels"), (root, "volumes", "labels"),
                             (root, "data", "label")):
        if (top / image).is_dir() and (top / mask).is_dir():
            return top / image, top / mask
    return None


def read_ctspine_split(root: Path) -> dict[str, str]:
    "Name without suffix -> training or test, from data_split.txt."
    path = next((p for p in (root / "metadata/data_split.txt", root / "data_split.txt",
                             root / "Path/data_split.txt") if p.is_file()), None)
    out, side = {}, ""
    for line in path.read_text(encoding="utf-8-sig").splitlines() if path else ():
        line = line.strip()
        if line.endswith(":"):
            side = "training" if line.startswith("train") else "test"
        elif line:
            out[stem(Path(line))] = side
    return out


def ctspine(root: Path) -> Found:
    "CTSpine1K, both published layouts."
    folders, split = ctspine_folders(root), read_ctspine_split(root)
    images = by_key(volumes_below(folders[0]), lambda p: below(p, folders[0]))
    masks = by_key(volumes_below(folders[1]), lambda p: below(p, folders[1]).removesuffix("_seg"))
    return paired(root, images, masks, lambda key, image, mask: Case(
        key, key, image, (mask,), split.get(stem(image), ""), "ct", "verse"))


def below(path: Path, folder: Path) -> str:
    "The path below a folder, without suffix."
    inside = path.relative_to(folder)
    return (inside.parent / stem(inside)).as_posix()


# %% [markdown]
# ## VerSe
# 2019 and 2020 alike: `rawdata/sub-X/sub-X[_dir-ax][_split-Y]_ct.nii.gz` with `derivatives/sub-X/…_seg-vert_msk.nii.gz`, or both in one folder; the split is in the name of a folder above.

# %%
#| export
def verse_split(path: Path, root: Path) -> str:
    "From a folder such as dataset-01training or dataset-verse19validation."
    inside = path.relative_to(root.parent if root.name else root).as_posix().lower()
    found = re.search(r"dataset[^/]*(training|validation|test)", inside)
    return found[1] if found else ""


def verse(root: Path) -> Found:
    "VerSe 2019 and 2020."
    def key(ending: str) -> Callable[[Path], str]:
        def cut(path: Path) -> str:
            return "/".join([p for p in path.relative_to(root).parts[:-1] if "dataset" in p]
                            + [stem(path).removesuffix(ending)])
        return cut

    files = volumes_below(root)
    images = by_key((p for p in files if stem(p).endswith("_ct")), key("_ct"))
    masks = by_key((p for p in files if stem(p).endswith("_seg-vert_msk")), key("_seg-vert_msk"))
    return paired(root, images, masks, lambda key, image, mask: Case(
        key, re.split(r"_(dir|split)-", stem(image).removesuffix("_ct"))[0], image, (mask,),
        verse_split(image, root), "ct", "verse"))


# %% [markdown]
# ## SPIDER
# `images/ID_{t1,t2,t2_SPACE}.mha`, `masks/` with the same names, and `overview.csv`, whose column `subset` is the split.

# %%
#| export
def spider(root: Path) -> Found:
    "SPIDER."
    split = {}
    if (table := root / "overview.csv").is_file():
        with open(table, encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                side = (row.get("subset") or "").strip()
                split[stem(Path((row.get("new_file_name") or "").strip()))] = side if side in (
                    "training", "validation", "test") else ""
    images, masks = (by_key(volumes_below(root / part), stem) for part in ("images", "masks"))
    return paired(root, images, masks, lambda key, image, mask: Case(
        key, key.split("_")[0], image, (mask,), split.get(key, ""), "mr", "spider"))


# %% [markdown]
# ## TotalSegmentator
# A folder a patient with `ct.nii.gz` or `mri.nii.gz` and `segmentations/CLASS.nii.gz`, or one label map in its place; `meta.csv` knows the split.

# %%
#| export
MAPS = ("segmentations", "segmentation", "labels", "label", "seg", "mask", "multilabel")


def class_files(folder: Path) -> tuple[Path, ...]:
    "The files of a folder with one file a class that has to do with the spine."
    wanted = re.compile(r"vertebrae.*|sacrum|intervertebral_discs|spinal_c(ord|anal)")
    return tuple(p for p in volumes_below(folder) if wanted.fullmatch(stem(p)))


def totalsegmentator(root: Path) -> Found:
    "TotalSegmentator's own data set, or its results beside their images."
    split: dict[str, str] = {}
    if (table := root / "meta.csv").is_file():
        with open(table, encoding="utf-8-sig", newline="") as file:
            side = {"train": "training", "val": "validation", "test": "test"}
            split = {r.get("image_id", ""): side.get(r.get("split", ""), "")
                     for r in csv.DictReader(file, delimiter=";")}
    images, masks = {}, {}
    for folder in [root, *sorted(p for p in root.iterdir() if p.is_dir())]:
        image = next((p for p in volumes_below(folder) if p.parent == folder
                      and stem(p) in ("ct", "mri", "mr")), None)
        mask = next((folder / m for m in MAPS if (folder / m).is_dir()), None) or next(
            (p for p in volumes_below(folder) if p.parent == folder and stem(p) in MAPS), None)
        images |= {folder.name: image} if image else {}
        masks |= {folder.name: mask} if mask else {}
    return paired(root, images, masks, lambda key, image, mask: replace(
        one_case(image, mask), name=key, patient=key, split=split.get(key, ""),
        modality="ct" if stem(image) == "ct" else "mr"))


def one_case(
    image: str | Path,  # a file, or a folder of DICOM slices
    mask: str | Path,  # a label map, or a folder with one file a class
    labels: str = "auto",
    modality: str = "auto",
) -> Case:
    """Any image with its mask.

    DataError for a folder of masks without a vertebra.
    """
    image, mask = Path(image), Path(mask)
    if not mask.is_dir():
        return Case(stem(image), stem(image), image, (mask,), "", modality, labels)
    if not (files := class_files(mask)):
        raise DataError(f"{mask}: no file of a vertebra inside (vertebrae_L1.nii.gz and so on)")
    return Case(stem(image), stem(image), image, files, "", modality, "classes")


# %% [markdown]
# ## Two folders
# `images/` and `masks/` (or `labels/`), at the top or in `training/` and `test/`; a mask has its image's name, or that with `_seg`, `_mask` or `_label` behind it. Scans that differ only in what comes after the patient (`_t1`, `_ct`, `_0000`) share one; so do all in a subfolder.

# %%
#| export
ENDINGS = re.compile(
    r"(?i)[_-](t1|t2|t2_space|stir|ct|mri?|ax|sag|cor|iso|img|image|vol|volume|\d{4})$"
)


def patient_of(key: str) -> str:  # of "sub/folder/name_t2": "sub/folder"; of "name_t2": "name"
    "Who a file shows, by its name."
    folder, _, name = key.rpartition("/")
    while not folder and (shorter := ENDINGS.sub("", name)) not in ("", name):
        name = shorter
    return folder or name


def pair_folders(root: Path) -> tuple[Path, Path] | None:
    "images/ and masks/ or labels/ of a folder."
    return next(((root / "images", root / m) for m in ("masks", "labels")
                 if (root / "images").is_dir() and (root / m).is_dir()), None)


def two_folders(images: Path, masks: Path, split: str = "") -> Found:
    "A volume and a mask of one name."
    def bare(path: Path) -> str:
        return re.sub(r"(?i)[_-](seg|mask|label)s?$", "", below(path, masks))

    series = {p.name: p for p in images.iterdir() if p.is_dir() and not volumes_below(p)}  # DICOM
    found = by_key(volumes_below(images), lambda p: below(p, images)) | series
    return paired(images.parent, found, by_key(volumes_below(masks), bare),
                  lambda key, image, mask: Case(key, patient_of(key), image, (mask,), split))


def pairs(root: Path) -> Found:
    "Anyone's own pairs."
    if folders := pair_folders(root):
        return two_folders(*folders)
    parts = {s: pair_folders(root / s) for s in ("training", "validation", "test")}
    found = [two_folders(*folders, split) for split, folders in parts.items() if folders]
    cases = [replace(c, name=f"{c.split}/{c.name}") for f in found for c in f.cases]
    return Found(cases, [n for f in found for n in f.notes])


# %% [markdown]
# ## Which layout?

# %%
#| export
def guess_layout(root: Path) -> str:
    "By the folders that are there; DataError where nothing fits."
    if ctspine_folders(root):
        return "ctspine1k"
    if pair_folders(root):
        names = [stem(p) for p in volumes_below(root / "images")]
        known = (root / "overview.csv").is_file() and (root / "masks").is_dir()
        plain = all(re.fullmatch(r"\d+_(t1|t2|t2_SPACE)", n) for n in names)
        return "spider" if names and (known or plain) else "pairs"
    if any(pair_folders(root / s) for s in ("training", "validation", "test")):
        return "pairs"
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder")
    if any(stem(p).endswith("_seg-vert_msk") for p in volumes_below(root)):
        return "verse"
    if any(stem(p) in ("ct", "mri", "mr") for p in volumes_below(root)):
        return "totalsegmentator"
    raise DataError(f"{root}: no layout of volumes that verdiff knows; expected CTSpine1K, VerSe, "
                    "SPIDER, TotalSegmentator, or the folders images/ and masks/")


# %%
#| export
LAYOUTS = {"ctspine1k": ctspine, "verse": verse, "spider": spider,
           "totalsegmentator": totalsegmentator, "pairs": pairs}


def keep_patients_apart(cases: Sequence[Case]) -> Found:
    "Give every case a side; no patient is on two."
    if not any(c.split for c in cases):
        return Found([replace(c, split=drawn_split(c.patient)) for c in cases], [])
    sides = [c.split or "training" for c in cases]
    rank = {"test": 0, "validation": 1, "training": 2}
    highest = {}
    for case, side in zip(cases, sides, strict=True):
        highest[case.patient] = min(highest.get(case.patient, side), side, key=rank.get)
    kept = [replace(c, split=s) for c, s in zip(cases, sides, strict=True)
            if s == highest[c.patient]]
    gone = Counter(c.patient for c, s in zip(cases, sides, strict=True) if s != highest[c.patient])
    return Found(
        kept,
        [
            f"{sum(gone.values())} volumes left out of training or validation: their "
            f"patients are in a held-out part too ({', '.join(sorted(gone)[:3])})"
        ]
        * bool(gone),
    )


# %%
#| exports
def find_cases(
    root: str | Path,  # folder of a volume set
    layout: str = "auto",  # or one of LAYOUTS
) -> Found:  # sorted; every case has a side, no patient is on two
    "All volumes of a folder that have a mask; DataError where it fits no layout."
    root = Path(root)
    if layout != "auto" and layout not in LAYOUTS:
        raise DataError(f"layout={layout!r}: no such layout; one of {', '.join(LAYOUTS)}")
    found = LAYOUTS[guess_layout(root) if layout == "auto" else layout](root)
    apart = keep_patients_apart(found.cases)
    return Found(apart.cases, found.notes + [f"{root}: {n}" for n in apart.notes])


# %% [markdown]
# ## Tried
# Only names matter here, so empty files will do:

# %%
import tempfile


# %%
def touch(*names):
    "A folder with empty files of these names."
    root = Path(tempfile.mkdtemp())
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def show(found):
    for c in found.cases:
        print(f"{c.split:11s}{c.patient:14s}{c.labels:8s}{c.name} <-",
              ", ".join(m.name for m in c.masks))
    print(*(note.split(": ", 1)[1] for note in found.notes), sep="\n")


# %%
V20 = "dataset-{}/{}/sub-gl003/sub-gl003_dir-{}_{}.nii.gz"
show(find_cases(touch(
    V20.format("01training", "rawdata", "ax", "ct"),
    V20.format("01training", "derivatives", "ax", "seg-vert_msk"),
    V20.format("03test", "rawdata", "sag", "ct"),
    V20.format("03test", "derivatives", "sag", "seg-vert_msk"),
    "dataset-01training/rawdata/sub-gl010/sub-gl010_ct.nii.gz",
    "dataset-01training/derivatives/sub-gl010/sub-gl010_seg-vert_msk.nii.gz",
    "dataset-01training/rawdata/sub-gl011/sub-gl011_ct.nii.gz")))

# %% [markdown]
# One patient lay on both sides and stays in the test; one has no mask.

# %%
mine = touch("images/anna_t1.nii.gz", "images/anna_t2.nii.gz", "images/ben.mha",
             "masks/anna_t1.nii.gz", "masks/anna_t2_seg.nii.gz", "masks/ben.nii.gz")
show(found := find_cases(mine))
assert len({c.split for c in found.cases if c.patient == "anna"}) == 1

# %%
old = touch("data/colon/x.nii.gz", "label/colon/x_seg.nii.gz", "data/liver/y.nii.gz",
            "label/liver/y_seg.nii.gz")
(old / "data_split.txt").write_text(
    "trainset:\nx.nii.gz\n\ntest_public:\ny.nii.gz\n\ntest_private:\n"
)
show(found := find_cases(old))
assert [c.split for c in found.cases] == ["training", "test"]

# %%
spiders = touch(*(f"{part}/{k}_{s}.mha" for part in ("images", "masks") for k in (1, 2)
                  for s in ("t1", "t2")))
(spiders / "overview.csv").write_text("new_file_name,subset\n" + "".join(
    f"{k}_{s},{side}\n" for k, side in ((1, "training"), (2, "validation")) for s in ("t1", "t2")))
show(find_cases(spiders))
total = touch("s0001/ct.nii.gz", "s0001/segmentations/vertebrae_L1.nii.gz",
              "s0001/segmentations/liver.nii.gz", "s0002/ct.nii.gz", "s0002/labels.nii.gz")
show(find_cases(total))

# %%
for root in (touch("notes.txt"), touch("derivatives/sub-1/sub-1_seg-vert_msk.nii.gz")):
    try:
        find_cases(root)
    except DataError as error:
        print(str(error).replace(str(root), "..."))
