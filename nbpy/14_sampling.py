# %% [markdown]
# # 14 · Sampling
# > From noise around a guess to a mask: in a thousand steps, in ten, in one

# %% [markdown]
# [Lesson 13](13_training.ipynb) left a trained network, which answers questions about noisy masks. How does one draw a mask from it? You will run Algorithm 2 with a *perfect* network, so that every error is the algorithm's; find out why its misprints hide so well; take a hundred times fewer steps; and turn many samples into a probability and an uncertainty. Half a minute on a laptop, no GPU. Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/14_sampling.ipynb).

# %%
#| default_exp diffusion.sampling

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from verdiff.diffusion.forward import ShiftedDiffusion
from verdiff.diffusion.posterior import predict_x_0, q_posterior
from verdiff.diffusion.posterior import reshift, unshift
from verdiff.files import halved

# %%
#| code-fold: true
import matplotlib.pyplot as plt
import torch.nn.functional as F
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from IPython.display import HTML
from ipywidgets import IntSlider, interact
from matplotlib.animation import FuncAnimation
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.landmarks import landmarks_to_mask
from verdiff.data.phantoms import draw_phantom
from verdiff.diffusion.forward import linear_schedule
from verdiff.networks.model import VerdiffNet

# %%
#| code-fold: true
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
plt.rcParams["animation.frame_format"] = "jpeg"
plt.rcParams |= {"figure.constrained_layout.use": True, "legend.fontsize": 7}
torch.set_num_threads(1)
process = ShiftedDiffusion(linear_schedule())
g = torch.Generator().manual_seed(35)


def panel(rows, titles, **look):
    fig, axes = plt.subplots(
        len(rows), len(rows[0]), squeeze=False,
        figsize=(0.8 * len(rows[0]), 2.3 * len(rows)))
    look = {"cmap": "magma", "vmin": -2, "vmax": 2} | look
    for line, pictures in zip(axes, rows):
        for axis, picture, title in zip(line, pictures, titles):
            axis.imshow(picture[0], **look)
            axis.set_axis_off()
            axis.set_title(title, fontsize=8)


# %% [markdown]
# ## 1 · A perfect network
#
# To study *samplers* we want a faultless network. For a finite set of masks there is one: by Bayes' rule (all masks equally likely, each seen through the Gaussian of [06](06_forward.ipynb)) the mask $m_k$, scaled to $[-1, 1]$, has probability $w_k$ given $x_t$, and the guess of least squared error is
#
# $$\hat x_0(x_t) = \sum_k w_k\, m_k,$$
# $$w_k \propto \exp\Bigl(-\frac{\lVert y_t - \sqrt{\bar\alpha_t}\, m_k\rVert^2}{2 s_t^2}\Bigr), \qquad y_t = x_t - s_t f .$$
#
# Our set: one spine as eight "readers" might have drawn it; the prior $f$ is their average, blurred.

# %%
size = 96, 32
quads = draw_phantom(3).landmarks / 6

# %%
def reading(k):
    "Reader k's mask: the spine, shifted by a pixel or two."
    shift = 1.5 * torch.randn(2, generator=torch.Generator().manual_seed(k))
    mask = landmarks_to_mask(quads + shift.numpy(), *size)
    return torch.from_numpy(mask).double()[None]


# %%
masks = torch.stack([reading(k) for k in range(8)])  # 8 1 96 32
modes = 2 * masks - 1
average = modes.mean(0, keepdim=True)  # 1 1 96 32
prior = F.avg_pool2d(average, 5, 1, 2, count_include_pad=False)


# %%
def weights(x_t, t, f):
    "How probable each mask is; x_t and f are b 1 96 32, the answer b 8."
    y = unshift(process, x_t, t, f)
    root = process.coefficient(process.alphas_cumprod.sqrt(), t, y)  # b 1 1 1
    s = process.coefficient(process.sigmas, t, y).flatten(1)  # b 1
    gap = y[:, None] - root[:, None] * modes  # b 8 1 96 32
    far = (gap**2).sum((2, 3, 4))  # b 8: squared distances
    return torch.softmax(-far / (2 * s**2), 1)


# %%
def perfect(f):
    "The faultless network for the prior f."

    def predict(x_t, t):
        w = weights(x_t, t, f.expand_as(x_t))
        return (w @ modes.flatten(1)).view_as(x_t)  # (b 8) @ (8 3072)

    return predict


# %%
t, reader_4 = torch.tensor([100, 999]), modes[[4, 4]]
noise = torch.randn(2, 1, *size, generator=g).double()
x_t = process.q_sample(reader_4, t, prior.expand(2, -1, -1, -1), noise)

# %%
gap = (perfect(prior)(x_t, t) - reader_4).abs().mean((1, 2, 3))
print(f"off by {gap[0]:.3f} at t = 100 and by {gap[1]:.3f} at t = 999")
assert gap[0] < 1e-6 < 0.1 < gap[1]

# %% [markdown]
# With little noise the network knows whose mask it is; with much, it gives a blurred average.
#
# ## 2 · Algorithm 2, as printed and as repaired
#
# | | printed | repaired |
# |---|---|---|
# | 1 | $x_T\sim\mathcal N(0, I)$ | $x_T\sim\mathcal N(f(b), I)$, the end of Eq. (5) |
# | 2 | for $t=T,\dots,1$: | the same |
# | 3 | $z\sim\mathcal N(0, I)$ if $t>1$, else $z=0$ | the same |
# | 4 | $x_{t-1}=\frac1{\sqrt{\alpha_t}}\Bigl(x_t-\frac{1-\alpha_t}{\sqrt{1-\alpha_t}}\,\Phi\Bigr)+\sigma_t z$ | $x_{t-1}=\frac1{\sqrt{\alpha_t}}\Bigl(x_t-s_t f-\frac{1-\alpha_t}{\sqrt{1-\bar\alpha_t}}\,\Phi\Bigr)+s_{t-1}f+\sigma_t z$ |
# | 5, 6 | end; return $x_0$ | the same |
#
# ($\Phi=\Phi(x_t,t,f(b))$ says the noise; $\sigma_t^2$ is the posterior's variance; Eq. (7) has $\bar\alpha_t$ under the root but no shift.) The repaired line is the posterior of [07](07_posterior.ipynb) with $\hat x_0$ in place of $x_0$. We write it that way, so that the network may say mask, noise or $v$, and $\hat x_0$ can be kept in $[-1, 1]$: *ancestral sampling*. A sampler needs no more of a network than a function, and no more of chance than another.

# %%
#| exports
# x_t (B, ...), t int64 (B,) -> what the network says, (B, ...)
Predictor = Callable[[Tensor, Tensor], Tensor]
# a tensor -> standard normal noise of its shape, type and device
Noise = Callable[[Tensor], Tensor]
# sees t, x_t before the step, and x_0 as predicted
Callback = Callable[[int, Tensor, Tensor], None]

# %%
#| exports
def randn(generator: torch.Generator | None = None) -> Noise:
    "Noise from one generator on the CPU, whatever the device."
    return lambda x: torch.randn(
        x.shape, generator=generator, dtype=x.dtype).to(x.device)


# %%
#| exports
def _all(x: Tensor, value: int) -> Tensor:
    "One time for every row of x."
    return torch.full((len(x),), value, dtype=torch.int64, device=x.device)


# %%
ask: Predictor = perfect(prior)
one, two = (randn(torch.Generator().manual_seed(1))(x_t) for _ in range(2))
assert ask(x_t, t).shape == x_t.shape and torch.equal(one, two)


# %%
#| exports
def _guess(
    process: ShiftedDiffusion, predict: Predictor, x: Tensor, t: Tensor,
    prior: Tensor | None, prediction_type: str, clip: bool,
) -> Tensor:
    "x_0 as the network sees it, kept in [-1, 1]."
    said = predict(x, t)
    x_0 = predict_x_0(process, x, t, said, prior, prediction_type)
    return x_0.clamp(-1, 1) if clip else x_0


# %%
#| exports
def ddpm_sample(
    process: ShiftedDiffusion,
    predict: Predictor,
    x_T: Tensor,  # the start, `process.prior_sample(prior, noise)`, (B, ...)
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
def see(i, x, x_0):
    strip[i] = x, x_0


f, strip = prior.expand(8, -1, -1, -1), {}
start = process.prior_sample(f, randn(g)(f))
got = ddpm_sample(process, perfect(f), start, f, noise=randn(g), callback=see)


# %%
def nearest(x):
    "Squared distance to the nearest reader's mask, and which reader's."
    return ((x[:, None] - modes) ** 2).flatten(2).mean(2).min(1)


# %%
far, whose = nearest(got)
reached = sorted(set(whose.tolist()))
print(f"readers reached: {reached}, off by at most {far.max():.0e}")
assert far.max() < 1e-6 and len(reached) >= 3

# %%
#| code-fold: true
#| fig-alt: "Two rows of nine pictures from t = 999 to t = 0. Upper row: grain from which a spine emerges. Lower row, the network's guess: a blurred spine that becomes a sharp one."
times = [999, 800, 600, 400, 200, 100, 50, 10, 0]
panel([[strip[t][k][0] for t in times] for k in (0, 1)],
      [f"t = {t}" for t in times])


# %% [markdown]
# The guess $\hat x_0$ (lower row) turns from a blur of all readers into one of them: the walk *chooses*. When? The same walk, animated, and stopped at $t = 700$; in a notebook, a slider stops it anywhere.

# %%
#| code-fold: true
def frame(t, axes):
    names = "$x_t$", "guess of $x_0$"
    for axis, picture, title in zip(axes, strip[t], names):
        axis.clear()
        axis.imshow(picture[0, 0], cmap="magma", vmin=-2, vmax=2)
        axis.set_axis_off()
        axis.set_title(title)
    weight = weights(strip[t][0][:1], torch.tensor([t]), f[:1])[0]
    axes[2].clear()
    axes[2].bar(range(8), weight, color="tab:blue")
    axes[2].set(ylim=(0, 1), xlabel="reader", title=f"t = {t}: whose is it?")


def figure():
    return plt.subplots(1, 3, figsize=(8, 3.6), width_ratios=(1, 1, 2.2))


fig, axes = figure()
movie = FuncAnimation(
    fig, lambda t: frame(t, axes), interval=250,
    frames=[*range(999, 500, -33), 400, 300, 200, 100, 0])
html = movie.to_jshtml(default_mode="loop")
plt.close(fig)
alt = "x_t, the guess and whose it is, as t falls from 999 to 0"
HTML(html.replace("<img ", f'<img alt="{alt}" '))


# %%
#| code-fold: true
#| fig-alt: "The walk at t = 700: x_t as grain, the guess of x_0 as a blurred spine, and bars with the probability of each of the eight readers."
frame(700, figure()[1])

# %%
#| include: false
def stop(t):
    frame(t, figure()[1])
    plt.show()


if hasattr(get_ipython(), "kernel"):  # a slider needs a running notebook
    slider = IntSlider(700, 0, 999, 1, continuous_update=False)
    interact(stop, t=slider);

# %% [markdown]
# ## 3 · The printed algorithm, and why it hides its errors
#
# Does the left column do as well? (`bar=True` is Eq. (7).)

# %%
#| exports
def ddpm_sample_printed(
    process: ShiftedDiffusion,
    predict: Predictor,  # says epsilon
    x_T: Tensor,  # the paper: N(0, I)
    noise: Noise | None = None,
    bar: bool = False,  # under the root 1 - abar_t, Eq. (7); else 1 - alpha_t
    callback: Callback | None = None,
) -> Tensor:
    "Algorithm 2 as printed: no shift is ever taken off or put on."
    p, x, noise = process, x_T, noise or randn()
    root = p.sigmas if bar else p.betas.sqrt()
    variance = (p.sigmas_prev / p.sigmas) ** 2 * p.betas
    for i in reversed(range(p.timesteps)):
        t = _all(x, i)
        eps = predict(x, t)
        if callback is not None:
            callback(i, x, eps)
        step, alpha, v = (p.coefficient(c, t, x) for c in (
            p.betas / root, p.alphas, variance))
        x = (x - step * eps) / alpha.sqrt() + (v.sqrt() * noise(x) if i else 0)
    return x


# %% [markdown]
# The simplest world: the mask is always $x_0 = 1$, the prior $f = 0.8$, and an oracle says exactly the noise in its input, $\hat\varepsilon = (x_t - \sqrt{\bar\alpha_t} - s_t f)/s_t$. Three thousand walkers of one pixel, with the same noise for each algorithm:

# %%
f1 = torch.full((3000, 1), 0.8).double()
s, root = process.sigmas, process.alphas_cumprod.sqrt()
wanted = root + 0.8 * s  # the mean of Eq. (3)

# %%
def oracle(x, t):
    i = int(t[0])
    return (x - wanted[i]) / s[i]


# %%
def exact(x, noise, see):
    return ddpm_sample(process, oracle, x, f1, "epsilon", noise, False, see)


def eq_7(x, noise, see):
    return ddpm_sample_printed(process, oracle, x, noise, True, see)


def algorithm_2(x, noise, see):
    return ddpm_sample_printed(process, oracle, x, noise, False, see)


# %%
def bundle(walk, centre):
    "Walkers from N(centre, I): where each is at every t, and where they end."
    path = torch.zeros(1000, 3000).double()
    noise = randn(torch.Generator().manual_seed(0))

    def see(i, x, _):
        path[i] = x[:, 0]

    return path, walk(noise(f1) + centre, noise, see).mean().item()


# %%
runs = {"exact, from N(f, I)": bundle(exact, f1),
        "Eq. (7), from N(0, I)": bundle(eq_7, 0),
        "Algorithm 2 as printed": bundle(algorithm_2, 0)}

# %%
for name, (path, end) in runs.items():
    gap, spread = (path.mean(1) - wanted).abs().max(), path[500].std() / s[500]
    print(f"{name:23s} mean off by up to {gap:.2f}, spread at t = 500 "
          f"{spread:.2f} times Eq. (3)'s, end {end:.3f}")

# %%
gaps = [(path.mean(1) - wanted).abs().max() for path, _ in runs.values()]
assert gaps[0] < 0.1 < 0.5 < gaps[1]

# %%
#| code-fold: true
#| fig-alt: "Three panels of 25 walkers from t = 999 to 0 around the grey band of Eq. (3). Exact: the walkers fill the band. Eq. (7): they start below it and swing out above. Algorithm 2: they collapse into a thin bundle. All end at one."
fig, axes = plt.subplots(1, 3, figsize=(8, 2.6), sharey=True)
colours = "tab:blue", "tab:orange", "crimson"
for axis, (name, (path, end)), colour in zip(axes, runs.items(), colours):
    axis.plot(path[:, :25], color=colour, lw=0.3, alpha=0.7)
    axis.fill_between(range(1000), wanted - 2 * s, wanted + 2 * s,
                      color="k", alpha=0.12, lw=0)
    axis.plot(wanted, "k--", lw=1)
    axis.set(xlabel="t (the walk goes left)", ylim=(-3, 4))
    axis.set_title(name, fontsize=9)

# %% [markdown]
# Grey is where Eq. (3) has 95 % of its walkers; only the exact ones fill it. Algorithm 2 divides by the smaller $\sqrt{1-\alpha_t}$ and corrects far too hard: the spread collapses, and a network would see much less noise than belongs to its $t$. Yet **all three end near 1**. Why?
#
# Follow an error $e_t = x_t - (\sqrt{\bar\alpha_t}\,x_0 + s_t f)$ through one step of Eq. (7), with $\hat\varepsilon = e_t / s_t$:
#
# $$e_{t-1} = \underbrace{\sqrt{\alpha_t}\,\frac{s_{t-1}^2}{s_t^2}}_{\text{below 1: it contracts}}\,e_t \;+\; \underbrace{\Bigl(\frac{s_t}{\sqrt{\alpha_t}} - s_{t-1}\Bigr) f}_{\text{the missing shift}} .$$
#
# A perfect network points home from anywhere, so old errors shrink. The last step has $s_{t-1} = 0$: it forgets everything before it and leaves $s_0 f/\sqrt{\alpha_0}$, the first step's tiny noise times the prior. That much the end must be off, and no more:

# %%
shrink = process.alphas.sqrt() * (process.sigmas_prev / s) ** 2
still = shrink.flip(0).cumprod(0).flip(0)  # left of an error at T, after step t
left = 0.8 * s[0] / process.alphas[0].sqrt()
print(f"of an error at the start {still[500]:.0e} is left at t = 500; "
      f"predicted end {1 + left:.4f}")

# %%
for name in list(runs)[1:]:
    print(f"{name}: end {runs[name][1]:.4f}")
    assert abs(runs[name][1] - 1 - left) < 1e-9

# %%
#| code-fold: true
#| fig-alt: "Left: what is left of an error made at the start, on a logarithmic axis, falls by many orders of magnitude from t = 999 to 0. Right: the mean error of the three algorithms against t; the exact one stays at zero, Eq. (7) swings from minus 0.8 to above 0.7, Algorithm 2 comes back within fifty steps; all are near zero at t = 0."
fig, (left_axis, right_axis) = plt.subplots(1, 2, figsize=(7.5, 2.5))
left_axis.semilogy(range(1, 1000), still[1:], "k")
left_axis.set(xlabel="t (the walk goes left)", ylabel="left of a first error")
for (name, (path, end)), colour in zip(runs.items(), colours):
    right_axis.plot(path.mean(1) - wanted, color=colour, label=name)
right_axis.set(xlabel="t", ylabel="mean − Eq. (3)")
right_axis.legend();

# %% [markdown]
# So a good end is no proof of an equation. A network that had to learn is no oracle: it was trained only where Eq. (3) leads, and on these detours it is asked about pictures it never saw. [15](15_worth_it.ipynb) measures what that costs.
#
# ## 4 · A hundred times fewer steps
#
# A thousand evaluations are slow. In $y$, with the shift taken off, the process is plain DDPM, and the field's samplers apply as they stand: **shift off, jump, shift on**.
#
# Split $y_t$ into what the network believes, $y_t = \sqrt{\bar\alpha_t}\,\hat x_0 + s_t\,\hat\varepsilon$. At $t' < t$ the marginal wants $\sqrt{\bar\alpha_{t'}}\,\hat x_0$ plus noise of variance $s_{t'}^2$, in any mixture of the old $\hat\varepsilon$ and fresh $z$. That is DDIM (Song et al. 2021); its share of fresh noise, $\sigma$ there, is $\rho$ here:
#
# $$y_{t'} = \sqrt{\bar\alpha_{t'}}\,\hat x_0 + \sqrt{s_{t'}^2 - \rho^2}\;\hat\varepsilon + \rho z, \qquad \rho = \eta\,\frac{s_{t'}}{s_t}\sqrt{1 - \frac{\bar\alpha_t}{\bar\alpha_{t'}}} .$$
#
# $\eta = 0$ is deterministic; $\eta = 1$ takes as much fresh noise as the posterior, and with all steps is DDPM again.
#
# The times begin with the last, where sampling starts ("trailing", Lin et al. 2024). Ten times counted from zero (0, 100, …) would tell the network $t = 900$ and show it the noise of $t = 999$.

# %%
#| exports
def timestep_sequence(
    timesteps: int,  # T
    steps: int,  # how many to visit
) -> list[int]:  # falling, starts at T - 1
    "Times from the last one down, evenly; ValueError for more than T or none."
    if not 1 <= steps <= timesteps:
        raise ValueError(
            f"steps must lie between 1 and {timesteps}, not {steps}")
    return [round(timesteps - i * timesteps / steps) - 1 for i in range(steps)]


# %%
print(timestep_sequence(1000, 4), timestep_sequence(1000, 1))
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
    x, noise = x_T, noise or randn()
    times = timestep_sequence(process.timesteps, steps)
    bars = [*process.alphas_cumprod.tolist(), 1.0]  # bars[-1] is that of t = -1
    for i, after in zip(times, [*times[1:], -1], strict=True):
        t, t_next = _all(x, i), _all(x, after)
        x_0 = _guess(process, predict, x, t, prior, prediction_type, clip)
        if callback is not None:
            callback(i, x, x_0)
        bar, bar_next = bars[i], bars[after]
        y = unshift(process, x, t, prior)
        eps = (y - bar ** 0.5 * x_0) / (1 - bar) ** 0.5
        rho = eta * ((1 - bar_next) / (1 - bar) * (1 - bar / bar_next)) ** 0.5
        kept = max(1 - bar_next - rho ** 2, 0.0) ** 0.5
        y = bar_next ** 0.5 * x_0 + kept * eps
        x = reshift(process, y + rho * noise(y) if rho else y, t_next, prior)
    return x


# %% [markdown]
# A network that always says the truth must arrive exactly. With $\eta = 1$, all steps and the same noise, DDIM must be DDPM:

# %%
truth, f3 = modes[:3], prior.expand(3, -1, -1, -1)
x_T = process.prior_sample(f3, randn(g)(f3))
for words in ({"steps": 1}, {"steps": 10}, {"steps": 10, "eta": 1.0}):
    out = ddim_sample(process, lambda x, t: truth, x_T, f3, **words)
    torch.testing.assert_close(out, truth, atol=1e-9, rtol=0)

# %%
def toward(x, t):
    return torch.tanh(x)  # any smooth "network"


# %%
short = ShiftedDiffusion(linear_schedule(40, 0.002, 0.4))
a, b = (randn(torch.Generator().manual_seed(1)) for _ in range(2))
ddpm = ddpm_sample(short, toward, x_T, f3, noise=a)
ddim = ddim_sample(short, toward, x_T, f3, steps=40, eta=1.0, noise=b)
torch.testing.assert_close(ddpm, ddim, atol=1e-9, rtol=1e-9)

# %% [markdown]
# And without a prior it must be the DDIM of diffusers:

# %%
def public(kind, steps, **options):
    s = kind(beta_schedule="linear", prediction_type="sample",
             timestep_spacing="trailing", **options)
    s.alphas_cumprod = process.alphas_cumprod
    s.set_timesteps(steps)
    x = x_T
    for t in s.timesteps:
        x = s.step(toward(x, t), t, x).prev_sample
    return x


# %%
theirs = public(DDIMScheduler, 10)
ours = ddim_sample(process, toward, x_T, steps=10)
torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)

# %% [markdown]
# ### What few steps cost
#
# One step gives the *mean* of the readers, the answer of a plain network; more steps give a choice.

# %%
ends = {}
for steps in (1, 2, 3, 5, 10, 50):
    ends[steps] = ddim_sample(process, perfect(f), start, f, steps=steps)
    grey = (ends[steps].abs() < 0.9).double().mean()
    print(f"steps {steps:2d}: {grey:.1%} of pixels undecided, "
          f"{nearest(ends[steps])[0].mean():.4f} from the nearest reader")

# %%
assert nearest(ends[10])[0].mean() < 0.1 * nearest(ends[1])[0].mean()

# %%
#| code-fold: true
#| fig-alt: "Eight masks: the blurred prior; the samples after 1, 2, 3, 5, 10 and 50 steps, from a blurred spine to a sharp one; and the reader's mask that the last one equals."
shown = [prior[0], *(ends[k][0] for k in ends),
         modes[nearest(ends[50])[1][0]]]
panel([shown], ["prior", *(f"{k} steps" for k in ends), "reader"],
      vmin=-1, vmax=1)

# %% [markdown]
# **Which number of steps, where?** The course and `settings.ini` (`sample_steps`, used while training validates) say **10**: enough for a walk to choose, which is what these lessons are about. Where the result counts, `verdiff segment` ([16](16_segment.ipynb)) and the [comparison](lab/comparison.ipynb), the default is **1**: Dice rewards the mean, not a choice, and [15](15_worth_it.ipynb) and the [radiographs](lab/xray.ipynb) find that further steps lose.
#
# ### Second order for the same price
#
# Divide DDIM's step ($\eta = 0$) by $s_{t'}$, write $\lambda = \log(\sqrt{\bar\alpha}/s)$, the logarithm of signal over noise, and insert $\hat\varepsilon = y_t/s_t - e^{\lambda_t}\,\hat x_0$:
#
# $$\frac{y_{t'}}{s_{t'}} = \frac{y_t}{s_t} + \bigl(e^{\lambda_{t'}} - e^{\lambda_t}\bigr)\,\hat x_0 .$$
#
# This holds if $\hat x_0$ stays constant during the step: first order. DPM-Solver++ 2M (Lu et al. 2022) continues the previous estimate in a straight line; for second order its value $D$ in the middle of the step is enough. With $h = \lambda_{t'} - \lambda_t$:
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
    "DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2) without shift; no chance."
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
theirs = public(DPMSolverMultistepScheduler, 8,
                algorithm_type="dpmsolver++", final_sigmas_type="zero")
ours = dpm_solver_sample(process, toward, x_T, steps=8)
print(f"off diffusers' by {(ours - theirs).abs().max():.0e} (float32 there)")
torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)

# %% [markdown]
# ## 5 · Ensembles
#
# Several samples (*members*) of one image show what else was possible. Their mean, or the share that calls a pixel vertebra (the *vote*), is a probability; their standard deviation is our *uncertainty*. Each member has its own noise, seeded by (seed, image, member), whatever else is in the batch.

# %%
#| exports
class SeededNoise:
    "Noise whose rows have generators of their own: (seed, image, member)."

    def __init__(self, seed: int, rows: Sequence[tuple[int, int]]):
        self.generators = []
        for image, member in rows:
            sequence = np.random.SeedSequence([abs(seed), image, member])
            mixed = int(sequence.generate_state(1, np.uint64)[0])
            self.generators.append(torch.Generator().manual_seed(mixed >> 1))

    def __call__(self, x: Tensor) -> Tensor:
        "The next noise, of the shape of x (rows, ...)."
        rows = [torch.randn(x.shape[1:], generator=g, dtype=torch.float32)
                for g in self.generators]
        return torch.stack(rows).to(x.device, x.dtype)


# %%
company, alone = SeededNoise(35, [(7, 2), (7, 3)]), SeededNoise(35, [(7, 3)])
a, b = company(torch.zeros(2, 4)), alone(torch.zeros(1, 4))
assert torch.equal(a[1:], b) and not torch.equal(a[:1], b)


# %%
#| exports
@dataclass
class SegmentationSamples:
    "What sampling gives for a batch of images: probabilities in [0, 1]."

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
        "Uncertainty: standard deviation, in [0, 0.5], (B, 1, H, W)."
        return self.samples.std(0, correction=0)


# %%
three = SegmentationSamples(  # three members, one pixel
    torch.tensor([0.5]), torch.tensor([[0.9], [0.8], [0.1]]))
print(f"mean {three.mean.item():.2f}, vote {three.vote.item():.2f}, "
      f"uncertainty {three.std.item():.2f}")
assert abs(three.vote.item() - 2 / 3) < 1e-6

# %% [markdown]
# Forty walks of the perfect network should have the readers' mean and spread.

# %%
f40 = prior.expand(40, -1, -1, -1)
x_T = process.prior_sample(f40, randn(g)(f40))
x = ddim_sample(process, perfect(f40), x_T, f40, steps=20)
many = SegmentationSamples((prior + 1) / 2, (x[:, None] + 1) / 2)

# %%
both = torch.stack([many.std.flatten(), masks.std(0).flatten()])
agree = torch.corrcoef(both)[0, 1]
print(f"the uncertainty and the readers' spread correlate with {agree:.2f}")
assert agree > 0.8 and (many.mean[0] - masks.mean(0)).abs().mean() < 0.05

# %%
#| code-fold: true
#| fig-alt: "Four pictures: the mean of 40 samples and the mean of the 8 readers look alike; so do their spreads, bright along the borders of the vertebrae."
panel([[many.mean[0], masks.mean(0),
        many.std[0] * 2, masks.std(0, correction=0) * 2]],
      ["mean of\n40 samples", "mean of\n8 readers",
       "spread of\nsamples × 2", "spread of\nreaders × 2"], vmin=0, vmax=1)


# %% [markdown]
# ## 6 · `sample`: all of it, with a real network
#
# All members of all images go in one batch, halved where memory runs short.

# %%
#| exports
def in_batches(
    run: Callable[[int, int], Any],  # first row, end -> of these rows
    rows: int,
    batch_size: int | None = None,  # rows at once, to begin with; None: all
    progress: bool = False,
    join: Callable[[list], Any] = torch.cat,  # of the parts
) -> Any:  # (rows, ...)
    """Run over all rows; where memory runs short, say so and halve the batch.

    VerdiffError where it does not hold one row.
    """
    size, done, first = min(batch_size or rows, rows), [], 0
    with tqdm(total=rows, desc="sample", disable=not progress or None) as bar:
        while first < rows:
            try:
                end = min(first + size, rows)
                done.append(run(first, end))
                bar.update(end - first)
                first = end
                continue
            except (MemoryError, RuntimeError) as error:
                size = halved(end - first, error)
            torch.cuda.empty_cache()  # here, where what the error held is gone
    return join(done)


# %%
#| exports
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


# %%
assert torch.equal(in_batches(cramped, 11), torch.arange(11))
print("batches tried:", tried)


# %% [markdown]
# `sample` (the function) asks the model for its prior and features *once* an image (`condition`); only the diffusion U-Net (`denoise`) runs for every member and step. Then: $N(f, I)$, the sampler, back to $[0, 1]$.

# %%
#| exports
def _walk(model: nn.Module, sampler: str, steps: int) -> Callable[..., Tensor]:
    "The sampler by its name: predict, x_T, prior, noise -> x_0."
    if sampler not in ("ddim", "dpm", "ddpm"):
        raise ValueError(f"sampler must be ddim, dpm or ddpm, not {sampler!r}")
    p, kind = model.process(), model.config.prediction_type

    def walk(ask: Predictor, x_T: Tensor, f: Tensor, noise: Noise) -> Tensor:
        if sampler == "dpm":
            return dpm_solver_sample(p, ask, x_T, f, kind, steps)
        if sampler == "ddpm" and steps == p.timesteps:
            return ddpm_sample(p, ask, x_T, f, kind, noise)
        eta = float(sampler == "ddpm")
        return ddim_sample(p, ask, x_T, f, kind, steps, eta, noise)

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
    sampler: str = "ddim",  # "dpm", or "ddpm" (ancestral; strided if steps < T)
    first_index: int = 0,  # number of the first image, for the seeds
    batch_size: int | None = None,  # rows (image x member) at once; None: all
    progress: bool = False,
) -> SegmentationSamples:
    """Segment a batch several times over; `batch_size` changes rounding only.

    ValueError: unknown sampler, steps not in 1 ... T. VerdiffError: small GPU.
    """
    walk, process = _walk(model, sampler, steps), model.process()
    known = in_batches(  # once an image
        lambda a, b: model.condition(image[a:b]), len(image), batch_size,
        join=join_parts)
    keys = [(i, e) for i in range(len(image)) for e in range(ensemble)]

    def run(first: int, end: int) -> Tensor:
        part = known.select([i for i, _ in keys[first:end]])
        rows = [(first_index + i, e) for i, e in keys[first:end]]
        noise = SeededNoise(seed, rows)
        x_T = process.prior_sample(part.prior, noise(part.prior))
        ask = lambda x, t: model.denoise(x, t, part)  # noqa: E731
        x_0 = walk(ask, x_T, part.prior, noise)
        return ((x_0 + 1) / 2).clamp(0, 1)

    rows = in_batches(run, len(keys), batch_size, progress)
    samples = rearrange(rows, "(b e) c h w -> e b c h w", e=ensemble)
    return SegmentationSamples((known.prior + 1) / 2, samples)


# %%
torch.manual_seed(0)
model = VerdiffNet(channels=(8, 16), height=48, width=16, timesteps=50).eval()
nn.init.normal_(model.diffusion.out[-1].weight, std=0.3);  # it starts at zero

# %%
image = torch.rand(4, 1, 48, 16)
together = sample(model, image, steps=5, ensemble=3)
alone = sample(model, image[2:3], steps=5, ensemble=3, first_index=2)

# %%
gap = (together.samples[:, 2:3] - alone.samples).abs().max()
print(f"alone or in company: {gap:.0e} apart")
assert gap < 1e-4 and together.std.max() > 1e-3

# %%
for sampler, steps in (("dpm", 5), ("ddpm", 5), ("ddpm", 50)):
    got = sample(model, image, steps, ensemble=2, sampler=sampler)
    assert got.samples.shape == (2, 4, 1, 48, 16)

# %% [markdown]
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | start and step | Algorithm 2 | $\mathcal N(f, I)$, exact posterior | section 2: stays on the marginal that the network knows |
# | steps | $T$ | 10 of DDIM; 1 in `verdiff segment` | section 4 |
# | ensemble | "uncertainty" is mentioned, no size given | 5 | mean, vote and spread |
#
# ## Exercises
#
# **1 · Predict.** With one DDIM step, does a sample still depend on the noise it starts from? How much, compared with ten steps? (`ends` of section 4 holds eight samples for each.)

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# Only through the network: the result *is* $\hat x_0(x_T)$. At $t = 999$ all readings are nearly equally likely, and all samples nearly the mean.

# %%
#| code-fold: true
apart = {k: ends[k].std(0).mean().item() for k in (1, 10)}
print(apart)
assert apart[1] < 0.3 * apart[10]

# %% [markdown]
# </details>
#
# **2 · Change.** Give the perfect network a *wrong* prior, $f = +1$ everywhere, and let it walk from $\mathcal N(f, I)$. Where do the walks end? Would a trained network's end there too?

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# At a reader's mask all the same: the shift is put on and taken off again. A *learned* network is another matter: it has seen right priors only, and leans on them.

# %%
#| code-fold: true
bad = torch.ones_like(f)
x_T = process.prior_sample(bad, randn(g)(bad))
out = ddim_sample(process, perfect(bad), x_T, bad, steps=50)
assert nearest(out)[0].max() < 1e-3

# %% [markdown]
# </details>
#
# **3 · Diagnose (hard).** A colleague's DDIM below is tested with a network that knows the truth, and arrives to the ninth digit. With his trained network it is bad all the same. Find the line, and write the test that should have found it: one that looks at the way, not at the end.

# %%
def colleague(process, predict, x_T, prior, steps, callback):
    x, times = x_T, timestep_sequence(process.timesteps, steps)
    bars = [*process.alphas_cumprod.tolist(), 1.0]
    for i, after in zip(times, [*times[1:], -1]):
        t, bar, bar_next = _all(x, i), bars[i], bars[after]
        x_0 = predict(x, t)
        callback(i, x, x_0)
        y = unshift(process, x, t, prior)
        eps = (y - bar ** 0.5 * x_0) / (1 - bar) ** 0.5
        x = bar_next ** 0.5 * x_0 + (1 - bar_next) ** 0.5 * eps
    return x


# %%
x_T = process.prior_sample(f3, randn(g)(f3))
out = colleague(process, lambda x, t: truth, x_T, f3, 10, lambda *a: None)
print(f"off by {(out - truth).abs().max():.0e}")
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# The shift is taken off at every step and put on never again: the last line lacks `reshift`. A network that knows the truth cannot notice, and the last step, with $s = 0$, forgets. On the way, what is left of $x_t$ after mask and shift should be noise: mean 0. At the start it is; one step later it is $-f$.

# %%
#| code-fold: true
def on_the_way(sampler):
    "How far the noise in x_t leans towards f, at each time visited."
    lean = []

    def see(i, x, x_0):
        noise = (x - root[i] * truth - s[i] * f3) / s[i]
        lean.append((noise * f3).sum() / (f3 ** 2).sum())

    sampler(process, lambda x, t: truth, x_T, f3, steps=10, callback=see)
    return torch.stack(lean)


ours, his = on_the_way(ddim_sample), on_the_way(colleague)
print(f"{ours[1]:+.2f} with the shift put on again, {his[1]:+.2f} without")
assert ours.abs().max() < 0.1 and his[1] < -0.9

# %% [markdown]
# </details>
#
# Masks can be drawn, in one step or in a thousand. Is all this worth it? Next: [15 · Is it worth it?](15_worth_it.ipynb)
