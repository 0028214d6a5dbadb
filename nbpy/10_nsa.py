# %% [markdown]
# # 10 · The noise semantic adapter
# > The mask chooses how finely to look, and a gate that sees 29 pixels weighs the near against the far

# %% [markdown]
# [09](09_msfm.ipynb) gave the networks an eye. Where should it look? A vertebra is recognised by its neighbours: a block in a column of equal blocks is spine, the same block alone is a marker or a screw. Section 2.4 of the paper adds the noise semantic adapter (NSA), which looks along the column and turns features up or down. You build it from seven small convolutions, **measure** how far it sees, find its twin in the literature, and watch a trained gate while $t$ falls. Two minutes on a laptop, no GPU. Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/10_nsa.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    line = 'pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"'
    get_ipython().system(line)  # noqa: F821

# %%
#| default_exp networks.nsa

# %%
#| exports
#| code-fold: true
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# %%
#| code-fold: true
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
from verdiff.metrics import dice
from verdiff.networks.model import VerdiffNet

# %%
#| code-fold: true
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 82})
plt.rcParams["animation.frame_format"] = "jpeg"
torch.set_num_threads(1)


def show(ax, image, title="", **kwargs):
    ax.imshow(image, **kwargs)
    ax.set_title(title, fontsize=9)
    ax.set_xticks([])
    ax.set_yticks([])


# %% [markdown]
# ## A puzzle that needs a long look
#
# Each picture holds a column of five bright blocks, like vertebrae, and a few strays. Mark the column only.

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
    return image + 0.1 * rng.standard_normal(image.shape), mask


# %%
rng = np.random.default_rng(0)
pairs = zip(*[puzzle(rng) for _ in range(320)])
images, masks = (torch.from_numpy(np.stack(a)).float() for a in pairs)


# %%
#| code-fold: true
#| fig-alt: "Six puzzles above their answers. Each puzzle is a grey noisy square with a column of five bright blocks and some single blocks; each answer holds the column only."
def puzzles(rows):
    fig, axes = plt.subplots(len(rows), 6, figsize=(6.6, 1.1 * len(rows)),
                             layout="constrained")
    for line, (name, batch) in zip(axes, rows.items()):
        for ax, item in zip(line, batch):
            show(ax, item[0], cmap="gray" if name == "image" else "magma")
        line[0].set_ylabel(name)


puzzles({"image": images, "wanted": masks})


# %% [markdown]
# **The naive attempt: two more 3×3 convolutions** between a first layer and a 1×1 head, their output added to their input, as the encoder does with an adapter:

# %%
class Puzzler(nn.Module):
    def __init__(self, middle, channels=8):
        super().__init__()
        self.first = nn.Conv2d(1, channels, 3, padding=1)
        self.middle, self.head = middle, nn.Conv2d(channels, 1, 1)

    def forward(self, x):
        h = F.silu(self.first(x))
        return self.head(h + self.middle(h))


# %%
def solve(middle, steps=150):
    "Train on 256 puzzles; the answers to 64 others."
    torch.manual_seed(0)
    net, weight = Puzzler(middle), torch.tensor(3.0)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(steps):
        i = torch.randint(0, 256, (8,))
        loss = F.binary_cross_entropy_with_logits(
            net(images[i]), masks[i], pos_weight=weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return net(images[256:]) > 0


# %%
def report(name, middle):
    torch.manual_seed(0)
    answer, size = solve(middle), sum(p.numel() for p in middle.parameters())
    score = dice(answer, masks[256:]).mean().item()
    print(f"{name}: {size} parameters, Dice {score:.3f}")
    return answer, score


# %%
torch.manual_seed(0)
two = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.SiLU(),
                    nn.Conv2d(8, 8, 3, padding=1))
naive_answer, naive_score = report("two 3×3 convolutions", two)


# %% [markdown]
# It marks every block. It cannot do better: all layers together see 3 pixels to each side, and the next block of the column starts 7 pixels from a block's centre.
#
# ## 1 · Fine: 3×3 or 5×5?
#
# The adapter starts with a depth-wise convolution (each channel by its own kernel). The kernel's size "depends on the number of mask pixels around the center pixel": 3×3 "within the vertebrae, including vertebrae boundaries", 5×5 for "large area background". So first count:

# %%
#| exports
def mask_density(prior: Tensor, window: int = 5, binary=False) -> Tensor:
    """Share of mask, (B, 1, H, W) in [0, 1], in a window of pixels (odd) around
    each; `binary` counts pixels with prior > 0. Outside does not count."""
    prob = (prior > 0).to(prior.dtype) if binary else (prior + 1) / 2
    return F.avg_pool2d(prob, window, stride=1, padding=window // 2,
                        count_include_pad=False)


# %% [markdown]
# Count in which mask? The true one exists in training only, and a module fed with truth in training learns to lean on it. The prior $f(b)$, the conditional U-Net's first guess, is there **in training and in sampling**, so we count in it. With the density $n$, the 3×3 kernel gets the weight $w$ and the 5×5 the weight $1-w$:
#
# $$ w_\text{hard} = [\,n > \tau\,], \qquad w_\text{soft} = \mathrm{sigmoid}\big(k\,(n-\tau)\big) $$
#
# "Including boundaries" fixes $\tau$: a pixel that touches a straight edge from outside has $n = 2/5$, one further out $n = 1/5$. With $\tau = 1/4$ the first is boundary, the second is background.

# %%
#| exports
def kernel_choice(
    prior: Tensor,  # f(b) in [-1, 1], (B, 1, H, W)
    choice: str = "soft",  # "hard": 0 or 1, as in the paper; "soft": between
    threshold: float = 0.25,  # tau, the density above which 3x3 is taken
    window: int = 5,  # side of the window in which mask is counted, pixels
    sharpness: float = 10.0,  # k, the slope of "soft"
) -> Tensor:  # w, the weight of the 3x3 kernel, (B, 1, H, W) in [0, 1]
    "Section 2.4: many mask pixels around the centre pixel, 3x3; few, 5x5."
    if choice == "hard":
        return (mask_density(prior, window, True) > threshold).to(prior.dtype)
    return torch.sigmoid(sharpness * (mask_density(prior, window) - threshold))


# %%
edge = torch.full((1, 1, 9, 12), -1.0)
edge[..., 6:] = 1  # mask from column 6 on
print("density", mask_density(edge)[0, 0, 4].numpy().round(2))

# %%
print("hard w ", kernel_choice(edge, "hard")[0, 0, 4].int().tolist())
print("soft w ", kernel_choice(edge)[0, 0, 4].numpy().round(2))
assert kernel_choice(edge, "hard")[0, 0, 4].tolist() == [0] * 5 + [1] * 7

# %% [markdown]
# On a spine, with a phantom's blurred mask for $f(b)$:

# %%
phantoms = PhantomSet(size=(96, 32), n_training=1, n_test=8)
phantom = pack(phantoms, progress=False)
x_0 = (phantom.masks > 0).float() * 2 - 1
prior = F.avg_pool2d(x_0, 5, 1, 2, count_include_pad=False)  # 1 1 96 32

# %%
#| code-fold: true
#| fig-alt: "A phantom, its blurred mask as the prior, the density of mask around each pixel, the hard choice, which is one in a band around the whole spine, and the soft choice, which is the same band with soft edges."
panels = [("image", phantom.images[0, 0], "gray"),
          ("prior f(b)", prior[0, 0], "magma"),
          ("density n", mask_density(prior)[0, 0], "magma"),
          ("hard choice", kernel_choice(prior, "hard")[0, 0], "magma"),
          ("soft choice", kernel_choice(prior)[0, 0], "magma")]
fig, axes = plt.subplots(1, 5, figsize=(6, 3.4))
for ax, (title, image, cmap) in zip(axes, panels):
    show(ax, image, title, cmap=cmap)

# %% [markdown]
# **Hard or soft?** The hard choice is the paper's wording. But a comparison has no slope for a gradient, and when the prior wavers around the threshold it jumps. So soft is our default; `nsa_choice = hard` selects the other.

# %%
torch.manual_seed(1)
wobble = prior + 0.05 * torch.randn(prior.shape)
for c in ("hard", "soft"):
    jump = (kernel_choice(wobble, c) - kernel_choice(prior, c)).abs().max()
    slope = kernel_choice(prior.clone().requires_grad_(), c).requires_grad
    print(f"{c}: moves by up to {jump:.3f}; has a slope: {slope}")
    assert slope == (c == "soft") and (jump < 0.2) == (c == "soft")


# %% [markdown]
# ## 2 · Spatial: 7×7 with dilation 3
#
# A second depth-wise convolution works on the result of the first: 7×7 with dilation 3, its taps three pixels apart. It spans $6\cdot3+1 = 19$ pixels. But 49 taps in $19^2 = 361$ pixels leave holes! Ask the gradient which input pixels move one output pixel:

# %%
def footprint(f, channels=4, size=33):
    "Which input pixels have a gradient on the central output pixel."
    torch.manual_seed(0)
    x = torch.randn(1, channels, size, size, dtype=torch.float64)
    x.requires_grad_()
    f(x)[..., size // 2, size // 2].sum().backward()
    return x.grad.abs().sum((0, 1)) > 0  # size size


def reach(seen):
    "Side of the square that holds the footprint."
    rows = seen.any(1).nonzero()
    return (rows.max() - rows.min() + 1).item()


# %%
def depthwise(kernel, dilation=1, c=4):
    "One filter a channel; keeps the size."
    return nn.Conv2d(c, c, kernel, padding=dilation * (kernel // 2),
                     dilation=dilation, groups=c).double()


# %%
stages = {"fine 3×3": depthwise(3), "fine 5×5": depthwise(5),
          "7×7, dilation 3": depthwise(7, 3),
          "3×3, then it": nn.Sequential(depthwise(3), depthwise(7, 3)),
          "5×5, then it": nn.Sequential(depthwise(5), depthwise(7, 3))}

# %%
seen = {name: footprint(f) for name, f in stages.items()}
assert [reach(s) for s in seen.values()] == [3, 5, 19, 21, 23]
assert seen["3×3, then it"].sum() == 21 ** 2  # no holes left

# %%
#| code-fold: true
#| fig-alt: "Five white footprints on black: a square 3 pixels wide, one 5 wide, a comb of 49 single dots 19 wide, and two solid squares 21 and 23 wide."
fig, axes = plt.subplots(1, 5, figsize=(8, 2.1))
for ax, (name, s) in zip(axes, seen.items()):
    show(ax, s, f"{name}\n{reach(s)} wide\n{int(s.sum())} pixels", cmap="gray")


# %% [markdown]
# Alone it is a comb. A 3×3 *before* it fills the gaps exactly: $9+49$ weights see all of a 21×21 square, for which a plain kernel needs 441.
#
# ## 3 · The gate
#
# 1×1 convolutions halve both results to $C/2$ channels: $F$ (fine) and $S$ (spatial). How strongly does each speak at a pixel? Take mean and maximum over all channels of both, and let a 7×7 convolution decide. ($F$, $S$, $T$, $V$ are the paper's letters, on this page only; $T$ is no number of steps here.)
#
# $$ T = \mathrm{sigmoid}\big(\mathrm{conv}_{7\times7}[\mathrm{mean}_c(F,S);\ \max\nolimits_c(F,S)]\big) \tag{15} $$

# %%
#| exports
def pool_channels(features: Tensor) -> Tensor:
    "Mean and maximum over the channels: (B, C, H, W) -> (B, 2, H, W)."
    mean = features.mean(1, keepdim=True)
    return torch.cat([mean, features.amax(1, keepdim=True)], 1)


# %%
pixel = torch.tensor([1.0, 2.0, 6.0]).reshape(1, 3, 1, 1)
assert pool_channels(pixel).flatten().tolist() == [3, 6]

# %% [markdown]
# That is our reading. Printed is $T = \mathrm{Sigmoid}\cdot f(F * S)$ (there $f$ is a convolution) with "$*$ the product" and $T$ of $C$ channels; Eq. (16) multiplies it with $F$ and $S$ of $C/2$. Literally:

# %%
F_, S_, T_ = (torch.randn(1, c, 6, 6) for c in (4, 4, 8))  # C = 8
try:
    F_ * T_ + S_ * T_
except RuntimeError as error:
    print("Eq. (16) as printed:", error)


# %% [markdown]
# The text between the equations is clearer: halve, *concatenate*, mean and maximum, sigmoid, "expand the channel dimension back". So $T$ gets **two** maps, $T_F$ to open $F$ and $T_S$ to open $S$, and a 1×1 convolution brings $C/2$ back to $C$:
#
# $$ \bar V = \mathrm{conv}_{1\times1}(F\,T_F + S\,T_S), \qquad V = \bar V \cdot X \tag{16} $$
#
# The encoder goes on with $X + V = X\,(1 + \bar V)$: a feature is turned up or down. Without any prior the two fine kernels are averaged, $w = 1/2$:

# %%
#| exports
def fine_weight(x: Tensor, prior: Tensor | None,
                choice: str = "soft") -> Tensor:
    "`kernel_choice` at the size of x, (B, 1, H, W); ValueError if they differ."
    height, width = x.shape[-2:]
    if prior is None:
        return x.new_full((x.shape[0], 1, height, width), 0.5)
    if prior.shape[1:] != (1, height, width):
        raise ValueError(f"the prior must be (B, 1, {height}, {width}) as the "
                         f"features are, not {tuple(prior.shape)}")
    return kernel_choice(prior, choice).to(x.dtype)


# %%
features = torch.randn(1, 8, 96, 32)
assert (fine_weight(features, None) == 0.5).all()
assert fine_weight(features, prior).shape == (1, 1, 96, 32)


# %% [markdown]
# One trap is not the paper's but the machine's. In *mixed precision* ([13](13_training.ipynb)) convolutions run in bf16, numbers of 16 bits. On a CPU torch then gives the *weights* of a dilated depth-wise convolution a gradient that nobody computed: whatever lay in that memory. No error, and the loss still falls. So these convolutions stay in float32 there:

# %%
#| exports
def depthwise_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """conv(x) of one filter a channel; on a CPU never in mixed precision.

    There bf16 is slower for the large kernels, and the weights' gradient of a
    dilated one, channels last, is memory that nobody wrote (torch 2.13).
    """
    if x.device.type != "cpu":
        return conv(x)
    with torch.autocast("cpu", enabled=False):
        return conv(x.to(conv.weight.dtype))


# %%
def weight_gradient(f, half):
    conv.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        y = f(x)
    y.backward(upstream.to(y.dtype))
    return conv.weight.grad.clone()


# %%
conv = depthwise(7, 3, 32).float().to(memory_format=torch.channels_last)
x, upstream = torch.randn(2, 4, 32, 96, 32).unbind()
x = x.contiguous(memory_format=torch.channels_last)
right = weight_gradient(conv, False)
for name, f in (("the layer itself", conv),
                ("depthwise_conv", lambda x: depthwise_conv(conv, x))):
    error = (weight_gradient(f, True) - right).norm() / right.norm()
    print(f"gradient in bf16, {name}: off by {error:.2%}")
assert error < 0.02  # the layer itself depends on torch and the processor


# %% [markdown]
# (The first number changes from run to run.) The whole adapter, and what it computes on its way:

# %%
#| exports
class AdapterMaps(NamedTuple):
    "What an adapter computes on its way, for pictures and tests."

    choice: Tensor  # w, weight of the 3x3 kernel, (B, 1, H, W) in [0, 1]
    fine: Tensor  # F, (B, C/2, H, W)
    spatial: Tensor  # S, (B, C/2, H, W)
    gate: Tensor  # T, (B, 2, H, W) in (0, 1): 0 opens F, 1 opens S
    v_bar: Tensor  # V-bar, (B, C, H, W)
    output: Tensor  # V = V-bar * X, (B, C, H, W)


# %%
#| exports
class NoiseSemanticAdapter(nn.Module):
    """Eq. (15)-(16): V = V_bar * X, V_bar = expand(F * T_F + S * T_S).

    x (B, C, H, W) and prior (B, 1, H, W) in [-1, 1] give V (B, C, H, W).
    Without a prior the two fine kernels are averaged. ValueError when the
    prior has another height or width than x.
    """

    def __init__(self, channels: int, choice: str = "soft"):
        super().__init__()
        if choice not in ("soft", "hard"):
            raise ValueError(f"choice must be 'soft' or 'hard', not {choice!r}")
        if channels < 2:
            raise ValueError("the adapter halves its channels and needs 2 or "
                             f"more, not {channels}")
        self.choice = choice

        def depthwise(kernel, padding, dilation=1):
            return nn.Conv2d(channels, channels, kernel, padding=padding,
                             dilation=dilation, groups=channels)

        self.fine_3, self.fine_5 = depthwise(3, 1), depthwise(5, 2)
        self.spatial_7 = depthwise(7, 9, dilation=3)
        self.halve_f = nn.Conv2d(channels, channels // 2, 1)
        self.halve_s = nn.Conv2d(channels, channels // 2, 1)
        self.mix = nn.Conv2d(2, 2, 7, padding=3)
        self.expand = nn.Conv2d(channels // 2, channels, 1)

    def maps(self, x: Tensor, prior: Tensor | None = None) -> AdapterMaps:
        "The adapter with everything that it computes on the way."
        w = fine_weight(x, prior, self.choice)
        near = (w * depthwise_conv(self.fine_3, x)
                + (1 - w) * depthwise_conv(self.fine_5, x))  # b c h w
        far = depthwise_conv(self.spatial_7, near)
        fine, spatial = self.halve_f(near), self.halve_s(far)  # b c/2 h w
        pooled = pool_channels(torch.cat([fine, spatial], 1))
        gate = torch.sigmoid(self.mix(pooled))  # b 2 h w
        v_bar = self.expand(fine * gate[:, :1] + spatial * gate[:, 1:])
        return AdapterMaps(w, fine, spatial, gate, v_bar, v_bar * x)

    def forward(self, x: Tensor, prior: Tensor | None = None) -> Tensor:
        "V of Eq. (16); the encoder adds it to x."
        return self.maps(x, prior).output


# %%
adapter = NoiseSemanticAdapter(8)
m = adapter.maps(features, prior)
print({name: tuple(part.shape) for name, part in m._asdict().items()})
assert isinstance(m, AdapterMaps) and m.output.shape == features.shape

# %% [markdown]
# How far does it see? Through the 5×5, the dilated 7×7 and the gate's 7×7 $2 + 9 + 3 = 14$ pixels on each side, 29 wide; through the 3×3, 27. It also sees 14 pixels of the prior. The gradient must agree:

# %%
hard = NoiseSemanticAdapter(4, choice="hard").double()
soft = NoiseSemanticAdapter(4).double()
ones = torch.ones(1, 1, 33, 33).double()
fixed = torch.randn(1, 4, 33, 33).double()

# %%
seen = [footprint(lambda x: hard(x, ones)), footprint(lambda x: hard(x, -ones)),
        footprint(lambda p: soft(fixed, p.tanh()), channels=1)]
assert [reach(s) for s in seen] == [27, 29, 29]
assert seen[0].sum() == 27**2 and seen[1].sum() == 29**2  # no holes

# %% [markdown]
# The puzzle again. It has no prior, so this tests the reach only:

# %%
torch.manual_seed(0)
answer, score = report("the adapter", NoiseSemanticAdapter(8))
assert score > 0.95 > naive_score + 0.1

# %%
#| code-fold: true
#| fig-alt: "Six puzzles in four rows: the image, the answer of two 3×3 convolutions, which marks the strays too, the adapter's answer, which marks the column only, and the wanted answer, which is the same."
puzzles({"image": images[256:], "3×3, 3×3": naive_answer, "adapter": answer,
         "wanted": masks[256:]})


# %% [markdown]
# Same training, fewer parameters, and the strays are gone: what was missing was reach. But a U-Net gets reach by going down, too ([08](08_unet.ipynb)); whether the adapter pays beside it is a question for the [ablation](lab/ablation.ipynb), not for this puzzle.
#
# ## 4 · Its twin: LSKNet
#
# LSKNet ([Li et al., ICCV 2023](https://arxiv.org/abs/2303.09030)) uses large selective kernels for aerial images, where too a thing is recognised by what surrounds it. Their block, as they publish it:

# %%
class LSKBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        half = dim // 2
        self.conv0 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.conv_spatial = nn.Conv2d(dim, dim, 7, padding=9, groups=dim,
                                      dilation=3)
        self.conv1 = nn.Conv2d(dim, half, 1)
        self.conv2 = nn.Conv2d(dim, half, 1)
        self.conv_squeeze = nn.Conv2d(2, 2, 7, padding=3)
        self.conv = nn.Conv2d(half, dim, 1)

    def forward(self, x):
        attn1 = self.conv0(x)
        attn2 = self.conv2(self.conv_spatial(attn1))
        attn1 = self.conv1(attn1)
        attn = torch.cat([attn1, attn2], 1)
        agg = torch.cat([attn.mean(1, True), attn.amax(1, True)], 1)
        sig = self.conv_squeeze(agg).sigmoid()
        return x * self.conv(attn1 * sig[:, :1] + attn2 * sig[:, 1:])


# %% [markdown]
# Give it our weights, and let our hard choice see only background, so that it always takes the 5×5:

# %%
lsk, ours = LSKBlock(8), NoiseSemanticAdapter(8, choice="hard")
names = {"conv0": "fine_5", "conv_spatial": "spatial_7", "conv1": "halve_f",
         "conv2": "halve_s", "conv_squeeze": "mix", "conv": "expand"}
for theirs, mine in names.items():
    weights = getattr(ours, mine).state_dict()
    getattr(lsk, theirs).load_state_dict(weights)

# %%
background = torch.full((1, 1, 96, 32), -1.0)
torch.testing.assert_close(ours(features, background), lsk(features))

# %% [markdown]
# Equal. The adapter **is** LSKNet's block plus one idea: a second, finer kernel where the mask is.
#
# ## 5 · The gate while $t$ falls
#
# What does a *trained* gate do? The network that travels with the package was trained on radiographs ([the laboratory](lab/xray.ipynb)) and has an adapter at each level but the first; we listen to the finest. Two calls are enough ([11](11_model.ipynb) builds them): `condition(image)` gives the prior, `denoise(x_t, t, ...)` one answer of the diffusion U-Net. $x_t$ is made by Eq. (3) from the *true* mask, as in training: at $t = 0$ the network is shown the mask itself.

# %%
folder = Path(verdiff.__file__).parent / "weights" / "xray-384x128"
model = VerdiffNet.from_pretrained(folder)
process, caught = model.process(), {}
adapter = model.diffusion.encoder.adapters[1]

# %%
# catch what enters the adapter
adapter.register_forward_pre_hook(
    lambda module, args: caught.update(x=args[0], prior=args[1]))
torch.manual_seed(2)
same_noise = torch.randn(1, 1, *model.size)


# %%
@torch.no_grad()
def gates_at(t, sample):
    "x_t, both gates, mean of V-bar and the predicted x_0, each (h, w)."
    t, c = torch.tensor([t]), model.condition(sample.image[None])
    x_t = process.q_sample(2 * sample.mask[None] - 1, t, c.prior, same_noise)
    x_0 = model.denoise(x_t, t, c)
    m = adapter.maps(**caught)
    return x_t[0, 0], *m.gate[0], m.v_bar[0].mean(0), x_0[0, 0]


# %%
tests = PhantomSet(split="test", size=model.size, n_training=64, n_test=8)
shown = [999, 600, 300, 100, 0]
seen = {t: gates_at(t, tests[1]) for t in shown}

# %%
#| code-fold: true
#| fig-alt: "Five columns, t = 999, 600, 300, 100 and 0; five rows. x_t goes from noise with a faint spine to a clear mask. The gate of the fine branch is bright everywhere and at small t closes away from the spine; that of the spatial branch shows the vertebrae darker than their surroundings; V-bar outlines them; the predicted x_0 is a column of blocks at every t."
names = ["x_t", "gate, fine", "gate, spatial", "mean of V-bar", "predicted x_0"]
# zero padding shows in the gate near the border
inner = torch.stack([torch.stack([m[8:-8, 4:-4] for m in seen[t][1:4]])
                     for t in shown])
ranges = [(-2, 2), *zip(inner.amin((0, 2, 3)), inner.amax((0, 2, 3))), (-1, 1)]


def column(axes, maps, titles=True):
    for ax, image, (low, high), name in zip(axes, maps, ranges, names):
        ax.clear()
        show(ax, image, name if titles else "", cmap="magma", vmin=low,
             vmax=high)


fig, axes = plt.subplots(5, 5, figsize=(3.9, 9.5),
                         gridspec_kw=dict(wspace=0.05, hspace=0.06))
for line, t in zip(axes.T, shown):
    column(line, seen[t], titles=False)
    line[0].set_title(f"t = {t}", fontsize=9)
for ax, name, (low, high) in zip(axes[:, 0], names, ranges):
    ax.set_ylabel(f"{name}\n{low:.2f} to {high:.2f}", fontsize=8)

# %% [markdown]
# A phantom; this network has never seen the like. The first row shows a spine even at $t = 999$: that is $f(b)$, by which Eq. (3) shifts the noise. The colours are stretched, so numbers are safer: the mean gate in three places, over four test radiographs (SpineWeb set 16, AASCE 2019) where the X-ray set is at hand, else over phantoms.

# %%
XRAY = find_xray()
source = XRaySet(XRAY, "test", model.size) if XRAY else tests
widen = lambda m: F.max_pool2d(m.float(), 9, 1, 4) > 0


def places(sample):
    "Vertebrae, gaps and rim, and the rest, as masks at the adapter's size."
    body = F.avg_pool2d(sample.mask[None], 2) > 0.5  # 1 1 h w
    near = widen(body)
    return [m[0, 0] for m in (body, near & ~body, ~widen(near))]


# %%
ts = [999, 777, 555, 333, 222, 111, 50, 0]
mean = np.mean([[[[gate[w].mean().item() for w in places(source[i])]
                  for gate in gates_at(t, source[i])[1:3]] for t in ts]
                for i in range(4)], 0)  # t gate place

# %%
print("radiographs" if XRAY else "phantoms (the X-ray set is not here)")
print("                vertebrae  gaps, rim  far away")
for k, name in enumerate(names[1:3]):
    for row, t in ((0, 999), (-1, 0)):
        print(f"{name:13s}", *(f"{v:9.3f} " for v in mean[row, k]), f"t = {t}")
print(f"a gate moves by {np.ptp(mean, 0).mean():.3f} while t falls, and "
      f"differs by {np.ptp(mean, 2).mean():.3f} between the places")

# %%
#| code-fold: true
#| fig-alt: "Mean gate over falling t in three places. The fine gate stays near one and closes a little far from the spine; the spatial gate is lowest on the vertebrae and highest far away, the more so the smaller t."
fig, axes = plt.subplots(1, 2, figsize=(7, 2.6), layout="constrained")
for k, ax in enumerate(axes):
    for p, place in enumerate(("vertebrae", "gaps and rim", "far away")):
        ax.plot(ts, mean[:, k, p], label=place)
    ax.invert_xaxis()
    ax.set_title(names[1 + k], fontsize=9)
    ax.set_xlabel("t (noise falls to the right)")
axes[0].set_ylabel("mean gate, 4 images")
axes[0].legend(fontsize=8);

# %% [markdown]
# So the trained gate does follow the anatomy. The fine branch is open nearly everywhere; the spatial one is more open in gaps and rim than on the bodies, and most of all far away. But the last two numbers are small beside 1, the range of a sigmoid: a fine adjustment.

# %%
#| code-fold: true
#| fig-alt: "Animation: x_t, the two gates, V-bar and the predicted x_0 of one phantom while t falls from 999 to 0."
fig, axes = plt.subplots(1, 5, figsize=(8, 4.4), dpi=55, layout="constrained")
anim = FuncAnimation(fig, lambda t: column(axes, gates_at(t, tests[1])),
                     frames=range(999, -1, -111), interval=350)
html = anim.to_jshtml(default_mode="loop")
plt.close(fig)
alt = "The five pictures of one phantom while t falls from 999 to 0"
HTML(html.replace("<img ", f'<img alt="{alt}" '))

# %%
#| eval: false
#| code-fold: true
def at(t):  # the same as a slider, in a running notebook
    fig, axes = plt.subplots(1, 5, figsize=(6, 3.6))
    column(axes, gates_at(t, tests[1]))
    plt.show()


interact(at, t=IntSlider(518, 0, 999, 37, continuous_update=False));


# %% [markdown]
# ## 6 · Where it sits
#
# Forward and backward of one adapter, batch 8, at the four levels of a 192×64 network:

# %%
def milliseconds(c, h, w, best=float("inf")):
    adapter = NoiseSemanticAdapter(c).to(memory_format=torch.channels_last)
    x, p = torch.randn(8, c, h, w), torch.zeros(8, 1, h, w)
    x = x.contiguous(memory_format=torch.channels_last)
    for _ in range(3):
        start = time.process_time()
        adapter(x, p).sum().backward()
        best = min(best, time.process_time() - start)
    return 1000 * best


# %%
for c, h, w in [(16, 192, 64), (32, 96, 32), (64, 48, 16), (128, 24, 8)]:
    print(f"{h:3d}×{w}, {c:3d} channels: {milliseconds(c, h, w):6.1f} ms")

# %% [markdown]
# The finest level costs the most, and there 29 pixels are the shortest way in millimetres. So an adapter sits **at every level below full resolution**.
#
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | into the gate | product $F*S$ (Eq. 15), "concatenated" (text) | concatenated | a product has no mean-and-max "aggregation" of both |
# | $T$ | $C$ channels | 2, one for each branch | $C$ cannot multiply $C/2$; two maps *select* a branch |
# | back to $C$ | "trying to expand" | 1×1 convolution after the sum | $\bar V$ must multiply $X$ |
# | the mask counted | not said for sampling | the prior $f(b)$ | the same in training and sampling |
# | place | "conditional model", then "encoder of the diffusion model" | encoder of the diffusion U-Net, every level below full resolution | Figure 3 and the conclusion; cost |
#
# ## Exercises
#
# **1 · Predict.** Which dilations of the 7×7 behind a 3×3 see a square without holes? And behind a 5×5? Then measure with `footprint`.

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# All up to the side of the kernel in front: 1 to 3, and 1 to 5. The paper keeps 3 behind both.

# %%
#| code-fold: true
def solid(kernel, d):
    chain = nn.Sequential(depthwise(kernel), depthwise(7, d))
    s = footprint(chain, size=49)
    return bool(s.sum() == reach(s) ** 2)


assert [d for d in range(1, 7) if solid(3, d)] == [1, 2, 3]
assert [d for d in range(1, 7) if solid(5, d)] == [1, 2, 3, 4, 5]

# %% [markdown]
# </details>
#
# **2 · Implement.** Write a third choice, "straight-through": the hard value going forward, the soft slope going back. (`y.detach()` has the value of `y` and no gradient.)

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# `soft + (hard - soft).detach()`: the value is `hard`, the gradient that of `soft`.

# %%
#| code-fold: true
p = prior.clone().requires_grad_()
soft_w, hard_w = kernel_choice(p), kernel_choice(p, "hard")
w = soft_w + (hard_w - soft_w).detach()
torch.testing.assert_close(w, hard_w, atol=1e-6, rtol=0)
assert torch.autograd.grad(w.sum(), p)[0].abs().sum() > 0


# %% [markdown]
# </details>
#
# **3 · Diagnose (hard).** Somebody's adapter finds the column in every puzzle above and is called done. In a network that also gives it a prior it disappoints. The prior is good, every shape is right. Compare `kernel_choice` with what this one does to `edge`, and say what was mixed up.

# %%
def their_choice(prior, threshold=0.25, window=5, sharpness=10.0):
    prob = (prior + 1) / 2
    density = F.avg_pool2d(prob, window, 1, window // 2)
    return torch.sigmoid(sharpness * (threshold - density))


# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# The difference stands the wrong way round: much mask gives the 5×5. The puzzle has no prior, so $w = 1/2$, and no test on it can see the choice. A smaller slip: without `count_include_pad=False` the border counts as background. Test a module with *all* of its inputs.

# %%
#| code-fold: true
inside = (..., slice(2, -2), slice(2, -2))
torch.testing.assert_close(their_choice(edge)[inside],
                           1 - kernel_choice(edge)[inside])
assert not torch.allclose(their_choice(edge), 1 - kernel_choice(edge))

# %% [markdown]
# </details>
#
# Two U-Nets, an eye, an adapter, a process. **How do the parts fit?** Next: [11 · Verdiff-Net](11_model.ipynb).
