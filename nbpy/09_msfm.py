# %% [markdown]
# # 09 · Multi-scale fusion
# > Three pairs of glasses, and a small mind that chooses between them for every radiograph

# %% [markdown]
# [08](08_unet.ipynb) gave both networks the image as one grey channel. What should the image contribute? You will see what is lost when image and noisy mask are simply put side by side, build the multi-scale fusion module (MSFM) of Section 2.3 equation by equation, find two places where it cannot work as written (one shows nothing, the other crashes), mend both, and look at what a trained module chooses. One minute on a laptop, no GPU. Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/09_msfm.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    line = 'pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"'
    get_ipython().system(line)  # noqa: F821

# %%
#| default_exp networks.msfm

# %%
#| exports
#| code-fold: true
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# %%
#| code-fold: true
import copy
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats
from safetensors.torch import load_file

import verdiff
from verdiff.data.packed import pack
from verdiff.data.phantom_set import PhantomSet
from verdiff.data.xray import XRaySet
from verdiff.diffusion.forward import ShiftedDiffusion, linear_schedule
from verdiff.io.download import find_xray
from verdiff.metrics import dice
from verdiff.networks.unet import UNet
from verdiff.settings import load_settings

# %%
#| code-fold: true
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)
size = 96, 32
phantoms = PhantomSet(size=size, n_training=24, n_test=8)
phantoms = pack(phantoms, progress=False)
images = phantoms.images.float() / 255  # 24 1 96 32
masks = (phantoms.masks > 0).float()


def row_of(pictures, width=7):
    "Named pictures side by side."
    fig, axes = plt.subplots(1, len(pictures), figsize=(width, 2.8),
                             layout="constrained")
    for axis, (title, picture) in zip(axes, pictures.items()):
        axis.imshow(picture.detach(), cmap="gray")
        axis.set_axis_off()
        axis.set_title(title, fontsize=9)


# %% [markdown]
# ## 1 · The naive way: side by side
#
# The diffusion U-Net needs the image. The obvious thing is to give it the noisy mask and the image as two channels; the paper calls that "coarsely spliced" and says that it loses features. What exactly? A convolution of the two channels is a *sum*, one part from the noisy mask and one from the image: $w * [x_t;\, b] = w_x * x_t + w_b * b$.

# %%
process = ShiftedDiffusion(linear_schedule(1000))
x_0 = 2 * masks - 1
torch.manual_seed(0)
noise = torch.randn(x_0.shape)


def noisy(t, i=slice(None)):
    "x_t of plain diffusion for the phantoms i, t an int or one for each."
    t, nothing = torch.as_tensor(t), torch.zeros_like(x_0[i])
    return process.q_sample(x_0[i], t.expand(len(nothing)), nothing, noise[i])


# %%
splice = nn.Conv2d(2, 64, 3, padding=1)


def part(x, k):
    "Variance that channel k brings into the splice."
    y = F.conv2d(x, splice.weight[:, k:k + 1], padding=1)
    return y.var((0, 2, 3)).mean().item()


# %%
ts, from_image = range(0, 1000, 111), part(images, 1)
share = [from_image / (from_image + part(noisy(t), 0)) for t in ts]
print(f"the image's share: {share[0]:.3f} at t = 0, {share[-1]:.3f} at t = 999")

# %%
#| code-fold: true
#| fig-alt: "A phantom radiograph, its noisy mask at t = 500, and one channel of the untrained first layer at t = 0 and t = 500. At t = 0 the channel looks like the mask, at t = 500 like noise; the radiograph is hardly seen in either."
spliced = lambda t: splice(torch.cat([noisy(t), images], 1))[3, 2]
row_of({"image b": images[3, 0], "x_t, t = 500": noisy(500)[3, 0],
        "spliced, t = 0": spliced(0), "spliced, t = 500": spliced(500)}, 5)

# %% [markdown]
# Of what leaves an untrained first layer only a small share is image: a radiograph in $[0, 1]$ varies far less than a mask in $[-1, 1]$ and its noise. Training can turn the image up, but it starts out drowned. The second limit is reach: a 3×3 window sees nine pixels of the image. How much of the mask can the best linear rule on a window explain?

# %%
def explained(window):
    "Share of the mask's variance that the best linear rule explains."
    x = F.unfold(images.double(), window, padding=window // 2)
    x = rearrange(x, "b k n -> (b n) k")
    x, y = F.pad(x, (0, 1), value=1), masks.double().flatten()
    rule = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    return 1 - ((y - x @ rule).var() / y.var()).item()


# %%
windows = {k: explained(k) for k in (1, 3, 5, 7)}
print({f"{k}×{k}": round(r, 3) for k, r in windows.items()})
assert windows[1] < windows[3] < windows[5] < windows[7]

# %% [markdown]
# A larger window must explain more, and the gain is small. Two reasons, the second a weak one, for features of the image that are prepared *before* they meet the noise: several channels of them, and windows larger than three pixels. Section 6 asks whether a trained network agrees.
#
# ## 2 · The idea
#
# A vertebral edge is fine; a whole vertebra is coarse; on a child's radiograph everything is smaller. One kernel size cannot be right for all. So the raw image passes three convolutions (*branches*) of 3×3, 5×5 and 7×7 pixels, and the module decides, *per channel and per image*, how much of each to keep. This is the selective kernel of SKNet (Li et al. 2019), moved to the front door. The letters $A, B, C, a, b, c, s, z$ are the paper's, and on this page only ($b_n$ is a weight, $b$ without index the image). Eq. (11), the branches and their sum, for $C = 8$ channels:
#
# $$\tilde b = \tilde A + \tilde B + \tilde C$$

# %%
torch.manual_seed(0)
convs = [nn.Conv2d(1, 8, k, padding=k // 2, padding_mode="circular")
         for k in (3, 5, 7)]
branches = [conv(images) for conv in convs]  # b c h w, three times
fused = sum(branches)

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
# Three rows of $d$ learned numbers $A_n, B_n, C_n$ for every channel $n$, and a softmax over the three, so that the weights sum to one: $a_n, b_n, c_n = \mathrm{softmax}(A_n z,\, B_n z,\, C_n z)$.

# %%
choose = nn.Linear(4, 3 * 8, bias=False)
weights = rearrange(choose(z), "b (k c) -> k b c", k=3).softmax(0)
torch.testing.assert_close(weights.sum(0), torch.ones(24, 8))

# %% [markdown]
# Eq. (14), $X_n = a_n \tilde A_n + b_n \tilde B_n + c_n \tilde C_n$:

# %%
X = sum(w[..., None, None] * y for w, y in zip(weights, branches))  # b c h w

# %%
#| code-fold: true
#| fig-alt: "The phantom, its first channel after the 3×3, 5×5 and 7×7 branch, their sum and the weighted sum X: grey pictures of one spine, edges stressed differently by each kernel size."
names = ("b", r"$\tilde A_1$: 3×3", r"$\tilde B_1$: 5×5",
         r"$\tilde C_1$: 7×7", r"$\tilde b_1$", "$X_1$")
row_of({name: y[3, 0] for name, y in zip(
    names, (images, *branches, fused, X))}, 6)

# %% [markdown]
# ## 3 · The naive module sees nothing
#
# That was the paper at its word: the branches are convolutions, nothing else is said. Take stripes, and a plain grey of the same brightness, call it fog. What does $s$ know of them?

# %%
def descriptor(image, nonlinear=lambda y: y):
    return sum(nonlinear(conv(image)) for conv in convs).mean((2, 3))


stripes = (torch.arange(32) % 4 < 2).float().expand(1, 1, 96, 32)
fog = torch.full_like(stripes, stripes.mean())

# %%
gap = (descriptor(stripes) - descriptor(fog)).abs().max().item()
print(f"largest difference of s: {gap:.1e}")
assert gap < 1e-5

# %% [markdown]
# The same for stripes and for fog! And it must be: averaging over the image and convolving are both linear, so the average of a convolved image is the average brightness times the sum of the kernel, plus the bias. *A linear branch makes the selection blind to everything but brightness.* (Padding in a circle makes it exact.) The fix is a nonlinear function before the average. SKNet has one in every branch, and the paper surely means the same block. We take ELU, the function that the paper names two lines later.

# %%
gap = (descriptor(stripes, F.elu) - descriptor(fog, F.elu)).abs().max().item()
print(f"with ELU they differ by up to {gap:.2f}")
assert gap > 0.05

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
# (In [08](08_unet.ipynb) batch norm of a batch of one had all pixels to average; here it has one number.) Two ways out. Ours by default: layer norm over the $d$ numbers of one image, for every batch size. For `norm = batch`, the paper's choice: a batch norm that with one image updates its running estimates and normalises by those, so that what is trained is what is used later.

# %%
#| exports
class DescriptorBatchNorm(nn.BatchNorm1d):
    "Batch norm; a batch of one updates the running estimates and uses them."

    def forward(self, x: Tensor) -> Tensor:
        "(B, d) -> (B, d)."
        if not self.training or len(x) > 1:
            return super().forward(x)
        with torch.no_grad():
            gap = (x[0] - self.running_mean).float()
            self.running_mean += self.momentum * gap
            self.running_var += self.momentum * (gap**2 - self.running_var)
            self.num_batches_tracked += 1
        mean, var = self.running_mean.clone(), self.running_var.clone()
        return F.batch_norm(x, mean, var, self.weight, self.bias, eps=self.eps)


# %%
norm = DescriptorBatchNorm(3)
torch.manual_seed(0)
values = torch.randn(500, 1, 3) * 2 + 5  # 500 batches of one
out = torch.cat([norm(v) for v in values])[100:]
print(f"wanted mean 0, sd 1; got {out.mean():+.2f}, {out.std():.2f}")
assert out.mean().abs() < 0.2 and (out.std() - 1).abs() < 0.2


# %%
#| exports
def descriptor_norm(kind: str, dim: int) -> nn.Module:
    "Of z in Eq. (13): 'group' is layer norm, 'batch' the paper's; ValueError."
    if kind not in ("group", "batch"):
        raise ValueError(f"norm must be 'group' or 'batch', not {kind!r}")
    return DescriptorBatchNorm(dim) if kind == "batch" else nn.LayerNorm(dim)


# %%
print(descriptor_norm("group", 16), descriptor_norm("batch", 16))


# %% [markdown]
# ## 5 · The module

# %%
#| exports
class MultiScaleFusion(nn.Module):
    "Eq. (11)-(14): convolutions of the image, weighted by what it shows."

    def __init__(self, in_channels: int = 1, channels: int = 16, dim: int = 16,
                 kernel_sizes: Sequence[int] = (3, 5, 7), norm: str = "group"):
        super().__init__()  # channels: C; dim: d of Eq. (13)
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels, channels, k, padding=k // 2)
            for k in kernel_sizes)
        self.compress = nn.Linear(channels, dim)
        self.norm = descriptor_norm(norm, dim)
        # the rows A_n, B_n, C_n
        self.choose = nn.Linear(dim, len(kernel_sizes) * channels, bias=False)

    def branch_outputs(self, image: Tensor) -> Tensor:
        "A~, B~, C~ with ELU: (B, in, H, W) -> (B, 3, C, H, W)."
        return torch.stack([F.elu(conv(image)) for conv in self.branches], 1)

    def branch_weights(self, outputs: Tensor) -> Tensor:
        "a, b, c: (B, 3, C, H, W) -> (B, 3, C); they sum to one over the 3."
        fused = outputs.sum(1)  # Eq. (11): b c h w
        s = fused.mean((2, 3))  # Eq. (12): b c
        z = F.elu(self.norm(self.compress(s)))  # Eq. (13): b d
        scores = self.choose(z)  # b 3*c
        return rearrange(scores, "b (k c) -> b k c", c=len(s[0])).softmax(1)

    def select(self, image: Tensor) -> Tensor:
        "The weights that an image gets, (B, 3, C)."
        return self.branch_weights(self.branch_outputs(image))

    def forward(self, image: Tensor) -> Tensor:
        "Eq. (14): (B, in, H, W) -> X (B, C, H, W)."
        outputs = self.branch_outputs(image)
        weights = self.branch_weights(outputs)
        return (weights[..., None, None] * outputs).sum(1)


# %%
torch.manual_seed(0)
msfm = MultiScaleFusion(1, 8, 4)
w = msfm.select(images)
by_hand = torch.einsum("bkc,bkchw->bchw", w, msfm.branch_outputs(images))
torch.testing.assert_close(msfm(images), by_hand)
print("X", tuple(by_hand.shape), "weights", tuple(w.shape))

# %% [markdown]
# Is it now awake? Before any training, in a copy that pads in a circle as in section 3:

# %%
circle = copy.deepcopy(msfm)
for branch in circle.branches:
    branch.padding_mode = "circular"
gap = (circle.select(stripes) - circle.select(fog)).abs().max().item()
print(f"weights for stripes against fog, largest difference {gap:.1e}")
assert gap > 1e-3

# %% [markdown]
# Awake, if only just: a few thousandths. The choice is possible and must be learned.
#
# **$d$, how many numbers may decide.** The paper calls $d$ "a hyperparameter that can be fine-tuned"; ours is `msfm_dim` in `settings.ini`. For $C = 16$, untrained, over twenty draws of the parameters:

# %%
print("msfm_dim of the laptop profile:", load_settings("laptop").msfm_dim)
for d in (1, 2, 4, 16, 64):
    torch.manual_seed(0)
    w = torch.stack([MultiScaleFusion(1, 16, d).select(images[:8])
                     for _ in range(20)])  # 20 b k c
    print(f"d = {d:2d}: weights {w.min():.2f} to {w.max():.2f}, "
          f"over images ± {w.std(1).mean():.4f}")


# %% [markdown]
# With $d = 1$ all weights are equal (exercise 1). From $d = 2$ on, more numbers hardly change the range of the untrained weights.
#
# ## 6 · Does it pay at the door?
#
# A network that predicts $x_0$ from $x_t$ and the image, once with the image spliced in as one channel, once with $X$ of eight. Same U-Net but for its first layer, same phantoms, same 130 steps; the test is $\hat x_0$ on eight unseen phantoms at every $t$.

# %%
class Denoiser(nn.Module):
    def __init__(self, eye, channels):
        super().__init__()
        self.eye = eye
        self.net = UNet(1 + channels, channels=(8, 16, 24), time_dim=32)

    def forward(self, x_t, image, t):
        return self.net(torch.cat([x_t, self.eye(image)], 1), t)


# %%
def learn(net, steps=130):
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(steps):
        i, t = torch.randint(16, (4,)), torch.randint(1000, (4,))
        loss = F.mse_loss(net(noisy(t, i), images[i], t), x_0[i])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


# %%
torch.manual_seed(0)
nets = {"spliced": learn(Denoiser(nn.Identity(), 1)),
        "MSFM": learn(Denoiser(copy.deepcopy(msfm), 8))}


# %%
@torch.no_grad()
def curve(net):
    "Dice of the predicted x_0 on unseen phantoms at each t."
    answers = [net(noisy(t, slice(16, 24)), images[16:], torch.full((8,), t))
               for t in ts]
    return [dice(x > 0, masks[16:]).mean().item() for x in answers]


# %%
curves = {name: curve(net) for name, net in nets.items()}
for name, c in curves.items():
    print(f"{name:8s} Dice {c[0]:.3f} at t = 0, {c[-1]:.3f} at t = 999")
    assert c[0] > c[-1]  # less noise, better answer

# %%
#| code-fold: true
#| fig-alt: "Dice of the predicted x_0 over t for the spliced network and the one with MSFM: both fall from nearly one at t = 0 to about 0.7 at t = 999, the spliced one slightly above."
plt.figure(figsize=(5, 2.4))
for name, c in curves.items():
    plt.plot(list(ts), c, marker="o", label=name)
plt.xlabel("t")
plt.ylabel(r"Dice of $\hat x_0$, unseen")
plt.legend();

# %% [markdown]
# Where there is little noise the mask can be read off $x_t$ and the image hardly matters; where there is nothing but noise, all depends on the image. Here MSFM does *not* pay: the splice is ahead. One seed and a short training are no ranking; the [ablation](lab/ablation.ipynb) puts the question of the paper's Table 2 (with and without MSFM, with and without NSA) with several seeds.
#
# ## 7 · Chest and lumbar spine, blurred and sharp
#
# A module trained for a minute may not have learned to choose. So take the module of the network that travels with this package, trained on radiographs ([the laboratory](lab/xray.ipynb)). Where the X-ray set is at hand (SpineWeb set 16, AASCE 2019) it looks at eight of its test radiographs, else at phantoms; the output says which.

# %%
folder = Path(verdiff.__file__).parent / "weights" / "xray-384x128"
file, start = load_file(folder / "model.safetensors"), "features."
trained = MultiScaleFusion(1, 16, 16)
trained.load_state_dict({k.removeprefix(start): v for k, v in file.items()
                         if k.startswith(start)});

# %%
XRAY, large = find_xray(), (384, 128)
test = PhantomSet(split="test", size=large, n_training=64, n_test=8)
source = XRaySet(XRAY, "test", large) if XRAY else test
samples = [source[i] for i in range(8)]
print("radiographs" if XRAY else "phantoms (the X-ray set is not here)")


# %%
def views(sample):
    "Thoracic and lumbar part; the whole blurred, as it is, sharpened."
    y = sample.placement.points(sample.landmarks)[:, 1]  # T1-T12, L1-L5
    top, cut, end = (round(v) for v in (y.min(), y[46:50].mean(), y.max()))
    whole = sample.image[None]
    blurred = F.avg_pool2d(whole, 7, 1, 3, count_include_pad=False)
    sharp = (2 * whole - blurred).clamp(0, 1)
    return (whole[..., top:cut, :], whole[..., cut:end, :], blurred, whole,
            sharp)


# %%
kinds = ["thoracic", "lumbar", "blurred", "as it is", "sharpened"]
with torch.no_grad():
    chosen = torch.stack([torch.cat([trained.select(v) for v in views(s)])
                          for s in samples])  # sample view k c
mean = chosen.mean(0)

# %%
for i, j in ((0, 1), (2, 4)):
    apart = (mean[i] - mean[j]).abs()
    print(f"{kinds[i]} against {kinds[j]}: weights move by "
          f"{apart.mean():.3f} on average, {apart.max():.3f} at most")
print(f"between channels ± {mean[3].std():.3f}, "
      f"between radiographs ± {chosen[:, 3].std(0).mean():.3f}")
assert (mean[0] - mean[1]).abs().max() > 1e-3

# %% [markdown]
# The weights of all sixteen channels, mean of the eight; the bar is the whole image, the marks are the four other views:

# %%
#| code-fold: true
#| fig-alt: "Three rows of sixteen bars, the weights of the 3×3, 5×5 and 7×7 kernels by channel: they differ greatly from channel to channel. The marks for thoracic, lumbar, blurred and sharpened lie nearly all on the ends of the bars."
fig, axes = plt.subplots(3, 1, figsize=(7, 4.2), layout="constrained",
                         sharex=True, sharey=True)
for k, axis in enumerate(axes):
    axis.bar(range(16), mean[3, k], color="0.85")
    for view, mark in zip((0, 1, 2, 4), "^vox"):
        axis.scatter(range(16), mean[view, k], marker=mark, s=22,
                     label=kinds[view])
    axis.set_ylabel(f"{2 * k + 3}×{2 * k + 3}")
axes[2].set(xlabel="channel", xticks=range(16))
axes[0].legend(ncols=4, fontsize=8, loc="upper center",
               bbox_to_anchor=(0.5, 1.35));

# %% [markdown]
# What a *channel* is decides most; each settles on its own mix of kernel sizes. Chest or lumbar spine moves the weights a little. Sharpness, the very thing that kernels of different size see differently, moves them least: $s$ is a mean over the image, and blurring hardly changes a mean, nonlinear or not. The trained module is mostly a bank of learned kernels of mixed size with a fine adjustment to the part of the body it sees. Its output for a phantom, eight of sixteen channels:

# %%
#| code-fold: true
#| fig-alt: "A phantom and eight channels of the trained module's output: some bright, some dark, some with the edges of the vertebrae drawn out, some nearly flat."
whole = test[0].image[None]
X = trained(whole)[0]
row_of({"b": whole[0, 0], **{f"$X_{{{n}}}$": X[n] for n in range(8)}}, 7.5)

# %% [markdown]
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | branch | "convolution" | convolution and ELU | linear branches make the selection blind to all but brightness |
# | norm of $z$ | batch norm, batch of 1 | layer norm; a batch norm that survives a batch of one in `paper` | PyTorch refuses the other |
# | $z = F_c(\tilde b)$ | from $\tilde b$ | from $s$ | Eq. (12) would otherwise be unused |
# | $d$ | "hyperparameter" | 16 (`msfm_dim`) | as many as channels on the laptop |
#
# ## Exercises
#
# **1 · Predict.** `dim=1`: one number $z$ decides about all channels. What weights does an untrained module give then, and why for every image?

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# One third each, for every image: the layer norm of a single number is zero, so $A_n z = B_n z = C_n z = 0$. It is the trap of the batch of one again, in another dimension. With $d = 2$ the norm leaves only a sign, a switch of two positions; from $d = 3$ on the choice is free.

# %%
#| code-fold: true
torch.manual_seed(0)
one = MultiScaleFusion(1, 8, 1).select(images)
torch.testing.assert_close(one, torch.full_like(one, 1 / 3))

# %% [markdown]
# </details>
#
# **2 · Implement.** Show that with *fixed* weights and no ELU the whole module would be one 7×7 convolution: build that kernel from `msfm.branches` and `msfm.select(images[:1])[0]`.

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# Pad the smaller kernels with zeros to 7×7 and add them with the weights. That is a second reason for the ELU.

# %%
#| code-fold: true
w = msfm.select(images[:1])[0]  # 3 c
pad = lambda k: F.pad(k, [(7 - k.shape[-1]) // 2] * 4)
kernel = sum(w[k, :, None, None, None] * pad(conv.weight)
             for k, conv in enumerate(msfm.branches))
bias = sum(w[k] * conv.bias for k, conv in enumerate(msfm.branches))
linear = sum(w[k, :, None, None] * conv(images[:1])
             for k, conv in enumerate(msfm.branches))
torch.testing.assert_close(F.conv2d(images[:1], kernel, bias, padding=3),
                           linear, atol=1e-5, rtol=1e-4)

# %% [markdown]
# </details>
#
# **3 · Diagnose (hard).** Somebody initialises the module "neutrally": the rows $A_n, B_n, C_n$ all zero, so that training starts from equal weights. After one backward pass, which parameters have no gradient at all? Does the module ever learn to choose?

# %%
neutral = MultiScaleFusion(1, 8, 4)
nn.init.zeros_(neutral.choose.weight)
(neutral(images) ** 2).mean().backward()

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# `compress` and `norm`: what they do passes through the zeros of `choose` and arrives as nothing. `choose` itself has a gradient, so one step later its rows are no longer zero and the others wake up. A zero layer delays what stands *before* it by one step; two zero layers in a row would sleep for ever. [11](11_model.ipynb) uses one on purpose.

# %%
#| code-fold: true
asleep = {name.split(".")[0] for name, p in neutral.named_parameters()
          if not p.grad.any()}
assert asleep == {"compress", "norm"} and neutral.choose.weight.grad.any()

# %% [markdown]
# </details>
#
# Both networks now have an eye. **Where should it look?** The guess of the mask itself may tell: [10 · Noise semantic adapter](10_nsa.ipynb).
