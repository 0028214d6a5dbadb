# %% [markdown]
# # 05 · The posterior
# > The same road backwards: one step of it, exactly, and three ways to say what a network predicts
#
# You will derive $q(x_{t-1} \mid x_t, x_0, f)$, check it against Bayes' rule done by brute force, see where the printed Eq. (6) goes wrong and by how much, and turn noise into masks into velocities and back. No network yet. A quarter of a minute on a laptop.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/05_posterior.ipynb)

# %%
#| default_exp posterior

# %%
#| eval: false
# !pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"  # only on Colab

# %%
#| export
from typing import NamedTuple

import torch
from torch import Tensor

from verdiff.forward import ShiftedDiffusion

# %%
import matplotlib.pyplot as plt
from IPython.display import HTML
from ipywidgets import IntSlider, interact
from matplotlib.animation import FuncAnimation
from matplotlib_inline.backend_inline import set_matplotlib_formats
from verdiff.data import draw_phantom, landmarks_to_mask
from verdiff.forward import linear_schedule

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})  # noise does not compress: small pages
plt.rcParams["animation.frame_format"] = "jpeg"
process = ShiftedDiffusion(linear_schedule())

# %% [markdown]
# ## 1 · Take the shift off
#
# Page 04 ended with a coordinate: $y_t = x_t - s_t f$ is plain DDPM. Two functions go there and back. The way back knows one more time than the process has, $t = -1$: the end of the road, where $s_{-1} = 0$ and nothing is left to put on.

# %%
#| export
def unshift(
    process: ShiftedDiffusion,
    x_t: Tensor,  # (B, ...)
    t: Tensor,  # int64 (B,), 0 to T-1
    prior: Tensor | None,  # f, of the shape of x_t
) -> Tensor:  # y_t, which is plain DDPM
    "y_t = x_t - s_t f."
    return x_t - process.coefficient(process.sigmas, t, x_t) * process.prior_or_zero(prior, x_t)


def reshift(
    process: ShiftedDiffusion,
    y_t: Tensor,  # (B, ...)
    t: Tensor,  # int64 (B,), -1 to T-1; -1 is the end, where nothing is added
    prior: Tensor | None,  # f, of the shape of y_t
) -> Tensor:  # x_t
    "x_t = y_t + s_t f."
    before = torch.cat([torch.zeros(1).double(), process.sigmas])[:-1]  # s_{-1} ... s_{T-2}
    last = t == process.timesteps - 1
    inner = process.coefficient(before, (t + 1).clamp(max=process.timesteps - 1), y_t)
    end = process.coefficient(process.sigmas, t.clamp(min=0), y_t)
    s = torch.where(last.to(y_t.device).view(-1, *[1] * (y_t.ndim - 1)), end, inner)
    return y_t + s * process.prior_or_zero(prior, y_t)


# %%
g = torch.Generator().manual_seed(35)
x, f = (torch.randn(4, 1, 6, 5, generator=g).double() for _ in range(2))
t = torch.tensor([0, 7, 500, 999])
torch.testing.assert_close(reshift(process, unshift(process, x, t, f), t, f), x)
assert torch.equal(reshift(process, x, torch.full((4,), -1), f), x)

# %% [markdown]
# ## 2 · One step back, exactly
#
# Given where the walker is ($x_t$) and where it started ($x_0$), where was it one step ago? In $y$ this is the formula of DDPM (Ho et al. 2020, Eq. 7),
#
# $$y_{t-1} \sim \mathcal N\bigl(A_t\,x_0 + B_t\,y_t,\; \sigma_t^2 I\bigr), \quad A_t = \frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1-\bar\alpha_t}, \quad B_t = \frac{\sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})}{1-\bar\alpha_t}, \quad \sigma_t^2 = \frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\,\beta_t .$$
#
# Put the shifts back, $y_t = x_t - s_t f$ and $x_{t-1} = y_{t-1} + s_{t-1} f$:
#
# $$x_{t-1} \sim \mathcal N\bigl(A_t\,x_0 + B_t\,x_t + C_t\,f,\; \sigma_t^2 I\bigr), \qquad C_t = s_{t-1} - B_t\,s_t .$$
#
# Where do $A$, $B$ and $\sigma^2$ come from? Bayes' rule adds two parabolas in $z = y_{t-1}$, the step and the marginal:
#
# $$-\frac{(y_t - \sqrt{\alpha_t}\,z)^2}{2\beta_t} - \frac{(z - \sqrt{\bar\alpha_{t-1}}\,x_0)^2}{2 (1-\bar\alpha_{t-1})} = -\frac{z^2}{2}\underbrace{\Bigl(\frac{\alpha_t}{\beta_t} + \frac{1}{1-\bar\alpha_{t-1}}\Bigr)}_{1/\sigma_t^2} + z\,\underbrace{\Bigl(\frac{\sqrt{\alpha_t}}{\beta_t}\,y_t + \frac{\sqrt{\bar\alpha_{t-1}}}{1-\bar\alpha_{t-1}}\,x_0\Bigr)}_{\mu/\sigma_t^2} + \dots$$
#
# A sum of parabolas is a parabola: its curvature gives the variance, its linear term the mean. With $\alpha_t(1-\bar\alpha_{t-1}) + \beta_t = 1 - \bar\alpha_t$ the curvature becomes $\sigma_t^{-2} = (1-\bar\alpha_t) / (\beta_t (1-\bar\alpha_{t-1}))$, and multiplying the linear term by $\sigma_t^2$ gives $A_t$ and $B_t$ above. Each line, in numbers:
#
# The paper's Eq. (6) has the same $A$, $B$ and $\sigma^2$, and prints $C_t = s_t$.

# %%
bar, bar_prev, beta, alpha = process.alphas_cumprod[1:], process.alphas_cumprod_prev[1:], process.betas[1:], process.alphas[1:]
curvature = alpha / beta + 1 / (1 - bar_prev)
torch.testing.assert_close(alpha * (1 - bar_prev) + beta, 1 - bar)
torch.testing.assert_close(1 / curvature, (1 - bar_prev) / (1 - bar) * beta)
torch.testing.assert_close(bar_prev.sqrt() / (1 - bar_prev) / curvature, bar_prev.sqrt() * beta / (1 - bar))
torch.testing.assert_close(alpha.sqrt() / beta / curvature, alpha.sqrt() * (1 - bar_prev) / (1 - bar))

# %%
#| export
class PosteriorCoefficients(NamedTuple):
    "Mean A x_0 + B x_t + C f, and the variance; each float64 (T,)."

    x_0: Tensor  # A
    x_t: Tensor  # B
    prior: Tensor  # C
    variance: Tensor  # sigma^2


def posterior_coefficients(process: ShiftedDiffusion) -> PosteriorCoefficients:
    "Of the exact posterior q(x_{t-1} | x_t, x_0, f)."
    bar, bar_prev = process.alphas_cumprod, process.alphas_cumprod_prev
    a = bar_prev.sqrt() * process.betas / (1 - bar)
    b = process.alphas.sqrt() * (1 - bar_prev) / (1 - bar)
    c = process.sigmas_prev - b * process.sigmas
    return PosteriorCoefficients(a, b, c, (1 - bar_prev) / (1 - bar) * process.betas)


def printed_prior_coefficient(process: ShiftedDiffusion) -> Tensor:  # (T,)
    "C of Eq. (6) as printed: s_t, as if the shift had to be paid anew at every step."
    return process.sigmas


# %%
exact = posterior_coefficients(process)
fig, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
axis.semilogy(exact.prior[1:], label="exact $C_t = s_{t-1} - B_t s_t$")
axis.semilogy(printed_prior_coefficient(process)[1:], color="crimson", label="Eq. (6) as printed: $s_t$")
axis.set(xlabel="t", ylabel="weight of the prior in one step"); axis.legend()
print(f"exact: {exact.prior.min():.2e} to {exact.prior.max():.4f}; printed: {process.sigmas.min():.2f} to {process.sigmas.max():.2f}")
assert exact.prior[0] == 0 and 0 <= exact.prior.min() and exact.prior.max() < 0.0101 and process.sigmas.max() > 0.99

# %%
#| export
def _mean(process: ShiftedDiffusion, x_0: Tensor, x_t: Tensor, t: Tensor, prior: Tensor | None,
          weight: Tensor) -> tuple[Tensor, Tensor]:
    "A x_0 + B x_t + weight f, and the variance."
    k = posterior_coefficients(process)
    a, b, c, variance = (process.coefficient(v, t, x_t) for v in (k.x_0, k.x_t, weight, k.variance))
    return a * x_0 + b * x_t + c * process.prior_or_zero(prior, x_t), variance


def q_posterior(
    process: ShiftedDiffusion,
    x_0: Tensor,  # mask in [-1, 1], (B, ...)
    x_t: Tensor,
    t: Tensor,  # int64 (B,); the step leads from t to t-1, and to x_0 itself where t = 0
    prior: Tensor | None = None,  # f
) -> tuple[Tensor, Tensor]:  # mean (B, ...), variance (B, 1, ...)
    "The exact posterior of the shifted process, q(x_{t-1} | x_t, x_0, f)."
    return _mean(process, x_0, x_t, t, prior, posterior_coefficients(process).prior)


def q_posterior_printed(
    process: ShiftedDiffusion,
    x_0: Tensor,
    x_t: Tensor,
    t: Tensor,
    prior: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    "Eq. (6) as printed."
    return _mean(process, x_0, x_t, t, prior, printed_prior_coefficient(process))


# %% [markdown]
# ## 3 · Ask Bayes
#
# Derivations can err. Bayes' rule cannot: the posterior density of $x_{t-1}$ is proportional to $q(x_t \mid x_{t-1}, f)\; q(x_{t-1} \mid x_0, f)$. Both factors are known from page 04, both checked there. So we multiply them on a fine grid, in float64, and compute mean and variance as sums.

# %%
def bayes(t, x_0, x_t, f, n=200_001):
    z = torch.linspace(-8, 8, n, dtype=torch.float64)  # candidates for x_{t-1}
    bar_prev, s_prev = process.alphas_cumprod_prev[t], process.sigmas_prev[t]
    pull = process.sigmas[t] - process.alphas[t].sqrt() * s_prev
    before = -(z - bar_prev.sqrt() * x_0 - s_prev * f) ** 2 / (2 * s_prev ** 2)
    step = -(x_t - process.alphas[t].sqrt() * z - pull * f) ** 2 / (2 * process.betas[t])
    weight = torch.softmax(before + step, 0)
    mean = (weight * z).sum()
    return mean, (weight * (z - mean) ** 2).sum(), z, weight


def scalar(v):
    return torch.full((1, 1), v, dtype=torch.float64)


worst = 0.0
for t_ in (1, 5, 50, 300, 700, 999):
    for a_, b_, f_ in ((1, 0.4, 0.8), (-1, 0.9, 0.6), (1, -1.2, -0.9)):
        mean, variance = q_posterior(process, scalar(a_), scalar(b_), torch.tensor([t_]), scalar(f_))
        m, v, *_ = bayes(t_, a_, b_, f_)
        worst = max(worst, abs(mean - m).item(), abs(variance - v).item())
print(f"largest difference to Bayes' rule: {worst:.1e}")
assert worst < 1e-9

# %% [markdown]
# And the printed one? Here is the density in the middle of the chain with both means.

# %%
t_ = 300
m, v, z, weight = bayes(t_, 1.0, 0.4, 0.8)
ours, _ = q_posterior(process, scalar(1.0), scalar(0.4), torch.tensor([t_]), scalar(0.8))
printed, _ = q_posterior_printed(process, scalar(1.0), scalar(0.4), torch.tensor([t_]), scalar(0.8))
fig, axis = plt.subplots(figsize=(5, 2.4), layout="constrained")
axis.plot(z, weight / (z[1] - z[0]), "k", label="Bayes' rule")
axis.axvline(ours.item(), color="tab:blue", ls="--", label=f"exact mean {ours.item():.3f}")
axis.axvline(printed.item(), color="crimson", label=f"Eq. (6): {printed.item():.3f}")
axis.set(xlim=(0, 1.5), xlabel="$x_{t-1}$"); axis.legend()
print(f"Eq. (6) misses by {abs(printed - ours).item() / v.sqrt().item():.1f} standard deviations of the step")

# %% [markdown]
# All three densities over one line: where the walker could have been a step ago if one only knew $x_0$ and $f$ (the marginal at $t-1$), how well each place explains $x_t$ (the step), and their normalised product, the posterior. Drag $t$, or play the film: early in the chain the start dominates, late in the chain only $x_t$ counts.

# %%
def three(t, axis=None, legend=True, x_0=1.0, x_t=0.4, f=0.8):
    if axis is None:
        _, axis = plt.subplots(figsize=(5, 2.4), layout="constrained")
    _, _, z, _ = bayes(t, x_0, x_t, f, n=32_001)
    s_prev, b = process.sigmas_prev[t], process.betas[t].sqrt()
    pull = process.sigmas[t] - process.alphas[t].sqrt() * s_prev
    before = -(z - process.alphas_cumprod_prev[t].sqrt() * x_0 - s_prev * f) ** 2 / (2 * s_prev ** 2)
    step = -(x_t - process.alphas[t].sqrt() * z - pull * f) ** 2 / (2 * b ** 2)
    axis.clear()
    for log, name, style in ((before, "marginal at t − 1", "tab:orange"), (step, "step to $x_t$", "tab:green"), (before + step, "posterior", "k")):
        axis.plot(z, (log - log.max()).exp(), color=style, label=name)
    mean, _ = q_posterior(process, scalar(x_0), scalar(x_t), torch.tensor([t]), scalar(f))
    axis.axvline(mean.item(), color="tab:blue", ls="--", label="our mean"); axis.axvline(x_t, color="grey", lw=0.6)
    axis.set(xlim=(-0.6, 2.4), title=f"t = {t}", xlabel="$x_{t-1}$", yticks=[])
    if legend:
        axis.legend(fontsize=7, loc="upper right")


interact(lambda t: three(t), t=IntSlider(20, 1, 999, 1, continuous_update=False));

# %%
fig, axes = plt.subplots(1, 4, figsize=(9, 2), layout="constrained")
for axis, t in zip(axes, (2, 5, 20, 300)):
    three(t, axis, t == 2)

# %%
fig, axis = plt.subplots(figsize=(4.2, 2.2), dpi=60, layout="constrained")
movie = FuncAnimation(fig, lambda t: three(t, axis), frames=[1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 22, 30, 40, 55, 75, 100, 150, 250, 400, 650, 999], interval=200)
html = movie.to_jshtml()
plt.close(fig)
HTML(html)

# %% [markdown]
# One wrong step is not the end, since the next can correct it. But a chain of them? We give the chain a *perfect* network (it always knows $x_0$) and let 4,000 walkers go home from $\mathcal N(f, I)$, once with each posterior. Where Eq. (3) says they should be, at each time, is the dashed line.

# %%
def walk_home(posterior, n=4000):
    g = torch.Generator().manual_seed(0)
    x_0, f = torch.ones(n).double(), torch.full((n,), 0.8).double()
    x, path = process.prior_sample(f, torch.randn(n, generator=g).double()), []
    for t in reversed(range(process.timesteps)):
        mean, variance = posterior(process, x_0, x, torch.tensor([t]), f)
        x = mean + variance.sqrt() * torch.randn(n, generator=g).double()
        path.append(x.mean().item())
    return path[::-1]


paths = {p.__name__: walk_home(p) for p in (q_posterior, q_posterior_printed)}
wanted = process.alphas_cumprod_prev.sqrt() + 0.8 * process.sigmas_prev
fig, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
axis.plot(paths["q_posterior"], color="tab:blue", label="exact"); axis.plot(paths["q_posterior_printed"], color="crimson", label="Eq. (6) as printed")
axis.plot(wanted, "k--", lw=1, label="Eq. (3)"); axis.set(xlabel="t (the walk goes left)", ylabel="mean of the walkers"); axis.set_yscale("symlog"); axis.legend()
gap = max(abs(a - b) for a, b in zip(paths["q_posterior"], wanted.tolist()))
print(f"largest gap to Eq. (3): exact {gap:.3f}; printed {max(abs(a - b) for a, b in zip(paths['q_posterior_printed'], wanted.tolist())):.1f}")
assert gap < 4 / 4000 ** 0.5 < 10 < max(paths["q_posterior_printed"])

# %% [markdown]
# The printed posterior pays the whole shift at every step, and the walkers end up far out, where no network was ever trained. The exact one keeps to the road.
#
# With $f = 0$ the posterior must be that of a public DDPM, mean and variance. (Its tables are float32, where $1 - \bar\alpha_1$ has three good digits; we lend it our float64 table, so that the formulas are compared and not the rounding.)

# %%
from diffusers import DDPMScheduler

# %%
public = DDPMScheduler(beta_schedule="linear", prediction_type="sample", clip_sample=False, variance_type="fixed_small")
public.betas, public.alphas, public.alphas_cumprod = process.betas, process.alphas, process.alphas_cumprod
x_0, x_t = (torch.randn(1, 1, 8, 4, generator=g).double() for _ in range(2))
for t_ in (1, 250, 999):
    mean, variance = q_posterior(process, x_0, x_t, torch.tensor([t_]), torch.zeros_like(x_t))
    noise = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(1), dtype=x_t.dtype)
    theirs = public.step(x_0, t_, x_t, generator=torch.Generator().manual_seed(1)).prev_sample
    torch.testing.assert_close(mean + variance.sqrt() * noise, theirs, atol=1e-9, rtol=1e-9)

# %% [markdown]
# ## 4 · What should the network say?
#
# Whoever knows $x_t$, $f$ and one of three things knows the other two: the noise $\varepsilon$, the mask $x_0$, or the *velocity* (Salimans and Ho 2022), which in $y$ is
#
# $$v = \sqrt{\bar\alpha_t}\,\varepsilon - s_t\,x_0 .$$
#
# From $y_t = \sqrt{\bar\alpha_t}\,x_0 + s_t\,\varepsilon$ follow $x_0 = (y_t - s_t\,\varepsilon)/\sqrt{\bar\alpha_t}$ and $x_0 = \sqrt{\bar\alpha_t}\,y_t - s_t\,v$.

# %%
#| export
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


def _check(prediction_type: str) -> None:
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, not {prediction_type!r}")


def _roots(process: ShiftedDiffusion, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    "sqrt(abar_t) and s_t."
    return (process.coefficient(process.alphas_cumprod.sqrt(), t, like),
            process.coefficient(process.sigmas, t, like))


def predict_x_0(
    process: ShiftedDiffusion,
    x_t: Tensor,  # (B, ...)
    t: Tensor,  # int64 (B,)
    output: Tensor,  # what the network said, (B, ...)
    prior: Tensor | None = None,
    prediction_type: str = "epsilon",  # "epsilon", "sample" (x_0) or "v_prediction"
) -> Tensor:  # x_0
    "The mask that the network's output stands for."
    _check(prediction_type)
    if prediction_type == "sample":
        return output
    root, s = _roots(process, t, x_t)
    y = unshift(process, x_t, t, prior)
    return (y - s * output) / root if prediction_type == "epsilon" else root * y - s * output


def predict_noise(
    process: ShiftedDiffusion,
    x_t: Tensor,  # (B, ...)
    t: Tensor,  # int64 (B,)
    output: Tensor,  # what the network said
    prior: Tensor | None = None,
    prediction_type: str = "epsilon",
) -> Tensor:  # epsilon
    "The noise that the network's output stands for."
    _check(prediction_type)
    if prediction_type == "epsilon":
        return output
    root, s = _roots(process, t, x_t)
    y = unshift(process, x_t, t, prior)
    return (y - root * output) / s if prediction_type == "sample" else s * y + root * output


def v_target(
    process: ShiftedDiffusion,
    x_0: Tensor,
    t: Tensor,
    noise: Tensor,
) -> Tensor:  # v
    "sqrt(abar) noise - s x_0 (Salimans and Ho 2022), in the coordinate without shift."
    root, s = _roots(process, t, x_0)
    return root * noise - s * x_0


def training_target(
    process: ShiftedDiffusion,
    x_0: Tensor,  # mask in [-1, 1], (B, ...)
    t: Tensor,
    noise: Tensor,  # the noise that made x_t
    prediction_type: str = "epsilon",
) -> Tensor:
    "What a network of that prediction type should say; Eq. (8) is \"epsilon\"."
    _check(prediction_type)
    return {"epsilon": lambda: noise, "sample": lambda: x_0,
            "v_prediction": lambda: v_target(process, x_0, t, noise)}[prediction_type]()


# %% [markdown]
# Round trips, all three ways, with a prior, from the quietest time to the loudest:

# %%
x_0, noise, f = (torch.randn(5, 1, 6, 4, generator=g).double() for _ in range(3))
t = torch.tensor([0, 10, 300, 700, 999])
x_t = process.q_sample(x_0, t, f, noise)
for kind in PREDICTION_TYPES:
    said = training_target(process, x_0, t, noise, kind)
    torch.testing.assert_close(predict_x_0(process, x_t, t, said, f, kind), x_0, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(predict_noise(process, x_t, t, said, f, kind), noise, atol=1e-9, rtol=1e-9)
torch.testing.assert_close(v_target(process, x_0, t, noise), public.get_velocity(x_0, noise, t))

# %% [markdown]
# They are the same in exact arithmetic. They are not the same to a network that errs a little. Let each output be wrong by 0.05 and see what that does to the mask:

# %%
times = torch.arange(1000)
big = torch.zeros(1000, 1).double()
fig, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
for kind in PREDICTION_TYPES:
    wrong = predict_x_0(process, big, times, big + 0.05, big, kind) - predict_x_0(process, big, times, big, big, kind)
    axis.semilogy(times, wrong.abs()[:, 0], label=kind)
axis.set(xlabel="t", ylabel="error of the mask"); axis.legend()
amplify = (process.sigmas / process.alphas_cumprod.sqrt())[-1]
print(f"an error of the noise is multiplied by {amplify:.0f} at the loudest time")
assert 150 < amplify < 170

# %% [markdown]
# At the start of sampling an error in $\varepsilon$ is multiplied by 157. That is harmless in a photograph generator that takes a thousand steps, and ruinous for a segmenter that wants to take one. A mask is nothing but $-1$ and $1$; a network can say it outright. So outside the profile `paper` our networks predict $x_0$ (`sample`); Eq. (8), the noise, is one word away, and [13](13_paper_checked.ipynb) compares them.
#
# What one step from the loudest time makes of a spine, if the output is wrong by 0.05 per pixel:

# %%
film = draw_phantom(3)
mask = torch.from_numpy(landmarks_to_mask(film.landmarks / 3, 192, 64)).double()[None, None]
x_0, last = 2 * mask - 1, torch.tensor([999])
noise, error = (torch.randn(x_0.shape, generator=g).double() for _ in range(2))
x_T = process.q_sample(x_0, last, 0.5 * x_0, noise)
shown = [predict_x_0(process, x_T, last, training_target(process, x_0, last, noise, k) + 0.05 * error, 0.5 * x_0, k) for k in PREDICTION_TYPES]
fig, axes = plt.subplots(1, 4, figsize=(4.4, 3.2), layout="constrained")
for axis, picture, title in zip(axes, [x_T, *shown], ["$x_T$", *PREDICTION_TYPES]):
    axis.imshow(picture[0, 0], cmap="magma", vmin=-2, vmax=2); axis.set_axis_off(); axis.set_title(title, fontsize=8)
assert (shown[0] - x_0).abs().mean() > 4 > 0.1 > (shown[1] - x_0).abs().mean()

# %% [markdown]
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | prior in the posterior | $s_t\,f$ | $(s_{t-1} - B_t s_t)\,f$ | Bayes' rule |
# | ancestral step, Eq. (7) | leaves the shift out | takes it off, steps, puts the next one on | otherwise $x_t$ leaves its own marginal |
# | prediction | $\varepsilon$, Eq. (8) | $x_0$; $\varepsilon$ in `paper` | an error of $\varepsilon$ is multiplied by up to 157 |
#
# ## Exercises
#
# **1 · Predict.** What is the variance of the posterior at $t = 0$, and what does that mean for the last step?
#
# <details><summary>Answer</summary>
#
# Zero, because $\bar\alpha_{-1} = 1$. The last step is not random: it says what the network believes $x_0$ to be. There $A = 1$ and $B = C = 0$.
#
# </details>

# %%
k = posterior_coefficients(process)
assert k.variance[0] == 0 and abs(k.x_0[0] - 1) < 1e-12 and k.x_t[0] == k.prior[0] == 0

# %% [markdown]
# **2 · Change.** Use $f = x_0$, a perfect prior. Does the posterior then know where to go without looking at $x_t$?
#
# <details><summary>Answer</summary>
#
# No: $B_t$ does not depend on $f$. But $A_t + C_t$ now multiplies the truth, and $A_t + B_t(\sqrt{\bar\alpha_t} + s_t) + C_t = \sqrt{\bar\alpha_{t-1}} + s_{t-1}$, so the mean stays on the marginal.
#
# </details>

# %%
left = k.x_0 + k.x_t * (process.alphas_cumprod.sqrt() + process.sigmas) + k.prior
torch.testing.assert_close(left, process.alphas_cumprod_prev.sqrt() + process.sigmas_prev)

# %% [markdown]
# **3 · Implement.** Write the ancestral step of Eq. (7) for a network that predicts noise, with the shift put right, and show that it equals `q_posterior` fed with `predict_x_0`:
#
# $$x_{t-1} = \frac{1}{\sqrt{\alpha_t}}\Bigl(x_t - s_t f - \frac{\beta_t}{s_t}\,\hat\varepsilon\Bigr) + s_{t-1} f + \sigma_t z .$$
#
# <details><summary>Answer</summary>
#
# See the cell. The two are one formula: insert $\hat x_0 = (y_t - s_t\hat\varepsilon)/\sqrt{\bar\alpha_t}$ into $A_t \hat x_0 + B_t y_t$ and sort.
#
# </details>

# %%
def step_of_eq_7(x_t, t, eps, f):
    beta, alpha, s, s_prev = (process.coefficient(v, t, x_t) for v in (process.betas, process.alphas, process.sigmas, process.sigmas_prev))
    return (x_t - s * f - beta / s * eps) / alpha.sqrt() + s_prev * f


x_t, eps, f = (torch.randn(4, 1, 3, 3, generator=g).double() for _ in range(3))
t = torch.tensor([1, 40, 400, 999])
mean, _ = q_posterior(process, predict_x_0(process, x_t, t, eps, f), x_t, t, f)
torch.testing.assert_close(step_of_eq_7(x_t, t, eps, f), mean, atol=1e-9, rtol=1e-9)

# %% [markdown]
# Next: [06 · U-Nets](06_unet.ipynb), the networks that do the guessing.
