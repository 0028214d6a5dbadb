# %% [markdown]
# # 04 · Augmentation
# > Section 3.2's four disturbances, for a batch at once, image and mask moved by one field

# %% [markdown]
# Augmentation disturbs each training image anew, so that a network never sees the same one twice. You will rotate, shift and bend 8 drawn radiographs and change their contrast. Everything that moves pixels is composed into one sampling field, so that an image and its mask can never part. Seconds on a laptop.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/04_augment.ipynb)

# %%
#| default_exp data.augment

# %%
#| export
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# %%
import matplotlib.pyplot as plt
import numpy as np
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.landmarks import landmarks_to_mask
from verdiff.data.phantoms import draw_phantom
from verdiff.settings import load_settings, profiles

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 80})  # photographs: small pages

# %% [markdown]
# ## 1 · What the paper does
#
# Section 3.2 of the paper names four: rotation by up to ±30°, shifts by 1 to 5 %, elastic deformation, and contrast, all with seed 35. The strengths of the last two are not given. This page disturbs these eight phantoms (masks in orange):

# %%
size = 192, 64
films = [draw_phantom(i) for i in range(8)]
small = [torch.from_numpy(f.image.copy()).float()[None, None] / 255 for f in films]
images = torch.cat([F.interpolate(s, size, mode="area") for s in small])  # 8 1 192 64
masks = torch.stack(
    [torch.from_numpy(landmarks_to_mask(f.landmarks / 3, *size)).float()[None] for f in films]
)
images.shape, masks.shape


# %%
def show(images, masks, titles=None):
    fig, axes = plt.subplots(
        1, len(images), figsize=(1.05 * len(images), 3.2), layout="constrained"
    )
    for k, axis in enumerate(axes):
        axis.imshow(images[k, 0], cmap="gray", vmin=0, vmax=1)
        axis.set_axis_off()
        if masks[k].any():
            axis.contour(masks[k, 0], [0.5], colors="orange", linewidths=0.6)
        if titles:
            axis.set_title(titles[k], fontsize=8)


show(images, masks)


# %% [markdown]
# ## 2 · The naive rotation
#
# `affine_grid` and `grid_sample` use coordinates that run from −1 to 1 on *both* axes. There a rotation matrix is a rotation only if the picture is square. Ours is three times as tall as it is wide.

# %%
def naive_rotation(x, degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    theta = torch.tensor([[[c, s, 0.0], [-s, c, 0.0]]]).expand(len(x), -1, -1)  # the way back
    return F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)


square = torch.zeros(1, 1, 192, 64)
square[..., 80:112, 16:48] = 1
bent = naive_rotation(square, 20)


def show_squares(*pictures, titles):
    wide = 1.35 * len(pictures)
    fig, axes = plt.subplots(1, len(pictures), figsize=(wide, 3.4), layout="constrained")
    for axis, x, title in zip(axes, pictures, titles, strict=True):
        axis.imshow(x[0, 0], cmap="magma", vmin=0, vmax=1)
        axis.set_axis_off()
        axis.set_title(title, fontsize=9)


show_squares(square, bent, titles=("a square", "naive 20°"))


# %% [markdown]
# The square is sheared. The fix is to rotate *pixels* and convert at the end: multiply the matrix by the aspect ratio on one off-diagonal and divide on the other,
#
# $$A = \begin{pmatrix} \cos\alpha & -\tfrac{H}{W}\sin\alpha \\ \tfrac{W}{H}\sin\alpha & \cos\alpha \end{pmatrix}.$$
#
# `affine_grid` asks where each output pixel comes *from*. So the code, like the naive one above, has the inverse: both signs of the sine turned. It also divides by the scale.

# %%
#| exports
def affine_matrix(
    angle: Tensor,  # radians, (B,)
    scale: Tensor,  # enlargement, (B,)
    shift: Tensor,  # (B, 2): right and down, as shares of width and height
    size: tuple[int, int],  # (height, width)
) -> Tensor:  # (B, 2, 3), for `affine_grid`: where each output pixel comes from
    "Rotation and scale in pixel geometry: a square stays a square on an image of any shape."
    height, width = size
    c, s = torch.cos(angle) / scale, torch.sin(angle) / scale
    rotate = torch.stack([torch.stack([c, s * height / width], -1),
                          torch.stack([-s * width / height, c], -1)], -2)  # b 2 2
    move = -(rotate @ (2 * shift)[..., None])  # shift after the rotation
    return torch.cat([rotate, move], -1)


# %%
one, none = torch.ones(1), torch.zeros(1, 2)
grid = F.affine_grid(
    affine_matrix(one * math.radians(20), one, none, (192, 64)), square.shape, align_corners=False
)
right = F.grid_sample(square, grid, align_corners=False)
show_squares(square, bent, right, titles=("a square", "naive 20°", "in pixels 20°"))


def spreads(x):
    "Standard deviation along the two principal axes, pixels, (2,), the smaller first."
    y, x_ = torch.nonzero(x[0, 0] > 0.5).double().T
    return torch.linalg.eigvalsh(torch.cov(torch.stack([x_, y]))).sqrt()


for name, x in {"naive": bent, "in pixels": right}.items():
    print(f"{name:10s} spread along the two axes: {spreads(x).numpy().round(1)} px")
assert spreads(bent)[1] / spreads(bent)[0] > 1.02
assert spreads(right)[1] / spreads(right)[0] < 1.02

# %% [markdown]
# ## 3 · Bending
#
# An elastic deformation moves every pixel a little, and neighbours almost alike: random displacements on a coarse grid, enlarged by bicubic interpolation. `strength` is the standard deviation of the displacement as a share of the *width*, on both axes, so that the bending is as strong along the film as across.
#
# The random numbers come from one generator for the whole batch, or from *one generator an image*. Then what happens to an image depends neither on its neighbours nor on how a batch was divided among machines.

# %%
#| exports
Source = torch.Generator | Sequence[torch.Generator] | None  # on the CPU; None: the global one


def random_rows(
    draw: Callable[..., Tensor],  # torch.rand or torch.randn
    batch: int,
    shape: tuple[int, ...],  # of a row
    generator: Source,  # one for the batch, or a list: row i comes from the i-th alone
) -> Tensor:  # (batch, *shape) on the CPU
    "Random numbers, a row an image."
    if generator is None or isinstance(generator, torch.Generator):
        return draw((batch, *shape), generator=generator)
    return torch.stack([draw(shape, generator=g) for g in generator])


# %%
one_each = lambda *seeds: [torch.Generator().manual_seed(s) for s in seeds]
many = random_rows(torch.rand, 3, (2,), one_each(5, 6, 7))
assert torch.equal(many[1:], random_rows(torch.rand, 2, (2,), one_each(6, 7)))


# %%
#| exports
def elastic_field(
    batch: int,
    size: tuple[int, int],  # (height, width)
    strength: float,  # standard deviation of the displacement, share of the width
    generator: Source = None,
    spacing: float = 0.5,  # distance of the control points, share of the width
    device: torch.device | str = "cpu",  # of the result; the random numbers come from the CPU
) -> Tensor:  # (B, H, W, 2), in the coordinates of `grid_sample`
    "A smooth random displacement."
    height, width = size
    rows, columns = (max(4, round(n / (spacing * width)) + 3) for n in size)
    coarse = random_rows(torch.randn, batch, (2, rows, columns), generator).to(device)
    fine = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
    fine = fine / 0.84  # interpolation averages: bring the deviation back to about one
    per_axis = fine.new_tensor([2 * strength, 2 * strength * width / height]).view(1, 2, 1, 1)
    return (fine * per_axis).permute(0, 2, 3, 1)  # b 2 h w -> b h w 2


# %%
field = elastic_field(64, size, 0.03, torch.Generator().manual_seed(0))
spread = (field.std((0, 1, 2)) * torch.tensor([64, 192]) / 2).numpy()
print("standard deviation in pixels, across and along:", spread.round(2), "wanted", 0.03 * 64)
assert np.allclose(spread, 0.03 * 64, rtol=0.15)


# %% [markdown]
# A mesh of straight lines, sampled through the field at three strengths:

# %%
def mesh(grid):
    lines = torch.zeros(1, 1, 192, 64)
    lines[..., ::8, :] = 1
    lines[..., ::8] = 1
    return F.grid_sample(lines.expand(len(grid), -1, -1, -1), grid, align_corners=False)


straight = F.affine_grid(torch.eye(2, 3)[None], (1, 1, *size), align_corners=False)
unit = elastic_field(1, size, 1.0, torch.Generator().manual_seed(3))
meshes = mesh(torch.cat([straight + strength * unit for strength in (0, 0.03, 0.1)]))
show(meshes, torch.zeros_like(meshes), ["none", "0.03 of the width", "0.1"])


# %% [markdown]
# ## 4 · Everything at once
#
# How strong each of them may be, in one object:

# %%
#| exports
@dataclass(frozen=True)
class Strengths:
    "Section 3.2's four, and two that the paper does not name."

    rotation: float = 30.0  # degrees, uniform in both directions
    shift: tuple[float, float] = (0.01, 0.05)  # shares of width and height, either sign
    elastic: float = 0.03  # standard deviation of the displacement, share of the width
    contrast: float = 0.25  # strength: contrast and gamma by up to that factor, brightness by half
    scale: tuple[float, float] = (1.0, 1.0)  # enlargement, log-uniform; not in the paper
    flip: float = 0.0  # probability of a left-right flip; not in the paper

    @classmethod
    def from_settings(cls, settings: Any) -> "Strengths":
        "From `Settings` or anything with its attributes."
        return cls(settings.rotation, (settings.shift_min, settings.shift_max), settings.elastic,
                   settings.contrast, (settings.scale_min, settings.scale_max), settings.flip)


# %%
for name in profiles():
    s = Strengths.from_settings(load_settings(name))
    print(f"{name:11s} rotation ±{s.rotation:.0f}°, shift {s.shift}, elastic {s.elastic}, "
          f"contrast {s.contrast}, scale {s.scale}, flip {s.flip}")


# %% [markdown]
# Rotation, scale, shift and bending are all *coordinates*, so they are composed into one field and the picture is resampled once. Resampling four times would blur it four times.
#
# All random numbers are drawn on the CPU, wherever the images are; they are few. So a run draws the same ones on every device. The field itself, one number per pixel and axis, is made where the images are.

# %%
#| exports
class Geometry(Strengths):
    "What moves pixels."

    def grid(
        self,
        batch: int,
        size: tuple[int, int],  # (height, width)
        generator: Source = None,
        device: torch.device | str = "cpu",  # of the result
    ) -> Tensor:  # (B, H, W, 2), for `grid_sample`
        "One random sampling field an image."

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * random_rows(torch.rand, batch, shape, generator)

        angle = torch.deg2rad(uniform(-self.rotation, self.rotation))
        shift = uniform(*self.shift, 2) * torch.where(uniform(-1, 1, 2) < 0, -1.0, 1.0)
        scale = torch.exp(uniform(*map(math.log, self.scale)))
        bend = elastic_field(batch, size, self.elastic, generator, device=device)
        mirror = torch.where(uniform(0, 1) < self.flip, -1.0, 1.0)
        theta = affine_matrix(angle, scale, shift, size)
        theta = theta * torch.stack([mirror, torch.ones_like(mirror)], -1)[..., None]
        return F.affine_grid(theta.to(device), [batch, 1, *size], align_corners=False) + bend


# %% [markdown]
# The mesh under five random fields, at the strengths of profile `paper`:

# %%
grids = Geometry().grid(5, size, torch.Generator().manual_seed(35))
warped = mesh(grids)
show(warped, torch.zeros_like(warped))
assert grids.shape == (5, 192, 64, 2)


# %% [markdown]
# The grey values are disturbed separately. Then everything comes together: the mask goes through the same field as the image and is cut at one half. What comes from outside the film is black, as the letterbox is.

# %%
#| exports
class Augment(Geometry):
    "Section 3.2: rotation, shift, elastic deformation and contrast, for a batch at once."

    def grey(self, images: Tensor, generator: Source = None) -> Tensor:
        "Contrast, brightness and gamma; images (B, 1, H, W) in [0, 1]."
        c = self.contrast
        draws = (
            random_rows(torch.rand, len(images), (3, 1, 1, 1), generator).transpose(0, 1) * 2 - 1
        )
        gain, offset, power = (1 + c * draws[0], c / 2 * draws[1], torch.exp(c * draws[2]))
        gain, offset, power = (v.to(images) for v in (gain, offset, power))
        middle = images.mean((1, 2, 3), keepdim=True)
        return (((images - middle) * gain + middle + offset).clamp(0, 1)) ** power

    def __call__(
        self,
        images: Tensor,  # (B, 1, H, W): uint8, or float in [0, 1]
        masks: Tensor,  # (B, 1, H, W) {0, 1}, any type
        generator: Source = None,  # of every random number: one for the batch, or one an image
    ) -> tuple[Tensor, Tensor]:  # float32 in [0, 1], and float32 {0, 1}
        "Disturb a batch on the device it is on; image and mask by the same field."
        if images.shape != masks.shape:
            raise ValueError(f"images are {tuple(images.shape)}, masks {tuple(masks.shape)}")
        images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        grid = self.grid(len(images), images.shape[-2:], generator, images.device)
        changed = self.grey(images, generator)
        both = torch.cat([changed, masks.to(images)], 1)  # b 1+1 h w: one call moves both
        both = F.grid_sample(both, grid, align_corners=False)
        return both[:, :1].clamp(0, 1), (both[:, 1:] >= 0.5).float()


# %%
augment = Augment()
show(*augment(images, masks, torch.Generator().manual_seed(35)))

# %% [markdown]
# The same seed gives the same batch to the last bit, and another seed another. A batch of `uint8` gives the same as its floats. Exact resuming of a training run rests on this.

# %%
a, b, c = (augment(images, masks, torch.Generator().manual_seed(s)) for s in (35, 35, 36))
assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and not torch.equal(a[0], c[0])
assert set(a[1].unique().tolist()) == {0.0, 1.0} and 0 <= a[0].min() and a[0].max() <= 1
byte = (255 * images).round().byte()
assert torch.equal(augment(byte, masks, torch.Generator().manual_seed(1))[0],
                   augment(byte.float() / 255, masks, torch.Generator().manual_seed(1))[0])

# %% [markdown]
# With one generator an image, a part of the batch comes out as it did in the whole, up to rounding. Training on several devices rests on this.

# %%
whole = augment(images, masks, one_each(*range(8)))
part = augment(images[5:], masks[5:], one_each(5, 6, 7))
torch.testing.assert_close(part[0], whole[0][5:], atol=1e-5, rtol=0)
assert (part[1] != whole[1][5:]).float().mean() < 1e-3

# %% [markdown]
# Do image and mask move together? Let the mask be the image: both must come out equal.

# %%
twin, moved = Augment(contrast=0)(masks, masks, torch.Generator().manual_seed(2))
assert torch.equal((twin >= 0.5).float(), moved)
still = Augment(0, (0, 0), 0, 0)
torch.testing.assert_close(still(images, masks)[0], images, atol=2e-5, rtol=0)

# %% [markdown]
# ## 5 · One at a time, and how much is too much
#
# Each alone, at the strengths of profile `paper`; then scale and flip, which the paper does not use. (The rotation is random, up to 30° either way.)

# %%
off = dict(rotation=0, shift=(0, 0), elastic=0, contrast=0)
alone = (
    dict(rotation=30),
    dict(shift=(0.05, 0.05)),
    dict(elastic=0.03),
    dict(contrast=0.25),
    dict(scale=(1.25, 1.25)),
    dict(flip=1),
)
made = [
    Augment(**(off | one))(images[:1], masks[:1], torch.Generator().manual_seed(34))
    for one in alone
]
films = torch.cat([images[:1], *(image for image, _ in made)])
spines = torch.cat([masks[:1], *(mask for _, mask in made)])
show(films, spines, ["as drawn", *(next(iter(a)) for a in alone)])


# %% [markdown]
# A rotation by 30° turns the ends of a spine out of a film that is three times as tall as wide. How much of the mask is lost?

# %%
def kept(degrees):
    augment = Augment(degrees, (0, 0), 0, 0)
    out = torch.cat(
        [augment(images, masks, torch.Generator().manual_seed(s))[1] for s in range(40)]
    )
    return out.mean() / masks.mean()


degrees = [0, 5, 10, 15, 20, 25, 30]
share = [float(kept(d)) for d in degrees]
fig, axis = plt.subplots(figsize=(4, 2.4), layout="constrained")
axis.plot(degrees, [100 * s for s in share], "o-")
axis.set(xlabel="rotation up to ± degrees", ylabel="mask kept, %")
print({d: f"{s:.0%}" for d, s in zip(degrees, share)})
assert share[0] > 0.99 > share[-1]


# %% [markdown]
# Up to ±30° costs about one twentieth of the mask on average. `paper`, `gpu` and `smoke` keep the paper's number all the same; the others use less (printed in Section 4).

# %% [markdown]
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | rotation | ±30° | ±30° in `paper`, `gpu` and `smoke`; 10 or 15° elsewhere | a tall film loses the ends of the spine |
# | shift | 1–5 % | the same, either sign, both axes | |
# | elastic | not given | 3 % of the width | visibly bent, not folded (exercise 1) |
# | contrast | not given | gain 1 ± 0.25, brightness ± 0.125, gamma $e^{\pm 0.25}$ | a badly exposed film, not a black one |
# | scale | not used | 0.8–1.25 outside `paper` | training films are cropped tighter than test films ([03](03_xray_set.ipynb), Section 5) |
# | sampling | not given | one `grid_sample` for everything | resampled once, blurred once (exercise 3) |
#
# ## Exercises
#
# **1 · Predict.** `elastic=0.3`: will the field fold over itself, so that a piece of the film appears twice?
#
# <details><summary>Answer</summary>
#
# Yes, and 0.1 folds already. A field folds where the determinant of its derivative turns negative. Control points lie half a width apart; at 0.3 widths, displacements of neighbours overtake one another.
#
# </details>

# %%
def folded(strength):
    grid = Augment(0, (0, 0), strength, 0).grid(16, size, torch.Generator().manual_seed(0))
    dx, dy = grid.diff(dim=2)[:, :-1], grid.diff(dim=1)[:, :, :-1]  # b h w 2
    return ((dx[..., 0] * dy[..., 1] - dx[..., 1] * dy[..., 0]) < 0).float().mean().item()


print({s: f"{folded(s):.1%}" for s in (0.03, 0.1, 0.3)})
assert folded(0.03) == 0 < folded(0.3)

# %% [markdown]
# **2 · Change.** A left-right flip is not in the paper. Turn it on for the whole batch and check that flipping twice gives the batch back.
#
# <details><summary>Answer</summary>
#
# `Augment(0, (0, 0), 0, 0, flip=1)`. On radiographs a flip moves the heart to the other side: harmless for a mask of vertebrae, wrong for anything that depends on left and right.
#
# </details>

# %%
flip = Augment(0, (0, 0), 0, 0, flip=1)
torch.testing.assert_close(flip(*flip(images, masks))[1], masks)
torch.testing.assert_close(flip(images, masks)[0], images.flip(-1), atol=2e-5, rtol=0)


# %% [markdown]
# **3 · Implement.** Rotate by $+\alpha$, then by $-\alpha$. Compare the loss of sharpness with that of a single resampling by the composed (identity) field.
#
# <details><summary>Answer</summary>
#
# Two interpolations blur; the composed field is exact. Hence: compose coordinates and sample once.
#
# </details>

# %%
def turn(x, degrees):
    theta = affine_matrix(
        torch.full((len(x),), math.radians(degrees)),
        torch.ones(len(x)),
        torch.zeros(len(x), 2),
        size,
    )
    return F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)


middle = (..., slice(60, 130), slice(20, 44))
twice = (turn(turn(images, 17), -17) - images)[middle].abs().mean()
once = (turn(images, 0) - images)[middle].abs().mean()
print(f"mean error: there and back {twice:.4f}, composed {once:.6f}")
assert once < 1e-4 < twice

# %% [markdown]
# Next: [05 · Metrics](05_metrics.ipynb), or how to count what a mask is worth.
