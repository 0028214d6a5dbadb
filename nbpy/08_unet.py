# %% [markdown]
# # 08 · U-Nets
# > One net that guesses, one that is told the time; both take images of any size

# %% [markdown]
# You will measure why a plain stack of convolutions cannot know a spine, build a U-Net from small parts, tell it what time it is, and count its parameters and multiplications. Trained on phantoms it settles four questions by numbers: are the bridges needed, how far does it see, what does batch norm do with a batch of one, squash a tall film or letterbox it? A minute on a laptop; no GPU needed.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/08_unet.ipynb)

# %%
#| default_exp networks.unet

# %%
#| export
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# %%
import copy
import re

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from diffusers.models.embeddings import get_timestep_embedding
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch.utils.flop_counter import FlopCounterMode

from verdiff.data.canvas import fit_image, unfit
from verdiff.data.landmarks import landmarks_to_mask
from verdiff.data.phantoms import draw_phantom
from verdiff.metrics import dice

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)


# %% [markdown]
# ## 1 · Why a U-Net at all
#
# The naive network is a stack of 3×3 convolutions at full size. What can one pixel of its output know? Only the input pixels that it depends on, and those the gradient shows: *it is zero wherever an input pixel has no influence on that output pixel.*

# %%
def felt(net, size=(192, 192)):
    "|gradient| of the central output pixel on each input pixel, (h, w)."
    torch.manual_seed(0)
    x = torch.randn(1, 1, *size, requires_grad=True)
    net(x)[0, 0, size[0] // 2, size[1] // 2].backward()
    return x.grad[0, 0].abs()


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


stacks = {n: reach(felt(stack(n))) for n in (2, 4, 8, 16)}
print("3x3 convolutions: pixels seen", stacks)
assert all(pixels == 2 * n + 1 for n, pixels in stacks.items())

# %% [markdown]
# Two pixels a layer. To tell the ninth vertebra from the tenth one must see several of them, at 192×64 about half the height: a hundred pixels, fifty layers at full size. The U-Net looks at a small copy of the picture instead, where a hundred pixels are a dozen. Section 6 measures what that buys.
#
# ## 2 · Telling the time
#
# Verdiff-Net has two U-Nets: the *conditional* one guesses the mask from the image (its guess is the *prior* $f$), the *diffusion* one cleans a noisy mask. The second must know how much noise there is, told by the step $t$. A bare number $t$ would say it poorly: to a linear layer, 999 is just 999 times 1. Vaswani et al. (2017) wrote numbers like the hands of many clocks, each slower than the last:
#
# $$e(t) = \bigl[\cos(\omega_1 t), \dots, \cos(\omega_{d/2} t), \sin(\omega_1 t), \dots, \sin(\omega_{d/2} t)\bigr], \qquad \omega_k = 10000^{-(k-1)/(d/2)} .$$
#
# One expression at a time, for $d = 64$. How fast each clock runs:

# %%
k = torch.arange(32)
omega = torch.exp(-math.log(10_000) * k / 32)
print("radians a step, first three and last:", *(f"{w:.5f}" for w in (*omega[:3], omega[-1])))

# %% [markdown]
# Where each hand stands at each time:

# %%
t = torch.arange(1000)
angle = t[:, None] * omega  # 1000 1 * 32 -> 1000 32

# %%
plt.figure(figsize=(6, 1.6))
plt.plot(angle[:, [8, 16, 24]].cos())
plt.legend([f"k = {n}" for n in (9, 17, 25)], fontsize=8, loc="upper right")
plt.xlabel("t")
plt.ylabel("cos");

# %% [markdown]
# A hand needs both coordinates, or forwards and backwards look the same:

# %%
e = torch.cat([angle.cos(), angle.sin()], -1)  # 1000 64
e.shape


# %% [markdown]
# These four lines are the function:

# %%
#| exports
def timestep_embedding(
    t: Tensor,  # (B,)
    dim: int,  # even
    max_period: float = 10_000.0,  # slowest clock
) -> Tensor:  # float32, (B, dim), in [-1, 1]
    "Cosines and sines of t at falling frequencies (Vaswani et al. 2017)."
    if dim % 2:
        raise ValueError(f"dim must be even, not {dim}")
    k = torch.arange(dim // 2, device=t.device, dtype=torch.float32)
    angle = t.float()[:, None] * torch.exp(-math.log(max_period) * k / (dim // 2))  # b d/2
    return torch.cat([angle.cos(), angle.sin()], -1)


# %%
torch.testing.assert_close(timestep_embedding(t, 64), e, atol=1e-4, rtol=0)
fig, axes = plt.subplots(1, 2, figsize=(7, 2.4), layout="constrained", width_ratios=(1.6, 1))
axes[0].imshow(e.T, aspect="auto", cmap="RdBu")
axes[0].set(xlabel="t", ylabel="entry", title="one column a time")
likeness = (e @ e[300]) / (e[300] @ e[300])
axes[1].plot(likeness, color="lightsteelblue", lw=0.7)
axes[1].plot(t[25:-25], np.convolve(likeness, np.ones(51) / 51, "valid"), color="tab:blue")
axes[1].set(xlabel="t", title="likeness to t = 300")
assert likeness.argmax() == 300
torch.testing.assert_close(e[300] @ e[350], e[700] @ e[750], atol=0.01, rtol=0)

# %% [markdown]
# Times close together are alike, and the likeness falls off, with bumps, as they move apart: a linear layer can tell early from late. The fast hands make the pale curve wiggle; the mean of 51 neighbours (dark) shows the fall. Around any other time the curve is the same, for $\cos\omega t\cos\omega u + \sin\omega t\sin\omega u = \cos\omega(t - u)$. The same numbers come out of diffusers:

# %%
theirs = get_timestep_embedding(t, 64, flip_sin_to_cos=True, downscale_freq_shift=0)
torch.testing.assert_close(e, theirs, atol=1e-4, rtol=0)


# %% [markdown]
# ## 3 · Parts
#
# Before each convolution the channels are normalised. Group norm takes mean and spread over groups of channels of one image, so it does not care about the batch size. The paper trains with *batch* norm at batch 1; section 8 looks at what that does.

# %%
#| exports
def make_norm(
    kind: str,  # "group" or "batch"
    channels: int,
) -> nn.Module:
    "Group norm (at most eight groups, each of at least two channels) or batch norm."
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind != "group":
        raise ValueError(f"norm must be 'group' or 'batch', not {kind!r}")
    groups = next(g for g in (8, 4, 2, 1) if g == 1 or channels % g == 0 and channels >= 2 * g)
    return nn.GroupNorm(groups, channels)


# %%
print(*(make_norm("group", c).num_groups for c in (4, 8, 16, 128)), make_norm("batch", 8))


# %% [markdown]
# The residual block does most of the work: normalise, activate, convolve, twice, and add what came in. The time, after two linear layers on $e(t)$, enters behind the second norm as a scale and a shift of every channel, $h \leftarrow (1 + \gamma(t))\,h + \delta(t)$.

# %%
#| exports
class ResBlock(nn.Module):
    "Norm, SiLU, 3x3 convolution, twice, plus the input; the time scales and shifts in between."

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_dim: int | None = None,  # length of the time's vector; None: no time
        norm: str = "group",  # or "batch"
    ):
        super().__init__()
        self.norm1, self.norm2 = make_norm(norm, in_channels), make_norm(norm, out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time_dim, 2 * out_channels) if time_dim else None
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        "x (B, in, H, W), time (B, time_dim) -> (B, out, H, W)."
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.time is not None:
            scale, shift = self.time(F.silu(time))[:, :, None, None].chunk(2, 1)  # b 2c 1 1
            h = h * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(h))


# %%
x, time = torch.randn(2, 16, 12, 8), torch.randn(2, 64)
block = ResBlock(16, 24, 64)
print(tuple(x.shape), "->", tuple(block(x, time).shape))
assert not torch.allclose(block(x, time), block(x, 2 * time))  # the time matters


# %%
#| exports
class Downsample(nn.Conv2d):
    "Half the height and width by a 3x3 convolution of stride 2; the sides must be even."

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, stride=2, padding=1)


class Upsample(nn.Module):
    "Twice the height and width: a 1x1 convolution, then each pixel becomes four."

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        "(B, in, H, W) -> (B, out, 2 H, 2 W)."
        return F.interpolate(self.conv(x), scale_factor=2.0, mode="nearest")


# %%
print([tuple(m(x).shape) for m in (Downsample(16, 32), Upsample(16, 8))])

# %% [markdown]
# ## 4 · Down and up
#
# The encoder halves the picture level by level and keeps the features of each. The decoder comes back up and meets the kept features over *bridges* (skip connections). Into the encoder one more thing can be plugged: an *adapter*, called after each level with its features $h$ and with the prior at that level's size. [10](10_nsa.ipynb) builds one. The encoder only promises to add what it returns:
#
# $$h \leftarrow h + \mathrm{adapter}(h, f).$$

# %%
#| exports
Adapter = Callable[[int], nn.Module | None]  # channels -> module(h, prior) or None


class Encoder(nn.Module):
    "From full size downwards; gives the picture of every level, finest first."

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],  # width of each level, finest first
        blocks: int = 1,  # residual blocks a level
        time_dim: int | None = None,
        norm: str = "group",
        adapter: Adapter | None = None,  # called once a level, finest first
    ):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.downs = nn.ModuleList(
            Downsample(a, b) for a, b in zip(channels, channels[1:], strict=False)
        )
        self.blocks = nn.ModuleList(
            nn.ModuleList(ResBlock(c, c, time_dim, norm) for _ in range(blocks)) for c in channels
        )
        made = [adapter(c) if adapter else None for c in channels]
        self.adapters = nn.ModuleList(m if m is not None else nn.Identity() for m in made)
        self.adapted = [m is not None for m in made]

    def level(self, i: int, h: Tensor, time: Tensor | None, prior: Tensor | None) -> Tensor:
        "Level i: halve (but the first), residual blocks, adapter."
        h = self.downs[i - 1](h) if i else h
        for block in self.blocks[i]:
            h = block(h, time)
        return h + self.adapters[i](h, prior) if self.adapted[i] else h

    def forward(
        self, x: Tensor, time: Tensor | None = None, prior: Tensor | None = None
    ) -> list[Tensor]:
        "x (B, in, H, W), prior (B, 1, H, W) in [-1, 1] -> levels (B, c_i, H / 2^i, W / 2^i)."
        h, levels = self.stem(x), []
        for i in range(len(self.blocks)):
            if i and prior is not None:
                prior = F.avg_pool2d(prior, 2)
            h = self.level(i, h, time, prior)
            levels.append(h)
        return levels


# %%
encoder = Encoder(1, (8, 16, 24))
print([tuple(h.shape) for h in encoder(torch.randn(1, 1, 40, 24))])


# %%
#| exports
class Decoder(nn.Module):
    "From the coarsest level upwards, over bridges to the encoder's levels."

    def __init__(
        self,
        channels: Sequence[int],  # as the encoder's
        blocks: int = 1,
        time_dim: int | None = None,
        norm: str = "group",
    ):
        super().__init__()
        pairs = list(zip(channels[:-1], channels[1:], strict=True))[::-1]  # coarse to fine
        self.ups = nn.ModuleList(Upsample(low, c) for c, low in pairs)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                ResBlock(2 * c if k == 0 else c, c, time_dim, norm) for k in range(blocks)
            )
            for c, _ in pairs
        )

    def forward(self, levels: list[Tensor], time: Tensor | None = None) -> Tensor:
        "Levels of the encoder -> (B, c_0, H, W)."
        h = levels[-1]
        for up, blocks, bridge in zip(self.ups, self.blocks, levels[-2::-1], strict=True):
            h = torch.cat([up(h), bridge], 1)  # b c+c h w
            for block in blocks:
                h = block(h, time)
        return h


# %%
print(tuple(Decoder((8, 16, 24))(encoder(torch.randn(1, 1, 40, 24))).shape))


# %% [markdown]
# Halving needs even sides, all the way down. A radiograph of 750×250, the paper's size, fails at the second level: 375 becomes 188 and comes back as 376, which does not fit its bridge. Rather than demand sizes that fit, we pad inside, repeating the border, and crop at the end. Nobody outside needs to know.

# %%
#| exports
def pad_to_multiple(
    x: Tensor,  # (B, C, H, W)
    multiple: int,
) -> Tensor:  # (B, C, H', W'), the next multiples
    "Repeat the lower and right border until both sides can be divided by `multiple`."
    right, down = (-n % multiple for n in (x.shape[-1], x.shape[-2]))
    return F.pad(x, (0, right, 0, down), mode="replicate") if down or right else x


# %%
print(tuple(pad_to_multiple(torch.zeros(1, 1, 750, 250), 16).shape))


# %%
#| exports
class UNet(nn.Module):
    "Encoder, decoder, one output convolution; any height and width."

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64),  # width of each level
        blocks: int = 1,  # residual blocks a level
        time_dim: int | None = None,  # length of the time's vector, even; None: knows no time
        norm: str = "group",  # or "batch"
        adapter: Adapter | None = None,  # makes the module that is plugged into each encoder level
        zero_output: bool = False,  # start with an output of exactly zero
    ):
        super().__init__()
        self.time_dim, self.multiple = time_dim, 2 ** (len(channels) - 1)
        if time_dim:
            self.time = nn.Sequential(
                nn.Linear(time_dim, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim)
            )
        self.encoder = Encoder(in_channels, channels, blocks, time_dim, norm, adapter)
        self.decoder = Decoder(channels, blocks, time_dim, norm)
        self.out = nn.Sequential(
            make_norm(norm, channels[0]),
            nn.SiLU(),
            nn.Conv2d(channels[0], out_channels, 3, padding=1),
        )
        if zero_output:
            nn.init.zeros_(self.out[-1].weight)
            nn.init.zeros_(self.out[-1].bias)

    def pad(self, x: Tensor) -> Tensor:
        "Repeat the lower and right border until every level has even sides."
        return pad_to_multiple(x, self.multiple)

    def forward(self, x: Tensor, t: Tensor | None = None, prior: Tensor | None = None) -> Tensor:
        "x (B, in, H, W), t int64 (B,), prior (B, 1, H, W) in [-1, 1] -> (B, out, H, W)."
        time = self.time(timestep_embedding(t, self.time_dim)) if self.time_dim else None
        height, width = x.shape[-2:]
        x, prior = self.pad(x), self.pad(prior) if prior is not None else None
        h = self.decoder(self.encoder(x, time, prior), time)
        return self.out(h)[..., :height, :width]


# %%
net = UNet(3, channels=(8, 16, 24, 32), time_dim=32)
for size in [(64, 32), (75, 25), (1, 1), (37, 200)]:
    assert net(torch.randn(2, 3, *size), torch.tensor([0, 999])).shape == (2, 1, *size)
assert (
    UNet(3, time_dim=32, zero_output=True)(torch.randn(1, 3, 40, 24), torch.tensor([5])).abs().max()
    == 0
)


# %% [markdown]
# The net that guesses is the same without a time. Its output is read as logits, and the prior is $f(b) = 2\,\sigma(\text{logits}) - 1$:

# %%
#| exports
class ConditionalUNet(UNet):
    "The net that guesses: features of the image -> logits of the mask; the prior is f = 2 sigmoid - 1."

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64),
        blocks: int = 1,
        norm: str = "group",
    ):
        super().__init__(in_channels, 1, channels, blocks, norm=norm)


# %%
assert ConditionalUNet()(torch.rand(1, 1, 75, 25)).shape == (1, 1, 75, 25)

# %% [markdown]
# With group norm one image's answer must not depend on its neighbours in the batch:

# %%
net = net.eval()
x, t = torch.randn(3, 3, 64, 32), torch.tensor([1, 500, 999])
torch.testing.assert_close(net(x, t)[1:2], net(x[1:2], t[1:2]), atol=1e-5, rtol=1e-4)


# %% [markdown]
# ## 5 · Where the parameters are, and where the work
#
# A forward hook on every layer with weights writes down its output's shape, its parameters and, but for norms, its multiply-adds: each output number costs as many as one filter has weights,
#
# $$\text{multiply-adds} = \underbrace{C_\text{out} H W}_{\text{outputs}} \cdot \underbrace{C_\text{in}\, k^2}_{\text{weights of one filter}} .$$

# %%
def part_of(name):
    "The row of the table that a layer belongs to."
    return re.match(r"(encoder|decoder)\.(stem|\w+\.\d+)|\w+", name)[0]


def inventory(net, *inputs):
    "{part: [shape of its last output, parameters, multiply-adds]} in the order of the computation."
    table, handles = {}, []

    def note(name, layer, out):
        row = table.setdefault(part_of(name), [None, 0, 0])
        row[0] = tuple(out.shape[1:])
        row[1] += sum(p.numel() for p in layer.parameters())
        row[2] += out[0].numel() * layer.weight[0].numel() if layer.weight.ndim > 1 else 0

    for name, layer in net.named_modules():
        if hasattr(layer, "weight"):
            handles.append(
                layer.register_forward_hook(lambda m, args, out, name=name: note(name, m, out))
            )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(*inputs)
    [handle.remove() for handle in handles]
    return table, counter.get_total_flops() // 2


# %%
laptop = UNet(
    18, channels=(16, 32, 64, 128), time_dim=64
)  # the diffusion U-Net of the laptop profile, adapters left out
inputs = torch.zeros(1, 18, 192, 64), torch.tensor([5])
table, counted = inventory(laptop, *inputs)
for name, (shape, parameters, work) in table.items():
    print(
        f"{name:17s} {'×'.join(map(str, shape)):>12s} {parameters:10,d} parameters {work:12,d} "
        f"multiply-adds"
    )

# %%
parameters, work = (sum(row[k] for row in table.values()) for k in (1, 2))
print(f"{'together':30s} {parameters:10,d} parameters {work:12,d} multiply-adds")
assert parameters == sum(p.numel() for p in laptop.parameters())  # nothing forgotten
assert work == counted  # PyTorch's own counter agrees

# %%
names = [n for n in table if n != "time"]
fig, axes = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained", sharey=True)
for axis, column, title in zip(axes, (1, 2), ("share of parameters", "share of multiply-adds")):
    total = sum(row[column] for row in table.values())
    axis.barh(names, [table[n][column] / total for n in names], color="tab:purple")
    axis.set_title(title)
axes[0].invert_yaxis()
axes[0].tick_params(axis="y", labelsize=8);


# %% [markdown]
# The channels double where the pixels quarter. So all encoder blocks do nearly the same work, and so do all decoder blocks, but more than half of the parameters sit in the deepest level (`encoder.downs.2` and `encoder.blocks.3`). One more level at the bottom multiplies the parameters and adds little work (exercise 2); one more at the *top*, as wide as the present first one and for a picture of twice the sides, would more than double the work and add hardly a parameter. When a network is called large, ask which of the two is meant.
#
# ## 6 · How far it sees
#
# Section 1's question again. Normalisation layers see the whole picture (their mean does), so they are taken out for this measurement.

# %%
def without_norm(net):
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    return net


gradients = {n: felt(without_norm(UNet(1, channels=(8,) * n)), (256, 256)) for n in (1, 2, 3, 4)}
fields = {n: reach(g) for n, g in gradients.items()}


# %%
def core(gradient, share=0.9):
    "Side of the centred square that holds this share of the gradient."
    middle, total = len(gradient) // 2, gradient.sum()
    return next(
        2 * r + 1
        for r in range(middle)
        if gradient[middle - r : middle + r + 1, middle - r : middle + r + 1].sum() > share * total
    )


fig, axes = plt.subplots(1, 4, figsize=(8, 2.4), layout="constrained")
half = fields[4] // 2 + 6
lit = slice(128 - half, 128 + half + 1)  # what the deepest of them sees
for axis, (n, g) in zip(axes, gradients.items()):
    axis.imshow((g[lit, lit] / g.max() + 1e-9).log10(), cmap="magma", vmin=-9, vmax=0)
    axis.set_axis_off()
    axis.set_title(f"{n} level{'s' * (n > 1)}\nsees {fields[n]}, 90 % in {core(g)}", fontsize=9)
assert all(fields[k + 1] > 1.5 * fields[k] for k in (1, 2, 3))

# %% [markdown]
# Brightness is the logarithm of the gradient, black a billionth of the largest; all four pictures show the same middle part of the image. Each level about doubles what is seen, where a layer of the plain stack added two pixels. But *seen* is generous: nine tenths of the gradient of an untrained net come from a far smaller patch, which training can widen. What does the same reach cost?

# %%
deep = stack((fields[4] - 1) // 2)
costs = {
    "U-Net": inventory(UNet(1, channels=(8,) * 4), torch.zeros(1, 1, 192, 64))[1],
    "stack": inventory(deep, torch.zeros(1, 1, 192, 64))[1],
}
print(
    f"to see {fields[4]} pixels: 4 levels, {costs['U-Net']:,} multiply-adds, or "
    f"{(fields[4] - 1) // 2} convolutions, {costs['stack']:,}: "
    f"{costs['stack'] / costs['U-Net']:.1f} times the work"
)
assert costs["stack"] > costs["U-Net"]

# %% [markdown]
# ## 7 · Why bridges
#
# The naive way to profit from the small copy is an hour-glass: down to a coarse picture that sees everything, and up again, without bridges. Let both learn the same twelve phantoms for the same number of steps.

# %%
size = 96, 32
films = [draw_phantom(i) for i in range(20)]
images = torch.cat(
    [
        F.interpolate(torch.from_numpy(f.image.copy()).float()[None, None] / 255, size, mode="area")
        for f in films
    ]
)
masks = torch.stack(
    [torch.from_numpy(landmarks_to_mask(f.landmarks / 6, *size)).float()[None] for f in films]
)


class HourGlass(UNet):
    def forward(self, x):
        levels = self.encoder(self.pad(x))
        return self.out(self.decoder([torch.zeros_like(h) for h in levels[:-1]] + levels[-1:]))


# %% [markdown]
# The loss is the one that the paper's Eq. (9) must mean: binary cross entropy of the guess against the mask (page [13](13_training.ipynb) shows what happens if one takes the equation literally). With the mask $m$ and $p = \sigma(\text{logits})$,
#
# $$\mathcal L = -\,m \log p - (1 - m)\log(1 - p) .$$

# %%
def learn(net, images, masks, steps=130, batch=4, after=None):
    "AdamW on random batches; `after(step)` is called after each step."
    torch.manual_seed(0)
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    for step in range(1, steps + 1):
        index = torch.randint(len(images), (batch,))
        loss = F.binary_cross_entropy_with_logits(net(images[index]), masks[index])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if after:
            after(step)
    return net.eval()


# %%
torch.manual_seed(1)
nets = {
    "hour-glass": HourGlass(1, channels=(8, 16, 24, 32)),
    "U-Net": ConditionalUNet(1, (8, 16, 24, 32)),
}
guess = {
    name: learn(net, images[:12], masks[:12])(images[12:]).sigmoid().detach()
    for name, net in nets.items()
}

# %%
scores = {name: dice(g > 0.5, masks[12:]).mean().item() for name, g in guess.items()}
print({name: f"Dice {s:.3f} on 8 unseen phantoms" for name, s in scores.items()})
fig, axes = plt.subplots(1, 4, figsize=(4.4, 3.2), layout="constrained")
for axis, picture, title in zip(
    axes, [images[13], *(g[1] for g in guess.values()), masks[13]], ["image", *guess, "truth"]
):
    gray = title == "image"
    axis.imshow(picture[0], cmap="gray" if gray else "magma", vmin=0, vmax=1)
    axis.set_axis_off()
    axis.set_title(title, fontsize=9)
assert scores["U-Net"] > 0.75 and scores["U-Net"] > scores["hour-glass"] + 0.1


# %% [markdown]
# The hour-glass knows where the spine is and no vertebra in it: what is lost on the way down cannot come back. The U-Net has the edges, straight from its first level. Its output $p$ gives the prior $f(b) = 2p - 1$ that page [06](06_forward.ipynb) asked for.
#
# ## 8 · Batch norm with a batch of one
#
# The paper's Section 3.3 says batch norm and batch size 1. Over one image, batch norm normalises each channel by *this image's* mean $\mu$ and spread $\sigma$ (not the sigmoid here; that is instance norm), and meanwhile collects running averages, which take over once the net is in use. So two functions share one set of weights:
#
# $$\text{training: } \frac{h - \mu(h)}{\sigma(h)}, \qquad \text{in use: } \frac{h - \bar\mu}{\bar\sigma}, \quad \bar\mu \leftarrow 0.9\,\bar\mu + 0.1\,\mu(h).$$
#
# Same net, same films, one at a time, once with each norm; every 20 steps both functions are asked.

# %%
def score(net, as_trained):
    "Dice on the unseen phantoms, one by one; the copy keeps the net's running averages clean."
    net = copy.deepcopy(net).train(as_trained)
    with torch.no_grad():
        return np.mean(
            [dice(net(x[None]) > 0, m[None]).item() for x, m in zip(images[12:], masks[12:])]
        )


def watch(norm):
    "(step, Dice in use, Dice as trained) every 20 steps of training with a batch of one."
    torch.manual_seed(0)
    net, seen = ConditionalUNet(1, (8, 16, 24), norm=norm), []
    note = lambda step: (
        seen.append((step, score(net, False), score(net, True))) if step % 20 == 0 else None
    )
    return learn(net, images[:12], masks[:12], 140, 1, note), np.array(seen)


# %%
ones = {norm: watch(norm) for norm in ("group", "batch")}
plt.figure(figsize=(5.5, 2.6))
for (norm, (_, seen)), color in zip(ones.items(), ("tab:blue", "tab:orange")):
    plt.plot(seen[:, 0], seen[:, 1], color=color, lw=5, alpha=0.35, label=f"{norm} norm, in use")
    plt.plot(seen[:, 0], seen[:, 2], "--", color=color, label=f"{norm} norm, as trained")
plt.xlabel("step, batch of one")
plt.ylabel("Dice, unseen")
plt.legend(fontsize=8);

# %%
gap = {norm: np.abs(seen[:, 1] - seen[:, 2]) for norm, (_, seen) in ones.items()}
for norm, (_, seen) in ones.items():
    print(f"{norm} norm: Dice in use {seen[-1, 1]:.3f}, as trained {seen[-1, 2]:.3f}, "
          f"largest gap on the way {gap[norm].max():.3f}")
assert gap["group"].max() < 1e-6 < gap["batch"].max()

# %% [markdown]
# Batch norm does *not* fail at a batch of one. As instance norm it learns these films at least as fast as group norm. What it costs is the gap between the dashed line and the broad one (group norm has none: its two lines lie on each other): the function that was trained is better than the one that is used, most of all early on, and a score during training speaks of the wrong one. The averages also remember the films of the training set. A darker film moves its channels' means, and only one of the two functions follows:

# %%
dark = 0.6 * images[12:]
for norm, (net, _) in ones.items():
    with torch.no_grad():
        use, trained = (
            torch.cat([copy.deepcopy(net).train(mode)(x[None]) for x in dark]) > 0
            for mode in (False, True)
        )
    print(
        f"{norm} norm, darker films: Dice in use {dice(use, masks[12:]).mean():.3f}, "
        f"as trained {dice(trained, masks[12:]).mean():.3f}"
    )

# %% [markdown]
# Group norm is one function in training and in use, for every batch size; it is our default. The `paper` profile has `norm = batch`.
#
# ## 9 · Tall films: squash or letterbox?
#
# Films differ in shape. *Squashing* stretches each to the canvas, so the vertebrae of a wide film come out narrow. *Letterboxing* keeps the shape and pays with black bars. Section 2.4 of the paper argues that the shape of a vertebra is what a network should learn; its 250×750 input squashes. We draw films of very different widths and give both the same training. Dice counts at each film's **own** size.

# %%
widths = np.random.default_rng(0).integers(130, 340, 28)
shapes = [draw_phantom(100 + i, (576, int(w))) for i, w in enumerate(widths)]
truths = [
    torch.from_numpy(landmarks_to_mask(f.landmarks, *f.image.shape))[None, None] for f in shapes
]


def canvases(fit):
    "Images and masks on the canvas, and how each came there."
    pairs = [fit_image(Image.fromarray(f.image), size, fit) for f in shapes]
    masks = [
        landmarks_to_mask(where.points(f.landmarks), *size) for f, (_, where) in zip(shapes, pairs)
    ]
    x = torch.from_numpy(
        np.stack([np.asarray(image) for image, _ in pairs])[:, None] / np.float32(255)
    )
    return x, torch.from_numpy(np.stack(masks)[:, None]).float(), [where for _, where in pairs]


# %%
def at_own_size(canvas, places):
    "Dice of the last eight films, each at its own size."
    own = [
        torch.from_numpy(unfit(c[0].numpy(), where) > 0.5)[None, None]
        for c, where in zip(canvas, places)
    ]
    return np.array([dice(p, m).item() for p, m in zip(own, truths[20:])])


results = {}
for fit in ("squash", "letterbox"):
    x, m, places = canvases(fit)
    torch.manual_seed(0)
    p = learn(ConditionalUNet(1, (8, 16, 24)), x[:20], m[:20])(x[20:]).sigmoid().detach()
    results[fit] = x[20:], p, at_own_size(p, places[20:]), at_own_size(m[20:], places[20:])

# %%
fig, axes = plt.subplots(
    1, 6, figsize=(8, 3), layout="constrained", width_ratios=(1, 1, 1, 1, 1.6, 0.9)
)
for k, (fit, (x, p, *_)) in enumerate(results.items()):
    for j, i in enumerate((1, 3)):
        axes[2 * k + j].imshow(x[i, 0], cmap="gray")
        axes[2 * k + j].contour(p[i, 0], [0.5], colors="tab:orange", linewidths=0.8)
        axes[2 * k + j].set_title(f"{fit}\n{widths[20 + i]} wide", fontsize=8)
for axis, i in zip(axes[4:], (1, 3)):
    axis.imshow(shapes[20 + i].image, cmap="gray")
    axis.set_title(f"the film\n{widths[20 + i]} wide", fontsize=8)
for axis in axes:
    axis.set_axis_off()

# %%
for fit, (_, _, ours, best) in results.items():
    print(
        f"{fit:9s} Dice {ours.mean():.3f} (widest three "
        f"{ours[widths[20:].argsort()[-3:]].mean():.3f}, narrowest three "
        f"{ours[widths[20:].argsort()[:3]].mean():.3f}); "
        f"the perfect mask on this canvas would get {best.mean():.3f}"
    )
assert all((best > ours).all() for _, _, ours, best in results.values())

# %% [markdown]
# On films that differ this much and a canvas this small, letterboxing is *not* the winner: its bars cost pixels, which even the perfect mask pays for (last number), and stretched vertebrae seem to be learned readily. One small training on phantoms settles nothing for radiographs, but it does not support Section 2.4's argument. We keep letterboxing as our default for another reason: squashing bends every Cobb angle, and the contour of a letterboxed film can be measured as it is.
#
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | channels, depth | not given | 16 to 128 on a laptop, 32 to 256 on a GPU, see `settings.ini` | what the machine can carry |
# | norm | batch norm at batch 1 | group norm; batch norm in `paper` | one function in training and in use (section 8) |
# | size | 250×750, squashed | any; letterboxed | padded and cropped inside; angles survive (section 9) |
# | time | not drawn | scale and shift in every block | the field's standard since Nichol and Dhariwal (2021) |
#
# ## Exercises
#
# **1 · Predict.** `UNet(1, channels=(16, 32, 64))` against `(32, 64, 128)`: how many times more parameters?
#
# <details><summary>Answer</summary>
#
# Almost exactly four times: nearly all are in convolutions, whose size is inputs times outputs.
#
# </details>

# %%
count = [
    sum(p.numel() for p in UNet(1, channels=c).parameters()) for c in ((16, 32, 64), (32, 64, 128))
]
print(count, round(count[1] / count[0], 2))
assert 3.8 < count[1] / count[0] < 4.05

# %% [markdown]
# **2 · Change.** Give the laptop's U-Net one more level of 128 channels. By about what share do parameters and multiply-adds grow, and which new block costs most?
#
# <details><summary>Answer</summary>
#
# The parameters more than double, the work grows by about a fifth, most of it in the decoder block that now exists where the bottom was.
#
# </details>

# %%
deeper = UNet(18, channels=(16, 32, 64, 128, 128), time_dim=64)
more = (
    sum(p.numel() for p in deeper.parameters()) / parameters,
    inventory(deeper, *inputs)[1] / work,
)
print(f"parameters × {more[0]:.2f}, multiply-adds × {more[1]:.2f}")
assert more[0] > 2 and more[1] < 1.25

# %% [markdown]
# **3 · Implement.** Write an adapter that adds to each level its own mean, and check that it is called once a level with the prior at that level's size.
#
# <details><summary>Answer</summary>
#
# See the cell: a module with `forward(h, prior)`, made by a function of the number of channels.
#
# </details>

# %%
calls = []


class Mean(nn.Module):
    def forward(self, h, prior):
        calls.append((tuple(h.shape[2:]), tuple(prior.shape[2:])))
        return h.mean((2, 3), keepdim=True)


UNet(1, channels=(8, 16, 24), adapter=lambda c: Mean())(
    torch.randn(1, 1, 40, 24), prior=torch.zeros(1, 1, 40, 24)
)
print(calls)
assert calls == [((40, 24),) * 2, ((20, 12),) * 2, ((10, 6),) * 2]

# %% [markdown]
# Next: [09 · Multi-scale fusion](09_msfm.ipynb), the eye through which both nets see the radiograph.
