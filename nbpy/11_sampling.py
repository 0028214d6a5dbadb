# %% [markdown]
# # 11 · Sampling
# > From noise around a guess to a mask: in a thousand steps, in ten, in one
#
# You will walk Algorithm 2 with a network that is perfect, so that every error you see is the algorithm's; find what the printed version does; take a hundred times fewer steps without new training; and turn many samples into a probability and a doubt. Half a minute on a laptop.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/11_sampling.ipynb)

# %%
#| default_exp sampling

# %%
#| eval: false
# !pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"  # only on Colab

# %%
#| export
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from verdiff.forward import ShiftedDiffusion
from verdiff.model import VerdiffNet
from verdiff.posterior import predict_x_0, q_posterior, reshift, unshift

# %%
import matplotlib.pyplot as plt
import torch.nn.functional as F
from IPython.display import HTML
from ipywidgets import IntSlider, interact
from matplotlib.animation import FuncAnimation
from matplotlib_inline.backend_inline import set_matplotlib_formats
from verdiff.data import draw_phantom, landmarks_to_mask
from verdiff.forward import linear_schedule
from verdiff.posterior import training_target

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
plt.rcParams["animation.frame_format"] = "jpeg"
torch.set_num_threads(1)
process = ShiftedDiffusion(linear_schedule())

# %% [markdown]
# ## 1 · A perfect network
#
# Training takes minutes and never ends perfectly. To study *samplers* we want a network without faults. For a finite set of masks there is one, in closed form: given $x_t$, the probability of mask $m_k$ is a softmax of its squared distances, and the best guess of $x_0$, the one that minimises the squared error, is the average of all masks with these weights:
#
# $$\hat x_0(x_t) = \sum_k w_k\, m_k, \qquad w_k \propto \exp\Bigl(-\frac{\lVert y_t - \sqrt{\bar\alpha_t}\, m_k\rVert^2}{2 s_t^2}\Bigr), \qquad y_t = x_t - s_t f .$$
#
# Our set: eight readings of one spine, each shifted a little, as eight readers might have drawn it.

# %%
size = 96, 32
quads = draw_phantom(3).landmarks / 6
readers = [quads + (1.5 * torch.randn(2, generator=torch.Generator().manual_seed(k))).numpy() for k in range(8)]
masks = torch.stack([torch.from_numpy(landmarks_to_mask(r, *size)).double()[None] for r in readers])
modes = 2 * masks - 1  # 8 1 96 32
prior = F.avg_pool2d(modes.mean(0, keepdim=True), 5, 1, 2)  # a blurred guess, 1 1 96 32


def perfect(f):
    def predict(x_t, t):
        y = unshift(process, x_t, t, f.expand_as(x_t))
        root, s = (process.coefficient(v, t, y) for v in (process.alphas_cumprod.sqrt(), process.sigmas))
        far = ((y[:, None] - root[:, None] * modes) ** 2).flatten(2).sum(2)  # b k
        w = torch.softmax(-far / (2 * s[:, 0, 0] ** 2), 1)
        return torch.einsum("bk,kchw->bchw", w, modes)
    return predict


# %% [markdown]
# ## 2 · Algorithm 2
#
# Start at $\mathcal N(f, I)$, ask the network for $\hat x_0$, take one step of the posterior of page 05, repeat. The sampler takes any function of $(x_t, t)$; it knows nothing of networks.

# %%
#| export
Predictor = Callable[[Tensor, Tensor], Tensor]  # x_t (B, ...), t int64 (B,) -> output (B, ...)
Noise = Callable[[Tensor], Tensor]  # a tensor -> standard normal noise of its shape, type, device
Callback = Callable[[int, Tensor, Tensor], None]  # t, x_t before the step, x_0 as predicted


def randn(generator: torch.Generator | None = None) -> Noise:
    "Noise from one generator on the CPU, whatever the device."
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)


def _guess(process: ShiftedDiffusion, predict: Predictor, x: Tensor, t: Tensor, prior: Tensor | None,
           prediction_type: str, clip: bool) -> Tensor:
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
        t = torch.full((len(x),), i, dtype=torch.int64, device=x.device)
        x_0 = _guess(process, predict, x, t, prior, prediction_type, clip)
        if callback is not None:
            callback(i, x, x_0)
        mean, variance = q_posterior(process, x_0, x, t, prior)
        x = mean + variance.sqrt() * noise(x) if i else mean
    return x


# %%
g = torch.Generator().manual_seed(35)
f = prior.expand(8, -1, -1, -1)
strip = {}
start = process.prior_sample(f, randn(g)(f))
got = ddpm_sample(process, perfect(f), start, f, noise=randn(g), callback=lambda i, x, x_0: strip.update({i: (x, x_0)}))


def nearest(x):
    return ((x[:, None] - modes) ** 2).flatten(2).mean(2).min(1)


print("each walk ended at a reader's mask; readers reached:", sorted(set(nearest(got).indices.tolist())), f"largest distance {nearest(got).values.max():.1e}")
assert nearest(got).values.max() < 1e-6 and len(set(nearest(got).indices.tolist())) >= 3

# %%
def panel(rows, titles, **look):
    fig, axes = plt.subplots(len(rows), len(rows[0]), figsize=(0.95 * len(rows[0]), 2.7 * len(rows)), layout="constrained", squeeze=False)
    for line, pictures in zip(axes, rows):
        for axis, picture, title in zip(line, pictures, titles):
            axis.imshow(picture[0], **({"cmap": "magma", "vmin": -2, "vmax": 2} | look)); axis.set_axis_off(); axis.set_title(title, fontsize=8)


times = [999, 800, 600, 400, 200, 100, 50, 10, 0]
panel([[strip[t][k][0] for t in times] for k in (0, 1)], [f"t = {t}" for t in times])

# %% [markdown]
# Above $x_t$, below what the perfect network believes of $x_0$. At first it sees all eight readings at once, a blur. Somewhere around $t = 700$ it makes up its mind. That is what a diffusion model does and a plain network cannot: it *chooses*.

# %%
def frame(t, axes=None):
    if axes is None:
        _, axes = plt.subplots(1, 3, figsize=(5.5, 2.8), layout="constrained", width_ratios=(1, 1, 2.2))
    for axis, picture, title in zip(axes, strip[t], ("$x_t$", "believed $x_0$")):
        axis.clear(); axis.imshow(picture[0, 0], cmap="magma", vmin=-2, vmax=2); axis.set_axis_off(); axis.set_title(title, fontsize=9)
    weight = torch.softmax(-((unshift(process, strip[t][0][:1], torch.tensor([t]), f[:1]) - process.alphas_cumprod.sqrt()[t] * modes) ** 2).flatten(1).sum(1) / (2 * process.sigmas[t] ** 2), 0)
    axes[2].clear(); axes[2].bar(range(8), weight, color="tab:blue"); axes[2].set(ylim=(0, 1), xlabel="reader", title=f"t = {t}: whose mask is it?")


interact(lambda t: frame(t), t=IntSlider(700, 0, 999, 1, continuous_update=False));

# %%
fig, axes = plt.subplots(1, 3, figsize=(5.5, 2.6), dpi=56, layout="constrained", width_ratios=(1, 1, 2.2))
movie = FuncAnimation(fig, lambda t: frame(t, axes), frames=[*range(999, 500, -33), 400, 300, 200, 100, 0], interval=200)
html = movie.to_jshtml()
plt.close(fig)
HTML(html)

# %% [markdown]
# ## 3 · The printed algorithm
#
# Algorithm 2 as printed starts at $\mathcal N(0, I)$, never takes the shift off, and has $\sqrt{1-\alpha_t}$ where Eq. (7) has $\sqrt{1-\bar\alpha_t}$. We run it faithfully.

# %%
#| export
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
        t = torch.full((len(x),), i, dtype=torch.int64, device=x.device)
        eps = predict(x, t)
        if callback is not None:
            callback(i, x, eps)
        beta, alpha, root, v = (process.coefficient(c, t, x) for c in (process.betas, process.alphas, under, variance))
        x = (x - beta / root * eps) / alpha.sqrt() + (v.sqrt() * noise(x) if i else 0)
    return x


# %% [markdown]
# The simplest world: the mask is always $x_0 = 1$, the prior $f = 0.8$, and the network says exactly the noise that is in its input, $\hat\varepsilon = (x_t - \sqrt{\bar\alpha_t} - s_t f)/s_t$. Where should $x_t$ be on average? Eq. (3) says. Where is it?

# %%
def drift(sampler, start, **kw):
    path = torch.zeros(1000).double()
    f = torch.full((3000, 1), 0.8).double()
    noise = randn(torch.Generator().manual_seed(0))

    def eps(x, t):
        root, s = process.alphas_cumprod.sqrt()[t[0]], process.sigmas[t[0]]
        return (x - root - s * f) / s

    x_T = noise(f) + start * f
    record = lambda i, x, _: path.__setitem__(i, x.mean())
    if sampler is ddpm_sample:
        end = ddpm_sample(process, eps, x_T, f, "epsilon", noise, clip=False, callback=record)
    else:
        end = sampler(process, eps, x_T, noise, callback=record, **kw)
    return path, end.mean().item()


runs = {"exact, from N(f, I)": drift(ddpm_sample, 1), "Eq. (7), from N(0, I)": drift(ddpm_sample_printed, 0, bar=True),
        "Algorithm 2 as printed": drift(ddpm_sample_printed, 0)}
wanted = process.alphas_cumprod.sqrt() + 0.8 * process.sigmas
fig, axis = plt.subplots(figsize=(5.5, 2.7), layout="constrained")
for (name, (path, end)), colour in zip(runs.items(), ("tab:blue", "tab:orange", "crimson")):
    axis.plot(path, color=colour, label=name)
    print(f"{name:24s} largest gap to Eq. (3) {(path - wanted).abs().max():.2f}, end {end:.3f}")
axis.plot(wanted, "k--", lw=1, label="Eq. (3)"); axis.set(xlabel="t (the walk goes left)", ylabel="mean of $x_t$", ylim=(-1, 2.5)); axis.legend(fontsize=7)
assert (runs["exact, from N(f, I)"][0] - wanted).abs().max() < 0.1 and abs(runs["exact, from N(f, I)"][1] - 1) < 0.02
assert (runs["Eq. (7), from N(0, I)"][0] - wanted).abs().max() > 0.5

# %% [markdown]
# Without the shift the walkers take another road than the one the network was trained on. A perfect network, asked anywhere, still pulls them to the goal. A real one was never asked there. (The other misprint, $\sqrt{1-\alpha_t}$, makes every correction about ten times too large in the middle of the chain. A perfect network snaps back at once, so its curve looks better; an error of a real one is multiplied as well.) That is why we take the exact form, and why "it works anyway" in a figure is no proof of an equation.
#
# ## 4 · A hundred times fewer steps
#
# In $y$ the process is plain DDPM, so DDIM (Song et al. 2021) applies as it stands: shift off, jump, shift on. With $t' < t$ the next time that we visit,
#
# $$y_{t'} = \sqrt{\bar\alpha_{t'}}\,\hat x_0 + \sqrt{s_{t'}^2 - \sigma^2}\;\hat\varepsilon + \sigma z, \qquad \sigma = \eta\,\frac{s_{t'}}{s_t}\sqrt{1 - \frac{\bar\alpha_t}{\bar\alpha_{t'}}} .$$
#
# $\eta = 0$ is deterministic; $\eta = 1$ with all steps is DDPM again. Which times to visit? Always the last, where the noise is pure and where we start ("trailing", Lin et al. 2024). The naive way, evenly from zero, starts at $t = 900$ with noise of $t = 999$.

# %%
#| export
def timestep_sequence(
    timesteps: int,  # T
    steps: int,  # how many to visit
) -> list[int]:  # falling, starts at T - 1
    "Evenly spaced times that begin at the last one (\"trailing\")."
    if not 1 <= steps <= timesteps:
        raise ValueError(f"steps must lie between 1 and {timesteps}, not {steps}")
    return [round(timesteps - i * timesteps / steps) - 1 for i in range(steps)]


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
    for i, after in zip(times, [*times[1:], -1], strict=True):
        t, t_next = (torch.full((len(x),), v, dtype=torch.int64, device=x.device) for v in (i, after))
        x_0 = _guess(process, predict, x, t, prior, prediction_type, clip)
        if callback is not None:
            callback(i, x, x_0)
        bar, bar_next = process.alphas_cumprod[i], process.alphas_cumprod[after] if after >= 0 else torch.ones(()).double()
        eps = (unshift(process, x, t, prior) - float(bar.sqrt()) * x_0) / float((1 - bar).sqrt())
        sigma = eta * float(((1 - bar_next) / (1 - bar) * (1 - bar / bar_next)).sqrt())
        y = float(bar_next.sqrt()) * x_0 + max(float(1 - bar_next) - sigma ** 2, 0.0) ** 0.5 * eps
        x = reshift(process, y + sigma * noise(y) if sigma else y, t_next, prior)
    return x


# %%
print(timestep_sequence(1000, 4), timestep_sequence(1000, 1))
truth, last = modes[:3], torch.full((3,), 999)
f3 = prior.expand(3, -1, -1, -1)
for sampler, options in ((ddim_sample, dict(steps=1)), (ddim_sample, dict(steps=2)), (ddim_sample, dict(steps=10)), (ddim_sample, dict(steps=10, eta=1.0)), (ddpm_sample, {})):
    out = sampler(process, lambda x, t: truth, process.prior_sample(f3, randn(g)(f3)), f3, noise=randn(g), **options)
    print(f"{sampler.__name__:12s}{options} recovers x_0 to {(out - truth).abs().max():.1e}")
    torch.testing.assert_close(out, truth, atol=1e-9, rtol=0)

# %% [markdown]
# A network that always knows $x_0$ is home in any number of steps. With $\eta = 1$ and all thousand steps it must be DDPM to the last digit, given the same noise; and with $f = 0$ it must be the DDIM of a public library:

# %%
short = ShiftedDiffusion(linear_schedule(40, 0.002, 0.4))
toward = lambda x, t: torch.tanh(x)  # any smooth "network"
x_T, zero = (torch.randn(2, 1, 6, 4, generator=g).double() for _ in range(2))
a = ddpm_sample(short, toward, x_T, zero, noise=randn(torch.Generator().manual_seed(1)))
b = ddim_sample(short, toward, x_T, zero, steps=40, eta=1.0, noise=randn(torch.Generator().manual_seed(1)))
torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)

# %%
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

# %%
def public(kind, steps, **options):
    s = kind(beta_schedule="linear", prediction_type="sample", timestep_spacing="trailing", **options)
    s.alphas_cumprod = process.alphas_cumprod
    s.set_timesteps(steps)
    x = x_T
    for t in s.timesteps:
        x = s.step(toward(x, t), t, x).prev_sample
    return x


theirs = public(DDIMScheduler, 10, clip_sample=True, set_alpha_to_one=True)
torch.testing.assert_close(ddim_sample(process, toward, x_T, torch.zeros_like(x_T), steps=10), theirs, atol=1e-6, rtol=1e-6)

# %% [markdown]
# ### What few steps cost
#
# Back to the eight readers and the perfect network. One step gives the *mean* of all of them: the answer of a plain network. More steps give a choice.

# %%
ends = {}
for steps in (1, 2, 3, 5, 10, 50):
    ends[steps] = ddim_sample(process, perfect(f), start, f, steps=steps)
    grey = (ends[steps].abs() < 0.9).double().mean()
    print(f"{steps:3d} steps: {grey:.1%} of pixels undecided, distance to the nearest reader {nearest(ends[steps]).values.mean():.4f}")
panel([[prior[0], *(ends[k][0] for k in ends), modes[nearest(ends[50]).indices[0]]]], ["prior", *(f"{k} step{'s' * (k > 1)}" for k in ends), "reader"], vmin=-1, vmax=1)
assert nearest(ends[10]).values.mean() < 0.1 * nearest(ends[1]).values.mean()

# %% [markdown]
# ### A better road for the same price
#
# DPM-Solver++ (Lu et al. 2022) remembers the last guess and extrapolates. With $\lambda = \log(\sqrt{\bar\alpha}/s)$, $h = \lambda_{t'} - \lambda_t$ and $r$ the ratio of the last two $h$:
#
# $$y_{t'} = \frac{s_{t'}}{s_t}\, y_t - \sqrt{\bar\alpha_{t'}}\,(e^{-h} - 1)\,D, \qquad D = \Bigl(1 + \frac{1}{2r}\Bigr)\hat x_0 - \frac{1}{2r}\,\hat x_0^{\text{last}} .$$

# %%
#| export
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
        t, t_next = (torch.full((len(x),), v, dtype=torch.int64, device=x.device) for v in (i, after))
        x_0 = _guess(process, predict, x, t, prior, prediction_type, clip)
        if callback is not None:
            callback(i, x, x_0)
        if after < 0:  # the end: s = 0, only the guess is left
            return x_0
        h = float(log_snr[after] - log_snr[i])
        d = x_0 if last is None else x_0 + (x_0 - last) * (h / last_h / 2)
        y = float(s[after] / s[i]) * unshift(process, x, t, prior)
        y = y - float(root[after]) * float(torch.expm1(torch.tensor(-h, dtype=torch.float64))) * d
        x, last, last_h = reshift(process, y, t_next, prior), x_0, h
    return x


# %%
theirs = public(DPMSolverMultistepScheduler, 8, algorithm_type="dpmsolver++", final_sigmas_type="zero")
ours = dpm_solver_sample(process, toward, x_T, steps=8)
print(f"largest difference to the public solver, float32 tables there: {(ours - theirs).abs().max():.1e}")
torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)
for steps in (1, 2, 10):
    out = dpm_solver_sample(process, lambda x, t: truth, process.prior_sample(f3, randn(g)(f3)), f3, steps=steps)
    torch.testing.assert_close(out, truth, atol=1e-12, rtol=0)

# %% [markdown]
# ### Does each solver keep its promise?
#
# A solver of order $p$ halves its steps' size and divides its error by $2^p$. To measure that we need an exact end to compare with. If $x_0$ itself is Gaussian, $\mathcal N(m, c^2)$, everything is known: the best predictor is linear, and the deterministic road from $y_T$ ends at
#
# $$x_0 = m + c\,\frac{y_T - \sqrt{\bar\alpha_T}\,m}{\sqrt{\bar\alpha_T c^2 + s_T^2}} .$$

# %%
fine, m, c = ShiftedDiffusion(linear_schedule(2000, 5e-5, 0.01)), 0.3, 0.7
f1 = torch.full((1, 1), 0.8).double()


def linear_predictor(x, t):
    y = unshift(fine, x, t, f1)
    r, s = (fine.coefficient(v, t, y) for v in (fine.alphas_cumprod.sqrt(), fine.sigmas))
    return m + c ** 2 * r * (y - r * m) / (c ** 2 * r ** 2 + s ** 2)


x_end = fine.prior_sample(f1, torch.full((1, 1), 1.3).double())
y_end, r_end, s_end = unshift(fine, x_end, torch.tensor([1999]), f1), fine.alphas_cumprod.sqrt()[-1], fine.sigmas[-1]
goal = m + c * (y_end - r_end * m) / (r_end ** 2 * c ** 2 + s_end ** 2).sqrt()

# %%
counts = [5, 10, 20, 40, 80, 160, 320]
fig, axis = plt.subplots(figsize=(4.5, 2.8), layout="constrained")
for name, solver in (("DDIM", ddim_sample), ("DPM-Solver++ 2M", dpm_solver_sample)):
    error = [(solver(fine, linear_predictor, x_end, f1, steps=n, clip=False) - goal).abs().item() for n in counts]
    slope = -torch.tensor(error).log2().sub(torch.tensor(error[0]).log2())[-1].item() / 6
    axis.loglog(counts, error, "o-", label=f"{name}, slope {slope:.2f}")
    assert abs(slope - {"DDIM": 1, "DPM-Solver++ 2M": 2}[name]) < 0.15
axis.set(xlabel="steps", ylabel="error of $x_0$"); axis.legend()

# %% [markdown]
# First order and second order, as promised, with a prior in the mean and without a line of code that knows it.
#
# %% [markdown]
# ## 5 · Ensembles
#
# One sample is one opinion. Draw several from the same image, and the share of those that call a pixel vertebra is a probability, their standard deviation a doubt. The image is looked at *once*; only the diffusion U-Net runs for every member and step.
#
# A small promise with large use: the noise of member $e$ of image $i$ comes from its own generator, seeded by (seed, $i$, $e$). So a result does not depend on how many images share a batch, and sample 3 of image 7 is the same picture tomorrow.

# %%
#| export
class SeededNoise:
    "Noise whose rows come from generators of their own, seeded by (seed, image, member)."

    def __init__(self, seed: int, rows: Sequence[tuple[int, int]]):
        self.generators = []
        for image, member in rows:
            mixed = np.random.SeedSequence([abs(seed), image, member]).generate_state(1, np.uint64)[0]
            self.generators.append(torch.Generator().manual_seed(int(mixed) >> 1))

    def __call__(self, x: Tensor) -> Tensor:
        "The next noise, of the shape of x (rows, ...)."
        rows = [torch.randn(x.shape[1:], generator=g, dtype=torch.float32) for g in self.generators]
        return torch.stack(rows).to(x.device, x.dtype)


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


@torch.no_grad()
def sample(
    model: VerdiffNet,
    image: Tensor,  # (B, 1, H, W) in [0, 1]
    steps: int = 10,
    ensemble: int = 5,  # samples an image
    seed: int = 0,
    sampler: str = "ddim",  # "ddim", "dpm", or "ddpm" (ancestral; strided where steps < T)
    first_index: int = 0,  # number of the first image, for the seeds of its noise
    batch_size: int | None = None,  # rows (image x member) at once; None: all
    progress: bool = False,
) -> SegmentationSamples:
    "Segment a batch several times over; start at N(f, I)."
    if sampler not in ("ddim", "dpm", "ddpm"):
        raise ValueError(f"sampler must be 'ddim', 'dpm' or 'ddpm', not {sampler!r}")
    process, conditioning = model.process(), model.condition(image)
    every = conditioning.repeat(ensemble)  # (b e) ...: image 0, image 0, ..., image 1, ...
    keys = [(first_index + i, e) for i in range(len(image)) for e in range(ensemble)]
    done, size = [], batch_size or len(keys)
    for first in tqdm(range(0, len(keys), size), "sample", disable=None if progress else True):
        part = every.select(slice(first, first + size))
        noise = SeededNoise(seed, keys[first:first + size])
        x_T = process.prior_sample(part.prior, noise(part.prior))
        options = dict(prior=part.prior, prediction_type=model.config.prediction_type)

        def predict(x: Tensor, t: Tensor, part=part) -> Tensor:
            return model.denoise(x, t, part)

        if sampler == "dpm":
            x_0 = dpm_solver_sample(process, predict, x_T, steps=steps, **options)
        elif sampler == "ddpm" and steps == process.timesteps:
            x_0 = ddpm_sample(process, predict, x_T, noise=noise, **options)
        else:
            eta = float(sampler == "ddpm")
            x_0 = ddim_sample(process, predict, x_T, steps=steps, eta=eta, noise=noise, **options)
        done.append(((x_0 + 1) / 2).clamp(0, 1))
    samples = rearrange(torch.cat(done), "(b e) c h w -> e b c h w", e=ensemble)
    return SegmentationSamples((conditioning.prior + 1) / 2, samples)


# %% [markdown]
# A small network that has not learned anything is enough to check the promises:

# %%
torch.manual_seed(0)
model = VerdiffNet(channels=(8, 16), height=48, width=16, timesteps=50).eval()
torch.nn.init.normal_(model.diffusion.out[-1].weight, std=0.3)
image = torch.rand(4, 1, 48, 16)
all_at_once = sample(model, image, steps=5, ensemble=3)
alone = sample(model, image[2:3], steps=5, ensemble=3, first_index=2)
torch.testing.assert_close(all_at_once.samples[:, 2:3], alone.samples, atol=1e-4, rtol=0)
torch.testing.assert_close(all_at_once.samples, sample(model, image, steps=5, ensemble=3, batch_size=5).samples, atol=1e-4, rtol=0)
assert torch.equal(all_at_once.samples, sample(model, image, steps=5, ensemble=3).samples)
assert (all_at_once.samples[0] != all_at_once.samples[1]).any()
for kind, steps in (("dpm", 5), ("ddpm", 5), ("ddpm", 50)):
    s = sample(model, image, steps=steps, ensemble=2, sampler=kind)
    assert s.samples.shape == (2, 4, 1, 48, 16) and 0 <= s.mean.min() and s.std.max() <= 0.5

# %% [markdown]
# And the eight readers once more, with the perfect network, as an ensemble of 40: the mean of the samples should be the mean of the readers, and the doubt should lie where readers differ.

# %%
f40 = prior.expand(40, -1, -1, -1)
x = ddim_sample(process, perfect(f40), process.prior_sample(f40, randn(g)(f40)), f40, steps=20)
many = SegmentationSamples((prior + 1) / 2, (x[:, None] + 1) / 2)
panel([[many.mean[0], masks.mean(0), many.std[0] * 2, masks.std(0, correction=0) * 2]], ["mean of 40", "mean of readers", "doubt × 2", "readers differ × 2"], vmin=0, vmax=1)
agree = torch.corrcoef(torch.stack([many.std.flatten(), masks.std(0).flatten()]))[0, 1]
print(f"doubt of the samples and disagreement of the readers correlate with {agree:.2f}")
assert agree > 0.8 and (many.mean[0] - masks.mean(0)).abs().mean() < 0.05

# %% [markdown]
# ## 6 · Is it worth it? An experiment
#
# Perfect networks cannot answer the question that a user asks: *what do steps and samples buy with a network that I can train?* So: three seeds; per seed one small Verdiff-Net (predicting the mask), one that predicts noise, and one plain U-Net with as many parameters as the whole Verdiff-Net that is trained for as many *seconds*. 24 unseen phantoms. The recorded run took a few minutes on one core.

# %%
#| slow
import time

import numpy as np

from verdiff.augment import Augment
from verdiff.data import PhantomSet, pack
from verdiff.metrics import dice, expected_calibration_error, hd95, reliability, risk_coverage, summary
from verdiff.training import generator_for, random_times, training_loss
from verdiff.unet import ConditionalUNet

# %%
#| slow
known = pack(PhantomSet(split="training", size=(96, 32), n_training=96, n_test=24), progress=False)
unseen = pack(PhantomSet(split="test", size=(96, 32), n_training=96, n_test=24), progress=False)
looks, truth = unseen.images.float() / 255, unseen.masks
augment, STEPS = Augment(rotation=5, elastic=0.01, contrast=0.1), 400


def batches(seed, steps):
    for k in range(steps):
        g = generator_for(seed, k)
        index = torch.randint(96, (6,), generator=g)
        yield k, g, *augment(known.images[index], known.masks[index], g)


def fit(module, seed, loss_of, seconds=None, steps=STEPS):
    optimiser, start, k = torch.optim.AdamW(module.parameters(), 4e-3), time.perf_counter(), 0
    for k, g, image, mask in batches(seed, 10 * steps if seconds else steps):
        done = (time.perf_counter() - start) / seconds if seconds else k / steps
        if done >= 1:
            break
        optimiser.param_groups[0]["lr"] = 4e-3 * (1 - done)
        loss = loss_of(g, image, mask)
        optimiser.zero_grad(); loss.backward(); optimiser.step()
    return time.perf_counter() - start, k


# %%
#| slow
def verdiffnet(seed, kind):
    torch.manual_seed(seed)
    net = VerdiffNet(channels=(8, 16, 32), height=96, width=32, prediction_type=kind)
    loss = lambda g, b, m: training_loss(net, b, m, random_times(6, 1000, g), torch.randn(m.shape, generator=g))["total"]
    return net, *fit(net, seed, loss)


def plain_unet(seed, seconds, size):
    torch.manual_seed(seed)
    width = min(range(8, 40, 2), key=lambda w: abs(sum(p.numel() for p in ConditionalUNet(1, (w, 2 * w, 4 * w)).parameters()) - size))
    net = ConditionalUNet(1, (width, 2 * width, 4 * width))
    loss = lambda g, b, m: F.binary_cross_entropy_with_logits(net(b), m) + 1 - (2 * (net(b).sigmoid() * m).sum() + 1) / (net(b).sigmoid().sum() + m.sum() + 1)
    return net.eval(), fit(net, seed, loss, seconds)[1], sum(p.numel() for p in net.parameters())


trained = {}
for seed in (0, 1, 2):
    net, seconds, _ = verdiffnet(seed, "sample")
    noise_net, *_ = verdiffnet(seed, "epsilon")
    plain, plain_steps, plain_size = plain_unet(seed, seconds, net.num_parameters())
    trained[seed] = net.eval(), noise_net.eval(), plain
    print(f"seed {seed}: Verdiff-Net {net.num_parameters():,} parameters, {STEPS} steps in {seconds:.0f} s; plain U-Net {plain_size:,}, {plain_steps} steps")

# %% [markdown]
# **Steps.** One sample, any number of steps. Lines are seeds; the prior and the plain U-Net need one pass and no steps.

# %%
#| slow
counts = [1, 2, 3, 5, 10, 20, 50, 250, 1000]
curves = {s: [dice(sample(net, looks, k, 1, seed=0).samples[0] > 0.5, truth).mean().item() for k in counts] for s, (net, *_) in trained.items()}
with torch.no_grad():
    priors = {s: dice(net.condition(looks).prior > 0, truth) for s, (net, *_) in trained.items()}
    plains = {s: dice(plain(looks) > 0, truth) for s, (*_, plain) in trained.items()}
fig, axis = plt.subplots(figsize=(5, 2.8), layout="constrained")
for s in trained:
    axis.semilogx(counts, curves[s], "o-", ms=3, color="tab:blue", label="diffusion, 1 sample" if not s else None)
    axis.axhline(priors[s].mean(), color="orange", lw=1, label="its prior" if not s else None)
    axis.axhline(plains[s].mean(), color="grey", lw=1, ls="--", label="plain U-Net" if not s else None)
axis.set(xlabel="steps", ylabel="Dice"); axis.legend(fontsize=7)
print("steps:", {k: f"{np.mean([curves[s][i] for s in trained]):.3f} ± {np.std([curves[s][i] for s in trained], ddof=1):.3f}" for i, k in enumerate(counts)})
print(f"prior {np.mean([p.mean() for p in priors.values()]):.3f}, plain U-Net {np.mean([p.mean() for p in plains.values()]):.3f} (means of three seeds)")

# %% [markdown]
# **Samples.** Twenty evaluations of the diffusion U-Net per image, spent in different ways; and everything that a probability can be judged by.

# %%
#| slow
def judge(prob):
    found = prob > 0.5
    return [dice(found, truth).mean().item(), hd95(found, truth).clamp(max=96).mean().item(), expected_calibration_error(prob, truth.float())]


table = {"prior": [], "plain U-Net": []}
for s, (net, _, plain) in trained.items():
    with torch.no_grad():
        table["plain U-Net"].append(judge(plain(looks).sigmoid()))
    for k, e in ((1, 20), (2, 10), (5, 4), (10, 2), (20, 1)):
        got = sample(net, looks, k, e, seed=0)
        table.setdefault(f"{k} steps x {e} samples", []).append(judge(got.mean))
    table["prior"].append(judge(got.prior_prob))
print(f"{'':22s} Dice            HD95, pixels    calibration error   (mean ± sd of three seeds)")
for name, rows in table.items():
    print(f"{name:22s} " + "   ".join(f"{m:.3f} ± {d:.3f}" for m, d in zip(np.mean(rows, 0), np.std(rows, 0, ddof=1))))

# %% [markdown]
# **Printed or exact?** The networks that predict noise, 1000 ancestral steps from the same noise: exact from $\mathcal N(f, I)$, Eq. (7) without the shift from $\mathcal N(0, I)$, and Algorithm 2 to the letter.

# %%
#| slow
ways = {"exact, N(f, I)": [], "Eq. (7), N(0, I)": [], "Algorithm 2": []}
for s, (_, net, _) in trained.items():
    seen = net.condition(looks)
    seen = type(seen)(*(p.detach() for p in seen))
    predict = torch.no_grad()(lambda x, t: net.denoise(x, t, seen))
    z = randn(torch.Generator().manual_seed(s))(seen.prior)
    for name in ways:
        draw = randn(torch.Generator().manual_seed(100 + s))
        if name.startswith("exact"):
            x = ddpm_sample(process, predict, seen.prior + z, seen.prior, "epsilon", draw)
        else:
            x = ddpm_sample_printed(process, predict, z, draw, bar=name.startswith("Eq"))
        ways[name].append(dice(x > 0, truth).mean().item() if x.isfinite().all() else 0.0)
for name, d in ways.items():
    print(f"{name:18s} Dice {np.mean(d):.3f} ± {np.std(d, ddof=1):.3f}   by seed {np.round(d, 3)}")

# %% [markdown]
# **Does the doubt know the error?** Pixels sorted by doubt; the area under the risk–coverage curve, against the best that any order could do.

# %%
#| slow
net = trained[0][0]
got = sample(net, looks, 10, 10, seed=0)
wrong = ((got.mean > 0.5) != truth.bool()).float()
fig, axes = plt.subplots(1, 2, figsize=(6.5, 2.7), layout="constrained")
for name, doubt in (("spread of the samples", got.std), ("0.5 - |mean - 0.5|", 0.5 - (got.mean - 0.5).abs()), ("prior: 0.5 - |p - 0.5|", 0.5 - (got.prior_prob - 0.5).abs()), ("perfect", wrong)):
    coverage, risk, area = risk_coverage(wrong.flatten(), doubt.flatten())
    axes[0].plot(coverage[500::500], risk[500::500], label=f"{name}: {1e3 * area:.2f}")
axes[0].set(xlabel="share of pixels kept", ylabel="share wrong", title="area × 1000"); axes[0].legend(fontsize=6)
for name, prob in (("mean of 10", got.mean), ("prior", got.prior_prob)):
    x, y, _ = reliability(prob, truth.float(), 10)
    axes[1].plot(x, y, "o-", ms=3, label=f"{name}, ECE {expected_calibration_error(prob, truth.float()):.3f}")
axes[1].plot([0, 1], [0, 1], "k:", lw=1); axes[1].set(xlabel="probability", ylabel="frequency"); axes[1].legend(fontsize=7)

# %% [markdown]
# @READING@
#
# %% [markdown]
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | start | $\mathcal N(0, I)$ in Algorithm 2 | $\mathcal N(f, I)$ | the end of Eq. (5) |
# | step | Eq. (7) without the shift | exact posterior | stays on the marginal that the network knows |
# | $\sqrt{1-\alpha_t}$ | in Algorithm 2 | $\sqrt{1-\bar\alpha_t}$ | Eq. (7) |
# | steps | $T$ | 10 of DDIM | see the evaluation tables |
# | ensemble | "uncertainty" is mentioned, no size given | 5 | mean, vote and spread |
#
# ## Exercises
#
# **1 · Predict.** With one DDIM step, does the sample still depend on the noise it starts from?
#
# <details><summary>Answer</summary>
#
# Only through what the network makes of it: the result *is* $\hat x_0(x_T)$. For the perfect network at $t = 999$ all eight readings are nearly equally likely whatever the noise, so all samples are nearly the mean.
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
# Yes. The shift is put on and taken off again; a network that knows $f$ loses nothing by a bad one, and wins nothing by a good one. What a *learned* network makes of it is another matter.
#
# </details>

# %%
bad = torch.ones_like(f)
out = ddpm_sample(process, perfect(bad), process.prior_sample(bad, randn(g)(bad)), bad, noise=randn(g))
assert nearest(out).values.max() < 1e-6

# %% [markdown]
# **3 · Implement.** Average in another place: run the ensemble, but replace $\hat x_0$ by its mean over the members at *every* step. Is the result still an ensemble?
#
# <details><summary>Answer</summary>
#
# No. All members are pulled to one average; the first that leans to a reader drags the others along, and they end at one and the same mask. The spread, our doubt, is gone, and with it the reason for an ensemble.
#
# </details>

# %%
consensus = lambda x, t: perfect(f)(x, t).mean(0, keepdim=True).expand_as(x)
together = ddim_sample(process, consensus, start, f, steps=20)
print(f"mean spread over the members: alone {ends[10].std(0).mean():.3f}, by consensus {together.std(0).mean():.3f}")
assert together.std(0).mean() < 0.01 < 0.1 < ends[10].std(0).mean()

# %% [markdown]
# Next: [12 · Segment](12_segment.ipynb): any file, and the command line.
