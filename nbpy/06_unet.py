# %% [markdown]
# # 06 · U-Nets
# > One net that guesses, one that is told the time; both take images of any size
#
# You will build a U-Net from four small parts, see why it needs its bridges, tell it what time it is, make it indifferent to the size of the image, and train the conditional U-Net of Eq. (9) on phantoms until its guess $f(b)$ is worth something. Half a minute on a laptop.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/06_unet.ipynb)

# %%
#| default_exp unet

# %%
#| eval: false
# !pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"  # only on Colab

# %%
#| export
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# %%
import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats
from verdiff.data import draw_phantom, landmarks_to_mask
from verdiff.metrics import dice

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)

# %% [markdown]
# ## 1 · Telling the time
#
# The diffusion U-Net must know how loud the noise is. A bare number $t$ would be a poor way to say it: to a linear layer, 999 is just a thousand times 1. Vaswani et al. (2017) wrote numbers like the hands of many clocks, each slower than the last:
#
# $$e(t) = \bigl[\cos(\omega_1 t), \dots, \cos(\omega_{d/2} t), \sin(\omega_1 t), \dots, \sin(\omega_{d/2} t)\bigr], \qquad \omega_k = 10000^{-(k-1)/(d/2)} .$$

# %%
#| export
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
e = timestep_embedding(torch.arange(1000), 64)
fig, axes = plt.subplots(1, 2, figsize=(7, 2.4), layout="constrained", width_ratios=(1.6, 1))
axes[0].imshow(e.T, aspect="auto", cmap="RdBu"); axes[0].set(xlabel="t", ylabel="entry", title="one column a time")
axes[1].plot((e @ e[300]) / (e[300] @ e[300])); axes[1].set(xlabel="t", title="likeness to t = 300")
assert e.shape == (1000, 64) and (e @ e[300]).argmax() == 300

# %%
from diffusers.models.embeddings import get_timestep_embedding

# %%
theirs = get_timestep_embedding(torch.arange(1000), 64, flip_sin_to_cos=True, downscale_freq_shift=0)
torch.testing.assert_close(e, theirs, atol=1e-4, rtol=0)

# %% [markdown]
# ## 2 · Parts
#
# The residual block is the workhorse: normalise, bend, convolve, twice, and add what came in. The time enters between the two as a scale and a shift of every channel. Group norm looks at one image alone, so it does not care about the batch size. The paper trains with batch 1 and *batch* norm; its profile keeps that, ours does not.

# %%
#| export
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
x, time = torch.randn(2, 16, 12, 8), torch.randn(2, 64)
block = ResBlock(16, 24, 64)
print([tuple(m(x).shape) for m in (Downsample(16, 32), Upsample(16, 8))], tuple(block(x, time).shape))
assert not torch.allclose(block(x, time), block(x, 2 * time))  # the time matters

# %% [markdown]
# ## 3 · Down and up
#
# The encoder halves the picture level by level and keeps what it had at each. The decoder comes back up and meets the kept pictures over *bridges*. Into the encoder one more thing can be plugged: an *adapter*, called after each level with what the network thinks and with the prior at that level's size. [08](08_nsa.ipynb) builds one. The encoder only promises to add what it says:
#
# $$h \leftarrow h + \mathrm{adapter}(h, f).$$

# %%
#| export
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
        self.downs = nn.ModuleList(Downsample(a, b) for a, b in zip(channels, channels[1:], strict=False))
        self.blocks = nn.ModuleList(
            nn.ModuleList(ResBlock(c, c, time_dim, norm) for _ in range(blocks)) for c in channels)
        made = [adapter(c) if adapter else None for c in channels]
        self.adapters = nn.ModuleList(m if m is not None else nn.Identity() for m in made)
        self.adapted = [m is not None for m in made]

    def forward(self, x: Tensor, time: Tensor | None = None, prior: Tensor | None = None) -> list[Tensor]:
        "x (B, in, H, W), prior (B, 1, H, W) in [-1, 1] -> levels (B, c_i, H / 2^i, W / 2^i)."
        h, levels = self.stem(x), []
        for i, blocks in enumerate(self.blocks):
            if i:
                h = self.downs[i - 1](h)
                prior = F.avg_pool2d(prior, 2) if prior is not None else None
            for block in blocks:
                h = block(h, time)
            if self.adapted[i]:
                h = h + self.adapters[i](h, prior)
            levels.append(h)
        return levels


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
        self.blocks = nn.ModuleList(nn.ModuleList(
            ResBlock(2 * c if k == 0 else c, c, time_dim, norm) for k in range(blocks)) for c, _ in pairs)

    def forward(self, levels: list[Tensor], time: Tensor | None = None) -> Tensor:
        "Levels of the encoder -> (B, c_0, H, W)."
        h = levels[-1]
        for up, blocks, bridge in zip(self.ups, self.blocks, levels[-2::-1], strict=True):
            h = torch.cat([up(h), bridge], 1)  # b c+c h w
            for block in blocks:
                h = block(h, time)
        return h


# %% [markdown]
# Halving needs even sides, all the way down. A radiograph of 750×250, the paper's size, fails at the second level: 375 is odd. The usual way out is to demand sizes that fit. Ours is to pad inside, repeating the border, and to crop at the end. Nobody outside needs to know.

# %%
#| export
class UNet(nn.Module):
    "Encoder, decoder, one output convolution; any height and width."

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64),  # width of each level
        blocks: int = 1,  # residual blocks a level
        time_dim: int | None = None,  # length of the time's vector, even; None: the net knows no time
        norm: str = "group",  # or "batch"
        adapter: Adapter | None = None,  # makes the module that is plugged into each encoder level
        zero_output: bool = False,  # start with an output of exactly zero
    ):
        super().__init__()
        self.time_dim, self.multiple = time_dim, 2 ** (len(channels) - 1)
        if time_dim:
            self.time = nn.Sequential(nn.Linear(time_dim, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim))
        self.encoder = Encoder(in_channels, channels, blocks, time_dim, norm, adapter)
        self.decoder = Decoder(channels, blocks, time_dim, norm)
        self.out = nn.Sequential(make_norm(norm, channels[0]), nn.SiLU(),
                                 nn.Conv2d(channels[0], out_channels, 3, padding=1))
        if zero_output:
            nn.init.zeros_(self.out[-1].weight)
            nn.init.zeros_(self.out[-1].bias)

    def forward(self, x: Tensor, t: Tensor | None = None, prior: Tensor | None = None) -> Tensor:
        "x (B, in, H, W), t int64 (B,), prior (B, 1, H, W) in [-1, 1] -> (B, out, H, W)."
        time = self.time(timestep_embedding(t, self.time_dim)) if self.time_dim else None
        height, width = x.shape[-2:]
        x = self.pad(x)
        prior = self.pad(prior) if prior is not None else None
        h = self.decoder(self.encoder(x, time, prior), time)
        return self.out(h)[..., :height, :width]

    def pad(self, x: Tensor) -> Tensor:
        "Repeat the lower and right border until every level has even sides."
        down, right = (-n % self.multiple for n in x.shape[-2:])
        return F.pad(x, (0, right, 0, down), mode="replicate") if down or right else x


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
net = UNet(3, channels=(8, 16, 24, 32), time_dim=32)
for size in [(64, 32), (75, 25), (1, 1), (37, 200)]:
    assert net(torch.randn(2, 3, *size), torch.tensor([0, 999])).shape == (2, 1, *size)
assert UNet(3, time_dim=32, zero_output=True)(torch.randn(1, 3, 40, 24), torch.tensor([5])).abs().max() == 0
print(f"{sum(p.numel() for p in net.parameters()):,} parameters; every size from 1x1 upwards")

# %% [markdown]
# Does padding change the answer where no padding is needed? And is one image's answer independent of its neighbours in the batch? With group norm it must be:

# %%
net = net.eval()
x, t = torch.randn(3, 3, 64, 32), torch.tensor([1, 500, 999])
torch.testing.assert_close(net(x, t)[1:2], net(x[1:2], t[1:2]), atol=1e-5, rtol=1e-4)
seen = []
plug = UNet(1, channels=(8, 16, 24), adapter=lambda c: (seen.append(c), None)[1])
assert seen == [8, 16, 24]

# %% [markdown]
# ## 4 · Why bridges
#
# The naive net is an hour-glass: down to a coarse picture that sees everything, and up again. What is lost on the way down cannot come back. Let both learn the same twelve phantoms for the same number of steps. First a tiny dataset and a loop of five lines:

# %%
size = 96, 32
films = [draw_phantom(i) for i in range(20)]
images = torch.cat([F.interpolate(torch.from_numpy(f.image.copy()).float()[None, None] / 255, size, mode="area") for f in films])
masks = torch.stack([torch.from_numpy(landmarks_to_mask(f.landmarks / 6, *size)).float()[None] for f in films])


class HourGlass(UNet):
    def forward(self, x):
        levels = self.encoder(self.pad(x))
        return self.out(self.decoder([torch.zeros_like(h) for h in levels[:-1]] + levels[-1:]))


# %% [markdown]
# The loss is the one that the paper's Eq. (9) must mean: binary cross entropy of the guess against the mask (page [10](10_training.ipynb) shows what happens if one takes the equation literally). With $p = \sigma(\text{logits})$,
#
# $$\mathcal L = -\,m \log p - (1 - m)\log(1 - p), \qquad f(b) = 2p - 1 .$$

# %%
def learn(net, steps=250):
    torch.manual_seed(0)
    optimiser, losses = torch.optim.AdamW(net.parameters(), 2e-3), []
    for _ in range(steps):
        index = torch.randint(12, (4,))
        loss = F.binary_cross_entropy_with_logits(net(images[index]), masks[index])
        optimiser.zero_grad(); loss.backward(); optimiser.step()
        losses.append(loss.item())
    return losses


torch.manual_seed(1)
nets = {"hour-glass": HourGlass(1, channels=(16, 24, 32, 32)), "U-Net": ConditionalUNet(1, (16, 24, 32, 32))}
curves = {name: learn(net) for name, net in nets.items()}

# %%
with torch.no_grad():
    guess = {name: torch.sigmoid(net.eval()(images[12:])) for name, net in nets.items()}
scores = {name: dice(g > 0.5, masks[12:]).mean().item() for name, g in guess.items()}
print({name: f"Dice {s:.3f} on 8 unseen phantoms" for name, s in scores.items()})
fig, axes = plt.subplots(1, 4, figsize=(4.4, 3.2), layout="constrained")
for axis, picture, title in zip(axes, [images[13], *(g[1] for g in guess.values()), masks[13]], ["image", *guess, "truth"]):
    gray = title == "image"
    axis.imshow(picture[0], cmap="gray" if gray else "magma", vmin=0, vmax=1); axis.set_axis_off(); axis.set_title(title, fontsize=9)
assert scores["U-Net"] > 0.75 and scores["U-Net"] > scores["hour-glass"] + 0.1

# %% [markdown]
# The hour-glass knows where the spine is and no vertebra in it. The U-Net has the edges, straight from its first level. What it gives is the prior $f(b)$ that page 04 asked for, from some tens of thousands of parameters and a few seconds of training.
#
# ## 5 · How far it sees
#
# A pixel of the output depends on a patch of the input. How large? Ask the gradient. Normalisation layers see the whole picture (their mean does), so we switch them off for this.

# %%
def receptive_field(channels):
    net = UNet(1, channels=channels)
    for module in net.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    x = torch.zeros(1, 1, 256, 256, requires_grad=True)
    net(x)[0, 0, 128, 128].backward()
    rows = (x.grad[0, 0].abs().sum(1) > 0).nonzero()
    return (rows.max() - rows.min() + 1).item()


fields = {len(c): receptive_field(c) for c in ((8,), (8, 8), (8, 8, 8), (8, 8, 8, 8))}
print("levels: pixels seen", fields)
assert all(fields[k + 1] > 1.5 * fields[k] for k in (1, 2, 3))

# %% [markdown]
# Each level about doubles it. At 192×64 three levels see most of the width and a quarter of the height: enough to know a vertebra, not enough to count them.
#
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | channels, depth | not given | 16 to 128 on a laptop, 32 to 256 on a GPU, see `settings.ini` | what the machine can carry |
# | norm | batch norm at batch 1 | group norm; batch norm in `paper` | batch norm over one image is instance norm in training and another function in use |
# | size | 250×750 | any | padded and cropped inside |
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
count = [sum(p.numel() for p in UNet(1, channels=c).parameters()) for c in ((16, 32, 64), (32, 64, 128))]
print(count, round(count[1] / count[0], 2))
assert 3.8 < count[1] / count[0] < 4.05

# %% [markdown]
# **2 · Change.** Use `norm="batch"` and feed one image in training mode, then the same in evaluation mode. Are the outputs alike?
#
# <details><summary>Answer</summary>
#
# No. In training mode the statistics are those of this image, in evaluation mode those collected before. With batch 1 the network is trained as one function and used as another. That is why we prefer group norm.
#
# </details>

# %%
torch.manual_seed(0)
for kind in ("batch", "group"):
    net = UNet(1, channels=(8, 16), norm=kind)
    a, b = net.train()(images[:1]), net.eval()(images[:1])
    print(kind, f"largest difference {(a - b).abs().max().item():.4f}")
    assert (kind == "group") == torch.equal(a, b)

# %% [markdown]
# **3 · Implement.** Write an adapter that adds to each level its own mean, and check by a hook that it is called once a level with the prior at that level's size.
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


UNet(1, channels=(8, 16, 24), adapter=lambda c: Mean())(torch.randn(1, 1, 40, 24), prior=torch.zeros(1, 1, 40, 24))
print(calls)
assert calls == [((40, 24),) * 2, ((20, 12),) * 2, ((10, 6),) * 2]

# %% [markdown]
# Next: [07 · Multi-scale fusion](07_msfm.ipynb), the eye through which both nets see the radiograph.
