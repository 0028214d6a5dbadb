# %% [markdown]
# # 07 · The posterior
# > The same road backwards: one step of it, exactly, and three ways to say what a network predicts

# %% [markdown]
# You will derive $q(x_{t-1} \mid x_t, x_0, f)$, the *posterior* of one step back, line by line; check each line against Bayes' rule done by brute force; see where the printed Eq. (6) goes wrong and by how much; and turn noise into masks into velocities and back. No network yet. Half a minute on a laptop, no GPU.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/07_posterior.ipynb)

# %%
#| default_exp diffusion.posterior

# %%
#| export
from typing import NamedTuple

from torch import Tensor

from verdiff.diffusion.forward import ShiftedDiffusion

# %%
import math

import matplotlib.pyplot as plt
import torch
from IPython.display import HTML
from diffusers import DDPMScheduler
from ipywidgets import IntSlider, interact
from matplotlib.animation import FuncAnimation
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.landmarks import landmarks_to_mask
from verdiff.data.phantoms import draw_phantom
from verdiff.diffusion.forward import linear_schedule

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 82})  # noise does not compress: small pages
plt.rcParams["animation.frame_format"] = "jpeg"
process = ShiftedDiffusion(linear_schedule())
g = torch.Generator().manual_seed(35)


# %% [markdown]
# ## 1 · Take the shift off
#
# Page [06](06_forward.ipynb) ended with a coordinate in which the process is plain DDPM: $y_t = x_t - s_t f$. Two functions go there and back.

# %%
#| exports
def unshift(
    process: ShiftedDiffusion,
    x_t: Tensor,  # (B, ...)
    t: Tensor,  # int64 (B,), 0 to T-1
    prior: Tensor | None,  # f, of the shape of x_t
) -> Tensor:  # y_t, which is plain DDPM
    "y_t = x_t - s_t f."
    return x_t - process.coefficient(process.sigmas, t, x_t) * process.prior_or_zero(prior, x_t)


# %% [markdown]
# The way back knows one more time, $t = -1$: the end, where $s_{-1} = 0$ and nothing is left to put on.

# %%
#| exports
def reshift(
    process: ShiftedDiffusion,
    y_t: Tensor,  # (B, ...)
    t: Tensor,  # int64 (B,), -1 to T-1; -1 is the end, where nothing is added
    prior: Tensor | None,  # f, of the shape of y_t
) -> Tensor:  # x_t
    "x_t = y_t + s_t f."
    s = process.coefficient(process.sigmas, t.clamp(min=0), y_t)
    s = s * (t >= 0).to(s).view(-1, *[1] * (y_t.ndim - 1))
    return y_t + s * process.prior_or_zero(prior, y_t)


# %%
x, f = (torch.randn(4, 1, 6, 5, generator=g).double() for _ in range(2))
t = torch.tensor([0, 7, 500, 999])
torch.testing.assert_close(reshift(process, unshift(process, x, t, f), t, f), x)
assert torch.equal(reshift(process, x, torch.full((4,), -1), f), x)

# %% [markdown]
# Five walkers, each one pixel, all from $x_0 = -1$ and with the same noise, but each with another prior. In $x$ they part. In $y$ there is only one walker:

# %%
guesses = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]).double()
walk = [torch.full((5,), -1.0).double()]
for t in range(1000):
    walk.append(
        process.q_step(
            walk[-1], torch.tensor([t]), guesses, torch.randn(1, generator=g).double().expand(5)
        )
    )
walk = torch.stack(walk[1:])  # t f
plain = torch.stack([unshift(process, x, torch.tensor([t]), guesses) for t, x in enumerate(walk)])
fig, axes = plt.subplots(1, 2, figsize=(7, 2.5), sharey=True, layout="constrained")
for axis, paths, title in zip(
    axes, (walk, plain), ("$x_t$: shifted", "$y_t = x_t - s_t f$: plain DDPM")
):
    axis.plot(paths, lw=0.8, label=[f"f = {v:g}" for v in guesses])
    axis.set(xlabel="t", title=title)
axes[1].legend(fontsize=7, loc="upper left")
assert (plain - plain[:, :1]).abs().max() < 1e-12

# %% [markdown]
# So everything that is known of DDPM can be used in $y$ and carried back to $x$; first, the step backwards.
#
# ## 2 · One step back, line by line
#
# Given where the walker is ($y_t$) and where it started ($x_0$), where was it one step ago? Call the unknown place $z = y_{t-1}$. Bayes' rule says
#
# $$q(z \mid y_t, x_0) \;\propto\; \underbrace{q(y_t \mid z)}_{\text{the step}}\;\underbrace{q(z \mid x_0)}_{\text{the marginal}} .$$
#
# (A step depends on where it starts, $z$, and not on $x_0$.) Both factors are known from page 06, and both are Gaussian. Their logarithms are parabolas in $z$, so their product is a Gaussian again. **Line 1**, the sum of the two logarithms up to a constant, for $t \ge 1$ ($t = 0$ is exercise 1):
#
# $$\ell(z) = -\frac{(y_t - \sqrt{\alpha_t}\,z)^2}{2\beta_t} - \frac{(z - \sqrt{\bar\alpha_{t-1}}\,x_0)^2}{2 (1-\bar\alpha_{t-1})} .$$
#
# We follow every line with numbers, on a grid of candidates $z$, for one pixel at $t = 300$:

# %%
k, x_0, y = 300, 1.0, 0.4
a, b = process.alphas[k], process.betas[k]
bar, bar_prev = process.alphas_cumprod[k], process.alphas_cumprod_prev[k]
z = torch.linspace(-8, 8, 200_001, dtype=torch.float64)
line1 = -(y - a.sqrt() * z) ** 2 / (2 * b) - (z - bar_prev.sqrt() * x_0) ** 2 / (2 * (1 - bar_prev))


# %% [markdown]
# **Line 2**: multiply out and sort by powers of $z$. What does not contain $z$ only scales the density; we leave it out.
#
# $$\ell(z) = -\frac{P}{2}\,z^2 + Q\,z + \dots, \qquad P = \frac{\alpha_t}{\beta_t} + \frac{1}{1-\bar\alpha_{t-1}}, \qquad Q = \frac{\sqrt{\alpha_t}}{\beta_t}\,y_t + \frac{\sqrt{\bar\alpha_{t-1}}}{1-\bar\alpha_{t-1}}\,x_0 .$$
#
# So on the grid the difference of line 1 and line 2 must not depend on $z$.

# %%
def same_up_to_a_constant(one, two):
    gap = one - two
    assert (gap - gap.mean()).abs().max() < 1e-9 * one.abs().max()


P = a / b + 1 / (1 - bar_prev)
Q = a.sqrt() / b * y + bar_prev.sqrt() / (1 - bar_prev) * x_0
line2 = -P / 2 * z ** 2 + Q * z
same_up_to_a_constant(line1, line2)

# %% [markdown]
# **Line 3**: complete the square. $-\frac P2 z^2 + Qz = -\frac P2\bigl(z - \frac QP\bigr)^2 + \frac{Q^2}{2P}$, and the last term is a constant again. That is a Gaussian with mean $Q/P$ and variance $1/P$.

# %%
line3 = -P / 2 * (z - Q / P) ** 2
same_up_to_a_constant(line2, line3)

# %% [markdown]
# **Line 4**: the variance in the paper's form. On a common denominator $P = \dfrac{\alpha_t(1-\bar\alpha_{t-1}) + \beta_t}{\beta_t(1-\bar\alpha_{t-1})}$, and the numerator is $\alpha_t - \bar\alpha_t + 1 - \alpha_t = 1 - \bar\alpha_t$. So
#
# $$\sigma_t^2 = \frac1P = \frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\,\beta_t .$$
#
# (Beware: $\sigma_t$ is the paper's name; in the code it is the root of `variance`, while `sigmas` holds $s_t$.)

# %%
torch.testing.assert_close(a * (1 - bar_prev) + b, 1 - bar)
variance = (1 - bar_prev) / (1 - bar) * b
torch.testing.assert_close(1 / P, variance)

# %% [markdown]
# **Line 5**: the mean, $Q\,\sigma_t^2$, sorted by $x_0$ and $y_t$:
#
# $$\mu = A_t\,x_0 + B_t\,y_t, \qquad A_t = \frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1-\bar\alpha_t}, \qquad B_t = \frac{\sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})}{1-\bar\alpha_t} .$$

# %%
A, B = bar_prev.sqrt() * b / (1 - bar), a.sqrt() * (1 - bar_prev) / (1 - bar)
torch.testing.assert_close(Q / P, A * x_0 + B * y)
weight = torch.softmax(line1, 0)  # Bayes' rule by brute force: a sum over the grid
print(f"mean: derived {(A * x_0 + B * y).item():.9f}, on the grid {(weight * z).sum().item():.9f}")
torch.testing.assert_close((weight * z).sum(), A * x_0 + B * y, atol=1e-9, rtol=0)
torch.testing.assert_close((weight * (z - Q / P) ** 2).sum(), variance, atol=1e-9, rtol=0)


# %% [markdown]
# That was DDPM's own posterior (Ho et al. 2020, Eq. 7). **Line 6**, the only new one: put the shifts back, $y_t = x_t - s_t f$ and $x_{t-1} = y_{t-1} + s_{t-1} f$.
#
# $$x_{t-1} \sim \mathcal N\bigl(A_t\,x_0 + B_t\,x_t + C_t\,f,\; \sigma_t^2 I\bigr), \qquad C_t = s_{t-1} - B_t\,s_t .$$
#
# The paper's Eq. (6) has the same $A$, $B$ and $\sigma^2$, and prints $C_t = s_t$.

# %%
#| exports
class PosteriorCoefficients(NamedTuple):
    "Mean A x_0 + B x_t + C f, and the variance; each float64 (T,)."

    x_0: Tensor  # A
    x_t: Tensor  # B
    prior: Tensor  # C
    variance: Tensor  # sigma^2


def posterior_coefficients(process: ShiftedDiffusion) -> PosteriorCoefficients:
    "Of the exact posterior q(x_{t-1} | x_t, x_0, f): Eq. (6), its coefficient of f corrected."
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
assert isinstance(exact, PosteriorCoefficients)
print({name: f"{row[k].item():.5f}" for name, row in exact._asdict().items()}, "at t =", k)
torch.testing.assert_close(
    torch.stack([row[k] for row in exact]),
    torch.stack([A, B, process.sigmas_prev[k] - B * process.sigmas[k], variance]),
)

# %% [markdown]
# How different are the two weights of the prior?

# %%
fig, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
axis.semilogy(exact.prior[1:], label="exact $C_t = s_{t-1} - B_t s_t$")
axis.semilogy(
    printed_prior_coefficient(process)[1:], color="crimson", label="Eq. (6) as printed: $s_t$"
)
axis.set(xlabel="t", ylabel="weight of the prior in one step")
axis.legend()
print(
    f"exact: {exact.prior.min():.2e} to {exact.prior.max():.4f}; printed: "
    f"{process.sigmas.min():.2f} to {process.sigmas.max():.2f}"
)
assert (
    exact.prior[0] == 0
    and 0 <= exact.prior.min()
    and exact.prior.max() < 0.0101
    and process.sigmas.max() > 0.99
)


# %% [markdown]
# The exact weight is tiny: $B_t x_t$ already holds most of the shift, $B_t s_t f$, and one step adds only what that lacks of $s_{t-1} f$. The printed one pays the whole shift again at every step. It is the weight that Eq. (5) gives the prior in the marginal, not in a step.

# %%
#| exports
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
    "The exact posterior q(x_{t-1} | x_t, x_0, f): Eq. (6), its coefficient of f corrected."
    return _mean(process, x_0, x_t, t, prior, posterior_coefficients(process).prior)


def q_posterior_printed(
    process: ShiftedDiffusion,
    x_0: Tensor,  # mask in [-1, 1], (B, ...)
    x_t: Tensor,  # the same shape
    t: Tensor,  # int64 (B,)
    prior: Tensor | None = None,  # f, the same shape
) -> tuple[Tensor, Tensor]:  # mean (B, ...), variance (B, 1, ...)
    "Eq. (6) as printed."
    return _mean(process, x_0, x_t, t, prior, printed_prior_coefficient(process))


# %% [markdown]
# ## 3 · Ask Bayes
#
# Derivations can err; Bayes' rule cannot. The posterior density of $x_{t-1}$ is proportional to $q(x_t \mid x_{t-1}, f)\; q(x_{t-1} \mid x_0, f)$, this time in $x$, with the shift. We multiply both factors on a fine grid and compute mean and variance as sums.

# %%
def logs(t, x_0, x_t, f, z):
    "Logarithms of the marginal at t - 1 and of the step to x_t, at the candidates z."
    s_prev, a = process.sigmas_prev[t], process.alphas[t].sqrt()
    before = -((z - process.alphas_cumprod_prev[t].sqrt() * x_0 - s_prev * f) ** 2) / (
        2 * s_prev**2
    )
    step = -((x_t - a * z - (process.sigmas[t] - a * s_prev) * f) ** 2) / (2 * process.betas[t])
    return before, step


def bayes(t, x_0, x_t, f):
    z = torch.linspace(-8, 8, 200_001, dtype=torch.float64)  # candidates for x_{t-1}
    weight = torch.softmax(sum(logs(t, x_0, x_t, f, z)), 0)
    mean = (weight * z).sum()
    return mean, (weight * (z - mean) ** 2).sum()


def scalar(v):
    return torch.full((1, 1), v, dtype=torch.float64)


# %%
worst = 0.0
for t_ in (1, 5, 50, 300, 700, 999):
    for a_, b_, f_ in ((1, 0.4, 0.8), (-1, 0.9, 0.6), (1, -1.2, -0.9)):
        mean, variance = q_posterior(
            process, scalar(a_), scalar(b_), torch.tensor([t_]), scalar(f_)
        )
        m, v = bayes(t_, a_, b_, f_)
        worst = max(worst, abs(mean - m).item(), abs(variance - v).item())
print(f"largest difference to Bayes' rule: {worst:.1e}")
assert worst < 1e-9

# %% [markdown]
# All three densities: where the walker could have been a step ago if one only knew $x_0$ and $f$ (the marginal at $t-1$), how well each place explains $x_t$ (the step), and their product, the posterior, each scaled to height one. The dashed line is our mean, the red one Eq. (6) as printed; $x_0 = 1$, $x_t = 0.4$ and $f = 0.8$ throughout.

# %%
grid = torch.linspace(-2.6, 2.6, 2601, dtype=torch.float64)


def three(t, axis=None, legend=True, x_0=1.0, x_t=0.4, f=0.8):
    axis = axis or plt.subplots(figsize=(5.5, 2.5), layout="constrained")[1]
    axis.clear()
    before, step = logs(t, x_0, x_t, f, grid)
    for log, name, colour in (
        (before, f"marginal at {t - 1}", "tab:orange"),
        (step, f"step to $x_{{{t}}}$ = {x_t}", "tab:green"),
        (before + step, "posterior", "k"),
    ):
        axis.plot(grid, (log - log.max()).exp(), color=colour, label=name)
    for how, name, colour, style in (
        (q_posterior, "our mean", "tab:blue", "--"),
        (q_posterior_printed, "mean of Eq. (6)", "crimson", "-"),
    ):
        mean, _ = how(process, scalar(x_0), scalar(x_t), torch.tensor([t]), scalar(f))
        axis.axvline(mean.item(), color=colour, ls=style, lw=1, label=name)
    axis.set(xlim=(-2.6, 2.6), title=f"t = {t}", xlabel="$x_{t-1}$", yticks=[])
    if legend:
        axis.legend(fontsize=7, loc="upper left")


three(100)


# %%
def off(how, t=100):
    "How far a mean is from Bayes', in standard deviations of the posterior."
    mean, _ = how(process, scalar(1.0), scalar(0.4), torch.tensor([t]), scalar(0.8))
    true_mean, variance = bayes(t, 1.0, 0.4, 0.8)
    return (abs(mean - true_mean) / variance.sqrt()).item()


print(
    f"at t = 100 Eq. (6) misses Bayes' mean by {off(q_posterior_printed):.1f} standard deviations "
    f"of the posterior, ours by {off(q_posterior):.0e}"
)

# %% [markdown]
# Drag $t$, or play the film: at small $t$ the start $x_0$ has a say, and pulls the posterior from the green curve towards the orange one; at large $t$ the marginal is so wide that only $x_t$ counts. The red line moves away from the posterior as $t$ grows, and then stays far off. (The four pictures show less of the axis.)

# %%
interact(lambda t: three(t), t=IntSlider(20, 1, 999, 1, continuous_update=False));

# %%
fig, axes = plt.subplots(1, 4, figsize=(9, 2), layout="constrained")
for axis, t in zip(axes, (5, 20, 100, 300)):
    three(t, axis, legend=False)
    axis.set_xlim(0.2, 1.3)

# %%
fig, axis = plt.subplots(figsize=(4.4, 2.3), dpi=58, layout="constrained")
movie = FuncAnimation(
    fig,
    lambda t: three(t, axis),
    frames=[1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 22, 30, 40, 55, 75, 100, 150, 250, 400, 650, 999],
    interval=200,
)
html = movie.to_jshtml()
plt.close(fig)
HTML(html)


# %% [markdown]
# One wrong step is not the end, since the next can correct it. But a chain of them? We give the chain a *perfect* network (it always knows $x_0$) and let 4,000 walkers go home from $\mathcal N(f, I)$, once with each posterior. Dashed is where Eq. (3) says they should be.

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
axis.plot(paths["q_posterior"], color="tab:blue", label="exact")
axis.plot(paths["q_posterior_printed"], color="crimson", label="Eq. (6) as printed")
axis.plot(wanted, "k--", lw=1, label="Eq. (3)")
axis.set(xlabel="t (the walk goes left)", ylabel="mean of the walkers")
axis.set_yscale("symlog")
axis.legend()
gap = max(abs(a - b) for a, b in zip(paths["q_posterior"], wanted.tolist()))
print(
    f"largest gap to Eq. (3): exact {gap:.3f}; printed "
    f"{max(abs(a - b) for a, b in zip(paths['q_posterior_printed'], wanted.tolist())):.1f}"
)
assert gap < 4 / 4000**0.5 < 10 < max(paths["q_posterior_printed"])

# %% [markdown]
# The exact posterior keeps to the road. The printed one pays the whole shift at every step, and the walkers spend the walk far out, where no network was ever trained. Only because this network is perfect do they come home at the end.
#
# With $f = 0$ the posterior must be that of a public DDPM, at every step of a whole chain. (The "network" is any smooth function, the noise is the same for both. The library's tables are float32, with three good digits in $1 - \bar\alpha_1$; we lend it ours in float64, so that the formulas are compared and not the rounding.)

# %%
public = DDPMScheduler(
    beta_schedule="linear", prediction_type="sample", clip_sample=False, variance_type="fixed_small"
)
public.betas = process.betas
public.alphas = process.alphas
public.alphas_cumprod = process.alphas_cumprod
ours = theirs = torch.randn(1, 1, 8, 4, generator=g).double()
for t_ in reversed(range(1000)):
    mean, variance = q_posterior(
        process, torch.tanh(ours), ours, torch.tensor([t_]), torch.zeros_like(ours)
    )
    z = torch.randn(ours.shape, generator=torch.Generator().manual_seed(t_), dtype=ours.dtype)
    ours = mean + variance.sqrt() * z
    theirs = public.step(
        torch.tanh(theirs), t_, theirs, generator=torch.Generator().manual_seed(t_)
    ).prev_sample
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
print("1000 steps back, the same at each of them")


# %% [markdown]
# ## 4 · What should the network say?
#
# Whoever knows $y_t$ and one of three things knows the other two: the noise $\varepsilon$, the mask $x_0$, or the *velocity* $v$ (Salimans and Ho 2022). Since $\bar\alpha_t + s_t^2 = 1$, there is an angle with $\sqrt{\bar\alpha_t} = \cos\varphi$ and $s_t = \sin\varphi$, and
#
# $$y_t = \cos\varphi\;x_0 + \sin\varphi\;\varepsilon, \qquad v_t = \frac{d y_t}{d\varphi} = \cos\varphi\;\varepsilon - \sin\varphi\;x_0 .$$
#
# Draw $x_0$ to the right and $\varepsilon$ upwards: $y_t$ walks on a circle from the mask to the noise, and $v_t$ is its direction of travel (drawn at half its length). The dotted lines end at the two parts of $y_t$, $\sqrt{\bar\alpha_t}\,x_0$ and $s_t\,\varepsilon$.

# %%
def triangle(t, axis=None):
    axis = axis or plt.subplots(figsize=(3, 3), layout="constrained")[1]
    axis.clear()
    c, s = process.alphas_cumprod[t].sqrt().item(), process.sigmas[t].item()
    arc = torch.linspace(0, math.pi / 2, 100)
    axis.plot(arc.cos(), arc.sin(), color="0.8")
    arrows = {
        "$x_0$": ((0, 0), (1, 0), "tab:orange", (0.9, -0.12)),
        "$ε$": ((0, 0), (0, 1), "tab:green", (-0.1, 0.8)),
        "$y_t$": ((0, 0), (c, s), "k", (1.12 * c + 0.05, 1.12 * s)),
        "$v_t$ / 2": (
            (c, s),
            (c - s / 2, s + c / 2),
            "tab:purple",
            (c - 0.62 * s, s + 0.62 * c + 0.06),
        ),
    }
    for name, (tail, tip, colour, place) in arrows.items():
        axis.annotate(
            "",
            tip,
            tail,
            arrowprops={"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0},
        )
        axis.text(*place, name, color=colour, ha="center", va="center")
    axis.plot([c, c], [0, s], "k:", lw=0.8)
    axis.plot([0, c], [s, s], "k:", lw=0.8)
    axis.set(xlim=(-0.6, 1.25), ylim=(-0.15, 1.55), aspect="equal", title=f"t = {t}")
    axis.set_axis_off()


interact(lambda t: triangle(t), t=IntSlider(250, 0, 999, 1, continuous_update=False));

# %%
fig, axes = plt.subplots(1, 4, figsize=(9, 2.5), layout="constrained")
for axis, t in zip(axes, (50, 200, 350, 700)):
    triangle(t, axis)

# %% [markdown]
# Reading the picture backwards: the mask is $y_t$ minus the noise, rescaled; or $y_t$ turned back by the angle:
#
# $$x_0 = \frac{y_t - s_t\,\varepsilon}{\sqrt{\bar\alpha_t}} = \sqrt{\bar\alpha_t}\,y_t - s_t\,v_t .$$

# %%
#| exports
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


def _check(prediction_type: str) -> None:
    if prediction_type not in PREDICTION_TYPES:
        allowed = ", ".join(PREDICTION_TYPES)
        raise ValueError(f"prediction_type must be one of {allowed}, not {prediction_type!r}")


def _roots(process: ShiftedDiffusion, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    "sqrt(abar_t) and s_t."
    return (process.coefficient(process.alphas_cumprod.sqrt(), t, like),
            process.coefficient(process.sigmas, t, like))


# %%
root, s = _roots(process, torch.tensor([0, 500, 999]), torch.zeros(3, 1).double())
torch.testing.assert_close(root ** 2 + s ** 2, torch.ones(3, 1).double())
print("three languages:", PREDICTION_TYPES)


# %%
#| exports
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


# %% [markdown]
# Make $x_t$ from a known mask and a known noise, tell the function the noise, and the mask must come back. The noise is found in the same way:

# %%
x_0, noise, f = (torch.randn(5, 1, 6, 4, generator=g).double() for _ in range(3))
t = torch.tensor([0, 10, 300, 700, 999])
x_t = process.q_sample(x_0, t, f, noise)
torch.testing.assert_close(predict_x_0(process, x_t, t, noise, f), x_0, atol=1e-9, rtol=1e-9)


# %%
#| exports
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


# %%
torch.testing.assert_close(
    predict_noise(process, x_t, t, x_0, f, "sample"), noise, atol=1e-9, rtol=1e-9
)


# %% [markdown]
# And what should each kind of network be *trained* to say? The paper's loss, Eq. (8), asks for the noise: `epsilon`.

# %%
#| exports
def v_target(
    process: ShiftedDiffusion,
    x_0: Tensor,  # mask in [-1, 1], (B, ...)
    t: Tensor,  # int64 (B,)
    noise: Tensor,  # of x_t, the same shape as x_0
) -> Tensor:  # v, (B, ...)
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
    if prediction_type == "v_prediction":
        return v_target(process, x_0, t, noise)
    return noise if prediction_type == "epsilon" else x_0


# %% [markdown]
# Round trips, all three ways, with a prior, from the quietest time to the loudest; and the velocity against a public library:

# %%
for kind in PREDICTION_TYPES:
    said = training_target(process, x_0, t, noise, kind)
    torch.testing.assert_close(
        predict_x_0(process, x_t, t, said, f, kind), x_0, atol=1e-9, rtol=1e-9
    )
    torch.testing.assert_close(
        predict_noise(process, x_t, t, said, f, kind), noise, atol=1e-9, rtol=1e-9
    )
torch.testing.assert_close(v_target(process, x_0, t, noise), public.get_velocity(x_0, noise, t))

# %% [markdown]
# In exact arithmetic the three are the same; for a network that errs a little they are not. Let each output be wrong by 0.05 and see what that does to the mask:

# %%
times = torch.arange(1000)
zeros = torch.zeros(1000, 1).double()  # x_t, the prior, and a faultless output, at every time
fig, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
for kind, style in zip(PREDICTION_TYPES, ("-", "-", "--")):
    right = predict_x_0(process, zeros, times, zeros, zeros, kind)
    wrong = predict_x_0(process, zeros, times, zeros + 0.05, zeros, kind)
    axis.semilogy(times, (wrong - right).abs()[:, 0], style, label=kind)
axis.set(xlabel="t", ylabel="error of the mask")
axis.legend()
amplify = (process.sigmas / process.alphas_cumprod.sqrt())[-1]
print(f"an error of the noise is multiplied by {amplify:.0f} at the loudest time")
assert 150 < amplify < 170

# %% [markdown]
# At quiet times (small $t$, little noise) the noise is safer to say than the mask. But at the start of sampling an error in $\varepsilon$ is multiplied by more than a hundred: $y_t$ is almost at the top of the circle, and of the mask only its small lean to the right is left. Later steps can mend that in a chain of a thousand; it is ruinous for a segmenter that wants to take one. The velocity is safe at both ends, if it is as easy to say. But it contains noise, and a mask is nothing but $-1$ and $1$; a network can say it outright. So outside the profile `paper` our networks predict $x_0$ (`sample`); Eq. (8), the noise, is one word away in the settings, and [17](17_paper_checked.ipynb) compares them.
#
# One step from the loudest time, with $f = x_0/2$, if the output is wrong by about 0.05 per pixel:

# %%
film = draw_phantom(3)
mask = torch.from_numpy(landmarks_to_mask(film.landmarks / 3, 192, 64)).double()[None, None]
x_0, last = 2 * mask - 1, torch.tensor([999])
noise, error = (torch.randn(x_0.shape, generator=g).double() for _ in range(2))
x_T = process.q_sample(x_0, last, 0.5 * x_0, noise)
shown = [
    predict_x_0(
        process,
        x_T,
        last,
        training_target(process, x_0, last, noise, k) + 0.05 * error,
        0.5 * x_0,
        k,
    )
    for k in PREDICTION_TYPES
]
fig, axes = plt.subplots(1, 4, figsize=(4.4, 3.2), layout="constrained")
for axis, picture, title in zip(axes, [x_T, *shown], ["$x_T$", *PREDICTION_TYPES]):
    axis.imshow(picture[0, 0], cmap="magma", vmin=-2, vmax=2)
    axis.set_axis_off()
    axis.set_title(title, fontsize=8)
assert (shown[0] - x_0).abs().mean() > 4 > 0.1 > (shown[1] - x_0).abs().mean()

# %% [markdown]
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | prior in the posterior | $s_t\,f$ | $(s_{t-1} - B_t s_t)\,f$ | Bayes' rule |
# | one step back with the network's noise, Eq. (7) (exercise 3) | leaves the shift out | takes it off, steps, puts the next one on | otherwise $x_t$ leaves its own marginal |
# | prediction | $\varepsilon$, Eq. (8) | $x_0$; $\varepsilon$ in `paper` | an error of $\varepsilon$ is multiplied by more than a hundred at the start |
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
# **3 · Implement.** Write the ancestral step of Eq. (7) for a network that predicts noise, with the shift put right, and show that its mean equals that of `q_posterior` fed with `predict_x_0`:
#
# $$x_{t-1} = \frac{1}{\sqrt{\alpha_t}}\Bigl(x_t - s_t f - \frac{\beta_t}{s_t}\,\hat\varepsilon\Bigr) + s_{t-1} f + \sigma_t\,\varepsilon' ,$$
#
# with $\hat\varepsilon$ the network's output and $\varepsilon'$ fresh noise.
#
# <details><summary>Answer</summary>
#
# See the cell. The two are one formula: insert $\hat x_0 = (y_t - s_t\hat\varepsilon)/\sqrt{\bar\alpha_t}$ into $A_t \hat x_0 + B_t y_t$ and sort.
#
# </details>

# %%
def step_of_eq_7(x_t, t, eps, f):
    beta, alpha, s, s_prev = (
        process.coefficient(v, t, x_t)
        for v in (process.betas, process.alphas, process.sigmas, process.sigmas_prev)
    )
    return (x_t - s * f - beta / s * eps) / alpha.sqrt() + s_prev * f


x_t, eps, f = (torch.randn(4, 1, 3, 3, generator=g).double() for _ in range(3))
t = torch.tensor([1, 40, 400, 999])
mean, _ = q_posterior(process, predict_x_0(process, x_t, t, eps, f), x_t, t, f)
torch.testing.assert_close(step_of_eq_7(x_t, t, eps, f), mean, atol=1e-9, rtol=1e-9)

# %% [markdown]
# Next: [08 · U-Nets](08_unet.ipynb), the networks that do the guessing.
