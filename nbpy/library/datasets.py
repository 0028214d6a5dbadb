# %% [markdown]
# # What --data names
# > A zip, a folder, pairs, or the word phantom

# %%
#| default_exp data.datasets

# %%
#| export
import os
from pathlib import Path

import torch

from verdiff.data.packed import Packed, Streamed, pack
from verdiff.data.pairs import MaskFolder, check_masks
from verdiff.data.phantom_set import PhantomSet
from verdiff.data.splits import grouped_split
from verdiff.data.xray import XRaySet
from verdiff.files import DataError
from verdiff.io.archive import Store
from verdiff.settings import Settings

# %%
from verdiff.settings import load_settings


# %% [markdown]
# `open_dataset` tells the two layouts apart.

# %%
#| export
def open_dataset(
    data: str | Path,  # zip or folder of the published layout, folder of pairs, or "phantom"
    split: str = "training",  # "training", "test" or "all"
    size: tuple[int, int] = (384, 128),  # (height, width) of the canvas
    fit: str = "letterbox",  # or "squash"
    **phantoms: int,  # n_training, n_test, seed: of the word phantom alone
) -> XRaySet | MaskFolder:
    "The dataset that `--data` names; DataError says what was expected."
    if str(data) == "phantom":
        return PhantomSet(None, split, size, fit, **phantoms)
    root = Path(data)
    for top in (root / split, root):
        there = [part for part in ("images", "masks") if (top / part).is_dir()]
        if len(there) == 2:
            inside = split if top == root else "all"
            return MaskFolder(top / "images", top / "masks", size, fit, inside)
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
    return XRaySet(root, split, size, fit)


# %%
kinds = {p: type(open_dataset(folder / p, "all")).__name__ for p in ("own", "phantoms")}
print(kinds)
assert list(kinds.values()) == ["MaskFolder", "XRaySet"]


# %% [markdown]
# Memory or stream: the size of the set decides, or you (`stream`).

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
def training_data(
    data: str | Path,  # zip or folder, or the word "phantom"
    settings: Settings,  # size, fit, val_fraction, seed, stream
    cache: Path | None = None,  # file that keeps the decoded images
    **phantoms: int,  # n_training, n_test, seed of phantoms
) -> tuple[Packed | Streamed, Packed]:
    "The training split, divided by study into a training and a validation part."
    s = settings
    dataset = open_dataset(data, "training", s.size, s.fit, **phantoms)
    parts = grouped_split(dataset.names, s.val_fraction, s.seed)
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
set_at = lambda *more: training_data(folder / "films", load_settings("smoke", [*small, *more]))
assert isinstance(set_at()[0], Packed) and isinstance(set_at("stream=true")[0], Streamed)
assert not must_stream(load_settings("gpu"), 609) and must_stream(load_settings("gpu"), 10**9)


# %%
#| export
def held_for_test(
    data: str,  # as for --data
) -> str:
    "What to tell of own pairs that no folder of their own keeps for the test."
    if not Path(data).is_dir() or (Path(data) / "training").is_dir():
        return ""
    every = open_dataset(data, "all")
    if not isinstance(every, MaskFolder):
        return ""
    count = len(every) - len(open_dataset(data, "training"))
    return (f", {count} held back for `verdiff evaluate` (drawn by name; if a patient has several "
            "films, make folders training/ and test/ instead)")
