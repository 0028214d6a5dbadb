# %% [markdown]
# # Zoom to the spine
# > A square radiograph, or one with much around the spine: find it coarsely, look again from near, put the mask back

# %% [markdown]
# The canvas is three times as high as wide. A square radiograph is letterboxed until its *width* fits, and a spine that filled the canvas in
# training is left with a third of its rows. `find_spine` asks the prior where the spine is, crops around it with the canvas's own shape, and asks
# again from there, until the spine is as large as training knows it. `Segmenter.predict` then segments the crop and puts it back
# into the radiograph; `zoom=False`, or `--no-zoom`, leaves it out. A radiograph of usual shape whose spine has a usual size is segmented as a whole.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/zoom.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp segmentation.zoom

# %%
#| export
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from verdiff.data.canvas import Placement, fit_image
from verdiff.diffusion.sampling import in_batches
from verdiff.networks.model import VerdiffNet

# %%
#| code-fold: true
import json
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import Markdown
from matplotlib_inline.backend_inline import set_matplotlib_formats

import verdiff
from verdiff.data.phantoms import draw_phantom
from verdiff.segmentation.segmenter import Segmenter

set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)

# %% [markdown]
# How large a spine usually is on the canvas was read from what the bundled network finds at first in 25 of the 49 validation radiographs as they
# are: medians of the mask's width and of its rows. `LEAST` lies above the largest zoom that any of the 49 asks for, 1.25, so none of them is zoomed.

# %%
#| export
WIDTH, ROWS, COLUMNS = 0.165, 0.81, 0.78  # of a usual spine (the last: at most), by the canvas
SHAPE = 0.58  # height by width over the canvas's own, below which a radiograph is wide
NEAR = 1.15  # a spine is near enough where a larger zoom would be less than this
LEAST = 1.4  # zooms of less are not worth it
SURE = 0.7  # `Look.score` from which a wide radiograph is not searched window by window


class Box(NamedTuple):
    "A part of a radiograph, in its pixels."

    top: int
    left: int
    height: int
    width: int

    def scale(self, size: tuple[int, int]) -> float:
        "Canvas pixels for one of the radiograph's."
        return min(size[0] / self.height, size[1] / self.width)

    def cut(self, image: Image.Image) -> Image.Image:
        "This part of an image."
        return image.crop((self.left, self.top, self.left + self.width, self.top + self.height))

    def put_back(self, part: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        "A part (height, width) where it was cut, in zeros (H, W)."
        whole = np.zeros(shape, part.dtype)
        whole[self.top:self.top + self.height, self.left:self.left + self.width] = part
        return whole


# %% [markdown]
# ## One look
# What the prior says of one part: where the spine is on the canvas, and by how much a zoom would bring it to its usual size.

# %%
#| export
@dataclass
class Look:
    "What the prior found in one part of a radiograph."

    box: Box  # the part
    placement: Placement  # how it lies on the canvas
    found: tuple[int, int, int, int] | None = None  # first, last + 1 row and column; None: nothing
    zoom: float = 1.0  # that would make the spine as large as usual
    score: float = -1.0  # how sure the prior is, less for a short spine; at most 1

    def around(self, shape: tuple[int, int]) -> Box:
        "The part of a radiograph (H, W), of the canvas's shape, that would show the spine so."
        where, (r0, r1, c0, c1) = self.placement, self.found
        down, right = where.scale
        middle = (((r0 + r1) / 2 - where.top) / down + self.box.top,
                  ((c0 + c1) / 2 - where.left) / right + self.box.left)
        starts, sides = [], []
        for centre, full, canvas, scale in zip(middle, shape, where.size, where.scale, strict=True):
            side = min(full, max(1, round(canvas / self.zoom / scale)))
            starts.append(min(max(0, round(centre - side / 2)), full - side))
            sides.append(side)
        return Box(*starts, *sides)


@torch.no_grad()
def look(
    model: VerdiffNet,  # trained
    image: Image.Image,  # mode "L", the whole radiograph
    boxes: Sequence[Box],  # parts of it
) -> list[Look]:
    "Ask the prior about each part, in one batch if memory allows."
    canvases, places = zip(*(fit_image(b.cut(image), model.size, "letterbox") for b in boxes),
                           strict=True)
    batch = torch.from_numpy(np.stack([np.array(c, np.float32) / 255 for c in canvases]))[:, None]
    prior = in_batches(lambda a, b: model.condition(batch[a:b].to(model.device)).prior[:, 0],
                       len(batch)).float().cpu().numpy()  # b h w, in [-1, 1]
    return [weigh(Look(*at), p) for *at, p in zip(boxes, places, prior, strict=True)]


def weigh(
    seen: Look,
    prior: np.ndarray,  # (h, w) in [-1, 1]
) -> Look:  # the same, filled
    "Where the spine is, how large and how certain; 1 % of the mask on each side is left out."
    mask, (h, w) = prior > 0, prior.shape
    if mask.sum() < 1e-3 * h * w:
        return seen
    rows, columns = (np.cumsum(mask.sum(axis)) / mask.sum() for axis in (1, 0))
    (r0, r1), (c0, c1) = (np.searchsorted(s, (0.01, 0.99)) + (0, 1) for s in (rows, columns))
    width = mask.sum() / mask.any(1).sum()
    seen.found = int(r0), int(r1), int(c0), int(c1)
    seen.zoom = float(min(WIDTH * w / width, ROWS * h / (r1 - r0), COLUMNS * w / (c1 - c0)))
    seen.score = float(prior[mask].mean() * min(1, (r1 - r0) / (0.7 * ROWS * h)))
    return seen


# %% [markdown]
# ## Nearer and nearer
# From afar the prior draws a spine too thick, so one zoom does not reach; three do.

# %%
#| export
def come_near(
    model: VerdiffNet,
    image: Image.Image,  # mode "L", the whole radiograph
    seen: Look,  # where to start
    looks: int = 3,  # more, at most
) -> Look:  # the last of them
    "Zoom to what is seen, look again, and so on, until the spine is as large as usual."
    shape = image.height, image.width
    for _ in range(looks):
        if seen.found is None or 1 / NEAR < seen.zoom < NEAR:
            break
        if (box := seen.around(shape)) == seen.box:
            break
        seen = look(model, image, [box])[0]
    return seen


def windows(
    shape: tuple[int, int],  # (height, width) of a wide radiograph
    size: tuple[int, int],  # (height, width) of the canvas
) -> list[Box]:
    "Parts of full height and nearly the canvas's shape, each half over the next."
    (height, width), (h, w) = shape, size
    side = min(width, max(1, round(height * w / h / 0.9)))
    count = min(16, math.ceil((width - side) / (side / 2)) + 1)
    return [Box(0, round(x), height, side) for x in np.linspace(0, width - side, count)]


# %%
#| export
def find_spine(
    model: VerdiffNet,  # trained
    image: Image.Image,  # mode "L", of any size
) -> Box | None:  # None: the whole radiograph is the right part to segment
    """The part of a radiograph that shows its spine as large as the network knows spines.

    First the whole; where a wide radiograph leaves the prior unsure, also windows of the canvas's
    shape, side by side. Always None for a network that squashes its images.
    """
    if model.config.fit != "letterbox":
        return None
    shape, size = (image.height, image.width), model.size
    whole = Box(0, 0, *shape)
    first = look(model, image, [whole])[0]
    wide = shape[0] / shape[1] < SHAPE * size[0] / size[1]
    if not wide and (first.found is None or first.zoom < LEAST):
        return None
    best = come_near(model, image, first) if first.zoom > NEAR else first
    if wide and best.score < SURE:
        around = look(model, image, windows(shape, size))
        around = [come_near(model, image, seen, 2) for seen in
                  sorted(around, key=lambda seen: -seen.score)[:2]]
        best = max([best, *around], key=lambda seen: seen.score)
    near = best.box.scale(size) >= LEAST * whole.scale(size)
    return best.box if near and best.score > 0 else None


# %% [markdown]
# ## Use
# A phantom in the corner of a square twice as high: how often the canvas would have to be enlarged, and the part that is found.

# %%
segmenter = Segmenter.from_pretrained()
spine = draw_phantom(3, (768, 256)).image
square = np.full((1536, 1536), 30, np.uint8)
square[700:700 + 768, 1100:1100 + 256] = spine
box = find_spine(segmenter.model, Image.fromarray(square))
print(box)
assert box.top <= 760 and box.top + box.height >= 1400 and box.left <= 1190
assert find_spine(segmenter.model, Image.fromarray(spine)) is None

# %%
near, far = (segmenter.predict(square, zoom=zoom) for zoom in (True, False))
assert near.zoomed_to == box and far.zoomed_to is None and near.mask.shape == square.shape

# %%
#| code-fold: true
#| fig-alt: "A grey square with a drawn spine in its lower right corner and a frame around the spine; then the corner three times: the drawn spine, the mask without zoom, blurred and with vertebrae run together, and the mask with zoom, each vertebra apart."
fig, axes = plt.subplots(1, 4, figsize=(9, 3.6), layout="constrained",
                         width_ratios=(1.6, 1, 1, 1))
corner = np.s_[700:700 + 768, 1100:1100 + 256]
for axis, x, title in zip(axes, (square, spine, far.mask[corner], near.mask[corner]),
                          ("square", "its spine", "no zoom", "zoom"), strict=True):
    axis.imshow(x, cmap="gray")
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()
axes[0].add_patch(plt.Rectangle((box.left, box.top), box.width, box.height, fill=False,
                                edgecolor="darkorange"));

# %% [markdown]
# ## On real radiographs
# `bench/shapes.py` pads, cuts and resizes real test radiographs and scores each at its own size (one step, one sample, half of the pixels; the
# constants above were chosen on validation). *Change* is Dice minus that of the same radiograph as it is and unzoomed, with 95 % bootstrap intervals.

# %%
#| echo: false
path = Path(verdiff.__file__).resolve().parent.parent / "bench/results/shapes-test.json"
stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": []}


def cells(row, way):
    "Dice, and the paired difference below it."
    r = row[way]
    return f"{r['dice']:.3f}<br>{r['lost']:+.3f} [{r['lost_low']:+.3f}, {r['lost_high']:+.3f}]"


lines = ["| test radiographs | zoomed | whole: Dice, change | zoom: Dice, change |",
         "|---|---|---|---|"]
for row in stored["rows"]:
    far, near = cells(row, "whole"), cells(row, "zoom")
    zoomed = f"{row['zoomed']} of {stored['films']}"
    lines.append(f"| {row['variant']} | {zoomed} | {far} | {near} |")
Markdown("\n".join(lines) if stored["rows"] else "The results lie in `bench/results` of a clone.")

# %% [markdown]
# Wherever the whole spine is in view, zooming keeps the mean Dice within 0.02 of the radiograph as it is (checked below). Some are zoomed that need no
# zoom, which costs a little, and where a third is cut off the zoom does not win back what is lost.

# %%
#| echo: false
for row in stored["rows"]:
    assert "two thirds" in row["variant"] or row["zoom"]["lost"] > -0.02
