# %% [markdown]
# # What --data names
# > A zip, a folder, pairs, or the word phantom

# %% [markdown]
# One function decides what a word, a zip or a folder means as data, and one divides the training split by study into a part to train on and a
# part to validate on. Notebooks, command line and laboratory all use these two.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/datasets.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp data.datasets

# %%
#| export
import os
from dataclasses import replace
from pathlib import Path

import torch

from verdiff.data.packed import Packed, Streamed, pack
from verdiff.data.pairs import MaskFolder, check_masks
from verdiff.data.phantom_set import PhantomSet
from verdiff.data.sagittal import DEFAULT
from verdiff.data.splits import grouped_split
from verdiff.data.volume_labels import label_numbers
from verdiff.data.volume_layouts import find_cases, guess_layout
from verdiff.data.volumes import VolumeSlices
from verdiff.data.xray import XRaySet
from verdiff.files import DataError
from verdiff.io.archive import Store
from verdiff.io.volume_files import open_volume
from verdiff.settings import Settings

# %%
import shutil
import tempfile

from PIL import Image

from verdiff.data.phantom_set import write_phantoms
from verdiff.settings import load_settings


# %% [markdown]
# CT and MR come as volumes, in the layout of their set. A NIfTI or MHA that holds one slice is a picture, though, and a folder of such pictures a folder of pairs.

# %%
#| export
def are_volumes(
    root: Path,
) -> bool:
    "Whether a folder holds CT or MR volumes in a layout that is known."
    try:
        if guess_layout(root) not in ("pairs", "spider"):
            return True
        first = find_cases(root).cases[0].image
    except DataError:  # of whatever else this is
        return False
    return first.is_dir() or 1 not in open_volume(first).shape


# %%
#| export
def open_dataset(
    data: str | Path,  # zip or folder of a published layout, folder of pairs, or "phantom"
    split: str = "training",  # "training", "test" or "all"
    size: tuple[int, int] = (384, 128),  # (height, width) of the canvas
    fit: str = "letterbox",  # or "squash"
    cache: str | Path | None = None,  # folder that keeps the slices of volumes
    labels: str = "auto",  # of masks that are vertebrae, see `label_numbers`
    **phantoms: int,  # n_training, n_test, seed: of the word phantom alone
) -> XRaySet | MaskFolder | VolumeSlices:
    """The dataset that `--data` names; DataError says what was expected.

    Radiographs in the layout of SpineWeb 16, volumes in that of CTSpine1K, VerSe, TotalSegmentator
    or SPIDER, and pairs in images/ and masks/, of pictures or of volumes.
    """
    chosen, root = label_numbers(labels), Path(data)
    if str(data) == "phantom":
        if chosen:
            raise DataError("phantom: drawn spines have no labels to choose; leave --labels out")
        return PhantomSet(None, split, size, fit, **phantoms)
    if are_volumes(root):
        return VolumeSlices(root, split, size, fit, replace(DEFAULT, labels=labels), cache=cache)
    for top in (root / split, root):
        there = [part for part in ("images", "masks") if (top / part).is_dir()]
        if len(there) == 2:
            inside = split if top == root else "all"
            return MaskFolder(top / "images", top / "masks", size, fit, inside, chosen)
        if there:
            lacks = "masks" if there == ["images"] else "images"
            raise DataError(f"{top}: there is {there[0]}/ but no {lacks}/; own images need images/ "
                            "and masks/, with the same file names")
    if split == "all" and all((root / part / "images").is_dir() for part in ("training", "test")):
        raise DataError(f"{root}: training/ and test/ are kept apart there; ask for one of the two")
    if halves := [part for part in ("training", "test") if (root / part / "images").is_dir()]:
        raise DataError(f"{root}: there is {halves[0]}/images, but no {split}/images and "
                        f"{split}/masks; add them")
    if root.is_dir() and not any(root.iterdir()):
        raise DataError(f"{root}: the folder is empty; expected the published layout (data/ and "
                        "labels/), or images/ and masks/")
    if Store(root).top is None:
        raise DataError(f"{root}: no data that verdiff knows; expected the published layout "
                        "(data/ and labels/, as folder or zip), or images/ and masks/")
    if chosen:
        raise DataError(f"{root}: its masks are drawn from landmarks, so there are no labels to "
                        "choose; leave --labels out")
    return XRaySet(root, split, size, fit)


# %%
#| export
def must_stream(
    settings: Settings,
    images: int,
) -> bool:
    "Whether to decode as needed: as `stream` says, or where a quarter of the memory is too little."
    if settings.stream != "auto":
        return settings.stream == "true"
    memory = [2**33]  # where the system does not say
    if hasattr(os, "sysconf"):
        memory = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    if torch.cuda.is_available():
        memory.append(torch.cuda.get_device_properties(0).total_memory)
    return 2 * images * settings.height * settings.width > min(memory) / 4


# %%
#| export
def patients(
    dataset: XRaySet | MaskFolder | VolumeSlices | Packed,
) -> list[str]:
    "What `grouped_split` keeps together: the patients of volumes, else what names tell."
    return list(getattr(dataset, "groups", None) or dataset.names)


# %%
#| export
def training_data(
    data: str | Path,  # zip or folder, or the word "phantom"
    settings: Settings,  # size, fit, val_fraction, seed, stream
    cache: Path | None = None,  # file that keeps the decoded images
    **phantoms: int,  # n_training, n_test, seed of phantoms
) -> tuple[Packed | Streamed, Packed]:
    "The training split, divided by study or patient into a training and a validation part."
    s = settings
    slices = cache and cache.with_name("slices")
    dataset = open_dataset(data, "training", s.size, s.fit, slices, s.labels, **phantoms)
    parts = grouped_split(patients(dataset), s.val_fraction, s.seed)
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
    if not must_stream(s, len(dataset)):
        return tuple(map(pack(dataset, cache).subset, parts))
    train_part, val_part = map(Streamed(dataset).subset, parts)
    held = val_part.subset(range(min(len(val_part), s.val_images)))
    if isinstance(dataset, MaskFolder) and len(held):
        check_masks(dataset, [dataset.arrays(i) for i in held.index], held.index)
    return train_part, held.pack() if len(held) else Packed(torch.zeros(0), torch.zeros(0), [])


# %%
#| export
def held_for_test(
    data: str,  # as for --data
) -> int | None:
    "How many own pairs are drawn for the test; None where a folder of their own keeps it."
    if (Path(data) / "training").is_dir() or not Path(data).is_dir() or are_volumes(Path(data)):
        return None
    every = open_dataset(data, "all")
    if not isinstance(every, MaskFolder):
        return None
    return len(every) - len(open_dataset(data, "training"))


def tell_held(
    count: int | None,  # by `held_for_test`
) -> str:
    "In words."
    if count is None:
        return ""
    held = f"{count} held back for `verdiff evaluate`" if count else "none held back for a test"
    return (f", {held} (drawn by name; if a patient has several films, make folders training/ and "
            "test/ instead)")


# %% [markdown]
# ## Use

# %%
folder = Path(tempfile.mkdtemp())
write_phantoms(folder / "set", 8, 4, image_size=(96, 32))
for part in ("images", "masks"):
    (folder / "own" / part).mkdir(parents=True)
    Image.new("L", (32, 96), 255).save(folder / "own" / part / "a.png")
kinds = {name: type(open_dataset(data, "all")).__name__ for name, data in
         (("the word", "phantom"), ("a layout", folder / "set"), ("pairs", folder / "own"))}
print(kinds)
assert [*kinds.values()] == ["PhantomSet", "XRaySet", "MaskFolder"]
assert open_dataset(folder / "own", "all", labels="1-24")[0].mask.max() == 0  # it holds 255


# %%
smoke = load_settings("smoke", ["val_fraction=0.25"])
known, new = training_data(folder / "set", smoke)
assert len(known) + len(new) == 8 and not set(known.names) & set(new.names)
streamed, _ = training_data(folder / "set", load_settings("smoke", ["stream=true"]))
assert isinstance(known, Packed) and isinstance(streamed, Streamed)
assert not must_stream(load_settings("gpu"), 609) and must_stream(load_settings("gpu"), 10**9)


# %%
for wrong in ("nowhere.zip", folder):
    try:
        open_dataset(wrong)
    except DataError as error:
        print("-", str(error).replace(str(folder), "..."))


# %%
#| hide
shutil.rmtree(folder)
