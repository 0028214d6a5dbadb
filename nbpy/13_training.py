# %% [markdown]
# # 13 · Training
# > Algorithm 1 on one screen, and what each of its lines is for

# %% [markdown]
# [Lesson 12](12_loss.ipynb) wrote down what is rewarded. How do the networks earn it? You will put the paper's Algorithm 1 right, write it in ten lines, look for the weaknesses of these ten, and mend one at a time, each with its picture, until the whole loop stands on one screen. Two minutes on a laptop, no GPU. Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/13_training.ipynb).

# %%
#| default_exp training.loop

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    line = 'install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"'
    get_ipython().run_line_magic("pip", line)  # noqa: F821

# %%
#| exports
#| code-fold: true
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from verdiff.data.packed import Packed
from verdiff.settings import Settings
from verdiff.training.batches import Batch, batches
from verdiff.training.loss import Objective

# %%
#| code-fold: true
import matplotlib.pyplot as plt
import numpy as np
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.packed import pack
from verdiff.data.phantom_set import PhantomSet
from verdiff.metrics import dice
from verdiff.networks.config import VerdiffConfig
from verdiff.networks.model import VerdiffNet
from verdiff.settings import load_settings
from verdiff.training.batches import generator_for, random_times
from verdiff.training.loss import LOSSES, training_loss

# %%
#| code-fold: true
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
plt.rcParams |= {"figure.figsize": (4.2, 2.1), "legend.fontsize": 8}
plt.rcParams |= {"figure.constrained_layout.use": True}
torch.set_num_threads(1)
g = torch.Generator().manual_seed(35)


def draw(axis, curves, styles=(), **labels):
    for k, (name, values) in enumerate(curves.items()):
        axis.plot(values, styles[k] if styles else "", label=name)
    axis.legend()
    axis.set(**{"xlabel": "step", **labels})


def roughness(values, last=10):
    return float(np.abs(np.diff(values[-last:])).mean())


# %% [markdown]
# ## 1 · Algorithm 1, as printed and as repaired
#
# | | printed | repaired |
# |---|---|---|
# | 1 | $(b, x_0)\sim q(b, x_0)$ | the same: a radiograph and its mask |
# | 2 | $T\sim\mathrm{Uniform}(\{1,\dots,T\})$ | $t$ instead; $T$ is the number of steps |
# | 3 | $\varepsilon\sim\mathcal N(0, I)$ | the same |
# | 4 | calculate Equation (5) | calculate Eq. (3), $x_t=\sqrt{\bar\alpha_t}\,x_0+s_t\,(f(b)+\varepsilon)$; Eq. (5) is only its end, $t=T$ |
# | 5 | take a gradient step on $\nabla_\theta L_{\mathrm{total}}$ | the same, with Eq. (10) as in [12](12_loss.ipynb) |
# | 6 | until converged | for a given number of steps |
#
# (The code counts $t$ from 0.) Lines 3 to 5 are `training_loss`. The rest is this lesson.
#
# ## 2 · The loop in ten lines
#
# First with the same two thumbnails, again and again: if the loss does not fall to almost nothing, no amount of data will help.

# %%
small = ["height=72", "width=24", "channels=8,16,32", "timesteps=1000"]
tiny = load_settings("smoke", small)
source = PhantomSet(size=tiny.size, n_training=24, n_test=2)
phantoms = pack(source, progress=False)

# %%
def phantoms_at(where):
    return phantoms.images[where].float() / 255, phantoms.masks[where].float()


# %%
image, mask = phantoms_at(slice(0, 2))
torch.manual_seed(0)
model = VerdiffNet(VerdiffConfig.from_settings(tiny))
optimizer, curve = torch.optim.AdamW(model.parameters(), 3e-3), []

# %%
for k in range(240):
    t = torch.randint(1000, (2,), generator=g)
    noise = torch.randn(mask.shape, generator=g)
    losses = training_loss(model, image, mask, t, noise)
    losses["total"].backward()
    optimizer.step()
    optimizer.zero_grad()
    curve.append({name: loss.item() for name, loss in losses.items()})

# %%
#| code-fold: true
#| fig-alt: "Three falling curves over 240 steps on a logarithmic axis: mse, bce and dice, all from about one to below a hundredth."
draw(plt.gca(), {name: [c[name] for c in curve] for name in LOSSES[1:]},
     yscale="log", title="two thumbnails, learned by heart")
end = {name: sum(c[name] for c in curve[-20:]) / 20 for name in LOSSES}
print("last 20 steps:", {k: round(v, 3) for k, v in end.items()})
assert end["mse"] < 0.1 and end["dice"] < 0.05

# %% [markdown]
# It learns. On *different* images the ten lines show four weaknesses: the curve jitters to the end; a large learning rate makes it leap; one bad batch can spoil a run; and it is slow and wants memory. Here are the lines again, with a switch for each. (`random_times` spreads the times of a batch evenly over $0 \dots T-1$; a page of the library [makes it](library/batches.ipynb).)

# %%
def attempt(rate=lambda k: 0.02, clip=math.inf, half=False, spoil=None,
            look=lambda net, k: ()):
    torch.manual_seed(0)
    net = VerdiffNet(VerdiffConfig.from_settings(tiny), channels=(8, 16))
    optimizer, curve = torch.optim.AdamW(net.parameters()), []
    g = torch.Generator().manual_seed(1)
    for k in range(40):
        b, m = phantoms_at(torch.randint(18, (4,), generator=g))
        m = 255 * m if k == spoil else m
        t = random_times(4, 1000, g)
        noise = torch.randn(m.shape, generator=g)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = training_loss(net, b, m, t, noise)["total"]
        loss.backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.param_groups[0]["lr"] = rate(k)
        optimizer.step()
        optimizer.zero_grad()
        curve.append((loss.item(), norm.item(), *look(net, k)))
    return list(zip(*curve))


# %%
@torch.no_grad()
def held_out(net):
    "The loss on six phantoms that no attempt trains on."
    b, m = phantoms_at(slice(18, 24))
    t, noise = torch.linspace(0, 999, 6).long(), torch.randn(
        m.shape, generator=generator_for(3))
    return training_loss(net, b, m, t, noise)["total"].item()


# %% [markdown]
# ## 3 · One addition at a time
#
# **The average of the weights.** The last steps of a run jitter. An exponential moving average (EMA) is calmer; $d_k$ is small at first, so that the random start is forgotten.
#
# $$\bar\theta_{k+1}=d_k\,\bar\theta_k+(1-d_k)\,\theta_{k+1},$$
# $$d_k=\min\Bigl(d,\frac{1+k}{10+k}\Bigr).$$

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
    pairs = list(zip(average.state_dict().values(),
                     model.state_dict().values(), strict=True))
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    get_ema_multi_avg_fn(d)(
        [a for a, _ in floats], [m for _, m in floats], None)
    for a, m in pairs:
        if not a.is_floating_point():  # counters
            a.copy_(m)


# %%
average = []


def both(net, k):
    if k == 0:
        average.append(deepcopy(net))
    ema_update(average[0], net, 0.9, k)
    return held_out(net), held_out(average[0])


# %%
plain, _, raw, calm = attempt(look=both)
ratio = roughness(calm, 20) / roughness(raw, 20)
print(f"change of the held-out loss from step to step: {ratio:.2f} times")
assert ratio < 0.5

# %%
#| code-fold: true
#| fig-alt: "Held-out loss over 40 steps: that of the weights zigzags downwards, that of their average is a smooth curve beside it."
draw(plt.gca(), {"weights": raw, "their average": calm},
     ylabel="held-out loss", ylim=(0.6, 1.2))


# %% [markdown]
# **The learning rate.** A linear warm-up, because Adam has no memory yet and its first steps are the wildest; then half a cosine to zero, so that the run settles. (The paper's rate is constant.) A rate far too large shows both: without warm-up the loss leaps at once, with it later and less; and the cosine ends calmly.

# %%
#| exports
def learning_rate(settings: Settings, step: int) -> float:
    "Warm-up from step 0, then constant or half a cosine to zero."
    rate, warm = settings.learning_rate, settings.warmup_steps
    if step < warm:
        return rate * (step + 1) / warm
    if settings.lr_schedule == "constant":
        return rate
    done = (step - warm) / max(1, settings.max_steps - warm)
    return rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


# %%
words = "max_steps=40", "warmup_steps=6", "learning_rate=0.05"
brief = load_settings("smoke", words)
rates = {"constant": lambda k: 0.05,
         "warm-up, cosine": lambda k: learning_rate(brief, k)}
assert learning_rate(brief, 6) == 0.05 and learning_rate(brief, 40) < 1e-12

# %%
tried = {name: attempt(rate, look=lambda net, k: [held_out(net)])[2]
         for name, rate in rates.items()}

# %%
for name, values in tried.items():
    print(f"{name}: worst {max(values):.2f}, "
          f"change a step at the end {roughness(values):.4f}")
flat, cosine = tried.values()
assert roughness(cosine) < roughness(flat) and max(cosine) < max(flat)

# %%
#| code-fold: true
#| fig-alt: "Left: the two learning rates over 40 steps, one constant, one a short ramp and half a cosine. Right: held-out loss; with the constant rate a tall spike at the start and restlessness at the end, with the other a lower spike and a calm end."
fig, axes = plt.subplots(1, 2, figsize=(7, 2.1))
draw(axes[0], {name: [rate(k) for k in range(40)]
               for name, rate in rates.items()}, ["C0", "C2"], title="rate")
axes[0].legend(loc=(0.2, 0.05))
draw(axes[1], tried, ["C0", "C2"], title="held-out loss")

# %% [markdown]
# **Gradient clipping.** Masks with 255 instead of 1 slip into one batch, at step 6. Adam divides by the size of recent gradients, so that step is not large; but it *remembers* the size for about a thousand steps, in which good gradients count for less. Clipped to a norm of 1, the bad one weighs no more than others. (Here that limit cuts nearly every step; Adam hardly minds, since it divides by the size anyway.)

# %%
unclipped, clipped = (attempt(clip=c, spoil=6)
                      for c in (math.inf, 1.0))

# %%
after = [float(np.mean(x[0][-10:])) for x in (unclipped, clipped)]
print(f"loss, mean of the last 10 steps: {after[0]:.2f}; "
      f"clipped {after[1]:.2f}")
assert after[1] < 0.8 * after[0]

# %%
#| code-fold: true
#| fig-alt: "Left: the norm of the gradient leaps by orders of magnitude at step 6; clipped it stays at one. Right: the loss falls on where it was clipped and stays high where it was not."
fig, axes = plt.subplots(1, 2, figsize=(7, 2.1))
draw(axes[0], {"norm of the gradient": unclipped[1], "clipped": [1] * 40},
     ["C3", "C2--"], yscale="log")
draw(axes[1], {"as it comes": unclipped[0], "clipped at 1": clipped[0]},
     ["C3", "C2"], ylabel="loss", ylim=(0.4, 4), yscale="log")
axes[1].set_yticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
axes[1].minorticks_off()

# %% [markdown]
# **Half the bits.** A GPU multiplies matrices of bf16 (bfloat16) many times faster than float32. But bf16 has 8 significant bits: in *weights* of bf16 a small step vanishes.

# %%
weight, change = torch.tensor(1.0, dtype=torch.bfloat16), 0.003
print(f"float32: {1 + change}   bf16: {(weight + change).item()}")
assert (weight + change).item() == 1

# %% [markdown]
# So weights, optimiser, schedule and loss stay in float32; only convolutions and products run in bf16 (*mixed* precision). The curves differ, but stay close.

# %%
mixed = attempt(half=True)
apart = np.abs(np.array(plain) - mixed[0])
print(f"largest difference in the first 5 steps {apart[:5].max():.4f}, "
      f"in all {apart.max():.3f}")

# %%
assert apart[0] < 0.02
assert abs(np.mean(mixed[0][-10:]) / np.mean(plain[-10:]) - 1) < 0.25

# %%
#| code-fold: true
#| fig-alt: "Two training curves over 40 steps, float32 and mixed precision, almost on top of each other."
draw(plt.gca(), {"float32": plain, "mixed with bf16": mixed[0]},
     ["-", "--"], ylabel="loss")

# %% [markdown]
# A curve is a weak check: ours looked as good while the gradient of one kernel was garbage ([10](10_nsa.ipynb) tells how). So compare gradients, kernel by kernel, on one batch. One per cent, for a few kernels three or four, is what 8 bits leave:

# %%
large = pack(PhantomSet(size=(192, 64)), progress=False)
net = VerdiffNet(channels=(16, 32, 64))
for p in net.parameters():
    if not p.any():
        nn.init.normal_(p, std=0.1)  # what starts at zero lets no gradient pass

# %%
b, m = large.images[:4].float() / 255, large.masks[:4].float()
t = random_times(4, 1000, torch.Generator().manual_seed(0))
noise = torch.randn(m.shape)

# %%
def kernel_gradients(half):
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = training_loss(net, b, m, t, noise)["total"]
    loss.backward()
    return {name: p.grad.clone() for name, p in net.named_parameters()
            if p.ndim == 4}


# %%
exact, rough = kernel_gradients(False), kernel_gradients(True)
off = {name: float((rough[name] - g).norm() / g.norm())
       for name, g in exact.items()}

# %%
worst = max(off, key=off.get)
print(f"{len(off)} kernels, off by {np.median(list(off.values())):.1%}; "
      f"the worst by {off[worst]:.1%}: {worst}")
assert off[worst] < 0.05

# %%
#| code-fold: true
#| fig-alt: "A histogram of how far the gradient of each kernel in bf16 is from that in float32: most lie between a third of a per cent and three per cent, one at four."
plt.hist([100 * x for x in off.values()], 20, color="C2")
plt.xlabel("gradient off by, per cent")
plt.ylabel("kernels");


# %% [markdown]
# **Accumulation.** A batch too large for the memory is cut in two, and the gradients add up. Our losses are means over images, so four and four equal eight (not with batch normalisation), with half the memory for the backward pass:

# %%
def gradient(parts):
    "MiB kept for the backward pass, and the gradient."
    kept, net = [0], deepcopy(model)

    def keep(x):
        kept[-1] += x.numel() * x.element_size()
        return x

    for p in parts:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            losses = training_loss(net, *(x[p] for x in eight))
        (losses["total"] / len(parts)).backward()
        kept.append(0)
    whole = torch.cat([p.grad.flatten() for p in net.parameters()])
    return max(kept) / 2**20, whole


# %%
eight = (*phantoms_at(slice(0, 8)), random_times(8, 1000, generator_for(4)),
         torch.randn(8, 1, *tiny.size, generator=generator_for(5)))

# %%
memory_1, gradient_1 = gradient([slice(0, 8)])
memory_2, gradient_2 = gradient([slice(0, 4), slice(4, 8)])
close = 1e-4 * gradient_1.abs().max().item()
torch.testing.assert_close(gradient_1, gradient_2, atol=close, rtol=1e-3)
assert memory_2 < 0.6 * memory_1

# %%
#| code-fold: true
#| fig-alt: "Left: the gradient of eight images against that of four and four, all points on the diagonal. Right: two bars of memory, the second about half the first."
fig, axes = plt.subplots(1, 2, figsize=(6, 2.1))
axes[0].plot(gradient_1, gradient_2, ".", ms=2)
axes[0].set(xlabel="gradient of eight", ylabel="of four and four")
axes[1].bar(["eight", "four + four"], [memory_1, memory_2],
            color=["C0", "C2"])
axes[1].set_title("MiB kept for backward", fontsize=9);

# %% [markdown]
# ## 4 · The loop
#
# Everything in its place. accelerate's `Accelerator` knows the device and the precision; `take_step` is lines 1 to 5 of Algorithm 1, with accumulation, clipping and the rate.

# %%
#| exports
def make_optimizer(model: nn.Module, settings: Settings) -> Optimizer:
    "Adam or AdamW, as the settings say."
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[settings.optimizer](
        model.parameters(), lr=settings.learning_rate,
        weight_decay=settings.weight_decay)


# %%
#| exports
def make_accelerator(settings: Settings, **more: Any) -> Accelerator:
    "Device and precision, which a second call may want to be another."
    AcceleratorState._reset_state()  # or the first one's would stay
    return Accelerator(mixed_precision=settings.mixed_precision, **more)


# %%
print(type(make_optimizer(model, tiny)).__name__)
assert make_accelerator(tiny).mixed_precision == "no"


# %%
#| exports
def take_step(
    objective: nn.Module,  # a batch -> {"total": ..., and its parts}
    optimizer: Optimizer,
    stream: Iterator[Batch],
    settings: Settings,
    step: int,  # from 0
    accelerator: Any,  # accelerate's
) -> Tensor:  # the losses in their order, NaN where a gradient was not finite
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
one_step = Objective(model, tiny), make_optimizer(model, tiny)
parts = take_step(*one_step, batches(phantoms, tiny), tiny, 0,
                  make_accelerator(tiny))
print(dict(zip(LOSSES, parts.tolist())))
assert parts.isfinite().all()


# %% [markdown]
# And Algorithm 1 around it: data, loss, step, average, a look now and then. `batches` shuffles, augments ([04](04_augment.ipynb)) and draws time and noise; [its page](library/batches.ipynb) makes chance repeatable.

# %%
#| exports
def train_loop(
    model: nn.Module,  # a `VerdiffNet`; is changed
    data: Packed,
    settings: Settings,
    look: Callable[[nn.Module, int], None] | None = None,
) -> nn.Module:  # the averaged weights, in eval mode
    "Algorithm 1, and a look at the average now and then."
    accelerator = make_accelerator(settings)
    objective, optimizer = accelerator.prepare(
        Objective(model.train(), settings), make_optimizer(model, settings))
    average = deepcopy(model).eval().requires_grad_(False)
    device = accelerator.device
    stream = batches(data.to(device), settings, device=device)
    for step in range(settings.max_steps):
        take_step(objective, optimizer, stream, settings, step, accelerator)
        ema_update(average, model, settings.ema_decay, step)
        if look and (step + 1) % settings.validate_every == 0:
            look(average, step + 1)
    return average


# %%
words = ("max_steps=120 batch_size=4 learning_rate=0.01 warmup_steps=5 "
         "rotation=10 ema_decay=0.9 validate_every=20")
short = load_settings("smoke", [*small, *words.split()])

# %%
b, m = (x.to(make_accelerator(short).device)
        for x in phantoms_at(slice(18, 24)))
seen = {}

# %%
@torch.no_grad()
def look(net, step):
    seen[step] = dice(net.condition(b).prior > 0, m).tolist()


# %%
torch.manual_seed(0)
network = VerdiffNet(VerdiffConfig.from_settings(short))
trained = train_loop(network, phantoms.subset(range(18)), short, look)
print(f"Dice of the prior on six unseen phantoms: {np.mean(seen[120]):.2f}")
assert np.mean(seen[120]) > 0.6

# %%
#| code-fold: true
#| fig-alt: "Left: Dice of the prior on six unseen phantoms is already high at step 20 and rises slowly until step 120, one thin line each. Right: three unseen phantoms with the outline of the prior, which follows the spine."
fig, axes = plt.subplots(1, 4, figsize=(7, 2.4), width_ratios=(3, 1, 1, 1))
axes[0].plot(list(seen), list(seen.values()), color="0.7", lw=0.8)
axes[0].plot(list(seen), [np.mean(v) for v in seen.values()], "C0o-")
axes[0].set(xlabel="step", ylabel="Dice of the prior", ylim=(0, 1))
with torch.no_grad():
    prior = trained.condition(b).prior
for k, axis in enumerate(axes[1:]):
    axis.imshow(b[k, 0].cpu(), cmap="gray", aspect="auto")
    axis.contour(prior[k, 0].cpu(), [0], colors="orange", linewidths=0.8)
    axis.set_axis_off()

# %% [markdown]
# That is all of the subject. A run of days needs more: to survive `kill -9`, a full disk, a bad file and a second process in its folder, and to end in the same weights, to the bit. The library's [`train`](library/run.ipynb) calls this very `take_step`, so for the same settings it gives the same weights as `train_loop` (a test holds them together); what survives is in [checkpoints](library/checkpoint.ipynb), and what makes chance repeatable in [batches](library/batches.ipynb).
#
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | what is drawn in line 2 | $T$ | $t$ | a misprint |
# | batch, rate, steps | 1, $10^{-4}$, 9,000 | by profile | what the machine can carry |
# | rate over time, clipping | constant, none | warm-up and cosine, norm 1; off in `paper` | section 3 |
# | average of the weights | none | yes; off in `paper` | section 3 |
# | times of a batch | independent | spread evenly | less chance in the loss |
#
# ## Exercises
#
# **1 · Predict.** `ema_decay = 0.9`. By how much does the average still remember the random start after 3 updates, and after 100? First guess, then let `ema_update` tell you.

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# After three: $d_0 d_1 d_2=\frac1{10}\cdot\frac2{11}\cdot\frac3{12}$, half a per cent: the early $d_k$ are small on purpose. With $d=0.9$ from the first step it would be $0.9^3=73\,\%$. After 100 nothing is left in both cases.

# %%
#| code-fold: true
for updates in (3, 100):
    start, still = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    start.weight.data.fill_(1)  # the average; what it follows is zero
    still.weight.data.fill_(0)
    for k in range(updates):
        ema_update(start, still, 0.9, k)
    print(updates, f"{start.weight.item():.5f}, and 0.9 from the first "
          f"step: {0.9 ** updates:.5f}")
    assert start.weight.item() < 0.01

# %% [markdown]
# </details>
#
# **2 · Change.** Write `mse_at(t)`: the `mse` of the trained network on the unseen phantoms, all at time $t$. Where is it largest, and why?

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# With the mask as target, at large $t$: there $x_t$ shows only prior and noise, and the network must rely on them and on the radiograph. At small $t$, copying $x_t$ would nearly do. (With the noise as target it is the other way round.)

# %%
#| code-fold: true
#| fig-alt: "The mse of the trained network against t: it rises from small t to large t."
@torch.no_grad()
def mse_at(t):
    noise = torch.randn(m.shape, generator=generator_for(35, t)).to(m)
    times = torch.full((len(m),), t, device=m.device)
    return training_loss(trained, b, m, times, noise)["mse"].item()


at = [0, 50, 100, 200, 400, 600, 800, 999]
plt.plot(at, [mse_at(t) for t in at], "o-")
plt.xlabel("t")
plt.ylabel("mse")
assert mse_at(0) < mse_at(999)

# %% [markdown]
# </details>
#
# **3 · Diagnose (hard).** Two runs with the same seed on the same machine: `batch_size=8, accumulate=1` and `batch_size=4, accumulate=2`. By the picture above their gradients should agree. After one step the conditional U-Nets agree to rounding, the diffusion U-Nets do not. It is no bug. Find out what differs, and why only one of the two feels it.

# %%
def after_one_step(*words):
    s = load_settings("smoke", [*small, "max_steps=1", *words])
    torch.manual_seed(0)
    net = VerdiffNet(VerdiffConfig.from_settings(s))
    train_loop(net, phantoms, s)
    return net.state_dict()


# %%
one = after_one_step("batch_size=8")
two = after_one_step("batch_size=4", "accumulate=2")
for layer in ("conditional.out.2.weight", "diffusion.out.2.weight"):
    print(layer, f"{(one[layer] - two[layer]).abs().max():.0e} apart")

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# The images are the same eight in the same order, and so are augmentation and noise: these are seeded by the place of an image in the stream. But the times are spread evenly over each *batch*, seeded by the number of the batch: eight times from batch 0 are not four from batch 0 and four from batch 1. The conditional U-Net never sees a time: `bce` and `dice` do not depend on it, and `detach_prior` keeps the `mse` out. Look at the batches themselves:

# %%
#| code-fold: true
def drawn(size):
    s = load_settings("smoke", [*small, "max_steps=2", f"batch_size={size}"])
    stream = batches(phantoms, s)
    return [torch.cat(x) for x in zip(*(next(stream)[:4]
                                        for _ in range(8 // size)))]


for name, a, c in zip(Batch._fields, drawn(8), drawn(4)):
    print(name, "same" if torch.allclose(a.float(), c.float()) else "differs")
    assert torch.allclose(a.float(), c.float(), atol=1e-5) == (name != "t")

# %% [markdown]
# </details>
#
# We have a trained network, but it only answers questions about noisy masks. How does one draw a mask from it? Next: [14 · Sampling](14_sampling.ipynb).
