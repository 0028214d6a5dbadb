# %% [markdown]
# # What else is on a radiograph
# > Drawn metal, inverted grey, collimator borders, burnt-in letters and JPEG, for training

# %% [markdown]
# Page [04](../04_augment.ipynb) turns, bends and blurs. Radiographs of other hospitals also hold things: rods and screws, the edges of a collimator, an R or an L; some are stored inverted, many went through JPEG. Here is what draws them, each with a *probability*, all zero by default. None of it is in the paper. It has to be drawn rather than computed on a whole batch, so it works image by image with Pillow, on the CPU.
#
# The evaluation on the page of [real radiographs](../lab/xray.ipynb) draws metal too, with other code: two rods from T4 to L3 at a fixed distance, all at one brightness. A network must not be trained on the very drawing that it is tested with. Here number, place, length, thickness, brightness and softness are random, and nothing was fitted to the other drawing. JPEG and inversion are what they are, in both.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/disturb.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp data.disturb

# %%
#| export
import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

# %%
import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.landmarks import landmarks_to_mask
from verdiff.data.phantoms import draw_phantom

# %%
#| code-fold: true
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 80})

# %% [markdown]
# ## One image
# Every function takes an image in [0, 1] and its mask as arrays, and a generator of its own, and gives both back.

# %%
#| export
Pair = tuple[np.ndarray, np.ndarray]  # image, float32 (H, W) in [0, 1]; mask, float32 {0, 1}


def layer(
    size: tuple[int, int],  # (height, width)
    lines: Sequence[tuple[np.ndarray, float]],  # points (N, 2), x first, and thickness, pixels
    dots: Sequence[tuple[float, float, float]],  # x, y, radius
    soft: float,  # standard deviation, pixels
) -> np.ndarray:  # (H, W) in [0, 1]
    "Lines and dots as how much they cover."
    picture = Image.new("L", size[::-1])
    draw = ImageDraw.Draw(picture)
    for points, thick in lines:
        draw.line([(float(x), float(y)) for x, y in points], 255, max(1, round(thick)), "curve")
    for x, y, r in dots:
        draw.ellipse((x - r, y - r, x + r, y + r), 255)
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(soft)), np.float32) / 255


# %%
#| export
def draw_metal(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> Pair:
    """One or two rods along the vertebrae, with screws, or a few loose pieces; the mask stays.

    Thickness and distances are shares of the mask's mean width; an image without mask stays.
    """
    rows = np.flatnonzero(mask.any(1))
    if len(rows) < 8:
        return image, mask
    columns = np.arange(mask.shape[1])
    middle = np.array([columns[mask[r] > 0].mean() for r in rows])
    unit = float(mask[rows].sum(1).mean())
    length = max(4, round(len(rows) * rng.uniform(0.2, 0.95)))
    first = rng.integers(len(rows) - length + 1)
    rows, middle = rows[first:first + length], middle[first:first + length]
    trend = np.polynomial.Polynomial.fit(rows, middle, min(4, length - 1))
    lines, dots = [], []
    sides = rng.permutation([-1, 1])[:rng.choice([1, 2], p=[0.3, 0.7])]
    screwed, thick = rng.random() < 0.8, rng.uniform(0.05, 0.2) * unit
    pitch = rng.uniform(0.7, 2.0) * unit
    away, slant = rng.uniform(0.1, 0.55) * unit, rng.uniform(-0.3, 0.3) * unit
    for side in sides:
        x = trend(rows) + side * away + rng.normal(0, 0.05 * unit)
        if rng.random() < 0.85:
            lines.append((np.stack([x, rows], 1)[::3], thick))
        for y in np.arange(rows[0] + pitch / 2, rows[-1], pitch) if screwed else ():
            if rng.random() < 0.15:
                continue  # a level that is left out
            at = np.array([float(np.interp(y, rows, x)), y])
            reach = (-side * rng.uniform(0.1, 0.9) * away, slant + rng.normal(0, 0.05 * unit))
            lines.append((np.stack([at, at + reach]), rng.uniform(0.6, 1.6) * thick))
            dots.append((*at, rng.uniform(0.5, 1.1) * thick))
    for _ in range(rng.integers(0, 4)):  # buttons, clips, wires anywhere
        x, y = rng.uniform(0, mask.shape[1]), rng.uniform(0, mask.shape[0])
        if rng.random() < 0.5:
            dots.append((x, y, rng.uniform(0.05, 0.3) * unit))
        else:
            walk = np.cumsum(rng.normal(0, 0.4 * unit, (6, 2)), 0) + (x, y)
            lines.append((walk, rng.uniform(0.03, 0.1) * unit))
    cover = layer(mask.shape, lines, dots, rng.uniform(0, 0.04) * unit) * rng.uniform(0.6, 1)
    bright = max(rng.uniform(0.8, 1), float(image.max()) - 0.1)
    return image + cover * np.maximum(bright - image, 0), mask


# %%
#| export
def invert(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> Pair:
    "Bright becomes dark; what is quite black beside the radiograph stays so in half of the cases."
    dark = 1 - image
    return (np.where(image > 0, dark, 0) if rng.random() < 0.5 else dark).astype(np.float32), mask


def collimate(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> Pair:
    "Black, or now and then white, outside of a rectangle; there is no mask there."
    height, width = mask.shape
    top, bottom = rng.uniform(0, 0.1, 2) * height
    left, right = rng.uniform(0, 0.25, 2) * width
    inside = np.zeros(mask.shape, bool)
    inside[round(top):round(height - bottom), round(left):round(width - right)] = True
    border = rng.choice([0.0, rng.uniform(0, 0.15), 1.0], p=[0.6, 0.2, 0.2])
    return np.where(inside, image, border).astype(np.float32), mask * inside


# %% [markdown]
# The letters are Pillow's own, enlarged, so that no font has to be installed.

# %%
#| export
SIGNS = "ABCDEFGHIKLMNOPRSTUVWXYZ0123456789.:-/ "


def write(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> Pair:
    "Burnt-in signs: a large letter or lines of small ones, some of them in a box; the mask stays."
    before = np.uint8(255 * image.clip(0, 1) + 0.5)
    canvas = Image.fromarray(before)
    height, width = mask.shape
    for _ in range(rng.integers(1, 5)):
        large = rng.random() < 0.4
        count, signs = (1, "LR") if large else (rng.integers(3, 16), SIGNS)
        text = "".join(rng.choice(list(signs), count))
        font = ImageFont.load_default()
        box = ImageDraw.Draw(canvas).textbbox((0, 0), text, font=font)
        tall = rng.uniform(0.06, 0.2) * width if large else rng.uniform(0.03, 0.07) * width
        wide = max(box[2] - box[0], 1) * tall / max(box[3] - box[1], 1)
        size = max(2, round(min(wide, 0.9 * width))), max(4, round(tall))
        sign = Image.new("L", (max(box[2] - box[0], 1), max(box[3] - box[1], 1)))
        ImageDraw.Draw(sign).text((-box[0], -box[1]), text, 255, font=font)
        sign = sign.resize(size, Image.Resampling.BICUBIC)
        place = (int(rng.integers(max(1, width - size[0]))),
                 int(rng.integers(max(1, height - size[1]))))
        grey = int(rng.integers(200, 256)) if rng.random() < 0.8 else 0
        if rng.random() < 0.3:
            edge = max(1, round(0.2 * tall))
            canvas.paste(255 - grey, (place[0] - edge, place[1] - edge,
                                      place[0] + size[0] + edge, place[1] + size[1] + edge))
        canvas.paste(grey, place, sign)
    after = np.asarray(canvas)
    return np.where(after != before, after / np.float32(255), image), mask  # the rest: to the bit


def compress(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> Pair:
    "Through JPEG at a quality of 5 to 70, low ones more often, in memory; the mask stays."
    file, quality = io.BytesIO(), round(float(np.exp(rng.uniform(np.log(5), np.log(70)))))
    Image.fromarray(np.uint8(255 * image.clip(0, 1) + 0.5)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file), np.float32) / 255, mask


# %% [markdown]
# ## A batch
# Each image has a seed, and each kind a stream of its own under that seed. So switching one kind on changes nothing in what another draws, and a part of a batch comes out as it did in the whole.

# %%
#| export
Kind = Callable[[np.ndarray, np.ndarray, np.random.Generator], Pair]
KINDS: dict[str, Kind] = {
    "metal": draw_metal, "invert": invert,  # in the beam, and how its shadow is shown
    "collimator": collimate, "letters": write, "jpeg": compress}  # after the detector


def disturb(
    images: Tensor,  # (B, 1, H, W) in [0, 1]
    masks: Tensor,  # (B, 1, H, W) {0, 1}, float
    seeds: Sequence[int] | Tensor,  # (B,), whole numbers >= 0, one an image
    **chances: float,  # probability of each kind, see `KINDS`; in the order given
) -> tuple[Tensor, Tensor]:  # new ones of the same shapes and device
    "Draw on some of the images; the others stay, bit for bit. ValueError: an unknown kind."
    images, masks = images.clone(), masks.clone()
    for kind, chance in chances.items():
        number = list(KINDS).index(kind)
        for image, mask, seed in zip(images, masks, seeds, strict=True):
            rng = np.random.default_rng([int(seed), number])
            if rng.random() < chance:
                pair = KINDS[kind](image[0].cpu().numpy(), mask[0].cpu().numpy(), rng)
                for old, new in zip((image, mask), pair, strict=True):
                    old[0] = torch.from_numpy(np.asarray(new, np.float32)).clamp(0, 1)
    return images, masks


# %% [markdown]
# ## Each of them
# Three phantoms, each kind with certainty; the masks are outlined in orange.

# %%
#| code-fold: true
#| fig-alt: "Three drawn radiographs, a row each, plain and in five ways: with drawn rods and screws, inverted, with black or white borders, with burnt-in letters, and with the blocks of JPEG. The outlines of the masks stay but where borders hide them."
phantoms = [draw_phantom(i, implant=False) for i in range(3)]
size = phantoms[0].image.shape
images = torch.stack([torch.from_numpy(p.image / 255).float()[None] for p in phantoms])
masks = torch.stack([torch.from_numpy(landmarks_to_mask(p.landmarks, *size)).float()[None]
                     for p in phantoms])
made = {"plain": (images, masks)}
made |= {kind: disturb(images, masks, [3, 5, 8], **{kind: 1.0}) for kind in KINDS}
fig, axes = plt.subplots(3, 6, figsize=(6.6, 9.6), layout="constrained")
for column, (kind, (image, mask)) in zip(axes.T, made.items()):
    for axis, x, m in zip(column, image, mask):
        axis.imshow(x[0], cmap="gray", vmin=0, vmax=1)
        axis.contour(m[0], [0.5], colors="orange", linewidths=0.5)
        axis.set_axis_off()
    column[0].set_title(kind, fontsize=9)

# %% [markdown]
# ## Checks

# %%
for kind in KINDS:
    image, mask = made[kind]
    assert 0 <= image.min() and image.max() <= 1 and not torch.equal(image, images)
    assert kind == "collimator" or torch.equal(mask, masks)
    alone = disturb(images[1:2], masks[1:2], [5], **{kind: 1.0})
    assert torch.equal(alone[0], image[1:2])  # depends on its own seed only
off = disturb(images, masks, [3, 5, 8], **dict.fromkeys(KINDS, 0.0))
assert torch.equal(off[0], images) and torch.equal(off[1], masks)
