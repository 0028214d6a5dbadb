# %% [markdown]
# # 11 · Verdiff-Net
# > Two U-Nets, one prior, one object: Figure 3, assembled and taken apart again

# %% [markdown]
# The parts are ready: U-Nets ([08](08_unet.ipynb)), the fusion module ([09](09_msfm.ipynb)), the
# adapter ([10](10_nsa.ipynb)), the shifted process ([06](06_forward.ipynb)). Here they become one
# model that trains, saves and loads. You will see the figure of the paper **drawn from the module
# tree itself**, measure through which doors the prior enters and whether gradients should leave by
# them, and have the four rows of Table 2 one argument apart.
#
# *Time: half a minute on a laptop; no GPU needed.*
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/11_model.ipynb)

# %%
#| default_exp networks.model

# %%
#| export
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from verdiff.diffusion.forward import ShiftedDiffusion, make_schedule
from verdiff.networks.config import VerdiffConfig
from verdiff.networks.msfm import MultiScaleFusion
from verdiff.networks.nsa import NoiseSemanticAdapter
from verdiff.networks.pretrained import load_model, save_model
from verdiff.networks.unet import ConditionalUNet, UNet

# %%
import json
import time

import matplotlib.pyplot as plt
import numpy as np
import torch.nn.functional as F
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.packed import pack
from verdiff.data.phantom_set import PhantomSet
from verdiff.settings import load_settings

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)


# %% [markdown]
# ## 2 · What the image contributes, once
#
# The diffusion U-Net runs once a step; the image does not change between steps. So what the image contributes
# gets an object of its own: the picture $b$, the fused features $X$ (Eq. 14), the logits of the conditional U-Net and the prior
#
# $$ f(b) = 2\,\sigma(\text{logits}) - 1 \in [-1, 1], $$
#
# on the scale of the mask $x_0$, as Eq. (3), $x_t = \sqrt{\bar\alpha_t}\,x_0 + s_t f + s_t\varepsilon$, needs it.

# %%
#| exports
class Conditioning(NamedTuple):
    "What the image contributes, computed once per image and used at every step."

    image: Tensor  # b, (B, C, H, W) in [0, 1]
    features: Tensor  # X of Eq. (14), (B, channels[0], H, W)
    logits: Tensor  # of the conditional U-Net, (B, 1, H, W)
    prior: Tensor  # f(b) = 2 sigmoid(logits) - 1, (B, 1, H, W) in [-1, 1]

    def repeat(self, n: int) -> "Conditioning":
        "Each image n times in a row (0 0 0 1 1 1 ...), for an ensemble."
        return Conditioning(*(part.repeat_interleave(n, 0) for part in self))

    def select(self, index: slice | Tensor | Sequence[int]) -> "Conditioning":
        "The images at `index` (a slice, a list, a tensor), as a batch."
        return Conditioning(*(part[index] for part in self))

    def detach(self) -> "Conditioning":
        "The same values, cut from the graph."
        return Conditioning(*(part.detach() for part in self))


# %% [markdown]
# ## 3 · The model
#
# $$ X = \mathrm{MSFM}(b), \qquad f(b) = 2\,\sigma(\mathrm{cond}(X)) - 1, \qquad \text{output} = \Phi_\theta\big([x_t,\; f(b),\; X],\; t,\; f(b)\big) $$
#
# The first $f(b)$ is an input channel, the second drives the adapters. Where do these sit?

# %%
#| exports
def adapter_below_full(
    choice: str = "soft",  # "soft" or "hard", see `verdiff.nsa.kernel_choice`
) -> Callable[[int], nn.Module | None]:  # called by the encoder once a level, finest first
    "A `NoiseSemanticAdapter` for every level but the first (full resolution)."
    level = itertools.count()
    return lambda channels: NoiseSemanticAdapter(channels, choice) if next(level) else None


# %%
give = adapter_below_full()
print([type(give(c)).__name__ for c in (16, 32, 64)])


# %% [markdown]
# Each of the parts is made from the configuration alone. The diffusion U-Net's input has $1 + 1 + C$ channels, and its last layer starts at zero (section 7):

# %%
#| exports
def make_features(cfg: VerdiffConfig) -> nn.Module:
    "image (B, in_channels, H, W) -> X (B, channels[0], H, W): the MSFM, or one 3x3 convolution."
    if not cfg.msfm:
        return nn.Conv2d(cfg.in_channels, cfg.channels[0], 3, padding=1)
    return MultiScaleFusion(cfg.in_channels, cfg.channels[0], cfg.msfm_dim, norm=cfg.norm)


def make_diffusion(cfg: VerdiffConfig) -> UNet:
    "[x_t, f(b), X] (B, 1 + 1 + channels[0], H, W), t and f(b) -> (B, 1, H, W), at first zero."
    first, adapter = cfg.channels[0], adapter_below_full(cfg.nsa_choice) if cfg.nsa else None
    return UNet(1 + first + 1, 1, cfg.channels, cfg.blocks, time_dim=4 * first, norm=cfg.norm,
                adapter=adapter, zero_output=True)


# %%
print("X is made by:", type(make_features(config)).__name__)
print(f"the diffusion U-Net's first layer, 1 + 1 + {config.channels[0]} channels in:")
print(make_diffusion(config).encoder.stem)


# %% [markdown]
# The model: two networks, one prior, and below them what a model needs in use, its process, its size, its files. Loading and
# saving follow the mixin of the Hugging Face Hub, with [stricter functions](library/pretrained.ipynb) of our own:

# %%
#| exports
class VerdiffNet(nn.Module, PyTorchModelHubMixin, library_name="verdiff",
                 tags=["image-segmentation", "diffusion", "spine"]):
    """Figure 3: image -> prior f(b); (x_t, t, X, f(b)) -> prediction.

    `VerdiffNet(channels=(8, 16), msfm=False)` or `VerdiffNet(VerdiffConfig(...))`. Images are
    (B, 1, H, W) in [0, 1], x_t is (B, 1, H, W), t is int64 (B,); every height and width works.
    """

    def __init__(
        self,
        config: VerdiffConfig | None = None,  # or the single values as keywords
        **kwargs: Any,  # fields of `VerdiffConfig`; they override those of `config`
    ):
        super().__init__()
        start = config.to_dict() if config is not None else {}
        self.config = cfg = VerdiffConfig.from_dict({**start, **kwargs})
        self.features = make_features(cfg)
        self.conditional = ConditionalUNet(cfg.channels[0], cfg.channels, cfg.blocks, cfg.norm)
        self.diffusion = make_diffusion(cfg)
        self.to(memory_format=torch.channels_last)

    def condition(self, image: Tensor) -> Conditioning:
        "X = MSFM(b), the logits of the conditional U-Net and f(b); image (B, C, H, W) in [0, 1]."
        if image.ndim != 4 or image.shape[1] != self.config.in_channels:
            raise ValueError(f"image must be (B, {self.config.in_channels}, H, W), "
                             f"not {tuple(image.shape)}")
        features = self.features(image)
        logits = self.conditional(features)
        prior = 2 * torch.sigmoid(logits) - 1
        return Conditioning(image, features, logits,
                            prior.detach() if self.config.detach_prior else prior)

    def denoise(
        self,
        x_t: Tensor,  # noisy mask, (B, 1, H, W)
        t: Tensor,  # timesteps, int64 (B,)
        conditioning: Conditioning,  # of the same B images
    ) -> Tensor:  # epsilon, x_0 or v, as config.prediction_type says, (B, 1, H, W)
        "Phi(x_t, t, f(b)): one evaluation of the diffusion U-Net."
        if x_t.shape != conditioning.prior.shape:
            raise ValueError(f"x_t is {tuple(x_t.shape)} but the conditioning is for "
                             f"{tuple(conditioning.prior.shape)}")
        x = torch.cat([x_t, conditioning.prior, conditioning.features], 1)  # b 1+1+c h w
        return self.diffusion(x, t, prior=conditioning.prior)

    def forward(self, image: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Conditioning]:
        "Both networks at once: the prediction and the conditioning."
        conditioning = self.condition(image)
        return self.denoise(x_t, t, conditioning), conditioning

    def process(self) -> ShiftedDiffusion:
        "The diffusion process that this model was configured for; `shift` comes from the config."
        cfg = self.config
        betas = make_schedule(cfg.schedule, cfg.timesteps, cfg.beta_start, cfg.beta_end)
        return ShiftedDiffusion(betas, shift=cfg.shift)

    @property
    def size(self) -> tuple[int, int]:
        "(height, width) that the model was trained at."
        return self.config.height, self.config.width

    @property
    def device(self) -> torch.device:
        "Where the weights are."
        return next(self.parameters()).device

    def num_parameters(self) -> int:
        "How many numbers are learned."
        return sum(p.numel() for p in self.parameters())

    def save_pretrained(self, save_directory: str | Path, **hub: Any) -> str | None:
        "Write config.json and model.safetensors, each atomically; `push_to_hub=True` uploads them."
        return save_model(self, Path(save_directory), **hub)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **hub: Any) -> "VerdiffNet":
        "A model from a folder or from the Hub, in eval mode; VerdiffError names what is wrong."
        return load_model(cls, pretrained_model_name_or_path, **hub)


# %%
torch.manual_seed(0)
image, x_t, t = torch.rand(2, 1, 75, 51), torch.randn(2, 1, 75, 51), torch.tensor([10, 900])
output, c = VerdiffNet(channels=(8, 16, 32))(image, x_t, t)
assert isinstance(c, Conditioning) and output.shape == c.prior.shape == (2, 1, 75, 51)
print({name: tuple(part.shape) for name, part in c._asdict().items()})

# %%
torch.manual_seed(0)
model = VerdiffNet(channels=(8, 16, 32))
print(
    f"{model.num_parameters():,} parameters for {model.size} on the {model.device}, "
    f"T = {model.process().timesteps}"
)


# %% [markdown]
# ### The naive way to use it
#
# `forward` does everything, so why not call it at every sampling step, for every member of an ensemble (several masks drawn for one image, [14](14_sampling.ipynb))? It works. Count the seconds
# for 10 steps and 5 members at 192×64, against `condition` once, `repeat`, and ten times `denoise`:

# %%
@torch.no_grad()
def naive(model, image, x, steps=10):
    for k in range(steps):
        model(image.repeat(5, 1, 1, 1), x, torch.full((5,), k))

@torch.no_grad()
def once(model, image, x, steps=10):
    c = model.condition(image).repeat(5)
    for k in range(steps):
        model.denoise(x, torch.full((5,), k), c)


# %%
def clock(f, *args):
    f(*args, 1)  # warm up
    start = time.perf_counter()
    f(*args)
    return time.perf_counter() - start

image, x = torch.rand(1, 1, 192, 64), torch.randn(5, 1, 192, 64)
times = [clock(f, model, image, x) for f in (naive, once)]
plt.figure(figsize=(5, 1.3))
plt.barh(["everything every step", "condition once"], times, color=["0.6", "tab:purple"])
plt.gca().invert_yaxis()
plt.xlabel("seconds, 10 steps × 5 members");

# %%
ratio = times[0] / times[1]
print(f"{ratio:.1f} times faster")
assert ratio > 1.2


# %% [markdown]
# ## 4 · Figure 3, drawn from the module tree
#
# The blocks of the figure below are not a sketch. The model of the `gpu` profile is built on PyTorch's **meta** device, where tensors have a
# shape and no numbers. Hooks write down what every block gives for a 752×256 radiograph, and matplotlib draws that list with the names of
# `model.named_modules()`. If a width or a depth changes, the blocks change; the arrows are placed by hand. (Its "doors" are section 5; V is what an adapter returns, added behind the residual blocks of its level, [10](10_nsa.ipynb).)

# %%
def trace(model, height, width):
    "(name, class, output shape) of each block in the order of the computation, nothing computed."
    seen = []
    kinds = ("MultiScaleFusion", "ResBlock", "NoiseSemanticAdapter", "ConditionalUNet", "UNet")
    for name, module in model.named_modules():
        if type(module).__name__ in kinds:
            note = lambda m, args, out, name=name: seen.append(
                (name, type(m).__name__, tuple(out.shape[1:]))
            )
            module.register_forward_hook(note)
    b = torch.zeros(1, 1, height, width, device="meta")
    t = torch.zeros(1, dtype=torch.long, device="meta")
    model(b, b, t)
    return seen


# %%
with torch.device("meta"):
    big = VerdiffNet(VerdiffConfig.from_settings(load_settings("gpu")))
blocks = trace(big, 752, 256)
print(
    f"{len(blocks)} blocks, {big.num_parameters():,} parameters; the first three:",
    *blocks[:3],
    sep="\n  ",
)


# %%
def u_shape(blocks, prefix):
    "Residual blocks of one U-Net, grouped: [(shape, count)] going down and going up."
    shapes = [s for name, kind, s in blocks if kind == "ResBlock" and name.startswith(prefix + ".")]
    lowest = min(s[1] for s in shapes)
    last = max(i for i, s in enumerate(shapes) if s[1] == lowest)
    group = lambda part: [(s, part.count(s)) for s in dict.fromkeys(part)]
    return group(shapes[:last + 1]), group(shapes[last + 1:])

down, up = u_shape(blocks, "diffusion")
for shape, count in down + up:
    print(f"{count} ResBlock  {shape[0]:3d} × {shape[1]} × {shape[2]}")


# %%
def box(ax, x, y, text, color, w=2.6, h=0.62):
    ax.add_patch(
        FancyBboxPatch(
            (x - w / 2, y - h / 2), w, h, boxstyle="round,pad=0.03", fc=color, ec="0.3", lw=0.8
        )
    )
    ax.text(x, y, text, ha="center", va="center", fontsize=6.8)


def arrow(ax, a, b, style="-", color="0.3", rad=0.0):
    ax.add_patch(
        FancyArrowPatch(
            a,
            b,
            arrowstyle="-|>",
            mutation_scale=8,
            lw=0.9,
            ls=style,
            color=color,
            connectionstyle=f"arc3,rad={rad}",
            shrinkA=2,
            shrinkB=2,
        )
    )


# %%
def draw_u(ax, x, down, up, color):
    "One U-Net with its encoder at x and its decoder at x + 3."
    for half, part, column in (("encoder", down, x), ("decoder", up[::-1], x + 3)):
        for level, (shape, count) in enumerate(part):
            i = level if half == "encoder" else len(up) - 1 - level  # the decoder counts from below
            box(
                ax,
                column,
                -level,
                f"{half}.blocks.{i}: {count} ResBlock{'s' * (count > 1)}\n{shape[0]} × {shape[1]} "
                f"× {shape[2]}",
                color,
            )
    for level in range(len(down) - 1):
        arrow(ax, (x, -level - 0.33), (x, -level - 0.67))
        arrow(ax, (x + 1.3, -level), (x + 1.7, -level), "--")  # skip connection
        if level < len(up) - 1:
            arrow(ax, (x + 3, -level - 0.67), (x + 3, -level - 0.33))
    arrow(ax, (x + 1.3, 1 - len(down)), (x + 3, 0.67 - len(up)), rad=0.25)


# %%
def draw_figure_3(blocks):
    fig, ax = plt.subplots(figsize=(11, 5.6))
    adapters = [s for _, kind, s in blocks if kind == "NoiseSemanticAdapter"]
    for x, prefix, color in ((0, "conditional", "#dbe9f6"), (8.2, "diffusion", "#fde3cf")):
        draw_u(ax, x, *u_shape(blocks, prefix), color)
    down = u_shape(blocks, "diffusion")[0]
    sizes = [s[1:] for s, _ in down]
    for shape in adapters:
        level = sizes.index(shape[1:])
        box(ax, 6.15, -level, f"NSA, + V\n{shape[0]} ch", "#e3d5f1", w=0.8)
        arrow(ax, (6.56, -level), (6.9, -level))
    return fig, ax, adapters


# %%
fig, ax, adapters = draw_figure_3(blocks)
first = blocks[0][2]
box(ax, 0, 2.2, "image b\n1 × 752 × 256", "#eeeeee")
box(ax, 0, 1.1, f"features: MSFM → X\n{first[0]} × {first[1]} × {first[2]}", "#d5ecd4")
box(ax, 3, 1.1, "prior f(b)\n1 × 752 × 256", "#f6d5dc")
box(ax, 8.2, 2.2, "x_t\n1 × 752 × 256", "#eeeeee")
box(ax, 8.2, 1.1, f"[x_t, f(b), X]\n{2 + first[0]} × 752 × 256", "#eeeeee")
box(ax, 11.2, 1.1, "ε, x_0 or v\n1 × 752 × 256", "#eeeeee")
arrow(ax, (0, 1.85), (0, 1.45))
arrow(ax, (0, 0.75), (0, 0.33))
arrow(ax, (3, 0.33), (3, 0.75))
arrow(ax, (8.2, 1.85), (8.2, 1.45))
arrow(ax, (8.2, 0.75), (8.2, 0.33))
arrow(ax, (11.2, 0.33), (11.2, 0.75))
arrow(ax, (4.3, 1.1), (6.9, 1.1), color="#b03050")
ax.text(4.5, 1.17, "door 2: a channel", fontsize=7.5, color="#b03050")
arrow(ax, (3.6, 1.45), (6.9, 2.2), color="#b03050", rad=-0.1)
ax.text(3.9, 2.1, "door 1: Eq. (3)", fontsize=7.5, color="#b03050")
arrow(ax, (0.9, 1.45), (7.2, 1.42), color="#3a7d3a", rad=-0.42)
ax.text(4.3, 2.6, "features X", fontsize=7.5, color="#3a7d3a")
for level in range(1, 1 + len(adapters)):
    arrow(ax, (4.3, 1.0), (5.73, -level + 0.1), color="#b03050", rad=-0.1)
ax.text(
    4.1,
    -4.35,
    "door 3: pooled f(b)\nto encoder.adapters.1, 2, ...",
    fontsize=7.5,
    color="#b03050",
    ha="center",
)
ax.text(1.5, -5.0, "conditional", ha="center")
ax.text(9.7, -5.0, "diffusion (sees t in every block)", ha="center")
ax.set(xlim=(-1.4, 12.6), ylim=(-5.2, 3.2))
ax.axis("off");

# %%
assert blocks[0][1:] == ("MultiScaleFusion", (32, 752, 256))
assert [s for _, kind, s in blocks if kind == "NoiseSemanticAdapter"] == [
    (64, 376, 128), (128, 188, 64), (192, 94, 32), (256, 47, 16)]

# %% [markdown]
# Compared with the paper's figure:
#
# | | paper | ours | why |
# |---|---|---|---|
# | MSFM | "introduced into the conditional U-Net", its output fused with $x_t$ | before it, one $X$ for both U-Nets | Section 2.3's order: $b$ passes it "before" the conditional U-Net |
# | fusion with $x_t$ | "fused", not said how | channels side by side into the first 3×3 convolution | that convolution *is* the learned mixture; a second one at full size would be the most expensive layer |
# | $f(b)$ in $\Phi(x_t,t,f(b))$ | not said how | an input channel, and the adapters | both are cheap; section 5 measures them |
# | NSA | "U-Net of the conditional model", then "encoder of the diffusion model" | diffusion encoder, below full resolution | conclusion and Figure 3; cost, see [10](10_nsa.ipynb) |
# | widths, depth | not said | `settings.ini` | ours to choose |
# | gradient of the diffusion loss into $f(b)$ | not said | detached (`detach_prior`) | section 6 |
# | last layer | not said | starts at zero | section 7 |
#
# ## 5 · Three doors for the prior
#
# $f(b)$ reaches the output through (1) $x_t$ itself, by the forward process of Eq. (3), (2) its channel, (3) the adapters. How much does each carry?
# That is a question to a *trained* network: a short training, with the losses of [10_training](13_training.ipynb) written out plainly,
# on phantoms of 64×32. Take what you see as tendencies of a small model.

# %%
phantoms = pack(PhantomSet(size=(64, 32), n_training=72), progress=False)
photos = phantoms.images.float() / 255
masks = (phantoms.masks > 0).float()

def dice(prob, mask):
    p = (prob > 0.5).float()
    return (2 * (p * mask).sum() / (p.sum() + mask.sum())).item()


# %%
def losses(model, process, i):
    "MSE of the diffusion output (Eq. 8, on x_0) and BCE of the prior, for the phantoms i."
    x_0, t = 2 * masks[i] - 1, torch.randint(0, process.timesteps, (len(i),))
    c = model.condition(photos[i])
    x_t = process.q_sample(x_0, t, c.prior, torch.randn_like(x_0))
    return F.mse_loss(model.denoise(x_t, t, c), x_0), F.binary_cross_entropy_with_logits(
        c.logits, masks[i]
    )


def held_out(model):
    "Dice of the prior on eight phantoms that training does not see."
    with torch.no_grad():
        return dice(model.condition(photos[64:]).logits.sigmoid(), masks[64:])


# %%
def fit(seed=0, steps=90, **switches):
    "A small model after a short training, with [mse, bce] of each step and the held-out Dice of its prior."
    torch.manual_seed(seed)
    model = VerdiffNet(channels=(8, 16, 32), height=64, width=32, **switches)
    process, optimizer = model.process(), torch.optim.AdamW(model.parameters(), 4e-3)
    curve, prior_dice = [], []
    for k in range(steps):
        mse, bce = losses(model, process, torch.randint(0, 64, (8,)))
        optimizer.zero_grad()
        (mse + bce).backward()
        optimizer.step()
        curve.append([mse.item(), bce.item()])
        if k % 10 == 9:
            prior_dice.append(held_out(model))
    return model, np.array(curve), prior_dice


# %%
detached = [fit(seed) for seed in (0, 1)]
model, curve, prior_dice = detached[0]
print(f"after 90 steps: mse {curve[-10:, 0].mean():.3f}, bce {curve[-10:, 1].mean():.3f}, "
      f"held-out Dice of the prior {prior_dice[-1]:.3f}")


# %% [markdown]
# Three separate copies of the prior, one at each door; the gradient of the output says how strongly each is felt.

# %%
def doors(model, t, n=8):
    "Mean absolute gradient of the summed output on the prior at each of its three doors."
    c, process = model.condition(photos[:n]).detach(), model.process()
    one, two, three = (c.prior.clone().requires_grad_() for _ in range(3))
    t = torch.full((n,), t)
    x_t = process.q_sample(
        2 * masks[:n] - 1,
        t,
        one,
        torch.randn(c.prior.shape, generator=torch.Generator().manual_seed(0)),
    )
    output = model.diffusion(torch.cat([x_t, two, c.features], 1), t, prior=three)
    return [g.abs().mean().item() for g in torch.autograd.grad(output.sum(), (one, two, three))]


# %%
ts = [0, 50, 100, 200, 300, 500, 700, 999]
felt = np.array([doors(model, t) for t in ts])
plt.figure(figsize=(5.5, 2.8))
for line, name in zip(felt.T, ("1: inside x_t, Eq. (3)", "2: input channel", "3: adapters")):
    plt.plot(ts, line, marker="o", ms=3, label=name)
plt.yscale("log")
plt.xlabel("t")
plt.ylabel("mean |gradient|")
plt.legend(fontsize=8)
plt.title("how strongly the output feels f(b)", fontsize=10);

# %%
assert felt[0, 0] < felt[-1, 0]  # door 1 opens with s_t
assert (felt[:, 1:] > 0).all()


# %% [markdown]
# Door 1 closes as $t\to0$ by construction: its strength is $s_t=\sqrt{1-\bar\alpha_t}$ times what the network makes of $x_t$. There door 2 carries most.
# Without it the network would have to tell prior from noise inside $x_t$, where they come as a sum. At large $t$ door 1 is the widest; door 3 is the narrowest here, except at $t = 0$, where door 1 is narrower still.
#
# ## 6 · Detached or joint?
#
# Algorithm 1 descends one total loss, which suggests *joint*: the diffusion loss also pulls at the conditional U-Net, through all three
# doors. *Detached*, the conditional U-Net learns from the prior's own loss only. First, does the switch do what it says?

# %%
def pull(model):
    "Norm of the gradient of the diffusion loss alone on each part."
    model.zero_grad()
    torch.manual_seed(0)
    losses(model, model.process(), torch.arange(8))[0].backward()
    norm = lambda part: (
        sum(float(p.grad.square().sum()) for p in part.parameters() if p.grad is not None) ** 0.5
    )
    return {name: round(norm(part), 4) for name, part in model.named_children()}


joint = [fit(seed, detach_prior=False) for seed in (0, 1)]
print("detached", pull(detached[0][0]))
print("joint   ", pull(joint[0][0]))
assert pull(detached[0][0])["conditional"] == 0 < pull(joint[0][0])["conditional"]

# %% [markdown]
# `features` (MSFM) feels the diffusion loss either way: $X$ is meant to serve both, so a little of that loss reaches even a detached prior. And what does the switch do to learning?

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 2.6))
smooth = lambda y: np.convolve(y, np.ones(10) / 10, "valid")
for runs, color, name in ((detached, "tab:blue", "detached"), (joint, "tab:orange", "joint")):
    for k, (_, curve, prior_dice) in enumerate(runs):
        axes[0].plot(smooth(curve[:, 0]), color=color, label=name if k == 0 else None)
        axes[1].plot(range(10, 91, 10), prior_dice, color=color)
axes[0].set(title="diffusion loss (mean of 10)", xlabel="step")
axes[0].legend()
axes[1].set(title="held-out Dice of the prior", xlabel="step");

# %%
for name, runs in (("detached", detached), ("joint", joint)):
    print(f"{name}: prior Dice {[round(r[2][-1], 3) for r in runs]}, "
          f"last diffusion loss {[round(r[1][-20:, 0].mean().item(), 3) for r in runs]}")

# %% [markdown]
# The joint prior ends a little higher here, but two seeds and 90 steps decide nothing about quality; [14_ablation](lab/ablation.ipynb) asks that with more seeds. What decides our default is meaning. Detached, $f(b)$ is
# a segmentation trained as one, a baseline of its own. A joint $f$ is free to carry a message to the diffusion U-Net rather than to segment, and it would bend the *input* $x_t$, which contains $s_t f(b)$, as well.
# `detach_prior = false` is the paper's literal Algorithm 1, and the `paper` profile has it.
#
# ## 7 · A last layer that starts at zero
#
# An untrained output is whatever the random weights make of the input, so the first loss depends on the seed, the width and the depth. With
# a zero last convolution the output is zero, and the loss starts at $E[x_0^2] = 1$ exactly.

# %%
torch.manual_seed(0)
fresh = VerdiffNet(channels=(8, 16, 32))
start = losses(fresh, fresh.process(), torch.arange(32))[0].item()
print(f"first diffusion loss, zero output: {start:.4f}")
assert abs(start - 1) < 1e-6


# %%
def wake(model):
    "Undo the zero: random numbers of unit gain in every all-zero kernel of the diffusion U-Net."
    for p in model.diffusion.parameters():
        if p.ndim == 4 and not p.any():
            nn.init.normal_(p, std=p[0].numel() ** -0.5)

starts = []
for seed in range(5):
    torch.manual_seed(seed)
    loud = VerdiffNet(channels=(8, 16, 32))
    wake(loud)
    starts.append(losses(loud, loud.process(), torch.arange(32))[0].item())
print("first diffusion loss, random output, five seeds:", [round(s, 2) for s in starts])
assert np.std(starts) > 0.01

# %% [markdown]
# Random starts begin higher, each at another loss. With the zero all runs begin alike, and a first
# loss other than 1 (for $x_0$ or $\epsilon$) reveals a mistake. The price: no gradient flows back through a zero layer, so in the very first step only that layer moves. One step later the gradient
# reaches the features too (the conditional U-Net stays at 0 because the prior is detached):

# %%
print("step 0:", pull(fresh))
optimizer = torch.optim.SGD(fresh.parameters(), 0.1)
losses(fresh, fresh.process(), torch.arange(8))[0].backward()
optimizer.step()
print("step 1:", pull(fresh))

# %% [markdown]
# ## 8 · Table 2's rows, one argument apart
#
# The first row, the paper's point of departure, is the image "coarsely spliced" to the mask: one 3×3 convolution of the image beside $x_t$, no adapter.

# %%
table = {"neither": dict(msfm=False, nsa=False), "MSFM": dict(msfm=True, nsa=False),
         "NSA": dict(msfm=False, nsa=True), "both (Verdiff-Net)": dict(msfm=True, nsa=True)}
rows = {name: VerdiffNet(config, **switches) for name, switches in table.items()}
for name, m in rows.items():
    parts = {k: sum(p.numel() for p in part.parameters()) for k, part in m.named_children()}
    print(f"{name:20s} {m.num_parameters():8,d} parameters = {parts}")


# %% [markdown]
# Plain DDPM, though with the prior among its inputs, is `VerdiffNet(msfm=False, nsa=False, shift=False)`. A count that is printed by the model itself
# proves little, so here is the adapters' share by hand: for $C$ channels $C(10+26+50)$ depth-wise, $C^2 + C$ to halve twice,
# $198$ for the gate, $C^2/2 + C$ to expand.

# %%
def adapter_size(c):
    return 86 * c + (c * c + c) + 198 + (c * c // 2 + c)

by_hand = sum(adapter_size(c) for c in config.channels[1:])
assert rows["NSA"].num_parameters() - rows["neither"].num_parameters() == by_hand
assert rows["both (Verdiff-Net)"].num_parameters() - rows["MSFM"].num_parameters() == by_hand
print(f"adapters at {config.channels[1:]}: {by_hand:,} parameters")

# %% [markdown]
# ## 10 · Beside other networks
#
# `bench/networks.py` times the diffusion U-Net beside MONAI's `DiffusionModelUNet` and the network of med-seg-diff-pytorch, ours built with as many parameters as each of them
# has; a checkout holds the record of a run, on one thread and with at most 17 GB. (Ratios above 1: ours is faster.)

# %%
record = Path("../bench/results/networks.json")
results = json.loads(record.read_text()) if record.exists() else {"rows": []}
timed = [r for r in results["rows"] if r["ratio"]]  # None: memory did not suffice
names = [f"{r['other']}, {r['size']}, batch {r['batch']}, {r['step']}" for r in timed]
ratios = [r["ratio"] for r in timed]

# %%
plt.figure(figsize=(5, 0.5 + 0.25 * len(names)))
plt.barh(names, ratios, color=["tab:purple" if r > 1 else "0.6" for r in ratios])
plt.axvline(1, color="k", lw=1)
plt.gca().invert_yaxis()
plt.yticks(fontsize=8)
plt.xlabel("their seconds / ours");

# %%
for r, name, ratio in zip(timed, names, ratios):
    print(f"{name:45s} {r['other_seconds']:7.2f} s, ours {r['verdiff_seconds']:6.2f} s: {ratio:.1f}")
print(len(results["rows"]) - len(timed), "rows without a time: memory did not suffice")

# %% [markdown]
# Likely reasons: ours has no attention, and the width doubles only where the pixels quarter, so the full-size level, where time goes, is narrow; MONAI's tutorial network keeps 64 channels there.
# Med-seg-diff carries two encoders and Fourier transforms but only 16 channels at the top, hence the smaller lead. The adapters' dilated kernels are slow for their arithmetic, but the smaller part
# of a step ([10](10_nsa.ipynb) measures both), so they stay as the paper writes them.
#
# ## Exercises
#
# **1. Predict.** `shift=False` and `shift=True` make models of equal size. Which line of a training loop notices the switch?
#
# <details><summary>Answer</summary>
#
# Only `process.q_sample`: `model.process()` returns a process that ignores the prior. The weights are the same in number and shape, and
# the prior still enters by doors 2 and 3.
#
# </details>

# %%
plain = VerdiffNet(channels=(8, 16), shift=False).process()
x_0, noise = torch.ones(1, 1, 4, 4), torch.randn(1, 1, 4, 4)
t = torch.tensor([500])
assert torch.equal(plain.q_sample(x_0, t, -x_0, noise), plain.q_sample(x_0, t, x_0, noise))

# %% [markdown]
# **2. Change.** An ensemble of 4 for 3 images: get the conditioning of the members of image 1 (counted from 0) back out of the repeated one.
#
# <details><summary>Answer</summary>
#
# `repeat` keeps members of an image together, so image 1 owns rows 4 to 7: `c.repeat(4).select(slice(4, 8))`.
#
# </details>

# %%
c = model.condition(photos[:3])
members = c.repeat(4).select(slice(4, 8))
assert all(torch.equal(p, c.prior[1]) for p in members.prior)


# %% [markdown]
# **3. Implement.** Freeze the conditional half (features and conditional U-Net) and check that training moves only the diffusion U-Net.
#
# <details><summary>Answer</summary>
#
# `requires_grad_(False)` on the two children; an optimiser over the remaining parameters. With `norm="batch"` also `.eval()` on the two, or their running averages move.
#
# </details>

# %%
def freeze_condition(model):
    model.features.requires_grad_(False)
    model.conditional.requires_grad_(False)
    return [p for p in model.parameters() if p.requires_grad]

before = {k: v.clone() for k, v in model.state_dict().items()}
optimizer = torch.optim.SGD(freeze_condition(model), 0.1)
losses(model, model.process(), torch.arange(4))[0].backward()
optimizer.step()
moved = {k.split(".")[0] for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
assert moved == {"diffusion"}

# %% [markdown]
# ## What we have
#
# One class, `VerdiffNet`, with `condition`, `denoise`, `process`, `save_pretrained` and `from_pretrained`, and its `VerdiffConfig`. Training
# ([13](13_training.ipynb)) and sampling ([14](14_sampling.ipynb)) need nothing else of it.
