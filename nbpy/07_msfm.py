# %% [markdown]
# # 07 · Multi-scale fusion
# > Three pairs of glasses, and a small mind that chooses between them for every radiograph
#
# You will build the module of Section 2.3 equation by equation, find two places where it cannot work as written (one shows nothing, the other crashes), mend both, and watch what it learns to choose. Half a minute on a laptop.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/07_msfm.ipynb)

# %%
#| default_exp msfm

# %%
#| eval: false
# !pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"  # only on Colab

# %%
#| export
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# %%
import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats
from verdiff.data import draw_phantom, landmarks_to_mask
from verdiff.metrics import dice
from verdiff.unet import ConditionalUNet

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)
size = 96, 32
films = [draw_phantom(i) for i in range(24)]
images = torch.cat([F.interpolate(torch.from_numpy(f.image.copy()).float()[None, None] / 255, size, mode="area") for f in films])
masks = torch.stack([torch.from_numpy(landmarks_to_mask(f.landmarks / 6, *size)).float()[None] for f in films])

# %% [markdown]
# ## 1 · The idea
#
# A vertebral edge is fine; a whole vertebra is coarse; on a child's film everything is smaller. One kernel size cannot be right for all. So the raw image passes three convolutions of 3×3, 5×5 and 7×7 pixels side by side (Eq. 11),
#
# $$\tilde b = \tilde A + \tilde B + \tilde C,$$
#
# and then something decides, *per channel and per image*, how much of each to keep. This is the selective kernel of SKNet (Li et al. 2019), moved to the front door. Four equations, four lines:
#
# $$s_n = \frac{1}{HW}\sum_{i,j} \tilde b_n(i, j) \qquad z = F_c(s) \qquad a_n, b_n, c_n = \mathrm{softmax}(A_n z,\, B_n z,\, C_n z) \qquad X_n = a_n \tilde A_n + b_n \tilde B_n + c_n \tilde C_n$$
#
# (Eq. 12, 13, the softmax, and 14). $F_c$ squeezes the $C$ averages into $d$ numbers, with batch norm and ELU.
#
# ## 2 · The naive module sees nothing
#
# Take it at its word: the branches are convolutions, nothing else is said. Two images: stripes, and a plain grey of the same brightness.

# %%
class Naive(nn.Module):
    def __init__(self, channels=8, d=4):
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(1, channels, k, padding=k // 2, padding_mode="circular") for k in (3, 5, 7))
        self.compress, self.choose = nn.Linear(channels, d), nn.Linear(d, 3 * channels, bias=False)

    def select(self, image):
        s = sum(branch(image) for branch in self.branches).mean((2, 3))  # b c
        return rearrange(self.choose(F.elu(self.compress(s))), "b (k c) -> b k c", k=3).softmax(1)


torch.manual_seed(0)
stripes = ((torch.arange(32) % 4 < 2).float()).expand(1, 1, 96, 32)
grey = torch.full_like(stripes, stripes.mean())
naive = Naive()
print("largest difference of the weights:", (naive.select(stripes) - naive.select(grey)).abs().max().item())
assert torch.allclose(naive.select(stripes), naive.select(grey), atol=1e-5)

# %% [markdown]
# The weights are the same for stripes and for fog! And they must be: averaging over the image and convolving are both linear, so the average of a convolved image is the average brightness times the sum of the kernel. *A linear branch makes the selection blind to everything but brightness.* (We padded in a circle so that it is exact; at borders a little leaks in.) The fix is a bend before the average. SKNet has one in every branch, and the paper surely means
# the same block. We take ELU, the function that the paper names two lines later.

# %%
bent = sum(F.elu(4 * branch(stripes)) for branch in naive.branches).mean((2, 3))
flat = sum(F.elu(4 * branch(grey)) for branch in naive.branches).mean((2, 3))
print("the averages now differ by up to", round((bent - flat).abs().max().item(), 2))
assert (bent - flat).abs().max() > 0.05

# %% [markdown]
# ## 3 · The second trap: a batch of one
#
# The paper normalises the $d$ numbers over the batch and trains with a batch of *one*. The mean of one number is the number itself; the normalised value is always zero. PyTorch refuses rather than return zeros:

# %%
try:
    nn.BatchNorm1d(16)(torch.randn(1, 16))
except ValueError as error:
    print("ValueError:", error)

# %% [markdown]
# Two ways out. Ours by default: layer norm over the $d$ numbers of one image, for every batch size. For `norm = batch`, the paper's choice, a batch norm that with one image updates its running estimates and normalises by those, so that what is trained is what is used later.

# %%
#| export
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
norm, values = DescriptorBatchNorm(3), torch.randn(500, 1, 3, generator=torch.Generator().manual_seed(0)) * 2 + 5
out = torch.cat([norm(v) for v in values])
print(f"input mean 5, sd 2; after 500 batches of one: mean {out[100:].mean():+.2f}, sd {out[100:].std():.2f}")
assert out[100:].mean().abs() < 0.2 and (out[100:].std() - 1).abs() < 0.2

# %% [markdown]
# ## 4 · The module

# %%
#| export
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
        if norm not in ("group", "batch"):
            raise ValueError(f"norm must be 'group' or 'batch', not {norm!r}")
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels, channels, k, padding=k // 2) for k in kernel_sizes)
        self.compress = nn.Linear(channels, dim)
        self.norm = DescriptorBatchNorm(dim) if norm == "batch" else nn.LayerNorm(dim)
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
print(tuple(msfm(images).shape), "weights", tuple(weights.shape), "sums", weights.sum(1).min().item(), weights.sum(1).max().item())
torch.testing.assert_close(weights.sum(1), torch.ones(24, 8))
torch.testing.assert_close(msfm(images), torch.einsum("bkc,bkchw->bchw", weights, msfm.look(images)))
for norm in ("group", "batch"):
    assert MultiScaleFusion(1, 8, norm=norm)(images[:1]).shape == (1, 8, 96, 32)

# %% [markdown]
# Is it now awake? The weights of a dozen phantoms, before any training; a straight line over the images would mean that nothing is selected.

# %%
coarse = F.interpolate(images, scale_factor=0.25, mode="area")
kinds = {"phantoms": images, "blurred": F.interpolate(coarse, size, mode="bilinear"), "stripes": stripes.expand(24, -1, -1, -1), "fog": grey.expand(24, -1, -1, -1)}
fig, axes = plt.subplots(1, 4, figsize=(8, 2.2), layout="constrained", sharey=True)
for axis, (name, batch) in zip(axes, kinds.items()):
    w = msfm.select(batch).detach().mean(0)
    axis.bar(range(8), w[0], label="3×3"); axis.bar(range(8), w[1], bottom=w[0], label="5×5"); axis.bar(range(8), w[2], bottom=w[0] + w[1], label="7×7")
    axis.set(title=name, xlabel="channel", xticks=range(8))
axes[0].set_ylabel("weight"); fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
print("stripes against fog, largest difference:", (msfm.select(stripes) - msfm.select(grey)).abs().max().item())
assert (msfm.select(stripes) - msfm.select(grey)).abs().max() > 1e-3

# %% [markdown]
# ## 5 · What it learns to choose
#
# We put the module before the conditional U-Net, where the paper has it, and train both for a few hundred steps; beside it a plain 3×3 convolution of the same width, which is what our ablation switches to.

# %%
def learn(eye, steps=200):
    torch.manual_seed(1)
    net = nn.Sequential(eye, ConditionalUNet(8, (8, 16, 32)))
    optimiser = torch.optim.AdamW(net.parameters(), 2e-3)
    for _ in range(steps):
        index = torch.randint(16, (4,))
        loss = F.binary_cross_entropy_with_logits(net(images[index]), masks[index])
        optimiser.zero_grad(); loss.backward(); optimiser.step()
    with torch.no_grad():
        return dice(net(images[16:]) > 0, masks[16:]).mean().item()


before = msfm.select(images).detach()
print("Dice on 8 unseen phantoms: MSFM", round(learn(msfm), 3), "plain 3x3", round(learn(nn.Conv2d(1, 8, 3, padding=1)), 3))
after = msfm.select(images).detach()

# %%
fig, axes = plt.subplots(1, 2, figsize=(6.5, 2.4), layout="constrained", sharey=True)
for axis, w, title in zip(axes, (before, after), ("before", "after 200 steps")):
    axis.boxplot([w[:, k].flatten() for k in range(3)], tick_labels=["3×3", "5×5", "7×7"]); axis.set_title(title)
axes[0].set_ylabel("weight")
spread = after.std(0).mean().item()
print(f"over images, a weight varies by {spread:.4f} on average; between channels by {after.mean(0).std().item():.3f}")
assert (after - before).abs().max() > 1e-3

# %% [markdown]
# Honest reading: between *channels* the weights differ a good deal; between *images* of one kind they hardly move. The module is mostly a set of learned kernels of mixed size, and the selection is a fine adjustment to exposure and texture. On a task as easy as this, a plain convolution does about as well. Whether that changes on real radiographs is a question for an ablation with several seeds, not for a sentence.
#
# What the eye sees, channel by channel:

# %%
with torch.no_grad():
    X = msfm(images[3:4])[0]
fig, axes = plt.subplots(1, 9, figsize=(7.5, 2.8), layout="constrained")
for axis, picture, title in zip(axes, [images[3, 0], *X], ["b", *(f"$X_{n}$" for n in range(1, 9))]):
    axis.imshow(picture, cmap="gray"); axis.set_axis_off(); axis.set_title(title, fontsize=9)

# %% [markdown]
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | branch | "convolution" | convolution and ELU | linear branches make the selection blind to all but brightness |
# | norm of $z$ | batch norm, batch of 1 | layer norm; a batch norm that survives a batch of one in `paper` | PyTorch refuses the other |
# | $z = F_c(\tilde b)$ | from $\tilde b$ | from $s$ | Eq. (12) would otherwise be unused |
# | $d$ | "hyperparameter" | 16 | as many as channels on the laptop |
# | place | before the conditional U-Net; fused with $x_t$ before the diffusion U-Net | the same | [09](09_model.ipynb) |
#
# ## Exercises
#
# **1 · Predict.** `dim=1`: one number $z$ decides about all channels. What weights does an untrained module give then?
#
# <details><summary>Answer</summary>
#
# One third each, for every image: the layer norm of a single number is zero, so $A_n z = B_n z = C_n z = 0$. It is the trap of the batch of one again, in another dimension. With $d \ge 2$ the choice is alive.
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
# Pad the smaller kernels with zeros to 7×7 and add them with the weights. That is also why the bend matters twice.
#
# </details>

# %%
w = msfm.select(images[:1])[0].detach()  # 3 c
kernel = sum(w[k, :, None, None, None] * F.pad(b.weight, [(7 - b.kernel_size[0]) // 2] * 4) for k, b in enumerate(msfm.branches))
bias = sum(w[k] * b.bias for k, b in enumerate(msfm.branches))
linear = sum(w[k, :, None, None] * b(images[:1]) for k, b in enumerate(msfm.branches))
torch.testing.assert_close(F.conv2d(images[:1], kernel, bias, padding=3), linear, atol=1e-5, rtol=1e-4)

# %% [markdown]
# Next: [08 · Noise semantic adapter](08_nsa.ipynb), which looks at the guess to know where to look closely.
