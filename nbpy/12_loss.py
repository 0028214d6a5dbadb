# %% [markdown]
# # 12 · The loss
# > Eq. (9) read literally falls without end; what the two networks learn instead

# %% [markdown]
# [Lesson 11](11_model.ipynb) put two networks into one object that gives nonsense, since nothing in it has learned. How does it learn? A network learns what its loss rewards. You will run the paper's Eq. (9) as printed and watch it fall without end, write the loss that must be meant, and measure which of its terms moves which part of the network. Under a minute on a laptop, no GPU. Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/12_loss.ipynb).

# %%
#| default_exp training.loss

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    line = 'install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"'
    get_ipython().run_line_magic("pip", line)  # noqa: F821

# %%
#| exports
#| code-fold: true
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verdiff.diffusion.forward import ShiftedDiffusion
from verdiff.diffusion.posterior import training_target
from verdiff.networks.model import Conditioning, VerdiffNet
from verdiff.settings import Settings

# %%
#| code-fold: true
from types import SimpleNamespace

import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.packed import pack
from verdiff.data.phantom_set import PhantomSet
from verdiff.settings import load_settings

# %%
#| code-fold: true
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
plt.rcParams |= {"figure.constrained_layout.use": True, "legend.fontsize": 8}
torch.set_num_threads(1)
g = torch.Generator().manual_seed(35)

# %% [markdown]
# ## 1 · Eq. (8): tell what was added
#
# A radiograph $b$ and its mask $x_0$ are given; a time $t$ and noise $\varepsilon$ are drawn. Eq. (3) makes $x_t$ from them, the diffusion U-Net $\Phi$ looks at it, and Eq. (8) is the squared error of what it says:
#
# $$\mathcal L_{\mathrm{MSE}}=\lVert\varepsilon-\Phi(x_t,t,f(b))\rVert^2,\qquad x_t=\sqrt{\bar\alpha_t}\,x_0+s_t\,(f(b)+\varepsilon).$$
#
# Here for one phantom. The last layer of $\Phi$ starts at zero, so a new network says "nothing", everywhere.

# %%
four = pack(PhantomSet(size=(96, 32), n_training=8, n_test=2), progress=False)
image, mask = four.images[:4].float() / 255, four.masks[:4].float()
torch.manual_seed(0)
model = VerdiffNet(channels=(8, 16, 32), prediction_type="epsilon")
t = torch.tensor([50, 200, 500, 900])
noise = torch.randn(mask.shape, generator=g)

# %%
known = model.condition(image)
x_t = model.process().q_sample(2 * mask - 1, t, known.prior, noise)
said = model.denoise(x_t, t, known).detach()
print(f"Eq. (8) of a new network: {F.mse_loss(said, noise):.2f}")
assert not said.any() and abs(F.mse_loss(said, noise) - 1) < 0.05

# %%
#| code-fold: true
#| fig-alt: "Five panels of one phantom at t = 200: the radiograph, the mask, x_t as a grainy mask, the noise as grain, and the network's answer, an even grey."
shown = {"$b$": image, "$x_0$": 2 * mask - 1, "$x_t$": x_t,
         "noise": noise, "said": said}
fig, axes = plt.subplots(1, 5, figsize=(5, 3))
for axis, (name, picture) in zip(axes, shown.items()):
    look = {"cmap": "gray"} if name == "$b$" else {"cmap": "magma",
                                                   "vmin": -2, "vmax": 2}
    axis.imshow(picture[1, 0], **look)
    axis.set_title(name, fontsize=9)
    axis.set_axis_off()

# %% [markdown]
# So far this is any diffusion model. `prediction_type` may ask for the mask or for $v$ instead of the noise ([07](07_posterior.ipynb)); our default is the mask.
#
# ## 2 · Eq. (9), read literally
#
# For the second network the paper prints a binary cross entropy between the *noise* $\varepsilon$ and an output:
#
# $$\mathcal L_{\mathrm{BCE}}=-\bigl[\varepsilon\log\hat\varepsilon+(1-\varepsilon)\log(1-\hat\varepsilon)\bigr].$$
#
# A cross entropy wants targets between 0 and 1; Gaussian noise has no bounds. Try it, with one number to learn per pixel.

# %%
flat = noise.flatten()[:1000]
logit = torch.zeros(1000, requires_grad=True)
fall = []
for _ in range(300):
    loss = F.binary_cross_entropy_with_logits(logit, flat)
    slope, = torch.autograd.grad(loss, logit)
    logit.data -= 200 * slope
    fall.append(loss.item())

# %%
sure = ((logit.sigmoid() - 0.5).abs() > 0.49).float().mean()
print(f"loss {fall[0]:.2f} -> {fall[-1]:.0f}; "
      f"outputs that end at 0 or 1: {sure:.0%}")
assert fall[-1] < -10

# %%
#| code-fold: true
#| fig-alt: "Left: the literal Eq. (9) falls on a straight line over 300 steps, far below zero. Right: its value against the logit for three noise values; only the one between 0 and 1 has a valley, the other two run downhill without end."
fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.4))
left.plot(fall, "C3")
left.axhline(0, color="k", lw=0.6)
left.set(xlabel="step", ylabel="Eq. (9) taken literally")
z = torch.linspace(-6, 6, 200)
for e, colour in ((0.4, "C2"), (1.8, "C3"), (-0.7, "C1")):
    value = F.binary_cross_entropy_with_logits(
        z, torch.full_like(z, e), reduction="none")
    right.plot(z, value, colour, label=f"noise {e}")
right.set(xlabel="logit of the output", ylabel="Eq. (9), one pixel")
right.legend();

# %% [markdown]
# There is no minimum: where $\varepsilon>1$ or $\varepsilon<0$ (right, red and orange) the loss falls for ever as the output runs to 1 or to 0. Two thirds of all Gaussian numbers are such. The network would learn to shout.
#
# ## 3 · Eq. (10), as it must be meant
#
# But the paper's conditional U-Net gives a mask, and the natural loss of a mask is a cross entropy against the *true mask*. So we read Eq. (9), and Eq. (10) is the sum of both. With $p=\mathrm{sigmoid}(\text{logits})$ of the conditional U-Net and $m$ the mask,
#
# $$\mathcal L=\underbrace{\lVert\text{target}-\Phi(x_t,t,f(b))\rVert^2}_{\text{Eq. (8)}}+w_1\,\underbrace{\mathrm{BCE}(p,m)}_{\text{Eq. (9), as it must be meant}}+w_2\,\underbrace{\mathrm{softDice}(p,m)}_{\text{ours}}.$$
#
# The third term is ours. In a cross entropy each pixel has one vote, and most pixels are background; Dice asks for the overlap. (*Soft*: of probabilities, so that it has a slope. The profile `paper` does without, $w_2=0$.)

# %%
#| exports
def soft_dice_loss(
    logits: Tensor,  # (B, 1, H, W)
    mask: Tensor,  # {0, 1}, (B, 1, H, W)
) -> Tensor:  # in [0, 1], a scalar
    "1 - Dice of the probabilities; the 1 added is for empty masks."
    p, m = torch.sigmoid(logits).flatten(1), mask.flatten(1)
    both, sizes = (p * m).sum(1), p.sum(1) + m.sum(1)
    return 1 - ((2 * both + 1) / (sizes + 1)).mean()


# %%
corner = torch.zeros(1, 1, 8, 8)
corner[..., :2, :2] = 1
right, wrong = 40 * (2 * corner - 1), 40 * (1 - 2 * corner)
assert soft_dice_loss(right, corner) < 1e-3
assert soft_dice_loss(wrong, corner) > 0.8

# %% [markdown]
# One thing more stands in the code, is not in the paper, and is off by default. In training $x_t$ is made from the truth, so the network learns to trust what it sees there. In sampling it sees its own mistakes. *Recycling* (Fu et al. 2023) makes $x_t$ of some rows from the network's own estimate, while the target stays the truth. The estimate is what one step from pure noise gives:

# %%
#| exports
@torch.no_grad()
def first_estimate(
    model: VerdiffNet,
    noise: Tensor,  # standard normal, (B, 1, H, W)
    conditioning: Conditioning,  # of the same B images
    process: ShiftedDiffusion,
) -> Tensor:  # mask in [-1, 1], (B, 1, H, W); no gradient
    "The first step of every sampler, from N(f, I); Fu et al. 2023."
    x_T = process.prior_sample(conditioning.prior.float(), noise)
    t = torch.full((len(noise),), process.timesteps - 1, device=noise.device)
    return model.denoise(x_T, t, conditioning).float().clamp(-1, 1)


# %%
guess = first_estimate(model, noise, known, model.process())
assert guess.shape == mask.shape and not guess.requires_grad


# %% [markdown]
# Now Eq. (10) for a batch. (The same noise serves for the estimate and for $x_t$: just so a sampler without fresh noise goes from its first step to the next.)

# %%
#| exports
def training_loss(
    model: VerdiffNet,
    image: Tensor,  # (B, 1, H, W) in [0, 1]
    mask: Tensor,  # {0, 1}, (B, 1, H, W)
    t: Tensor,  # int64 (B,)
    noise: Tensor,  # standard normal, (B, 1, H, W)
    bce_weight: float = 1.0,  # w_1
    dice_weight: float = 1.0,  # w_2
    process: ShiftedDiffusion | None = None,  # None: the model's
    recycled: Tensor | None = None,  # bool (B,): whose x_t is an estimate's
) -> dict[str, Tensor]:  # "total", "mse", "bce", "dice": means over images
    "Eq. (10) for one batch: the diffusion loss, and the prior's own."
    process = process or model.process()
    known = model.condition(image)
    x_0 = shown = 2 * mask - 1
    if recycled is not None and recycled.any():
        part, shown = known.select(recycled).detach(), x_0.clone()
        shown[recycled] = first_estimate(
            model, noise[recycled], part, process)
    x_t = process.q_sample(shown, t, known.prior.float(), noise)  # Eq. (3)
    said = model.denoise(x_t, t, known).float()
    kind, logits = model.config.prediction_type, known.logits.float()
    mse = F.mse_loss(said, training_target(process, x_0, t, noise, kind))
    bce = F.binary_cross_entropy_with_logits(logits, mask)
    dice = soft_dice_loss(logits, mask)
    total = mse + bce_weight * bce + dice_weight * dice
    return {"total": total, "mse": mse, "bce": bce, "dice": dice}


# %%
parts = training_loss(model, image, mask, t, noise)
print({name: round(value.item(), 3) for name, value in parts.items()})
assert torch.equal(parts["mse"], F.mse_loss(said, noise))
assert torch.equal(parts["total"], parts["mse"] + parts["bce"] + parts["dice"])


# %% [markdown]
# ## 4 · Which term teaches what
#
# The model has three parts: the fusion module ([09](09_msfm.ipynb)), whose features $X$ go to *both* U-Nets, the conditional U-Net, which makes the prior $f$ of $X$, and the diffusion U-Net. How much of each term's gradient arrives where? (Its last layer at zero would let nothing through, so it gets random weights first.)

# %%
def slopes(detach):
    "Size of the gradient: each term (row) in each part (column)."
    torch.manual_seed(0)
    net = VerdiffNet(channels=(8, 16, 32), detach_prior=detach)
    nn.init.normal_(net.diffusion.out[-1].weight, std=0.1)
    losses = training_loss(net, image, mask, t, noise)
    parts = net.features, net.conditional, net.diffusion
    return torch.tensor([[arriving(losses[term], part) for part in parts]
                         for term in ("mse", "bce", "dice")])


def arriving(loss, part):
    grads = torch.autograd.grad(loss, list(part.parameters()),
                                retain_graph=True, allow_unused=True)
    return sum(x.square().sum() for x in grads if x is not None) ** 0.5


# %%
detached, joined = slopes(True), slopes(False)
assert detached[0].bool().tolist() == [True, False, True]
assert detached[1:].bool().tolist() == [[True, True, False]] * 2
assert joined[0].bool().all()

# %%
#| code-fold: true
#| fig-alt: "Two tables of gradient sizes, terms in rows and parts in columns. Left, prior detached: the mse reaches MSFM and diffusion U-Net but not the conditional U-Net; bce and dice reach MSFM and conditional U-Net. Right, prior not detached: the mse reaches all three parts."
fig, axes = plt.subplots(1, 2, figsize=(7, 2.4), sharey=True)
for axis, table, name in zip(axes, (detached, joined), ("on", "off")):
    axis.imshow((table + 1e-6).log10(), cmap="Blues", vmin=-4, vmax=1,
                aspect="auto")
    for (row, column), value in zip(torch.cartesian_prod(
            torch.arange(3), torch.arange(3)).tolist(), table.flatten()):
        axis.text(column, row, f"{value:.2g}" if value else "none",
                  ha="center", va="center", fontsize=9,
                  color="white" if value > 0.3 else "black")
    axis.set_xticks(range(3), ["MSFM", "conditional", "diffusion"])
    axis.set_yticks(range(3), ["mse", "bce", "dice"])
    axis.set_title(f"gradient, detach_prior {name}", fontsize=9)

# %% [markdown]
# So with `detach_prior`, our default, the terms share the work like this: the two of the mask teach the conditional U-Net, the squared error teaches the diffusion U-Net, and **the fusion module serves both**: it hears all three. Without it (right; the profile `paper`) the squared error also reaches the conditional U-Net through $f$, which may then become a code for its neighbour instead of a guess of the mask ([11](11_model.ipynb) trained both ways).
#
# ## 5 · The loss as a module
#
# The loop of the next lesson calls one thing a step. A module can be wrapped, for several GPUs or for half precision, and everything inside comes along.

# %%
#| exports
LOSSES = ("total", "mse", "bce", "dice")


class Objective(nn.Module):
    "The loss as a module: one wrapped call a step computes everything."

    def __init__(self, model: VerdiffNet, settings: Settings):
        super().__init__()
        self.model, self.process = model, model.process()
        self.weights = settings.bce_weight, settings.dice_weight

    def forward(
        self, image: Tensor, mask: Tensor, t: Tensor, noise: Tensor,
        recycled: Tensor | None = None,
    ) -> dict[str, Tensor]:
        "As `training_loss`."
        return training_loss(self.model, image, mask, t, noise,
                             *self.weights, self.process, recycled)


# %%
again = Objective(model, load_settings("smoke"))(image, mask, t, noise)
assert tuple(again) == LOSSES and torch.equal(again["total"], parts["total"])

# %% [markdown]
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | Eq. (9) | cross entropy of the noise | cross entropy of the prior against the mask | the literal one has no minimum |
# | what is optimised | "Equation (9)" | Eq. (10), the sum | Eq. (9) alone has no diffusion loss |
# | soft Dice | none | weight 1; 0 in `paper` | small foreground |
# | what the diffusion loss teaches the prior | not said | nothing (`detach_prior`); everything in `paper` | else the prior may become a code |
# | what $x_t$ is made of | the truth | the truth; with `recycle` also the network's estimate | off by default; an experiment |
#
# ## Exercises
#
# **1 · Predict.** The output layer of the diffusion U-Net starts at zero. What is the `mse` of the first step if the target is the mask, the noise, or $v=\sqrt{\bar\alpha_t}\,\varepsilon-s_t\,x_0$? Write three numbers down, then compute them.

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# Mask: the target is $\pm1$, so exactly 1. Noise: standard normal, so about 1. For $v$: the mean square is $\bar\alpha_t\cdot1+s_t^2\cdot1=1$ again, up to chance. All three begin at 1, which is why their curves can be compared at all.

# %%
#| code-fold: true
for kind in ("sample", "epsilon", "v_prediction"):
    fresh = VerdiffNet(channels=(8, 16), prediction_type=kind)
    first = training_loss(fresh, image, mask, t, noise)["mse"].item()
    print(kind, round(first, 4))
    assert abs(first - 1) < (1e-6 if kind == "sample" else 0.07)

# %% [markdown]
# </details>
#
# **2 · Change.** Leave the two ones out of `soft_dice_loss` and give it a radiograph without any vertebra. What is the loss of a network that rightly finds nothing, or nearly nothing? What does its gradient say?

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# Without the ones it is $1-0/\sum p=1$ however little is found: the worst loss, and a gradient of exactly zero. Such an image teaches nothing, and if all $p$ round to 0 the loss is nan. With the ones the loss falls to 0 as $\sum p$ does.

# %%
#| code-fold: true
def without_ones(logits, mask):
    p = torch.sigmoid(logits)
    return 1 - 2 * (p * mask).sum() / (p.sum() + mask.sum())


empty = torch.zeros(1, 1, 8, 8)
for loss in (without_ones, soft_dice_loss):
    z = torch.full((1, 1, 8, 8), -5.0, requires_grad=True)
    slope, = torch.autograd.grad(loss(z, empty), z)
    print(loss.__name__, f"{loss(z, empty):.3f}", bool(slope.any()))
    assert bool(slope.any()) == (loss is soft_dice_loss)


# %% [markdown]
# </details>
#
# **3 · Diagnose (hard).** A colleague's run: `bce` and `dice` fall as they should, samples are blank, and `mse` stays at 1.0 for ever. His loss is below. Without training anything, write a check that tells it from `training_loss`, and say what is wrong. (Hint: which network would have an `mse` of zero?)

# %%
def colleague(model, image, mask, t):
    known, x_0 = model.condition(image), 2 * mask - 1
    x_t = model.process().q_sample(x_0, t, known.prior, torch.randn_like(x_0))
    return F.mse_loss(model.denoise(x_t, t, known), torch.randn_like(x_0))


# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# The noise is drawn twice: the network is asked for noise that is not in what it sees. The best answer is then the mean, zero, with an error of 1. The check: an oracle that knows $x_0$ and computes the noise from $x_t$ must have a loss of 0. With `training_loss` it does; for the colleague it has 2, the variance of a difference, worse than saying nothing.

# %%
#| code-fold: true
def oracle(x_t, t, known):
    "The noise in x_t, by solving Eq. (3) for it."
    s, root = (process.coefficient(v, t, x_t) for v in (
        process.sigmas, process.alphas_cumprod.sqrt()))
    return (x_t - root * (2 * mask - 1)) / s - known.prior


process = model.process()
knows = SimpleNamespace(condition=model.condition, denoise=oracle,
                        process=model.process, config=model.config)
ours = training_loss(knows, image, mask, t, noise)["mse"]
his = colleague(knows, image, mask, t)
print(f"an oracle's mse: {ours:.1e} here, {his:.2f} for the colleague")
assert ours < 1e-4 and his > 1.8

# %% [markdown]
# </details>
#
# We know what is rewarded. How do the networks earn it? Next: [13 · Training](13_training.ipynb).
