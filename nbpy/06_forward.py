# %% [markdown]
# # 06 · The forward process
# > How a mask is drowned in noise, and pulled towards a first guess while it drowns

# %% [markdown]
# How can noise help to find a mask? A diffusion model adds noise to a mask, step by step, until nothing is left: the *forward process*. A network that has learned to walk back makes a mask out of noise, and out of other noise another one. You will build Verdiff-Net's forward process, find that the paper's rule for one step (its *kernel*) does not lead to it, and derive the one that does. No network yet; a minute on a laptop. Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/06_forward.ipynb).

# %%
#| hide
import sys

from IPython import get_ipython

if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp diffusion.forward

# %%
#| exports
#| code-fold: true
import math

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

# %%
#| code-fold: true
import matplotlib.pyplot as plt
import torch.nn.functional as F
from IPython.display import HTML
from diffusers import DDPMScheduler
from ipywidgets import IntSlider, interact
from matplotlib.animation import FuncAnimation
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.landmarks import landmarks_to_mask
from verdiff.data.phantoms import draw_phantom
from verdiff.data.xray import XRaySet
from verdiff.io.download import find_xray

# %%
#| code-fold: true
# noise does not compress: small pages
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 75})
plt.rcParams["animation.frame_format"] = "jpeg"
torch.set_num_threads(1)
g = torch.Generator().manual_seed(35)


# %% [markdown]
# ## 1 · Symbols
#
# Noise is symmetric around 0, so inside the process masks live in $[-1, 1]$, $x_0 = 2m - 1$, and so does the prior $f(b)$, a small network's first guess from the image $b$. Time runs over $t = 0, \dots, T-1$ with 0 the least noisy; the clean mask $x_0$ stands at $t = -1$.
#
# | paper | code | meaning |
# |---|---|---|
# | $\beta_t$ | `betas[t]` | variance added at step $t$ |
# | $\alpha_t = 1 - \beta_t$ | `alphas[t]` | share of the signal's power that survives step $t$ |
# | $\bar\alpha_t = \prod_{r \le t} \alpha_r$ | `alphas_cumprod[t]` | what survives all steps up to $t$; $\bar\alpha_{-1} = 1$ |
# | $s_t = \sqrt{1 - \bar\alpha_t}$ | `sigmas[t]` | amplitude of the noise at $t$; $s_{-1} = 0$ |
#
# ## 2 · Schedules
#
# How fast should the mask drown? Ho et al. (2020), whose model is called DDPM, let $\beta$ grow on a line.

# %%
#| exports
def linear_schedule(
    timesteps: int = 1000,  # T
    beta_start: float = 1e-4,  # first beta
    beta_end: float = 0.02,  # last beta
) -> Tensor:  # betas, float64, (T,)
    "Betas that grow on a line (Ho et al. 2020)."
    return torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)


# %%
betas = linear_schedule()
print(f"of the mask's power {(1 - betas).prod():.1e} is left at the end")
assert len(betas) == 1000 and betas[0] == 1e-4 and betas[-1] == 0.02


# %% [markdown]
# Nichol and Dhariwal (2021) let $\bar\alpha$ itself fall like a cosine, so that the last steps are not wasted. From $\bar\alpha$ back to the steps, $\beta_t = 1 - \bar\alpha_t / \bar\alpha_{t-1}$, works only if $\bar\alpha$ *falls*: a step can lose signal, never make any.

# %%
#| exports
def betas_from_alphas_cumprod(
    alphas_cumprod: Tensor,  # (T,), falling, each in (0, 1)
    max_beta: float = 0.999,  # cuts the last betas, which may be all but one
) -> Tensor:  # betas, float64, (T,)
    "The steps whose product is given; ValueError where it does not fall."
    bar = torch.as_tensor(alphas_cumprod, dtype=torch.float64)
    before = torch.cat([torch.ones(1).double(), bar[:-1]])
    falls = (bar > 0) & (bar < before)
    if not len(bar) or not falls.all():
        t = int((~falls).double().argmax()) if len(bar) else 0
        raise ValueError(
            "alphas_cumprod must fall from below 1 and stay above 0, but does "
            f"not at t = {t}: a step can only lose signal"
        )
    return (1 - bar / before).clamp(max=max_beta)


def cosine_schedule(
    timesteps: int = 1000,  # T
    offset: float = 0.008,  # keeps the first betas from vanishing
    max_beta: float = 0.999,  # cuts the last betas
) -> Tensor:  # betas, float64, (T,)
    "alphas_cumprod a squared cosine (Nichol and Dhariwal 2021, Eq. 17)."
    u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    bar = torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
    return betas_from_alphas_cumprod(bar[1:] / bar[0], max_beta)


def make_schedule(
    name: str,  # "linear" or "cosine"
    timesteps: int = 1000,
    beta_start: float = 1e-4,  # of the linear one
    beta_end: float = 0.02,
) -> Tensor:  # betas, float64, (T,)
    "A schedule by its name in settings.ini; ValueError for another name."
    if name == "linear":
        return linear_schedule(timesteps, beta_start, beta_end)
    if name == "cosine":
        return cosine_schedule(timesteps)
    raise ValueError(f"schedule must be 'linear' or 'cosine', not {name!r}")


# %%
back = betas_from_alphas_cumprod((1 - betas).cumprod(0))
torch.testing.assert_close(back, betas)
try:
    betas_from_alphas_cumprod(torch.tensor([0.9, 0.5, 0.6]))
except ValueError as error:
    print("refused:", error)

# %%
#| code-fold: true
#| fig-alt: "Two panels over t from 0 to 1000. Left, the signal's power: with the linear schedule all but gone at 600, with the cosine it falls evenly. Right, signal to noise on a logarithmic axis, falling in both."
schedules = {name: make_schedule(name) for name in ("linear", "cosine")}
fig, axes = plt.subplots(1, 2, figsize=(7, 2.5), layout="constrained")
for name, row in schedules.items():
    bar = (1 - row).cumprod(0)
    axes[0].plot(bar, label=name)
    axes[1].semilogy(bar / (1 - bar), label=name)
axes[0].set(xlabel="t", ylabel="signal's power, ᾱ")
axes[1].set(xlabel="t", ylabel="signal to noise", ylim=(1e-6, 1e4))
axes[0].legend();

# %% [markdown]
# The paper names neither; ours is the linear one. Both agree with a public library:

# %%
for ours, theirs in (("linear", "linear"), ("cosine", "squaredcos_cap_v2")):
    public = DDPMScheduler(beta_schedule=theirs).betas.double()
    torch.testing.assert_close(schedules[ours], public, atol=2e-6, rtol=1e-4)

# %% [markdown]
# ## 3 · Plain diffusion drowns everything
#
# DDPM reaches any $t$ in one jump, by the *marginal* $x_t = \sqrt{\bar\alpha_t}\,x_0 + s_t\,\varepsilon$. Here a phantom's mask, and below, where the X-ray set is at hand (SpineWeb set 16, AASCE 2019), a real one; the same noise at every $t$.

# %%
phantom = draw_phantom(3)
mask = landmarks_to_mask(phantom.landmarks / 3, 192, 64)
mask = torch.from_numpy(mask).float()[None, None]  # 1 1 192 64
x_0 = 2 * mask - 1
noise = torch.randn(x_0.shape, generator=g)

# %%
alphas_cumprod = (1 - betas).cumprod(0).float()
root, s = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
strip = [0, 100, 250, 400, 600, 999]
rows = [[root[t] * x_0 + s[t] * noise for t in strip]]

# %%
if XRAY := find_xray():
    real = 2 * XRaySet(XRAY, "training", size=(192, 64))[0].mask[None] - 1
    rows.append([root[t] * real + s[t] * noise for t in strip])


# %%
#| code-fold: true
#| fig-alt: "Six pictures of a spine's mask at t = 0, 100, 250, 400, 600 and 999: bright vertebrae on dark, more and more speckled, then nothing but speckle; where the X-ray set is at hand, a second row with a real spine."
def picture_strip(rows, titles, width=0.95, height=2.6):
    size = width * len(titles), height * len(rows)
    fig, axes = plt.subplots(
        len(rows), len(titles), figsize=size, layout="constrained",
        squeeze=False,
    )
    pictures = [p for row in rows for p in row]
    for axis, picture in zip(axes.flat, pictures, strict=True):
        axis.imshow(picture[0, 0], cmap="magma", vmin=-3, vmax=3)
        axis.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8)


picture_strip(rows, [f"t = {t}" for t in strip])


# %% [markdown]
# At the end nothing of the spine is left. But a small U-Net can guess at once where the vertebrae are. Why should the way back begin in the middle of nowhere?
#
# ## 4 · Eq. (3): noise around a guess
#
# Verdiff-Net's idea: let the noise be centred at the guess. Eq. (3), as a distribution Eq. (5):
#
# $$x_t = \sqrt{\bar\alpha_t}\,x_0 + s_t\,f + s_t\,\varepsilon, \qquad s_t = \sqrt{1-\bar\alpha_t}.$$
#
# The mask fades out, and the guess fades in at the pace of the noise. The end is $\mathcal N(f, I)$.
#
# Helpers first: two refuse a $\beta$ or a $t$ that cannot be meant; the third keeps rows of coefficients where the images are, in float64 on the CPU (exercise 3 shows why).

# %%
#| exports
_COPIES = WeakIdKeyDictionary()  # a row: its copies by device and type


def _check_betas(betas: Tensor) -> Tensor:
    "float64 (T,) on the CPU; ValueError unless each lies between 0 and 1."
    betas = torch.as_tensor(betas, dtype=torch.float64).cpu()
    if betas.ndim != 1 or not len(betas):
        raise ValueError(f"betas must be a row, not {tuple(betas.shape)}")
    bad = ~((betas > 0) & (betas < 1))  # NaN is bad too
    if bad.any():
        k = int(bad.nonzero()[0])
        raise ValueError("betas must lie strictly between 0 and 1, so that the "
                         f"signal decreases; betas[{k}] is {betas[k]:g}")
    return betas


def _check_times(t: Tensor, timesteps: int, batch: int) -> None:
    "ValueError unless t is whole numbers, (B,) or (1,), from 0 to T - 1."
    if t.ndim != 1 or len(t) not in (1, batch):
        raise ValueError(f"t must be of shape ({batch},), not {tuple(t.shape)}")
    if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
        raise ValueError(f"t must hold whole numbers, not {t.dtype}")
    at = t.tolist() if t.device.type == "cpu" else [0]
    if min(at) < 0 or max(at) >= timesteps:
        raise ValueError(f"t must lie between 0 and {timesteps - 1}, not reach "
                         f"from {min(at)} to {max(at)}")


def _row_like(row: Tensor, x: Tensor) -> Tensor:
    "The row on the device of x and of its type: copied once, then kept."
    kind = x.device, x.dtype
    if kind == (row.device, row.dtype):
        return row
    copies = _COPIES.setdefault(row, {})
    if kind not in copies:
        with torch.inference_mode(False):  # a copy for training as well
            copies[kind] = row.to(x.dtype).to(x.device)  # MPS has no float64
    return copies[kind]


# %% [markdown]
# And the process itself ($B$ in shapes is the number of images):

# %%
#| exports
class ShiftedDiffusion:
    """The forward process, Eq. (3) and (5): a mask at time t, in one jump.

    x_0, x_t, noise and prior are (B, ...) of one shape, masks in [-1, 1]; t is
    int64 (B,), or (1,) for all, from 0 (least noisy) to T - 1. Without a prior,
    or with `shift=False`, it is plain DDPM. ValueError for a beta outside
    (0, 1), a wrong t (on a GPU: of the wrong shape or type only) or a prior of
    another shape."""

    def __init__(
        self,
        betas: Tensor,  # (T,), each in (0, 1)
        shift: bool = True,  # False: ignore every prior
    ):
        self.betas, self.shift = _check_betas(betas), shift
        self.timesteps = len(self.betas)  # T
        self.alphas = 1 - self.betas  # each row is (T,), float64, on the CPU
        self.alphas_cumprod = bar = self.alphas.cumprod(0)
        self.alphas_cumprod_prev = torch.cat([bar.new_ones(1), bar[:-1]])
        self.sqrt_alphas_cumprod = self.alphas_cumprod.sqrt()
        self.sigmas = (1 - self.alphas_cumprod).sqrt()
        self.sigmas_prev = (1 - self.alphas_cumprod_prev).sqrt()

    def coefficient(self, row: Tensor, t: Tensor, like: Tensor) -> Tensor:
        "row[t], (B, 1, ...), to multiply `like`: its device, its type."
        _check_times(t, self.timesteps, len(like))
        row = _row_like(row, like)
        at = t.to(row.device, torch.int64)
        return row[at].view(-1, *[1] * (like.ndim - 1))

    def prior_or_zero(self, prior: Tensor | None, x: Tensor) -> Tensor:
        "The prior; zeros without it or `shift`. ValueError if shapes differ."
        if prior is None or not self.shift:
            return torch.zeros_like(x)
        if prior.shape != x.shape:
            raise ValueError(f"the prior has shape {tuple(prior.shape)}, "
                             f"x has {tuple(x.shape)}")
        return prior

    def q_sample(
        self, x_0: Tensor, t: Tensor, prior: Tensor | None, noise: Tensor
    ) -> Tensor:
        "Eq. (3): x_t = sqrt(abar_t) x_0 + s_t f + s_t noise."
        root = self.coefficient(self.sqrt_alphas_cumprod, t, x_0)
        s = self.coefficient(self.sigmas, t, x_0)
        return root * x_0 + s * (self.prior_or_zero(prior, x_0) + noise)

    def prior_sample(self, prior: Tensor | None, noise: Tensor) -> Tensor:
        "Where sampling starts: N(f, I), the end of Eq. (5) for a long chain."
        return self.prior_or_zero(prior, noise) + noise


# %% [markdown]
# A bad guess on purpose: blurred, too fat, and one vertebra short.

# %%
process = ShiftedDiffusion(betas)
guess = F.avg_pool2d(F.max_pool2d(mask, 3, 1, 1), 5, 1, 2)
guess[..., 96:108, :] *= 0.1
f = 2 * guess - 1

# %%
#| code-fold: true
#| fig-alt: "The blurred guess, which lacks a vertebra, and x_t at six times: the mask fades out, the noise comes in, and at t = 999 a blurred spine still shines through."
noisy = [process.q_sample(x_0, torch.tensor([t]), f, noise) for t in strip]
picture_strip([[f, *noisy]], ["guess f", *(f"t = {t}" for t in strip)])

# %% [markdown]
# The last picture still knows where the spine is. That is the idea, and there sampling will start:

# %%
gap = (process.prior_sample(f, noise) - noisy[-1]).abs().max()
print(f"N(f, I) and the end of the chain differ by at most {gap:.3f}")
assert gap < 0.02

# %% [markdown]
# One trap: a shorter chain with the same $\beta$ stops half-way, and sampling would start from noise that training never showed. The remedy is a larger $\beta$, by $1000/T$:

# %%
for T in (1000, 250, 50):
    for k in sorted({1, 1000 / T}):
        chain = ShiftedDiffusion(linear_schedule(T, 1e-4 * k, 0.02 * k))
        left = chain.sqrt_alphas_cumprod[-1]
        print(f"T = {T:4d}, β × {k:2.0f}: weight of the mask {left:.4f}")
assert left < 0.01

# %% [markdown]
# ## 5 · One step
#
# A process is defined by its *steps*. The paper prints, as Eq. (2),
#
# $$q(x_t \mid x_{t-1}, f) = \mathcal N\bigl(\sqrt{\alpha_t}\,x_{t-1} + \sqrt{1-\alpha_t}\,f,\; (1-\alpha_t) I\bigr).$$
#
# It looks right: Eq. (3) without the bars. Iterate it. The weight of the guess in the mean, $w_t = \sqrt{\alpha_t}\,w_{t-1} + \sqrt{1-\alpha_t}$, should arrive at $s_t$.

# %%
weights = [torch.zeros(()).double()]
for beta in betas:
    weights.append((1 - beta).sqrt() * weights[-1] + beta.sqrt())
print(f"at the end {weights[-1]:.2f} instead of {process.sigmas[-1]:.2f}")
assert weights[-1] > 14

# %%
#| code-fold: true
#| fig-alt: "The weight of the guess over t: the iterated Eq. (2) climbs to 18 and ends at 15, while s_t of Eq. (3) rises to one and stays there."
fig, axis = plt.subplots(figsize=(5, 2.5), layout="constrained")
axis.plot(weights[1:], color="crimson", label="Eq. (2) iterated")
axis.plot(process.sigmas, "k", label="Eq. (3): $s_t$")
axis.set(xlabel="t", ylabel="weight of f")
axis.legend();


# %% [markdown]
# The chain drifts to fifteen times the prior: independent noises add as variances, means add plainly. $\sqrt{\beta_t}$ is the right amplitude for *noise*; a *mean* with that amplitude piles up.
#
# What must the pull $k_t$ towards $f$ be? If Eq. (3) holds at $t-1$, the mean of one step $x_t = \sqrt{\alpha_t}\,x_{t-1} + k_t f + \sqrt{\beta_t}\,\varepsilon$ is
#
# $$\sqrt{\alpha_t}\,\bigl(\sqrt{\bar\alpha_{t-1}}\,x_0 + s_{t-1} f\bigr) + k_t f = \sqrt{\bar\alpha_t}\,x_0 + \bigl(\sqrt{\alpha_t}\,s_{t-1} + k_t\bigr) f .$$
#
# The guess's part must be $s_t$, so $k_t = s_t - \sqrt{\alpha_t}\,s_{t-1}$. The variance is $\alpha_t s_{t-1}^2 + \beta_t = \alpha_t - \bar\alpha_t + 1 - \alpha_t = s_t^2$, as in DDPM. So the kernel that leads to Eq. (3) is
#
# $$q(x_t \mid x_{t-1}, f) = \mathcal N\bigl(\sqrt{\alpha_t}\,x_{t-1} + (s_t - \sqrt{\alpha_t}\,s_{t-1})\,f,\; \beta_t I\bigr).$$

# %%
#| exports
def q_step(process: ShiftedDiffusion, x_prev: Tensor, t: Tensor,
           prior: Tensor | None, noise: Tensor) -> Tensor:
    "x_t from x_{t-1} (x_0 where t = 0) by the kernel that leads to Eq. (3)."
    f, root = process.prior_or_zero(prior, x_prev), process.alphas.sqrt()
    pull = process.sigmas - root * process.sigmas_prev
    rows = root, pull, process.betas.sqrt()
    a, k, b = (process.coefficient(row, t, x_prev) for row in rows)
    return a * x_prev + k * f + b * noise


def q_step_printed(process: ShiftedDiffusion, x_prev: Tensor, t: Tensor,
                   prior: Tensor | None, noise: Tensor) -> Tensor:
    "One step of Eq. (2) as printed; iterated, it drifts away from Eq. (3)."
    rows = process.alphas.sqrt(), process.betas.sqrt()
    a, b = (process.coefficient(row, t, x_prev) for row in rows)
    return a * x_prev + b * (process.prior_or_zero(prior, x_prev) + noise)


# %% [markdown]
# Without noise the iterated kernel must give the *mean* of Eq. (3), to the precision of float64:

# %%
one, prior = torch.full((1, 1), -1.0).double(), torch.full((1, 1), 0.8).double()
x, zero = one, torch.zeros_like(one)
for t in range(process.timesteps):
    x = q_step(process, x, torch.tensor([t]), prior, zero)
wanted = process.q_sample(one, torch.tensor([999]), prior, zero)
torch.testing.assert_close(x, wanted, rtol=1e-12, atol=0)

# %% [markdown]
# And with noise, the *distribution*. We send 20,000 walkers (pixels) down a chain of 200 steps, all from $x_0 = -1$ with $f = 0.8$, and compare mean and variance with Eq. (3). Chance allows a standard error of $s/\sqrt n$ for the mean and $s^2\sqrt{2/n}$ for the variance. With the same noise, others follow the printed kernel.

# %%
n, short = 20_000, ShiftedDiffusion(linear_schedule(200, 5e-4, 0.1))
start, f_n = torch.full((n,), -1.0).double(), torch.full((n,), 0.8).double()
paths = {q_step: [start], q_step_printed: [start]}
for t in torch.arange(200)[:, None]:
    noise_t = torch.randn(n, generator=g, dtype=torch.float64)
    for kernel, path in paths.items():
        path.append(kernel(short, path[-1], t, f_n, noise_t))

# %%
exact, printed = (torch.stack(path[1:]) for path in paths.values())  # t n
wanted = -short.sqrt_alphas_cumprod + 0.8 * short.sigmas
error = short.sigmas / n ** 0.5
off_mean = (exact.mean(1) - wanted) / error  # in standard errors
off_var = (exact.var(1) / short.sigmas ** 2 - 1) / (2 / n) ** 0.5
assert off_mean.abs().max() < 4 and off_var.abs().max() < 4

# %%
for t in (10, 50, 100, 199):
    print(f"t = {t:3d}: Eq. (3) {wanted[t]:+.4f}, exact kernel "
          f"{exact[t].mean():+.4f} ± {error[t]:.4f}, "
          f"printed kernel {printed[t].mean():+.2f}")

# %%
#| code-fold: true
#| fig-alt: "Left: the mean of walkers over t; the exact kernel lies on Eq. (3) and ends at 0.8, the printed one climbs above 6. Right: mean and variance of the exact kernel scatter within three standard errors of Eq. (3)."
fig, axes = plt.subplots(1, 2, figsize=(7.4, 2.8), layout="constrained")
for x, colour, label in ((exact, "tab:blue", "exact kernel"),
                         (printed, "crimson", "Eq. (2) as printed")):
    mean, sd = x.mean(1), x.std(1)
    axes[0].plot(mean, color=colour, label=label)
    axes[0].fill_between(range(200), mean - sd, mean + sd, color=colour,
                         alpha=0.2)
axes[0].plot(wanted, "k--", lw=1, label="Eq. (3)")
axes[0].set(xlabel="t", ylabel="x, started at −1, prior 0.8")
at = torch.arange(9, 200, 10)
axes[1].errorbar(at, off_mean[at], 1, fmt="o", ms=3, label="mean")
axes[1].errorbar(at + 3, off_var[at], 1, fmt="o", ms=3, label="variance")
axes[1].axhline(0, color="k", lw=0.8)
axes[1].set(xlabel="t", ylabel="exact kernel − Eq. (3),\nstandard errors",
            ylim=(-4.5, 4.5))
for axis in axes:
    axis.legend(fontsize=8)

# %% [markdown]
# ## 6 · The coordinate in which this is plain DDPM
#
# Subtract the shift: $y_t = x_t - s_t f$. Eq. (3) becomes $y_t = \sqrt{\bar\alpha_t}\,x_0 + s_t\,\varepsilon$, without a trace of $f$. The kernel becomes
#
# $$y_t = x_t - s_t f = \sqrt{\alpha_t}\,(x_{t-1} - s_{t-1} f) + \sqrt{\beta_t}\,\varepsilon = \sqrt{\alpha_t}\,y_{t-1} + \sqrt{\beta_t}\,\varepsilon .$$
#
# **In $y$ the process is exactly plain DDPM.** It gives every sampler of the field for nothing: take the shift off, do the usual step, put the shift of the new time on. Against a public library, jump and step:

# %%
times = torch.tensor([3, 250, 600])
x0_3, f_3, noise_3 = (torch.randn(3, 1, 8, 4, generator=g) for _ in range(3))
x_t = process.q_sample(x0_3, times, f_3, noise_3)
y_t = x_t - process.coefficient(process.sigmas, times, x_t) * f_3

# %%
public = DDPMScheduler(beta_schedule="linear")
torch.testing.assert_close(y_t, public.add_noise(x0_3, noise_3, times))

# %%
a, b = (row[times].sqrt().view(3, 1, 1, 1)
        for row in (public.alphas, public.betas))
step = q_step(process, x0_3, times, None, noise_3)
torch.testing.assert_close(step, a * x0_3 + b * noise_3)


# %% [markdown]
# ## 7 · So why shift at all?
#
# How many pixels lie on the wrong side of zero, for a prior that is perfect, blurred, wrong by one vertebra, or zero? First for somebody who is *not* told $f$ and looks at $x_t$; then for somebody who is, and looks at $y_t$.

# %%
lower = landmarks_to_mask(phantom.landmarks[4:] / 3, 192, 64)  # no top vertebra
lower = torch.from_numpy(lower).float()[None, None]
priors = {
    "perfect": x_0,
    "blurred": 2 * F.avg_pool2d(mask, 7, 1, 3) - 1,
    "off by one": 2 * lower - 1,
    "zero": torch.zeros_like(x_0),
}


# %%
times, many = range(0, 1000, 20), torch.randn(100, 1, 192, 64, generator=g)
x_many = x_0.expand_as(many)
top = (mask - lower).bool().expand_as(many)  # the vertebra that is missed


def wrong_shares(f):
    "Shares of wrong pixels in x_t, in its top vertebra, and in y_t."
    for t in times:
        x_t = process.q_sample(x_many, torch.tensor([t]), f, many)
        y_t = x_t - process.sigmas[t].float() * f
        in_x, in_y = ((v > 0) != (x_many > 0) for v in (x_t, y_t))
        yield [v.float().mean().item() for v in (in_x, in_x[top], in_y)]


# %%
shares = {name: list(wrong_shares(p.expand_as(many)))
          for name, p in priors.items()}
last = {name: torch.tensor(rows)[-1] for name, rows in shares.items()}
assert last["perfect"][0] < 0.2 < 0.4 < last["zero"][0]  # not told f
assert last["off by one"][1] > 0.8  # the prior's mistake, written into x_t
assert abs(last["perfect"][2] - last["zero"][2]) < 1e-6  # told f: no matter

# %%
#| code-fold: true
#| fig-alt: "Shares of wrong pixels over t. Not told f: a perfect prior stays below one in six, none rises to one half. In the top vertebra the prior that is off by one rises to more than 0.8, above all others. Told f: all four curves are one, rising to one half."
titles = "not told f: $x_t$", "the same, top vertebra", "told f: $y_t$"
fig, axes = plt.subplots(1, 3, figsize=(7.6, 2.7), sharey=True,
                         layout="constrained")
for axis, title, curves in zip(axes, titles, range(3), strict=True):
    for k, (name, rows) in enumerate(shares.items()):
        axis.plot(times, [row[curves] for row in rows], lw=5 - 1.2 * k,
                  label=name)
    axis.set(xlabel="t", title=title, ylim=(0, 0.9))
axes[0].set_ylabel("share of pixels wrong")
axes[0].legend(fontsize=8);

# %% [markdown]
# To somebody who is not told $f$ the shift says a lot, the prior's mistakes included. But Verdiff-Net's diffusion network *is* told ([11](11_model.ipynb)). It can compute $y_t$, for which the prior makes no difference at all. So:
#
# - **It adds no information.** For a perfect network the shifted and the plain process give the same masks.
# - **It can only change how easily a network learns.** A shifted $x_t$ shows the guess in the main input, but its mistakes look like the mask.
# - **Whether that helps is a question for experiments**, and in ours it does not show ([ablation](lab/ablation.ipynb), row `no-shift`); the runs are small and few.
#
# We keep it because it is the paper's; `shift=off` in the settings takes it out.
#
# ## 8 · Turn the knob
#
# The plain process, the shifted one, the values of $x_t$ in both (grey plain, orange shifted), and the place on the schedule. In a running notebook a slider moves $t$.

# %%
#| code-fold: true
def draw(t, axes=None):
    if axes is None:
        _, axes = four_axes()
    for axis in axes:
        axis.clear()
    for axis, p, title in zip(axes, (None, f), ("plain", "shifted")):
        x_t = process.q_sample(x_0, torch.tensor([t]), p, noise)
        axis.imshow(x_t[0, 0], cmap="magma", vmin=-3, vmax=3)
        axis.set_axis_off()
        axis.set_title(title)
        axes[2].hist(x_t.flatten().numpy(), bins=60, range=(-4, 4),
                     histtype="step",
                     color="grey" if p is None else "orange")
    axes[2].set(xlabel="values of $x_t$", yticks=[])
    axes[3].plot(process.sqrt_alphas_cumprod, "k", label="mask")
    axes[3].plot(process.sigmas, "orange", label="prior and noise")
    axes[3].axvline(t, color="tab:blue")
    axes[3].set(xlabel="t", title=f"t = {t}")
    axes[3].legend(fontsize=8, loc="center right")


def four_axes(dpi=100):
    return plt.subplots(1, 4, figsize=(7.6, 2.9), dpi=dpi,
                        layout="constrained", width_ratios=(1, 1, 1.8, 2.2))


# %%
#| fig-alt: "At t = 300: the plain process, a faint spine in noise; the shifted one, in which spine and guess are clearly seen; their histograms; and the schedule with a line at 300."
draw(300)

# %%
#| include: false
if hasattr(get_ipython(), "kernel"):  # a slider needs a running notebook
    slider = IntSlider(300, 0, 999, 10, continuous_update=False)
    interact(lambda t: draw(t), t=slider);

# %%
#| code-fold: true
fig, axes = four_axes(dpi=84)
movie = FuncAnimation(fig, lambda t: draw(t, axes), frames=range(0, 1000, 95),
                      interval=200)
html = movie.to_jshtml(default_mode="loop")
plt.close(fig)
alt = "The four panels as t grows from 0 to 950"
HTML(html.replace("<img ", f'<img alt="{alt}" '))

# %% [markdown]
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | one step | $\sqrt{1-\alpha_t}\,f$, Eq. (2) | $(s_t - \sqrt{\alpha_t}\,s_{t-1})\,f$ | only this one leads to Eq. (3) |
# | $T$, schedule | not given | 1000, linear $10^{-4}$ to 0.02 | the defaults of DDPM |
#
# ## Exercises
#
# **1 · Predict.** Is the exact kernel's pull $k_t$ largest at the beginning, in the middle or at the end of the chain? Sketch it, then plot it.

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# At both ends. At the beginning $k_0 = s_0 = \sqrt{\beta_0} = 0.01$, because $s_t$, a root, rises most steeply from 0. Towards the end $s_t \approx 1$, and $k_t \approx 1 - \sqrt{\alpha_t} \approx \beta_t/2$ grows again with $\beta_t$: the guess is kept alive against the factor $\sqrt{\alpha_t}$.

# %%
#| code-fold: true
#| fig-alt: "The pull over t on a logarithmic axis: 0.01 at the start, a third of that soon after, then slowly up to 0.01 again."
pull = process.sigmas - process.alphas.sqrt() * process.sigmas_prev
plt.figure(figsize=(4, 2))
plt.semilogy(pull)
plt.xlabel("t")
plt.ylabel("pull $k_t$")
assert abs(pull[0] - 0.01) < 1e-12 and pull.min() > 0.003
assert pull[1:-1].max() < pull[-1] < 0.0101

# %% [markdown]
# </details>
#
# **2 · Implement.** CARD (Han et al. 2022) had the idea first, for regression, with the shift $(1 - \sqrt{\bar\alpha_t})\,f$. Write its one-step kernel without noise, and check it as we checked ours. How large does the mean become where mask and guess agree, there and here?

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# The pull is $w_t - \sqrt{\alpha_t}\,w_{t-1} = 1 - \sqrt{\alpha_t}$ with $w_t = 1 - \sqrt{\bar\alpha_t}$: a step's mean is a weighted average of $x_{t-1}$ and $f$. Where $x_0 = f = 1$ it stays 1; ours bulges to $\sqrt2$.

# %%
#| code-fold: true
x = one
for root in process.alphas.sqrt():
    x = root * x + (1 - root) * prior
root = process.sqrt_alphas_cumprod[-1]
torch.testing.assert_close(x, root * one + (1 - root) * prior)
bulge = (process.sqrt_alphas_cumprod + process.sigmas).max()
assert abs(bulge - 2 ** 0.5) < 1e-3

# %% [markdown]
# </details>
#
# **3 · Diagnose (hard).** A colleague keeps the rows in float16, "since the images are float16 anyway". Pictures of $x_t$ look right. But about once in 125 images a training step finds $\hat\varepsilon = (y_t - \sqrt{\bar\alpha_t}\,x_0)/s_t$ infinite. Which line does it, and at which $t$? A second colleague advises the cosine schedule, which "starts more gently". Does that help?

# %%
half = (1 - betas).half().float().cumprod(0).half()  # the colleague's row
half_s = (1 - half).sqrt()

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# $\alpha_t$ near 1 is rounded: below 1 the next float16 is $1 - 2^{-11} \approx 1 - 0.0005$, so every $\beta_t$ below half of that becomes 0. Then $\bar\alpha_t = 1$, $s_t = 0$, and the noise is divided by zero. The first steps of the linear schedule are that small, and more of the cosine's: the advice makes it worse. Hence rows in float64, rounded once, after the root.

# %%
#| code-fold: true
for name, row in schedules.items():
    half = (1 - row).half().float().cumprod(0).half()
    dead = ((1 - half).sqrt() == 0).nonzero().flatten().tolist()
    print(f"{name}: s_t = 0 at {len(dead)} of 1000 times, t up to {dead[-1]}")
    ours = ShiftedDiffusion(row).sigmas.half()
    assert dead and (ours > 0).all()

# %% [markdown]
# </details>
#
# A mask can now be drowned to any depth in one jump. How does one walk back? Next: [07 · The posterior](07_posterior.ipynb).
