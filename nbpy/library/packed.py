# %% [markdown]
# # Packed
# > A split in memory, or decoded as its turn comes

# %% [markdown]
# All 609 radiographs and masks at 192×64 are 15 MB, so a set that fits is decoded once, kept as `uint8`, and cached in one file whose key is a
# fingerprint of what went in; a batch is then an index into a tensor. A larger set is *streamed*: images are decoded when their turn comes.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/packed.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp data.packed

# %%
#| export
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from verdiff.data.pairs import MaskFolder, check_masks
from verdiff.data.xray import XRaySet
from verdiff.files import atomic_write

# %%
import shutil
import tempfile

from verdiff.data.phantom_set import PhantomSet


# %%
#| export
@dataclass
class Packed:
    "A whole split in memory."

    images: Tensor  # uint8, (N, 1, H, W)
    masks: Tensor  # uint8 {0, 1}, (N, 1, H, W)
    names: list[str]  # file names
    groups: list[str] | None = None  # patients of volumes, for a split

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device | str) -> "Packed":
        "The same, on a device."
        return Packed(self.images.to(device), self.masks.to(device), self.names, self.groups)

    def subset(self, index: Sequence[int]) -> "Packed":
        "Only those images."
        where = torch.as_tensor(list(index), dtype=torch.int64)
        groups = self.groups and [self.groups[i] for i in index]
        names = [self.names[i] for i in index]
        return Packed(self.images[where], self.masks[where], names, groups)


# %%
#| export
def read_cache(
    path: Path,
    key: str,  # fingerprint of the data
) -> dict[str, np.ndarray] | None:  # None: of other data, or damaged
    "What an earlier run has decoded."
    try:
        with np.load(path, allow_pickle=False) as file:
            return {k: file[k] for k in ("images", "masks")} if str(file["key"]) == key else None
    except Exception:  # whatever a damaged file makes numpy throw: it is decoded again
        return None


# %%
#| export
def pack(
    dataset: XRaySet | MaskFolder,
    cache: str | Path | None = None,  # an .npz file: read if it is of this data, else written
    progress: bool = True,  # show a bar
) -> Packed:
    "Decode every image once."
    key = dataset.fingerprint()
    found = read_cache(Path(cache), key) if cache is not None else None
    if found is None:
        with ThreadPoolExecutor(2) as pool:
            parts = list(tqdm(pool.map(dataset.arrays, range(len(dataset))), "decode", len(dataset),
                              unit="image", disable=None if progress else True, leave=False))
        if isinstance(dataset, MaskFolder):
            check_masks(dataset, parts)
        images, masks = (np.stack([p[k] for p in parts])[:, None] for k in (0, 1))  # n 1 h w
        found = {"images": images, "masks": masks}
        if cache is not None:
            with atomic_write(cache) as temporary, open(temporary, "wb") as file:
                np.savez(file, **found, key=np.array(key))
    images, masks = (torch.from_numpy(found[k]) for k in ("images", "masks"))
    return Packed(images, masks, list(dataset.names), getattr(dataset, "groups", None))


# %%
#| export
class Streamed(Dataset):
    "Images of a dataset, decoded when their turn comes; memory does not grow with the set."

    def __init__(
        self,
        dataset: Any,  # of verdiff.data: it has `names` and `arrays(i)`
        index: Sequence[int] | None = None,  # which images; None: all
    ):
        self.dataset = dataset
        self.index = list(range(len(dataset)) if index is None else index)
        self.names = [dataset.names[i] for i in self.index]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        "Image and mask, uint8 (1, H, W)."
        image, mask, _ = self.dataset.arrays(self.index[i])
        return torch.from_numpy(np.array(image))[None], torch.from_numpy(np.array(mask))[None]

    def subset(self, index: Sequence[int]) -> "Streamed":
        "Only those images."
        return Streamed(self.dataset, [self.index[i] for i in index])

    def pack(self) -> Packed:
        "All of them in memory."
        images, masks = zip(*(self[i] for i in range(len(self))), strict=True)
        return Packed(torch.stack(images), torch.stack(masks), self.names)


# %% [markdown]
# ## Use

# %%
folder = Path(tempfile.mkdtemp())
phantoms = PhantomSet(n_training=8, n_test=4)
packed = pack(phantoms, folder / "cache.npz", progress=False)
again = pack(phantoms, folder / "cache.npz", progress=False)
print(tuple(packed.images.shape), packed.images.dtype)
assert torch.equal(packed.images, again.images) and torch.equal(packed.masks, again.masks)
assert read_cache(folder / "cache.npz", "another key") is None


# %%
some = packed.subset([3, 5])
assert some.names == [packed.names[3], packed.names[5]]
assert torch.equal(Streamed(phantoms).subset([3, 5]).pack().images, some.images)
(folder / "cache.npz").write_bytes(b"half a file")
assert read_cache(folder / "cache.npz", phantoms.fingerprint()) is None


# %%
#| hide
shutil.rmtree(folder)
