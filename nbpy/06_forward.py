# %% [markdown]
# # 06 · The forward process
# > How a mask is drowned in noise, and pulled towards a first guess while it drowns

# %% [markdown]
# A diffusion model adds noise to a mask step by step until nothing is left (the *forward process*), and a network learns to walk back. You will build the equation that makes Verdiff-Net's forward process different from plain diffusion, find that the paper's rule for one step (its *kernel*) does not lead to it, derive the one that does, and discover the coordinate in which the whole method is plain DDPM. No network on this page. Half a minute on a laptop, no GPU.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/06_forward.ipynb)

# %%
#| default_exp diffusion.forward

# %%
#| export
import math

import torch
from torch import Tensor

# %%
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
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 75})  # noise does not compress: small pages
plt.rcParams["animation.frame_format"] = "jpeg"
g = torch.Generator().manual_seed(35)


# %% [markdown]
# ## 1 · Symbols
#
# A mask has values 0 and 1, but noise is symmetric around 0. So inside the process masks live in $[-1, 1]$, $x_0 = 2m - 1$, and so does the prior $f$, the first guess of the conditional U-Net. Time runs over $t = 0, \dots, T-1$ with 0 the least noisy; our $t$ is the paper's $t - 1$. But $x_0$ keeps the paper's name: it is always the clean mask, which in our count stands at $t = -1$.
#
# | paper | code | meaning |
# |---|---|---|
# | $\beta_t$ | `betas[t]` | variance added at step $t$ |
# | $\alpha_t = 1 - \beta_t$ | `alphas[t]` | share of the signal's power that survives step $t$ |
# | $\bar\alpha_t = \prod_{r \le t} \alpha_r$ | `alphas_cumprod[t]` | what survives all steps up to $t$; $\bar\alpha_{-1} = 1$ |
# | $s_t = \sqrt{1 - \bar\alpha_t}$ | `sigmas[t]` | amplitude of the noise at $t$; $s_{-1} = 0$ |
# | $f(b)$ | `prior` | first guess from the image $b$ |
# | $x_0, x_t, \varepsilon$ | `x_0, x_t, noise` | mask, noisy mask, standard normal noise |
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
print(
    f"first {betas[0]:.4f}, last {betas[-1]:.4f}; of the mask's power {(1 - betas).prod():.1e} is "
    f"left at the end"
)
assert len(betas) == 1000 and betas.diff().std() < 1e-12


# %% [markdown]
# Nichol and Dhariwal (2021) found that this wastes the last steps, where nothing is left to see, and let $\bar\alpha$ itself fall like a cosine. From $\bar\alpha$ back to the steps, $\beta_t = 1 - \bar\alpha_t / \bar\alpha_{t-1}$, works only if $\bar\alpha$ *falls*: a step can lose signal, never make any. Anything else is refused.

# %%
#| exports
def betas_from_alphas_cumprod(
    alphas_cumprod: Tensor,  # (T,), falling, each in (0, 1)
    max_beta: float = 0.999,  # cuts the last betas, whose alphas_cumprod may be all but zero
) -> Tensor:  # betas, float64, (T,)
    "The steps whose product is given; a schedule that does not fall raises ValueError."
    bar = torch.as_tensor(alphas_cumprod, dtype=torch.float64)
    before = torch.cat([torch.ones(1).double(), bar[:-1]])
    falls = (bar > 0) & (bar < before)
    if not len(bar) or not falls.all():
        t = int((~falls).double().argmax()) if len(bar) else 0
        raise ValueError(
            f"alphas_cumprod must fall from below 1 and stay above 0, but does not at t = {t}: "
            "a step can only lose signal"
        )
    return (1 - bar / before).clamp(max=max_beta)


# %%
torch.testing.assert_close(
    betas_from_alphas_cumprod((1 - betas).cumprod(0)), betas
)  # there and back
try:
    betas_from_alphas_cumprod(torch.tensor([0.9, 0.5, 0.6]))
except ValueError as error:
    print(error)


# %%
#| exports
def cosine_schedule(
    timesteps: int = 1000,  # T
    s: float = 0.008,  # keeps the first betas from vanishing
    max_beta: float = 0.999,  # cuts the last betas
) -> Tensor:  # betas, float64, (T,)
    "Betas whose alphas_cumprod falls like a squared cosine (Nichol and Dhariwal 2021, Eq. 17)."
    u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    bar = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2
    return betas_from_alphas_cumprod(bar[1:] / bar[0], max_beta)


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
schedules = {name: make_schedule(name) for name in ("linear", "cosine")}
fig, axes = plt.subplots(1, 2, figsize=(7, 2.5), layout="constrained")
for name, b in schedules.items():
    bar = (1 - b).cumprod(0)
    axes[0].plot(bar, label=name)
    axes[1].semilogy(bar / (1 - bar), label=name)
axes[0].set(xlabel="t", ylabel="signal's power, ᾱ")
axes[1].set(xlabel="t", ylabel="signal to noise", ylim=(1e-6, 1e4))
axes[0].legend()

# %% [markdown]
# The paper names neither. Ours is the linear one unless a profile (a set of settings) says otherwise. Both agree with a public library:

# %%
for name, theirs in (("linear", "linear"), ("cosine", "squaredcos_cap_v2")):
    torch.testing.assert_close(
        schedules[name].float(), DDPMScheduler(beta_schedule=theirs).betas, atol=2e-6, rtol=1e-4
    )
torch.testing.assert_close(schedules["cosine"], cosine_schedule())


# %% [markdown]
# One class keeps these rows of numbers, in float64. It hands them out in the shape in which they multiply a batch of images, since `t` may differ from image to image.

# %%
#| exports
def check_times(
    t: Tensor,
    timesteps: int,  # T
    batch: int,  # B
) -> Tensor:  # int64 on the CPU
    "t, if it is (B,) or (1,) whole numbers from 0 to T - 1; else ValueError."
    if t.ndim != 1 or len(t) not in (1, batch):
        raise ValueError(f"t must be of shape ({batch},), not {tuple(t.shape)}")
    if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
        raise ValueError(f"t must hold whole numbers, not {t.dtype}")
    index = t.cpu().long()
    if int(index.min()) < 0 or int(index.max()) >= timesteps:
        raise ValueError(f"t must lie between 0 and {timesteps - 1}, not reach from "
                         f"{int(index.min())} to {int(index.max())}")
    return index


# %%
#| exports
class Schedule:
    "The coefficients of a diffusion process at every t: float64 on the CPU, each of shape (T,)."

    def __init__(
        self,
        betas: Tensor,  # (T,), each in (0, 1)
    ):
        betas = torch.as_tensor(betas, dtype=torch.float64).cpu()
        if betas.ndim != 1 or not len(betas):
            raise ValueError(f"betas must be one row of numbers, not of shape {tuple(betas.shape)}")
        bad = ~((betas > 0) & (betas < 1))  # NaN is bad too
        if bad.any():
            raise ValueError(
                f"betas must lie strictly between 0 and 1, so that the signal decreases; "
                f"betas[{int(bad.nonzero()[0])}] is {betas[bad][0].item():g}"
            )
        self.betas, self.alphas, self.timesteps = betas, 1 - betas, len(betas)
        self.alphas_cumprod = self.alphas.cumprod(0)
        self.alphas_cumprod_prev = torch.cat([torch.ones(1).double(), self.alphas_cumprod[:-1]])
        self.sigmas = (1 - self.alphas_cumprod).sqrt()
        self.sigmas_prev = (1 - self.alphas_cumprod_prev).sqrt()

    def coefficient(
        self,
        values: Tensor,  # (T,)
        t: Tensor,  # whole numbers, (B,), or (1,) for all
        like: Tensor,  # (B, ...)
    ) -> Tensor:  # (B, 1, ...), dtype and device of `like`
        "values[t], ready to multiply `like`; cast before it moves, for devices without float64."
        index = check_times(t, self.timesteps, len(like))
        return values[index].to(like.dtype).to(like.device).view(-1, *[1] * (like.ndim - 1))

    def snr(self) -> Tensor:  # (T,)
        "Signal to noise ratio abar / (1 - abar), of the shifted and of the plain process alike."
        return self.alphas_cumprod / (1 - self.alphas_cumprod)


# %%
table = Schedule(linear_schedule())
images = torch.zeros(3, 1, 4, 4)
print(table.coefficient(table.sigmas, torch.tensor([0, 500, 999]), images).flatten())
for wrong in (
    lambda: Schedule([0.1, 1.2]),
    lambda: table.coefficient(table.sigmas, torch.tensor([1000]), images),
    lambda: check_times(torch.tensor([0.5]), 1000, 3),
):
    try:
        wrong()
    except ValueError as error:
        print("refused:", error)

# %% [markdown]
# ## 3 · Plain diffusion drowns everything
#
# DDPM reaches any $t$ in one jump, by the *marginal* $x_t = \sqrt{\bar\alpha_t}\,x_0 + s_t\,\varepsilon$. Here it drowns a phantom, and below, where the X-ray set is at hand, the mask of a real radiograph; the same noise at every $t$.

# %%
film = draw_phantom(3)
mask = torch.from_numpy(landmarks_to_mask(film.landmarks / 3, 192, 64)).float()[
    None, None
]  # 1 1 192 64
x_0, spines = 2 * mask - 1, {"phantom": 2 * mask - 1}
noise = torch.randn(x_0.shape, generator=g)
if XRAY := find_xray():
    spines["radiograph"] = 2 * XRaySet(XRAY, "training", size=(192, 64))[0].mask[None] - 1
else:
    print("the second row needs the X-ray set; see 01_data")

# %%
root, sigma = table.alphas_cumprod.sqrt().float(), table.sigmas.float()
strip = [0, 100, 250, 400, 600, 999]


def film_strip(rows, titles, width=0.95, height=2.6, **look):
    fig, axes = plt.subplots(
        len(rows),
        len(titles),
        figsize=(width * len(titles), height * len(rows)),
        layout="constrained",
        squeeze=False,
    )
    for axis, picture in zip(axes.flat, [p for row in rows for p in row]):
        axis.imshow(picture[0, 0], **({"cmap": "magma", "vmin": -3, "vmax": 3} | look))
        axis.set_axis_off()
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=8)


film_strip(
    [[root[t] * x + sigma[t] * noise for t in strip] for x in spines.values()],
    [f"t = {t}" for t in strip],
)


# %% [markdown]
# At the end nothing of the spine is left. A network that walks back must put all of it together again from the image. But a small U-Net can guess at once where the vertebrae are. Why should the way back begin in the middle of nowhere?
#
# Verdiff-Net's idea: let the noise be centred at the guess. Eq. (3), and the same as a distribution, Eq. (5):
#
# $$x_t = \sqrt{\bar\alpha_t}\,x_0 + s_t\,f + s_t\,\varepsilon, \qquad s_t = \sqrt{1-\bar\alpha_t}.$$
#
# As $t$ grows the mask fades out, and the guess fades in at the pace of the noise. The end is $\mathcal N(f, I)$.

# %%
#| exports
class ShiftedMarginal(Schedule):
    """Eq. (3) and (5): where the mask is at time t, in one jump.

    `shift=False`, or a prior of None, is plain DDPM. x_0, x_t, noise and prior are (B, ...) of one
    shape, masks in [-1, 1]; t is int64 (B,), from 0 (least noisy) to T - 1.
    """

    def __init__(
        self,
        betas: Tensor,  # (T,), each in (0, 1)
        shift: bool = True,  # False: ignore every prior
    ):
        super().__init__(betas)
        self.shift = shift

    def prior_or_zero(self, prior: Tensor | None, x: Tensor) -> Tensor:
        "The prior, of the shape of x, or zeros where there is none or `shift` is off."
        if prior is None or not self.shift:
            return torch.zeros_like(x)
        if prior.shape != x.shape:
            raise ValueError(f"the prior has shape {tuple(prior.shape)}, x has {tuple(x.shape)}")
        return prior

    def q_sample(self, x_0: Tensor, t: Tensor, prior: Tensor | None, noise: Tensor) -> Tensor:
        "Eq. (3): x_t from x_0 and standard normal noise."
        s = self.coefficient(self.sigmas, t, x_0)
        root = self.coefficient(self.alphas_cumprod.sqrt(), t, x_0)
        return root * x_0 + s * (self.prior_or_zero(prior, x_0) + noise)

    def prior_sample(self, prior: Tensor | None, noise: Tensor) -> Tensor:
        "Where sampling starts: N(f, I), the end of Eq. (5) for a long chain."
        return self.prior_or_zero(prior, noise) + noise


# %% [markdown]
# A bad guess on purpose: blurred, too fat, and one vertebra short.

# %%
marginal = ShiftedMarginal(linear_schedule())
guess = F.avg_pool2d(F.max_pool2d(mask, 3, 1, 1), 5, 1, 2)
guess[..., 96:108, :] *= 0.1
f = 2 * guess - 1
film_strip(
    [[f, *(marginal.q_sample(x_0, torch.tensor([t]), f, noise) for t in strip)]],
    ["guess f", *(f"t = {t}" for t in strip)],
)

# %%
start = marginal.prior_sample(f, noise)
end = marginal.q_sample(x_0, torch.tensor([999]), f, noise)
print(
    f"N(f, I) and the end of the chain, same noise: they differ by at most "
    f"{(start - end).abs().max():.3f}"
)
assert (start - end).abs().max() < 0.02
try:
    marginal.q_sample(x_0, torch.tensor([5]), f[..., :32], noise)
except ValueError as error:
    print("refused:", error)

# %% [markdown]
# The last picture still knows where the spine is. That is the whole idea.
#
# One trap: the end is $\mathcal N(f, I)$ only where $\bar\alpha_{T-1}$ is all but zero. A shorter chain with the same $\beta$ stops half-way, and sampling would start from noise that training never showed. The remedy is a larger $\beta$, by $1000/T$ (for $T > 20$; below, the last one would reach 1):

# %%
for T in (1000, 250, 50):
    naive, scaled = (Schedule(linear_schedule(T, 1e-4 * k, 0.02 * k)) for k in (1, 1000 / T))
    left = [s.alphas_cumprod[-1].sqrt().item() for s in (naive, scaled)]
    print(
        f"T = {T:4d}: weight of the mask at the end, same β {left[0]:.3f}, "
        f"β × {1000 // T} {left[1]:.4f}"
    )
assert left[0] > 0.7 and left[1] < 0.01

# %% [markdown]
# ## 4 · One step
#
# A process is defined by its *steps*. The paper prints, as Eq. (2),
#
# $$q(x_t \mid x_{t-1}, f) = \mathcal N\bigl(\sqrt{\alpha_t}\,x_{t-1} + \sqrt{1-\alpha_t}\,f,\; (1-\alpha_t) I\bigr).$$
#
# It looks right: the coefficients of Eq. (3), without the bars. Iterate it. The weight of the guess in the mean obeys $c_t = \sqrt{\alpha_t}\,c_{t-1} + \sqrt{1-\alpha_t}$, and should arrive at $s_t$.

# %%
c, reached = torch.zeros(()).double(), []
for beta in betas:
    c = (1 - beta).sqrt() * c + beta.sqrt()
    reached.append(c.item())
fig, axis = plt.subplots(figsize=(5, 2.5), layout="constrained")
axis.plot(reached, color="crimson", label="Eq. (2) iterated")
axis.plot(table.sigmas, "k", label="Eq. (3): $s_t$")
axis.set(xlabel="t", ylabel="weight of f")
axis.legend()
print(
    f"at the end {reached[-1]:.2f} instead of {sigma[-1]:.2f}; at most {max(reached):.2f}, "
    f"at t = {reached.index(max(reached))}"
)
assert reached[-1] > 14


# %% [markdown]
# Run literally, the chain drifts to fifteen times the prior. The reason: independent noises add as variances, means add plainly. $\sqrt{\beta_t}$ is the right amplitude for *noise*, which averages out from step to step; a *mean* with that amplitude piles up.
#
# What must the pull $k_t$ towards $f$ be? Suppose Eq. (3) holds at $t-1$, and take one step $x_t = \sqrt{\alpha_t}\,x_{t-1} + k_t f + \sqrt{\beta_t}\,\varepsilon$. Its mean is
#
# $$\sqrt{\alpha_t}\,\bigl(\sqrt{\bar\alpha_{t-1}}\,x_0 + s_{t-1} f\bigr) + k_t f = \sqrt{\bar\alpha_t}\,x_0 + \bigl(\sqrt{\alpha_t}\,s_{t-1} + k_t\bigr) f .$$
#
# The mask's part is right already. The guess's part must be $s_t$, so $k_t = s_t - \sqrt{\alpha_t}\,s_{t-1}$. The variance is $\alpha_t s_{t-1}^2 + \beta_t = \alpha_t - \bar\alpha_t + 1 - \alpha_t = s_t^2$, as in DDPM. So the kernel that leads to Eq. (3) is
#
# $$q(x_t \mid x_{t-1}, f) = \mathcal N\bigl(\sqrt{\alpha_t}\,x_{t-1} + (s_t - \sqrt{\alpha_t}\,s_{t-1})\,f,\; \beta_t I\bigr).$$
#
# We implement both, the exact kernel and the printed one.

# %%
#| exports
class ShiftedDiffusion(ShiftedMarginal):
    "The whole forward process: the marginal of Eq. (3), and steps that lead to it."

    def q_step(self, x_prev: Tensor, t: Tensor, prior: Tensor | None, noise: Tensor) -> Tensor:
        "x_t from x_{t-1} (from x_0 where t = 0), by the kernel whose iteration is Eq. (3)."
        pull = self.coefficient(self.sigmas - self.alphas.sqrt() * self.sigmas_prev, t, x_prev)
        a, b = (self.coefficient(v.sqrt(), t, x_prev) for v in (self.alphas, self.betas))
        return a * x_prev + pull * self.prior_or_zero(prior, x_prev) + b * noise

    def q_step_printed(
        self, x_prev: Tensor, t: Tensor, prior: Tensor | None, noise: Tensor
    ) -> Tensor:
        "One step of Eq. (2) as printed; iterated, it drifts away from Eq. (3)."
        a, b = (self.coefficient(v.sqrt(), t, x_prev) for v in (self.alphas, self.betas))
        return a * x_prev + b * (self.prior_or_zero(prior, x_prev) + noise)


# %% [markdown]
# Without noise the iterated kernel must give the *mean* of Eq. (3), to the precision of float64:

# %%
process = ShiftedDiffusion(linear_schedule())
one, prior = torch.full((1, 1), -1.0).double(), torch.full((1, 1), 0.8).double()
x, zero = one, torch.zeros_like(one)
for t in range(process.timesteps):
    x = process.q_step(x, torch.tensor([t]), prior, zero)
print(
    "iterated", x.item(), "Eq. (3)", process.q_sample(one, torch.tensor([999]), prior, zero).item()
)
torch.testing.assert_close(
    x, process.q_sample(one, torch.tensor([999]), prior, zero), rtol=1e-12, atol=0
)

# %% [markdown]
# And with noise, the *distribution*. We send 20,000 walkers (independent pixels) down a chain of 200 steps (so $\beta$ is five times larger), all from $x_0 = -1$ with $f = 0.8$, and compare their mean and variance with Eq. (3). Chance allows a standard error of $s/\sqrt n$ for the mean and $s^2\sqrt{2/n}$ for the variance. With the same noise, other walkers follow the printed kernel.

# %%
n, short = 20_000, ShiftedDiffusion(linear_schedule(200, 5e-4, 0.1))
trace = {name: torch.full((201, n), -1.0).double() for name in ("q_step", "q_step_printed")}
f_n = torch.full((n,), 0.8).double()
for t in range(200):
    noise_t = torch.randn(n, generator=g, dtype=torch.float64)
    for name, path in trace.items():
        path[t + 1] = getattr(short, name)(path[t], torch.tensor([t]), f_n, noise_t)

# %%
s, wanted = short.sigmas, -short.alphas_cumprod.sqrt() + 0.8 * short.sigmas
means = {name: path[1:].mean(1) for name, path in trace.items()}
off_mean = (means["q_step"] - wanted) / (s / n**0.5)  # in standard errors
off_var = (trace["q_step"][1:].var(1) - s**2) / (s**2 * (2 / n) ** 0.5)
for t in (10, 50, 100, 199):
    print(
        f"t = {t:3d}: Eq. (3) {wanted[t]:+.4f}; exact kernel {means['q_step'][t]:+.4f} ± "
        f"{s[t] / n**0.5:.4f}; printed kernel {means['q_step_printed'][t]:+.2f}"
    )
assert off_mean.abs().max() < 4 and off_var.abs().max() < 4

# %%
fig, axes = plt.subplots(1, 2, figsize=(7.4, 2.8), layout="constrained")
for name, colour, label in (
    ("q_step", "tab:blue", "exact kernel"),
    ("q_step_printed", "crimson", "Eq. (2) as printed"),
):
    mean, sd = trace[name][1:].mean(1), trace[name][1:].std(1)
    axes[0].plot(mean, color=colour, label=label)
    axes[0].fill_between(range(200), mean - sd, mean + sd, color=colour, alpha=0.2)
axes[0].plot(wanted, "k--", lw=1, label="Eq. (3)")
axes[0].set(xlabel="t", ylabel="x, started at −1, prior 0.8")
axes[0].legend(fontsize=8)
at = torch.arange(9, 200, 10)
for off, colour, label in ((off_mean, "tab:blue", "mean"), (off_var, "tab:green", "variance")):
    axes[1].errorbar(
        at + (off is off_var) * 3, off[at], 1, fmt="o", ms=3, color=colour, label=label
    )
axes[1].axhline(0, color="k", lw=0.8)
axes[1].set(
    xlabel="t", ylabel="exact kernel − Eq. (3),\nin standard errors (bar: ±1)", ylim=(-4.5, 4.5)
)
axes[1].legend(fontsize=8)

# %% [markdown]
# The exact kernel stays within a few standard errors (neighbouring points share their noise, so they wander together); the printed one drifts away.
#
# ## 5 · The coordinate in which this is plain DDPM
#
# Subtract the shift: $y_t = x_t - s_t f$. Eq. (3) becomes $y_t = \sqrt{\bar\alpha_t}\,x_0 + s_t\,\varepsilon$, without a trace of $f$. The kernel becomes
#
# $$y_t = x_t - s_t f = \sqrt{\alpha_t}\,(x_{t-1} - s_{t-1} f) + \sqrt{\beta_t}\,\varepsilon = \sqrt{\alpha_t}\,y_{t-1} + \sqrt{\beta_t}\,\varepsilon .$$
#
# **In $y$ the process is exactly plain DDPM.** Keep this sentence. It gives every sampler of the field for nothing: take the shift off, do the usual step, put the shift of the new time on. It also says what the shift cannot do: it moves *where* the network looks, and adds nothing to what it could know, since the network gets $f$ as an input as well (page [11](11_model.ipynb)).

# %%
steps = torch.tensor([3, 250, 600])
batch, prior3, noise3 = (torch.randn(3, 1, 8, 4, generator=g) for _ in range(3))
x_t = process.q_sample(batch, steps, prior3, noise3)
y_t = x_t - process.coefficient(process.sigmas, steps, x_t) * prior3
torch.testing.assert_close(y_t, process.q_sample(batch, steps, None, noise3))

# %% [markdown]
# With $f = 0$ we must agree with a public DDPM, number for number, in the jump and in the step:

# %%
public = DDPMScheduler(beta_schedule="linear")
ours = process.q_sample(batch, steps, torch.zeros_like(batch), noise3)
torch.testing.assert_close(ours, public.add_noise(batch, noise3, steps))
torch.testing.assert_close(
    ours, ShiftedDiffusion(betas, shift=False).q_sample(batch, steps, prior3, noise3)
)
step = (
    public.alphas[steps].sqrt().view(3, 1, 1, 1) * batch
    + public.betas[steps].sqrt().view(3, 1, 1, 1) * noise3
)
torch.testing.assert_close(process.q_step(batch, steps, None, noise3), step)

# %% [markdown]
# ## 6 · The ancestor
#
# CARD (Han et al. 2022) had the idea first, for regression. Its shift is $(1 - \sqrt{\bar\alpha_t})\,f$: what the signal loses, the guess gains, so the *mean* goes in a straight line from $x_0$ to $f$. Verdiff-Net's weights, $\sqrt{\bar\alpha_t}$ and $s_t$, add up to more than one on the way.

# %%
fig, axes = plt.subplots(1, 2, figsize=(7, 2.6), layout="constrained")
for name, weight in (("Verdiff-Net, $s_t$", sigma), ("CARD, $1-\\sqrt{\\barα_t}$", 1 - root)):
    axes[0].plot(weight, label=name)
    axes[1].plot(root + weight, label=name)
axes[0].set(xlabel="t", ylabel="weight of the prior")
axes[1].set(xlabel="t", ylabel="mean where mask = prior = 1")
axes[0].legend(fontsize=8)
print(f"largest mean where x_0 = f = 1: {(root + sigma).max():.3f}")
assert abs((root + sigma).max() - 2**0.5) < 1e-3

# %%
middle = [50, 150, 250, 400]
film_strip(
    [[root[t] * x_0 + w[t] * f for t in middle] for w in (sigma, 1 - root)],
    [f"t = {t}" for t in middle],
    height=2.1,
    vmin=-1.5,
    vmax=1.5,
)

# %% [markdown]
# The means without noise, Verdiff-Net above, CARD below. Where mask and guess agree, Verdiff-Net's mean bulges to $\pm\sqrt2$ on the way (the glow in the upper row), and the guess comes in earlier than CARD's. A network whose inputs are expected in $[-1, 1]$ gets more than that.
#
# ## 7 · Good guesses, bad guesses
#
# What does the shift do when $f$ is perfect, blurred, wrong by one vertebra, or zero? "Off by one" is the classical slip in counting: each vertebra is taken for its neighbour. In a mask without names only the top one is lost.

# %%
below = torch.from_numpy(landmarks_to_mask(film.landmarks[4:] / 3, 192, 64)).float()[None, None]
priors = {
    "perfect": x_0,
    "blurred": 2 * F.avg_pool2d(mask, 7, 1, 3) - 1,
    "off by one": 2 * below - 1,
    "zero": torch.zeros_like(x_0),
}
late = {name: process.q_sample(x_0, torch.tensor([999]), p, noise) for name, p in priors.items()}
film_strip([list(priors.values()), list(late.values())], priors, height=2.1)

# %% [markdown]
# Above the priors, below $x_t$ at the end of the chain. How much does $x_t$ say about the mask, to somebody who sees one pixel and is not told $f$? Count the pixels on the wrong side of zero, over a hundred drawings of the noise:

# %%
times, many = range(0, 1000, 20), torch.randn(100, 1, 192, 64, generator=g)
x_many, top = x_0.expand_as(many), (mask - below).bool().expand_as(many)  # 100 1 192 64


def wrong_shares(p):
    "Share of wrong pixels at each time: of all of them, and of those in the top vertebra."
    shares = []
    for t in times:
        x_t = process.q_sample(x_many, torch.tensor([t]), p.expand_as(many), many)
        wrong = ((x_t > 0) != (x_many > 0)).float()
        shares.append((wrong.mean().item(), wrong[top].mean().item()))
    return zip(*shares)


# %%
fig, axes = plt.subplots(1, 2, figsize=(7.4, 2.8), layout="constrained")
for name, p in priors.items():
    everywhere, in_top = wrong_shares(p)
    width = 4 if name == "perfect" else 1.5  # seen under "off by one"
    axes[0].plot(times, everywhere, lw=width, label=name)
    axes[1].plot(times, in_top, lw=width)
axes[0].set(xlabel="t", ylabel="share of pixels wrong", ylim=(0, 0.9))
axes[0].legend(fontsize=8)
axes[1].set(xlabel="t", ylabel="the same in the top vertebra", ylim=(0, 0.9))

# %% [markdown]
# With a perfect prior never more than one pixel in six is wrong; without one it becomes a coin toss. A prior that is wrong in one place is worse there than none: the shift writes its mistake into $x_t$.
#
# The same in one number, the signal to noise ratio, plainly $\bar\alpha_t / s_t^2$. If the shift counts as signal where the prior is right with strength $q$ (that is, $f = q\,x_0$), it is $(\sqrt{\bar\alpha_t} + q\,s_t)^2/s_t^2$. For $q > 0$ that never falls below $q^2$. A wrong prior, $q < 0$, wipes the mask out where $\sqrt{\bar\alpha_t} = |q|\,s_t$, and from there on tells the opposite.

# %%
fig, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
axis.semilogy(process.snr(), "k", label="no shift")
for q, style in ((1, "tab:green"), (0.5, "tab:blue"), (-0.5, "crimson")):
    axis.semilogy((root + sigma * q) ** 2 / sigma**2, color=style, label=f"f = {q:+g} $x_0$")
axis.set(xlabel="t", ylabel="signal to noise", ylim=(1e-5, 1e4))
axis.legend(fontsize=8)
blind = int((root - 0.5 * sigma).abs().argmin())
print(f"a wrong prior of strength 0.5 hides the mask at t = {blind}")
assert process.q_sample(x_0, torch.tensor([blind]), -0.5 * x_0, 0 * noise).abs().max() < 0.01


# %% [markdown]
# But the network *does* see $f$, can compute $y_t$, and for $y_t$ the black line holds, whatever the prior. In principle nothing is lost by a wrong prior; in practice a network learns to trust a prior that was good in training.
#
# ## 8 · Turn the knob
#
# The same noise at every $t$. From the left: the plain process, the shifted one, the values of $x_t$ in both (grey plain, orange shifted), and the place on the schedule.

# %%
def draw(t, axes=None):
    if axes is None:
        _, axes = plt.subplots(
            1, 4, figsize=(7.5, 2.8), layout="constrained", width_ratios=(1, 1, 1.8, 2.2)
        )
    for axis in axes:
        axis.clear()
    for axis, p, title, colour in zip(axes, (None, f), ("plain", "shifted"), ("grey", "orange")):
        x_t = process.q_sample(x_0, torch.tensor([t]), p, noise)
        axis.imshow(x_t[0, 0], cmap="magma", vmin=-3, vmax=3)
        axis.set_axis_off()
        axis.set_title(title, fontsize=9)
        axes[2].hist(x_t.flatten().numpy(), bins=60, range=(-4, 4), histtype="step", color=colour)
    axes[2].set(xlabel="values of $x_t$", yticks=[])
    axes[3].plot(root, "k", label="mask")
    axes[3].plot(sigma, "orange", label="prior and noise")
    axes[3].axvline(t, color="tab:blue")
    axes[3].set(xlabel="t", title=f"t = {t}")
    axes[3].legend(fontsize=7, loc="center right")


interact(lambda t: draw(t), t=IntSlider(300, 0, 999, 10, continuous_update=False));

# %%
fig, axes = plt.subplots(
    1, 4, figsize=(7, 2.5), dpi=50, layout="constrained", width_ratios=(1, 1, 1.8, 2.2)
)
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
# | one step | $\sqrt{1-\alpha_t}\,f$, Eq. (2) | $(s_t - \sqrt{\alpha_t}\,s_{t-1})\,f$ | only this one leads to Eq. (3); the printed one piles the prior up |
# | $T$, schedule | not given | 1000, linear $10^{-4}$ to 0.02 | the defaults of DDPM, on which the paper builds |
# | start of sampling | $\mathcal N(0, I)$ in Algorithm 2, $\mathcal N(f, I)$ in Eq. (5) | $\mathcal N(f, I)$ | it is where the forward process ends |
#
# ## Exercises
#
# **1 · Predict.** With the exact kernel, is the pull $k_t$ largest at the beginning, in the middle or at the end of the chain?
#
# <details><summary>Answer</summary>
#
# At both ends. At the beginning $k_0 = s_0 = \sqrt{\beta_0} = 0.01$, because $s_t$, a root, rises most steeply from 0. Then it falls to a third. Towards the end $s_t \approx 1$, and $k_t \approx 1 - \sqrt{\alpha_t} \approx \beta_t/2$ grows again with $\beta_t$: the guess has to be kept alive against the factor $\sqrt{\alpha_t}$.
#
# </details>

# %%
pull = process.sigmas - process.alphas.sqrt() * process.sigmas_prev
plt.figure(figsize=(4, 2))
plt.semilogy(pull)
plt.xlabel("t")
plt.ylabel("pull $k_t$")
assert abs(pull[0] - 0.01) < 1e-12 and pull[1:-1].max() < pull[-1] < 0.0101 and pull.min() > 0.003

# %% [markdown]
# **2 · Change.** Take the cosine schedule. Does the printed kernel still drift? And does the exact one still lead to Eq. (3)?
#
# <details><summary>Answer</summary>
#
# The printed kernel is wrong on every schedule, by a different amount on each: what piles up depends on how the $\beta$ are spread. (Here the last steps, with $\beta$ near 1, forget most of it again.) The exact kernel is right on every schedule, by construction.
#
# </details>

# %%
other, x, y, worst = ShiftedDiffusion(cosine_schedule()), one, one, 0.0
for t in range(1000):
    x, y = (
        step(v, torch.tensor([t]), prior, zero)
        for step, v in ((other.q_step_printed, x), (other.q_step, y))
    )
    worst = max(worst, (x - other.q_sample(one, torch.tensor([t]), prior, zero)).abs().item() / 0.8)
print(
    f"printed kernel, cosine schedule: off by up to {worst:.1f} times the prior, "
    f"at the end by {abs(x.item() / 0.8 - 1):.2f}"
)
assert worst > 5
torch.testing.assert_close(
    y, other.q_sample(one, torch.tensor([999]), prior, zero), rtol=1e-9, atol=1e-12
)


# %% [markdown]
# **3 · Implement.** Write CARD's one-step kernel, and check it as we checked ours.
#
# <details><summary>Answer</summary>
#
# The weight of $f$ is $w_t = 1 - \sqrt{\bar\alpha_t}$, so the pull is $w_t - \sqrt{\alpha_t}\,w_{t-1} = 1 - \sqrt{\alpha_t}$. So the mean of a step is a weighted average of $x_{t-1}$ and $f$; the variance is $\beta_t$ as before.
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
# Next: [07 · The posterior](07_posterior.ipynb): the same road, backwards.
