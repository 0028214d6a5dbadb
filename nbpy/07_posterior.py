# %% [markdown]
# # 07 · The posterior
# > The same road backwards: one step of it, exactly, and three ways to say what a network predicts

# %% [markdown]
# A mask drowns in noise in a thousand small steps. How does one walk back? If one knew where the walk began, one step back would have an exact answer, the *posterior* $q(x_{t-1} \mid x_t, x_0, f)$. You will derive it line by line, check each line by brute force, and see where the printed Eq. (6) goes wrong and by how much. No network yet; a minute on a laptop. Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/07_posterior.ipynb).

# %%
#| hide
import sys

from IPython import get_ipython

if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp diffusion.posterior

# %%
#| exports
#| code-fold: true
from typing import NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor

from verdiff.diffusion.forward import ShiftedDiffusion

# %%
#| code-fold: true
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
from verdiff.diffusion.forward import linear_schedule, q_step

# %%
#| code-fold: true
# noise does not compress: small pages
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 82})
plt.rcParams["animation.frame_format"] = "jpeg"
torch.set_num_threads(1)
g = torch.Generator().manual_seed(35)


# %% [markdown]
# ## 1 · Take the shift off
#
# In the coordinate $y_t = x_t - s_t f$ the process is plain DDPM ([06](06_forward.ipynb)). Two functions go there and back. The way back knows one more time, $t = -1$: the end, where nothing is left to put on.

# %%
#| exports
def unshift(
    process: ShiftedDiffusion,
    x_t: Tensor,  # (B, ...)
    t: Tensor,  # int64 (B,), 0 to T-1
    prior: Tensor | None,  # f, of the shape of x_t
) -> Tensor:  # y_t, which is plain DDPM
    "y_t = x_t - s_t f."
    s = process.coefficient(process.sigmas, t, x_t)
    return x_t - s * process.prior_or_zero(prior, x_t)


def reshift(
    process: ShiftedDiffusion,
    y_t: Tensor,  # (B, ...)
    t: Tensor,  # int64 (B,), -1 to T-1; -1 is the end: nothing is added
    prior: Tensor | None,  # f, of the shape of y_t
) -> Tensor:  # x_t
    "x_t = y_t + s_t f."
    s = process.coefficient(process.sigmas, t.clamp(min=0), y_t)
    s = s * (t >= 0).to(s).view(-1, *[1] * (y_t.ndim - 1))
    return y_t + s * process.prior_or_zero(prior, y_t)


# %%
process = ShiftedDiffusion(linear_schedule())
x, f = (torch.randn(4, 1, 6, 5, generator=g).double() for _ in range(2))
t, end = torch.tensor([0, 7, 500, 999]), torch.full((4,), -1)
y = unshift(process, x, t, f)
torch.testing.assert_close(reshift(process, y, t, f), x)
assert torch.equal(reshift(process, x, end, f), x)

# %% [markdown]
# Five walkers (pixels), all from $x_0 = -1$ and with the same noise, but each with another prior. In $x$ they part. In $y$ there is only one:

# %%
guesses = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]).double()
x, walk, plain = torch.full((5,), -1.0).double(), [], []
for t in torch.arange(1000)[:, None]:
    noise = torch.randn(1, generator=g).double().expand(5)
    x = q_step(process, x, t, guesses, noise)
    walk.append(x)
    plain.append(unshift(process, x, t, guesses))

# %%
walk, plain = torch.stack(walk), torch.stack(plain)  # t f
assert (plain - plain[:, :1]).abs().max() < 1e-12

# %%
#| code-fold: true
#| fig-alt: "Left, five random walks in x with the same wiggles, which part towards their priors between -1 and 1. Right, the same walks in y: one line."
fig, axes = plt.subplots(1, 2, figsize=(7, 2.5), sharey=True,
                         layout="constrained")
titles = "$x_t$: shifted", "$y_t = x_t - s_t f$: plain DDPM"
for axis, paths, title in zip(axes, (walk, plain), titles):
    axis.plot(paths, lw=0.8, label=[f"f = {v:g}" for v in guesses])
    axis.set(xlabel="t", title=title)
axes[1].legend(fontsize=7, loc="upper left");

# %% [markdown]
# So everything that is known of DDPM can be used in $y$ and carried back to $x$.
#
# ## 2 · One step back, line by line
#
# Given where the walker is ($y_t$) and where it started ($x_0$), where was it one step ago? Call the unknown place $z = y_{t-1}$. Bayes' rule says
#
# $$q(z \mid y_t, x_0) \;\propto\; \underbrace{q(y_t \mid z)}_{\text{the step}}\;\underbrace{q(z \mid x_0)}_{\text{the marginal}} .$$
#
# Both factors are Gaussians known from page 06. Their logarithms are parabolas in $z$, so their product is a Gaussian again. **Line 1**, the sum of the two logarithms up to a constant, for $t \ge 1$:
#
# $$\log q(z) = -\frac{(y_t - \sqrt{\alpha_t}\,z)^2}{2\beta_t} - \frac{(z - \sqrt{\bar\alpha_{t-1}}\,x_0)^2}{2 (1-\bar\alpha_{t-1})} .$$
#
# We follow every line with numbers, on a grid of candidates $z$, for one pixel at $t = 300$:

# %%
at, x_0, y = 300, 1.0, 0.4
alpha, beta = process.alphas[at], process.betas[at]
bar, bar_prev = process.alphas_cumprod[at], process.alphas_cumprod_prev[at]
z = torch.linspace(-8, 8, 200_001, dtype=torch.float64)

# %%
step = -(y - alpha.sqrt() * z) ** 2 / (2 * beta)
marginal = -(z - bar_prev.sqrt() * x_0) ** 2 / (2 * (1 - bar_prev))
line1 = step + marginal


# %% [markdown]
# **Line 2**: multiply out and sort by powers of $z$. What does not contain $z$ only scales the density; we leave it out.
#
# $$\log q(z) = -\frac{P}{2}\,z^2 + Q\,z + \dots, \qquad P = \frac{\alpha_t}{\beta_t} + \frac{1}{1-\bar\alpha_{t-1}}, \qquad Q = \frac{\sqrt{\alpha_t}}{\beta_t}\,y_t + \frac{\sqrt{\bar\alpha_{t-1}}}{1-\bar\alpha_{t-1}}\,x_0 .$$
#
# On the grid the two lines may differ by a constant only.

# %%
def same_up_to_a_constant(one, two):
    gap = one - two
    assert (gap - gap.mean()).abs().max() < 1e-9 * one.abs().max()


P = alpha / beta + 1 / (1 - bar_prev)
Q = alpha.sqrt() / beta * y + bar_prev.sqrt() / (1 - bar_prev) * x_0
same_up_to_a_constant(line1, -P / 2 * z ** 2 + Q * z)

# %% [markdown]
# **Line 3**: complete the square. $-\frac P2 z^2 + Qz = -\frac P2\bigl(z - \frac QP\bigr)^2 + \frac{Q^2}{2P}$, and the last term is a constant again. That is a Gaussian with mean $Q/P$ and variance $1/P$.

# %%
same_up_to_a_constant(line1, -P / 2 * (z - Q / P) ** 2)

# %% [markdown]
# **Line 4**: the variance in the paper's form. On a common denominator $P = \dfrac{\alpha_t(1-\bar\alpha_{t-1}) + \beta_t}{\beta_t(1-\bar\alpha_{t-1})}$, and the numerator is $\alpha_t - \bar\alpha_t + 1 - \alpha_t = 1 - \bar\alpha_t$. So
#
# $$\sigma_t^2 = \frac1P = \frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\,\beta_t .$$
#
# (Beware: $\sigma_t$ is the paper's name; in the code it is the root of `variance`, while `sigmas` holds $s_t$.)

# %%
variance = (1 - bar_prev) / (1 - bar) * beta
torch.testing.assert_close(1 / P, variance)

# %% [markdown]
# **Line 5**: the mean, $Q\,\sigma_t^2$, sorted by $x_0$ and $y_t$:
#
# $$\mu = A_t\,x_0 + B_t\,y_t, \qquad A_t = \frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1-\bar\alpha_t}, \qquad B_t = \frac{\sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})}{1-\bar\alpha_t} .$$

# %%
A = bar_prev.sqrt() * beta / (1 - bar)
B = alpha.sqrt() * (1 - bar_prev) / (1 - bar)
torch.testing.assert_close(Q / P, A * x_0 + B * y)

# %%
weight = torch.softmax(line1, 0)  # Bayes' rule by brute force: a sum
mean = (weight * z).sum()
print(f"mean: derived {A * x_0 + B * y:.9f}, on the grid {mean:.9f}")
assert abs(mean - (A * x_0 + B * y)) < 1e-9
assert abs((weight * (z - mean) ** 2).sum() - variance) < 1e-9


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


_KNOWN = WeakKeyDictionary()  # a process: its coefficients


def posterior_coefficients(process: ShiftedDiffusion) -> PosteriorCoefficients:
    "Of q(x_{t-1} | x_t, x_0, f), Eq. (6) with its C corrected; computed once."
    if process not in _KNOWN:
        bar, bar_prev = process.alphas_cumprod, process.alphas_cumprod_prev
        a = bar_prev.sqrt() * process.betas / (1 - bar)
        b = process.alphas.sqrt() * (1 - bar_prev) / (1 - bar)
        c = process.sigmas_prev - b * process.sigmas
        variance = (1 - bar_prev) / (1 - bar) * process.betas
        _KNOWN[process] = PosteriorCoefficients(a, b, c, variance)
    return _KNOWN[process]


def printed_prior_coefficient(process: ShiftedDiffusion) -> Tensor:  # (T,)
    "C of Eq. (6) as printed: s_t, the whole shift anew at every step."
    return process.sigmas


# %%
exact = posterior_coefficients(process)
wanted = A, B, process.sigmas_prev[at] - B * process.sigmas[at], variance
for name, row, value in zip(exact._fields, exact, wanted, strict=True):
    print(f"{name:8s} at t = {at}: {row[at]:.5f}")
    torch.testing.assert_close(row[at], value)

# %% [markdown]
# How different are the two weights of the prior?

# %%
for name, row in (("exact", exact.prior),
                  ("printed", printed_prior_coefficient(process))):
    print(f"{name:8s}{row.min():.4f} to {row.max():.4f}")
assert 0 <= exact.prior.min() and exact.prior.max() < 0.0101

# %%
#| code-fold: true
#| fig-alt: "The weight of the prior in one step over t, logarithmic: the exact one stays below 0.01, the printed one rises to 1, a hundred and more times larger."
fig, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
axis.semilogy(exact.prior[1:], label="exact $C_t = s_{t-1} - B_t s_t$")
axis.semilogy(printed_prior_coefficient(process)[1:], color="crimson",
              label="Eq. (6) as printed: $s_t$")
axis.set(xlabel="t", ylabel="weight of the prior in one step")
axis.legend();


# %% [markdown]
# The exact weight is tiny: $B_t x_t$ already holds most of the shift, $B_t s_t f$, and one step adds only what that lacks of $s_{t-1} f$. The printed one pays the whole shift again at every step.

# %%
#| exports
def _mean(process: ShiftedDiffusion, x_0: Tensor, x_t: Tensor, t: Tensor,
          prior: Tensor | None, c: Tensor) -> tuple[Tensor, Tensor]:
    "A x_0 + B x_t + C f with the row c for C, and the variance."
    k = posterior_coefficients(process)
    a, b, c, variance = (process.coefficient(row, t, x_t)
                         for row in (k.x_0, k.x_t, c, k.variance))
    f = process.prior_or_zero(prior, x_t)
    return a * x_0 + b * x_t + c * f, variance


def q_posterior(
    process: ShiftedDiffusion,
    x_0: Tensor,  # mask in [-1, 1], (B, ...)
    x_t: Tensor,  # the same shape
    t: Tensor,  # int64 (B,); from t to t-1, and to x_0 itself where t = 0
    prior: Tensor | None = None,  # f, the same shape
) -> tuple[Tensor, Tensor]:  # mean (B, ...), variance (B, 1, ...)
    "The exact posterior q(x_{t-1} | x_t, x_0, f): Eq. (6), corrected."
    c = posterior_coefficients(process).prior
    return _mean(process, x_0, x_t, t, prior, c)


def q_posterior_printed(
    process: ShiftedDiffusion, x_0: Tensor, x_t: Tensor, t: Tensor,
    prior: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    "Eq. (6) as printed; arguments and result as those of `q_posterior`."
    c = printed_prior_coefficient(process)
    return _mean(process, x_0, x_t, t, prior, c)


# %% [markdown]
# ## 3 · Ask Bayes
#
# Derivations can err; Bayes' rule cannot. The posterior of $x_{t-1}$ is proportional to $q(x_t \mid x_{t-1}, f)\; q(x_{t-1} \mid x_0, f)$, this time in $x$, with the shift. We multiply both on a fine grid and compute mean and variance as sums.

# %%
def logs(t, x_0, x_t, f, z):
    "Logarithms of marginal and step, at the candidates z for x_{t-1}."
    s, s_prev = process.sigmas[t], process.sigmas_prev[t]
    root = process.alphas[t].sqrt()
    before = z - process.alphas_cumprod_prev[t].sqrt() * x_0 - s_prev * f
    after = x_t - root * z - (s - root * s_prev) * f
    squares = before / s_prev, after / process.betas[t].sqrt()
    return [-v ** 2 / 2 for v in squares]


def bayes(t, x_0, x_t, f):
    z = torch.linspace(-8, 8, 200_001, dtype=torch.float64)
    weight = torch.softmax(sum(logs(t, x_0, x_t, f, z)), 0)
    mean = (weight * z).sum()
    return mean, (weight * (z - mean) ** 2).sum()


# %%
def formula(posterior, t, *values):
    x_0, x_t, f = torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
    return posterior(process, x_0, x_t, torch.tensor([t]), f)


# %%
worst = 0.0
for t in (1, 5, 50, 300, 700, 999):
    for case in ((1.0, 0.4, 0.8), (-1.0, 0.9, 0.6), (1.0, -1.2, -0.9)):
        ours, true = formula(q_posterior, t, *case), bayes(t, *case)
        worst = max(worst, *(abs(a - b).item() for a, b in zip(ours, true)))
print(f"largest difference to Bayes' rule: {worst:.1e}")
assert worst < 1e-9

# %% [markdown]
# In pictures: where the walker could have been a step ago if one only knew $x_0$ and $f$ (the marginal, orange), how well each place explains $x_t$ (the step, green), and their product, the posterior (black), each scaled to height one; $x_0 = 1$, $x_t = 0.4$, $f = 0.8$. At small $t$ the start $x_0$ has a say; at large $t$ only $x_t$ counts. Our mean is dashed blue; that of Eq. (6), red, stays far off.

# %%
#| code-fold: true
#| fig-alt: "Four panels at t = 5, 20, 100 and 300. The black posterior lies between marginal and step, its dashed blue mean in its middle; the red line of Eq. (6) lies to its right, at t = 100 and 300 far outside."
grid = torch.linspace(-2.6, 2.6, 2601, dtype=torch.float64)


def three(t, axis=None, legend=True, case=(1.0, 0.4, 0.8)):
    axis = axis or plt.subplots(figsize=(5.5, 2.5), layout="constrained")[1]
    axis.clear()
    before, step = logs(t, *case, grid)
    for log, name, colour in (
        (before, f"marginal at {t - 1}", "tab:orange"),
        (step, f"step to $x_{{{t}}}$ = {case[1]}", "tab:green"),
        (before + step, "posterior", "k"),
    ):
        axis.plot(grid, (log - log.max()).exp(), color=colour, label=name)
    for how, name, colour, style in (
        (q_posterior, "our mean", "tab:blue", "--"),
        (q_posterior_printed, "mean of Eq. (6)", "crimson", "-"),
    ):
        mean, _ = formula(how, t, *case)
        axis.axvline(mean.item(), color=colour, ls=style, lw=1, label=name)
    axis.set(xlim=(-2.6, 2.6), title=f"t = {t}", xlabel="$x_{t-1}$", yticks=[])
    if legend:
        axis.legend(fontsize=8, loc="upper left")


fig, axes = plt.subplots(1, 4, figsize=(9, 2), layout="constrained")
for axis, t in zip(axes, (5, 20, 100, 300)):
    three(t, axis, legend=False)
    axis.set_xlim(0.2, 1.3)

# %%
#| code-fold: true
fig, axis = plt.subplots(figsize=(6, 3), dpi=80, layout="constrained")
frames = [1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 22, 30, 40, 55, 75, 100, 150, 250,
          400, 650, 999]
movie = FuncAnimation(fig, lambda t: three(t, axis), frames, interval=250)
html = movie.to_jshtml(default_mode="loop")
plt.close(fig)
alt = "Marginal, step and posterior as t grows from 1 to 999"
HTML(html.replace("<img ", f'<img alt="{alt}" '))

# %%
#| include: false
if hasattr(get_ipython(), "kernel"):  # a slider needs a running notebook
    slider = IntSlider(20, 1, 999, 1, continuous_update=False)
    interact(lambda t: three(t), t=slider);

# %%
# at t = 100
true, variance = bayes(100, 1.0, 0.4, 0.8)
for how in (q_posterior, q_posterior_printed):
    off = abs(formula(how, 100, 1.0, 0.4, 0.8)[0] - true) / variance.sqrt()
    print(f"{how.__name__}: {off.item():.0e} standard deviations off")

# %% [markdown]
# The next step can correct a wrong one. But a chain of them? We give it a *perfect* network (it always knows $x_0$) and let 4,000 walkers go home from $\mathcal N(f, I)$, once with each posterior.

# %%
def walk_home(posterior, n=4000):
    "Mean of the walkers, at each time from -1 to T - 2."
    g = torch.Generator().manual_seed(0)
    x_0, f = torch.ones(n).double(), torch.full((n,), 0.8).double()
    x, path = process.prior_sample(f, torch.randn(n, generator=g).double()), []
    for t in torch.arange(1000).flip(0)[:, None]:
        mean, variance = posterior(process, x_0, x, t, f)
        noise = torch.randn(n, generator=g).double()
        x = mean + variance.sqrt() * noise
        path.append(x.mean())
    return torch.stack(path).flip(0)


# %%
home = {how: walk_home(how) for how in (q_posterior, q_posterior_printed)}
wanted = process.alphas_cumprod_prev.sqrt() + 0.8 * process.sigmas_prev
gaps = [(path - wanted).abs().max().item() for path in home.values()]
print("largest gap to Eq. (3): exact {:.3f}, printed {:.1f}".format(*gaps))
assert gaps[0] < 4 / 4000 ** 0.5 < 10 < gaps[1]

# %%
#| code-fold: true
#| fig-alt: "Mean of the walkers over t: with the exact posterior on the dashed line of Eq. (3), near one; with the printed one above a hundred for most of the walk, and back at one only at its end."
fig, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
for path, colour, label in zip(home.values(), ("tab:blue", "crimson"),
                               ("exact", "Eq. (6) as printed")):
    axis.plot(path, color=colour, label=label)
axis.plot(wanted, "k--", lw=1, label="Eq. (3)")
axis.set(xlabel="t (the walk goes left)", ylabel="mean of the walkers")
axis.set_yscale("symlog")
axis.legend();

# %% [markdown]
# The exact posterior keeps to the road. With the printed one the walkers spend the walk far out, where no network was ever trained. They come home all the same, because this network is perfect; [14](14_sampling.ipynb) says why.
#
# With $f = 0$ the posterior must be that of a public DDPM, at every step of a whole chain. (The "network" is any smooth function; the library gets our tables in float64, so that formulas are compared and not rounding.)

# %%
public = DDPMScheduler(
    beta_schedule="linear", prediction_type="sample", clip_sample=False
)
for name in ("betas", "alphas", "alphas_cumprod"):
    setattr(public, name, getattr(process, name))
ours = theirs = torch.randn(1, 1, 8, 4, generator=g).double()


# %%
def seeded(t):
    return torch.Generator().manual_seed(t)


for t in reversed(range(1000)):
    mean, variance = q_posterior(
        process, torch.tanh(ours), ours, torch.tensor([t])
    )
    noise = torch.randn(ours.shape, generator=seeded(t), dtype=ours.dtype)
    ours = mean + variance.sqrt() * noise
    guess = torch.tanh(theirs)
    theirs = public.step(guess, t, theirs, generator=seeded(t)).prev_sample
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


# %% [markdown]
# ## 4 · What should the network say?
#
# Nobody knows $x_0$ on the way back; a network must say it. Whoever knows $y_t$ and one of three things knows the other two: the noise $\varepsilon$, the mask $x_0$, or the *velocity* $v$ (Salimans and Ho 2022). Since $\bar\alpha_t + s_t^2 = 1$, there is an angle with $\sqrt{\bar\alpha_t} = \cos\varphi$ and $s_t = \sin\varphi$, and
#
# $$y_t = \cos\varphi\;x_0 + \sin\varphi\;\varepsilon, \qquad v_t = \frac{d y_t}{d\varphi} = \cos\varphi\;\varepsilon - \sin\varphi\;x_0 .$$
#
# Draw $x_0$ to the right and $\varepsilon$ upwards: $y_t$ walks on a circle from the mask to the noise, and $v_t$ is its direction of travel (drawn at half its length).

# %%
#| code-fold: true
#| fig-alt: "Four quarter circles at t = 50, 200, 350 and 700: the arrow y_t turns from x_0 on the right up towards the noise; v_t stands at right angles to it; dotted lines end at its two parts."
def triangle(t, axis=None):
    axis = axis or plt.subplots(figsize=(3, 3), layout="constrained")[1]
    axis.clear()
    c = process.sqrt_alphas_cumprod[t].item()
    s = process.sigmas[t].item()
    arc = torch.linspace(0, math.pi / 2, 100)
    axis.plot(arc.cos(), arc.sin(), color="0.8")
    arrows = {  # tail, tip, colour, place of the name
        "$x_0$": ((0, 0), (1, 0), "tab:orange", (0.9, -0.12)),
        "$ε$": ((0, 0), (0, 1), "tab:green", (-0.1, 0.8)),
        "$y_t$": ((0, 0), (c, s), "k", (1.12 * c + 0.05, 1.12 * s)),
        "$v_t$ / 2": ((c, s), (c - s / 2, s + c / 2), "tab:purple",
                      (c - 0.62 * s, s + 0.62 * c + 0.06)),
    }
    for name, (tail, tip, colour, place) in arrows.items():
        look = {"arrowstyle": "-|>", "color": colour, "shrinkA": 0,
                "shrinkB": 0}
        axis.annotate("", tip, tail, arrowprops=look)
        axis.text(*place, name, color=colour, ha="center", va="center")
    axis.plot([c, c], [0, s], "k:", lw=0.8)
    axis.plot([0, c], [s, s], "k:", lw=0.8)
    axis.set(xlim=(-0.6, 1.25), ylim=(-0.15, 1.55), aspect="equal",
             title=f"t = {t}")
    axis.set_axis_off()


fig, axes = plt.subplots(1, 4, figsize=(9, 2.5), layout="constrained")
for axis, t in zip(axes, (50, 200, 350, 700)):
    triangle(t, axis)

# %%
#| include: false
if hasattr(get_ipython(), "kernel"):
    slider = IntSlider(250, 0, 999, 1, continuous_update=False)
    interact(lambda t: triangle(t), t=slider);

# %% [markdown]
# Backwards: the mask is $y_t$ minus the noise, rescaled; or $y_t$ turned back by the angle. In the code the three are called as in diffusers: `"epsilon"` (the paper's Eq. 8), `"sample"` for $x_0$, and `"v_prediction"`.
#
# $$x_0 = \frac{y_t - s_t\,\varepsilon}{\sqrt{\bar\alpha_t}} = \sqrt{\bar\alpha_t}\,y_t - s_t\,v_t .$$

# %%
#| exports
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


def _roots(process: ShiftedDiffusion, t: Tensor, like: Tensor,
           kind: str) -> tuple[Tensor, Tensor]:
    "sqrt(abar_t) and s_t; ValueError for an unknown prediction type."
    if kind not in PREDICTION_TYPES:
        allowed = " or ".join(PREDICTION_TYPES)
        raise ValueError(f"prediction_type must be {allowed}, not {kind!r}")
    rows = process.sqrt_alphas_cumprod, process.sigmas
    return tuple(process.coefficient(row, t, like) for row in rows)


def predict_x_0(
    process: ShiftedDiffusion,
    x_t: Tensor,  # (B, ...)
    t: Tensor,  # int64 (B,)
    output: Tensor,  # what the network said, (B, ...)
    prior: Tensor | None = None,  # f, (B, ...)
    prediction_type: str = "epsilon",  # or "sample" (x_0), "v_prediction"
) -> Tensor:  # x_0, (B, ...)
    "The mask that the network's output stands for."
    if prediction_type == "sample":
        return output
    root, s = _roots(process, t, x_t, prediction_type)
    y = unshift(process, x_t, t, prior)
    if prediction_type == "epsilon":
        return (y - s * output) / root
    return root * y - s * output


def predict_noise(
    process: ShiftedDiffusion, x_t: Tensor, t: Tensor, output: Tensor,
    prior: Tensor | None = None, prediction_type: str = "epsilon",
) -> Tensor:  # epsilon, (B, ...)
    "The noise that it stands for; arguments as those of `predict_x_0`."
    if prediction_type == "epsilon":
        return output
    root, s = _roots(process, t, x_t, prediction_type)
    y = unshift(process, x_t, t, prior)
    if prediction_type == "sample":
        return (y - root * output) / s
    return s * y + root * output


def training_target(
    process: ShiftedDiffusion,
    x_0: Tensor,  # mask in [-1, 1], (B, ...)
    t: Tensor,  # int64 (B,)
    noise: Tensor,  # the noise that made x_t, (B, ...)
    prediction_type: str = "epsilon",
) -> Tensor:  # (B, ...)
    'What a network of that type should say; Eq. (8) is "epsilon".'
    if prediction_type == "epsilon":
        return noise
    root, s = _roots(process, t, x_0, prediction_type)
    return x_0 if prediction_type == "sample" else root * noise - s * x_0


# %% [markdown]
# Round trips, and the velocity against the public library:

# %%
x_0, noise, f = torch.randn(3, 5, 1, 6, 4, generator=g).double()
t = torch.tensor([0, 10, 300, 700, 999])
x_t = process.q_sample(x_0, t, f, noise)

# %%
for kind in PREDICTION_TYPES:
    said = training_target(process, x_0, t, noise, kind)
    mask = predict_x_0(process, x_t, t, said, f, kind)
    torch.testing.assert_close(mask, x_0, atol=1e-9, rtol=1e-9)
    found = predict_noise(process, x_t, t, said, f, kind)
    torch.testing.assert_close(found, noise, atol=1e-9, rtol=1e-9)
torch.testing.assert_close(said, public.get_velocity(x_0, noise, t))

# %% [markdown]
# In exact arithmetic the three are the same; for a network that errs they are not. Let each output be wrong by 0.05:

# %%
times, zeros = torch.arange(1000), torch.zeros(1000, 1).double()
errors = {}
for kind in PREDICTION_TYPES:
    right, wrong = (predict_x_0(process, zeros, times, said, zeros, kind)
                    for said in (zeros, zeros + 0.05))
    errors[kind] = (wrong - right).abs()[:, 0]

# %%
amplify = errors["epsilon"][-1] / 0.05
print(f"an error of the noise is multiplied by {amplify:.0f} at t = 999")
assert 150 < amplify < 170

# %%
#| code-fold: true
#| fig-alt: "Error of the mask over t, logarithmic: for sample constant at 0.05; for v_prediction rising to 0.05; for epsilon smallest at quiet times, crossing near t = 250 and rising to 8."
fig, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
for (kind, error), style in zip(errors.items(), ("-", "-", "--")):
    axis.semilogy(times, error, style, label=kind)
axis.set(xlabel="t", ylabel="error of the mask")
axis.legend();

# %% [markdown]
# At quiet times the noise is safer to say than the mask. But at the start of sampling an error in $\varepsilon$ is multiplied by more than a hundred: of the mask, $y_t$ holds only a small lean to the right. Later steps can mend that in a chain of a thousand; it is ruinous for a segmenter that wants to take one. The velocity is safe at both ends. But it contains noise, and a mask is nothing but $-1$ and $1$; a network can say it outright. So outside the profile `paper` our networks predict $x_0$; [17](17_paper_checked.ipynb) compares.
#
# One step from the loudest time, with $f = x_0/2$, if the output is wrong by about 0.05 per pixel:

# %%
spine = landmarks_to_mask(draw_phantom(3).landmarks / 3, 192, 64)
x_0 = 2 * torch.from_numpy(spine).double()[None, None] - 1  # 1 1 192 64
noise, error = (torch.randn(x_0.shape, generator=g).double() for _ in range(2))
f, last = 0.5 * x_0, torch.tensor([999])
x_T = process.q_sample(x_0, last, f, noise)

# %%
shown = [x_T]
for kind in PREDICTION_TYPES:
    said = training_target(process, x_0, last, noise, kind) + 0.05 * error
    shown.append(predict_x_0(process, x_T, last, said, f, kind))
off = [(picture - x_0).abs().mean().item() for picture in shown[1:]]
assert off[0] > 4 > 0.1 > off[1]

# %%
#| code-fold: true
#| fig-alt: "Four pictures: x_T, a spine deep in noise; the mask from epsilon, nothing but saturated noise; the masks from sample and v_prediction, clean spines with faint grain."
fig, axes = plt.subplots(1, 4, figsize=(4.4, 3.2), layout="constrained")
titles = "$x_T$", *PREDICTION_TYPES
for axis, picture, title in zip(axes, shown, titles, strict=True):
    axis.imshow(picture[0, 0], cmap="magma", vmin=-2, vmax=2)
    axis.set_axis_off()
    axis.set_title(title, fontsize=8)

# %% [markdown]
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | prior in the posterior, Eq. (6) | $s_t\,f$ | $(s_{t-1} - B_t s_t)\,f$ | Bayes' rule |
# | mean of a step with the network's noise, Eq. (7) | $\frac{1}{\sqrt{\alpha_t}}\bigl(x_t - \frac{\beta_t}{s_t}\hat\varepsilon\bigr)$ | $\frac{1}{\sqrt{\alpha_t}}\bigl(x_t - s_t f - \frac{\beta_t}{s_t}\hat\varepsilon\bigr) + s_{t-1} f$ | take the shift off, step, put the next one on (exercise 2) |
# | prediction | $\varepsilon$, Eq. (8) | $x_0$; $\varepsilon$ in `paper` | section 4 |
#
# ## Exercises
#
# **1 · Predict.** What are $A$, $B$, $C$ and the variance at $t = 0$, and what does that mean for the last step?

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# The variance is zero, because $\bar\alpha_{-1} = 1$. The last step is not random: it says what the network believes $x_0$ to be. There $A = 1$ and $B = C = 0$.

# %%
#| code-fold: true
first = torch.stack([row[0] for row in exact])
torch.testing.assert_close(first, torch.tensor([1.0, 0, 0, 0]).double())

# %% [markdown]
# </details>
#
# **2 · Implement.** Write the repaired mean of Eq. (7) (third column above) for a network that predicts noise, and show that it is `q_posterior` fed with `predict_x_0`.

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# The two are one formula: insert $\hat x_0 = (y_t - s_t\hat\varepsilon)/\sqrt{\bar\alpha_t}$ into $A_t \hat x_0 + B_t y_t$ and sort.

# %%
#| code-fold: true
def mean_of_eq_7(x_t, t, eps, f):
    rows = process.betas, process.alphas, process.sigmas, process.sigmas_prev
    beta, alpha, s, s_prev = (process.coefficient(r, t, x_t) for r in rows)
    return (x_t - s * f - beta / s * eps) / alpha.sqrt() + s_prev * f


x_t, eps, f = torch.randn(3, 4, 1, 3, 3, generator=g).double()
t = torch.tensor([1, 40, 400, 999])
x_0_hat = predict_x_0(process, x_t, t, eps, f)
mean, _ = q_posterior(process, x_0_hat, x_t, t, f)
torch.testing.assert_close(mean_of_eq_7(x_t, t, eps, f), mean)


# %% [markdown]
# </details>
#
# **3 · Diagnose (hard).** A colleague steps in $y$ and gives the walk a perfect network. All walkers should end exactly at $x_0 = 1$. They end at 1.008, whatever the noise; with $f = 0$ at 1. Where do the 0.008 come from, and what does the same line do to the steps before the last?

# %%
def colleague(process, x_0, x_t, t, f):
    y_t = unshift(process, x_t, t, f)
    mean, variance = q_posterior(process, x_0, y_t, t)
    return reshift(process, mean, t, f), variance


print(f"{walk_home(colleague)[0]:.4f}")

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# The shift that is put on is that of the *old* time. The step leads to $t-1$, so it must be `reshift(process, mean, t - 1, f)`. As it stands the last step adds $s_0 f = 0.01 \cdot 0.8$. Each step before leaves $(s_t - s_{t-1})f$ too much in $x_{t-1}$, so the walk runs beside its marginal: the network is asked about places that training never showed.

# %%
#| code-fold: true
def repaired(process, x_0, x_t, t, f):
    y_t = unshift(process, x_t, t, f)
    mean, variance = q_posterior(process, x_0, y_t, t)
    return reshift(process, mean, t - 1, f), variance


assert abs(walk_home(colleague)[0] - 1.008) < 1e-9
torch.testing.assert_close(walk_home(repaired), home[q_posterior])

# %% [markdown]
# </details>
#
# Every step back asks for a mask: $\hat x_0$ from what is left in the noise, and before that the guess $f$ from the image alone. Both must look at a whole spine and still draw each border to the pixel. What kind of network can do that? Next: [08 · U-Nets](08_unet.ipynb).
