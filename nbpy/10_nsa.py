# %% [markdown]
# # 10 · The noise semantic adapter
# > The mask chooses how finely to look, and a gate that sees 29 pixels weighs the near against the far

# %% [markdown]
# A vertebra is recognised by its neighbours: a block in a column of equal blocks is spine, the
# same block alone is a marker or a screw. Section 2.4 of the paper adds a module to the encoder of
# the diffusion U-Net, the noise semantic adapter (NSA), that looks along the column and turns features up
# or down. You build it from seven small convolutions, **measure** how far it sees, find its twin in the
# literature, and watch a trained gate over a spine while $t$ falls from 999 to 0.
#
# *Time: half a minute on a laptop; no GPU needed.*
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/10_nsa.ipynb)

# %%
#| default_exp networks.nsa

# %%
#| export
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# %%
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from ipywidgets import IntSlider, interact
from matplotlib.animation import FuncAnimation
from matplotlib_inline.backend_inline import set_matplotlib_formats

import verdiff
from verdiff.data.packed import pack
from verdiff.data.phantom_set import PhantomSet
from verdiff.data.xray import XRaySet
from verdiff.io.download import find_xray
from verdiff.networks.model import VerdiffNet

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 82})
plt.rcParams["animation.frame_format"] = "jpeg"
torch.set_num_threads(1)


# %% [markdown]
# ## A puzzle that needs a long look
#
# Each picture holds a column of five bright blocks, like vertebrae, and a few blocks of the same
# shape elsewhere. Mark the column, leave out the strays.

# %%
def put_block(image, row, col):
    image[..., row - 2:row + 3, col - 2:col + 3] = 1

def puzzle(rng, size=48):
    image, mask = np.zeros((2, 1, size, size), np.float32)
    col, top = rng.integers(4, size - 4), rng.integers(3, 9)
    for k in range(5):
        put_block(image, top + 9 * k, col)
        put_block(mask, top + 9 * k, col)
    for row, c in rng.integers(3, size - 3, (30, 2)):
        around = image[0, max(row - 14, 0):row + 15, max(c - 9, 0):c + 10]
        if around.sum() == 0:
            put_block(image, row, c)
    return image + 0.1 * rng.standard_normal(image.shape).astype(np.float32), mask


# %%
rng = np.random.default_rng(0)
images, masks = (torch.from_numpy(np.stack(a)) for a in zip(*[puzzle(rng) for _ in range(320)]))
fig, axes = plt.subplots(2, 6, figsize=(7, 2.6))
for i in range(6):
    axes[0, i].imshow(images[i, 0], cmap="gray")
    axes[1, i].imshow(masks[i, 0], cmap="magma")
for ax, name in zip(axes[:, 0], ["image", "wanted"]):
    ax.set_ylabel(name)
for ax in axes.flat:
    ax.set_xticks([])
    ax.set_yticks([])


# %% [markdown]
# ### The naive attempt: two more 3×3 convolutions
#
# A stem, a middle part, a 1×1 head. We exchange only the middle part; its
# output is added to its input, as the encoder will do with the adapter.

# %%
class Puzzler(nn.Module):
    def __init__(self, middle, channels=8):
        super().__init__()
        self.stem, self.middle = nn.Conv2d(1, channels, 3, padding=1), middle
        self.head = nn.Conv2d(channels, 1, 1)

    def forward(self, x):
        h = F.silu(self.stem(x))
        return self.head(h + self.middle(h))


# %%
def solve(middle, steps=150):
    "Train on 256 puzzles, return the Dice on 64 others, the answers and the size of `middle`."
    torch.manual_seed(0)
    net = Puzzler(middle)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(steps):
        i = torch.randint(0, 256, (8,))
        loss = F.binary_cross_entropy_with_logits(
            net(images[i]), masks[i], pos_weight=torch.tensor(3.0)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        answer = (net(images[256:]) > 0).float()
    truth = masks[256:]
    dice = (2 * (answer * truth).sum() / (answer.sum() + truth.sum())).item()
    return dice, answer, sum(p.numel() for p in middle.parameters())


# %%
torch.manual_seed(0)
naive = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1))
naive_dice, naive_answer, naive_size = solve(naive)
print(f"two 3x3 convolutions, {naive_size} parameters: Dice {naive_dice:.3f}")


# %% [markdown]
# It marks every block. It cannot do better: stem and middle together see
# a window 7 pixels wide, 3 to each side, and the next block of the column starts 7 pixels from a block's
# centre. The adapter will get the same puzzle with fewer parameters.
#
# ## 1 · Fine: 3×3 or 5×5?
#
# The adapter starts with a depth-wise convolution (each channel by its own kernel). Its size
# "depends on the number of mask pixels around the center pixel": 3×3 "within the
# vertebrae, including vertebrae boundaries", 5×5 for "large area background". So first count:

# %%
#| exports
def mask_density(
    prior: Tensor,  # f(b) in [-1, 1], (B, 1, H, W)
    window: int = 5,  # side of the square window in pixels, odd
    binary: bool = False,  # count pixels of the mask (prior > 0) instead of adding probabilities
) -> Tensor:  # share of mask in the window, (B, 1, H, W) in [0, 1]
    "How much mask lies around each pixel; a window that sticks out counts what is inside."
    prob = (prior > 0).to(prior.dtype) if binary else (prior + 1) / 2
    return F.avg_pool2d(prob, window, stride=1, padding=window // 2, count_include_pad=False)


# %% [markdown]
# Count in which mask? The true one exists in training only, and a module
# fed with truth in training and with something else afterwards learns to lean on the truth. The
# prior $f(b)$, the conditional U-Net's first guess of the mask on the scale $[-1, 1]$, is there **in training and in sampling**, so we
# count in it. With the density $n$, the 3×3 kernel gets the weight $w$ and the 5×5 the weight $1-w$:
#
# $$ w_\text{hard} = [\,n > \tau\,], \qquad w_\text{soft} = \sigma\big(k\,(n-\tau)\big) $$
#
# "Including boundaries" fixes $\tau$: a pixel that touches a straight edge from outside has
# $n = 2/5$, one further out $n = 1/5$. With $\tau = 1/4$ the first is boundary, the second is background.

# %%
#| exports
def kernel_choice(
    prior: Tensor,  # f(b) in [-1, 1], (B, 1, H, W)
    choice: str = "soft",  # "hard": 0 or 1, as the paper words it; "soft": a sigmoid in between
    threshold: float = 0.25,  # tau, the density above which the 3x3 kernel is taken
    window: int = 5,  # side of the window in which mask pixels are counted
    sharpness: float = 10.0,  # k, the slope of the sigmoid of "soft"
) -> Tensor:  # w, the weight of the 3x3 kernel, (B, 1, H, W) in [0, 1]; 1 - w goes to the 5x5
    "Section 2.4: many mask pixels around the centre pixel, 3x3; few, 5x5."
    if choice == "hard":
        return (mask_density(prior, window, binary=True) > threshold).to(prior.dtype)
    return torch.sigmoid(sharpness * (mask_density(prior, window) - threshold))


# %%
edge = torch.full((1, 1, 9, 12), -1.0)
edge[..., 6:] = 1  # mask right of column 6
print("density", mask_density(edge)[0, 0, 4].numpy().round(2))
print("hard w ", kernel_choice(edge, "hard")[0, 0, 4].int().tolist())
print("soft w ", kernel_choice(edge)[0, 0, 4].numpy().round(2))
assert kernel_choice(edge, "hard")[0, 0, 4].tolist() == [0] * 5 + [1] * 7

# %% [markdown]
# On a spine: small phantoms from [01_data](03_xray_set.ipynb). A prior is never sharp, so a
# blurred mask stands in for $f(b)$.

# %%
phantoms = pack(PhantomSet(size=(96, 32), n_training=64, n_test=8), progress=False)
spines = (phantoms.masks > 0).float() * 2 - 1  # x_0 in [-1, 1]

def blur(mask, window):
    return F.avg_pool2d(mask, window, 1, window // 2, count_include_pad=False)

priors = blur(spines, 5)  # a soft f(b)


# %%
def show(ax, image, title, **kwargs):
    ax.imshow(image, **kwargs)
    ax.set_title(title, fontsize=9)
    ax.axis("off")

one = priors[:1]
panels = [("image", phantoms.images[0, 0], "gray"), ("prior f(b)", one[0, 0], "magma"),
          ("density n", mask_density(one)[0, 0], "magma"),
          ("hard choice", kernel_choice(one, "hard")[0, 0], "magma"),
          ("soft choice", kernel_choice(one)[0, 0], "magma")]
fig, axes = plt.subplots(1, 5, figsize=(6, 3.4))
for ax, (title, image, cmap) in zip(axes, panels):
    show(ax, image, title, cmap=cmap)

# %% [markdown]
# ### Hard or soft?
#
# The hard choice is the paper's wording. But a comparison has no slope: through it the loss cannot
# tell the prior "a little more here would help". Measured with $\sum w$ as a toy loss:

# %%
for choice in ("hard", "soft"):
    p = one.clone().requires_grad_()
    w = kernel_choice(p, choice)
    slope = torch.autograd.grad(w.sum(), p)[0].abs().sum().item() if w.requires_grad else 0.0
    print(f"{choice}: slope of the choice in the prior {slope:8.2f}")

# %% [markdown]
# This matters only when gradients may reach the prior (`detach_prior = false`, see
# [09_model](11_model.ipynb)). A second point always holds: when the prior wavers around the threshold,
# the hard choice jumps and the soft one glides. So soft is our default;
# `nsa_choice = hard` selects the other.

# %%
wobble = one + 0.05 * torch.randn(one.shape, generator=torch.Generator().manual_seed(1))
jump = {
    c: (kernel_choice(wobble, c) - kernel_choice(one, c)).abs().max().item()
    for c in ("hard", "soft")
}
print(
    {c: round(j, 3) for c, j in jump.items()},
    "largest change of w when the prior moves by about 0.05",
)
assert jump["soft"] < 0.2 < jump["hard"]


# %% [markdown]
# ## 2 · Spatial: 7×7 with dilation 3
#
# A second depth-wise convolution works on the result of the first: 7×7 with dilation 3, which means that its taps lie
# three pixels apart. It costs 49 weights a channel and spans $6\cdot3+1 = 19$ pixels. But 49 taps in
# $19^2 = 361$ pixels leave holes! Ask the gradient which input pixels move one output pixel:

# %%
def footprint(f, channels=4, size=33):
    "Which input pixels have a gradient on the central output pixel, (size, size) bool."
    torch.manual_seed(0)
    x = torch.randn(1, channels, size, size, dtype=torch.float64, requires_grad=True)
    f(x)[..., size // 2, size // 2].sum().backward()
    return x.grad.abs().sum((0, 1)) > 0

def reach(seen):
    "Side of the square that holds the footprint."
    rows = seen.any(1).nonzero()
    return (rows.max() - rows.min() + 1).item()


# %%
def depthwise(kernel, padding, dilation=1, c=4):
    return nn.Conv2d(c, c, kernel, padding=padding, dilation=dilation, groups=c).double()


fine_3, fine_5, far_7 = depthwise(3, 1), depthwise(5, 2), depthwise(7, 9, 3)
stages = {
    "fine 3×3": fine_3,
    "fine 5×5": fine_5,
    "7×7, dilation 3": far_7,
    "3×3, then it": nn.Sequential(fine_3, far_7),
    "5×5, then it": nn.Sequential(fine_5, far_7),
}
seen = {name: footprint(f) for name, f in stages.items()}

# %%
fig, axes = plt.subplots(1, 5, figsize=(8, 2.1))
for ax, (name, s) in zip(axes, seen.items()):
    show(ax, s, f"{name}\n{reach(s)} wide, {int(s.sum())} pixels", cmap="gray")
assert [reach(s) for s in seen.values()] == [3, 5, 19, 21, 23]
assert seen["3×3, then it"].sum() == 21 ** 2  # no holes left


# %% [markdown]
# Alone it is a comb. A 3×3 *before* it fills the gaps exactly: two cheap kernels ($9+49$ weights)
# see all of a 21×21 square, for which a plain kernel needs 441. How large may the dilation be? (Exercise 1.)
#
# ## 3 · The gate
#
# 1×1 convolutions halve both results to $C/2$ channels: $F$ (fine) and $S$ (spatial). How
# strongly does each speak at a pixel? Take mean and maximum over all channels of both, and let a 7×7
# convolution with a sigmoid decide:
#
# $$ T = \sigma\big(\mathrm{conv}_{7\times7}[\mathrm{mean}_c(F,S);\ \max\nolimits_c(F,S)]\big) \tag{15} $$

# %%
#| exports
def pool_channels(
    features: Tensor,  # (B, C, H, W)
) -> Tensor:  # mean and maximum over the channels, (B, 2, H, W)
    "The two descriptors of a pixel from which the gate is computed."
    return torch.cat([features.mean(1, keepdim=True), features.amax(1, keepdim=True)], 1)


# %%
assert pool_channels(torch.tensor([1.0, 2.0, 6.0]).reshape(1, 3, 1, 1)).flatten().tolist() == [3, 6]

# %% [markdown]
# ### Where the printed dimensions do not fit
#
# That is our reading. Printed is $T = \mathrm{Sigmoid}\cdot f(F * S)$ ($f$ is a convolution here, not the prior) with "$*$ the product" and $T$ of $C$ channels;
# Eq. (16) multiplies it with $F$ and $S$ of $C/2$ channels, and the result with the input $X$ of $C$. Literally:

# %%
C = 8
F_, S_, T_ = torch.randn(1, C // 2, 6, 6), torch.randn(1, C // 2, 6, 6), torch.rand(1, C, 6, 6)
try:
    F_ * T_ + S_ * T_  # Eq. (16) as printed
except RuntimeError as error:
    print("Eq. (16) as printed:", error)


# %% [markdown]
# The text between the equations is clearer: halve, *concatenate*, mean and maximum, sigmoid, "expand the
# channel dimension back". So we give $T$ **two** maps, $T_F$ to open $F$ and $T_S$ to open $S$, and a 1×1 convolution brings $C/2$ back to $C$:
#
# $$ \bar V = \mathrm{conv}_{1\times1}(F\,T_F + S\,T_S), \qquad V = \bar V \cdot X \tag{16} $$
#
# The encoder goes on with $X + V = X\,(1 + \bar V)$: where $\bar V > 0$ a feature is turned up, where it is $-1$ switched off.
#
# | | paper | ours | why |
# |---|---|---|---|
# | $F, S$ | $C/2$ channels | $C/2$ | as printed |
# | into the gate | product $F*S$ (Eq. 15), "concatenated" (text) | concatenated | a product has no mean-and-max "aggregation" of both |
# | $T$ | $C$ channels | 2, one for each branch | $C$ cannot multiply $C/2$; two maps *select* a branch |
# | back to $C$ | "trying to expand" | 1×1 convolution after the sum | $\bar V$ must multiply $X$ |
# | the mask counted | not said for sampling | the prior $f(b)$ | the same in training and sampling |
# | choice | a selection | soft (`hard` by key) | gradients and steadiness, measured above |
# | place | "conditional model", then "encoder of the diffusion model" | encoder of the diffusion U-Net, every level below full resolution | Figure 3 and the conclusion; cost, measured below |
#
# Without any prior the two fine kernels are averaged, $w = 1/2$.

# %%
#| exports
def fine_weight(
    x: Tensor,  # features, (B, C, H, W)
    prior: Tensor | None,  # f(b) at the size of x, (B, 1, H, W) in [-1, 1], or none
    *choosing,  # the further arguments of `kernel_choice`
) -> Tensor:  # w, the share of the 3x3 kernel at each pixel, (B, 1, H, W)
    "`kernel_choice` for these features; ValueError when the prior has another height or width."
    if prior is None:
        return x.new_full((x.shape[0], 1, *x.shape[-2:]), 0.5)
    if prior.shape[1:] != (1, *x.shape[-2:]):
        raise ValueError(f"the prior must be (B, 1, {x.shape[-2]}, {x.shape[-1]}) as the "
                         f"features are, not {tuple(prior.shape)}")
    return kernel_choice(prior, *choosing).to(x.dtype)


# %%
features = torch.randn(1, 8, 96, 32)
assert (fine_weight(features, None) == 0.5).all()
torch.testing.assert_close(fine_weight(features, one, "hard"), kernel_choice(one, "hard"))


# %% [markdown]
# The whole adapter, with the paper's symbols as names:

# %%
#| exports
class AdapterMaps(NamedTuple):
    "What `NoiseSemanticAdapter.maps` computed on its way, for pictures and tests."

    choice: Tensor  # w, weight of the 3x3 kernel, (B, 1, H, W) in [0, 1]
    fine: Tensor  # F, (B, C/2, H, W)
    spatial: Tensor  # S, (B, C/2, H, W)
    gate: Tensor  # T, (B, 2, H, W) in (0, 1): channel 0 opens F, channel 1 opens S
    v_bar: Tensor  # V-bar, (B, C, H, W)
    output: Tensor  # V = V-bar * X, (B, C, H, W)


# %%
#| exports
def depthwise_conv(
    conv: nn.Conv2d,  # one filter a channel
    x: Tensor,  # (B, C, H, W)
) -> Tensor:  # (B, C, H, W), float32 on a CPU
    """A depth-wise convolution; in mixed precision on a CPU it stays in float32.

    There bf16 is slower for the large kernels, and the weights' gradient of a dilated one, channels
    last, is wrong: memory that nobody wrote (torch 2.13).
    """
    if x.device.type != "cpu":
        return conv(x)
    with torch.autocast("cpu", enabled=False):
        return conv(x.to(conv.weight.dtype))


# %%
#| exports
class NoiseSemanticAdapter(nn.Module):
    """Eq. (15)-(16): V = V_bar * X, V_bar = expand(F * T_F + S * T_S).

    x (B, C, H, W) and prior (B, 1, H, W) in [-1, 1] give V (B, C, H, W). Without a prior the two
    fine kernels are averaged. Raises ValueError when the prior has another height or width than x.
    """

    def __init__(
        self,
        channels: int,  # C, at least 2
        choice: str = "soft",  # "soft" or "hard", see `kernel_choice`
        threshold: float = 0.25,  # mask density above which 3x3 is taken
        window: int = 5,  # window of the density
        sharpness: float = 10.0,  # slope of the soft choice
    ):
        super().__init__()
        if choice not in ("soft", "hard"):
            raise ValueError(f"choice must be 'soft' or 'hard', not {choice!r}")
        if channels < 2:
            raise ValueError(f"the adapter halves its channels and needs 2 or more, not {channels}")
        self.choice, self.threshold = choice, threshold
        self.window, self.sharpness = window, sharpness
        half = channels // 2
        self.fine_3 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.fine_5 = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.spatial_7 = nn.Conv2d(channels, channels, 7, padding=9, dilation=3, groups=channels)
        self.halve_f = nn.Conv2d(channels, half, 1)
        self.halve_s = nn.Conv2d(channels, half, 1)
        self.mix = nn.Conv2d(2, 2, 7, padding=3)
        self.expand = nn.Conv2d(half, channels, 1)

    def maps(self, x: Tensor, prior: Tensor | None = None) -> AdapterMaps:
        "The adapter with everything that it computes on the way."
        w = fine_weight(x, prior, self.choice, self.threshold, self.window, self.sharpness)
        near = w * depthwise_conv(self.fine_3, x) + (1 - w) * depthwise_conv(self.fine_5, x)  # b c h w
        fine, spatial = self.halve_f(near), self.halve_s(depthwise_conv(self.spatial_7, near))  # b c/2 h w
        gate = torch.sigmoid(self.mix(pool_channels(torch.cat([fine, spatial], 1))))  # b 2 h w
        v_bar = self.expand(fine * gate[:, :1] + spatial * gate[:, 1:])  # b c h w
        return AdapterMaps(w, fine, spatial, gate, v_bar, v_bar * x)

    def forward(
        self,
        x: Tensor,  # X, features, (B, C, H, W)
        prior: Tensor | None = None,  # f(b) at the size of x, (B, 1, H, W) in [-1, 1]
    ) -> Tensor:  # V, (B, C, H, W)
        "V of Eq. (16); the encoder adds it to x."
        return self.maps(x, prior).output


# %%
adapter = NoiseSemanticAdapter(16)
m = adapter.maps(torch.randn(1, 16, 48, 16), F.avg_pool2d(one, 2))
assert isinstance(m, AdapterMaps)
for name, part in zip(m._fields, m):
    print(f"{name:8s} {tuple(part.shape)}")
assert m.output.shape == (1, 16, 48, 16)

# %% [markdown]
# How far does it see? The gate's 7×7 looks at $S$, which looks 11 pixels far through the 5×5:
# $2 + 9 + 3 = 14$ on each side, 29 wide; through the 3×3, 27. It also sees 14 pixels of
# the prior: 2 by the window, 9 and 3 as before. The gradient must agree:

# %%
whole = NoiseSemanticAdapter(4, choice="hard").double()
inside, outside = torch.ones(1, 1, 33, 33).double(), -torch.ones(1, 1, 33, 33).double()
sees_3 = footprint(lambda x: whole(x, inside))
sees_5 = footprint(lambda x: whole(x, outside))
soft = NoiseSemanticAdapter(4).double()
x_fixed = torch.randn(1, 4, 33, 33, dtype=torch.float64)
sees_prior = footprint(lambda p: soft(x_fixed, p.tanh()), channels=1)

# %%
fig, axes = plt.subplots(1, 3, figsize=(6, 2.3))
for ax, s, name in zip(
    axes, (sees_3, sees_5, sees_prior), ("inside mask", "background", "through the prior")
):
    show(ax, s, f"{name}: {reach(s)} wide", cmap="gray")
assert (reach(sees_3), reach(sees_5), reach(sees_prior)) == (27, 29, 29)
assert sees_3.sum() == 27**2 and sees_5.sum() == 29**2

# %% [markdown]
# ### The puzzle again
#
# It has no prior, so both fine kernels are averaged: this tests the reach only.

# %%
torch.manual_seed(0)
nsa_dice, nsa_answer, nsa_size = solve(NoiseSemanticAdapter(8))
print(f"two 3x3 convolutions {naive_size} parameters, Dice {naive_dice:.3f}")
print(f"the adapter          {nsa_size} parameters, Dice {nsa_dice:.3f}")
assert nsa_dice > 0.95 > naive_dice + 0.1

# %%
rows = {
    "image": images[256:],
    "3×3, 3×3": naive_answer,
    "adapter": nsa_answer,
    "wanted": masks[256:],
}
fig, axes = plt.subplots(4, 6, figsize=(6, 4.1))
for line, (name, batch) in zip(axes, rows.items()):
    line[0].set_ylabel(name)
    for ax, item in zip(line, batch):
        ax.imshow(item[0], cmap="gray" if name == "image" else "magma")
        ax.set_xticks([])
        ax.set_yticks([])


# %% [markdown]
# Same training, fewer parameters, and the strays are gone: what was missing was reach, not capacity. But
# a U-Net also gets reach by going down (see [06_unet](08_unet.ipynb)). The adapter gets it at
# once and at the level's own resolution. Whether that pays beside a deep U-Net is the claim of the paper's Table 2, and
# a question for [14_ablation](lab/ablation.ipynb), not for this puzzle.
#
# ## 4 · Its twin: LSKNet
#
# LSKNet (Li et al., ICCV 2023) uses large selective kernels for aerial images, where too a thing is
# recognised by what surrounds it. Their block, as they publish it:

# %%
class LSKBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.conv0 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.conv_spatial = nn.Conv2d(dim, dim, 7, padding=9, groups=dim, dilation=3)
        self.conv1, self.conv2 = nn.Conv2d(dim, dim // 2, 1), nn.Conv2d(dim, dim // 2, 1)
        self.conv_squeeze = nn.Conv2d(2, 2, 7, padding=3)
        self.conv = nn.Conv2d(dim // 2, dim, 1)

    def forward(self, x):
        attn1 = self.conv0(x)
        attn2 = self.conv2(self.conv_spatial(attn1))
        attn1 = self.conv1(attn1)
        attn = torch.cat([attn1, attn2], 1)
        agg = torch.cat([attn.mean(1, keepdim=True), attn.amax(1, keepdim=True)], 1)
        sig = self.conv_squeeze(agg).sigmoid()
        return x * self.conv(attn1 * sig[:, :1] + attn2 * sig[:, 1:])


# %% [markdown]
# Give it our weights, and let our hard choice see only background, so that it always takes the 5×5:

# %%
lsk, ours = LSKBlock(8), NoiseSemanticAdapter(8, choice="hard")
names = {"conv0": "fine_5", "conv_spatial": "spatial_7", "conv1": "halve_f", "conv2": "halve_s",
         "conv_squeeze": "mix", "conv": "expand"}
for theirs, mine in names.items():
    getattr(lsk, theirs).load_state_dict(getattr(ours, mine).state_dict())
x = torch.randn(2, 8, 40, 20)
torch.testing.assert_close(ours(x, -torch.ones(2, 1, 40, 20)), lsk(x))

# %% [markdown]
# Equal, number for number. In our reading the adapter **is** LSKNet's block plus one idea: a second, finer
# kernel that takes over where the mask is. The repair of the dimensions is that block's arrangement, too.
#
# ## 5 · The gate while $t$ falls
#
# What does a *trained* gate do? The network that travels with the package was trained on real radiographs
# ([15_xray](lab/xray.ipynb)). It has one adapter at each of the three levels below full resolution; we listen to the first. The prior is the
# network's own $f(b)$, and $x_t$ follows Eq. (3) of [04_forward](06_forward.ipynb), made from the *true* mask as in training: at $t = 0$ the network is shown the mask itself, and a gate that follows the spine there follows its input.

# %%
model = VerdiffNet.from_pretrained(Path(verdiff.__file__).parent / "weights" / "xray-384x128")
process = model.process()
adapters = list(model.diffusion.encoder.adapters)[1:]  # the first level has none
print([f"{a.fine_3.in_channels} channels, {a.choice} choice" for a in adapters])

# %% [markdown]
# A hook catches what enters the adapter; `maps` then gives both gates and $\bar V$ (we show its mean over
# the channels). `model.condition` runs the conditional U-Net and `model.denoise` predicts $x_0$ ([09_model](11_model.ipynb)). The noise is the same at every $t$.

# %%
caught = {}
adapters[0].register_forward_pre_hook(lambda module, args: caught.update(x=args[0], prior=args[1]))
same_noise = torch.randn(1, 1, *model.size, generator=torch.Generator().manual_seed(2))

@torch.no_grad()
def look(t, sample):
    "At timestep t: x_t, the two gates, the mean of V-bar and the predicted x_0, each (h, w)."
    t, c = torch.tensor([t]), model.condition(sample.image[None])
    x_t = process.q_sample(2 * sample.mask[None] - 1, t, c.prior, same_noise)
    x_0 = model.denoise(x_t, t, c)
    m = adapters[0].maps(**caught)
    return x_t[0, 0], m.gate[0, 0], m.gate[0, 1], m.v_bar[0].mean(0), x_0[0, 0]


# %% [markdown]
# The picture is a phantom (radiographs of the set stay out of the repository); this network has never seen the like of it.

# %%
phantom = PhantomSet(split="test", size=model.size, n_training=64, n_test=8)[1]
shown = [999, 600, 300, 100, 0]
names = ["x_t", "gate, fine", "gate, spatial", "mean of V-bar", "predicted x_0"]
looks = [
    torch.stack(maps) for maps in zip(*[look(t, phantom) for t in shown])
]  # one of (t, h, w) for each name
inner = (..., slice(8, -8), slice(4, -4))  # zero padding shows in the gate near the border
ranges = [(-2, 2), *[(m[inner].min().item(), m[inner].max().item()) for m in looks[1:4]], (-1, 1)]


def draw(axes, t, titles=True):
    for ax, image, (a, b), name in zip(axes, look(t, phantom), ranges, names):
        ax.clear()
        show(ax, image, name if titles else "", cmap="magma", vmin=a, vmax=b)


# %%
fig, axes = plt.subplots(
    5, len(shown), figsize=(3.6, 9.5), gridspec_kw=dict(wspace=0.05, hspace=0.06)
)
for column, t in zip(axes.T, shown):
    draw(column, t, titles=False)
    column[0].set_title(f"t = {t}", fontsize=9)
for ax, name, (a, b) in zip(axes[:, 0], names, ranges):
    ax.text(
        -0.12,
        0.5,
        f"{name}\n{a:.2f} to {b:.2f}",
        rotation=90,
        va="center",
        ha="right",
        transform=ax.transAxes,
        fontsize=8,
    )

# %% [markdown]
# The first row shows a spine even at $t = 999$: that is $f(b)$, by which Eq. (3) shifts the noise. The
# colours are stretched to the ranges at the left, so numbers are safer. Over **real spines** when the X-ray set is at hand (else
# over phantoms), take the mean gate in three places: on the vertebrae, in the gaps between them with a rim around, and far away. Each gate has an axis of its own; a band is the standard deviation over the films.

# %%
XRAY = find_xray()
films = (XRaySet(XRAY, "test", model.size) if XRAY
         else PhantomSet(split="test", size=model.size, n_training=64, n_test=8))
ts = [999, 888, 777, 666, 555, 444, 333, 222, 111, 50, 0]

def places(sample):
    "Vertebrae, the gaps between them and the rest of the film, as masks at the adapter's size."
    body = F.avg_pool2d(sample.mask[None], 2)[0, 0] > 0.5
    near = F.max_pool2d(body[None, None].float(), 9, 1, 4)[0, 0] > 0
    far = ~(F.max_pool2d(near[None, None].float(), 9, 1, 4)[0, 0] > 0)
    return {"vertebrae": body, "gaps and rim": near & ~body, "far away": far}


# %%
def gates(sample):
    "Mean of both gates in each place at each t, (t, gate, place)."
    where = places(sample).values()
    maps = [torch.stack(look(t, sample)[1:3]) for t in ts]  # gate h w
    return np.array([[[g[w].mean().item() for w in where] for g in pair] for pair in maps])

curves = np.stack([gates(films[i]) for i in range(4)])  # film t gate place
mean, spread = curves.mean(0), curves.std(0)

# %%
fig, axes = plt.subplots(1, 2, figsize=(7, 2.6), layout="constrained")
for k, ax in enumerate(axes):
    for p, place in enumerate(places(films[0])):
        ax.plot(ts, mean[:, k, p], label=place)
        ax.fill_between(
            ts, mean[:, k, p] - spread[:, k, p], mean[:, k, p] + spread[:, k, p], alpha=0.15
        )
    ax.invert_xaxis()
    ax.set_title(names[1 + k], fontsize=9)
    ax.set_xlabel("t (noise falls to the right)")
axes[0].set_ylabel("mean gate, 4 films")
axes[0].legend(fontsize=8);

# %%
print("real radiographs:" if XRAY else "phantoms (the X-ray set is not here):")
for k, name in enumerate(names[1:3]):
    print(
        f"{name:14s} at t = 999: {dict(zip(places(films[0]), mean[0, k].round(3).tolist()))}, "
        f"at t = 0: {dict(zip(places(films[0]), mean[-1, k].round(3).tolist()))}"
    )
print(
    f"a gate moves by {np.ptp(mean, 0).mean():.3f} while t falls, "
    f"and differs by {np.ptp(mean, 2).mean():.3f} between the places"
)


# %% [markdown]
# So the trained gate does follow the anatomy. The fine branch is open nearly everywhere in the noise and closes a little far from the spine when the
# picture clears. The spatial one is more open in gaps and rim than on the bodies, at every $t$, and in the end most of all far away. But compare both last
# numbers with 1, the whole range of a sigmoid: averaged over both gates the selection is a fine adjustment, which stretched colours alone would have hidden (the spatial gate alone differs by some 0.08 at $t = 0$).
#
# The slider needs a running notebook; on the rendered page, the animation under it does the same.

# %%
def at(t):
    fig, axes = plt.subplots(1, 5, figsize=(6, 3.6))
    draw(axes, t)
    plt.show()

interact(at, t=IntSlider(value=500, min=0, max=999, step=37, continuous_update=False));

# %%
fig, axes = plt.subplots(1, 5, figsize=(5, 3.2), dpi=60)
anim = FuncAnimation(fig, lambda t: draw(axes, t), frames=range(999, -1, -111), interval=350)
html = HTML(anim.to_jshtml())
plt.close(fig)
html


# %% [markdown]
# ## 6 · What it costs, and where it sits
#
# Depth-wise convolutions do little arithmetic and can be slow all the same.
# Forward and backward of one adapter, batch 8, at the four levels of a 192×64 network:

# %%
def seconds(f, x, prior, repeat=2):
    best = 1e9
    for _ in range(repeat + 1):
        start = time.perf_counter()
        f(x, prior).sum().backward()
        best = min(best, time.perf_counter() - start)
    return best

costs = []
for c, h, w in [(16, 192, 64), (32, 96, 32), (64, 48, 16), (128, 24, 8)]:
    p = torch.zeros(8, 1, h, w)
    plain = torch.randn(8, c, h, w, requires_grad=True)
    last = plain.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    module = NoiseSemanticAdapter(c)
    costs.append((f"{h}×{w}, {c} ch", seconds(module, plain, p),
                  seconds(module.to(memory_format=torch.channels_last), last, p)))

# %%
labels, plain_s, last_s = zip(*costs)
where = np.arange(len(labels))
plt.figure(figsize=(6, 2.4))
plt.bar(where - 0.2, np.array(plain_s) * 1000, 0.4, label="channels first")
plt.bar(where + 0.2, np.array(last_s) * 1000, 0.4, label="channels last")
plt.xticks(where, labels)
plt.ylabel("ms, forward + backward")
plt.legend();


# %% [markdown]
# Can the dilated convolution be had cheaper? Its taps jump by three, so an output pixel uses only every third row and column, and the picture falls into nine that do not
# mix: one undilated 7×7 convolution of nine small pictures gives the same numbers.

# %%
def interleaved(x, conv):
    "conv (7×7, dilation 3) as a dense convolution of the nine interleaved pictures; sides divisible by 3."
    b, c, h, w = x.shape
    x = (
        x.reshape(b, c, h // 3, 3, w // 3, 3)
        .permute(0, 3, 5, 1, 2, 4)
        .reshape(9 * b, c, h // 3, w // 3)
    )
    y = F.conv2d(x, conv.weight, conv.bias, padding=3, groups=c)  # 9b c h/3 w/3
    return y.reshape(b, 3, 3, c, h // 3, w // 3).permute(0, 3, 4, 1, 5, 2).reshape(b, c, h, w)


# %%
conv = NoiseSemanticAdapter(32).spatial_7.to(memory_format=torch.channels_last)
x = torch.randn(8, 32, 96, 33).contiguous(memory_format=torch.channels_last).requires_grad_()
torch.testing.assert_close(interleaved(x, conv), conv(x), atol=1e-5, rtol=1e-4)
plain_t = seconds(lambda x, p: conv(x), x, None, 4)
nine_t = seconds(lambda x, p: interleaved(x, conv), x, None, 4)
print(f"dilated {plain_t * 1000:.1f} ms, interleaved {nine_t * 1000:.1f} ms, forward + backward")


# %% [markdown]
# A trap lies in the same place. In bf16 (16-bit numbers, page [13](13_training.ipynb)), on a CPU and channels last, torch gives this layer's *weights* a gradient that nobody computed, whatever lay in that memory (so the number below changes from run to run, up to *inf*). No error, and the loss still falls. `depthwise_conv` keeps it in float32:

# %%
def weight_gradient(f, half):
    conv.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        y = f(x)
    y.backward(upstream.to(y.dtype))
    return conv.weight.grad.clone()


x, upstream = torch.randn(2, 4, 32, 96, 32).unbind()
x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
right = weight_gradient(conv, False)
for name, f in (("the layer itself", conv), ("depthwise_conv", lambda x: depthwise_conv(conv, x))):
    error = (weight_gradient(f, True) - right).norm() / right.norm()
    print(f"gradient in bf16, {name}: off by {error:.2%}")
assert error < 0.02  # of depthwise_conv; the layer itself depends on torch and the processor

# %% [markdown]
# What share of a sampling step do all adapters of the trained network take?

# %%
spent = {}
for a in adapters:
    a.register_forward_pre_hook(
        lambda m, args: spent.update({m: time.perf_counter() - spent.get(m, 0)})
    )
    a.register_forward_hook(lambda m, args, out: spent.update({m: time.perf_counter() - spent[m]}))

with torch.no_grad():
    c = model.condition(phantom.image[None]).repeat(5)
    start = time.perf_counter()
    for _ in range(5):
        model.denoise(same_noise.repeat(5, 1, 1, 1), torch.full((5,), 500), c)
    total = time.perf_counter() - start
print(f"adapters: {sum(spent.values()) / total:.0%} of a sampling step of five members")


# %% [markdown]
# Two choices follow. **Channels last** (a pixel's channels lie together in memory) for the whole model; [09_model](11_model.ipynb) sets it once.
# And **an adapter at every level below full resolution**: in the chart the finest level costs more than the three others together, and there a reach of
# 29 pixels is the shortest in millimetres. One level down the same kernels span 58 pixels of the image.
#
# The plain dilated line stays: it reads like the paper and takes sides of every length, and the interleaved form can only gain a part of one convolution
# in a part of a step. `bench/networks.py` times the whole network beside others.
#
# ## Exercises
#
# **1. Predict.** Which dilations of the 7×7 behind a 3×3 see a square without holes? And behind a 5×5?
#
# <details><summary>Answer</summary>
#
# A fine kernel of side $k$ fills the gaps of a comb with distance $d$ exactly when $d \le k$: 1, 2, 3 behind a 3×3, up to 5 behind
# a 5×5. The paper keeps 3 behind both; LSKNet, which has only the 5×5, takes 3 as well.
#
# </details>

# %%
def solid(kernel, dilation):
    chain = nn.Sequential(depthwise(kernel, kernel // 2), depthwise(7, 3 * dilation, dilation))
    s = footprint(chain, size=49)
    return bool(s.sum() == reach(s) ** 2)

assert [d for d in range(1, 7) if solid(3, d)] == [1, 2, 3]
assert [d for d in range(1, 7) if solid(5, d)] == [1, 2, 3, 4, 5]

# %% [markdown]
# **2. Change.** $V = \bar V\cdot X$ multiplies. Set weight and bias of `expand` to zero: what does the encoder's `x + V` become, and what if
# the bias is 1 then?
#
# <details><summary>Answer</summary>
#
# With zero weight and bias $\bar V = 0$, so $x + V = x$: the adapter is invisible. With bias 1, $\bar V = 1$ everywhere and $x + V = 2x$.
#
# </details>

# %%
test = NoiseSemanticAdapter(4)
nn.init.zeros_(test.expand.weight)
nn.init.zeros_(test.expand.bias)
x = torch.randn(1, 4, 8, 8)
assert torch.equal(x + test(x), x)
nn.init.ones_(test.expand.bias)
torch.testing.assert_close(x + test(x), 2 * x)


# %% [markdown]
# **3. Implement.** Write a third choice, "straight-through": the hard value going forward, the soft slope going back. (`y.detach()` has the value of `y` and no gradient.)
#
# <details><summary>Answer</summary>
#
# `soft + (hard - soft).detach()`: the value is `hard`, the gradient that of `soft`.
#
# </details>

# %%
def straight_through(prior):
    soft = kernel_choice(prior, "soft")
    return soft + (kernel_choice(prior, "hard") - soft).detach()


p = one.clone().requires_grad_()
torch.testing.assert_close(
    straight_through(p).detach(), kernel_choice(one, "hard"), atol=1e-6, rtol=0
)
assert torch.autograd.grad(straight_through(p).sum(), p)[0].abs().sum() > 0

# %% [markdown]
# ## What we have
#
# `NoiseSemanticAdapter(channels)(x, prior)` keeps the shape, sees exactly 29×29 (27×27 where a hard choice takes the 3×3), equals
# LSKNet's block where the 5×5 alone is taken, and takes less than a quarter of a step. [09_model](11_model.ipynb) puts it where Figure 3 has it.
#
# *References: Li et al., Large Selective Kernel Network for Remote Sensing Object Detection, ICCV 2023 (arXiv 2303.09030).
# Zhang et al., Verdiff-Net, Bioengineering 2024, 11, 1031, Section 2.4.*
