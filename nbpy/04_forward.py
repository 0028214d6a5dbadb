# %% [markdown]
# # 04 · The forward process
# > How a mask is drowned in noise, and pulled towards a first guess while it drowns
#
# You will build the one equation that makes Verdiff-Net different from plain diffusion, find that the paper's one-step kernel does not lead to it, derive the one that does, and discover the coordinate in which the whole method is plain DDPM. No network appears on this page. Twenty seconds on a laptop.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/04_forward.ipynb)

# %%
#| default_exp forward

# %%
#| eval: false
# !pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"  # only on Colab

# %%
#| export
import math

import torch
from torch import Tensor

# %%
import matplotlib.pyplot as plt
from IPython.display import HTML
from ipywidgets import IntSlider, interact
from matplotlib.animation import FuncAnimation
from matplotlib_inline.backend_inline import set_matplotlib_formats
from verdiff.data import draw_phantom, landmarks_to_mask

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})  # noise does not compress: small pages
plt.rcParams["animation.frame_format"] = "jpeg"

# %% [markdown]
# ## 1 · Symbols
#
# A mask has values 0 and 1. Noise is symmetric around 0. So inside the process masks live in $[-1, 1]$: $x_0 = 2m - 1$, and the prior $f$, the first guess of the conditional U-Net, lives there too. Time runs over $t = 0, \dots, T-1$ with 0 the least noisy. The paper counts from 1; our $t$ is its $t - 1$.
#
# | paper | code | meaning |
# |---|---|---|
# | $\beta_t$ | `betas[t]` | variance added at step $t$ |
# | $\alpha_t = 1 - \beta_t$ | `alphas[t]` | share of the signal's power that survives step $t$ |
# | $\bar\alpha_t = \prod_{s \le t} \alpha_s$ | `alphas_cumprod[t]` | what survives all steps up to $t$ |
# | $s_t = \sqrt{1 - \bar\alpha_t}$ | `sigmas[t]` | amplitude of the noise at $t$; $s_{-1} = 0$ |
# | $f(b)$ | `prior` | first guess from the image $b$ |
# | $x_0, x_t, \varepsilon$ | `x_0, x_t, noise` | mask, noisy mask, standard normal noise |
#
# ## 2 · Schedules
#
# How fast should the mask drown? Ho et al. (2020) let $\beta$ grow on a line. Nichol and Dhariwal (2021) found that this wastes the last steps, where nothing is left to see, and let $\bar\alpha$ fall like a cosine. The paper names neither. Ours is the linear one unless a profile says otherwise.

# %%
#| export
def linear_schedule(
    timesteps: int = 1000,  # T
    beta_start: float = 1e-4,  # first beta
    beta_end: float = 0.02,  # last beta
) -> Tensor:  # betas, float64, (T,)
    "Betas that grow on a line (Ho et al. 2020)."
    return torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)


def cosine_schedule(
    timesteps: int = 1000,  # T
    s: float = 0.008,  # keeps the first betas from vanishing
    max_beta: float = 0.999,  # cuts the last betas
) -> Tensor:  # betas, float64, (T,)
    "Betas whose alphas_cumprod falls like a squared cosine (Nichol and Dhariwal 2021, Eq. 17)."
    u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    bar = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - bar[1:] / bar[:-1]).clamp(max=max_beta)


def make_schedule(
    name: str,  # "linear" or "cosine"
    timesteps: int = 1000,
    beta_start: float = 1e-4,  # of the linear one
    beta_end: float = 0.02,
) -> Tensor:  # betas, float64, (T,)
    "A schedule by its name in settings.ini."
    if name == "linear":
        return linear_schedule(timesteps, beta_start, beta_end)
    if name == "cosine":
        return cosine_schedule(timesteps)
    raise ValueError(f"schedule must be 'linear' or 'cosine', not {name!r}")


# %%
schedules = {"linear": linear_schedule(), "cosine": cosine_schedule()}
fig, axes = plt.subplots(1, 2, figsize=(7, 2.5), layout="constrained")
for name, betas in schedules.items():
    bar = (1 - betas).cumprod(0)
    axes[0].plot(bar, label=name)
    axes[1].semilogy(bar / (1 - bar), label=name)
axes[0].set(xlabel="t", ylabel="signal's power, ᾱ"); axes[1].set(xlabel="t", ylabel="signal to noise", ylim=(1e-6, 1e4)); axes[0].legend()

# %% [markdown]
# Both are what the libraries of the field have:

# %%
from diffusers import DDPMScheduler

# %%
for name, theirs in (("linear", "linear"), ("cosine", "squaredcos_cap_v2")):
    torch.testing.assert_close(schedules[name].float(), DDPMScheduler(beta_schedule=theirs).betas, atol=2e-6, rtol=1e-4)

# %% [markdown]
# ## 3 · Plain diffusion drowns everything
#
# Here is a spine, drowned by the usual marginal $x_t = \sqrt{\bar\alpha_t}\,x_0 + s_t\,\varepsilon$. The same noise at every $t$, so that only time changes.

# %%
film = draw_phantom(3)
mask = torch.from_numpy(landmarks_to_mask(film.landmarks / 3, 192, 64)).float()[None, None]
x_0 = 2 * mask - 1
noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(35))
bar = (1 - linear_schedule()).cumprod(0).float()
strip = [0, 100, 250, 400, 600, 999]


def film_strip(pictures, titles, width=1.1, **look):
    fig, axes = plt.subplots(1, len(pictures), figsize=(width * len(pictures), 3.3), layout="constrained")
    for axis, picture, title in zip(axes, pictures, titles):
        axis.imshow(picture[0, 0], **({"cmap": "magma", "vmin": -3, "vmax": 3} | look)); axis.set_axis_off(); axis.set_title(title, fontsize=8)


film_strip([bar[t].sqrt() * x_0 + (1 - bar[t]).sqrt() * noise for t in strip], [f"t = {t}" for t in strip])

# %% [markdown]
# At the end nothing of the spine is left. A network that walks back must invent all of it, from an image it sees only from the side. But we *have* a guess where the vertebrae are: a small U-Net gives one in a millisecond. Why should the walk end, and the way back begin, in the middle of nowhere?
#
# Verdiff-Net's idea: let the noise be centred at the guess. Eq. (3) and (5):
#
# $$x_t = \sqrt{\bar\alpha_t}\,x_0 + s_t\,f + s_t\,\varepsilon, \qquad s_t = \sqrt{1-\bar\alpha_t}.$$
#
# As $t$ grows the mask fades out, and the guess fades in at the pace of the noise. The end is $\mathcal N(f, I)$. Let us make a bad guess on purpose: blurred, too fat, and one vertebra short.

# %%
import torch.nn.functional as F

# %%
guess = F.avg_pool2d(F.max_pool2d(mask, 3, 1, 1), 5, 1, 2)
guess[..., 96:108, :] *= 0.1
f = 2 * guess - 1
sigma = (1 - bar).sqrt()
film_strip([bar[t].sqrt() * x_0 + sigma[t] * (f + noise) for t in strip], [f"t = {t}" for t in strip])

# %% [markdown]
# The last picture still knows where the spine is. That is the whole idea. Now the care.
#
# ## 4 · One step
#
# A process is defined by its *steps*. The paper prints, as Eq. (2),
#
# $$q(x_t \mid x_{t-1}, f) = \mathcal N\bigl(\sqrt{\alpha_t}\,x_{t-1} + \sqrt{1-\alpha_t}\,f,\; \beta_t I\bigr).$$
#
# It looks right: the same coefficients as in Eq. (3), without the bars. Take it literally and iterate. The mean of the guess then obeys $c_t = \sqrt{\alpha_t}\,c_{t-1} + \sqrt{1-\alpha_t}$, and should arrive at $s_t$.

# %%
betas = linear_schedule()
c, reached = torch.zeros(()).double(), []
for beta in betas:
    c = (1 - beta).sqrt() * c + beta.sqrt()
    reached.append(c.item())
fig, axis = plt.subplots(figsize=(5, 2.5), layout="constrained")
axis.plot(reached, color="crimson", label="Eq. (2) iterated"); axis.plot(sigma, "k", label="Eq. (3): $s_t$")
axis.set(xlabel="t", ylabel="weight of f"); axis.legend()
print(f"at the end {reached[-1]:.2f} instead of {sigma[-1]:.2f}; at most {max(reached):.2f}, at t = {reached.index(max(reached))}")
assert reached[-1] > 14

# %% [markdown]
# Run literally, the chain drifts to fifteen times the prior. The reason is simple: standard deviations add in quadrature, means add plainly. $\sqrt{\beta_t}$ is the right amplitude for *noise*, which averages out from step to step; a *mean* with that amplitude piles up.
#
# What must the pull $k_t$ be? Ask for Eq. (3) at $t-1$ and at $t$:
#
# $$\sqrt{\alpha_t}\,\bigl(\sqrt{\bar\alpha_{t-1}}\,x_0 + s_{t-1} f\bigr) + k_t f = \sqrt{\bar\alpha_t}\,x_0 + s_t f \quad\Longrightarrow\quad k_t = s_t - \sqrt{\alpha_t}\,s_{t-1}.$$
#
# The noise is as in DDPM, so the exact kernel is
#
# $$q(x_t \mid x_{t-1}, f) = \mathcal N\bigl(\sqrt{\alpha_t}\,x_{t-1} + (s_t - \sqrt{\alpha_t}\,s_{t-1})\,f,\; \beta_t I\bigr).$$
#
# That is what we implement. The class knows a schedule and no network.

# %%
#| export
class ShiftedDiffusion:
    """The forward process of Eq. (3) and (5): x_t = sqrt(abar_t) x_0 + s_t f + s_t noise.

    `shift=False`, or a prior of None, is plain DDPM. Coefficients are float64 on the CPU and are
    cast to what they multiply. x_0, x_t and the prior are (B, ...) of one shape, in [-1, 1] where
    they are masks; t is int64 (B,), from 0 (least noisy) to T - 1.
    """

    def __init__(
        self,
        betas: Tensor,  # (T,), each in (0, 1)
        shift: bool = True,  # False: ignore every prior
    ):
        betas = torch.as_tensor(betas, dtype=torch.float64).cpu()
        if betas.ndim != 1 or not len(betas):
            raise ValueError(f"betas must be one row of numbers, not of shape {tuple(betas.shape)}")
        if not ((betas > 0) & (betas < 1)).all():  # NaN fails too
            raise ValueError("betas must lie strictly between 0 and 1, so that the signal decreases")
        self.betas, self.alphas, self.shift = betas, 1 - betas, shift
        self.timesteps = len(betas)
        self.alphas_cumprod = self.alphas.cumprod(0)
        self.alphas_cumprod_prev = torch.cat([torch.ones(1).double(), self.alphas_cumprod[:-1]])
        self.sigmas = (1 - self.alphas_cumprod).sqrt()
        self.sigmas_prev = (1 - self.alphas_cumprod_prev).sqrt()

    def coefficient(
        self,
        values: Tensor,  # (T,)
        t: Tensor,  # whole numbers, (B,)
        like: Tensor,  # (B, ...)
    ) -> Tensor:  # (B, 1, ...), dtype and device of `like`
        "values[t], ready to multiply `like`; it is cast before it moves, for devices without float64."
        if t.ndim != 1 or len(t) not in (1, len(like)):
            raise ValueError(f"t must be of shape ({len(like)},), not {tuple(t.shape)}")
        if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
            raise ValueError(f"t must hold whole numbers, not {t.dtype}")
        index = t.cpu().long()
        if int(index.min()) < 0 or int(index.max()) >= self.timesteps:
            raise ValueError(f"t must lie between 0 and {self.timesteps - 1}")
        return values[index].to(like.dtype).to(like.device).view(-1, *[1] * (like.ndim - 1))

    def prior_or_zero(
        self,
        prior: Tensor | None,  # f, of the shape of x
        x: Tensor,
    ) -> Tensor:
        "The prior, or zeros where there is none or `shift` is off."
        if prior is None or not self.shift:
            return torch.zeros_like(x)
        if prior.shape != x.shape:
            raise ValueError(f"the prior has shape {tuple(prior.shape)}, x has {tuple(x.shape)}")
        return prior

    def q_sample(
        self,
        x_0: Tensor,
        t: Tensor,
        prior: Tensor | None,
        noise: Tensor,  # standard normal, of the shape of x_0
    ) -> Tensor:  # x_t
        "Eq. (3): jump to time t."
        s = self.coefficient(self.sigmas, t, x_0)
        root = self.coefficient(self.alphas_cumprod.sqrt(), t, x_0)
        return root * x_0 + s * (self.prior_or_zero(prior, x_0) + noise)

    def q_step(
        self,
        x_prev: Tensor,  # x_{t-1}; x_0 where t = 0
        t: Tensor,
        prior: Tensor | None,
        noise: Tensor,
    ) -> Tensor:  # x_t
        "One step of the kernel whose iteration is Eq. (3)."
        pull = self.coefficient(self.sigmas - self.alphas.sqrt() * self.sigmas_prev, t, x_prev)
        a, b = (self.coefficient(v.sqrt(), t, x_prev) for v in (self.alphas, self.betas))
        return a * x_prev + pull * self.prior_or_zero(prior, x_prev) + b * noise

    def q_step_printed(
        self,
        x_prev: Tensor,  # x_{t-1}
        t: Tensor,
        prior: Tensor | None,
        noise: Tensor,
    ) -> Tensor:  # x_t
        "One step of Eq. (2) as printed; iterated, it drifts away from Eq. (3)."
        a, b = (self.coefficient(v.sqrt(), t, x_prev) for v in (self.alphas, self.betas))
        return a * x_prev + b * (self.prior_or_zero(prior, x_prev) + noise)

    def prior_sample(
        self,
        prior: Tensor | None,
        noise: Tensor,
    ) -> Tensor:  # x_T
        "Where sampling starts: N(f, I), the end of Eq. (5)."
        return self.prior_or_zero(prior, noise) + noise

    def snr(self) -> Tensor:  # (T,)
        "Signal to noise ratio abar / (1 - abar), of the shifted and of the plain process alike."
        return self.alphas_cumprod / (1 - self.alphas_cumprod)


# %% [markdown]
# Without noise the iterated kernel must give the *mean* of Eq. (3), to the precision of float64:

# %%
process = ShiftedDiffusion(linear_schedule())
one, prior = torch.full((1, 1), -1.0).double(), torch.full((1, 1), 0.8).double()
x, zero = one, torch.zeros_like(one)
for t in range(process.timesteps):
    x = process.q_step(x, torch.tensor([t]), prior, zero)
print("iterated", x.item(), "Eq. (3)", process.q_sample(one, torch.tensor([999]), prior, zero).item())
torch.testing.assert_close(x, process.q_sample(one, torch.tensor([999]), prior, zero), rtol=1e-12, atol=0)

# %% [markdown]
# And with noise, the *distribution*: 20,000 walkers, their mean within four standard errors, their variance within four of its own. (A standard error of a mean is $s/\sqrt n$, that of a variance $s^2\sqrt{2/n}$.) Beside them, walkers that follow the printed kernel.

# %%
n, g = 20_000, torch.Generator().manual_seed(0)
walkers = {name: torch.full((n,), -1.0).double() for name in ("q_step", "q_step_printed")}
trace = {name: [] for name in walkers}
short = ShiftedDiffusion(linear_schedule(200, 5e-4, 0.1))
for t in range(short.timesteps):
    noise_t = torch.randn(n, generator=g, dtype=torch.float64)
    for name in walkers:
        walkers[name] = getattr(short, name)(walkers[name], torch.tensor([t]), torch.full((n,), 0.8).double(), noise_t)
        trace[name].append((walkers[name].mean().item(), walkers[name].std().item()))
s = short.sigmas
for t in (10, 50, 100, 199):
    mean, sd = trace["q_step"][t]
    wanted = (-short.alphas_cumprod[t].sqrt() + 0.8 * s[t]).item()
    assert abs(mean - wanted) < 4 * s[t] / n ** 0.5 and abs(sd ** 2 - s[t] ** 2) < 4 * s[t] ** 2 * (2 / n) ** 0.5
    print(f"t = {t:3d}: mean {mean:+.4f} (Eq. 3: {wanted:+.4f}), sd {sd:.4f} ({s[t]:.4f}); printed kernel {trace['q_step_printed'][t][0]:+.2f}")

# %%
fig, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
for name, colour, label in (("q_step", "tab:blue", "exact kernel"), ("q_step_printed", "crimson", "Eq. (2) as printed")):
    mean, sd = torch.tensor(trace[name]).T
    axis.plot(mean, color=colour, label=label); axis.fill_between(range(200), mean - sd, mean + sd, color=colour, alpha=0.2)
axis.plot(-short.alphas_cumprod.sqrt() + 0.8 * s, "k--", lw=1, label="Eq. (3)")
axis.set(xlabel="t", ylabel="x, started at −1, prior 0.8"); axis.legend()

# %% [markdown]
# ## 5 · The coordinate in which this is plain DDPM
#
# Subtract the shift: $y_t = x_t - s_t f$. Eq. (3) becomes $y_t = \sqrt{\bar\alpha_t}\,x_0 + s_t\,\varepsilon$. Not a trace of $f$. The kernel becomes
#
# $$y_t = x_t - s_t f = \sqrt{\alpha_t}\,(x_{t-1} - s_{t-1} f) + \sqrt{\beta_t}\,\varepsilon = \sqrt{\alpha_t}\,y_{t-1} + \sqrt{\beta_t}\,\varepsilon .$$
#
# **In $y$ the process is exactly plain DDPM.** Keep this sentence. It gives every sampler of the field for nothing: take the shift off, do the usual step, put the shift of the new time on. It also says what the shift can and cannot do: it moves *where* the network looks, and adds nothing to what it could know, since $f$ is among its inputs anyway.

# %%
steps = torch.tensor([3, 250, 600])
batch, prior3, noise3 = (torch.randn(3, 1, 8, 4, generator=g) for _ in range(3))
x_t = process.q_sample(batch, steps, prior3, noise3)
y_t = x_t - process.coefficient(process.sigmas, steps, x_t) * prior3
torch.testing.assert_close(y_t, process.q_sample(batch, steps, None, noise3))

# %% [markdown]
# With $f = 0$ there is no shift to take off, and we must agree with a public DDPM, number for number:

# %%
theirs = DDPMScheduler(beta_schedule="linear")
ours = process.q_sample(batch, steps, torch.zeros_like(batch), noise3)
torch.testing.assert_close(ours, theirs.add_noise(batch, noise3, steps))
torch.testing.assert_close(ours, ShiftedDiffusion(betas, shift=False).q_sample(batch, steps, prior3, noise3))

# %% [markdown]
# ## 6 · The ancestor
#
# CARD (Han et al. 2022) had the idea first, for regression. Its shift is $(1 - \sqrt{\bar\alpha_t})\,f$: what the signal loses, the guess gains, so that the *mean* goes in a straight line from $x_0$ to $f$. Verdiff-Net's weights, $\sqrt{\bar\alpha_t}$ and $s_t$, add up to more than one on the way.

# %%
fig, axes = plt.subplots(1, 2, figsize=(7, 2.6), layout="constrained")
root = bar.sqrt()
for name, weight in (("Verdiff-Net, $s_t$", sigma), ("CARD, $1-\\sqrt{\\barα_t}$", 1 - root)):
    axes[0].plot(weight, label=name); axes[1].plot(root + weight, label=name)
axes[0].set(xlabel="t", ylabel="weight of the prior"); axes[1].set(xlabel="t", ylabel="mean where mask = prior = 1")
axes[0].legend(fontsize=8)
print(f"largest mean where x_0 = f = 1: {(root + sigma).max():.3f}")
assert abs((root + sigma).max() - 2 ** 0.5) < 1e-3

# %% [markdown]
# Where mask and guess agree on 1, Verdiff-Net's mean bulges to $\sqrt2$ in the middle of the chain. A network with inputs normalised for $[-1, 1]$ should know that.

# %% [markdown]
# ## 7 · Good guesses, bad guesses
#
# What does the end of the road look like for a prior that is perfect, blurred, wrong by one vertebra (the top one is lost), and for none? The same noise in all rows.

# %%
below = torch.from_numpy(landmarks_to_mask(film.landmarks[4:] / 3, 192, 64)).float()[None, None]  # the top one is lost
priors = {"perfect": x_0, "blurred": 2 * F.avg_pool2d(mask, 7, 1, 3) - 1, "one lost": 2 * below - 1, "zero": torch.zeros_like(x_0)}
fig, axes = plt.subplots(2, 8, figsize=(8, 5.2), layout="constrained")
for column, (name, t) in zip(axes.T, [(n, t) for n in priors for t in (400, 999)]):
    column[0].imshow(priors[name][0, 0], cmap="magma", vmin=-1, vmax=1)
    column[1].imshow(process.q_sample(x_0, torch.tensor([t]), priors[name], noise)[0, 0], cmap="magma", vmin=-3, vmax=3)
    column[0].set_title(name, fontsize=8); column[1].set_title(f"t = {t}", fontsize=8)
    for axis in column:
        axis.set_axis_off()

# %% [markdown]
# How much does $x_t$ say about the mask? Count the distance between the means of vertebra and background, in units of the noise: $d_t = 2\,(\sqrt{\bar\alpha_t} + s_t\,q)/s_t$ where the prior is right with strength $q$. Without a prior it vanishes; with one it never falls below $2q$. A wrong prior, $q < 0$, cancels the mask at the time where $\sqrt{\bar\alpha_t} = |q|\,s_t$.

# %%
fig, axis = plt.subplots(figsize=(5, 2.5), layout="constrained")
for q, style in ((1, "tab:green"), (0.5, "tab:blue"), (0, "k"), (-0.5, "crimson")):
    axis.plot(2 * (root + sigma * q) / sigma, color=style, label=f"q = {q}")
axis.set(xlabel="t", ylabel="distance / noise", ylim=(-3, 8)); axis.legend(fontsize=8)
blind = int((root + sigma * -0.5).abs().argmin())
print(f"a wrong prior of strength 0.5 hides the mask at t = {blind}")
wrong = process.q_sample(x_0, torch.tensor([blind]), -0.5 * x_0, 0 * noise)
assert wrong.abs().max() < 0.01

# %% [markdown]
# So the shift carries information to the end, right or wrong. The network also *sees* $f$ as an input, and can subtract it. Nothing is lost by a wrong prior in principle; in practice a network learns to trust a prior that was good in training.
#
# ## 8 · Turn the knob
#
# The same noise at every $t$; left plain, right shifted. Drag the slider if a kernel is running, or play the film.

# %%
def draw(t, axes=None):
    if axes is None:
        _, axes = plt.subplots(1, 4, figsize=(7.5, 2.8), layout="constrained", width_ratios=(1, 1, 1.8, 2.2))
    step = torch.tensor([t])
    for axis, p, title in zip(axes, (None, f), ("plain", "shifted")):
        axis.clear(); axis.imshow(process.q_sample(x_0, step, p, noise)[0, 0], cmap="magma", vmin=-3, vmax=3)
        axis.set_axis_off(); axis.set_title(title, fontsize=9)
    axes[2].clear()
    for p, colour in ((None, "grey"), (f, "orange")):
        axes[2].hist(process.q_sample(x_0, step, p, noise).flatten().numpy(), bins=60, range=(-4, 4), histtype="step", color=colour)
    axes[2].set(title="values of $x_t$", yticks=[])
    axes[3].clear(); axes[3].plot(root, "k", label="mask"); axes[3].plot(sigma, "orange", label="prior and noise")
    axes[3].axvline(t, color="tab:blue"); axes[3].set(xlabel="t", title=f"t = {t}"); axes[3].legend(fontsize=7)


interact(lambda t: draw(t), t=IntSlider(300, 0, 999, 10, continuous_update=False));

# %%
fig, axes = plt.subplots(1, 4, figsize=(7, 2.6), dpi=56, layout="constrained", width_ratios=(1, 1, 1.8, 2.2))
movie = FuncAnimation(fig, lambda t: draw(t, axes), frames=range(0, 1000, 70), interval=150)
html = movie.to_jshtml()
plt.close(fig)
HTML(html)

# %% [markdown]
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | marginal | Eq. (3), (5) | the same | |
# | one step | $\sqrt{1-\alpha_t}\,f$, Eq. (2) | $(s_t - \sqrt{\alpha_t}\,s_{t-1})\,f$ | only this one leads to Eq. (3); the printed one ends at 15 f |
# | $T$, schedule | not given | 1000, linear $10^{-4}$ to 0.02 | the defaults of DDPM, which the paper cites |
# | start of sampling | $\mathcal N(0, I)$ in Algorithm 2, $\mathcal N(f, I)$ in Eq. (5) | $\mathcal N(f, I)$ | it is where the forward process ends |
#
# ## Exercises
#
# **1 · Predict.** With the exact kernel, is the pull $k_t$ largest at the beginning, in the middle or at the end of the chain?
#
# <details><summary>Answer</summary>
#
# At both ends. At the beginning $k_0 = s_0 = \sqrt{\beta_0} = 0.01$, because all of the shift is still missing. Then it falls to a third. Towards the end $s_t \approx 1$, and $k_t \approx 1 - \sqrt{\alpha_t} \approx \beta_t/2$ grows again with $\beta_t$: the guess has to be kept alive against the factor $\sqrt{\alpha_t}$.
#
# </details>

# %%
pull = process.sigmas - process.alphas.sqrt() * process.sigmas_prev
plt.figure(figsize=(4, 2)); plt.semilogy(pull); plt.xlabel("t"); plt.ylabel("pull $k_t$")
assert abs(pull[0] - 0.01) < 1e-12 and pull[1:-1].max() < pull[-1] < 0.0101 and pull.min() > 0.003

# %% [markdown]
# **2 · Change.** Give the process a *perfect* prior, $f = x_0$. What is the signal to noise ratio of $x_t$ now, with the shift counted as signal?
#
# <details><summary>Answer</summary>
#
# The mean is $(\sqrt{\bar\alpha_t} + s_t)\,x_0$, so the ratio is $(\sqrt{\bar\alpha_t} + s_t)^2 / s_t^2$. It never falls below 1.
#
# </details>

# %%
ratio = (root + sigma) ** 2 / sigma ** 2
print(f"at the end {ratio[-1]:.2f} instead of {process.snr()[-1]:.6f}")
assert ratio.min() >= 1 and process.snr()[-1] < 1e-4

# %% [markdown]
# **3 · Implement.** Write CARD's one-step kernel, and check it as we checked ours.
#
# <details><summary>Answer</summary>
#
# The weight of $f$ is $w_t = 1 - \sqrt{\bar\alpha_t}$, so the pull is $w_t - \sqrt{\alpha_t}\,w_{t-1} = 1 - \sqrt{\alpha_t}$. Here the kernel has the form of a plain average.
#
# </details>

# %%
def card_step(x, t, f):
    a = process.alphas[t].sqrt()
    return a * x + (1 - a) * f


x = one
for t in range(1000):
    x = card_step(x, t, prior)
w = 1 - process.alphas_cumprod[-1].sqrt()
torch.testing.assert_close(x, process.alphas_cumprod[-1].sqrt() * one + w * prior)

# %% [markdown]
# Next: [05 · The posterior](05_posterior.ipynb): the same road, backwards.
