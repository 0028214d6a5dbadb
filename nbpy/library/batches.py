# %% [markdown]
# # Batches
# > Chance that can be repeated, in any order, on any number of processes

# %% [markdown]
# [Lesson 13](../13_training.ipynb) takes its batches from here. A run that is resumed must see the very images, turns, times and noise that it
# would have seen without the break, and eight images on one device must be the same as four on each of two. With one global generator
# neither holds. So *everything random is a function of (seed, position)*, a position being the number of images seen: the number of the
# step is the whole random state. Images lie in memory or are decoded as their turn comes; both give the same batches. Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/batches.ipynb).

# %%
#| default_exp training.batches

# %%
#| export
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from verdiff.data.augment import Augment
from verdiff.data.packed import Packed, Streamed
from verdiff.files import VerdiffError
from verdiff.settings import Settings

# %%
#| code-fold: true
import time

import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.packed import pack
from verdiff.data.phantom_set import PhantomSet
from verdiff.networks.config import VerdiffConfig
from verdiff.networks.model import VerdiffNet
from verdiff.settings import load_settings
from verdiff.training.loss import training_loss

# %%
#| code-fold: true
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)
g = torch.Generator().manual_seed(35)
small = ["height=72", "width=24", "channels=8,16,32", "timesteps=1000"]
tiny = load_settings("smoke", small)
source = PhantomSet(size=tiny.size, n_training=24, n_test=2)
phantoms = pack(source, progress=False)


# %% [markdown]
# ## Order

# %%
#| export
def generator_for(
    *key: int,  # seed, then whatever tells this draw from others; not negative
) -> torch.Generator:  # on the CPU
    "A generator whose stream depends on all the numbers."
    mixed = np.random.SeedSequence([abs(int(k)) for k in key]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed) >> 1)


# %%
#| export
@lru_cache(4)
def shuffled(n: int, seed: int, epoch: int) -> Tensor:
    "The order of n images in one epoch."
    return torch.randperm(n, generator=generator_for(seed, 1, epoch))


def batch_indices(
    n: int,  # images
    batch_size: int,
    number: int,  # of the batch, from 0
    seed: int,
) -> Tensor:  # int64 (batch_size,)
    "Batch `number` of an endless stream of shuffled epochs; any batch can be asked for at once."
    places = range(number * batch_size, (number + 1) * batch_size)
    return torch.stack([shuffled(n, seed, p // n)[p % n] for p in places])


# %%
def naive(first, last):
    g = torch.Generator().manual_seed(35)  # as every script does when it starts
    order = torch.cat([torch.randperm(24, generator=g) for _ in range(3)])
    return order[:4 * (last - first)].view(-1, 4)


ours = torch.stack([batch_indices(24, 4, b, seed=35) for b in range(12)])
again = torch.stack([batch_indices(24, 4, b, seed=35) for b in range(4, 12)])
rows = {"naive, undisturbed": naive(0, 12),
        "naive, restarted": torch.cat([naive(0, 4), naive(4, 12)]),
        "ours, restarted": torch.cat([ours[:4], again])}

# %%
#| code-fold: true
#| fig-alt: "Three strips of coloured columns, a column four images. Undisturbed, a run sees 24 of 24 images in its first epoch; restarted with one global generator it sees fewer; ours, restarted, sees all 24."
fig, axes = plt.subplots(3, 1, figsize=(6, 2.6), layout="constrained")
for axis, (name, seen) in zip(axes, rows.items()):
    axis.imshow(seen.T, cmap="nipy_spectral", aspect="auto")
    axis.axvline(3.5, color="k", lw=4)
    axis.set(title=f"{name}: {len(seen[:6].unique())} of 24 images in the first epoch",
             xticks=[], yticks=[])
axes[-1].set(xticks=range(12), xlabel="batch; a column is four images, a colour is an image")
assert torch.equal(ours, rows["ours, restarted"])
assert not torch.equal(rows["naive, undisturbed"], rows["naive, restarted"])
assert sorted(ours[:6].flatten().tolist()) == sorted(ours[6:].flatten().tolist()) == list(range(24))


# %% [markdown]
# The black line is a restart after four batches, six batches are an epoch. In the middle row, one global generator, some images of the first
# epoch come twice, and as many not at all.
#
# ## Times
# Times are spread evenly over the batch around one random offset. Each is still uniform, but no batch has noisy masks only.

# %%
#| export
def random_times(
    batch_size: int,
    timesteps: int,
    generator: torch.Generator,
) -> Tensor:  # int64 (B,), each uniform over 0 ... T-1
    "One random offset, evenly spaced over the batch (Kingma et al. 2021): less variance, no bias."
    u = (torch.rand((), generator=generator) + torch.arange(batch_size) / batch_size) % 1
    u = u[torch.randperm(batch_size, generator=generator)]
    return (u * timesteps).long().clamp(max=timesteps - 1)


# %%
#| fig-alt: "Two histograms of the mean time of a batch of eight: drawn freely it scatters widely around 500, spread evenly it stands close to 500."
times = torch.stack([random_times(8, 1000, generator_for(35, 2, k)) for k in range(2000)]).float()
free = torch.randint(1000, (2000, 8), generator=g).float()
for x, name in ((free, "drawn freely"), (times, "spread")):
    plt.hist(x.mean(1), 40, range=(200, 800), alpha=0.6, label=name)
plt.legend()
plt.xlabel("mean time of a batch of 8")
plt.yticks([])
print(f"mean time {times.mean():.0f}; sd of a batch's mean {times.mean(1).std():.1f}, "
      f"drawn freely {free.mean(1).std():.1f}")
assert abs(times.mean() - 499.5) < 3 and times.mean(1).std() < 50


# %% [markdown]
# ## Pixels
# Memory and stream follow a *plan*, lists of image numbers, so their batches are the same.

# %%
#| export
def worker_count() -> int:
    "Processes that decode: one a core, at most 4."
    known = hasattr(os, "sched_getaffinity")  # on Linux: the cores that we may use
    return min(4, len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1)


def _ignore_interrupt(worker: int) -> None:
    "Ctrl-C is the main process's affair."
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# %% [markdown]
# torch wraps what a worker raises in its whole traceback; so a worker hands an error over as a value, and it is raised here.

# %%
#| export
class Careful(Dataset):
    "The images of a `Streamed`; in place of one that cannot be read, its VerdiffError."

    def __init__(self, data: Streamed):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor] | VerdiffError:
        try:
            return self.data[i]
        except VerdiffError as error:
            return error


def stack_or_error(items: list[Any]) -> Any:
    "Images and masks as a batch, or the first error among them."
    bad = [item for item in items if isinstance(item, VerdiffError)]
    return bad[0] if bad else default_collate(items)


# %%
#| export
def pixel_batches(
    data: Packed | Streamed,
    plan: Iterable[list[int]],  # which images, batch by batch
    device: torch.device | str = "cpu",  # where Packed data are already
    workers: int | None = None,  # for Streamed; None: `worker_count`; 0: decode here
) -> Iterator[tuple[Tensor, Tensor]]:  # images and masks, uint8 (B, 1, H, W) on the device
    "The batches of a plan; VerdiffError for an image that cannot be read."
    if isinstance(data, Packed):
        for index in plan:
            where = torch.as_tensor(index, device=data.images.device)
            yield data.images[where], data.masks[where]
        return
    count = worker_count() if workers is None else workers
    loader = DataLoader(Careful(data), batch_sampler=plan, num_workers=count,
                        worker_init_fn=_ignore_interrupt, collate_fn=stack_or_error,
                        pin_memory=torch.device(device).type == "cuda")
    for found in loader:
        if isinstance(found, VerdiffError):
            raise found
        images, masks = found
        yield images.to(device, non_blocking=True), masks.to(device, non_blocking=True)


# %%
plan = [batch_indices(24, 4, b, 35).tolist() for b in range(6)]
pair = pixel_batches(phantoms, plan), pixel_batches(Streamed(source), plan, workers=2)
for a, b in zip(*pair, strict=True):
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


# %% [markdown]
# ## Chance
# Augmentation, time and noise. Each image has its own generator, seeded by its place in the stream, so devices can share a batch. Only the times are spread over the *whole* batch: every process draws all and takes its share.

# %%
#| export
class Batch(NamedTuple):
    "What the loss needs, on the device."

    image: Tensor  # (B, 1, H, W) in [0, 1]
    mask: Tensor  # {0, 1}
    t: Tensor  # int64 (B,)
    noise: Tensor  # standard normal, (B, 1, H, W)
    recycled: Tensor | None = None  # bool (B,) on the CPU, see `training_loss`


# %%
#| export
def augment_batch(
    image: Tensor,  # uint8 (B, 1, H, W)
    mask: Tensor,  # uint8 {0, 1}
    settings: Settings,
    number: int,  # of the batch
    process: int = 0,  # which of the processes that share the batch
    processes: int = 1,
) -> Batch:
    "Everything random, from the seed and the position alone."
    size, s = len(image), settings
    first = (number * processes + process) * size  # position of the first image in the stream
    own = [generator_for(s.seed, 2, first + i) for i in range(size)]
    image, mask = Augment.from_settings(s)(image, mask, own)
    noise = torch.stack([torch.randn(mask.shape[1:], generator=g) for g in own])
    t = random_times(size * processes, s.timesteps, generator_for(s.seed, 3, number))
    recycled = torch.rand(len(t), generator=generator_for(s.seed, 4, number)) < s.recycle
    mine = slice(process * size, (process + 1) * size)
    return Batch(image, mask, t[mine].to(mask.device), noise.to(mask.device), recycled[mine])


# %%
def part(process, processes):
    size = 8 // processes
    where = batch_indices(24, size, 5 * processes + process, 35)
    return augment_batch(phantoms.images[where], phantoms.masks[where], tiny, 5, process, processes)


whole, halves = part(0, 1), [part(p, 2) for p in (0, 1)]
for name, x in whole._asdict().items():
    together = torch.cat([getattr(h, name) for h in halves])
    torch.testing.assert_close(together, x, atol=1e-5, rtol=0)

# %%
#| code-fold: true
#| fig-alt: "Eight turned and shifted phantom radiographs with the outline of their masks, each with its time t above it."
fig, axes = plt.subplots(1, 8, figsize=(6, 2.2))
for k, axis in enumerate(axes):
    axis.imshow(whole.image[k, 0], cmap="gray", vmin=0, vmax=1)
    axis.contour(whole.mask[k, 0], [0.5], colors="orange", linewidths=0.5)
    axis.set_title(f"t = {whole.t[k]}", fontsize=7)
    axis.set_axis_off()
fig.suptitle("one batch; two processes would take the left and the right half", fontsize=9);


# %% [markdown]
# `recycled` says of which rows the network will see its own estimate ([lesson 12](../12_loss.ipynb)); the setting `recycle` is their share. Its
# draws are its own, so whoever switches it on keeps all others.

# %%
some = load_settings("smoke", [*small, "recycle=0.5"])
where = batch_indices(24, 8, 5, 35)
other = augment_batch(phantoms.images[where], phantoms.masks[where], some, 5)
assert torch.equal(other.noise, whole.noise) and torch.equal(other.t, whole.t)
assert other.recycled.any() and not whole.recycled.any()


# %%
#| export
def batches(
    data: Packed | Streamed,
    settings: Settings,
    first: int = 0,  # number of the first batch
    device: torch.device | str = "cpu",
    process: int = 0,
    processes: int = 1,
    workers: int | None = None,
) -> Iterator[Batch]:
    "All batches of a run from `first` on; for one of several processes, its parts of them."
    s = settings
    numbers = range(first, s.max_steps * s.accumulate)
    plan = (batch_indices(len(data), s.batch_size, n * processes + process, s.seed).tolist()
            for n in numbers)
    pixels = pixel_batches(data, plan, device, workers)
    for number, (image, mask) in zip(numbers, pixels, strict=True):
        yield augment_batch(image, mask, s, number, process, processes)


# %%
late = next(batches(phantoms, tiny, first=3))  # any position can be asked for at once
assert torch.equal(late.noise, list(batches(phantoms, tiny))[3].noise)


# %%
#| export
def prefetch(
    items: Iterator[Any],  # none of them is None
    depth: int = 2,
) -> Iterator[Any]:
    "The same items, made by a thread up to `depth` before they are asked for."
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, items, None) for _ in range(depth))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, items, None))
            yield item


# %%
assert list(prefetch(iter(range(5)))) == list(range(5))


# %% [markdown]
# ## Use
# Which is slower, the batches or the network? (This is one core. On a GPU the network is much faster, and several workers decode.)

# %%
def rate_of(items, count):
    start = time.process_time()  # of this core, whatever else the machine does
    for _, batch in zip(range(count), items):
        pass
    return 8 * count / (time.process_time() - start)


def network():
    model = VerdiffNet(VerdiffConfig.from_settings(tiny))
    for batch in batches(phantoms, long):
        training_loss(model, *batch[:4])["total"].backward()
        yield batch


long = load_settings("smoke", [*small, "batch_size=8", "max_steps=1000"])
speed = {"in memory, pixels only": rate_of(pixel_batches(phantoms, plan * 20), 120),
         "in memory": rate_of(batches(phantoms, long), 20),
         "streamed": rate_of(batches(Streamed(source), long, workers=0), 5),
         "the network": rate_of(network(), 5)}
print({k: round(v) for k, v in speed.items()}, "images a second")
assert min(speed["in memory"], speed["streamed"]) > speed["the network"]
