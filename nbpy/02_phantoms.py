# %% [markdown]
# # 02 · Phantoms
# > A spine radiograph drawn by a program, so that everybody has data

# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/02_phantoms.ipynb)

# %%
#| default_exp data.phantoms

# %%
#| export
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from verdiff.data.landmarks import cobb_angles

# %%
import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.landmarks import is_crooked, landmarks_to_mask

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})


# %% [markdown]
# ## 7 · Phantoms
#
# A course must run without patient data. So we draw spines, with what makes a radiograph hard: vertebrae that grow downwards, curves with two bends, ribs, a heart, uneven exposure, noise, and sometimes metal. Their truth is exact.
#
# Vertebra $i$ is tilted by $\theta_i = c\, \sin(2\pi k u_i + \varphi)$, with $u_i$ from 0 at the top to 1 at the bottom, shifted and scaled so that the largest difference of tilts *is* the wanted Cobb angle.

# %%
#| exports
def spine_tilts(
    rng: np.random.Generator,
    cobb: float,  # degrees: the main curve
) -> np.ndarray:  # (17,) radians
    "A piece of a sine whose largest difference is `cobb`."
    u = np.linspace(0, 1, 17)
    tilt = np.sin(2 * np.pi * rng.uniform(0.6, 1.3) * u + rng.uniform(0, 2 * np.pi))
    return np.radians(cobb) * (tilt - tilt.mean()) / np.ptp(tilt)


# %%
fig, axis = plt.subplots(figsize=(3.4, 2), layout="constrained")
for seed in range(5):
    axis.plot(
        range(1, 18), np.degrees(spine_tilts(np.random.default_rng(seed), 40)), "o-", ms=3, lw=0.8
    )
axis.set(xlabel="vertebra", ylabel="tilt, degrees", title="five spines of 40°")
assert np.isclose(np.degrees(np.ptp(spine_tilts(np.random.default_rng(1), 40))), 40)


# %% [markdown]
# Each centre lies one step along the tilt below the last.

# %%
#| exports
def draw_spine(
    rng: np.random.Generator,
    height: int,  # of the image, pixels
    width: int,
    cobb: float,  # degrees: the main curve
) -> np.ndarray:  # (68, 2) landmarks, x, y in pixels
    "Corners of 17 vertebrae, growing downwards, whose first Cobb angle is exactly `cobb`."
    tilt = spine_tilts(rng, cobb)
    tall = np.linspace(1, rng.uniform(1.5, 1.9), 17)  # of the bodies
    wide = tall * np.linspace(rng.uniform(1.35, 1.6), rng.uniform(1.2, 1.4), 17)
    gap = tall * np.linspace(0.16, 0.34, 17)  # discs
    step = np.concatenate([[0], (tall[:-1] + tall[1:]) / 2 + gap[:-1]])
    between = np.concatenate([[0], (tilt[:-1] + tilt[1:]) / 2])
    centre = np.cumsum(np.stack([step * np.sin(between), step * np.cos(between)], 1), 0)
    across = np.stack([np.cos(tilt), -np.sin(tilt)], 1)  # unit vectors of each body
    half = tall[:, None] / 2 * np.stack([np.sin(tilt), np.cos(tilt)], 1)
    top, bottom = (rng.uniform(low, high, 17)[:, None] * wide[:, None] / 2 * across
                   for low, high in ((0.94, 1.0), (0.97, 1.04)))
    flat = np.stack([centre - half - top, centre - half + top,
                     centre + half - bottom, centre + half + bottom], 1).reshape(68, 2)
    room = np.array([0.94 * width, rng.uniform(0.80, 0.96) * height])
    flat = flat * (room / np.ptp(flat, axis=0)).min()
    free = np.array([width, height]) - np.ptp(flat, axis=0)
    return flat - flat.min(0) + free * rng.uniform((0.35, 0.3), (0.65, 0.7))


# %%
bent = draw_spine(np.random.default_rng(1), 576, 192, 40)
print(cobb_angles(bent, 576).round(3))
assert np.isclose(cobb_angles(bent, 576)[0], 40) and (bent >= 0).all() and (bent < (192, 576)).all()

# %% [markdown]
# Shapes on the film are light, added in layers, each with its own blur.

# %%
#| exports
Shape = tuple[str, Any, int]  # "polygon", "line" or "ellipse"; points; width of a line


class Film:
    "A grey picture on which shapes are added as light."

    def __init__(self, height: int, width: int):
        self.light = np.zeros((height, width), np.float32)

    def add(self, value: float, blur: float, shapes: Iterable[Shape]) -> None:
        "Draw shapes as one layer, blurred by `blur` pixels, `value` grey levels bright."
        layer = Image.new("L", self.light.shape[::-1])
        draw = ImageDraw.Draw(layer)
        for kind, points, thick in shapes:
            xy = [tuple(p) for p in np.asarray(points, dtype=float).tolist()]
            if kind == "line":
                draw.line(xy, fill=255, width=max(1, thick), joint="curve")
            else:
                getattr(draw, kind)(xy, fill=255)
        layer = layer.filter(ImageFilter.GaussianBlur(blur))
        self.light += value / 255 * np.asarray(layer, dtype=np.float32)


def oval(x: float, y: float, width: float, height: float) -> Shape:
    "An ellipse around (x, y)."
    return "ellipse", [(x - width / 2, y - height / 2), (x + width / 2, y + height / 2)], 0


# %%
try_out = Film(80, 60)
try_out.add(100, 3, [oval(30, 40, 40, 50)])
assert 95 < try_out.light[40, 30] <= 100 and try_out.light[0, 0] < 1


# %% [markdown]
# Everything is placed relative to the vertebrae, soft tissue first:

# %%
#| exports
class Body(NamedTuple):
    "Where the layers of a phantom go."

    quads: np.ndarray  # (17, 4, 2) corners
    middle: np.ndarray  # (17, 2) centres
    unit: float  # width of the ninth body, pixels
    height: int  # of the film
    width: int


def soft_tissue(film: Film, body: Body, rng: np.random.Generator) -> None:
    "Exposure that grows downwards, lungs, the flesh around the spine, the heart, the belly."
    _, middle, unit, height, width = body
    film.light += 70 + rng.uniform(0, 40) * np.linspace(0, 1, height, dtype=np.float32)[:, None]
    chest = middle[:11, 1].min(), middle[10, 1]
    x, y = middle[6, 0], np.mean(chest)
    lungs = [
        oval(x + side * 0.27 * width, y, 0.42 * width, 1.1 * np.ptp(chest)) for side in (-1, 1)
    ]
    film.add(-rng.uniform(30, 55), 0.06 * width, lungs)
    spine = np.vstack([middle[0] - (0, height), middle, middle[-1] + (0, height)])
    film.add(rng.uniform(25, 45), 0.3 * unit, [("line", spine, int(1.7 * unit))])
    heart = oval(middle[8, 0] + 0.8 * unit, middle[8, 1], 2.1 * unit, 3.2 * unit)
    film.add(rng.uniform(20, 40), 0.25 * unit, [heart])
    belly = oval(width / 2, height, 2 * width, 0.75 * height)
    film.add(rng.uniform(10, 40), 0.12 * height, [belly])


# %% [markdown]
# Then the bones:

# %%
#| exports
def ribs_and_pelvis(film: Film, body: Body, rng: np.random.Generator) -> None:
    "Eleven pairs of ribs, and the upper rim of the pelvis."
    quads, middle, unit, _, width = body
    ribs, bow = [], np.linspace(0, 1, 12)
    for i in range(11):
        for side, corner in ((-1, 0), (1, 1)):
            start, reach = quads[i, corner], rng.uniform(0.9, 1.1) * 0.45 * width
            drop = (0.9 + 0.12 * i) * unit * (bow ** 2 - 0.5 * np.sin(np.pi * bow))
            curve = np.stack([start[0] + side * reach * bow, start[1] + drop], 1)
            ribs.append(("line", curve, int(0.22 * unit)))
    film.add(rng.uniform(12, 26), 0.05 * unit, ribs)
    x, y = middle[-1, 0], middle[-1, 1] + 1.9 * unit
    film.add(rng.uniform(15, 30), 0.15 * unit, [
        oval(x + side * 0.36 * width, y, 0.4 * width, 2.6 * unit) for side in (-1, 1)])


def vertebrae(film: Film, body: Body, rng: np.random.Generator) -> None:
    "Bodies, their bright rims, two pedicles and the spinous process of each."
    quads, middle, unit = body[:3]
    rings = [quad[[0, 1, 3, 2, 0]] for quad in quads]
    film.add(rng.uniform(14, 30), 0.05 * unit, [("polygon", ring, 0) for ring in rings])
    film.add(rng.uniform(14, 34), 0.04 * unit, [("line", ring, int(0.07 * unit)) for ring in rings])
    widths = np.ptp(quads[:, :, 0], axis=1)
    high = quads[:, :2].mean(1) * 0.5 + middle * 0.5  # between the upper edge and the centre
    film.add(rng.uniform(10, 25), 0.04 * unit, [
        oval(x + side * 0.29 * w, y, 0.16 * w, 0.22 * w)
        for (x, y), w in zip(high, widths, strict=True) for side in (-1, 1)])
    film.add(rng.uniform(8, 20), 0.04 * unit, [
        oval(x, y + 0.1 * w, 0.1 * w, 0.4 * w) for (x, y), w in zip(middle, widths, strict=True)])


# %%
#| exports
def screws_and_rods(film: Film, body: Body, rng: np.random.Generator) -> None:
    "Two rods over some vertebrae, a screw into each."
    _, middle, unit, *_ = body
    first, last = sorted(rng.choice(np.arange(2, 16), 2, replace=False))
    last = max(last, first + 4) if first < 11 else 16
    metal = []
    for side in (-1, 1):
        rod = middle[first:last + 1] + (side * 0.27 * unit, 0)
        metal.append(("line", rod, int(0.11 * unit)))
        screw = side * 0.22 * unit, 0.05 * unit
        metal += [("line", [p, p + screw], int(0.13 * unit)) for p in rod]
    film.add(150, 0.02 * unit, metal)


def expose(
    light: np.ndarray,  # float32 (H, W)
    rng: np.random.Generator,
) -> np.ndarray:  # uint8 (H, W)
    "Uneven exposure, gamma, noise and the blur of the detector."
    coarse = Image.fromarray(rng.normal(0, 1, (6, 3)).astype(np.float32))
    uneven = np.asarray(coarse.resize(light.shape[::-1], Image.Resampling.BICUBIC))
    grey = np.clip(light * (1 + 0.10 * uneven) / 255, 0, 1) ** rng.uniform(0.75, 1.35)
    grey = grey * rng.uniform(0.85, 1.1) + rng.normal(0, rng.uniform(0.01, 0.035), grey.shape)
    picture = Image.fromarray(np.clip(255 * grey, 0, 255).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9))))


# %%
rng, film, steps = np.random.default_rng(3), Film(576, 192), []
quads = draw_spine(rng, 576, 192, 40).reshape(17, 4, 2)
body = Body(quads, quads.mean(1), float(np.ptp(quads[8, :, 0])), 576, 192)
for layer in (soft_tissue, ribs_and_pelvis, vertebrae, screws_and_rods):
    layer(film, body, rng)
    steps.append((layer.__name__, film.light.copy()))
steps.append(("expose", expose(film.light, rng)))

# %%
fig, axes = plt.subplots(1, 5, figsize=(6, 3.7), layout="constrained")
for axis, (name, picture) in zip(axes, steps):
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
    axis.set_axis_off()
    axis.set_title(name, fontsize=8)


# %% [markdown]
# A seed makes one phantom, always the same.

# %%
#| exports
class Phantom(NamedTuple):
    "A drawn radiograph and its truth."

    image: np.ndarray  # uint8 (H, W)
    landmarks: np.ndarray  # (68, 2) x, y in pixels
    cobb: np.ndarray  # (3,) degrees


def draw_phantom(
    seed: int,
    image_size: tuple[int, int] = (576, 192),  # (height, width)
    implant: bool | None = None,  # screws and rods; None: in about one of seven
    cobb: float | None = None,  # degrees; None: between 5 and 55
) -> Phantom:
    "One procedural frontal radiograph of a spine."
    rng, (height, width) = np.random.default_rng([seed, 2024]), image_size
    points = draw_spine(rng, height, width, rng.uniform(5, 55) if cobb is None else cobb)
    implant = rng.random() < 0.15 if implant is None else implant
    quads, film = points.reshape(17, 4, 2), Film(height, width)
    body = Body(quads, quads.mean(1), float(np.ptp(quads[8, :, 0])), height, width)
    for layer in (soft_tissue, ribs_and_pelvis, vertebrae, *([screws_and_rods] if implant else [])):
        layer(film, body, rng)
    return Phantom(expose(film.light, rng), points, cobb_angles(points, height))


# %%
phantoms = [draw_phantom(i, cobb=c, implant=i == 5) for i, c in enumerate((5, 15, 25, 35, 45, 55))]
fig, axes = plt.subplots(1, 6, figsize=(7.5, 3.8), layout="constrained")
for axis, p in zip(axes, phantoms):
    axis.imshow(p.image, cmap="gray", vmin=0, vmax=255)
    axis.set_axis_off()
    axis.contour(landmarks_to_mask(p.landmarks, 576, 192), [0.5], colors="orange", linewidths=0.5)
    axis.set_title(f"Cobb {p.cobb[0]:.1f}°", fontsize=9)
assert np.allclose([p.cobb[0] for p in phantoms], (5, 15, 25, 35, 45, 55))

# %% [markdown]
# The mask should fill about as much of the film as on radiographs (Section 5):

# %%
many = [draw_phantom(100 + i) for i in range(40)]
fill_share = [landmarks_to_mask(p.landmarks, 576, 192).mean() for p in many]
print(
    f"mask {np.mean(fill_share):.1%} of the film, from {min(fill_share):.1%} to "
    f"{max(fill_share):.1%}"
)
assert all((p.landmarks >= 0).all() and (p.landmarks < (192, 576)).all() for p in many)
assert not any(is_crooked(q) for p in many for q in p.landmarks.reshape(17, 4, 2))
