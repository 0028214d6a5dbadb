# %% [markdown]
# # 11 · Verdiff-Net
# > Two U-Nets, one prior, one object: Figure 3, assembled and taken apart again

# %% [markdown]
# [10](10_nsa.ipynb) ended with the last of four parts: U-Nets ([08](08_unet.ipynb)), the fusion module ([09](09_msfm.ipynb)), the adapter ([10](10_nsa.ipynb)) and the shifted process ([06](06_forward.ipynb)). How do they fit together? You will assemble one model, see the paper's figure **drawn from the module tree itself**, measure through which doors the prior enters and whether gradients should leave by them, and have the four rows of the paper's Table 2 one argument apart. Two minutes on a laptop, no GPU. Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/11_model.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    line = 'pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"'
    get_ipython().system(line)  # noqa: F821

# %%
#| default_exp networks.model

# %%
#| exports
#| code-fold: true
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from verdiff.diffusion.forward import ShiftedDiffusion
from verdiff.networks.config import VerdiffConfig, make_betas
from verdiff.networks.msfm import MultiScaleFusion
from verdiff.networks.nsa import NoiseSemanticAdapter
from verdiff.networks.pretrained import load_model, save_model
from verdiff.networks.unet import Adapter, ConditionalUNet, Folded, UNet

# %%
#| code-fold: true
import json
import time

import matplotlib.pyplot as plt
import numpy as np
import torch.nn.functional as F
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib_inline.backend_inline import set_matplotlib_formats

import verdiff
from verdiff.data.packed import pack
from verdiff.data.phantom_set import PhantomSet
from verdiff.metrics import dice
from verdiff.settings import load_settings

# %%
#| code-fold: true
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)


# %% [markdown]
# ## 1 · Two questions to one model
#
# The diffusion U-Net answers once a step; the image does not change between steps. So the model is asked in two ways:
#
# - `condition(image)`, once an image: what does the image contribute? The features $X$ (Eq. 14), the conditional U-Net's logits $\ell$, and the prior on the scale of the mask, $f(b) = 2\,\mathrm{sigmoid}(\ell) - 1 \in [-1, 1]$, as Eq. (3), $x_t = \sqrt{\bar\alpha_t}\,x_0 + s_t f + s_t\varepsilon$, needs it.
# - `denoise(x_t, t, conditioning)`, once a step: one evaluation of the diffusion U-Net, $\Phi(x_t, t, f(b))$. It says what the configuration asks for, by default $x_0$.
#
# What goes from the first to the second is an object of its own:

# %%
#| exports
class Conditioning(NamedTuple):
    "What the image contributes, computed once, used at every step."

    image: Tensor  # b, (B, C, H, W) in [0, 1]
    features: Tensor  # X of Eq. (14), (B, channels[0] / stem^2, H, W)
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


# %%
numbers = Conditioning(*torch.arange(3.0).expand(4, 3)).repeat(2)
assert numbers.prior.tolist() == [0, 0, 1, 1, 2, 2]
assert numbers.select([0, 5]).prior.tolist() == [0, 2]


# %% [markdown]
# ## 2 · The model
#
# $$ X = \mathrm{MSFM}(b), \qquad f(b) = 2\,\mathrm{sigmoid}(\mathrm{cond}(X)) - 1, $$
#
# $$ \text{output} = \Phi\big([x_t,\; f(b),\; X],\; t,\; f(b)\big) $$
#
# The first $f(b)$ is an input channel, the second drives the adapters. Everything that decides what the model computes stands in one `VerdiffConfig`, saved beside the weights. The smallest profile's:

# %%
config = VerdiffConfig.from_settings(load_settings("demo"))
print({key: getattr(config, key) for key in (
    "channels", "stem", "msfm", "nsa", "shift", "timesteps")})


# %% [markdown]
# Each part is made from it alone. Adapters sit at every level but the first:

# %%
#| exports
def adapter_below_full(choice: str = "soft") -> Adapter:
    "A `NoiseSemanticAdapter` for every level but the first, finest first."
    level = itertools.count()
    return lambda c: NoiseSemanticAdapter(c, choice) if next(level) else None


# %%
give = adapter_below_full()
print([type(give(c)).__name__ for c in (16, 32, 64)])


# %% [markdown]
# With a stem ([08](08_unet.ipynb)), the features see stem × stem pixels as the channels of one:

# %%
#| exports
def make_features(cfg: VerdiffConfig) -> nn.Module:
    "b (B, in_channels, H, W) -> X (B, channels[0] / stem^2, H, W)."
    inside, first = cfg.in_channels * cfg.stem**2, cfg.channels[0]
    if cfg.msfm:
        features = MultiScaleFusion(inside, first, cfg.msfm_dim, norm=cfg.norm)
    else:
        features = nn.Conv2d(inside, first, 3, padding=1)
    return Folded(features, cfg.stem) if cfg.stem > 1 else features


# %%
print(type(make_features(config)).__name__)


# %% [markdown]
# The diffusion U-Net takes $x_t$, $f(b)$ and the channels of $X$ side by side; its last layer starts at zero (section 6):

# %%
#| exports
def make_diffusion(cfg: VerdiffConfig) -> UNet:
    "[x_t, f(b), X], t and f(b) -> (B, 1, H, W), at first exactly zero."
    first = cfg.channels[0]
    adapter = adapter_below_full(cfg.nsa_choice) if cfg.nsa else None
    return UNet(1 + 1 + first // cfg.stem**2, 1, cfg.channels, cfg.blocks,
                time_dim=4 * first, norm=cfg.norm, adapter=adapter,
                zero_output=True, stem=cfg.stem)


# %%
print(make_diffusion(config).encoder.stem)


# %% [markdown]
# The model: both networks, the two questions, and what a model needs in use, its process ([its schedule](library/config.ipynb) comes from the configuration, too), its size, its [files](library/pretrained.ipynb).

# %%
#| exports
class VerdiffNet(nn.Module, PyTorchModelHubMixin, library_name="verdiff",
                 tags=["image-segmentation", "diffusion", "spine"]):
    """Figure 3: image -> prior f(b); (x_t, t, X, f(b)) -> prediction.

    `VerdiffNet(channels=(8, 16), msfm=False)` or `VerdiffNet(config)`;
    VerdiffError for a value that cannot be. Images are (B, 1, H, W) in [0, 1],
    x_t is (B, 1, H, W), t int64 (B,); every height and width works."""

    def __init__(self, config: VerdiffConfig | None = None, **kwargs: Any):
        super().__init__()  # kwargs: fields of the config, which they override
        start = config.to_dict() if config is not None else {}
        self.config = cfg = VerdiffConfig.from_dict({**start, **kwargs})
        self.features = make_features(cfg)
        self.conditional = ConditionalUNet(cfg.channels[0] // cfg.stem**2,
                                           cfg.channels, cfg.blocks, cfg.norm,
                                           cfg.stem)
        self.diffusion = make_diffusion(cfg)
        self.to(memory_format=torch.channels_last)

    def condition(self, image: Tensor) -> Conditioning:
        "X, the logits and f(b) of images; ValueError for another shape."
        if image.ndim != 4 or image.shape[1] != self.config.in_channels:
            raise ValueError(f"image must be (B, {self.config.in_channels}, "
                             f"H, W), not {tuple(image.shape)}")
        features = self.features(image)
        logits = self.conditional(features)
        prior = 2 * torch.sigmoid(logits) - 1
        prior = prior.detach() if self.config.detach_prior else prior
        return Conditioning(image, features, logits, prior)

    def denoise(self, x_t: Tensor, t: Tensor,
                conditioning: Conditioning) -> Tensor:
        "Phi(x_t, t, f(b)), as configured; ValueError where the shapes differ."
        _, features, _, prior = conditioning
        if x_t.shape != prior.shape:
            raise ValueError(f"x_t is {tuple(x_t.shape)} but the conditioning "
                             f"is for {tuple(prior.shape)}")
        x = torch.cat([x_t, prior, features], 1)  # b 1+1+c h w
        return self.diffusion(x, t, prior=prior)

    def forward(self, image: Tensor, x_t: Tensor,
                t: Tensor) -> tuple[Tensor, Conditioning]:
        "`condition`, then `denoise`."
        conditioning = self.condition(image)
        return self.denoise(x_t, t, conditioning), conditioning

    def process(self) -> ShiftedDiffusion:
        "The diffusion process that this model was configured for."
        return ShiftedDiffusion(make_betas(self.config), self.config.shift)

    @property
    def size(self) -> tuple[int, int]:
        "(height, width) that the model was trained at, pixels."
        return self.config.height, self.config.width

    @property
    def device(self) -> torch.device:
        "Where the weights are."
        return next(self.parameters()).device

    def num_parameters(self) -> int:
        "How many numbers are learned."
        return sum(p.numel() for p in self.parameters())

    def save_pretrained(self, save_directory: str | Path,
                        **hub: Any) -> str | None:
        "config.json and model.safetensors; `push_to_hub=True` uploads them."
        return save_model(self, Path(save_directory), **hub)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path,
                        **hub: Any) -> "VerdiffNet":
        "From a folder or the Hub, in eval mode; VerdiffError if it is unfit."
        return load_model(cls, pretrained_model_name_or_path, **hub)


# %%
torch.manual_seed(0)
model = VerdiffNet(channels=(8, 16, 32))
image, x_t = torch.rand(2, 1, 75, 51), torch.randn(2, 1, 75, 51)
output, c = model(image, x_t, torch.tensor([10, 900]))
assert output.shape == c.prior.shape == (2, 1, 75, 51)
print({name: tuple(part.shape) for name, part in c._asdict().items()})
print(f"{model.num_parameters():,} parameters, T = {model.process().timesteps}")


# %% [markdown]
# **The naive way to use it.** `forward` does everything, so why not call it at every step, for every member of an ensemble (several masks drawn for one image, [14](14_sampling.ipynb))? It works. Count the seconds for 10 steps and 5 members, against `condition` once, `repeat`, and ten times `denoise`:

# %%
@torch.no_grad()
def naive(image, x, steps=10):
    for k in range(steps):
        model(image.repeat(5, 1, 1, 1), x, torch.full((5,), k))


@torch.no_grad()
def once(image, x, steps=10):
    c = model.condition(image).repeat(5)
    for k in range(steps):
        model.denoise(x, torch.full((5,), k), c)


# %%
image, x = torch.rand(1, 1, 192, 64), torch.randn(5, 1, 192, 64)
spent = []
for use in (naive, once):
    use(image, x, 1)  # warm up
    start = time.process_time()
    use(image, x)
    spent.append(time.process_time() - start)
print(f"everything at every step {spent[0]:.2f} s, "
      f"condition once {spent[1]:.2f} s")
assert spent[0] > 1.2 * spent[1]


# %% [markdown]
# ## 3 · Figure 3, drawn from the module tree
#
# The blocks of the figure below are not a sketch. The model of the `gpu` profile is built on PyTorch's **meta** device, where tensors have a shape and no numbers. Hooks write down what every block gives for a 752×256 radiograph:

# %%
def trace(model, height, width):
    "(name, class, output shape) of each block, nothing computed."
    seen, kinds = [], ("MultiScaleFusion", "ResBlock", "NoiseSemanticAdapter")
    for name, m in model.named_modules():
        kind = type(m).__name__
        note = lambda m, args, out, name=name, kind=kind: seen.append(
            (name, kind, tuple(out.shape[1:])))
        if kind in kinds:
            m.register_forward_hook(note)
    b = torch.zeros(1, 1, height, width, device="meta")
    model(b, b, torch.zeros(1, dtype=torch.long, device="meta"))
    return seen


# %%
with torch.device("meta"):
    big = VerdiffNet(VerdiffConfig.from_settings(load_settings("gpu")))
blocks = trace(big, 752, 256)
print(f"{len(blocks)} blocks, {big.num_parameters():,} parameters",
      *blocks[:3], sep="\n")

# %% [markdown]
# Matplotlib draws that list with the names of `model.named_modules()`. If a width or a depth changes, the blocks change; the arrows are placed by hand. (Its "doors" are section 4; V is what an adapter returns.)

# %%
#| code-fold: true
def u_shape(blocks, prefix):
    "Residual blocks of one U-Net: [(shape, count)] going down and going up."
    shapes = [s for name, kind, s in blocks
              if kind == "ResBlock" and name.startswith(prefix + ".")]
    lowest = min(s[1] for s in shapes)
    last = max(i for i, s in enumerate(shapes) if s[1] == lowest)
    group = lambda part: [(s, part.count(s)) for s in dict.fromkeys(part)]
    return group(shapes[:last + 1]), group(shapes[last + 1:])


def box(ax, x, y, text, color, w=2.6, h=0.62):
    ax.add_patch(FancyBboxPatch((x - w / 2, y - h / 2), w, h, fc=color,
                                boxstyle="round,pad=0.03", ec="0.3", lw=0.8))
    ax.text(x, y, text, ha="center", va="center", fontsize=6.8)


def arrow(ax, a, b, style="-", color="0.3", rad=0.0):
    ax.add_patch(FancyArrowPatch(
        a, b, arrowstyle="-|>", mutation_scale=8, lw=0.9, ls=style,
        color=color, connectionstyle=f"arc3,rad={rad}", shrinkA=2, shrinkB=2))


# %%
#| code-fold: true
def draw_u(ax, x, down, up, color):
    "One U-Net with its encoder at x and its decoder at x + 3."
    halves = (("encoder", down, x), ("decoder", up[::-1], x + 3))
    for half, part, column in halves:
        for level, (shape, count) in enumerate(part):
            # the decoder counts from below
            i = level if half == "encoder" else len(up) - 1 - level
            size = " × ".join(map(str, shape))
            box(ax, column, -level, f"{half}.blocks.{i}: {count} ResBlock"
                f"{'s' * (count > 1)}\n{size}", color)
    for level in range(len(down) - 1):
        arrow(ax, (x, -level - 0.33), (x, -level - 0.67))
        arrow(ax, (x + 1.3, -level), (x + 1.7, -level), "--")  # skip connection
        if level < len(up) - 1:
            arrow(ax, (x + 3, -level - 0.67), (x + 3, -level - 0.33))
    arrow(ax, (x + 1.3, 1 - len(down)), (x + 3, 0.67 - len(up)), rad=0.25)


def draw_unets(ax, blocks):
    "Both U-Nets and the adapters; the adapters' shapes."
    draw_u(ax, 0, *u_shape(blocks, "conditional"), "#dbe9f6")
    draw_u(ax, 8.2, *u_shape(blocks, "diffusion"), "#fde3cf")
    sizes = [s[1:] for s, _ in u_shape(blocks, "diffusion")[0]]
    adapters = [s for _, kind, s in blocks if kind == "NoiseSemanticAdapter"]
    for shape in adapters:
        level = sizes.index(shape[1:])
        box(ax, 6.15, -level, f"NSA, + V\n{shape[0]} ch", "#e3d5f1", w=0.8)
        arrow(ax, (6.56, -level), (6.9, -level))
    return adapters


# %%
#| code-fold: true
#| fig-alt: "Verdiff-Net as boxes and arrows. Left, the image goes through the MSFM to the features X and down and up the five levels of the blue conditional U-Net to the prior f(b). Red arrows lead from the prior to x_t (door 1), to the input of the orange diffusion U-Net (door 2) and to the four purple adapters beside its lower encoder levels (door 3). A green arrow takes X to the diffusion U-Net's input."
fig, ax = plt.subplots(figsize=(11, 5.6))
adapters = draw_unets(ax, blocks)
ch, size, red = blocks[0][2][0], "752 × 256", "#b03050"
for x, y, text, color in (
        (0, 2.2, f"image b\n1 × {size}", "#eeeeee"),
        (0, 1.1, f"features: MSFM → X\n{ch} × {size}", "#d5ecd4"),
        (3, 1.1, f"prior f(b)\n1 × {size}", "#f6d5dc"),
        (8.2, 2.2, f"x_t\n1 × {size}", "#eeeeee"),
        (8.2, 1.1, f"[x_t, f(b), X]\n{2 + ch} × {size}", "#eeeeee"),
        (11.2, 1.1, f"ε, x_0 or v\n1 × {size}", "#eeeeee")):
    box(ax, x, y, text, color)
for x, y in ((0, 1.85), (0, 0.75), (8.2, 1.85), (8.2, 0.75)):
    arrow(ax, (x, y), (x, y - 0.41))
for x in (3, 11.2):
    arrow(ax, (x, 0.33), (x, 0.75))
arrow(ax, (4.3, 1.1), (6.9, 1.1), color=red)
arrow(ax, (3.6, 1.45), (6.9, 2.2), color=red, rad=-0.1)
arrow(ax, (0.9, 1.45), (7.2, 1.42), color="#3a7d3a", rad=-0.42)
for level in range(1, 1 + len(adapters)):
    arrow(ax, (4.3, 1.0), (5.73, -level + 0.1), color=red, rad=-0.1)
ax.text(4.5, 1.17, "door 2: a channel", fontsize=7.5, color=red)
ax.text(3.9, 2.1, "door 1: Eq. (3)", fontsize=7.5, color=red)
ax.text(4.1, -4.35, "door 3: pooled f(b)\nto encoder.adapters.1, 2, ...",
        fontsize=7.5, color=red, ha="center")
ax.text(4.3, 2.6, "features X", fontsize=7.5, color="#3a7d3a")
ax.text(1.5, -5.0, "conditional", ha="center")
ax.text(9.7, -5.0, "diffusion (sees t in every block)", ha="center")
ax.set(xlim=(-1.4, 12.6), ylim=(-5.2, 3.2))
ax.axis("off");

# %%
assert blocks[0][1:] == ("MultiScaleFusion", (32, 752, 256))
assert adapters == [(64, 376, 128), (128, 188, 64), (192, 94, 32),
                    (256, 47, 16)]


# %% [markdown]
# ## 4 · Three doors for the prior
#
# $f(b)$ reaches the output through (1) $x_t$ itself, by Eq. (3), (2) its channel, (3) the adapters. How much does each carry? That is a question to a *trained* network: a short training on phantoms of 64×32, with both losses written out plainly ([12](12_loss.ipynb) explains them). Take what you see as tendencies of a small model.

# %%
phantoms = PhantomSet(size=(64, 32), n_training=72)
phantoms = pack(phantoms, progress=False)
images = phantoms.images.float() / 255
masks = (phantoms.masks > 0).float()


# %%
def losses(model, process, i):
    "MSE of the diffusion output and BCE of the prior, for phantoms i."
    x_0, t = 2 * masks[i] - 1, torch.randint(0, process.timesteps, (len(i),))
    c = model.condition(images[i])
    x_t = process.q_sample(x_0, t, c.prior, torch.randn_like(x_0))
    mse = F.mse_loss(model.denoise(x_t, t, c), x_0)
    return mse, F.binary_cross_entropy_with_logits(c.logits, masks[i])


# %%
@torch.no_grad()
def held_out(model):
    "Dice of the prior on eight phantoms that training does not see."
    return dice(model.condition(images[64:]).prior > 0, masks[64:]).mean()


# %%
def fit(seed=0, steps=60, **switches):
    "A small model, [mse, bce] of each step, the prior's Dice every ten."
    torch.manual_seed(seed)
    model = VerdiffNet(channels=(8, 16, 32), height=64, width=32, **switches)
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    process, curve, scores = model.process(), [], []
    for k in range(steps):
        mse, bce = losses(model, process, torch.randint(0, 64, (8,)))
        optimizer.zero_grad()
        (mse + bce).backward()
        optimizer.step()
        curve.append([mse.item(), bce.item()])
        if k % 10 == 9:
            scores.append(held_out(model).item())
    return model, np.array(curve), scores


# %%
detached = [fit(seed) for seed in (0, 1)]
model, curve, scores = detached[0]
print(f"after 60 steps: mse {curve[-10:, 0].mean():.3f}, bce "
      f"{curve[-10:, 1].mean():.3f}, Dice of the prior {scores[-1]:.3f}")


# %% [markdown]
# Three separate copies of the prior, one at each door; the gradient of the output says how strongly each is felt.

# %%
def doors(model, t, n=8):
    "Mean |gradient| of the summed output on the prior at its three doors."
    torch.manual_seed(0)
    c, t = model.condition(images[:n]).detach(), torch.full((n,), t)
    one, two, three = (c.prior.clone().requires_grad_() for _ in range(3))
    x_t = model.process().q_sample(2 * masks[:n] - 1, t, one,
                                   torch.randn_like(one))
    x = torch.cat([x_t, two, c.features], 1)
    output = model.diffusion(x, t, prior=three)
    gradients = torch.autograd.grad(output.sum(), (one, two, three))
    return [g.abs().mean().item() for g in gradients]


# %%
ts = [0, 50, 100, 200, 300, 500, 700, 999]
felt = np.array([doors(model, t) for t in ts])
assert felt[0, 0] < felt[-1, 0]  # door 1 opens with s_t
assert (felt[:, 1:] > 0).all()

# %%
#| code-fold: true
#| fig-alt: "Mean gradient, on a logarithmic axis, over t. Door 1 rises from almost nothing at t = 0 to the widest at large t; door 2, the input channel, is the widest at small t; door 3, the adapters, is the narrowest nearly everywhere."
plt.figure(figsize=(5.5, 2.8))
names = ("1: inside x_t, Eq. (3)", "2: input channel", "3: adapters")
for line, name in zip(felt.T, names):
    plt.plot(ts, line, marker="o", ms=3, label=name)
plt.yscale("log")
plt.xlabel("t")
plt.ylabel("mean |gradient|")
plt.legend(fontsize=8)
plt.title("how strongly the output feels f(b)", fontsize=10);


# %% [markdown]
# Door 1 closes as $t\to0$ by construction: its strength is $s_t=\sqrt{1-\bar\alpha_t}$ times what the network makes of $x_t$. There door 2 carries most; without it the network would have to tell prior from noise inside $x_t$, where they come as a sum.
#
# ## 5 · Detached or joint?
#
# Algorithm 1 descends one total loss, which suggests *joint*: the diffusion loss also pulls at the conditional U-Net, through all three doors. *Detached*, the conditional U-Net learns from the prior's own loss only. First, does the switch do what it says?

# %%
def pull(model):
    "Norm of the diffusion loss's gradient on each part."
    model.zero_grad()
    torch.manual_seed(0)
    losses(model, model.process(), torch.arange(8))[0].backward()
    norms = {}
    for name, part in model.named_children():
        grads = [p.grad for p in part.parameters() if p.grad is not None]
        norms[name] = round(sum(float((g**2).sum()) for g in grads)**0.5, 4)
    return norms


# %%
joint = [fit(seed, detach_prior=False) for seed in (0, 1)]
print("detached", pull(detached[0][0]))
print("joint   ", pull(joint[0][0]))
assert pull(detached[0][0])["conditional"] == 0

# %% [markdown]
# Mind `features`: the MSFM feels the diffusion loss either way. $X$ serves both U-Nets, so "the diffusion loss trains only the diffusion U-Net" is true of the two U-Nets, not of the module in front of them. And what does the switch do to learning?

# %%
for name, runs in (("detached", detached), ("joint", joint)):
    print(f"{name}: prior Dice {[round(r[2][-1], 3) for r in runs]}, last "
          f"mse {[round(r[1][-20:, 0].mean().item(), 3) for r in runs]}")

# %%
#| code-fold: true
#| fig-alt: "Two panels over 60 steps, two seeds each. Left, the diffusion loss falls alike for detached and joint. Right, the held-out Dice of the prior rises for both, the lines of the two ways crossing."
fig, axes = plt.subplots(1, 2, figsize=(8, 2.6))
smooth = lambda y: np.convolve(y, np.ones(10) / 10, "valid")
for runs, color, name in ((detached, "tab:blue", "detached"),
                          (joint, "tab:orange", "joint")):
    for k, (_, curve, scores) in enumerate(runs):
        axes[0].plot(smooth(curve[:, 0]), color=color,
                     label=None if k else name)
        axes[1].plot(range(10, 61, 10), scores, color=color)
axes[0].set(title="diffusion loss (mean of 10)", xlabel="step")
axes[0].legend()
axes[1].set(title="held-out Dice of the prior", xlabel="step");

# %% [markdown]
# Two seeds and 60 steps decide nothing about quality; the [ablation](lab/ablation.ipynb) asks with more. What decides our default is meaning. Detached, $f(b)$ is a segmentation trained as one, a baseline of its own. A joint $f$ is free to carry a message to the diffusion U-Net rather than to segment, and it changes the *input* $x_t$, which contains $s_t f(b)$, as well. `detach_prior = false` is the paper's literal Algorithm 1, and the `paper` profile has it.
#
# ## 6 · A last layer that starts at zero
#
# An untrained output is whatever the random weights make of the input, so the first loss depends on the seed, the width and the depth. With a zero last convolution the output is zero, and the loss starts at $E[x_0^2] = 1$ exactly:

# %%
torch.manual_seed(0)
fresh = VerdiffNet(channels=(8, 16, 32))
start = losses(fresh, fresh.process(), torch.arange(32))[0].item()
print(f"first diffusion loss: {start:.4f}")
assert abs(start - 1) < 1e-6

# %% [markdown]
# A first loss other than 1 (for $x_0$ or $\varepsilon$) reveals a mistake. The price: no gradient flows back through a zero layer, so in the very first step only that layer moves. One step later the gradient reaches the features too (the conditional U-Net stays at 0 because the prior is detached):

# %%
print("step 0:", pull(fresh))
torch.optim.SGD(fresh.parameters(), 0.1).step()
print("step 1:", pull(fresh))

# %% [markdown]
# ## 7 · Table 2's rows, one argument apart
#
# The first row, the paper's point of departure, is the image "coarsely spliced" to the mask: one 3×3 convolution of the image beside $x_t$, no adapter.

# %%
rows = {"neither": dict(msfm=False, nsa=False),
        "MSFM": dict(msfm=True, nsa=False),
        "NSA": dict(msfm=False, nsa=True),
        "both (Verdiff-Net)": dict(msfm=True, nsa=True)}
count = {name: VerdiffNet(config, **switches).num_parameters()
         for name, switches in rows.items()}
for name, n in count.items():
    print(f"{name:20s} {n:8,d} parameters")


# %% [markdown]
# (Plain DDPM, though with the prior among its inputs, is `VerdiffNet(msfm=False, nsa=False, shift=False)`.) A count that the model prints itself proves little, so here is the adapters' share by hand: for $C$ channels $C(10+26+50)$ depth-wise, $C^2 + C$ to halve twice, $198$ for the gate, $C^2/2 + C$ to expand.

# %%
def adapter_size(c):
    return 86 * c + (c * c + c) + 198 + (c * c // 2 + c)


by_hand = sum(adapter_size(c) for c in config.channels[1:])
assert count["NSA"] - count["neither"] == by_hand
assert count["both (Verdiff-Net)"] - count["MSFM"] == by_hand
print(f"adapters at {config.channels[1:]}: {by_hand:,} parameters")

# %% [markdown]
# ## 8 · Beside other networks
#
# `bench/networks.py` times the diffusion U-Net beside MONAI's `DiffusionModelUNet` and the network of med-seg-diff-pytorch, ours built with as many parameters as each of them has. Recorded run: one CPU thread, at most 17 GB, 2026-11-25, commit b7b7818. Only a checkout holds it; without one the next cells say so.

# %%
top = Path(verdiff.__file__).resolve().parent.parent
record = top / "bench/results/networks.json"
timed = []
if record.exists():
    timed = [r for r in json.loads(record.read_text())["rows"] if r["ratio"]]
else:
    print("not here: an installed package has no bench/results/networks.json")

# %%
#| code-fold: true
#| fig-alt: "Bars of their seconds divided by ours, for MONAI's network and that of med-seg-diff at two sizes, batch 1 and 8, sampling and training; nearly all reach beyond the line at 1."
labels = [f"{r['other']}, {r['size']}, batch {r['batch']}, {r['step']}"
          for r in timed]
if timed:
    plt.figure(figsize=(5, 0.5 + 0.25 * len(labels)))
    plt.barh(labels, [r["ratio"] for r in timed], color="tab:purple")
    plt.axvline(1, color="k", lw=1)
    plt.gca().invert_yaxis()
    plt.yticks(fontsize=8)
    plt.xlabel("their seconds / ours")

# %%
for r, label in zip(timed, labels):
    print(f"{label:43s} {r['other_seconds']:7.2f} s, ours "
          f"{r['verdiff_seconds']:6.2f} s: {r['ratio']:.1f}")

# %% [markdown]
# Likely reasons: ours has no attention, and its full-size level, where time goes, is narrow.
#
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | MSFM | "introduced into the conditional U-Net", its output fused with $x_t$ | before it, one $X$ for both U-Nets | Section 2.3's order: $b$ passes it "before" the conditional U-Net |
# | fusion with $x_t$ | "fused", not said how | channels side by side into the first 3×3 convolution | that convolution *is* the learned mixture |
# | $f(b)$ in $\Phi(x_t,t,f(b))$ | not said how | an input channel, and the adapters | both are cheap (section 4) |
# | NSA | "U-Net of the conditional model", then "encoder of the diffusion model" | diffusion encoder, below full resolution | conclusion and Figure 3; cost |
# | gradient of the diffusion loss into $f(b)$ | not said | detached (`detach_prior`) | section 5 |
# | last layer | not said | starts at zero | section 6 |
#
# ## Exercises
#
# **1 · Predict.** `shift=False` and `shift=True` make models of equal size. Which line of `losses` notices the switch? By which doors does the prior still enter without it?

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# Only `process.q_sample`: `model.process()` returns a process that ignores the prior. Doors 2 and 3 stay.

# %%
#| code-fold: true
plain = VerdiffNet(channels=(8, 16), shift=False).process()
x_0, noise = torch.ones(1, 1, 4, 4), torch.randn(1, 1, 4, 4)
t = torch.tensor([500])
assert torch.equal(plain.q_sample(x_0, t, -x_0, noise),
                   plain.q_sample(x_0, t, x_0, noise))

# %% [markdown]
# </details>
#
# **2 · Change.** Freeze the conditional half (features and conditional U-Net) of `model` and show that a step of training moves only the diffusion U-Net.

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# `requires_grad_(False)` on the two children; an optimiser over the remaining parameters. With `norm="batch"` also `.eval()` on the two, or their running averages move.

# %%
#| code-fold: true
model.features.requires_grad_(False)
model.conditional.requires_grad_(False)
left = [p for p in model.parameters() if p.requires_grad]
before = {k: v.clone() for k, v in model.state_dict().items()}
losses(model, model.process(), torch.arange(4))[0].backward()
torch.optim.SGD(left, 0.1).step()
moved = {k.split(".")[0] for k, v in model.state_dict().items()
         if not torch.equal(v, before[k])}
assert moved == {"diffusion"}


# %% [markdown]
# </details>
#
# **3 · Diagnose (hard).** Somebody's evaluation gives each image an ensemble of five. For one image the Dice is right; for eight at once it collapses, with no error and the right shapes. Where is the mistake, and why does one image not show it? (Here every member is the prior itself, so that no noise disturbs you.)

# %%
def evaluate(images, masks, members=5):
    c = model.condition(images)
    many = Conditioning(*(part.repeat(members, 1, 1, 1) for part in c))
    mean = many.prior.unflatten(0, (len(images), members)).mean(1)
    return dice(mean > 0, masks).mean().item()


# %%
alone = np.mean([evaluate(images[i:i + 1], masks[i:i + 1])
                 for i in range(64, 72)])
print(f"one at a time {alone:.3f}, eight at once "
      f"{evaluate(images[64:], masks[64:]):.3f}")

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# `Tensor.repeat` gives 0 1 2 … 0 1 2 …, but `unflatten` takes five *neighbours* as the members of one image: the mean mixes five patients. `Conditioning.repeat` gives 0 0 0 0 0 1 1 …. With one image both orders are the same, so a test with a batch of one cannot find it.

# %%
#| code-fold: true
many = model.condition(images[64:]).repeat(5)
mean = many.prior.unflatten(0, (8, 5)).mean(1)
right = dice(mean > 0, masks[64:]).mean().item()
assert abs(right - alone) < 1e-4 and right > evaluate(images[64:], masks[64:])

# %% [markdown]
# </details>
#
# One class with two questions, `condition` and `denoise`. It knows nothing yet: **how does it learn?** Next: [12 · The loss](12_loss.ipynb).
