# %% [markdown]
# # 12 · The loss
# > Eq. (9) read literally falls without end; what the two networks learn instead

# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/12_loss.ipynb)

# %%
#| default_exp training.loss

# %%
#| export
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verdiff.diffusion.forward import ShiftedDiffusion
from verdiff.diffusion.posterior import training_target
from verdiff.networks.model import VerdiffNet
from verdiff.settings import Settings

# %%
import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.networks.config import VerdiffConfig
from verdiff.training.loop import make_optimizer

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)

# %% [markdown]
# ## 1 · The loss, read literally
#
# Eq. (8) is the usual loss of a diffusion model, the squared error of the noise. Eq. (9), as printed, is a binary cross entropy between the *noise* $\varepsilon$ and the network's output:
#
# $$\mathcal L_{\mathrm{BCE}}=-\bigl[\varepsilon\log\hat\varepsilon+(1-\varepsilon)\log(1-\hat\varepsilon)\bigr].$$
#
# A cross entropy wants targets between 0 and 1; Gaussian noise has no bounds. Try it, with one number to learn per pixel.

# %%
g = torch.Generator().manual_seed(35)
noise = torch.randn(1000, generator=g)
logit = torch.zeros(1000, requires_grad=True)
fall = []
for _ in range(300):
    loss = F.binary_cross_entropy_with_logits(logit, noise)
    loss.backward()
    with torch.no_grad():
        logit -= 200 * logit.grad
        logit.grad = None
    fall.append(loss.item())

# %%
draw(plt.gca(), {"Eq. (9) taken literally": fall}, ["C3"], ylabel="loss")
sure = ((logit.sigmoid() - 0.5).abs() > 0.49).float().mean()
print(f"loss {fall[0]:.2f} -> {fall[-1]:.0f}; outputs that end at 0 or 1: {sure:.0%}")
assert fall[-1] < -10


# %% [markdown]
# There is no minimum: where $\varepsilon>1$ or $\varepsilon<0$, the loss falls for ever as the output runs to 1 or 0.
#
# But the paper's conditional U-Net gives a mask, whose natural loss is a cross entropy against the *true mask*. Eq. (10), the sum of both losses, then trains both networks: as we run it (`detach_prior`) the first term only the diffusion U-Net, the others only the conditional one. With $p=\sigma(\text{logits})$ of that U-Net and $m$ the mask,
#
# $$\mathcal L=\underbrace{\lVert\text{target}-\Phi(x_t,t,f(b))\rVert^2}_{\text{Eq. (8)}}+w_1\,\underbrace{\mathrm{BCE}(p,m)}_{\text{Eq. (9), as it must be meant}}+w_2\,\underbrace{\mathrm{softDice}(p,m)}_{\text{ours}}.$$
#
# The target is noise, mask or $v$, as `prediction_type` says ([07](07_posterior.ipynb)). The soft Dice keeps the small foreground from being outvoted; the profile `paper` has none ($w_2=0$).

# %%
#| exports
def soft_dice_loss(
    logits: Tensor,  # (B, 1, H, W)
    mask: Tensor,  # {0, 1}, (B, 1, H, W)
) -> Tensor:  # in [0, 1], a scalar
    "1 - Dice of the probabilities, a mean over images; the one added keeps empty masks harmless."
    p, m = torch.sigmoid(logits).flatten(1), mask.flatten(1)
    return 1 - ((2 * (p * m).sum(1) + 1) / (p.sum(1) + m.sum(1) + 1)).mean()


# %%
corner = torch.zeros(1, 1, 8, 8)
corner[..., :2, :2] = 1
right, wrong = 40 * (2 * corner - 1), 40 * (1 - 2 * corner)
assert soft_dice_loss(right, corner) < 1e-3 < 0.8 < soft_dice_loss(wrong, corner)


# %%
#| exports
def training_loss(
    model: VerdiffNet,
    image: Tensor,  # (B, 1, H, W) in [0, 1]
    mask: Tensor,  # {0, 1}, (B, 1, H, W)
    t: Tensor,  # int64 (B,)
    noise: Tensor,  # standard normal, (B, 1, H, W)
    bce_weight: float = 1.0,
    dice_weight: float = 1.0,
    process: ShiftedDiffusion | None = None,  # None: the model's
) -> dict[str, Tensor]:  # "total" and its parts "mse", "bce", "dice"; means over images
    "Eq. (10) for one batch: the diffusion loss, and the prior's own."
    process = process or model.process()
    conditioning = model.condition(image)
    x_0 = 2 * mask - 1
    x_t = process.q_sample(x_0, t, conditioning.prior.float(), noise)  # Eq. (3)
    output = model.denoise(x_t, t, conditioning)
    target = training_target(process, x_0, t, noise, model.config.prediction_type)
    logits = conditioning.logits.float()
    parts = {"mse": F.mse_loss(output.float(), target),
             "bce": F.binary_cross_entropy_with_logits(logits, mask),
             "dice": soft_dice_loss(logits, mask)}
    total = parts["mse"] + bce_weight * parts["bce"] + dice_weight * parts["dice"]
    return {"total": total, **parts}


# %%
#| exports
LOSSES = ("total", "mse", "bce", "dice")


class Objective(nn.Module):
    "The loss as a module, so that one wrapped call a step computes everything."

    def __init__(self, model: VerdiffNet, settings: Settings):
        super().__init__()
        self.model, self.weights = model, (settings.bce_weight, settings.dice_weight)
        self.process = model.process()

    def forward(self, image: Tensor, mask: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        "As `training_loss`."
        return training_loss(self.model, image, mask, t, noise, *self.weights, process=self.process)


# %%
print({k: round(v.item(), 3) for k, v in Objective(model, tiny)(*whole).items()})
print(type(make_optimizer(model, tiny)).__name__)

# %% [markdown]
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | Eq. (9) | cross entropy of the noise | cross entropy of the prior against the mask | the literal one has no minimum |
# | what is optimised | "Equation (9)" | Eq. (10), the sum | Eq. (9) alone has no diffusion loss |
# | soft Dice | none | weight 1; 0 in `paper` | small foreground |
# | what the diffusion loss teaches the prior | not said | nothing (`detach_prior`); everything in `paper` | else the prior may become a code for the other net only |
# | batch, rate, steps | 1, $10^{-4}$, 9,000 | by profile | what the machine can carry |
# | schedule, clipping | constant, none | warm-up and cosine, norm 1; off in `paper` | section 4 |
# | average of the weights | none | yes; off in `paper` | section 4 |
#
# ## Exercises
#
# **1 · Predict.** At the first step the output layer of the diffusion U-Net is zero. What is the `mse` for `prediction_type` "sample", and for "epsilon"?
#
# <details><summary>Answer</summary>
#
# "sample": the target is $\pm1$, so exactly 1. "epsilon": the target is standard normal, so about 1.
#
# </details>

# %%
image, mask = films_at(slice(0, 4))
times4, noise4 = torch.tensor([1, 200, 500, 900]), torch.randn(mask.shape, generator=g)
for kind in ("sample", "epsilon"):
    fresh = VerdiffNet(VerdiffConfig.from_settings(tiny), prediction_type=kind)
    first = training_loss(fresh, image, mask, times4, noise4)["mse"].item()
    print(kind, round(first, 4))
    assert abs(first - 1) < (1e-6 if kind == "sample" else 0.07)

# %% [markdown]
# **2 · Change.** Switch `detach_prior` off. Which gradient appears that was zero before?
#
# <details><summary>Answer</summary>
#
# That of the `mse` with respect to the weights of the conditional U-Net (`detach_prior`).
#
# </details>

# %%
for detach in (True, False):
    torch.manual_seed(0)
    net = VerdiffNet(VerdiffConfig.from_settings(tiny), detach_prior=detach)
    torch.nn.init.normal_(net.diffusion.out[-1].weight)
    training_loss(net, image, mask, times4, noise4)["mse"].backward()
    grads = [p.grad for p in net.conditional.parameters()]
    felt = sum(x is not None and bool(x.abs().sum() > 0) for x in grads)
    print(f"detach_prior={detach}: {felt} tensors of the conditional U-Net feel the mse")
    assert bool(felt) != detach
