# %% [markdown]
# # 09 · Multi-scale fusion
# > Three pairs of glasses, and a small mind that chooses between them for every radiograph

# %% [markdown]
# You will see what is lost when image and noisy mask are simply put side by side, build the multi-scale fusion module (MSFM) of Section 2.3 equation by equation, find two places where it cannot work as written (one shows nothing, the other crashes), mend both, and look at what the trained module of the package chooses for a chest and for a loin, blurred and sharp. Half a minute on a laptop; no GPU needed.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/09_msfm.ipynb)

# %%
#| default_exp networks.msfm

# %%
#| export
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# %%
import copy
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats
from safetensors.torch import load_file

import verdiff
from verdiff.data.landmarks import landmarks_to_mask
from verdiff.data.phantom_set import PhantomSet
from verdiff.data.phantoms import draw_phantom
from verdiff.data.xray import XRaySet
from verdiff.diffusion.forward import ShiftedDiffusion, linear_schedule
from verdiff.io.download import find_xray
from verdiff.metrics import dice
from verdiff.networks.unet import UNet
from verdiff.settings import load_settings

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)
size = 96, 32
films = [draw_phantom(i) for i in range(24)]
images = torch.cat(
    [
        F.interpolate(torch.from_numpy(f.image.copy()).float()[None, None] / 255, size, mode="area")
        for f in films
    ]
)
masks = torch.stack(
    [torch.from_numpy(landmarks_to_mask(f.landmarks / 6, *size)).float()[None] for f in films]
)

# %% [markdown]
# ## 1 · The naive way: side by side
#
# The diffusion U-Net needs the image. The obvious thing is to give it the noisy mask and the image as two channels; the paper calls that "coarsely spliced" and says that it loses features. What exactly? A convolution of the two channels is a *sum*, one part from the noisy mask and one from the image:
#
# $$w * [x_t;\, b] = w_x * x_t + w_b * b .$$

# %%
process = ShiftedDiffusion(linear_schedule(1000))
x_0 = 2 * masks - 1
noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))

def noisy(t, i=slice(None)):
    "x_t of plain diffusion for the phantoms i, t an int or one for each."
    t = torch.as_tensor(t).expand(len(x_0[i]))
    return process.q_sample(x_0[i], t, torch.zeros_like(x_0[i]), noise[i])


# %%
torch.manual_seed(0)
splice = nn.Conv2d(2, 64, 3, padding=1)
part = lambda x, k: F.conv2d(x, splice.weight[:, k:k + 1], padding=1).var((0, 2, 3)).mean().item()
ts = range(0, 1000, 111)
share = [part(images, 1) / (part(images, 1) + part(noisy(t), 0)) for t in ts]

# %%
fig, axes = plt.subplots(1, 5, figsize=(8, 2.6), layout="constrained", width_ratios=(1, 1, 1, 1, 3))
spliced = lambda t: splice(torch.cat([noisy(t), images], 1))[3, 2].detach()
pictures = {
    "image b": images[3, 0],
    "x_t, t = 500": noisy(500)[3, 0],
    "spliced, t = 0": spliced(0),
    "spliced, t = 500": spliced(500),
}
for axis, (title, picture) in zip(axes, pictures.items()):
    axis.imshow(picture, cmap="gray")
    axis.set_axis_off()
    axis.set_title(title, fontsize=7)
axes[4].plot(list(ts), share, marker="o")
axes[4].set(xlabel="t", ylabel="image's share of the variance", ylim=(0, None));


# %% [markdown]
# Of what leaves an untrained first layer only a small share is image: a radiograph in $[0, 1]$ varies far less than a mask in $[-1, 1]$ and its noise. Training can turn the image up, but it starts out drowned. The second limit of this layer is reach: a 3×3 window sees nine pixels of the image (the U-Net behind it sees more, [08](08_unet.ipynb)). How much of the mask can the best linear rule on a window explain?

# %%
def explained(window):
    "Share of the mask's variance that the best linear rule on a window of the image explains."
    x = (
        F.unfold(images.double(), window, padding=window // 2).transpose(1, 2).flatten(0, 1)
    )  # n*h*w k*k
    x, y = torch.cat([x, torch.ones_like(x[:, :1])], 1), masks.double().flatten()
    return 1 - ((y - x @ torch.linalg.lstsq(x, y[:, None]).solution[:, 0]).var() / y.var()).item()


windows = {k: explained(k) for k in (1, 3, 5, 7)}
print({f"{k}×{k}": round(r, 3) for k, r in windows.items()})
assert windows[1] < windows[3] < windows[5] < windows[7]

# %% [markdown]
# A larger window must explain more, and the gain is small. So there are two reasons, the second a weak one, for features of the image that are prepared *before* they meet the noise: several channels of them against the one noisy mask, and windows larger than three pixels. Section 6 asks whether a trained network agrees.
#
# ## 2 · The idea
#
# A vertebral edge is fine; a whole vertebra is coarse; on a child's film everything is smaller. One kernel size cannot be right for all. So the raw image passes three convolutions (*branches*) of 3×3, 5×5 and 7×7 pixels, and the module decides, *per channel and per image*, how much of each to keep. This is the selective kernel of SKNet (Li et al. 2019), moved to the front door. Line by line, for $C = 8$ channels. Eq. (11), the branches and their sum:
#
# $$\tilde b = \tilde A + \tilde B + \tilde C$$

# %%
torch.manual_seed(0)
convs = [nn.Conv2d(1, 8, k, padding=k // 2, padding_mode="circular") for k in (3, 5, 7)]
A, B, C = (conv(images) for conv in convs)  # b c h w
fused = A + B + C

# %% [markdown]
# Eq. (12), one number a channel, the descriptor $s_n = \frac{1}{HW}\sum_{i,j} \tilde b_n(i, j)$:

# %%
s = fused.mean((2, 3))  # b c

# %% [markdown]
# Eq. (13), $z = F_c(s)$: squeezed to $d$ numbers, batch norm, ELU:

# %%
compress, norm = nn.Linear(8, 4), nn.BatchNorm1d(4)  # d = 4
z = F.elu(norm(compress(s)))  # b d

# %% [markdown]
# Three rows of $d$ learned numbers $A_n, B_n, C_n$ for every channel $n$ (the paper's letters; not the branches, and the weight $b_n$ is not the image $b$), and a softmax over the three, so that the weights sum to one:
#
# $$a_n, b_n, c_n = \mathrm{softmax}(A_n z,\, B_n z,\, C_n z)$$

# %%
choose = nn.Linear(4, 3 * 8, bias=False)
a, b, c = rearrange(choose(z), "b (k c) -> k b c", k=3).softmax(0)

# %% [markdown]
# Eq. (14), $X_n = a_n \tilde A_n + b_n \tilde B_n + c_n \tilde C_n$:

# %%
X = sum(w[..., None, None] * branch for w, branch in zip((a, b, c), (A, B, C)))  # b c h w
torch.testing.assert_close(a + b + c, torch.ones(24, 8))
fig, axes = plt.subplots(1, 6, figsize=(6, 2.8), layout="constrained")
titles = [
    "b",
    r"$\tilde A_1$: 3×3",
    r"$\tilde B_1$: 5×5",
    r"$\tilde C_1$: 7×7",
    r"$\tilde b_1$",
    "$X_1$",
]
for axis, picture, title in zip(axes, (images[3], A[3], B[3], C[3], fused[3], X[3]), titles):
    axis.imshow(picture[0].detach(), cmap="gray")
    axis.set_axis_off()
    axis.set_title(title, fontsize=9)

# %% [markdown]
# ## 3 · The naive module sees nothing
#
# That was the paper at its word: the branches are convolutions, nothing else is said. Take stripes, and a plain grey of the same brightness, call it fog. What does $s$ know of them?

# %%
stripes = ((torch.arange(32) % 4 < 2).float()).expand(1, 1, 96, 32)
grey = torch.full_like(stripes, stripes.mean())
descriptor = lambda image, bend=lambda x: x: sum(bend(conv(image)) for conv in convs).mean((2, 3))
print("largest difference of s:", (descriptor(stripes) - descriptor(grey)).abs().max().item())
assert torch.allclose(descriptor(stripes), descriptor(grey), atol=1e-5)

# %% [markdown]
# The same for stripes and for fog! And it must be: averaging over the image and convolving are both linear, so the average of a convolved image is the average brightness times the sum of the kernel, plus the bias. *A linear branch makes the selection blind to everything but brightness.* (We padded in a circle so that it is exact; at borders a little leaks in.) The fix is a bend, a nonlinear function, before the average. SKNet has one in every branch, and the paper surely means
# the same block. We take ELU, the function that the paper names two lines later.

# %%
bend = F.elu
print(
    "the descriptors now differ by up to",
    round((descriptor(stripes, bend) - descriptor(grey, bend)).abs().max().item(), 2),
)
assert (descriptor(stripes, bend) - descriptor(grey, bend)).abs().max() > 0.05

# %% [markdown]
# ## 4 · The second trap: a batch of one
#
# The paper normalises the $d$ numbers over the batch and trains with a batch of *one*. The mean of one number is the number itself; the normalised value is always zero. PyTorch refuses rather than return zeros:

# %%
try:
    nn.BatchNorm1d(16)(torch.randn(1, 16))
except ValueError as error:
    print("ValueError:", error)


# %% [markdown]
# Two ways out. Ours by default: layer norm over the $d$ numbers of one image, for every batch size. For `norm = batch`, the paper's choice: a batch norm that with one image updates its running estimates and normalises by those, so that what is trained is what is used later.

# %%
#| exports
class DescriptorBatchNorm(nn.BatchNorm1d):
    "Batch norm that for a batch of one updates the running estimates and uses them."

    def forward(self, x: Tensor) -> Tensor:
        "(B, d) -> (B, d)."
        if not self.training or len(x) > 1:
            return super().forward(x)
        with torch.no_grad():
            gap = (x[0] - self.running_mean).float()
            self.running_mean += self.momentum * gap
            self.running_var += self.momentum * (gap ** 2 - self.running_var)
            self.num_batches_tracked += 1
        return F.batch_norm(x, self.running_mean.clone(), self.running_var.clone(), self.weight,
                            self.bias, False, 0.0, self.eps)


# %%
#| exports
def descriptor_norm(
    kind: str,  # "group": layer norm over the d numbers; "batch": the paper's batch norm
    dim: int,  # d
) -> nn.Module:
    "The normalisation of z in Eq. (13)."
    if kind not in ("group", "batch"):
        raise ValueError(f"norm must be 'group' or 'batch', not {kind!r}")
    return DescriptorBatchNorm(dim) if kind == "batch" else nn.LayerNorm(dim)


# %%
norm = descriptor_norm("batch", 3)
values = torch.randn(500, 1, 3, generator=torch.Generator().manual_seed(0)) * 2 + 5
out = torch.cat([norm(v) for v in values])
print(
    f"input mean 5, sd 2; wanted mean 0, sd 1; in 500 batches of one, after the first 100: "
    f"mean {out[100:].mean():+.2f}, sd {out[100:].std():.2f}"
)
assert out[100:].mean().abs() < 0.2 and (out[100:].std() - 1).abs() < 0.2


# %% [markdown]
# The spread stays a little under its target, because each value has already moved the estimates it is measured by.
#
# ## 5 · The module

# %%
#| exports
class MultiScaleFusion(nn.Module):
    "Eq. (11)-(14): three convolutions of the image, weighted per channel by what the image shows."

    def __init__(
        self,
        in_channels: int = 1,
        channels: int = 16,  # C
        dim: int = 16,  # d of Eq. (13)
        kernel_sizes: Sequence[int] = (3, 5, 7),  # odd
        norm: str = "group",  # of z: "group" is layer norm, "batch" the paper's batch norm
    ):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels, channels, k, padding=k // 2) for k in kernel_sizes)
        self.compress = nn.Linear(channels, dim)
        self.norm = descriptor_norm(norm, dim)
        self.choose = nn.Linear(dim, len(kernel_sizes) * channels, bias=False)  # rows A_n, B_n, C_n

    def look(self, image: Tensor) -> Tensor:
        "The branches A~, B~, C~: (B, in, H, W) -> (B, 3, C, H, W)."
        return torch.stack([F.elu(branch(image)) for branch in self.branches], 1)

    def weigh(self, branches: Tensor) -> Tensor:
        "Eq. (11)-(13) and the softmax: (B, 3, C, H, W) -> weights a, b, c as (B, 3, C)."
        fused = branches.sum(1)  # Eq. (11): b c h w
        s = fused.mean((2, 3))  # Eq. (12): b c
        z = F.elu(self.norm(self.compress(s)))  # Eq. (13): b d
        return rearrange(self.choose(z), "b (k c) -> b k c", k=branches.shape[1]).softmax(1)

    def select(self, image: Tensor) -> Tensor:
        "The weights of an image, (B, 3, C); they sum to one over the branches."
        return self.weigh(self.look(image))

    def forward(self, image: Tensor) -> Tensor:
        "Eq. (14): X (B, C, H, W)."
        branches = self.look(image)
        weights = self.weigh(branches)
        return (weights[..., None, None] * branches).sum(1)


# %%
torch.manual_seed(0)
msfm = MultiScaleFusion(1, 8, 4)
weights = msfm.select(images)
print(
    tuple(msfm(images).shape),
    "weights",
    tuple(weights.shape),
    "sums",
    weights.sum(1).min().item(),
    weights.sum(1).max().item(),
)
torch.testing.assert_close(weights.sum(1), torch.ones(24, 8))
torch.testing.assert_close(
    msfm(images), torch.einsum("bkc,bkchw->bchw", weights, msfm.look(images))
)
for norm in ("group", "batch"):
    assert MultiScaleFusion(1, 8, norm=norm)(images[:1]).shape == (1, 8, 96, 32)

# %% [markdown]
# Is it now awake? Before any training, in a copy that pads in a circle as in section 3, for at borders even linear branches see a little:

# %%
circle = copy.deepcopy(msfm)
for branch in circle.branches:
    branch.padding_mode = "circular"
straight = lambda image: torch.stack([branch(image) for branch in circle.branches], 1)
for name, look in {"with ELU": circle.look, "linear": straight}.items():
    gap = (circle.weigh(look(stripes)) - circle.weigh(look(grey))).abs().max().item()
    print(f"{name}: stripes against fog, largest difference {gap:.1e}")
    assert (gap > 1e-3) == (name == "with ELU")

# %% [markdown]
# At the left the weights for fog, then how phantoms, the same blurred, and stripes differ from it:

# %%
coarse = F.interpolate(images, scale_factor=0.25, mode="area")
kinds = {
    "phantoms": images,
    "blurred": F.interpolate(coarse, size, mode="bilinear"),
    "stripes": stripes,
}
fog = circle.select(grey)[0].detach()  # 3 c
fig, axes = plt.subplots(1, 4, figsize=(9, 2.3), layout="constrained")
for k, bottom in enumerate(fog.cumsum(0) - fog):
    axes[0].bar(range(8), fog[k], bottom=bottom, label=f"{3 + 2 * k}×{3 + 2 * k}")
for axis, (name, batch) in zip(axes[1:], kinds.items()):
    for k, change in enumerate(circle.select(batch).detach().mean(0) - fog):
        axis.bar(torch.arange(8) + 0.27 * (k - 1), change, 0.27)
    axis.axhline(0, color="black", lw=0.5)
    axis.set_title(f"{name} − fog")
    axis.sharey(axes[1])
for axis in axes:
    axis.set(xlabel="channel", xticks=range(8))
axes[0].set(title="fog", ylabel="weight")
axes[1].set_ylabel("change of weight")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center");

# %% [markdown]
# They differ, but by little (compare the scale of the changes with that of the weights), and for phantoms mostly because they are darker than this fog; only the stripes have its brightness. Blurring the phantoms hardly moves a bar. The choice is possible and must be learned.
#
# ### d, how many numbers may decide
#
# The paper calls $d$ "a hyperparameter that can be fine-tuned"; ours is `msfm_dim` in `settings.ini`. It sets what the choice costs and how freely the weights can differ. For $C = 16$, untrained, over twenty draws of the parameters:

# %%
print("msfm_dim of the laptop profile:", load_settings("laptop").msfm_dim)
for d in (1, 2, 4, 16, 64):
    torch.manual_seed(0)
    drawn = [MultiScaleFusion(1, 16, d) for _ in range(20)]
    w = torch.stack([m.select(images[:8]) for m in drawn])  # 20 b k c
    cost = sum(
        p.numel()
        for m in (drawn[0].compress, drawn[0].norm, drawn[0].choose)
        for p in m.parameters()
    )
    print(
        f"d = {d:2d}: {cost:5,d} parameters choose, weights {w.min():.2f} to {w.max():.2f}, "
        f"over images ± {w.std(1).mean():.4f}"
    )


# %% [markdown]
# With $d = 1$ all weights are equal (exercise 1). From $d = 2$ on, more numbers cost parameters and hardly change the range of the untrained weights.
#
# ## 6 · Does it pay at the door?
#
# A network that predicts $x_0$ from $x_t$ and the image, once with the image spliced in as one channel, once with $X$ of eight. Same U-Net but for its first layer, same films, same 130 steps; the test is $\hat x_0$ on eight unseen phantoms at every $t$.

# %%
class Denoiser(nn.Module):
    def __init__(self, eye, channels):
        super().__init__()
        self.eye, self.net = eye, UNet(1 + channels, channels=(8, 16, 24), time_dim=32)

    def forward(self, x_t, image, t):
        return self.net(torch.cat([x_t, self.eye(image)], 1), t)


def learn(net, steps=130):
    torch.manual_seed(1)
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(steps):
        i, t = torch.randint(16, (4,)), torch.randint(1000, (4,))
        loss = F.mse_loss(net(noisy(t, i), images[i], t), x_0[i])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.eval()


# %%
torch.manual_seed(0)
before = copy.deepcopy(msfm).select(images).detach()
nets = {"spliced": learn(Denoiser(nn.Identity(), 1)), "MSFM": learn(Denoiser(msfm, 8))}
after = msfm.select(images).detach()

# %%
ask = lambda net, t: net(noisy(t, slice(16, 24)), images[16:], torch.full((8,), t))
with torch.no_grad():
    curves = {
        name: [dice(ask(net, t) > 0, masks[16:]).mean().item() for t in ts]
        for name, net in nets.items()
    }
plt.figure(figsize=(5, 2.4))
for name, curve in curves.items():
    plt.plot(list(ts), curve, marker="o", label=name)
plt.xlabel("t")
plt.ylabel(r"Dice of $\hat x_0$, unseen")
plt.legend();

# %%
print({name: f"t = 0: {curve[0]:.3f}, t = 999: {curve[-1]:.3f}" for name, curve in curves.items()})
assert all(curve[0] > curve[-1] for curve in curves.values())  # less noise, better answer

# %% [markdown]
# Where there is little noise the mask can be read off $x_t$ and the image hardly matters; where there is nothing but noise, all depends on the image. Here MSFM does *not* pay: the splice is slightly ahead at every $t$. One seed and a short training are no ranking; [14_ablation](lab/ablation.ipynb) puts the question of the paper's Table 2 (with and without MSFM, with and without NSA) with several seeds. And the choice itself, before and after training:

# %%
fig, axes = plt.subplots(1, 2, figsize=(6.5, 2.4), layout="constrained", sharey=True)
for axis, w, title in zip(axes, (before, after), ("before", "after 130 steps")):
    axis.boxplot([w[:, k].flatten() for k in range(3)], tick_labels=["3×3", "5×5", "7×7"])
    axis.set_title(title)
axes[0].set_ylabel("weight")
print(
    f"over images, a weight varies by {after.std(0).mean():.4f} on average; "
    f"between channels by {after.mean(0).std():.3f}"
)
assert (after - before).abs().max() > 1e-3

# %% [markdown]
# ## 7 · Chest and loin, blurred and sharp
#
# A toy that has just been trained may not have learned to choose. So take the module of the network that travels with this package, trained on radiographs (see [real radiographs](lab/xray.ipynb)). When the X-ray set is at hand it looks at real test films, else at phantoms; the recorded output says which.

# %%
weights = load_file(
    Path(verdiff.__file__).parent / "weights" / "xray-384x128" / "model.safetensors"
)
trained = MultiScaleFusion(1, 16, 16)
trained.load_state_dict(
    {k.removeprefix("features."): v for k, v in weights.items() if k.startswith("features.")}
);

# %%
XRAY = find_xray()
source = (
    XRaySet(XRAY, "test", (384, 128))
    if XRAY
    else PhantomSet(split="test", size=(384, 128), n_training=64, n_test=8)
)
samples = [source[i] for i in range(8)]
print("real radiographs" if XRAY else "phantoms (the X-ray set is not here)")


def views(sample):
    "Thoracic and lumbar crop, then the whole film blurred, as it is, and sharpened: (1, 1, h, w) each."
    rows = sample.placement.points(sample.landmarks)[:, 1]
    top, cut, bottom = (
        round(v) for v in (rows.min(), rows[46:50].mean(), rows.max())
    )  # T1, T12 | L1, L5
    film = sample.image[None]
    blurred = F.avg_pool2d(film, 7, 1, 3, count_include_pad=False)
    return (
        film[..., top:cut, :],
        film[..., cut:bottom, :],
        blurred,
        film,
        (2 * film - blurred).clamp(0, 1),
    )


# %%
example = views(PhantomSet(split="test", n_training=64, n_test=8)[0])
fig, axes = plt.subplots(1, 5, figsize=(6, 2.6), layout="constrained")
kinds = ["thoracic", "lumbar", "blurred", "as it is", "sharpened"]
for axis, picture, kind in zip(axes, example, kinds):
    axis.imshow(picture[0, 0], cmap="gray", vmin=0, vmax=1)
    axis.set_axis_off()
    axis.set_title(kind, fontsize=9)

# %% [markdown]
# (The pictures show a phantom: radiographs of the set stay out of the repository.) The weights of all sixteen channels, mean of eight films; the bar is the whole film, the marks are the four other views:

# %%
with torch.no_grad():
    chosen = torch.stack(
        [torch.cat([trained.select(v) for v in views(s)]) for s in samples]
    )  # film view k c
mean = chosen.mean(0)
fig, axes = plt.subplots(3, 1, figsize=(7, 4.2), layout="constrained", sharex=True, sharey=True)
for k, axis in enumerate(axes):
    axis.bar(range(16), mean[3, k], color="0.85")
    for view, mark in zip((0, 1, 2, 4), "^vox"):
        axis.scatter(range(16), mean[view, k], marker=mark, s=22, label=kinds[view])
    axis.set_ylabel(f"{2 * k + 3}×{2 * k + 3}")
axes[2].set(xlabel="channel", xticks=range(16))
axes[0].legend(ncols=4, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.35));

# %%
apart = lambda i, j: (mean[i] - mean[j]).abs()
for i, j in ((0, 1), (2, 4)):
    most = apart(i, j).max(0).values.argmax().item()
    print(
        f"{kinds[i]} against {kinds[j]}: weights move by {apart(i, j).mean():.3f} on average, "
        f"{apart(i, j).max():.3f} at most "
        f"(channel {most}: {mean[i, :, most].numpy().round(2)} and "
        f"{mean[j, :, most].numpy().round(2)})"
    )
print(
    f"between channels of one film: ± {mean[3].std():.3f}; between films: "
    f"± {chosen[:, 3].std(0).mean():.3f}"
)
assert apart(0, 1).max() > 1e-3

# %% [markdown]
# What a *channel* is decides most; each settles on its own mix of kernel sizes. Chest or loin moves the weights a little. Sharpness, the very thing that
# kernels of different size see differently, moves them least: $s$ is a mean over the film, and blurring hardly changes a mean, bent or not. The paper's figure suggests a module that looks anew at every radiograph; the trained one is mostly a bank of learned kernels of mixed size with a fine adjustment to the part of the body it sees.
#
# Its output, the first eight channels, counted from 0 as in the bars:

# %%
with torch.no_grad():
    X = trained(example[3])[0]
fig, axes = plt.subplots(1, 9, figsize=(7.5, 2.8), layout="constrained")
for axis, picture, title in zip(
    axes, [example[3][0, 0], *X[:8]], ["b", *(f"$X_{{{n}}}$" for n in range(8))]
):
    axis.imshow(picture, cmap="gray")
    axis.set_axis_off()
    axis.set_title(title, fontsize=9)

# %% [markdown]
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | branch | "convolution" | convolution and ELU | linear branches make the selection blind to all but brightness |
# | norm of $z$ | batch norm, batch of 1 | layer norm; a batch norm that survives a batch of one in `paper` | PyTorch refuses the other |
# | $z = F_c(\tilde b)$ | from $\tilde b$ | from $s$ | Eq. (12) would otherwise be unused |
# | $d$ | "hyperparameter" | 16 (`msfm_dim`) | as many as channels on the laptop |
# | place | before the conditional U-Net; fused with $x_t$ before the diffusion U-Net | the same | [11](11_model.ipynb) |
#
# ## Exercises
#
# **1 · Predict.** `dim=1`: one number $z$ decides about all channels. What weights does an untrained module give then?
#
# <details><summary>Answer</summary>
#
# One third each, for every image: the layer norm of a single number is zero, so $A_n z = B_n z = C_n z = 0$. It is the trap of the batch of one again, in another dimension. With $d = 2$ the norm leaves only a sign, a switch of two positions; from $d = 3$ on the choice is free.
#
# </details>

# %%
torch.manual_seed(0)
one, two = (MultiScaleFusion(1, 8, d).select(torch.cat([stripes, grey])).detach() for d in (1, 4))
torch.testing.assert_close(one, torch.full_like(one, 1 / 3))
assert not torch.allclose(two[0], two[1]) and two.std() > 0.01

# %% [markdown]
# **2 · Change.** Use the module with a single kernel size. What are the weights, and what is it then?
#
# <details><summary>Answer</summary>
#
# All one: softmax over a single entry. It is a plain convolution followed by ELU.
#
# </details>

# %%
single = MultiScaleFusion(1, 8, kernel_sizes=(5,))
assert (single.select(images) == 1).all()
torch.testing.assert_close(single(images), F.elu(single.branches[0](images)))

# %% [markdown]
# **3 · Implement.** Show that with *fixed* weights and no ELU the whole module would be one 7×7 convolution: build that kernel.
#
# <details><summary>Answer</summary>
#
# Pad the smaller kernels with zeros to 7×7 and add them with the weights. That is a second reason for the bend.
#
# </details>

# %%
w = msfm.select(images[:1])[0].detach()  # 3 c
kernel = sum(
    w[k, :, None, None, None] * F.pad(b.weight, [(7 - b.kernel_size[0]) // 2] * 4)
    for k, b in enumerate(msfm.branches)
)
bias = sum(w[k] * b.bias for k, b in enumerate(msfm.branches))
linear = sum(w[k, :, None, None] * b(images[:1]) for k, b in enumerate(msfm.branches))
torch.testing.assert_close(
    F.conv2d(images[:1], kernel, bias, padding=3), linear, atol=1e-5, rtol=1e-4
)

# %% [markdown]
# Next: [10 · Noise semantic adapter](10_nsa.ipynb), which looks at the guess to know where to look closely.
