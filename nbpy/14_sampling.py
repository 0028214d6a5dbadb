# %% [markdown]
# # 14 · Sampling
# > From noise around a guess to a mask: in a thousand steps, in ten, in one

# %% [markdown]
# You will run Algorithm 2 with a perfect network, so that every error is the algorithm's; test the printed version; take a hundred times fewer steps; turn many samples into a probability and a doubt; and ask whether this is worth it. Half a minute on a laptop, no GPU; sections 6 and 7 take ten minutes more and are shown as recorded.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/14_sampling.ipynb)

# %%
#| default_exp diffusion.sampling

# %%
#| export
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from verdiff.diffusion.forward import ShiftedDiffusion
from verdiff.diffusion.posterior import predict_x_0, q_posterior, reshift, unshift
from verdiff.files import VerdiffError

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import torch.nn.functional as F
from IPython.display import HTML
from diffusers import DPMSolverMultistepScheduler
from ipywidgets import IntSlider, interact
from matplotlib.animation import FuncAnimation
from matplotlib_inline.backend_inline import set_matplotlib_formats
from monai.networks.schedulers import DDIMScheduler

from verdiff.data.landmarks import landmarks_to_mask
from verdiff.data.phantoms import draw_phantom
from verdiff.diffusion.forward import linear_schedule
from verdiff.networks.model import VerdiffNet

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)
process = ShiftedDiffusion(linear_schedule())
g = torch.Generator().manual_seed(35)

# %% [markdown]
# ## 1 · A perfect network
#
# To study *samplers* we want a faultless network. For a finite set of masks there is one: by Bayes' rule (all masks equally likely, each seen through the Gaussian of page [06](06_forward.ipynb)) the mask $m_k$, scaled to $[-1, 1]$, has probability $w_k$ given $x_t$, and the guess of least squared error is
#
# $$\hat x_0(x_t) = \sum_k w_k\, m_k, \qquad w_k \propto \exp\Bigl(-\frac{\lVert y_t - \sqrt{\bar\alpha_t}\, m_k\rVert^2}{2 s_t^2}\Bigr), \qquad y_t = x_t - s_t f .$$
#
# Our set: one spine as eight doctors ("readers") might have drawn it; the prior $f$ is their average, blurred.

# %%
size = 96, 32
quads = draw_phantom(3).landmarks / 6


def reading(k):
    "Reader k's mask: the spine, shifted by a pixel or two."
    shift = 1.5 * torch.randn(2, generator=torch.Generator().manual_seed(k)).numpy()
    return torch.from_numpy(landmarks_to_mask(quads + shift, *size)).double()[None]


masks = torch.stack([reading(k) for k in range(8)])  # 8 1 96 32
modes = 2 * masks - 1
average = modes.mean(0, keepdim=True)  # 1 1 96 32
prior = F.avg_pool2d(average, 5, 1, 2, count_include_pad=False)  # a blurred guess


# %%
def weights(x_t, t, f):
    "How probable each of the eight masks is; x_t and f are b 1 96 32, the answer is b 8."
    y = unshift(process, x_t, t, f)
    root = process.coefficient(process.alphas_cumprod.sqrt(), t, y)  # b 1 1 1
    s = process.coefficient(process.sigmas, t, y).flatten(1)  # b 1
    gap = y[:, None] - root[:, None] * modes  # b 8 1 96 32: each picture minus each mask
    far = (gap**2).sum((2, 3, 4))  # b 8: squared distances
    return torch.softmax(-far / (2 * s**2), 1)


def perfect(f):
    "The faultless network for the prior f."

    def predict(x_t, t):
        w = weights(x_t, t, f.expand_as(x_t))
        return (w @ modes.flatten(1)).view_as(x_t)  # (b 8) @ (8 3072) -> b 1 96 32

    return predict


# %%
t = torch.tensor([100, 999])
x_t = process.q_sample(
    modes[[4, 4]], t, prior.expand(2, -1, -1, -1), torch.randn(2, 1, *size, generator=g).double()
)
gap = (perfect(prior)(x_t, t) - modes[4]).abs().mean((1, 2, 3))
print(
    f"the mask is reader 4's; the network's guess is off by {gap[0]:.3f} at t = 100 and by "
    f"{gap[1]:.3f} at t = 999"
)
assert gap[0] < 1e-6 < 0.1 < gap[1]

# %% [markdown]
# With little noise the network knows whose mask it is; with much, it gives a blurred average.
#
# ## 2 · Algorithm 2
#
# Algorithm 2 of the paper, put right: start at $\mathcal N(f, I)$, ask the network for the mask $\hat x_0$, draw $x_{t-1}$ from the posterior of page [07](07_posterior.ipynb), repeat: *ancestral sampling*.

# %%
#| exports
Predictor = Callable[[Tensor, Tensor], Tensor]  # x_t (B, ...), t int64 (B,) -> output (B, ...)
Noise = Callable[[Tensor], Tensor]  # a tensor -> standard normal noise of its shape, type, device
Callback = Callable[[int, Tensor, Tensor], None]  # t, x_t before the step, x_0 as predicted


def randn(generator: torch.Generator | None = None) -> Noise:
    "Noise from one generator on the CPU, whatever the device."
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)


def _all(x: Tensor, value: int) -> Tensor:
    "One time for every row of x."
    return torch.full((len(x),), value, dtype=torch.int64, device=x.device)


# %%
ask: Predictor = perfect(prior)
draw: Noise = randn(torch.Generator().manual_seed(1))
first, second = draw(torch.zeros(2, 3)), draw(torch.zeros(2, 3))
assert ask(x_t, t).shape == x_t.shape and first.shape == (2, 3) and not torch.equal(first, second)
assert torch.equal(first, randn(torch.Generator().manual_seed(1))(torch.zeros(2, 3)))


# %%
#| exports
def _guess(
    process: ShiftedDiffusion,
    predict: Predictor,
    x: Tensor,
    t: Tensor,
    prior: Tensor | None,
    prediction_type: str,
    clip: bool,
) -> Tensor:
    "x_0 as the network sees it, kept in [-1, 1]."
    x_0 = predict_x_0(process, x, t, predict(x, t), prior, prediction_type)
    return x_0.clamp(-1, 1) if clip else x_0


def ddpm_sample(
    process: ShiftedDiffusion,
    predict: Predictor,
    x_T: Tensor,  # where to start: `process.prior_sample(prior, noise)`, (B, ...)
    prior: Tensor | None = None,  # f, of the shape of x_T
    prediction_type: str = "sample",  # what `predict` says
    noise: Noise | None = None,  # None: torch's global generator
    clip: bool = True,  # keep the predicted x_0 in [-1, 1]
    callback: Callback | None = None,  # sees every step
) -> Tensor:  # x_0
    "Algorithm 2 with the exact posterior: ancestral sampling in T steps."
    x, noise = x_T, noise or randn()
    for i in reversed(range(process.timesteps)):
        t = _all(x, i)
        x_0 = _guess(process, predict, x, t, prior, prediction_type, clip)
        if callback is not None:
            callback(i, x, x_0)
        mean, variance = q_posterior(process, x_0, x, t, prior)
        x = mean + variance.sqrt() * noise(x) if i else mean
    return x


# %%
f = prior.expand(8, -1, -1, -1)
strip = {}
see: Callback = lambda i, x, x_0: strip.update({i: (x, x_0)})
start = process.prior_sample(f, randn(g)(f))
got = ddpm_sample(process, perfect(f), start, f, noise=randn(g), callback=see)


def nearest(x):
    return ((x[:, None] - modes) ** 2).flatten(2).mean(2).min(1)


print(
    "each walk ended at a reader's mask; readers reached:",
    sorted(set(nearest(got).indices.tolist())),
    f"largest distance {nearest(got).values.max():.1e}",
)
assert nearest(got).values.max() < 1e-6 and len(set(nearest(got).indices.tolist())) >= 3


# %%
def panel(rows, titles, **look):
    fig, axes = plt.subplots(
        len(rows),
        len(rows[0]),
        figsize=(0.8 * len(rows[0]), 2.3 * len(rows)),
        layout="constrained",
        squeeze=False,
    )
    for line, pictures in zip(axes, rows):
        for axis, picture, title in zip(line, pictures, titles):
            axis.imshow(picture[0], **({"cmap": "magma", "vmin": -2, "vmax": 2} | look))
            axis.set_axis_off()
            axis.set_title(title, fontsize=8)


times = [999, 800, 600, 400, 200, 100, 50, 10, 0]
panel([[strip[t][k][0] for t in times] for k in (0, 1)], [f"t = {t}" for t in times])


# %% [markdown]
# The guess $\hat x_0$ (lower row) turns from a blur of all readers into one of them: the walk *chooses*. The slider shows when:

# %%
def frame(t, axes=None):
    if axes is None:
        _, axes = plt.subplots(
            1, 3, figsize=(5.5, 2.8), layout="constrained", width_ratios=(1, 1, 2.2)
        )
    for axis, picture, title in zip(axes, strip[t], ("$x_t$", "believed $x_0$")):
        axis.clear()
        axis.imshow(picture[0, 0], cmap="magma", vmin=-2, vmax=2)
        axis.set_axis_off()
        axis.set_title(title, fontsize=9)
    weight = weights(strip[t][0][:1], torch.tensor([t]), f[:1])[0]
    axes[2].clear()
    axes[2].bar(range(8), weight, color="tab:blue")
    axes[2].set(ylim=(0, 1), xlabel="reader", title=f"t = {t}: whose mask is it?")


interact(lambda t: frame(t), t=IntSlider(700, 0, 999, 1, continuous_update=False));

# %%
fig, axes = plt.subplots(
    1, 3, figsize=(5.5, 2.5), dpi=50, layout="constrained", width_ratios=(1, 1, 2.2)
)
movie = FuncAnimation(
    fig,
    lambda t: frame(t, axes),
    frames=[*range(999, 500, -33), 400, 300, 200, 100, 0],
    interval=200,
)
html = movie.to_jshtml()
plt.close(fig)
HTML(html)


# %% [markdown]
# ## 3 · The printed algorithm
#
# Does Algorithm 2 as printed do as well? It starts at $\mathcal N(0, I)$, never takes the shift off, and has $\sqrt{1-\alpha_t}$ under the noise where Eq. (7) has $\sqrt{1-\bar\alpha_t}$ (`bar=True` is Eq. (7)).

# %%
#| exports
def ddpm_sample_printed(
    process: ShiftedDiffusion,
    predict: Predictor,  # says epsilon
    x_T: Tensor,  # the paper: N(0, I)
    noise: Noise | None = None,
    bar: bool = False,  # True: sqrt(1 - abar_t) as in Eq. (7); False: sqrt(1 - alpha_t) as in Algorithm 2
    callback: Callback | None = None,
) -> Tensor:
    "Algorithm 2 as printed, for comparison: no shift is ever taken off or put on."
    x, noise = x_T, noise or randn()
    under = process.sigmas if bar else process.betas.sqrt()
    variance = (1 - process.alphas_cumprod_prev) / (1 - process.alphas_cumprod) * process.betas
    for i in reversed(range(process.timesteps)):
        t = _all(x, i)
        eps = predict(x, t)
        if callback is not None:
            callback(i, x, eps)
        beta, alpha, root, v = (
            process.coefficient(c, t, x) for c in (process.betas, process.alphas, under, variance)
        )
        x = (x - beta / root * eps) / alpha.sqrt() + (v.sqrt() * noise(x) if i else 0)
    return x


# %% [markdown]
# The simplest world: the mask is always $x_0 = 1$, the prior $f = 0.8$, and an oracle says exactly the noise in its input, $\hat\varepsilon = (x_t - \sqrt{\bar\alpha_t} - s_t f)/s_t$. Three thousand walkers of one pixel, with the same noise for each algorithm:

# %%
f1 = torch.full((3000, 1), 0.8).double()
wanted, band = process.alphas_cumprod.sqrt() + 0.8 * process.sigmas, 2 * process.sigmas


def oracle(x, t):
    i = int(t[0])
    return (x - process.alphas_cumprod[i].sqrt() - 0.8 * process.sigmas[i]) / process.sigmas[i]


def exact(x, noise, see):
    return ddpm_sample(process, oracle, x, f1, "epsilon", noise, clip=False, callback=see)


def eq_7(x, noise, see):
    return ddpm_sample_printed(process, oracle, x, noise, bar=True, callback=see)


def algorithm_2(x, noise, see):
    return ddpm_sample_printed(process, oracle, x, noise, callback=see)


# %%
def bundle(walk, centre):
    "Send the walkers from N(centre, I): where each is at every t, (T, n), and their mean end."
    path, noise = torch.zeros(1000, 3000).double(), randn(torch.Generator().manual_seed(0))

    def see(i, x, _):
        path[i] = x[:, 0]

    end = walk(noise(f1) + centre, noise, see)
    return path, end.mean().item()


runs = {
    "exact, from N(f, I)": bundle(exact, f1),
    "Eq. (7), from N(0, I)": bundle(eq_7, 0),
    "Algorithm 2 as printed": bundle(algorithm_2, 0),
}

# %%
fig, axes = plt.subplots(1, 3, figsize=(8, 2.6), sharey=True, layout="constrained")
for axis, (name, (path, end)), colour in zip(
    axes, runs.items(), ("tab:blue", "tab:orange", "crimson")
):
    axis.plot(path[:, :25], color=colour, lw=0.3, alpha=0.7)
    axis.fill_between(range(1000), wanted - band, wanted + band, color="k", alpha=0.12, lw=0)
    axis.plot(wanted, "k--", lw=1)
    axis.set(title=name, xlabel="t (the walk goes left)", ylim=(-3, 4))
    axis.title.set_fontsize(9)

# %% [markdown]
# Grey is where Eq. (3) has 95 % of its walkers; only the exact ones fill it. Algorithm 2 divides by the smaller $\sqrt{1-\alpha_t}$ and corrects far too hard: a network would see much less noise than belongs to its $t$.

# %%
fig, axes = plt.subplots(1, 2, figsize=(7, 2.6), layout="constrained")
for (name, (path, end)), colour in zip(runs.items(), ("tab:blue", "tab:orange", "crimson")):
    gap, spread = path.mean(1) - wanted, path.std(1) / process.sigmas
    style = {"color": colour, "lw": 4 if name.startswith("exact") else 1}  # seen under the others
    axes[0].plot(gap, label=name, **style)
    axes[1].plot(spread, **style)
    print(
        f"{name:24s} mean off Eq. (3) by up to {gap.abs().max():.2f}, "
        f"spread at t = 500 {spread[500]:.2f} times Eq. (3)'s, end {end:.3f} (should be 1)"
    )
axes[0].set(xlabel="t", ylabel="mean − Eq. (3)")
axes[0].legend(fontsize=7)
axes[1].set(xlabel="t", ylabel="spread / $s_t$", ylim=(0, 1.1))
gaps = {name: (path.mean(1) - wanted).abs().max() for name, (path, _) in runs.items()}
assert (
    gaps["exact, from N(f, I)"] < 0.1
    and abs(runs["exact, from N(f, I)"][1] - 1) < 0.02
    and gaps["Eq. (7), from N(0, I)"] > 0.5
)


# %% [markdown]
# The 0.81 of both is the missing $f$ at the start; Algorithm 2 makes up for it in some fifty steps, Eq. (7) swings past. All three end near 1, because a perfect network pulls the walkers home from anywhere: a good end is no proof of an equation. A real network was trained only where Eq. (3) leads, so we take the exact form.
#
# ## 4 · A hundred times fewer steps
#
# A thousand evaluations are slow. In $y$, with the shift taken off, the process is plain DDPM, and the field's samplers apply as they stand: **shift off, jump, shift on**.
#
# Split $y_t$ into what the network believes, $y_t = \sqrt{\bar\alpha_t}\,\hat x_0 + s_t\,\hat\varepsilon$. At $t' < t$ the marginal wants $\sqrt{\bar\alpha_{t'}}\,\hat x_0$ plus noise of variance $s_{t'}^2$, in any mixture of the old $\hat\varepsilon$ and fresh $z$. That is DDIM (Song et al. 2021):
#
# $$y_{t'} = \sqrt{\bar\alpha_{t'}}\,\hat x_0 + \sqrt{s_{t'}^2 - \sigma^2}\;\hat\varepsilon + \sigma z, \qquad \sigma = \eta\,\frac{s_{t'}}{s_t}\sqrt{1 - \frac{\bar\alpha_t}{\bar\alpha_{t'}}} .$$
#
# (This $\sigma$ is not `process.sigmas`, which holds $s_t$.) $\eta = 0$ is deterministic; $\eta = 1$ takes as much fresh noise as the posterior, and with all steps is DDPM again.
#
# The times begin with the last, where sampling starts ("trailing", Lin et al. 2024). Ten times counted from zero (0, 100, …) would tell the network $t = 900$ and show it the noise of $t = 999$.

# %%
#| exports
def timestep_sequence(
    timesteps: int,  # T
    steps: int,  # how many to visit
) -> list[int]:  # falling, starts at T - 1
    "Evenly spaced times that begin at the last one (\"trailing\")."
    if not 1 <= steps <= timesteps:
        raise ValueError(f"steps must lie between 1 and {timesteps}, not {steps}")
    return [round(timesteps - i * timesteps / steps) - 1 for i in range(steps)]


# %%
print("4 steps:", timestep_sequence(1000, 4), "  1 step:", timestep_sequence(1000, 1))
assert timestep_sequence(1000, 1000) == list(range(999, -1, -1))


# %%
#| exports
def ddim_sample(
    process: ShiftedDiffusion,
    predict: Predictor,
    x_T: Tensor,  # (B, ...)
    prior: Tensor | None = None,
    prediction_type: str = "sample",
    steps: int = 10,
    eta: float = 0.0,  # 0: deterministic; 1: ancestral
    noise: Noise | None = None,  # only used where eta > 0
    clip: bool = True,
    callback: Callback | None = None,
) -> Tensor:  # x_0
    "DDIM (Song et al. 2021, Eq. 12) in the coordinate without shift."
    x, noise, times = x_T, noise or randn(), timestep_sequence(process.timesteps, steps)
    bars = [*process.alphas_cumprod.tolist(), 1.0]  # the last one, bars[-1], is that of t = -1
    for i, after in zip(times, [*times[1:], -1], strict=True):
        t, t_next = _all(x, i), _all(x, after)
        x_0 = _guess(process, predict, x, t, prior, prediction_type, clip)
        if callback is not None:
            callback(i, x, x_0)
        bar, bar_next = bars[i], bars[after]
        eps = (unshift(process, x, t, prior) - bar ** 0.5 * x_0) / (1 - bar) ** 0.5
        sigma = eta * ((1 - bar_next) / (1 - bar) * (1 - bar / bar_next)) ** 0.5
        y = bar_next ** 0.5 * x_0 + max(1 - bar_next - sigma ** 2, 0.0) ** 0.5 * eps
        x = reshift(process, y + sigma * noise(y) if sigma else y, t_next, prior)
    return x


# %%
truth = modes[:3]
f3 = prior.expand(3, -1, -1, -1)
for sampler, options in (
    (ddim_sample, dict(steps=1)),
    (ddim_sample, dict(steps=2)),
    (ddim_sample, dict(steps=10)),
    (ddim_sample, dict(steps=10, eta=1.0)),
    (ddpm_sample, {}),
):
    out = sampler(
        process,
        lambda x, t: truth,
        process.prior_sample(f3, randn(g)(f3)),
        f3,
        noise=randn(g),
        **options,
    )
    print(f"{sampler.__name__:12s}{options} recovers x_0 to {(out - truth).abs().max():.1e}")
    torch.testing.assert_close(out, truth, atol=1e-9, rtol=0)

# %% [markdown]
# With $\eta = 1$, all steps and the same noise, DDIM must be DDPM; with $f = 0$, a public library's DDIM:

# %%
short = ShiftedDiffusion(linear_schedule(40, 0.002, 0.4))
toward = lambda x, t: torch.tanh(x)  # any smooth "network"
x_T, zero = (torch.randn(2, 1, 6, 4, generator=g).double() for _ in range(2))
a = ddpm_sample(short, toward, x_T, zero, noise=randn(torch.Generator().manual_seed(1)))
b = ddim_sample(
    short, toward, x_T, zero, steps=40, eta=1.0, noise=randn(torch.Generator().manual_seed(1))
)
torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


# %%
def public(kind, steps, **options):
    s = kind(
        beta_schedule="linear", prediction_type="sample", timestep_spacing="trailing", **options
    )
    s.alphas_cumprod = process.alphas_cumprod
    s.set_timesteps(steps)
    x = x_T
    for t in s.timesteps:
        x = s.step(toward(x, t), t, x).prev_sample
    return x


theirs = public(DDIMScheduler, 10, clip_sample=True, set_alpha_to_one=True)
torch.testing.assert_close(
    ddim_sample(process, toward, x_T, torch.zeros_like(x_T), steps=10), theirs, atol=1e-6, rtol=1e-6
)

# %% [markdown]
# ### What few steps cost
#
# One step gives the *mean* of the readers, the answer of a plain network; more steps give a choice.

# %%
ends = {}
for steps in (1, 2, 3, 5, 10, 50):
    ends[steps] = ddim_sample(process, perfect(f), start, f, steps=steps)
    grey = (ends[steps].abs() < 0.9).double().mean()
    print(
        f"steps {steps:3d}: {grey:.1%} of pixels undecided (|x| < 0.9), "
        f"distance to the nearest reader {nearest(ends[steps]).values.mean():.4f}"
    )
panel(
    [[prior[0], *(ends[k][0] for k in ends), modes[nearest(ends[50]).indices[0]]]],
    ["prior", *(f"{k} step{'s' * (k > 1)}" for k in ends), "reader"],
    vmin=-1,
    vmax=1,
)
assert nearest(ends[10]).values.mean() < 0.1 * nearest(ends[1]).values.mean()


# %% [markdown]
# ### Second order for the same price
#
# Divide DDIM's step ($\eta = 0$) by $s_{t'}$, write $\lambda = \log(\sqrt{\bar\alpha}/s)$, the logarithm of signal over noise, and insert $\hat\varepsilon = y_t/s_t - e^{\lambda_t}\,\hat x_0$:
#
# $$\frac{y_{t'}}{s_{t'}} = \frac{y_t}{s_t} + \bigl(e^{\lambda_{t'}} - e^{\lambda_t}\bigr)\,\hat x_0, \qquad\text{in small steps}\qquad d\Bigl(\frac{y}{s}\Bigr) = e^{\lambda}\,\hat x_0(\lambda)\,d\lambda .$$
#
# DDIM solves this as if $\hat x_0$ were constant during the step: first order. DPM-Solver++ 2M (Lu et al. 2022) continues the previous estimate in a straight line; for second order its value $D$ in the middle of the step is enough. With $h = \lambda_{t'} - \lambda_t$:
#
# $$y_{t'} = \frac{s_{t'}}{s_t}\, y_t - \sqrt{\bar\alpha_{t'}}\,(e^{-h} - 1)\,D, \qquad D = \hat x_0 + \frac{h}{2\,h_{\text{last}}}\bigl(\hat x_0 - \hat x_0^{\text{last}}\bigr) .$$

# %%
#| exports
def dpm_solver_sample(
    process: ShiftedDiffusion,
    predict: Predictor,
    x_T: Tensor,  # (B, ...)
    prior: Tensor | None = None,
    prediction_type: str = "sample",
    steps: int = 10,
    clip: bool = True,
    callback: Callback | None = None,
) -> Tensor:  # x_0
    "DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2) in the coordinate without shift; deterministic."
    x, last, last_h = x_T, None, 0.0
    times = timestep_sequence(process.timesteps, steps)
    root, s = process.alphas_cumprod.sqrt(), process.sigmas
    log_snr = torch.log(root / s)
    for i, after in zip(times, [*times[1:], -1], strict=True):
        t, t_next = _all(x, i), _all(x, after)
        x_0 = _guess(process, predict, x, t, prior, prediction_type, clip)
        if callback is not None:
            callback(i, x, x_0)
        if after < 0:  # the end: s = 0, only the guess is left
            return x_0
        h = float(log_snr[after] - log_snr[i])
        d = x_0 if last is None else x_0 + (x_0 - last) * (h / last_h / 2)
        y = float(s[after] / s[i]) * unshift(process, x, t, prior)
        y = y - float(root[after]) * math.expm1(-h) * d
        x, last, last_h = reshift(process, y, t_next, prior), x_0, h
    return x


# %%
theirs = public(
    DPMSolverMultistepScheduler, 8, algorithm_type="dpmsolver++", final_sigmas_type="zero"
)
ours = dpm_solver_sample(process, toward, x_T, steps=8)
print(
    f"largest difference to the public solver, float32 tables there: "
    f"{(ours - theirs).abs().max():.1e}"
)
torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)
for steps in (1, 2, 10):
    out = dpm_solver_sample(
        process, lambda x, t: truth, process.prior_sample(f3, randn(g)(f3)), f3, steps=steps
    )
    torch.testing.assert_close(out, truth, atol=1e-12, rtol=0)

# %% [markdown]
# ### Does each solver keep its promise?
#
# With twice the steps, a solver of order $p$ divides its error by $2^p$. To measure that we need an exact solution. If $x_0$ is Gaussian, $\mathcal N(m, c^2)$, then $y_t$ has mean $\sqrt{\bar\alpha_t}\,m$ and variance $v_t = \bar\alpha_t c^2 + s_t^2$, the best predictor is linear, and every walker keeps its quantile on the deterministic path:
#
# $$\hat x_0 = m + \frac{c^2 \sqrt{\bar\alpha_t}}{v_t}\,\bigl(y_t - \sqrt{\bar\alpha_t}\,m\bigr), \qquad y_t = \sqrt{\bar\alpha_t}\,m + \sqrt{\frac{v_t}{v_{T}}}\,\bigl(y_T - \sqrt{\bar\alpha_T}\,m\bigr).$$

# %%
fine, m, c = ShiftedDiffusion(linear_schedule(5120, 0.1 / 5120, 20 / 5120)), 0.3, 0.7
f16 = torch.full((16, 1), 0.8).double()
R, V = fine.alphas_cumprod.sqrt(), fine.alphas_cumprod * c ** 2 + fine.sigmas ** 2


def linear_predictor(x, t):
    i = int(t[0])
    return m + c ** 2 * R[i] / V[i] * (unshift(fine, x, t, f16) - R[i] * m)


x_end = fine.prior_sample(f16, torch.randn(16, 1, generator=g).double())
above = (unshift(fine, x_end, torch.full((16,), 5119), f16) - R[-1] * m) / V[-1].sqrt()  # quantiles


# %%
def errors(solver, steps, at=1023):
    "Root mean square error at time `at`, which all the step counts below visit, and at the end."
    seen = {}
    end = solver(
        fine,
        linear_predictor,
        x_end,
        f16,
        steps=steps,
        clip=False,
        callback=lambda i, x, _: seen.update({i: x}),
    )
    gap = unshift(fine, seen[at], torch.full((16,), at), f16) - R[at] * m - V[at].sqrt() * above
    return gap.square().mean().sqrt().item(), (end - m - c * above).square().mean().sqrt().item()


counts = [10, 20, 40, 80, 160, 320]
fig, axis = plt.subplots(figsize=(5, 3), layout="constrained")
for name, solver, order, colour in (
    ("DDIM", ddim_sample, 1, "tab:blue"),
    ("DPM-Solver++ 2M", dpm_solver_sample, 2, "tab:green"),
):
    found = torch.tensor([errors(solver, n) for n in counts])
    slope = (found[2, 0] / found[-1, 0]).log2().item() / 3
    axis.loglog(
        counts, found[:, 0], "o-", color=colour, label=f"{name} at t = 1023, slope {slope:.2f}"
    )
    axis.loglog(counts, found[:, 1], "--", color=colour, lw=1)
    assert abs(slope - order) < 0.1
axis.set(xlabel="steps (dashed: error at the end of the road)", ylabel="error")
axis.legend(fontsize=7)


# %% [markdown]
# Both do at $t = 1023$, a time that all numbers of steps visit. At the very end (dashed) the second-order error falls unevenly, though it stays smaller: as $s_t \to 0$, $\lambda$ runs to infinity, and the last steps stay long however many there are.
#
# ## 5 · Ensembles
#
# Several samples (*members*) of one image show what else was possible. Their mean, or the share that calls a pixel vertebra (the *vote*), is a probability; their standard deviation (the *spread*) is our *doubt*. Each member has its own noise, seeded by (seed, image, member), whatever else is in the batch.

# %%
#| exports
class SeededNoise:
    "Noise whose rows come from generators of their own, seeded by (seed, image, member)."

    def __init__(self, seed: int, rows: Sequence[tuple[int, int]]):
        self.generators = []
        for image, member in rows:
            sequence = np.random.SeedSequence([abs(seed), image, member])
            mixed = sequence.generate_state(1, np.uint64)[0]
            self.generators.append(torch.Generator().manual_seed(int(mixed) >> 1))

    def __call__(self, x: Tensor) -> Tensor:
        "The next noise, of the shape of x (rows, ...)."
        rows = [torch.randn(x.shape[1:], generator=g, dtype=torch.float32) for g in self.generators]
        return torch.stack(rows).to(x.device, x.dtype)


# %%
both, later = SeededNoise(35, [(7, 2), (7, 3)]), SeededNoise(35, [(7, 3)])
assert torch.equal(
    both(torch.zeros(2, 4))[1:], later(torch.zeros(1, 4))
)  # sample 3 of image 7, alone or in company
assert not torch.equal(both(torch.zeros(2, 4))[0], SeededNoise(36, [(7, 2)])(torch.zeros(1, 4))[0])


# %%
#| exports
@dataclass
class SegmentationSamples:
    "What sampling gives for a batch of images, all as probabilities in [0, 1]."

    prior_prob: Tensor  # the conditional U-Net's, (B, 1, H, W)
    samples: Tensor  # (E, B, 1, H, W)

    @property
    def mean(self) -> Tensor:
        "Of the members: a probability, (B, 1, H, W)."
        return self.samples.mean(0)

    @property
    def vote(self) -> Tensor:
        "Share of the members above one half, (B, 1, H, W)."
        return (self.samples > 0.5).to(self.samples.dtype).mean(0)

    @property
    def std(self) -> Tensor:
        "Standard deviation over the members: a doubt in [0, 0.5], (B, 1, H, W)."
        return self.samples.std(0, correction=0)


# %%
three = SegmentationSamples(
    torch.tensor([0.5]), torch.tensor([[0.9], [0.8], [0.1]])
)  # three members, one pixel
print(f"mean {three.mean.item():.2f}, vote {three.vote.item():.2f}, spread {three.std.item():.2f}")
assert abs(three.vote.item() - 2 / 3) < 1e-6 and abs(three.mean.item() - 0.6) < 1e-6


# %% [markdown]
# All members of all images go in one batch, halved where the GPU's memory runs short.

# %%
#| exports
def in_batches(
    run: Callable[[int, int], Any],  # first row, end -> of rows first ... end - 1
    rows: int,
    batch_size: int | None = None,  # rows at once, to begin with; None: all
    progress: bool = False,
    join: Callable[[list], Any] = torch.cat,  # of the parts
) -> Any:  # (rows, ...)
    "Run over all rows; where CUDA's memory runs short, halve the batch and try again."
    size, done, first = min(batch_size or rows, rows), [], 0
    with tqdm(total=rows, desc="sample", disable=None if progress else True) as bar:
        while first < rows:
            try:
                end = min(first + size, rows)
                done.append(run(first, end))
                bar.update(end - first)
                first = end
                continue
            except torch.cuda.OutOfMemoryError as error:
                if size == 1:
                    raise VerdiffError(
                        "the GPU's memory does not hold even one sample; take a smaller "
                        "size, or the CPU"
                    ) from error
                size = -(-min(size, rows - first) // 2)
            torch.cuda.empty_cache()  # here, where the error and what it held are gone
    return join(done)


def join_parts(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    "Named tuples of tensors, batch after batch, as one."
    return type(parts[0])(*map(torch.cat, zip(*parts, strict=True)))


# %%
tried = []


def cramped(first, end):
    tried.append(end - first)
    if end - first > 3:
        raise torch.cuda.OutOfMemoryError("a GPU with room for three")
    return torch.arange(first, end)


assert torch.equal(in_batches(cramped, 11), torch.arange(11))
print("batches tried:", tried)
assert tried == [11, 6, 3, 3, 3, 2]


# %% [markdown]
# `sample` looks at the image *once* (`condition`). Only the diffusion U-Net runs for every member and step.

# %%
#| exports
def _walk(model: nn.Module, sampler: str, steps: int) -> Callable[..., Tensor]:
    "The sampler by its name, with everything set but x_T, the prior and the noise."
    if sampler not in ("ddim", "dpm", "ddpm"):
        raise ValueError(f"sampler must be 'ddim', 'dpm' or 'ddpm', not {sampler!r}")
    process, kind = model.process(), model.config.prediction_type

    def walk(predict: Predictor, x_T: Tensor, prior: Tensor, noise: Noise) -> Tensor:
        if sampler == "dpm":
            return dpm_solver_sample(process, predict, x_T, prior, kind, steps)
        if sampler == "ddpm" and steps == process.timesteps:
            return ddpm_sample(process, predict, x_T, prior, kind, noise)
        return ddim_sample(
            process, predict, x_T, prior, kind, steps, float(sampler == "ddpm"), noise
        )

    return walk


# %%
#| exports
@torch.no_grad()
def sample(
    model: nn.Module,  # `VerdiffNet`: condition, denoise, process, config
    image: Tensor,  # (B, 1, H, W) in [0, 1]
    steps: int = 10,
    ensemble: int = 5,  # samples an image
    seed: int = 0,
    sampler: str = "ddim",  # "ddim", "dpm", or "ddpm" (ancestral; strided where steps < T)
    first_index: int = 0,  # number of the first image, for the seeds of its noise
    batch_size: int | None = None,  # rows (image x member) at once; None: all, halved if need be
    progress: bool = False,
) -> SegmentationSamples:
    "Segment a batch several times over, from N(f, I); the batch size changes nothing but rounding."
    walk = _walk(model, sampler, steps)
    process = model.process()
    conditioning = in_batches(  # once an image
        lambda a, b: model.condition(image[a:b]), len(image), batch_size, join=join_parts)
    keys = [(i, e) for i in range(len(image)) for e in range(ensemble)]

    def run(first: int, end: int) -> Tensor:
        part = conditioning.select([i for i, _ in keys[first:end]])
        noise = SeededNoise(seed, [(first_index + i, e) for i, e in keys[first:end]])
        x_T = process.prior_sample(part.prior, noise(part.prior))
        x_0 = walk(lambda x, t: model.denoise(x, t, part), x_T, part.prior, noise)
        return ((x_0 + 1) / 2).clamp(0, 1)

    rows = in_batches(run, len(keys), batch_size, progress)
    samples = rearrange(rows, "(b e) c h w -> e b c h w", e=ensemble)
    return SegmentationSamples((conditioning.prior + 1) / 2, samples)


# %%
torch.manual_seed(0)
model = VerdiffNet(channels=(8, 16), height=48, width=16, timesteps=50).eval()
torch.nn.init.normal_(model.diffusion.out[-1].weight, std=0.3)
image = torch.rand(4, 1, 48, 16)
together = sample(model, image, steps=5, ensemble=3)
alone = sample(model, image[2:3], steps=5, ensemble=3, first_index=2)
torch.testing.assert_close(together.samples[:, 2:3], alone.samples, atol=1e-4, rtol=0)
torch.testing.assert_close(
    together.samples,
    sample(model, image, steps=5, ensemble=3, batch_size=5).samples,
    atol=1e-4,
    rtol=0,
)
assert torch.equal(together.samples, sample(model, image, steps=5, ensemble=3).samples)
assert (together.samples[0] - together.samples[1]).abs().max() > 1e-3


# %% [markdown]
# With a network that refuses more than four rows:

# %%
class Cramped(VerdiffNet):
    def denoise(self, x_t, t, conditioning):
        if len(x_t) > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return super().denoise(x_t, t, conditioning)


small = Cramped(model.config).eval()
small.load_state_dict(model.state_dict())
got = sample(small, image, steps=5, ensemble=3)
print(
    f"12 rows in batches of at most 4: largest difference "
    f"{(got.samples - together.samples).abs().max():.0e}"
)
torch.testing.assert_close(got.samples, together.samples, atol=1e-4, rtol=0)

# %%
for kind, steps in (("dpm", 5), ("ddpm", 5), ("ddpm", 50)):
    s = sample(model, image, steps=steps, ensemble=2, sampler=kind)
    assert s.samples.shape == (2, 4, 1, 48, 16) and 0 <= s.mean.min() and s.std.max() <= 0.5

# %% [markdown]
# An ensemble of 40 should have the mean and spread of the eight readers.

# %%
f40 = prior.expand(40, -1, -1, -1)
x = ddim_sample(process, perfect(f40), process.prior_sample(f40, randn(g)(f40)), f40, steps=20)
many = SegmentationSamples((prior + 1) / 2, (x[:, None] + 1) / 2)
panel(
    [[many.mean[0], masks.mean(0), many.std[0] * 2, masks.std(0, correction=0) * 2]],
    ["mean of\n40 samples", "mean of\n8 readers", "spread of\nsamples × 2", "spread of\nreaders × 2"],
    vmin=0,
    vmax=1,
)
agree = torch.corrcoef(torch.stack([many.std.flatten(), masks.std(0).flatten()]))[0, 1]
print(f"spread of the samples and spread of the readers correlate with {agree:.2f}")
assert agree > 0.8 and (many.mean[0] - masks.mean(0)).abs().mean() < 0.05

# %% [markdown]
# ### What a radiograph costs
#
# `bench/segment.py` times a radiograph of 768×256 with its uncertainty: ours as `verdiff segment` does it; ours at full size, with as many parameters as MONAI's tutorial network; that network; and med-seg-diff-pytorch. Rows marked ~ multiply the time of one evaluation.

# %%
record = Path("../bench/results/segment.json")
bench = json.loads(record.read_text()) if record.exists() else {"rows": [], "scaling": {}}
for r in bench["rows"]:
    print(f"{r['method']:33s} {r['steps']:5,d} steps × {r['samples']} "
          f"{'~ '[not r['extrapolated']]}{r['seconds']:9,.1f} s, {r['seconds'] / bench['rows'][0]['seconds']:7,.0f} times, "
          f"{r['peak_megabytes']:5,.0f} MB")
print(bench.get("machine", "no record here: run `make bench` in a clone"))

# %% [markdown]
# "Times" compares with the first row. The factor comes from fewer steps (open to everybody: MONAI's DDIM row), a cheaper network, and a smaller canvas with a smaller network. Page [the comparison](lab/comparison.ipynb) trains the tutorial network beside ours, for its Dice. MONAI's cost grows faster than its pixels because of the attention on its lowest level (the other panels: our network on 192×64):

# %%
titles = dict(pixels="pixels, 1 evaluation", steps="steps", samples="samples", images="films")
fig, axes = plt.subplots(1, 4, figsize=(9, 2.3), layout="constrained")
for ax, (key, title) in zip(axes, titles.items() if bench["rows"] else ()):
    x, seconds, _ = zip(*bench["scaling"][key])
    ax.plot(x, seconds, "o-", ms=4, color="tab:purple", label="verdiff")
    ax.plot([0, x[-1]], [0, seconds[-1]], ":", color="0.6", label="proportional")
    ax.set_title(title, fontsize=9)
    ax.tick_params(labelsize=7)
if bench["rows"]:
    x, seconds, _ = zip(*bench["scaling"]["monai_pixels"])
    axes[0].plot(x, seconds, "s--", ms=4, color="darkorange", label="MONAI")
    axes[0].set(xscale="log", yscale="log")
axes[0].legend(fontsize=6)
axes[0].set_ylabel("seconds");

# %% [markdown]
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | start | $\mathcal N(0, I)$ in Algorithm 2 | $\mathcal N(f, I)$ | the end of Eq. (5) |
# | step | Eq. (7) without the shift | exact posterior | stays on the marginal that the network knows |
# | $\sqrt{1-\alpha_t}$ | in Algorithm 2 | $\sqrt{1-\bar\alpha_t}$ | Eq. (7) |
# | steps | $T$ | 10 of DDIM | enough to choose; more do not help |
# | ensemble | "uncertainty" is mentioned, no size given | 5 | mean, vote and spread |
#
# ## Exercises
#
# **1 · Predict.** With one DDIM step, does the sample still depend on the noise it starts from?
#
# <details><summary>Answer</summary>
#
# Only through the network: the result *is* $\hat x_0(x_T)$. At $t = 999$ all readings are nearly equally likely, and all samples nearly the mean.
#
# </details>

# %%
spread = {k: ends[k].std(0).mean().item() for k in (1, 10)}
print(spread)
assert spread[1] < 0.3 * spread[10]

# %% [markdown]
# **2 · Change.** Give the perfect network a *wrong* prior, $f = +1$ everywhere. Do the walks still end at a reader's mask?
#
# <details><summary>Answer</summary>
#
# Yes. The shift is put on and taken off again. A *learned* network is another matter.
#
# </details>

# %%
bad = torch.ones_like(f)
out = ddpm_sample(
    process, perfect(bad), process.prior_sample(bad, randn(g)(bad)), bad, noise=randn(g)
)
assert nearest(out).values.max() < 1e-6

# %% [markdown]
# **3 · Implement.** Run the ensemble, but replace $\hat x_0$ by its mean over the members at *every* step. Is the result still an ensemble?
#
# <details><summary>Answer</summary>
#
# No. All members are told the same $\hat x_0$, and the last step returns it, so the spread is zero by construction. Their joint average leans to one reader, and that mask is what all return.
#
# </details>

# %%
consensus = lambda x, t: perfect(f)(x, t).mean(0, keepdim=True).expand_as(x)
together = ddim_sample(process, consensus, start, f, steps=20)
print(
    f"mean spread over the members: alone {ends[10].std(0).mean():.3f}, "
    f"by consensus {together.std(0).mean():.3f}"
)
assert together.std(0).mean() < 0.01 < 0.1 < ends[10].std(0).mean()
assert nearest(together).values.max() < 1e-6

# %% [markdown]
# Next: [16 · Segment](16_segment.ipynb): any file, and the command line.
