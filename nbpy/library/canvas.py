# %% [markdown]
# # The canvas
# > Any image at the network's size, and back

# %% [markdown]
# A batch has one size, radiographs have many. The paper squashes all of them to 250×750, which changes the shape of every vertebra, while its
# Section 2.4 argues that this shape matters. So the default is to *letterbox*: one scale for both axes, black on the rest. A `Placement`
# remembers what was done, so that a mask finds the way back to the pixels of the original.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/canvas.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp data.canvas

# %%
#| export
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# %%
import matplotlib.pyplot as plt
from PIL import ImageDraw
from matplotlib_inline.backend_inline import set_matplotlib_formats

# %%
#| code-fold: true
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 80})


# %%
#| export
class Placement(NamedTuple):
    "Where an image of `height` x `width` lies on a canvas of `size`."

    height: int  # of the original image, pixels
    width: int
    size: tuple[int, int]  # (height, width) of the canvas
    top: int  # first row and column of the content on the canvas
    left: int
    content: tuple[int, int]  # (height, width) of the content on the canvas

    @property
    def scale(self) -> tuple[float, float]:
        "Canvas pixels per original pixel, (vertical, horizontal)."
        return self.content[0] / self.height, self.content[1] / self.width

    def points(self, xy: np.ndarray) -> np.ndarray:
        "Points (..., 2) in original pixels, x first, brought to canvas pixels."
        down, right = self.scale
        return np.asarray(xy) * (right, down) + (self.left, self.top)


# %%
#| export
def place(
    height: int,  # of the original image
    width: int,
    size: tuple[int, int],  # (height, width) of the canvas
    fit: str = "letterbox",  # "letterbox" keeps the shape, "squash" fills the canvas
) -> Placement:
    """How an image of that size goes onto the canvas.

    ValueError for another `fit`.
    """
    if fit not in ("letterbox", "squash"):
        raise ValueError(f"fit must be 'letterbox' or 'squash', not {fit!r}")
    rows, columns = size
    if fit == "squash":
        return Placement(height, width, (rows, columns), 0, 0, (rows, columns))
    scale = min(rows / height, columns / width)
    content = min(rows, max(1, round(scale * height))), min(columns, max(1, round(scale * width)))
    top, left = (rows - content[0]) // 2, (columns - content[1]) // 2
    return Placement(height, width, (rows, columns), top, left, content)


# %%
#| export
def fit_image(
    image: Image.Image,  # any mode
    size: tuple[int, int],  # (height, width) of the canvas
    fit: str = "letterbox",  # or "squash"
) -> tuple[Image.Image, Placement]:  # mode "L" of that size, and how it got there
    "Resize with antialiasing onto a black canvas."
    where = place(image.height, image.width, size, fit)
    small = image.convert("L").resize(
        where.content[::-1], Image.Resampling.BILINEAR, reducing_gap=3.0)
    canvas = Image.new("L", (size[1], size[0]))
    canvas.paste(small, (where.left, where.top))
    return canvas, where


# %%
#| export
def unfit(
    array: np.ndarray,  # (h, w) on the canvas
    placement: Placement,  # as `fit_image` gave it
) -> np.ndarray:  # float32, (height, width) of the original image
    """Undo `fit_image`: cut the content out, enlarge bilinearly to the image's own size.

    ValueError for an array of another shape than the canvas.
    """
    if array.shape != tuple(placement.size):
        raise ValueError(f"the array is {array.shape}, the canvas was {tuple(placement.size)}")
    rows, columns = placement.content
    part = array[placement.top:placement.top + rows, placement.left:placement.left + columns]
    picture = Image.fromarray(np.ascontiguousarray(part, dtype=np.float32))
    size = placement.width, placement.height
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR))


# %%
#| code-fold: true
#| fig-alt: "A picture with a circle and a box, squashed to a tall canvas so that the circle is an ellipse, and letterboxed, where it stays a circle between black bars."
wheel = Image.new("L", (200, 300), 60)
ImageDraw.Draw(wheel).ellipse([50, 40, 150, 140], outline=255, width=6)
ImageDraw.Draw(wheel).rectangle([60, 190, 140, 250], outline=255, width=6)
fig, axes = plt.subplots(1, 3, figsize=(4, 3.2), layout="constrained")
shown = [wheel, *(fit_image(wheel, (750, 250), fit)[0] for fit in ("squash", "letterbox"))]
for axis, picture, title in zip(axes, shown, ("300×200", "squashed", "letterboxed")):
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
    axis.set_axis_off()
    axis.set_title(title, fontsize=9)


# %%
y, x = np.mgrid[0:900, 0:250] / 250
wave = (127 + 100 * np.sin(2 * x) * np.cos(y)).astype(np.uint8)
canvas, where = fit_image(Image.fromarray(wave), (384, 128))
back = unfit(np.asarray(canvas), where)
print(where, "largest error", np.abs(back - wave).max().round(1), "grey values")
assert back.shape == (900, 250) and np.abs(back - wave).max() < 8
assert not np.asarray(canvas)[:, :where.left].any() and where.left > 0


# %% [markdown]
# ## What a dataset gives
# A new format only has to say how it makes the two arrays.

# %%
#| export
@dataclass
class Sample:
    "One radiograph on the canvas, with all that is known of it."

    image: Tensor  # float32 in [0, 1], (1, H, W)
    mask: Tensor  # float32 {0, 1}, (1, H, W)
    name: str  # file name
    landmarks: np.ndarray  # (68, 2) x, y in pixels of the original image; empty where unknown
    cobb: np.ndarray  # (3,) degrees as published; empty where unknown
    placement: Placement  # how the original went onto the canvas


# %%
#| export
class CanvasSet:
    "What the datasets share: a length, and samples on the canvas."

    names: list[str]  # file names
    size: tuple[int, int]  # (height, width) of the canvas
    fit: str  # "letterbox" or "squash"

    def arrays(self, i: int) -> tuple[np.ndarray, np.ndarray, Placement]:
        """Image (0 to 255) and mask (0, 1) on the canvas, uint8 (H, W), and the placement.

        DataError where they cannot be read or do not belong together.
        """
        raise NotImplementedError

    def truth(self, i: int, where: Placement) -> tuple[np.ndarray, np.ndarray]:
        "Landmarks in original pixels and Cobb angles; empty where they are not known."
        return np.zeros((0, 2)), np.zeros(0)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Sample:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        image, mask, where = self.arrays(i)
        picture = torch.from_numpy(image / np.float32(255))[None]
        return Sample(picture, torch.from_numpy(mask.astype(np.float32))[None], self.names[i],
                      *self.truth(i, where), where)


# %%
class Chequers(CanvasSet):
    names, size, fit = ["black", "white"], (4, 4), "squash"

    def arrays(self, i):
        image = np.full(self.size, 255 * i, np.uint8)
        return image, np.eye(4, dtype=np.uint8), place(4, 4, self.size)


black, white = (Chequers()[i] for i in range(2))
assert black.image.max() == 0 and white.image.min() == 1
assert black.mask.sum() == 4 and black.landmarks.size == 0
