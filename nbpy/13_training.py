# %% [markdown]
# # 13 · Training
# > Algorithm 1 on one screen, and what each of its lines is for

# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/13_training.ipynb)

# %%
#| default_exp training.loop

# %%
#| export
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from verdiff.data.packed import Packed
from verdiff.settings import Settings
from verdiff.training.batches import Batch, batches
from verdiff.training.loss import Objective

# %%
import shutil
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib_inline.backend_inline import set_matplotlib_formats

import verdiff.nsa as nsa
from verdiff.data.packed import pack
from verdiff.data.phantom_set import PhantomSet
from verdiff.diffusion.sampling import sample
from verdiff.metrics import dice
from verdiff.networks.config import VerdiffConfig
from verdiff.networks.model import VerdiffNet
from verdiff.settings import load_settings
from verdiff.training.batches import generator_for, random_times
from verdiff.training.loss import training_loss

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)
folder = Path(tempfile.mkdtemp())
g = torch.Generator().manual_seed(35)

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
# ## 4 · One addition at a time
#
# The other weaknesses follow, each with its cure. **The average of the weights.** The last steps of a run jitter. An exponential moving average (EMA) is calmer; $d_k$ is small at first, so that the random start is forgotten.
#
# $$\bar\theta_{k+1}=d_k\,\bar\theta_k+(1-d_k)\,\theta_{k+1},\qquad d_k=\min\Bigl(d,\frac{1+k}{10+k}\Bigr).$$

# %%
#| exports
@torch.no_grad()
def ema_update(
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
    ema_update(average[0], net, 0.9, k)
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
#| exports
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
# Half a per cent to three is what 8 bits leave. This table found a bug. Page [10](10_nsa.ipynb) keeps the depth-wise convolutions in float32 on a CPU (`depthwise_conv`); without that, the dilated one gets memory that nobody wrote as its gradient:

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


# %%
#| exports
def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    "Adam or AdamW, as the settings say."
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)


# %%
#| exports
def take_step(
    objective: nn.Module,  # a batch -> {"total": ..., and its parts}
    optimizer: torch.optim.Optimizer,
    stream: Iterator[Batch],
    settings: Settings,
    step: int,  # from 0
    accelerator: Any,  # accelerate's
) -> Tensor:  # the losses, NaN where a gradient was not finite
    "One step of Algorithm 1; the loss of an accumulated batch, part by part."
    s, total = settings, 0.0
    for k in range(s.accumulate):
        last = k + 1 == s.accumulate
        with nullcontext() if last else accelerator.no_sync(objective):
            losses = objective(*next(stream))
            accelerator.backward(losses["total"] / s.accumulate)
        parts = torch.stack([loss.detach() for loss in losses.values()])
        total = total + parts / s.accumulate
    norm = accelerator.clip_grad_norm_(
        objective.parameters(), s.grad_clip or math.inf)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(s, step)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return torch.where(norm.isfinite() | ~total.isfinite(), total, math.nan)


# %%
#| exports
def train_loop(
    model: nn.Module,  # a `VerdiffNet`; is changed
    data: Packed,
    settings: Settings,
    look: Callable[[nn.Module, int], None] | None = None,
) -> nn.Module:  # the averaged weights, in eval mode
    "Algorithm 1, and a look at the average now and then."
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    objective, optimizer = accelerator.prepare(
        Objective(model, settings), make_optimizer(model, settings))
    average = deepcopy(model).eval().requires_grad_(False)
    stream = batches(data, settings, device=accelerator.device)
    for step in range(settings.max_steps):
        take_step(objective, optimizer, stream, settings, step, accelerator)
        ema_update(average, model, settings.ema_decay, step)
        if look and (step + 1) % settings.validate_every == 0:
            look(average, step + 1)
    return average


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
# Next: [14 · Sampling](14_sampling.ipynb), where the trained net is asked for masks.

# %%
#| hide
shutil.rmtree(folder)
