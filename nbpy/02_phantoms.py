# %% [markdown]
# # 02 · Phantoms
# > A spine radiograph drawn by a program, so that everybody has data

# %% [markdown]
# Lesson 01 left a question: where do radiographs come from that anybody may have? Patients' images are few and private; drawn ones, *phantoms*, are free, endless, and their
# truth is exact. But how hard must a drawing be before it is worth training on? You will draw one layer by layer and measure, after
# each, how well plain brightness still finds the bone. Half a minute on a laptop.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/02_phantoms.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp data.phantoms

# %%
#| exports
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from verdiff.data.landmarks import cobb_angles

# %%
#| code-fold: true
import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.landmarks import is_crooked, landmarks_to_mask
from verdiff.data.xray import XRaySet
from verdiff.io.download import find_xray

# %%
#| code-fold: true
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})


def show(pictures, titles, width=1.5):
    "A row of grey pictures."
    size = (width * len(pictures), 3.1 * width)
    fig, axes = plt.subplots(1, len(pictures), figsize=size,
                             layout="constrained")
    for axis, picture, title in zip(axes, pictures, titles):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    return axes


# %% [markdown]
# ## 1 · A curve
#
# A spine is a stack of vertebrae, each tilted a little against the last. Let $u_i$ run from 0 at the top to 1 at the bottom. A piece of a sine gives smooth curves, bent once or twice:
#
# $$\theta_i \propto \sin(2\pi k\,u_i + \varphi),$$
#
# shifted to mean zero and scaled so that the largest difference of two tilts *is* the wanted Cobb angle ([lesson 01](01_radiograph.ipynb)).

# %%
#| exports
def spine_tilts(
    rng: np.random.Generator,
    cobb: float,  # degrees: the main curve
) -> np.ndarray:  # (17,) radians
    "A piece of a sine whose largest difference is `cobb`."
    u = np.linspace(0, 1, 17)
    frequency, phase = rng.uniform(0.6, 1.3), rng.uniform(0, 2 * np.pi)
    tilt = np.sin(2 * np.pi * frequency * u + phase)
    return np.radians(cobb) * (tilt - tilt.mean()) / np.ptp(tilt)


# %%
curves = [spine_tilts(np.random.default_rng(s), cobb=40) for s in range(5)]
assert np.allclose([np.degrees(np.ptp(c)) for c in curves], 40)

# %%
#| code-fold: true
#| fig-alt: "Five smooth curves of tilt in degrees over the vertebrae 1 to 17, rising and falling once or twice, each with forty degrees between its lowest and its highest point."
fig, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
for curve in curves:
    axis.plot(range(1, 18), np.degrees(curve), "o-", ms=3, lw=0.8)
axis.set(xlabel="vertebra", ylabel="tilt, degrees",
         title="five spines of 40°");

# %% [markdown]
# From tilts to corners: bodies grow downwards, discs lie between them, and each centre is one step along the tilt below the last. The result
# is scaled into the picture, and since one scale is used for both axes, its angles stay.

# %%
#| exports
def draw_spine(
    rng: np.random.Generator,
    height: int,  # of the image, pixels
    width: int,
    cobb: float,  # degrees: the main curve
) -> np.ndarray:  # (68, 2) landmarks, x, y in pixels
    "Corners of 17 vertebrae, growing downwards, whose Cobb angle is `cobb`."
    tilt = spine_tilts(rng, cobb)
    tall = np.linspace(1, rng.uniform(1.5, 1.9), 17)  # of the bodies
    ratio = np.linspace(rng.uniform(1.35, 1.6), rng.uniform(1.2, 1.4), 17)
    wide = tall * ratio
    gap = tall * np.linspace(0.16, 0.34, 17)  # discs
    step = np.concatenate([[0], (tall[:-1] + tall[1:]) / 2 + gap[:-1]])
    between = np.concatenate([[0], (tilt[:-1] + tilt[1:]) / 2])
    move = np.stack([step * np.sin(between), step * np.cos(between)], 1)
    centre = np.cumsum(move, 0)
    across = np.stack([np.cos(tilt), -np.sin(tilt)], 1)  # unit vectors
    half = tall[:, None] / 2 * np.stack([np.sin(tilt), np.cos(tilt)], 1)
    top, bottom = (
        rng.uniform(low, high, 17)[:, None] * wide[:, None] / 2 * across
        for low, high in ((0.94, 1.0), (0.97, 1.04)))
    flat = np.stack([centre - half - top, centre - half + top,
                     centre + half - bottom, centre + half + bottom], 1)
    flat = flat.reshape(68, 2)
    room = np.array([0.94 * width, rng.uniform(0.80, 0.96) * height])
    flat = flat * (room / np.ptp(flat, axis=0)).min()
    free = np.array([width, height]) - np.ptp(flat, axis=0)
    return flat - flat.min(0) + free * rng.uniform((0.35, 0.3), (0.65, 0.7))


# %%
points = draw_spine(np.random.default_rng(3), 576, 192, cobb=40)
truth = landmarks_to_mask(points, 576, 192)
print(cobb_angles(points, 576).round(1), f"bone {truth.mean():.1%}")
assert np.isclose(cobb_angles(points, 576)[0], 40)
assert (points >= 0).all() and (points < (192, 576)).all()

# %% [markdown]
# ## 2 · The naive phantom
#
# The truth is there; the picture should be easy. Bone is bright: paint it bright, add noise, done?

# %%
noise = np.random.default_rng(0).normal(0, 10, truth.shape)
naive = np.clip(90 + 60 * truth + noise, 0, 255)


# %% [markdown]
# Before any network, ask the simplest method there is: call bone what is brighter than some level, and choose the best level in
# hindsight. The Dice score (twice the overlap over the sum of both areas; [lesson 05](05_metrics.ipynb)) says how good that is.

# %%
def best_threshold(picture, mask):
    "The highest Dice that any grey level reaches."
    found = [picture > level for level in range(0, 256, 4)]
    return max(2 * (f & (mask > 0)).sum() / (f.sum() + mask.sum())
               for f in found)


# %%
print(f"Dice of plain brightness: {best_threshold(naive, truth):.3f}")
assert best_threshold(naive, truth) > 0.98

# %% [markdown]
# A threshold solves it. A network trained on such pictures learns a threshold too, and fails on the first radiograph, where ribs, heart and belly are
# as bright as bone. The failure is in the data: *what the data does not demand, no network learns.*
#
# ## 3 · Light in layers
#
# So let us draw what makes a radiograph hard. A detector sums what the rays met on their way, hence a picture is a sum of layers, each of them soft at its own scale.

# %%
#| exports
Shape = tuple[str, Any, int]  # "polygon", "line", "ellipse"; points; thickness


class Plate:
    "A detector on which shapes are added as light."

    def __init__(self, height: int, width: int):
        self.light = np.zeros((height, width), np.float32)

    def add(self, value: float, blur: float, shapes: Iterable[Shape]) -> None:
        "Shapes as one layer: `value` grey levels bright, `blur` pixels soft."
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
    w, h = width / 2, height / 2
    return "ellipse", [(x - w, y - h), (x + w, y + h)], 0


# %%
plate = Plate(80, 60)
plate.add(100, 3, [oval(30, 40, 40, 50)])
plate.add(50, 0, [("line", [(0, 0), (60, 80)], 4)])
assert 140 < plate.light[40, 30] <= 150  # two layers: a sum
assert plate.light[0, 59] < 1

# %% [markdown]
# Everything is placed relative to the vertebrae and measured in their width:

# %%
#| exports
class Body(NamedTuple):
    "Where the layers of a phantom go."

    quads: np.ndarray  # (17, 4, 2) corners
    middle: np.ndarray  # (17, 2) centres
    unit: float  # width of the ninth vertebra, pixels
    height: int  # of the picture
    width: int


# %%
def new_body(points, height=576, width=192):
    quads = points.reshape(17, 4, 2)
    unit = float(np.ptp(quads[8, :, 0]))
    return Body(quads, quads.mean(1), unit, height, width)


body = new_body(points)
print(f"a vertebra is {body.unit:.0f} pixels wide")


# %% [markdown]
# Soft tissue first. It knows nothing of vertebrae's borders and moves the brightness about by more than bone does.

# %%
#| exports
def soft_tissue(plate: Plate, body: Body, rng: np.random.Generator) -> None:
    "Exposure growing downwards, lungs, flesh around the spine, heart, belly."
    _, middle, unit, height, width = body
    ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    plate.light += 70 + rng.uniform(0, 40) * ramp
    chest = middle[:11, 1].min(), middle[10, 1]
    x, y = middle[6, 0], np.mean(chest)
    plate.add(-rng.uniform(30, 55), 0.06 * width, [
        oval(x + side * 0.27 * width, y, 0.42 * width, 1.1 * np.ptp(chest))
        for side in (-1, 1)])  # lungs
    above, below = middle[0] - (0, height), middle[-1] + (0, height)
    spine = np.vstack([above, middle, below])
    flesh = "line", spine, int(1.7 * unit)
    plate.add(rng.uniform(25, 45), 0.3 * unit, [flesh])
    x, y = middle[8]
    heart = oval(x + 0.8 * unit, y, 2.1 * unit, 3.2 * unit)
    plate.add(rng.uniform(20, 40), 0.25 * unit, [heart])
    belly = oval(width / 2, height, 2 * width, 0.75 * height)
    plate.add(rng.uniform(10, 40), 0.12 * height, [belly])


# %% [markdown]
# Then bones that are *not* the target. Ribs begin at the vertebrae's upper corners and are as bright as their rims; the network will have to tell them apart by
# shape.

# %%
#| exports
def ribs_and_pelvis(
    plate: Plate, body: Body, rng: np.random.Generator
) -> None:
    "Eleven pairs of ribs, and the upper rim of the pelvis."
    quads, middle, unit, _, width = body
    ribs, bow = [], np.linspace(0, 1, 12)
    for i in range(11):
        for side, corner in ((-1, 0), (1, 1)):
            x, y = quads[i, corner]
            reach = rng.uniform(0.9, 1.1) * 0.45 * width
            droop = bow ** 2 - 0.5 * np.sin(np.pi * bow)
            drop = (0.9 + 0.12 * i) * unit * droop
            curve = np.stack([x + side * reach * bow, y + drop], 1)
            ribs.append(("line", curve, int(0.22 * unit)))
    plate.add(rng.uniform(12, 26), 0.05 * unit, ribs)
    x, y = middle[-1, 0], middle[-1, 1] + 1.9 * unit
    plate.add(rng.uniform(15, 30), 0.15 * unit, [
        oval(x + side * 0.36 * width, y, 0.4 * width, 2.6 * unit)
        for side in (-1, 1)])


# %%
rng, plate, stages = np.random.default_rng(3), Plate(576, 192), {}
for layer in (soft_tissue, ribs_and_pelvis):
    layer(plate, body, rng)
    stages[layer.__name__] = plate.light.copy()


# %% [markdown]
# And the vertebrae themselves: bodies, bright rims, and what stands out of them at the back, the two *pedicles* and the *spinous process*, which from
# the front look like two eyes and a nose.

# %%
#| exports
def vertebrae(plate: Plate, body: Body, rng: np.random.Generator) -> None:
    "Bodies, their bright rims, two pedicles and the spinous process of each."
    quads, middle, unit = body[:3]
    rings = [quad[[0, 1, 3, 2, 0]] for quad in quads]
    rims = [("line", ring, int(0.07 * unit)) for ring in rings]
    plate.add(rng.uniform(14, 30), 0.05 * unit,
              [("polygon", ring, 0) for ring in rings])
    plate.add(rng.uniform(14, 34), 0.04 * unit, rims)
    widths = np.ptp(quads[:, :, 0], axis=1)
    high = (quads[:, :2].mean(1) + middle) / 2  # upper edge to centre
    plate.add(rng.uniform(10, 25), 0.04 * unit, [
        oval(x + side * 0.29 * w, y, 0.16 * w, 0.22 * w)
        for (x, y), w in zip(high, widths, strict=True) for side in (-1, 1)])
    plate.add(rng.uniform(8, 20), 0.04 * unit, [
        oval(x, y + 0.1 * w, 0.1 * w, 0.4 * w)
        for (x, y), w in zip(middle, widths, strict=True)])


# %% [markdown]
# Some patients carry metal, brighter than anything, right on the bone:

# %%
#| exports
def screws_and_rods(
    plate: Plate, body: Body, rng: np.random.Generator
) -> None:
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
    plate.add(150, 0.02 * unit, metal)


# %%
for layer in (vertebrae, screws_and_rods):
    layer(plate, body, rng)
    stages[layer.__name__] = plate.light.copy()


# %% [markdown]
# Last the detector: exposure that is uneven over the plate, a gamma curve, noise and blur.

# %%
#| exports
def expose(
    light: np.ndarray,  # float32 (H, W), about 0 to 255
    rng: np.random.Generator,
) -> np.ndarray:  # uint8 (H, W)
    "Uneven exposure, gamma, noise and the blur of the detector."
    coarse = Image.fromarray(rng.normal(0, 1, (6, 3)).astype(np.float32))
    size = light.shape[::-1]
    uneven = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))
    grey = np.clip(light * (1 + 0.10 * uneven) / 255, 0, 1)
    grey = grey ** rng.uniform(0.75, 1.35)
    gain, sd = rng.uniform(0.85, 1.1), rng.uniform(0.01, 0.035)
    grey = grey * gain + rng.normal(0, sd, grey.shape)
    picture = Image.fromarray(np.clip(255 * grey, 0, 255).astype(np.uint8))
    blur = ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9))
    return np.asarray(picture.filter(blur))


# %%
stages["expose"] = expose(plate.light, rng)
print("Dice of plain brightness:")
for name in ("vertebrae", "screws_and_rods", "expose"):
    print(f"  {name:16s}{best_threshold(stages[name], truth):.2f}")

# %%
#| code-fold: true
#| fig-alt: "Six pictures of one spine: bright vertebrae on even grey; soft tissue only, with dark lungs; ribs and the pelvis over it; the vertebrae; two rods with screws; and the exposed result, uneven and noisy."
show([naive, *stages.values()], ["naive", *stages]);

# %% [markdown]
# The same truth six times. On the first, brightness was the whole answer; on the last it no longer is. How far is that from real radiographs? Section 4 counts.
#
# ## 4 · One seed, one phantom
#
# `draw_phantom` puts it together. A seed makes one phantom, always the same: no file has to be kept, and all who run this page see the same picture. For that, every random
# number comes from *one* generator, in a fixed order.

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
    implant: bool | None = None,  # metal; None: in about one of seven
    cobb: float | None = None,  # degrees; None: between 5 and 55
) -> Phantom:
    "One procedural frontal radiograph of a spine."
    rng, (height, width) = np.random.default_rng([seed, 2024]), image_size
    angle = rng.uniform(5, 55) if cobb is None else cobb
    points = draw_spine(rng, height, width, angle)
    implant = rng.random() < 0.15 if implant is None else implant
    quads, plate = points.reshape(17, 4, 2), Plate(height, width)
    unit = float(np.ptp(quads[8, :, 0]))
    body = Body(quads, quads.mean(1), unit, height, width)
    metal = [screws_and_rods] if implant else []
    for layer in (soft_tissue, ribs_and_pelvis, vertebrae, *metal):
        layer(plate, body, rng)
    picture = expose(plate.light, rng)
    return Phantom(picture, points, cobb_angles(points, height))


# %%
angles = (5, 15, 25, 35, 45, 55)
phantoms = [draw_phantom(seed, cobb=angle, implant=angle == 55)
            for seed, angle in enumerate(angles)]
assert np.allclose([p.cobb[0] for p in phantoms], angles)
again = draw_phantom(0, cobb=5, implant=False)
assert (again.image == phantoms[0].image).all()

# %%
#| code-fold: true
#| fig-alt: "Six phantoms whose spines bend from 5 to 55 degrees, all vertebrae outlined in orange; exposure, ribs and noise differ from one to the next, and the last has metal rods."
axes = show([p.image for p in phantoms],
            [f"Cobb {p.cobb[0]:.0f}°" for p in phantoms])
for axis, p in zip(axes, phantoms):
    outline = landmarks_to_mask(p.landmarks, 576, 192)
    axis.contour(outline, [0.5], colors="darkorange", linewidths=0.6)

# %% [markdown]
# Now forty of them. No vertebra may leave the picture or be crooked:

# %%
many = [draw_phantom(100 + i) for i in range(40)]
for p in many:
    assert (p.landmarks >= 0).all() and (p.landmarks < (192, 576)).all()
    assert not any(is_crooked(q) for q in p.landmarks.reshape(17, 4, 2))


# %%
def report(name, pairs):
    "Share of bone, and what plain brightness reaches, on average."
    bone = np.mean([mask.mean() for _, mask in pairs])
    score = np.mean([best_threshold(*pair) for pair in pairs])
    print(f"{name:12s} bone {bone:.1%}, brightness reaches {score:.2f}")


# %%
report("phantoms", [(p.image, landmarks_to_mask(p.landmarks, 576, 192))
                    for p in many])
if XRAY := find_xray():
    real = XRaySet(XRAY, "test", size=(576, 192))
    report("radiographs", [real.arrays(i)[:2] for i in range(0, 128, 4)])

# %% [markdown]
# So phantoms show more bone than real radiographs, and they are still too easy: brightness alone gets twice as far on them as on patients.
# And more is missing: their vertebrae are quadrilaterals, their ribs lines, every spine is a sine, and nobody moved. Here they serve for lessons, tests and demonstrations; claims about the method rest on [real radiographs](lab/xray.ipynb). For training, a
# [phantom set](library/phantom_set.ipynb) writes many of them in the very layout of the public X-ray set.
#
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | training data | three clinical sets | phantoms besides | a lesson must run without a download, and with a truth that is exact |
#
# ## Exercises
#
# **1 · Predict.** `draw_phantom(0, implant=False)` and `draw_phantom(0, implant=True)` have the same seed. Do they show the same spine? The same ribs? The same noise? Decide, then run.

# %%
plain, metal = draw_phantom(0, implant=False), draw_phantom(0, implant=True)
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# Same spine and same ribs: they are drawn before the metal. The choice of screws then takes numbers from the same generator, so that exposure and noise are others,
# nearly everywhere. That is the price of one generator in a fixed order; a generator for each layer would cure it.

# %%
#| code-fold: true
print("landmarks differ by", np.abs(plain.landmarks - metal.landmarks).max())
difference = plain.image.astype(int) - metal.image
print("pixels that differ:", f"{(difference != 0).mean():.0%}")

# %% [markdown]
# </details>
#
# **2 · Implement.** A layer of your own, `marker(plate, body, rng)`: the letter or square of lead that tells left from right, bright, sharp, in an upper corner.

# %%
def marker(plate, body, rng):
    ...  # your code here


# %%
#| code-fold: true
#| code-summary: "Answer and check"
def marker_answer(plate, body, rng):
    side, x = 0.12 * body.width, rng.choice([0.05, 0.83]) * body.width
    corners = [(x, 8), (x + side, 8), (x + side, 8 + side), (x, 8 + side)]
    plate.add(180, 0, [("polygon", corners, 0)])


marked = Plate(576, 192)
marker_answer(marked, body, np.random.default_rng(0))
assert marked.light.max() > 150 and not marked.light[100:].any()

# %% [markdown]
# **3 · Diagnose (hard).** A colleague trains on phantoms drawn with `cobb=5` and is proud of her Dice. Then, by mistake, she gives her network a *black* picture, and it draws a spine
# that overlaps the masks of her test phantoms by far more than chance. Her code is right. What did the network learn? Which number, to be
# had before any training, would have warned her? Would other phantoms help?

# %%
straight = [draw_phantom(i, (288, 96), cobb=5) for i in range(40)]
bent = [draw_phantom(i, (288, 96), cobb=55) for i in range(40)]
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# It learned where spines usually are. The number is the Dice of the *average mask*, cut at some level, with each single mask: the second simplest method there is, which does not look at the
# picture at all. Straight spines lie almost on top of each other, bent ones less. Drawing more curves helps, and so does moving pictures about, which is
# lesson [04](04_augment.ipynb). A score says little without the scores of such simple methods beside it.

# %%
#| code-fold: true
#| code-summary: "Check"
def average_mask_dice(phantoms, level=0.3):
    masks = np.array([landmarks_to_mask(p.landmarks, 288, 96, 1) > 0
                      for p in phantoms])
    guess = masks.mean(0) > level
    return np.mean([2 * (guess & m).sum() / (guess.sum() + m.sum())
                    for m in masks])


blind = [average_mask_dice(group) for group in (straight, bent)]
print("straight {:.2f}, bent {:.2f}".format(*blind))
assert blind[0] > blind[1] + 0.1

# %% [markdown]
# </details>
#
# Phantoms are honest: each is new, and nothing is in two places at once. Is the public set? Next: [03 · The X-ray set and its traps](03_xray_set.ipynb).
