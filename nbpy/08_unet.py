# %% [markdown]
# # 08 · U-Nets
# > One net that guesses, one that is told the time; both take images of any size

# %% [markdown]
# [07](07_posterior.ipynb) left a question: what kind of network can look at a whole spine and still draw each border to the pixel? You will measure why a plain stack of convolutions cannot know a spine, build a **U-Net** from small parts, tell it what time it is, and see what its skip connections are for, what a *stem* saves at full size, and what batch norm does with a batch of one. Two minutes on a laptop, no GPU. Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/08_unet.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    line = 'pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"'
    get_ipython().system(line)  # noqa: F821

# %%
#| default_exp networks.unet

# %%
#| exports
#| code-fold: true
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# %%
#| code-fold: true
import copy
import time as clock

import matplotlib.pyplot as plt
import numpy as np
from diffusers.models.embeddings import get_timestep_embedding
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch.utils.flop_counter import FlopCounterMode

from verdiff.data.packed import pack
from verdiff.data.phantom_set import PhantomSet
from verdiff.metrics import dice

# %%
#| code-fold: true
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)


# %% [markdown]
# ## 1 · Why a U-Net at all
#
# The naive network is a stack of 3×3 convolutions at full size. What can one pixel of its output know? Only the input pixels that it depends on, and the gradient shows them: it is zero elsewhere.

# %%
def felt(net, size=(192, 192)):
    "|gradient| of the central output pixel on each input pixel."
    torch.manual_seed(0)
    x = torch.randn(1, 1, *size, requires_grad=True)
    net(x)[0, 0, size[0] // 2, size[1] // 2].backward()
    return x.grad[0, 0].abs()  # h w


# %%
def reach(gradient):
    "Height of the smallest window that holds every pixel that is felt."
    rows = (gradient.sum(1) > 0).nonzero()
    return (rows.max() - rows.min() + 1).item()


# %%
def stack(depth, width=8):
    layers = [nn.Conv2d(1, width, 3, padding=1)]
    for _ in range(depth - 2):
        layers += [nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)]
    return nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(width, 1, 3, padding=1))


# %%
stacks = {n: reach(felt(stack(n))) for n in (2, 4, 8, 16)}
print("3x3 convolutions: pixels seen", stacks)
assert all(pixels == 2 * n + 1 for n, pixels in stacks.items())

# %% [markdown]
# Two pixels a layer. To tell the ninth vertebra from the tenth one must see several of them: at 192×64 a hundred pixels, fifty layers. The U-Net looks at a small copy of the picture instead, where a hundred pixels are a dozen.
#
# ## 2 · Telling the time
#
# Verdiff-Net has two U-Nets: the *conditional* one guesses the mask from the image (its guess is the *prior* $f$), the *diffusion* one, $\Phi$, says $\hat x_0$ from a noisy mask $x_t$. The second must know how much noise there is, told by the step $t$. A bare number says it poorly: to a linear layer, 999 is just 999 times 1. Vaswani et al. (2017) wrote numbers like the hands of many clocks, each slower than the last:
#
# $$e(t) = \bigl[\cos(\omega_1 t), \dots, \cos(\omega_{d/2} t), \sin(\omega_1 t), \dots, \sin(\omega_{d/2} t)\bigr], \qquad \omega_k = 10000^{-(k-1)/(d/2)} .$$
#
# One expression at a time, for $d = 64$. How fast each clock runs:

# %%
k = torch.arange(32)
omega = torch.exp(-math.log(10_000) * k / 32)
print("radians a step:", *(f"{w:.5f}" for w in omega[[0, 1, 2, -1]]))

# %% [markdown]
# Where each hand stands at each time. A hand needs both coordinates, or forwards and backwards look the same:

# %%
t = torch.arange(1000)
angle = t[:, None] * omega  # 1000 1 * 32 -> 1000 32
e = torch.cat([angle.cos(), angle.sin()], -1)  # 1000 64

# %%
#| code-fold: true
#| fig-alt: "Three cosine waves over t from 0 to 999: the first swings sixteen times, the second about one and a half times, the third has not finished a quarter of a swing."
plt.figure(figsize=(6, 1.6))
plt.plot(angle[:, [8, 16, 24]].cos())
plt.legend([f"k = {n}" for n in (9, 17, 25)], fontsize=8, loc="upper right")
plt.xlabel("t")
plt.ylabel("cos");


# %% [markdown]
# These lines are the function:

# %%
#| exports
def timestep_embedding(t: Tensor, dim: int, slowest: float = 1e4) -> Tensor:
    "(B,) -> (B, dim) in [-1, 1], float32; ValueError for an odd dim."
    if dim % 2:
        raise ValueError(f"dim must be even, not {dim}")
    k = torch.arange(dim // 2, device=t.device, dtype=torch.float32)
    omega = torch.exp(-math.log(slowest) * k / (dim // 2))
    angle = t.float()[:, None] * omega  # b d/2
    return torch.cat([angle.cos(), angle.sin()], -1)


# %%
torch.testing.assert_close(timestep_embedding(t, 64), e, atol=1e-4, rtol=0)
theirs = get_timestep_embedding(
    t, 64, flip_sin_to_cos=True, downscale_freq_shift=0)  # of diffusers
torch.testing.assert_close(e, theirs, atol=1e-4, rtol=0)

# %%
#| code-fold: true
#| fig-alt: "Left: the embedding as an image, one column a time; the upper rows flicker, the lower ones change slowly. Right: the likeness to t = 300 is a peak at 300 that falls off with bumps on both sides."
fig, axes = plt.subplots(1, 2, figsize=(7, 2.4), layout="constrained",
                         width_ratios=(1.6, 1))
axes[0].imshow(e.T, aspect="auto", cmap="RdBu")
axes[0].set(xlabel="t", ylabel="entry", title="one column a time")
likeness = (e @ e[300]) / (e[300] @ e[300])
axes[1].plot(likeness, color="lightsteelblue", lw=0.7)
smooth = np.convolve(likeness, np.ones(51) / 51, "valid")
axes[1].plot(t[25:-25], smooth, color="tab:blue")
axes[1].set(xlabel="t", title="likeness to t = 300")
assert likeness.argmax() == 300

# %% [markdown]
# Times close together are alike, and the likeness falls off as they move apart: a linear layer can tell early from late. (Dark: the mean of 51 neighbours.)
#
# ## 3 · Parts
#
# Before each convolution the channels are normalised. Group norm takes mean and spread over groups of channels of one image, so it does not care about the batch size. The paper trains with *batch* norm at batch 1 (section 8).

# %%
#| exports
def make_norm(kind: str, channels: int) -> nn.Module:
    "'group' (up to 8 groups of 2 channels or more), 'batch' or ValueError."
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind != "group":
        raise ValueError(f"norm must be 'group' or 'batch', not {kind!r}")
    fits = (g for g in (8, 4, 2) if channels % g == 0 and channels >= 2 * g)
    return nn.GroupNorm(next(fits, 1), channels)


# %%
print(*(make_norm("group", c).num_groups for c in (4, 8, 16, 128)))
print(make_norm("batch", 8))


# %% [markdown]
# The residual block does most of the work: normalise, activate, convolve, twice, and add what came in. The time, after two linear layers on $e(t)$, enters behind the second norm as a scale and a shift of every channel, $h \leftarrow (1 + \gamma(t))\,h + \delta(t)$.

# %%
#| exports
class ResBlock(nn.Module):
    "Norm, SiLU, 3x3 convolution, twice, plus the input; may know the time."

    def __init__(self, in_channels: int, out_channels: int,
                 time_dim: int | None = None, norm: str = "group"):
        super().__init__()
        self.norm1 = make_norm(norm, in_channels)
        self.norm2 = make_norm(norm, out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time_dim, 2 * out_channels) if time_dim else None
        same = in_channels == out_channels
        self.skip = (nn.Identity() if same else
                     nn.Conv2d(in_channels, out_channels, 1))

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        "x (B, in, H, W), time (B, time_dim) -> (B, out, H, W)."
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.time is not None:
            scale, shift = self.time(F.silu(time))[..., None, None].chunk(2, 1)
            h = h * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(h))


# %%
x, time = torch.randn(2, 16, 12, 8), torch.randn(2, 64)
block = ResBlock(16, 24, 64)
print(tuple(x.shape), "->", tuple(block(x, time).shape))
assert not torch.allclose(block(x, time), block(x, 2 * time))


# %%
#| exports
class Upsample(nn.Module):
    "A 1x1 convolution, then each pixel becomes four."

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        "(B, in, H, W) -> (B, out, 2 H, 2 W)."
        return F.interpolate(self.conv(x), scale_factor=2.0, mode="nearest")


# %%
print(tuple(x.shape), "->", tuple(Upsample(16, 8)(x).shape))

# %% [markdown]
# ## 4 · Down and up
#
# The encoder halves the picture level by level, by a convolution of stride 2, and keeps the features of each. The decoder comes back up and meets them over *skip connections*. An *adapter* ([10](10_nsa.ipynb) builds one) can be plugged into the encoder; it is called after each level with its features $h$ and the prior at that level's size, and what it returns is added, $h \leftarrow h + \mathrm{adapter}(h, f)$.

# %%
#| exports
# channels -> module(h, prior), or None where a level has no adapter
Adapter = Callable[[int], nn.Module | None]


class Encoder(nn.Module):
    "From full size downwards; gives the features of every level, finest first."

    def __init__(self, in_channels: int, channels: Sequence[int],
                 blocks: int = 1, time_dim: int | None = None,
                 norm: str = "group", adapter: Adapter | None = None):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.downs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1)  # half the sides
            for a, b in zip(channels, channels[1:], strict=False))
        self.blocks = nn.ModuleList(
            nn.ModuleList(ResBlock(c, c, time_dim, norm) for _ in range(blocks))
            for c in channels)
        made = [adapter(c) if adapter else None for c in channels]
        self.adapters = nn.ModuleList(m or nn.Identity() for m in made)
        self.adapted = [m is not None for m in made]

    def forward(self, x: Tensor, time: Tensor | None = None,
                prior: Tensor | None = None) -> list[Tensor]:
        """x (B, in, H, W), time (B, time_dim), prior (B, 1, H, W) in [-1, 1]
        -> level i: (B, channels[i], H / 2^i, W / 2^i)."""
        h, levels = self.stem(x), []
        for i, blocks in enumerate(self.blocks):
            if i:
                h = self.downs[i - 1](h)
                prior = F.avg_pool2d(prior, 2) if prior is not None else None
            for block in blocks:
                h = block(h, time)
            h = h + self.adapters[i](h, prior) if self.adapted[i] else h
            levels.append(h)
        return levels


# %%
class Mean(nn.Module):
    "An adapter that says what it is called with and adds a level's mean."
    def forward(self, h, prior):
        print("features", tuple(h.shape), "prior", tuple(prior.shape))
        return h.mean((2, 3), keepdim=True)


make_mean: Adapter = lambda c: Mean() if c > 8 else None
encoder = Encoder(1, (8, 16, 24), adapter=make_mean)
levels = encoder(torch.randn(1, 1, 40, 24), prior=torch.zeros(1, 1, 40, 24))


# %%
#| exports
class Decoder(nn.Module):
    "From the coarsest level upwards, over skip connections to the encoder's."

    def __init__(self, channels: Sequence[int], blocks: int = 1,
                 time_dim: int | None = None, norm: str = "group"):
        super().__init__()
        pairs = list(zip(channels[:-1], channels[1:], strict=True))[::-1]
        self.ups = nn.ModuleList(Upsample(low, c) for c, low in pairs)
        self.blocks = nn.ModuleList(
            nn.ModuleList(ResBlock(c if k else 2 * c, c, time_dim, norm)
                          for k in range(blocks))
            for c, _ in pairs)

    def forward(self, levels: list[Tensor],
                time: Tensor | None = None) -> Tensor:
        "Levels of the encoder -> (B, channels[0], H, W)."
        h, skips = levels[-1], levels[-2::-1]  # coarse to fine
        for up, blocks, skip in zip(self.ups, self.blocks, skips, strict=True):
            h = torch.cat([up(h), skip], 1)  # b c+c h w
            for block in blocks:
                h = block(h, time)
        return h


# %%
print([tuple(h.shape) for h in levels])
print("->", tuple(Decoder((8, 16, 24))(levels).shape))


# %% [markdown]
# Halving needs even sides, all the way down. A radiograph of 750×250, the paper's size, fails at the second level: 375 becomes 188 and comes back as 376, which does not fit its skip connection. So we pad inside, repeating the border, and crop at the end.

# %%
#| exports
def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    "Repeat the lower and the right border until `multiple` divides both sides."
    right, down = (-n % multiple for n in (x.shape[-1], x.shape[-2]))
    return F.pad(x, (0, right, 0, down), "replicate") if down or right else x


# %%
print(tuple(pad_to_multiple(torch.zeros(1, 1, 750, 250), 16).shape))


# %% [markdown]
# The whole, from padding to cropping. (Section 6 explains the stem; the diffusion U-Net, [11](11_model.ipynb), starts with a zero output.)

# %%
#| exports
class UNet(nn.Module):
    """Encoder, decoder, one output convolution; any height and width.

    `channels`: width of each level; `blocks` a level; `time_dim` even, None:
    no time; inside it works at 1 / `stem` of the height and width."""

    def __init__(self, in_channels: int, out_channels: int = 1,
                 channels: Sequence[int] = (16, 32, 64), blocks: int = 1,
                 time_dim: int | None = None, norm: str = "group",
                 adapter: Adapter | None = None, zero_output: bool = False,
                 stem: int = 1):
        super().__init__()
        self.time_dim, self.stem = time_dim, stem
        self.multiple = stem * 2 ** (len(channels) - 1)
        first, patch, d = channels[0], stem**2, time_dim
        if d:
            self.time = nn.Sequential(nn.Linear(d, d), nn.SiLU(),
                                      nn.Linear(d, d))
        self.encoder = Encoder(in_channels * patch, channels, blocks, time_dim,
                               norm, adapter)
        self.decoder = Decoder(channels, blocks, time_dim, norm)
        last = nn.Conv2d(first, out_channels * patch, 3, padding=1)
        self.out = nn.Sequential(make_norm(norm, first), nn.SiLU(), last)
        if zero_output:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def pad(self, x: Tensor) -> Tensor:
        "Repeat the lower and right border until every level has even sides."
        return pad_to_multiple(x, self.multiple)

    def forward(self, x: Tensor, t: Tensor | None = None,
                prior: Tensor | None = None) -> Tensor:
        """x (B, in, H, W), t int64 (B,), prior for the adapters (B, 1, H, W)
        in [-1, 1] -> (B, out, H, W)."""
        height, width = x.shape[-2:]
        d, s, x = self.time_dim, self.stem, self.pad(x)
        time = self.time(timestep_embedding(t, d)) if d else None
        prior = None if prior is None else F.avg_pool2d(self.pad(prior), s)
        x = F.pixel_unshuffle(x, s)  # b c s*h s*w -> b c*s*s h w
        h = self.out(self.decoder(self.encoder(x, time, prior), time))
        return F.pixel_shuffle(h, s)[..., :height, :width]


# %%
net = UNet(3, channels=(8, 16, 24, 32), time_dim=32).eval()
for size in [(64, 32), (75, 25), (1, 1), (37, 200)]:
    out = net(torch.randn(2, 3, *size), torch.tensor([0, 999]))
    assert out.shape == (2, 1, *size)

# %% [markdown]
# With group norm one image's answer does not depend on its neighbours in the batch:

# %%
x, t = torch.randn(3, 3, 64, 32), torch.tensor([1, 500, 999])
alone, together = net(x[1:2], t[1:2]), net(x, t)[1:2]
torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


# %% [markdown]
# The net that guesses is the same without a time. Its output is read as logits $\ell$, and the prior is $f(b) = 2\,\mathrm{sigmoid}(\ell) - 1$:

# %%
#| exports
class ConditionalUNet(UNet):
    "Features of the image -> logits of the mask; the prior is 2 sigmoid - 1."

    def __init__(self, in_channels: int = 1,
                 channels: Sequence[int] = (16, 32, 64), blocks: int = 1,
                 norm: str = "group", stem: int = 1):
        super().__init__(in_channels, 1, channels, blocks, norm=norm, stem=stem)


# %%
guess = ConditionalUNet()(torch.rand(1, 1, 75, 25))
assert guess.shape == (1, 1, 75, 25)


# %% [markdown]
# ## 5 · How far it sees
#
# Section 1's question again, without the normalisation layers (their mean sees the whole picture):

# %%
def without_norm(net):
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    return net


# %%
nets = {n: without_norm(UNet(1, channels=(8,) * n)) for n in (1, 2, 3, 4)}
gradients = {n: felt(net, (256, 256)) for n, net in nets.items()}
fields = {n: reach(g) for n, g in gradients.items()}
assert all(fields[k + 1] > 1.5 * fields[k] for k in (1, 2, 3))

# %%
#| code-fold: true
#| fig-alt: "Four dark squares with a bright spot in the middle; with one level it is a few pixels wide, and with each level more it about doubles, up to a patch that fills the picture with four levels."
fig, axes = plt.subplots(1, 4, figsize=(8, 2.4), layout="constrained")
half = fields[4] // 2 + 6
lit = slice(128 - half, 128 + half + 1)  # what the deepest of them sees
for axis, (n, g) in zip(axes, gradients.items()):
    axis.imshow((g[lit, lit] / g.max() + 1e-9).log10(), cmap="magma",
                vmin=-9, vmax=0)
    axis.set_axis_off()
    axis.set_title(f"{n} level{'s' * (n > 1)}: sees {fields[n]}", fontsize=9)


# %% [markdown]
# Brightness is the logarithm of the gradient, black a billionth of the largest. Each level about doubles what is seen, where a layer of the plain stack added two pixels. What does the same reach cost? PyTorch counts the multiply-adds:

# %%
def work(net, *inputs):
    "Multiply-adds of one evaluation."
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(*inputs)
    return counter.get_total_flops() // 2


# %%
picture, layers = torch.zeros(1, 1, 192, 64), (fields[4] - 1) // 2
unet_work, stack_work = work(nets[4], picture), work(stack(layers), picture)
print(f"to see {fields[4]} pixels: 4 levels, {unet_work:,} multiply-adds,\n"
      f"or {layers} convolutions, {stack_work:,}: "
      f"{stack_work / unet_work:.1f} times the work")
assert stack_work > unet_work

# %% [markdown]
# ## 6 · A stem for full-size radiographs
#
# Where the pixels quarter the channels only double, so most of the work is done on the first level, at full size. A **stem** of 4 saves most of that: 4×4 neighbouring pixels become the channels of one (`pixel_unshuffle`, Shi et al. 2016, backwards), all levels work at a quarter of the height and width, and the last layer's 16 channels become pixels again. Seconds of one processor core for a forward and a backward pass at full size:

# %%
def seconds(net, x):
    begin = clock.process_time()
    net(x).mean().backward()
    return clock.process_time() - begin


# %%
full, cost = torch.rand(1, 1, 768, 256), {}
for s in (1, 2, 4):
    net = ConditionalUNet(1, (16, 32, 64, 128), stem=s)
    cost[s] = min(seconds(net, full) for _ in range(2)), work(net, full)
    print(f"stem {s}: {cost[s][0]:5.2f} s, {cost[s][1]:13,d} multiply-adds, "
          f"{sum(p.numel() for p in net.parameters()):,} parameters")
assert cost[4][1] < cost[2][1] / 3 < cost[1][1] / 9

# %% [markdown]
# The parameters hardly change. What it costs in sharpness, section 7 asks. A module that stands *before* the U-Net ([09](09_msfm.ipynb)) can be folded in the same way:

# %%
#| exports
class Folded(nn.Module):
    "A module that sees stem x stem pixels as the channels of one."

    def __init__(self, module: nn.Module, stem: int):
        super().__init__()
        self.module, self.stem = module, stem

    def forward(self, x: Tensor) -> Tensor:
        "(B, in, H, W) -> (B, out / stem^2, H, W); inside in * stem^2 -> out."
        height, width = x.shape[-2:]
        x = F.pixel_unshuffle(pad_to_multiple(x, self.stem), self.stem)
        return F.pixel_shuffle(self.module(x), self.stem)[..., :height, :width]


# %%
folded = Folded(nn.Conv2d(4, 8, 1), 2)
assert folded(torch.rand(1, 1, 75, 25)).shape == (1, 2, 75, 25)

# %% [markdown]
# ## 7 · Why skip connections
#
# The naive way to profit from the small copy is an hour-glass: down and up again, without skip connections. Let it, the U-Net, and a U-Net with a stem learn the same twelve phantoms for the same number of steps.

# %%
size = 96, 32
phantoms = PhantomSet(size=size, n_training=20, n_test=8)
phantoms = pack(phantoms, progress=False)
images = phantoms.images.float() / 255  # 20 1 96 32
masks = (phantoms.masks > 0).float()


# %%
class HourGlass(UNet):
    def forward(self, x):
        levels = self.encoder(self.pad(x))
        nothing = [torch.zeros_like(h) for h in levels[:-1]]
        return self.out(self.decoder(nothing + levels[-1:]))


# %% [markdown]
# The loss is binary cross entropy of the guess against the mask $m$, with $p = \mathrm{sigmoid}(\ell)$: $\;-\,m \log p - (1 - m)\log(1 - p)$. ([12](12_loss.ipynb) tells why not the paper's Eq. (9).)

# %%
def learn(net, steps=130, batch=4, after=None):
    "AdamW on the first twelve; `after(step)` is called after each step."
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for step in range(1, steps + 1):
        i = torch.randint(12, (batch,))
        loss = F.binary_cross_entropy_with_logits(net(images[i]), masks[i])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if after:
            after(step)
    return net.eval()


# %%
torch.manual_seed(1)
nets = {"hour-glass": HourGlass(1, channels=(8, 16, 24, 32)),
        "U-Net": ConditionalUNet(1, (8, 16, 24, 32)),
        "U-Net, stem 2": ConditionalUNet(1, (8, 16, 24, 32), stem=2)}
guess = {name: learn(net)(images[12:]).sigmoid().detach()
         for name, net in nets.items()}

# %%
scores = {k: dice(g > 0.5, masks[12:]).mean().item() for k, g in guess.items()}
for name, score in scores.items():
    print(f"{name:14s} Dice {score:.3f} on 8 unseen phantoms")
assert scores["U-Net"] > scores["hour-glass"] + 0.1

# %%
#| code-fold: true
#| fig-alt: "A small phantom radiograph, three guesses and the true mask. The hour-glass paints one smooth bright band where the spine is; the U-Net paints single vertebrae with clear gaps; the one with a stem paints the band again, in coarse steps; the truth has sharp blocks."
fig, axes = plt.subplots(1, 5, figsize=(5.6, 3.2), layout="constrained")
shown = {"image": images[13], **{k: g[1] for k, g in guess.items()},
         "truth": masks[13]}
for axis, (title, picture) in zip(axes, shown.items()):
    axis.imshow(picture[0], cmap="gray" if title == "image" else "magma",
                vmin=0, vmax=1)
    axis.set_axis_off()
    axis.set_title(title.replace(", ", ",\n"), fontsize=9)


# %% [markdown]
# The hour-glass knows where the spine is and no vertebra in it: what is lost on the way down cannot come back. The U-Net has the edges, straight from its first level. With a stem, so short a training on so small a picture gives the band again: the gap between two vertebrae is a pixel wide here, and four pixels became one. A stem is for large pictures. The guess $p$ gives the prior $f(b) = 2p - 1$ that [06](06_forward.ipynb) asked for.
#
# ## 8 · Batch norm with a batch of one
#
# The paper's Section 3.3 says batch norm and batch size 1. Over one image, batch norm normalises each channel by *this image's* mean and spread (that is instance norm), and meanwhile collects running averages, which take over once the net is in use. So two functions share one set of weights:
#
# $$\text{training: } \frac{h - \mathrm{mean}(h)}{\mathrm{sd}(h)}, \qquad \text{in use: } \frac{h - \overline{\mathrm{mean}}}{\overline{\mathrm{sd}}}, \quad \overline{\mathrm{mean}} \leftarrow 0.9\,\overline{\mathrm{mean}} + 0.1\,\mathrm{mean}(h).$$
#
# The conditional U-Net on the phantoms again, one at a time, once with each norm:

# %%
@torch.no_grad()
def score(net, as_trained):
    "Dice on the unseen phantoms, one by one, leaving the net as it was."
    net = copy.deepcopy(net).train(as_trained)
    answers = torch.cat([net(x[None]) > 0 for x in images[12:]])
    return dice(answers, masks[12:]).mean().item()


# %%
def watch(norm):
    "(step, Dice in use, Dice as trained) with a batch of one."
    torch.manual_seed(0)
    net, seen = ConditionalUNet(1, (8, 16, 24), norm=norm), []
    def note(step):
        if step % 20 == 0:
            seen.append((step, score(net, False), score(net, True)))
    learn(net, 140, 1, note)
    return np.array(seen)


# %%
ones = {norm: watch(norm) for norm in ("group", "batch")}
for norm, seen in ones.items():
    gap = np.abs(seen[:, 1] - seen[:, 2]).max()
    print(f"{norm} norm: Dice in use {seen[-1, 1]:.3f}, as trained "
          f"{seen[-1, 2]:.3f}, largest gap on the way {gap:.3f}")
    assert (gap < 1e-6) == (norm == "group")

# %%
#| code-fold: true
#| fig-alt: "Dice on unseen phantoms over 140 steps. For group norm the dashed and the broad line lie on each other; for batch norm the broad line, the net in use, runs below the dashed one, most of all early on."
plt.figure(figsize=(5.5, 2.6))
for (norm, seen), color in zip(ones.items(), ("tab:blue", "tab:orange")):
    plt.plot(seen[:, 0], seen[:, 1], color=color, lw=5, alpha=0.35,
             label=f"{norm} norm, in use")
    plt.plot(seen[:, 0], seen[:, 2], "--", color=color,
             label=f"{norm} norm, as trained")
plt.xlabel("step, batch of one")
plt.ylabel("Dice, unseen")
plt.legend(fontsize=8);

# %% [markdown]
# Here batch norm does *not* fail at a batch of one: as instance norm it learns these phantoms. What it costs is the gap between the dashed and the broad line: the function that was trained is not the one that is used.
#
# Do not take this as an acquittal. The *diffusion* U-Net sees each image at another noise level, and its running averages mix them. Trained with the paper's whole recipe on radiographs, its prior worked and its diffusion **did fail**, and the kept averages were the cause: [the laboratory](lab/xray.ipynb) has the run. Group norm is one function in training and in use, for every batch size and every $t$; it is our default.
#
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | norm | batch norm at batch 1 | group norm; batch norm in `paper` | one function in training and in use (section 8) |
# | size | 250×750 | any | padded and cropped inside |
# | stem | none | none; `stem` in `settings.ini` | full size on a CPU (section 6) |
# | time | not drawn | scale and shift in every block | the field's standard since Nichol and Dhariwal (2021) |
#
# ## Exercises
#
# **1 · Predict.** `UNet(1, channels=(16, 32, 64))` against `(32, 64, 128)`: how many times more parameters? Write down a number, then count.

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# Almost exactly four times: nearly all are in convolutions, whose size is inputs times outputs.

# %%
#| code-fold: true
def count(net):
    return sum(p.numel() for p in net.parameters())


once = count(UNet(1, channels=(16, 32, 64)))
assert 3.8 < count(UNet(1, channels=(32, 64, 128))) / once < 4.05

# %% [markdown]
# </details>
#
# **2 · Change.** Give `UNet(18, channels=(16, 32, 64, 128), time_dim=64)` at 192×64 one more level of 128 channels at the bottom. By what factor do parameters and `work` grow? And with one more level of 16 at the *top*, for twice the sides?

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# At the bottom the parameters more than double and the work grows by less than a quarter. At the top it is the other way round: hardly a parameter, and the work more than doubles. When a network is called large, ask which of the two is meant.

# %%
#| code-fold: true
def sizes(channels, *size):
    net = UNet(18, channels=channels, time_dim=64)
    inputs = torch.zeros(1, 18, *size), torch.tensor([5])
    return np.array([count(net), work(net, *inputs)])


plain = sizes((16, 32, 64, 128), 192, 64)
bottom = sizes((16, 32, 64, 128, 128), 192, 64) / plain
top = sizes((16, 16, 32, 64, 128), 384, 128) / plain
print("parameters, work: bottom", bottom.round(2), "top", top.round(2))
assert bottom[0] > 2 and bottom[1] < 1.25 and top[0] < 1.1 and top[1] > 2


# %% [markdown]
# </details>
#
# **3 · Diagnose (hard).** Somebody "tidied" `pad`. Every shape is right and at 96×32 the Dice is what it was. At 93×29 it is not. Find out what is wrong by experiments on `ill` alone, without reading its code.

# %%
#| code-fold: true
class Tidied(ConditionalUNet):
    def pad(self, x):
        down, right = (-n % self.multiple for n in x.shape[-2:])
        return F.pad(x, (right, 0, down, 0), mode="replicate")


# %%
ill = Tidied(1, (8, 16, 24, 32)).eval()
ill.load_state_dict(nets["U-Net"].state_dict())
for h, w in ((96, 32), (93, 29)):
    x, m = images[12:, :, :h, :w], masks[12:, :, :h, :w]
    well, now = (dice(n(x) > 0, m).mean() for n in (nets["U-Net"], ill))
    print(f"{h}×{w}: Dice {well:.3f} before, {now:.3f} now")

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# Move its answer about and see where it fits best: three pixels up and to the left. It pads above and left of the image, but the crop still takes the upper left corner. No shape shows it. Moral: test odd sizes by *values*.

# %%
#| code-fold: true
with torch.no_grad():
    answer = ill(x) > 0
fit = {(dy, dx): dice(answer.roll((-dy, -dx), (2, 3)), m).mean().item()
       for dy in range(-4, 5) for dx in range(-4, 5)}
best = max(fit, key=fit.get)
print("best moved by", best, f"Dice {fit[best]:.3f}")
assert best == (3, 3)

# %% [markdown]
# </details>
#
# Both nets see the image as one grey channel. Is that enough? **What should the image contribute?** Next: [09 · Multi-scale fusion](09_msfm.ipynb).
