# %% [markdown]
# # 10 · Training
# > From ten lines to a loop that no power cut, no bad file and no second process can upset
#
# You will read Eq. (9) literally and watch its loss fall without end, write a training loop in ten lines, and add what a real one needs. Killed with `kill -9`, which no program can catch, the run still ends with the same weights, to the last bit. It takes a minute or two, without a GPU.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/10_training.ipynb)

# %%
#| default_exp training

# %%
#| eval: false
# !pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"  # only on Colab

# %%
#| export
import argparse
import gc
import hashlib
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
import zipfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import verdiff
from verdiff.augment import Augment
from verdiff.data import (Packed, PairedFiles, PhantomSet, check_masks, grouped_split, open_dataset,
                          pack)
from verdiff.forward import ShiftedDiffusion
from verdiff.metrics import dice
from verdiff.model import CONFIG_FILE, WEIGHTS_FILE, VerdiffConfig, VerdiffNet, weights_digest
from verdiff.posterior import training_target
from verdiff.sampling import sample
from verdiff.settings import Settings, VerdiffError, atomic_write, load_settings

# %%
import shutil
import tempfile
from contextlib import redirect_stderr, redirect_stdout
import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
plt.rcParams |= {"figure.figsize": (4.2, 2.1), "legend.fontsize": 8}
plt.rcParams |= {"figure.constrained_layout.use": True}
torch.set_num_threads(1)
folder = Path(tempfile.mkdtemp())

# %%
def draw(axis, curves, styles=(), **labels):
    for k, (name, values) in enumerate(curves.items()):
        axis.plot(values, styles[k] if styles else "", label=name)
    axis.legend()
    axis.set(**{"xlabel": "step", **labels})

def roughness(values, last=10):
    return float(np.abs(np.diff(values[-last:])).mean())

# %% [markdown]
# ## 1 · The loss, read literally
#
# Eq. (8) is the usual loss of a diffusion model, the squared error of the noise. Eq. (9), as printed, is a binary cross entropy between the *noise* $\varepsilon$ and the network's output:
#
# $$\mathcal L_{\mathrm{BCE}}=-\bigl[\varepsilon\log\hat\varepsilon+(1-\varepsilon)\log(1-\hat\varepsilon)\bigr].$$
#
# A cross entropy wants targets between 0 and 1; Gaussian noise has no bounds. Try it, with one number to learn per pixel.

# %%
g = torch.Generator().manual_seed(35)
noise = torch.randn(1000, generator=g)
logit = torch.zeros(1000, requires_grad=True)
fall = []
for _ in range(300):
    loss = F.binary_cross_entropy_with_logits(logit, noise)
    loss.backward()
    with torch.no_grad():
        logit -= 200 * logit.grad
        logit.grad = None
    fall.append(loss.item())

# %%
draw(plt.gca(), {"Eq. (9) taken literally": fall}, ["C3"], ylabel="loss")
sure = ((logit.sigmoid() - 0.5).abs() > 0.49).float().mean()
print(f"loss {fall[0]:.2f} -> {fall[-1]:.0f}; outputs that end at 0 or 1: {sure:.0%}")
assert fall[-1] < -10

# %% [markdown]
# There is no minimum: where $\varepsilon>1$ or $\varepsilon<0$, the loss falls for ever as the output runs to 1 or 0.
#
# But the paper's conditional U-Net gives a mask, whose natural loss is a cross entropy against the *true mask*. Eq. (10), the sum of both losses, then trains both networks: as we run it (`detach_prior`) the first term only the diffusion U-Net, the others only the conditional one. With $p=\sigma(\text{logits})$ of that U-Net and $m$ the mask,
#
# $$\mathcal L=\underbrace{\lVert\text{target}-\Phi(x_t,t,f(b))\rVert^2}_{\text{Eq. (8)}}+w_1\,\underbrace{\mathrm{BCE}(p,m)}_{\text{Eq. (9), as it must be meant}}+w_2\,\underbrace{\mathrm{softDice}(p,m)}_{\text{ours}}.$$
#
# The target is noise, mask or $v$, as `prediction_type` says ([05](05_posterior.ipynb)). The soft Dice keeps the small foreground from being outvoted; the profile `paper` has none ($w_2=0$).

# %%
#| export
def soft_dice_loss(
    logits: Tensor,  # (B, 1, H, W)
    mask: Tensor,  # {0, 1}, (B, 1, H, W)
) -> Tensor:  # in [0, 1], a scalar
    "1 - Dice of the probabilities, a mean over images; the one added keeps empty masks harmless."
    p, m = torch.sigmoid(logits).flatten(1), mask.flatten(1)
    return 1 - ((2 * (p * m).sum(1) + 1) / (p.sum(1) + m.sum(1) + 1)).mean()


# %%
corner = torch.zeros(1, 1, 8, 8)
corner[..., :2, :2] = 1
right, wrong = 40 * (2 * corner - 1), 40 * (1 - 2 * corner)
assert soft_dice_loss(right, corner) < 1e-3 < 0.8 < soft_dice_loss(wrong, corner)


# %%
#| export
def training_loss(
    model: VerdiffNet,
    image: Tensor,  # (B, 1, H, W) in [0, 1]
    mask: Tensor,  # {0, 1}, (B, 1, H, W)
    t: Tensor,  # int64 (B,)
    noise: Tensor,  # standard normal, (B, 1, H, W)
    bce_weight: float = 1.0,
    dice_weight: float = 1.0,
    process: ShiftedDiffusion | None = None,  # None: the model's
) -> dict[str, Tensor]:  # "total" and its parts "mse", "bce", "dice"; means over images
    "Eq. (10) for one batch: the diffusion loss, and the prior's own."
    process = process or model.process()
    conditioning = model.condition(image)
    x_0 = 2 * mask - 1
    x_t = process.q_sample(x_0, t, conditioning.prior.float(), noise)  # Eq. (3)
    output = model.denoise(x_t, t, conditioning)
    target = training_target(process, x_0, t, noise, model.config.prediction_type)
    logits = conditioning.logits.float()
    parts = {"mse": F.mse_loss(output.float(), target),
             "bce": F.binary_cross_entropy_with_logits(logits, mask),
             "dice": soft_dice_loss(logits, mask)}
    total = parts["mse"] + bce_weight * parts["bce"] + dice_weight * parts["dice"]
    return {"total": total, **parts}


# %% [markdown]
# ## 2 · The loop in ten lines
#
# Algorithm 1 draws an image with its mask, a time and noise, and takes a gradient step. First with the same two thumbnails: if the loss does not fall to almost nothing, no amount of data will help.

# %%
small = ["height=72", "width=24", "channels=8,16,32", "timesteps=1000", "fit=letterbox"]
tiny = load_settings("smoke", small)
films = pack(PhantomSet(folder / "films", size=tiny.size, n_training=24, n_test=2), progress=False)
image, mask = films.images[:2].float() / 255, films.masks[:2].float()
torch.manual_seed(0)
model = VerdiffNet(VerdiffConfig.from_settings(tiny))

# %%
optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
curve = []
for k in range(240):
    t = torch.randint(1000, (2,), generator=g)
    losses = training_loss(model, image, mask, t, torch.randn(mask.shape, generator=g))
    losses["total"].backward()
    optimiser.param_groups[0]["lr"] = 5e-3 * (1 - k / 240)
    optimiser.step()
    optimiser.zero_grad()
    curve.append({k: v.item() for k, v in losses.items()})

# %%
got = sample(model.eval(), image, steps=10, ensemble=1)
prior_dice, diffusion_dice = (dice(p > 0.5, mask).mean() for p in (got.prior_prob, got.samples[0]))
draw(plt.gca(), {name: [c[name] for c in curve] for name in ("mse", "bce", "dice")},
     yscale="log", title="one batch, learned by heart")
print(f"Dice of the prior {prior_dice:.4f}, of the diffusion {diffusion_dice:.4f}")
assert diffusion_dice > 0.99 and prior_dice > 0.97

# %% [markdown]
# It learns. On *different* images the ten lines show weaknesses. To show these one by one, here are the lines again, with switches. Films 0 to 17 are for training. (`random_times` is made in section 3.)

# %%
def films_at(where):
    return films.images[where].float() / 255, films.masks[where].float()


def attempt(rate=lambda k: 0.02, clip=math.inf, autocast=False, spoil=None, look=None):
    torch.manual_seed(0)
    net = VerdiffNet(VerdiffConfig.from_settings(tiny), channels=(8, 16))
    optimiser, g, curve = torch.optim.AdamW(net.parameters()), torch.Generator().manual_seed(1), []
    for k in range(40):
        b, m = films_at(torch.randint(18, (4,), generator=g))
        m = 255 * m if k == spoil else m
        t, noise = random_times(4, 1000, g), torch.randn(m.shape, generator=g)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = training_loss(net, b, m, t, noise)
        losses["total"].backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimiser.param_groups[0]["lr"] = rate(k)
        optimiser.step()
        optimiser.zero_grad()
        curve.append((losses["total"].item(), norm.item(), *(look(net, k) if look else ())))
    return list(zip(*curve))


# %% [markdown]
# ## 3 · Chance that can be repeated
#
# With one global generator, a run that is restarted after 4 batches shuffles anew. The fix: *everything random is a function of (seed, position)*, a position being the number of images seen. Then the step number is the whole random state, on one device or many.

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
assert sorted(shuffled(24, 35, 0).tolist()) == list(range(24))


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
fig, axes = plt.subplots(3, 1, figsize=(6, 2.4))
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
# The black line is the restart, six batches are an epoch. In the middle row some images of the first epoch come twice, and as many not at all.
#
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
times = torch.stack([random_times(8, 1000, generator_for(35, 2, k)) for k in range(2000)]).float()
free = torch.randint(1000, (2000, 8), generator=g).float()
for x, name in ((free, "drawn freely"), (times, "spread")):
    plt.hist(x.mean(1), 40, range=(200, 800), alpha=0.6, label=name)
plt.legend()
plt.xlabel("mean time of a batch of 8")
plt.yticks([])
print(
    f"mean time {times.mean():.0f}; sd of a batch's mean {times.mean(1).std():.1f}, "
    f"drawn freely {free.mean(1).std():.1f}"
)
assert abs(times.mean() - 499.5) < 3 and times.mean(1).std() < 50

# %% [markdown]
# ## 4 · One addition at a time
#
# The other weaknesses follow, each with its cure. **The average of the weights.** The last steps of a run jitter. An exponential moving average (EMA) is calmer; $d_k$ is small at first, so that the random start is forgotten.
#
# $$\bar\theta_{k+1}=d_k\,\bar\theta_k+(1-d_k)\,\theta_{k+1},\qquad d_k=\min\Bigl(d,\frac{1+k}{10+k}\Bigr).$$

# %%
#| export
@torch.no_grad()
def follow(
    average: nn.Module,  # is changed
    model: nn.Module,  # the same architecture
    decay: float,  # in [0, 1); 0: a mere copy
    step: int,  # how many updates came before
) -> None:
    "One update of an exponential moving average of weights and buffers."
    d = min(decay, (1 + step) / (10 + step)) if decay else 0.0
    pairs = list(zip(average.state_dict().values(), model.state_dict().values(), strict=True))
    numbers = [pair for pair in pairs if pair[0].is_floating_point()]
    get_ema_multi_avg_fn(d)([a for a, _ in numbers], [m for _, m in numbers], None)
    for a, m in pairs:
        if not a.is_floating_point():  # counters
            a.copy_(m)


# %%
@torch.no_grad()
def held_out(net):
    b, m = films_at(slice(18, 24))
    noise = torch.randn(m.shape, generator=generator_for(3))
    return training_loss(net, b, m, torch.linspace(0, 999, 6).long(), noise)["total"].item()


def both(net, k):
    if k == 0:
        average.append(deepcopy(net))
    follow(average[0], net, 0.9, k)
    return held_out(net), held_out(average[0])


# %%
average = []
constant, _, raw, calm = attempt(look=both)
draw(plt.gca(), {"weights": raw, "their average": calm}, ylabel="held-out loss", ylim=(0.6, 1.2))
print(f"mean change a step, last 20: {roughness(raw, 20):.4f}, average {roughness(calm, 20):.4f}")
assert roughness(calm, 20) < 0.5 * roughness(raw, 20)

# %% [markdown]
# **The learning rate.** A linear warm-up, because Adam has no memory yet and its first steps are the wildest; then half a cosine to zero, so that the run settles. (The paper's rate is constant.) A rate far too large shows both: without warm-up the loss leaps at once, with it later and less; and the cosine ends calmly.

# %%
#| export
def learning_rate(
    settings: Settings,
    step: int,  # from 0
) -> float:
    "Warm-up, then constant or half a cosine to zero."
    rate, warm = settings.learning_rate, settings.warmup_steps
    if step < warm:
        return rate * (step + 1) / warm
    if settings.lr_schedule == "constant":
        return rate
    done = (step - warm) / max(1, settings.max_steps - warm)
    return rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


# %%
brief = load_settings("smoke", ["max_steps=40", "warmup_steps=6", "learning_rate=0.05"])
rates = {"constant": lambda k: 0.05, "warm-up, cosine": lambda k: learning_rate(brief, k)}
assert learning_rate(brief, 6) == 0.05 and learning_rate(brief, 40) < 1e-12

# %%
tried = {n: attempt(r, look=lambda net, k: [held_out(net)])[2] for n, r in rates.items()}
fig, axes = plt.subplots(1, 2, figsize=(7, 2.1))
draw(axes[0], {n: [r(k) for k in range(40)] for n, r in rates.items()}, ["C0", "C2"], title="rate")
draw(axes[1], tried, ["C0", "C2"], title="held-out loss")
for name, values in tried.items():
    print(f"{name}: worst {max(values):.2f}, mean change a step, last 10: {roughness(values):.4f}")
flat, cosine = tried.values()
assert roughness(cosine) < roughness(flat) and max(cosine) < max(flat)

# %% [markdown]
# **Gradient clipping.** Masks with 255 instead of 1 slip into one batch, at step 6. Adam divides by the size of recent gradients, so that step is not large; but it *remembers* the size for about a thousand steps, in which good gradients count for less. Clipped to a norm of 1, the bad one weighs no more than others. (Here that limit cuts nearly every step; Adam hardly minds, since it divides by the size anyway.)

# %%
unclipped, clipped = (attempt(clip=c, spoil=6) for c in (math.inf, 1.0))
fig, axes = plt.subplots(1, 2, figsize=(7, 2.1))
draw(axes[0], {"norm of the gradient": unclipped[1], "clipped": [1] * 40}, ["C3", "C2--"],
     yscale="log")
draw(axes[1], {"as it comes": unclipped[0], "clipped at 1": clipped[0]}, ["C3", "C2"],
     ylabel="loss", ylim=(0.4, 4), yscale="log")
after = [float(np.mean(x[0][-10:])) for x in (unclipped, clipped)]
print(f"loss, mean of the last 10 steps: {after[0]:.2f}; clipped {after[1]:.2f}")
assert after[1] < 0.8 * after[0]

# %% [markdown]
# **Half the bits.** A GPU multiplies matrices of bf16 (bfloat16) many times faster than float32. But bf16 has 8 significant bits: in *weights* of bf16 a small step vanishes.

# %%
weight, change = torch.tensor(1.0, dtype=torch.bfloat16), 0.003
print("float32: 1 +", change, "=", 1 + change, "  bf16:", (weight + change).item())
assert (weight + change).item() == 1

# %% [markdown]
# So weights, optimiser, schedule and loss stay in float32; only convolutions and products run in bf16 (*mixed* precision). The curves differ, but stay close.

# %%
mixed = attempt(autocast=True)
draw(plt.gca(), {"float32": constant, "mixed with bf16": mixed[0]}, ["-", "--"], ylabel="loss")
apart = np.abs(np.array(constant) - mixed[0])
print(f"largest difference in the first 5 steps {apart[:5].max():.4f}, in all {apart.max():.3f}")
assert apart[0] < 0.02 and abs(np.mean(mixed[0][-10:]) / np.mean(constant[-10:]) - 1) < 0.25

# %% [markdown]
# A curve is a weak check: ours looked as good while the gradient of one kernel was garbage. So compare gradients, kernel by kernel, on one batch:

# %%
large = pack(PhantomSet(size=(192, 64)), progress=False)
net = VerdiffNet(channels=(16, 32, 64))
for p in net.parameters():
    if not p.any():
        nn.init.normal_(p, std=0.1)  # what starts at zero lets no gradient pass
b, m = large.images[:4].float() / 255, large.masks[:4].float()
t, noise = random_times(4, 1000, torch.Generator().manual_seed(0)), torch.randn(m.shape)


def kernel_gradients(half):
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        losses = training_loss(net, b, m, t, noise)
    losses["total"].backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.ndim == 4}


# %%
exact, rough = kernel_gradients(False), kernel_gradients(True)
off = {name: float((rough[name] - g).norm() / g.norm()) for name, g in exact.items()}
for part in ("features", "conditional", "diffusion.encoder", "diffusion.decoder", "adapters"):
    of = {k: v for k, v in off.items() if part in k and ("adapters" in k) == (part == "adapters")}
    worst = max(of, key=of.get).split(".", 2)[-1]
    print(f"{part:17s} {len(of):2d} kernels off by {np.median(list(of.values())):.1%}; "
          f"the worst by {max(of.values()):.1%}: {worst}")
assert max(off.values()) < 0.05

# %% [markdown]
# Half a per cent to three is what 8 bits leave. This table found a bug. Page [08](08_nsa.ipynb) keeps the depth-wise convolutions in float32 on a CPU (`depthwise_conv`); without that, the dilated one gets memory that nobody wrote as its gradient:

# %%
import verdiff.nsa as nsa

# %%
kept, nsa.depthwise_conv = nsa.depthwise_conv, lambda conv, x: conv(x)
spoilt = kernel_gradients(True)
nsa.depthwise_conv = kept
off = {name: float((spoilt[name] - g).norm() / g.norm()) for name, g in exact.items()}
worst = max(off, key=off.get)
print(f"in bf16 without it, the worst kernel is off by {off[worst]:.0%}: {worst}")

# %% [markdown]
# Its neighbours learned around it and the loss fell. What gave it away was a loss of nan, now and then, at another step each time.

# %% [markdown]
# **Accumulation.** A batch too large for the memory is cut in two, and the gradients add up. Our losses are means over images, so four and four equal eight (not with batch normalisation), with half the memory for the backward pass:

# %%
def gradient(parts):
    kept, net = [0], deepcopy(model).train()

    def keep(x):
        kept[-1] += x.numel() * x.element_size()
        return x

    for p in parts:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            losses = training_loss(net, *(x[p] for x in eight))
        (losses["total"] / len(parts)).backward()
        kept.append(0)
    return max(kept) / 2**20, torch.cat([p.grad.flatten() for p in net.parameters()])


eight = *films_at(slice(0, 8)), random_times(8, 1000, g), torch.randn(8, 1, *tiny.size, generator=g)
memory_1, gradient_1 = gradient([slice(0, 8)])
memory_2, gradient_2 = gradient([slice(0, 4), slice(4, 8)])

# %%
fig, axes = plt.subplots(1, 2, figsize=(6, 2.1))
axes[0].plot(gradient_1, gradient_2, ".", ms=2)
axes[0].set(xlabel="gradient of eight", ylabel="of four and four")
axes[1].bar(["eight", "four + four"], [memory_1, memory_2], color=["C0", "C2"])
axes[1].set_title("MiB kept for backward", fontsize=9)
close = 1e-4 * gradient_1.abs().max().item()
torch.testing.assert_close(gradient_1, gradient_2, atol=close, rtol=1e-3)
assert memory_2 < 0.6 * memory_1

# %% [markdown]
# **Validation.** The training loss mixes all times and says nothing in Dice. So, now and then, the averaged weights segment films that are not trained on, and the weights with the best Dice are kept. Why other films? The model of section 2:

# %%
#| export
@torch.no_grad()
def validate(
    model: VerdiffNet,
    data: Packed,
    steps: int = 10,  # of the sampler
    batch_size: int = 8,
    seed: int = 0,
    sampler: str = "ddim",
) -> dict[str, float]:  # "prior_dice", "diffusion_dice": means over images, at the network's size
    "Dice of the prior and of one sample."
    was, scores = model.training, []
    model.eval()
    for first in range(0, len(data), batch_size):
        part = slice(first, first + batch_size)
        image, mask = (x[part].to(model.device) for x in (data.images, data.masks))
        got = sample(model, image.float() / 255, steps, 1, seed, sampler, first)
        scores.append(torch.stack([dice(p > 0.5, mask) for p in (got.prior_prob, got.samples[0])]))
    model.train(was)
    prior, diffusion = torch.cat(scores, 1).mean(1).tolist()
    return {"prior_dice": prior, "diffusion_dice": diffusion}


# %%
known, new = (validate(model, films.subset(range(*r))) for r in ((0, 2), (18, 24)))
place = np.arange(2)
plt.bar(place - 0.2, known.values(), 0.4, label="the two it was trained on")
plt.bar(place + 0.2, new.values(), 0.4, label="six it never saw")
plt.xticks(place, ["prior", "diffusion"])
plt.ylabel("Dice")
plt.ylim(0, 1.35)
plt.legend(loc="upper center")
assert known["diffusion_dice"] > new["diffusion_dice"] + 0.1

# %% [markdown]
# It knows its two films by heart, others much less.
#
# ## 5 · Feeding it
#
# A set that fits lies on the device as `uint8` (all 609 radiographs at 768×256 with their masks: 240 MB). A larger set is *streamed*: workers decode the next batches while the network computes.

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


# %%
source = PhantomSet(folder / "films", size=tiny.size)
assert torch.equal(Streamed(source).subset([3, 5]).pack().images, films.subset([3, 5]).images)


# %% [markdown]
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


# %%
#| export
def pixel_batches(
    data: Packed | Streamed,
    plan: Iterable[list[int]],  # which images, batch by batch
    device: torch.device | str = "cpu",  # where Packed data are already
    workers: int | None = None,  # for Streamed; None: `worker_count`; 0: decode here
) -> Iterator[tuple[Tensor, Tensor]]:  # images and masks, uint8 (B, 1, H, W) on the device
    "The batches of a plan."
    if isinstance(data, Packed):
        for index in plan:
            where = torch.as_tensor(index, device=data.images.device)
            yield data.images[where], data.masks[where]
        return
    count = worker_count() if workers is None else workers
    loader = DataLoader(data, batch_sampler=plan, num_workers=count,
                        worker_init_fn=_ignore_interrupt,
                        pin_memory=torch.device(device).type == "cuda")
    said = None
    try:
        for images, masks in loader:
            yield images.to(device, non_blocking=True), masks.to(device, non_blocking=True)
    except VerdiffError as error:  # torch wraps what a worker raised in its whole traceback
        said = str(error).strip().splitlines()[-1]
    if said is not None:
        gc.collect()  # torch's error holds on to the loader in a circle: let go of its workers
        raise VerdiffError(said.partition("Error: ")[2] or said)


# %%
plan = [batch_indices(24, 4, b, 35).tolist() for b in range(6)]
pair = pixel_batches(films, plan), pixel_batches(Streamed(source), plan, workers=2)
for a, b in zip(*pair, strict=True):
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])

# %% [markdown]
# Then chance enters: augmentation, time, noise. Each image has its own generator, seeded by its place in the stream, so devices can share a batch. Only the times are spread over the *whole* batch: every process draws all and takes its share.

# %%
#| export
class Batch(NamedTuple):
    "What the loss needs, on the device."

    image: Tensor  # (B, 1, H, W) in [0, 1]
    mask: Tensor  # {0, 1}
    t: Tensor  # int64 (B,)
    noise: Tensor  # standard normal, (B, 1, H, W)


# %%
#| export
def disturb(
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
    t = t[process * size:(process + 1) * size]
    return Batch(image, mask, t.to(mask.device), noise.to(mask.device))


# %%
def part(process, processes):
    size = 8 // processes
    where = batch_indices(24, size, 5 * processes + process, 35)
    return disturb(films.images[where], films.masks[where], tiny, 5, process, processes)


whole, halves = part(0, 1), [part(p, 2) for p in (0, 1)]
for name, x in whole._asdict().items():
    together = torch.cat([getattr(h, name) for h in halves])
    torch.testing.assert_close(together, x, atol=1e-5, rtol=0)

# %%
fig, axes = plt.subplots(1, 8, figsize=(6, 2.2))
for k, axis in enumerate(axes):
    axis.imshow(whole.image[k, 0], cmap="gray", vmin=0, vmax=1)
    axis.contour(whole.mask[k, 0], [0.5], colors="orange", linewidths=0.5)
    axis.set_title(f"t = {whole.t[k]}", fontsize=7)
    axis.set_axis_off()
fig.suptitle("one batch; two processes would take the left and the right half", fontsize=9);

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
        yield disturb(image, mask, s, number, process, processes)


# %%
late = next(batches(films, tiny, first=3))  # any position can be asked for at once
assert torch.equal(late.noise, list(batches(films, tiny))[3].noise)


# %%
#| export
def ahead(
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
assert list(ahead(iter(range(5)))) == list(range(5))

# %% [markdown]
# Which is slower, the loader or the network? (This is one core. On a GPU the network is much faster, and several workers decode.)

# %%
def rate_of(items, count):
    start = time.process_time()  # of this core, whatever else the machine does
    for _, batch in zip(range(count), items):
        pass
    return 8 * count / (time.process_time() - start)


def network():
    for batch in batches(films, long):
        training_loss(model, *batch)["total"].backward()
        yield batch


long = load_settings("smoke", [*small, "batch_size=8", "max_steps=1000"])
speed = {
    "in memory, pixels only": rate_of(pixel_batches(films, plan * 20), 120),
    "in memory": rate_of(batches(films, long), 20),
    "streamed": rate_of(batches(Streamed(source), long, workers=0), 5),
    "the network": rate_of(network(), 5),
}
plt.barh(list(speed), list(speed.values()), color=["C2", "C2", "C0", "C3"])
plt.xscale("log")
plt.xlabel("images a second")
print({k: round(v) for k, v in speed.items()})
assert min(speed["in memory"], speed["streamed"]) > speed["the network"]

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
    s, root = settings, () if data == "phantom" else (data,)
    kind = PhantomSet if data == "phantom" else open_dataset
    more = {} if root else phantoms
    dataset = kind(*root, split="training", size=s.size, fit=s.fit, **more)
    parts = grouped_split(dataset.names, s.val_fraction, s.seed)
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
    if not must_stream(s, len(dataset)):
        return tuple(map(pack(dataset, cache).subset, parts))
    train_part, val_part = map(Streamed(dataset).subset, parts)
    held = val_part.subset(range(min(len(val_part), s.val_images)))
    if isinstance(dataset, PairedFiles) and len(held):
        check_masks(dataset, [dataset.arrays(i) for i in held.index], held.index)
    return train_part, held.pack() if len(held) else Packed(torch.zeros(0), torch.zeros(0), [])


# %%
set_at = lambda *more: training_data(folder / "films", load_settings("smoke", [*small, *more]))
assert isinstance(set_at()[0], Packed) and isinstance(set_at("stream=true")[0], Streamed)
assert not must_stream(load_settings("gpu"), 609) and must_stream(load_settings("gpu"), 10**9)

# %% [markdown]
# ## 6 · Checkpoints
#
# A long run gets interrupted. A checkpoint is one file: weights, their average, optimiser, step, history, settings and a fingerprint of the images: names, and pixels and masks if they lie in memory (so whoever corrects a label begins another run). Written under a temporary name, it is forced to the disk and renamed; three are kept.

# %%
#| export
def checkpoints(
    out: Path,  # folder of a run
) -> list[Path]:  # the oldest first
    "The checkpoints of a run, by step."
    paths = out.glob("checkpoint-*.pt")
    found = ((re.fullmatch(r"checkpoint-(\d+)\.pt", p.name), p) for p in paths)
    return [p for _, p in sorted((int(m[1]), p) for m, p in found if m)]


# %%
#| export
def save_checkpoint(
    out: Path,
    state: dict[str, Any],  # must hold "step"
    keep: int = 3,
) -> Path:
    "Write checkpoint-NNNNNN.pt atomically; it and the `keep` - 1 before it stay."
    path = out / f"checkpoint-{state['step']:06d}.pt"
    with atomic_write(path) as temporary:
        torch.save(state, temporary)
    there = checkpoints(out)
    here = there.index(path)
    for old in [*there[:max(here + 1 - keep, 0)], *there[here + 1:]]:  # later ones are damaged
        old.unlink()
    return path


# %%
(folder / "demo").mkdir()
for k in (1, 999_999, 1_000_000):
    save_checkpoint(folder / "demo", {"step": k}, keep=2)
print([p.name for p in checkpoints(folder / "demo")])
assert [p.stem[11:] for p in checkpoints(folder / "demo")] == ["999999", "1000000"]

# %% [markdown]
# A damaged file is named, and the one before it used: the zip's checksums notice one flipped bit. Nothing from a checkpoint is executed.

# %%
#| export
def read_checkpoint(
    path: Path,
) -> dict[str, Any] | None:  # None: damaged
    "What `save_checkpoint` wrote; every byte is checked, nothing from the file is executed."
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip() is not None:
                return None
        state = torch.load(path, map_location="cpu", weights_only=True)
        known = {"step", "settings", "data"} <= set(state) and isinstance(state["settings"], dict)
        return state if known else None
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, NotImplementedError,
            pickle.UnpicklingError, zipfile.BadZipFile, zlib.error):
        return None


# %%
content = {"step": 7, "settings": {}, "data": "", "model": torch.randn(1000)}
path = save_checkpoint(folder / "demo", content)
assert read_checkpoint(path)["step"] == 7
damaged = bytearray(path.read_bytes())
damaged[len(damaged) // 2] ^= 1  # one bit
for some in (damaged, damaged[:900]):
    path.write_bytes(some)
    assert read_checkpoint(path) is None

# %% [markdown]
# A checkpoint of *another* run is refused with a sentence that names the settings that differ; those that do not change the training may. Four images on each of two devices are the same run as eight on one.

# %%
#| export
FREE = ("profile", "log_every", "checkpoint_every", "keep_checkpoints", "eval_height",
        "eval_width", "ensemble", "sample_steps", "sampler", "validate_every", "val_images",
        "stream")  # may change on resuming


def check_same_run(
    state: dict[str, Any],  # a checkpoint
    settings: Settings,
    data_key: str,  # tells the training images
    processes: int,
    path: Path,  # to name in errors
) -> None:
    "VerdiffError where a checkpoint belongs to another run."
    away = "use another --out, or start over with --fresh"
    theirs, mine = dict(state["settings"]), settings.to_dict()
    theirs["batch_size"] = theirs.get("batch_size", 0) * state.get("processes", 1)
    mine["batch_size"] *= processes
    if differ := [k for k in mine if k not in FREE and theirs.get(k) != mine[k]]:
        said = ", ".join(f"{k} (there {theirs.get(k)!r}, here {mine[k]!r})" for k in differ)
        raise VerdiffError(f"{path} belongs to a run with other settings: {said}; {away}")
    (names, _, pixels), (our_names, _, our_pixels) = (
        key.partition(":") for key in (state["data"], data_key))
    if names != our_names or (pixels and our_pixels and pixels != our_pixels):
        raise VerdiffError(f"{path} belongs to a run on other images or masks; {away}")


# %%
#| export
def load_checkpoint(
    out: Path,
    settings: Settings,
    data_key: str,  # tells the training images
    processes: int = 1,
) -> dict[str, Any] | None:  # None: there is none yet
    "The newest readable checkpoint; VerdiffError if all are damaged or it is of another run."
    paths = checkpoints(out)[::-1]
    for path in paths:
        if (state := read_checkpoint(path)) is not None:
            check_same_run(state, settings, data_key, processes, path)
            return state
        print(f"{path.name} is damaged; trying the one before it", file=sys.stderr)
    if paths:
        raise VerdiffError(f"{out}: {paths[0].name} and all before it are damaged; remove them or "
                           "start over with --fresh")
    return None


# %%
(folder / "demo" / "checkpoint-1000000.pt").write_bytes(damaged)
other = tiny.to_dict() | {"batch_size": 2, "learning_rate": 1.0}
state = {"step": 999_999, "settings": other, "data": "", "processes": 2}
save_checkpoint(folder / "demo", state)
try:
    with redirect_stderr(sys.stdout):
        load_checkpoint(folder / "demo", tiny, "")
except VerdiffError as error:
    print(str(error).replace(str(folder), "..."))
    assert "learning_rate" in str(error) and "batch_size" not in str(error)
assert "learning_rate" not in FREE and "stream" in FREE

# %% [markdown]
# Ctrl-C should not hit in the middle of a weight update. The first one only raises a flag, read between two steps; so does SIGTERM, by which a cluster wants its machine back.

# %%
#| export
@contextmanager
def polite_interrupt() -> Iterator[threading.Event]:
    "While it holds, Ctrl-C and SIGTERM set the event; Ctrl-C again, a second later, interrupts."
    asked, since = threading.Event(), [0.0]

    def handler(number: int, frame: Any) -> None:
        if asked.is_set() and number == signal.SIGINT and time.monotonic() - since[0] > 1:
            raise KeyboardInterrupt
        asked.set()
        since[0] = time.monotonic()

    ours = (signal.SIGINT, signal.SIGTERM)
    here = threading.current_thread() is threading.main_thread()  # others may not
    before = {number: signal.signal(number, handler) for number in ours if here}
    try:
        yield asked
    finally:
        for number, old in before.items():
            signal.signal(number, old)


# %% [markdown]
# Signals reach the main thread only, which a notebook may not be. So the test is a process:

# %%
script = """
import signal
from verdiff.training import polite_interrupt
with polite_interrupt() as asked:
    signal.raise_signal(signal.SIGTERM)
    print("still here; asked to stop:", asked.is_set())"""
said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout
print(said)
assert "asked to stop: True" in said

# %% [markdown]
# ## 7 · The whole loop
#
# The library `accelerate` puts the model on its device, runs it in bf16 if asked, and averages gradients over processes. It averages only what goes through the module that it has wrapped, so the loss becomes a module:

# %%
#| export
class Objective(nn.Module):
    "The loss as a module, so that one wrapped call a step computes everything."

    def __init__(self, model: VerdiffNet, settings: Settings):
        super().__init__()
        self.model, self.weights = model, (settings.bce_weight, settings.dice_weight)
        self.process = model.process()

    def forward(self, image: Tensor, mask: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        "As `training_loss`."
        return training_loss(self.model, image, mask, t, noise, *self.weights, process=self.process)


# %%
#| export
def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    "Adam or AdamW, as the settings say."
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)


# %%
print({k: round(v.item(), 3) for k, v in Objective(model, tiny)(*whole).items()})
print(type(make_optimizer(model, tiny)).__name__)

# %% [markdown]
# A trained network can be *fine-tuned* on other images, or at a larger size (convolutions do not mind). The settings that say what its output means (`MEANING`) must be the same.

# %%
#| export
MEANING = ("channels", "blocks", "norm", "msfm", "msfm_dim", "nsa", "nsa_choice", "shift",
           "timesteps", "schedule", "beta_start", "beta_end",
           "prediction_type")  # must not change on fine-tuning


def start_from(
    model: VerdiffNet,  # gets the weights
    trained: VerdiffNet,  # gives them
) -> VerdiffNet:  # model
    "Begin with the weights of a trained network; VerdiffError where it is another kind of network."
    here, there = model.config.to_dict(), trained.config.to_dict()
    if differ := [k for k in MEANING if here[k] != there[k]]:
        said = ", ".join(f"{k} (there {there[k]!r}, here {here[k]!r})" for k in differ)
        raise VerdiffError(f"the network to start from has other settings: {said}; "
                           "change them with --set, or start from another network")
    model.load_state_dict(trained.state_dict())
    return model


# %%
assert "channels" in MEANING and "height" not in MEANING
twins = [VerdiffNet(channels=(8, 16), height=h, width=h // 2) for h in (64, 128)]
start_from(*twins)
for a, b in zip(*(n.state_dict().values() for n in twins), strict=True):
    assert torch.equal(a, b)
try:
    start_from(VerdiffNet(channels=(8, 16), shift=False), twins[0])
except VerdiffError as error:
    print(error)


# %%
#| export
def data_key(data: Packed | Streamed) -> str:
    "Tells images from others: by name, and by pixel and mask where they lie in memory."
    digest = hashlib.sha256("\n".join(data.names).encode("utf-8", "surrogateescape"))
    names = digest.hexdigest()
    if not isinstance(data, Packed):
        return names
    for pixels in (data.images, data.masks):
        digest.update(pixels.cpu().contiguous().numpy().data)
    return f"{names}:{digest.hexdigest()}"


# %%
#| export
@dataclass
class Run:
    "The state of one training run."

    settings: Settings
    out: Path  # its folder
    accelerator: Any  # accelerate's: device, precision, other processes
    data: Packed | Streamed  # to train on; Packed: on the device
    val_data: Packed | None  # to validate on
    model: VerdiffNet
    average: VerdiffNet  # of the model's weights
    objective: nn.Module  # the loss, wrapped by accelerate
    optimizer: Any  # wrapped by accelerate
    step: int = 0
    best: float = -1.0  # validated Dice of what is in OUT/model
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    clean: bool = True  # False while weights are being changed
    key: str = ""  # of the training images
    start: str = ""  # of the weights that `--start-from` named

    @property
    def main(self) -> bool:
        "Whether this process writes files and speaks."
        return self.accelerator.is_main_process


# %%
#| export
def group_timeout() -> Any:
    "For `Accelerator`: processes wait for the one that validates, however long it takes."
    from accelerate import InitProcessGroupKwargs

    return InitProcessGroupKwargs(timeout=timedelta(hours=12))


# %%
#| export
def prepare(
    settings: Settings,
    train_data: Packed | Streamed,
    val_data: Packed | None,
    out: Path,
    trained: VerdiffNet | None = None,  # a network to start from
) -> Run:
    "A run at step 0."
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if not len(train_data):
        raise VerdiffError("there is no image to train on")
    if isinstance(train_data, Packed) and tuple(train_data.images.shape[-2:]) != settings.size:
        raise VerdiffError(f"the images are {'x'.join(map(str, train_data.images.shape[-2:]))} and "
                           f"the settings say {settings.height}x{settings.width}")
    AcceleratorState._reset_state()  # a second run in one process may want another precision
    accelerator = Accelerator(mixed_precision=settings.mixed_precision,
                              kwargs_handlers=[group_timeout()])
    key = data_key(train_data)
    if isinstance(train_data, Packed):
        pixels = (x.to(accelerator.device) for x in (train_data.images, train_data.masks))
        train_data = Packed(*pixels, train_data.names)
    count = min(settings.val_images, len(val_data) if val_data is not None else 0)
    torch.manual_seed(settings.seed)
    model = VerdiffNet(VerdiffConfig.from_settings(settings))
    if trained is not None:
        start_from(model, trained)
    model.to(accelerator.device)
    wrapped = accelerator.prepare(Objective(model, settings), make_optimizer(model, settings))
    some = val_data.subset(range(count)) if count else None
    average = deepcopy(model).eval().requires_grad_(False)
    return Run(settings, out, accelerator, train_data, some, model, average, *wrapped, key=key,
               start="" if trained is None else weights_digest(trained))


# %%
changes = ("max_steps=60 batch_size=8 learning_rate=0.006 warmup_steps=5 rotation=10 ema_decay=0.9 "
           "validate_every=20 checkpoint_every=5 log_every=1 sample_steps=5 val_fraction=0.25")
short = load_settings("smoke", [*small, *changes.split()])
train_part, val_part = training_data(folder / "films", short)
run = prepare(short, train_part, val_part, folder / "by-hand")
print(f"{len(run.data)} films to train on, {len(run.val_data)} to validate on, "
      f"{run.model.num_parameters():,} parameters, on {run.accelerator.device}")
assert run.main and run.step == 0

# %% [markdown]
# One step: loss and gradient (of each part of an accumulated batch), clip, update, average.

# %%
#| export
LOSSES = ("total", "mse", "bce", "dice")


def take_step(
    run: Run,
    stream: Iterator[Batch],
) -> Tensor:  # the losses of LOSSES, on the device
    "One step of Algorithm 1."
    s, acc, total = run.settings, run.accelerator, 0.0
    for k in range(s.accumulate):
        with nullcontext() if k + 1 == s.accumulate else acc.no_sync(run.objective):
            losses = run.objective(*next(stream))
            acc.backward(losses["total"] / s.accumulate)
        total = total + torch.stack([losses[name].detach() for name in LOSSES]) / s.accumulate
    run.clean = False
    norm = acc.clip_grad_norm_(run.objective.parameters(), s.grad_clip or math.inf)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(s, run.step)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    follow(run.average, run.model, s.ema_decay, run.step)
    run.step += 1
    run.clean = True
    return torch.where(norm.isfinite() | ~total.isfinite(), total, math.nan)


# %%
#| export
def stream_of(run: Run) -> Iterator[Batch]:
    "The batches of this process from the run's step on, made ahead by a thread."
    s, acc = run.settings, run.accelerator
    return ahead(batches(run.data, s, run.step * s.accumulate, acc.device,
                         acc.process_index, acc.num_processes))


# %%
with closing(stream_of(run)) as stream:
    by_hand = [take_step(run, stream) for _ in range(3)]
print(dict(zip(LOSSES, by_hand[-1].tolist())))
assert run.step == 3 and torch.stack(by_hand).isfinite().all()

# %% [markdown]
# After each step all processes agree on their mean losses and on whether somebody pressed Ctrl-C. A loss or a gradient that is not finite has spoilt the weights: nothing more is saved, and the message says where.

# %%
#| export
def agree(
    run: Run,
    losses: Tensor,  # of this process
    asked: bool,  # to stop
) -> tuple[dict[str, float], bool]:  # losses of all processes, and whether any was asked
    "What every process must know alike after a step: one small message, one wait for the device."
    told = torch.cat([losses, losses.new_tensor([float(asked)])])
    *means, stop = run.accelerator.reduce(told, "mean").tolist()
    return dict(zip(LOSSES, means, strict=True)), stop > 0


# %%
#| export
def check_finite(run: Run, losses: dict[str, float]) -> None:
    "VerdiffError with step, files and last checkpoint where loss or gradient is no number."
    if math.isfinite(losses["total"]):
        return
    s, kept = run.settings, checkpoints(run.out)
    size = s.batch_size * run.accelerator.num_processes
    numbers = range((run.step - 1) * s.accumulate, run.step * s.accumulate)
    index = torch.cat([batch_indices(len(run.data), size, n, s.seed) for n in numbers]).tolist()
    names = ", ".join(run.data.names[i] for i in index[:32]) + (", ..." if len(index) > 32 else "")
    raise VerdiffError(
        f"the loss or its gradient is {losses['total']} at step {run.step} (images {names}); "
        "try a smaller learning_rate or mixed_precision=no; the last checkpoint is "
        f"{kept[-1].name if kept else 'none'}")


# %%
losses, stop = agree(run, by_hand[-1], asked=False)
check_finite(run, losses)
try:
    check_finite(run, {**losses, "total": math.nan})
except VerdiffError as error:
    print(error)
assert not stop and losses["total"] == by_hand[-1][0].item()

# %% [markdown]
# `run.json` says what this run is; `history.json` holds its curves.

# %%
#| export
def snapshot(run: Run) -> dict[str, Any]:
    "All that a checkpoint holds."
    return {"step": run.step, "settings": run.settings.to_dict(), "data": run.key,
            "start": run.start,
            "processes": run.accelerator.num_processes, "model": run.model.state_dict(),
            "average": run.average.state_dict(), "optimizer": run.optimizer.state_dict(),
            "best": run.best, "history": run.history, "seconds": run.seconds,
            "verdiff": verdiff.__version__}


# %%
#| export
def restore(run: Run, state: dict[str, Any]) -> None:
    """Go back to a checkpoint.

    VerdiffError where another version of verdiff wrote it, or the run began with other weights
    than `--start-from` names now.
    """
    if run.start and run.start != state.get("start"):
        raise VerdiffError(f"{run.out} holds a run that began with other weights than those to "
                           "start from; use another --out, or start over with --fresh")
    try:
        run.model.load_state_dict(state["model"])
        run.average.load_state_dict(state["average"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.step, run.best = state["step"], state["best"]
        run.history, run.seconds = state["history"], state["seconds"]
        run.start = state.get("start", "")
        if any(state["settings"].get(k) != v for k, v in run.settings.to_dict().items()
               if k in ("val_images", "sampler", "sample_steps")):
            run.best = -1.0  # measured in another way
    except (KeyError, RuntimeError, ValueError) as error:  # the last: of the optimiser
        raise VerdiffError(f"{run.out}: verdiff {state.get('verdiff', '(unknown)')} wrote the "
                           f"checkpoint, this is {verdiff.__version__}, and it does not fit; go "
                           "on with that version, or start over with --fresh") from error


# %%
twin = prepare(short, train_part, val_part, folder / "twin")
restore(twin, deepcopy(snapshot(run)))
for a, b in zip(twin.average.state_dict().values(), run.average.state_dict().values()):
    assert torch.equal(a, b)
try:
    restore(twin, {"step": 7, "verdiff": "0.0.1"})
except VerdiffError as error:
    print(str(error).replace(str(folder), "..."))


# %%
#| export
@lru_cache(1)
def commit() -> str | None:
    "The commit that is running, None outside of a clone."
    root = Path(verdiff.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


# %%
#| export
def save(run: Run) -> Path:
    "The history and what this run is, both as JSON, and a checkpoint."
    acc, val = run.accelerator, run.val_data
    about = {"verdiff": verdiff.__version__, "torch": torch.__version__, "commit": commit(),
             "device": str(acc.device), "processes": acc.num_processes, "images": len(run.data),
             "validated_on": len(val) if val is not None else 0,
             "parameters": run.model.num_parameters(), "step": run.step,
             "seconds": round(run.seconds, 1), "best": run.best,
             "settings": run.settings.to_dict()}
    for name, content in (("history.json", run.history), ("run.json", about)):
        with atomic_write(run.out / name) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return save_checkpoint(run.out, snapshot(run), run.settings.keep_checkpoints)


# %%
run.out.mkdir()
state = read_checkpoint(save(run))
print(sorted(state), "commit known:", commit() is not None)
assert state["step"] == 3

# %% [markdown]
# First the best model, then the checkpoint: killed between the two, the run resumes from the older checkpoint, finds the same Dice and writes the same model again. The other order could lose it.

# %%
#| export
def look(run: Run) -> dict[str, float]:
    "Validate the averaged weights, and keep them if they are the best so far."
    s = run.settings
    found = validate(run.average, run.val_data, s.sample_steps, s.batch_size, s.seed, s.sampler)
    if found["diffusion_dice"] >= run.best:
        run.average.save_pretrained(run.out / "model")
        run.best = found["diffusion_dice"]
    return found


# %%
print({k: round(v, 3) for k, v in look(run).items()}, "best", round(run.best, 3))
assert (run.out / "model" / "model.safetensors").exists()


# %%
#| export
def report(run: Run, losses: dict[str, float], bar: tqdm, log: Any) -> None:
    "Validate, log and save when it is time."
    s, step, end = run.settings, run.step, run.step == run.settings.max_steps
    entry = {"step": step, **losses, "lr": learning_rate(s, step - 1)}
    if looked := run.val_data is not None and (step % s.validate_every == 0 or end):
        entry |= look(run)
        bar.set_postfix({k: f"{entry[k]:.3f}" for k in ("prior_dice", "diffusion_dice")})
    if step % s.log_every == 0 or end or looked:
        run.history.append(entry)
        for name, value in entry.items() if log is not None else ():
            log.add_scalar(name, value, step)
    if end and run.val_data is None:
        run.average.save_pretrained(run.out / "model")
    if step % s.checkpoint_every == 0 or end:
        if log is not None:
            log.flush()
        save(run)


# %%
#| export
def open_log(run: Run) -> Any:
    "A TensorBoard writer of the main process; None where TensorBoard is not installed."
    if not run.main:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    unsaved = run.step + 1  # what an earlier process logged after its last checkpoint is forgotten
    return SummaryWriter(str(run.out / "tensorboard"), purge_step=unsaved)


# %%
with closing(open_log(run)) as log:
    report(run, losses, tqdm(disable=True), log)
assert run.history[-1]["step"] == 3 and list((run.out / "tensorboard").iterdir())

# %% [markdown]
# The loop. Compare it with the ten lines.

# %%
#| export
def loop(run: Run, bar: tqdm, log: Any) -> None:
    "Algorithm 1 until max_steps; KeyboardInterrupt between two steps when asked."
    since = time.perf_counter()
    with polite_interrupt() as asked, closing(stream_of(run)) as stream:
        while run.step < run.settings.max_steps:
            losses, stop = agree(run, take_step(run, stream), asked.is_set())
            check_finite(run, losses)
            now = time.perf_counter()
            run.seconds, since = run.seconds + now - since, now
            bar.update()
            if run.main:
                report(run, losses, bar, log)
            if stop:
                raise KeyboardInterrupt


# %%
twin.settings = load_settings("smoke", [*small, "max_steps=5", "batch_size=8"])
twin.out.mkdir()
loop(twin, tqdm(disable=True), None)
assert twin.step == 5 and checkpoints(twin.out)


# %% [markdown]
# Two processes in one folder would sweep away each other's half-written files. A lock that ends with its process keeps the second out. And a run that starts over leaves nothing of the old one behind.

# %%
#| export
LEFT_BY_A_RUN = ("run.json", "history.json", f"model/{CONFIG_FILE}", f"model/{WEIGHTS_FILE}")


@contextmanager
def run_lock(
    out: Path,  # folder of the run; made if missing
) -> Iterator[None]:
    "Keep other processes out of a run, as long as this one lives; VerdiffError where one is there."
    out.mkdir(parents=True, exist_ok=True)
    lock = out / ".lock"
    with open(lock, "w") as file:
        try:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise VerdiffError(f"{out}: another process is training there; wait for it, or use "
                               "another --out") from None
        except (ImportError, OSError):
            pass  # Windows, some network drives
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


# %%
#| export
def resume_run(run: Run, resume: bool = True) -> None:
    "Remove what a kill left half-written; go back to the newest checkpoint, or remove the old run."
    if run.main:
        run.out.mkdir(parents=True, exist_ok=True)
        old = [*run.out.glob(".*.part"), *run.out.glob("model/.*.part")]
        old += [] if resume else [*checkpoints(run.out), *run.out.glob("tensorboard/events.*"),
                                  *(run.out / name for name in LEFT_BY_A_RUN)]
        for path in old:
            path.unlink(missing_ok=True)
    run.accelerator.wait_for_everyone()
    count = run.accelerator.num_processes
    if resume and (state := load_checkpoint(run.out, run.settings, run.key, count)):
        restore(run, state)


# %%
#| export
def work(run: Run, progress: bool = True) -> None:
    "The loop, with a bar and a log, and a checkpoint when it is interrupted."
    log = open_log(run)
    bar = tqdm(total=run.settings.max_steps, initial=run.step, desc="train", unit="step",
               disable=None if progress and run.main else True)
    try:
        loop(run, bar, log)
    except KeyboardInterrupt:
        bar.close()
        if run.main and run.clean and run.step:
            print(f"saved {save(run).name}; the same command goes on from there", file=sys.stderr)
        raise
    finally:
        bar.close()
        if log is not None:
            log.close()


# %%
#| export
def train(
    settings: Settings,
    train_data: Packed | Streamed,
    val_data: Packed | None,  # None or empty: the last weights are kept, else the best
    out: str | Path,  # folder of the run
    resume: bool = True,  # go on from the newest checkpoint in `out`
    progress: bool = True,  # show a bar
    trained: VerdiffNet | None = None,  # a network to start from; None: from nothing
) -> VerdiffNet:  # the averaged model, best on the validation part, in eval mode
    """Algorithm 1. Writes checkpoints, history.json, run.json, TensorBoard logs and OUT/model.

    KeyboardInterrupt passes after a checkpoint was saved. VerdiffError: a loss that is no number,
    a checkpoint of another run, a disk that is full.
    """
    run = prepare(settings, train_data, val_data, Path(out), trained)
    with run_lock(run.out) if run.main else nullcontext():
        return _train(run, resume, progress)


def _train(run: Run, resume: bool = True, progress: bool = True) -> VerdiffNet:
    "What `train` does with a run that is prepared."
    resume_run(run, resume)
    settings = run.settings
    finished, kept = run.step >= settings.max_steps, run.out / "model"
    if finished and run.main and not all((kept / f).exists() for f in (CONFIG_FILE, WEIGHTS_FILE)):
        print(f"{kept} is not complete; the last averaged weights take its place")
        run.average.save_pretrained(kept)
    if run.main and run.step:
        what = "finished already" if finished else f"going on after step {run.step}"
        print(f"{run.out.name}: {what}")
    if not finished:
        work(run, progress)
    run.accelerator.wait_for_everyone()
    return VerdiffNet.from_pretrained(run.out / "model").to(run.accelerator.device)


# %% [markdown]
# Sixty steps on eighteen phantoms, all the way through:

# %%
model = train(short, train_part, val_part, folder / "run", progress=False)
history = json.loads((folder / "run" / "history.json").read_text())
print({k: round(v, 3) for k, v in history[-1].items()})
print(sorted(p.name for p in (folder / "run").iterdir()))

# %%
fig, axes = plt.subplots(1, 2, figsize=(7, 2.3))
draw(axes[0], {name: [h[name] for h in history] for name in ("mse", "bce", "dice")})
checks = [h for h in history if "prior_dice" in h]
for name in ("prior_dice", "diffusion_dice"):
    axes[1].plot([h["step"] for h in checks], [h[name] for h in checks], "o-", label=name)
axes[1].legend()
axes[1].set_xlabel("step")
assert history[-1]["mse"] < 0.5 * history[0]["mse"]

# %% [markdown]
# The weights with the best validation are kept. After sixty steps the diffusion is still behind its own prior; whether it gets ahead in a real run is measured on page [15](15_xray.ipynb). `tensorboard --logdir runs` shows such curves live.
#
# ## 8 · Kill it
#
# The same run again, as a command, killed twice with `kill -9` at a random moment. (The tests do it twenty times, also in the middle of writing a checkpoint.)

# %%
sets = {**short.to_dict(), "channels": "8,16,32"}
del sets["profile"]
command = [sys.executable, "-m", "verdiff.training", "--data", str(folder / "films"),
           "--profile", "smoke", "--out", str(folder / "killed")]
command += [word for k, v in sets.items() for word in ("--set", f"{k}={v}")]
one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}

# %%
begin, seen, kills = time.perf_counter(), [(0, 0)], []
for goal in (10, 25, 60):
    with open(folder / "log.txt", "a") as text:
        process = subprocess.Popen(command, stdout=text, stderr=text, env=one_thread)
    while process.poll() is None:
        time.sleep(0.05)
        done = max([int(p.stem[11:]) for p in checkpoints(folder / "killed")], default=0)
        seen.append((time.perf_counter() - begin, done))
        if goal <= done < 60:
            time.sleep(np.random.default_rng(goal).uniform(0, 0.5))
            process.kill()
            process.wait()
            kills.append(time.perf_counter() - begin)

# %%
plt.figure(figsize=(6, 2.1))
plt.step(*zip(*seen), where="post")
plt.xlabel("seconds")
plt.ylabel("newest checkpoint")
for k in kills:
    plt.axvline(k, color="crimson", ls="--")
print((folder / "log.txt").read_text().strip())
files = (folder / r / "model" / "model.safetensors" for r in ("run", "killed"))
one, two = (f.read_bytes() for f in files)
print(f"{len(kills)} kills; identical to the undisturbed run: {one == two}")
assert one == two and len(kills) == 2

# %% [markdown]
# The flat pieces are Python starting up. The weights are the same byte for byte on a CPU with as many threads (one, here); where sums change their order, up to rounding.
#
# Ctrl-C is kinder: the loop finishes its step and saves. Should an interrupt break into a step all the same, before the weights change, the last whole step is saved. Here one comes from inside the loss of step 8:

# %%
calls, original = [], training_loss


def interrupted(*args, **kw):
    calls.append(1)
    if len(calls) == 8:
        raise KeyboardInterrupt
    return original(*args, **kw)


training_loss = interrupted
try:
    with redirect_stderr(sys.stdout):
        train(short, train_part, val_part, folder / "stopped", progress=False)
except KeyboardInterrupt:
    assert checkpoints(folder / "stopped")[-1].name == "checkpoint-000007.pt"
training_loss = original

# %% [markdown]
# ## 9 · From the command line, and on several devices
#
# On one device use `verdiff train` ([12](12_segment.ipynb)), on several `accelerate launch -m verdiff.training` with the same words (here `--start-from` takes a model's folder or its name on the Hub).

# %%
#| export
def options() -> argparse.ArgumentParser:
    "Words of `python -m verdiff.training`."
    parser = argparse.ArgumentParser(prog="python -m verdiff.training", description=main.__doc__)
    add = parser.add_argument
    add("--data", required=True, help="zip or folder, or the word phantom")
    add("--profile", default="gpu")
    add("--set", action="append", default=[], metavar="KEY=VALUE")
    add("--out")
    add("--start-from", metavar="MODEL", help="fine-tune this model folder or Hub id")
    add("--fresh", action="store_true", help="start over")
    return parser


# %%
#| export
def main(
    argv: Sequence[str] | None = None,  # None: those of the process
) -> int:  # 0: well; 2: an error that a sentence explains; 130: interrupted
    "Train as one of accelerate's processes: `accelerate launch -m verdiff.training --data ...`."
    from accelerate import Accelerator

    args = options().parse_args(argv)
    try:
        settings = load_settings(args.profile, args.set)
        out = Path(args.out or f"runs/{args.profile}")
        trained = VerdiffNet.from_pretrained(args.start_from) if args.start_from else None
        first = Accelerator(kwargs_handlers=[group_timeout()])
        with first.main_process_first():  # the others find the images decoded
            parts = training_data(args.data, settings, out / "images.npz")
        train(settings, *parts, out, resume=not args.fresh, trained=trained)
    except VerdiffError as error:
        print(f"verdiff: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


# %%
with redirect_stderr(sys.stdout):
    assert main(["--data", "nowhere.zip", "--profile", "smoke", "--out", str(folder / "x")]) == 2

# %%
#| export
#| eval: false
if __name__ == "__main__":
    sys.exit(main())

# %% [markdown]
# Two processes with four images each should equal one with eight, up to rounding. (Without a GPU, `ACCELERATE_USE_CPU` lets them talk over `gloo`.)

# %%
#| slow
def losses_of(out, *more, launch=()):
    words = ["--data", str(folder / "films"), "--profile", "smoke", "--out", str(folder / out)]
    for word in (*small, "max_steps=20", "log_every=1", "learning_rate=0.004", *more):
        words += ["--set", word]
    subprocess.run([sys.executable, *launch, "-m", "verdiff.training", *words], check=True,
                   capture_output=True, env={**one_thread, "ACCELERATE_USE_CPU": "true"})
    return [h["total"] for h in json.loads((folder / out / "history.json").read_text())]


launch = ("-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 "
          "--mixed_precision no --dynamo_backend no").split()
two, one = losses_of("two", "batch_size=4", launch=launch), losses_of("one", "batch_size=8")

# %%
#| slow
fig, axis = plt.subplots()
draw(axis, {"one process, batch of 8": one, "two processes, 4 each": two}, ["C0", "k:"])
apart = max(abs(a / b - 1) for a, b in zip(one, two))
about = json.loads((folder / "two" / "run.json").read_text())
print(f"{about['processes']} processes, {len(one)} steps; largest relative difference {apart:.1e}")
np.testing.assert_allclose(one, two, rtol=1e-3)

# %% [markdown]
# In a notebook with several GPUs (Kaggle offers two), `notebook_launcher` starts them. These two cells still wait for a GPU.

# %%
#| cuda
from accelerate import notebook_launcher

# %%
#| cuda
words = ["--data", str(folder / "films"), "--profile", "smoke", "--out", str(folder / "launched")]
notebook_launcher(main, (words,), num_processes=torch.cuda.device_count())

# %% [markdown]
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | Eq. (9) | cross entropy of the noise | cross entropy of the prior against the mask | the literal one has no minimum |
# | what is optimised | "Equation (9)" | Eq. (10), the sum | Eq. (9) alone has no diffusion loss |
# | soft Dice | none | weight 1; 0 in `paper` | small foreground |
# | what the diffusion loss teaches the prior | not said | nothing (`detach_prior`); everything in `paper` | else the prior may become a code for the other net only |
# | batch, rate, steps | 1, $10^{-4}$, 9,000 | by profile | what the machine can carry |
# | schedule, clipping | constant, none | warm-up and cosine, norm 1; off in `paper` | section 4 |
# | average of the weights | none | yes; off in `paper` | section 4 |
#
# ## Exercises
#
# **1 · Predict.** At the first step the output layer of the diffusion U-Net is zero. What is the `mse` for `prediction_type` "sample", and for "epsilon"?
#
# <details><summary>Answer</summary>
#
# "sample": the target is $\pm1$, so exactly 1. "epsilon": the target is standard normal, so about 1.
#
# </details>

# %%
image, mask = films_at(slice(0, 4))
times4, noise4 = torch.tensor([1, 200, 500, 900]), torch.randn(mask.shape, generator=g)
for kind in ("sample", "epsilon"):
    fresh = VerdiffNet(VerdiffConfig.from_settings(tiny), prediction_type=kind)
    first = training_loss(fresh, image, mask, times4, noise4)["mse"].item()
    print(kind, round(first, 4))
    assert abs(first - 1) < (1e-6 if kind == "sample" else 0.07)

# %% [markdown]
# **2 · Change.** Switch `detach_prior` off. Which gradient appears that was zero before?
#
# <details><summary>Answer</summary>
#
# That of the `mse` with respect to the weights of the conditional U-Net (`detach_prior`).
#
# </details>

# %%
for detach in (True, False):
    torch.manual_seed(0)
    net = VerdiffNet(VerdiffConfig.from_settings(tiny), detach_prior=detach)
    torch.nn.init.normal_(net.diffusion.out[-1].weight)
    training_loss(net, image, mask, times4, noise4)["mse"].backward()
    grads = [p.grad for p in net.conditional.parameters()]
    felt = sum(x is not None and bool(x.abs().sum() > 0) for x in grads)
    print(f"detach_prior={detach}: {felt} tensors of the conditional U-Net feel the mse")
    assert bool(felt) != detach

# %% [markdown]
# **3 · Implement.** Write `mse_at(t)`: the `mse` of the trained model on the validation films, all at time t. Where is it largest?
#
# <details><summary>Answer</summary>
#
# With the mask as target, at large t: there $x_t$ shows only prior and noise, and the network must rely on them and the radiograph. At small t copying $x_t$ would nearly do, but after sixty steps the network copies badly. (With the noise as target it is the other way round.)
#
# </details>

# %%
@torch.no_grad()
def mse_at(t):
    b, m = val_part.images.float() / 255, val_part.masks.float()
    noise = torch.randn(m.shape, generator=generator_for(35, t))
    return training_loss(model, b, m, torch.full((len(m),), t), noise)["mse"].item()


at = [0, 50, 100, 200, 400, 600, 800, 999]
plt.plot(at, [mse_at(t) for t in at], "o-")
plt.xlabel("t")
plt.ylabel("mse")
assert mse_at(0) < mse_at(999)

# %% [markdown]
# Next: [11 · Sampling](11_sampling.ipynb), where the trained net is asked for masks.

# %%
#| hide
shutil.rmtree(folder)
