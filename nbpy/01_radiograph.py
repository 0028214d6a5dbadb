# %% [markdown]
# # 01 · A radiograph and its mask
# > 68 clicks a spine, and the masks and angles that follow from them

# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/01_radiograph.ipynb)

# %%
#| default_exp data.landmarks

# %%
#| export
import numpy as np

# %%
import shutil
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image, ImageDraw
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.canvas import place
from verdiff.data.phantoms import draw_phantom
from verdiff.data.xray import XRaySet
from verdiff.io.download import find_xray

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
folder = Path(tempfile.mkdtemp())
XRAY = find_xray()

# %% [markdown]
# ## 1 · What a spine comes as
#
# The paper's "public X-ray dataset" has 609 frontal radiographs, 481 to train on and 128 to test on. Nobody painted masks. An expert clicked the four corners of 17 vertebrae: the 68 *landmarks*.
#
# ```
# boostnet_labeldata/data/{training,test}/NAME.jpg
# boostnet_labeldata/labels/{training,test}/filenames.csv    one name a row
#                                          /landmarks.csv    68 x, then 68 y, as shares of width and height
#                                          /angles.csv       three Cobb angles, degrees
#                                          /NAME.jpg.mat     p2: the 68 points in pixels
# ```
#
# The order of the points, for three made-up vertebrae:

# %%
three = np.array(
    [
        [
            [20 + 3 * i, 10 + 30 * i],
            [60 + 3 * i, 8 + 30 * i],
            [18 + 3 * i, 32 + 30 * i],
            [63 + 3 * i, 30 + 30 * i],
        ]
        for i in range(3)
    ]
)  # vertebra, corner, x y
fig, axis = plt.subplots(figsize=(2.2, 2.4), layout="constrained")
for k, (x, y) in enumerate(three.reshape(-1, 2)):
    axis.plot(x, y, "o", color="orange", ms=4)
    axis.annotate(k + 1, (x, y), (3, 3), textcoords="offset points", fontsize=8)
axis.set(xlim=(5, 80), ylim=(100, 0), xlabel="x, pixels", ylabel="y, pixels")
assert (
    three.reshape(-1, 2)[4:8].tolist() == three[1].tolist()
)  # four points in a row are one vertebra

# %% [markdown]
# ## 3 · From clicks to a mask
#
# Four corners make a quadrilateral: fill it, seventeen times. The naive way takes the corners as stored:

# %%
quad = np.array(
    [[20, 20], [80, 25], [18, 60], [78, 66]]
)  # top-left, top-right, bottom-left, bottom-right


def fill(points):
    picture = Image.new("L", (100, 90))
    ImageDraw.Draw(picture).polygon([tuple(p) for p in points.tolist()], fill=1)
    return np.asarray(picture)


naive, better = fill(quad), fill(quad[[0, 1, 3, 2]])
fig, axes = plt.subplots(1, 2, figsize=(5, 2.3), layout="constrained")
for axis, picture, title in zip(
    axes, (naive, better), ("stored order: a bow tie", "around the corner order")
):
    axis.imshow(picture, cmap="magma")
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()
    axis.plot(*quad.T, "c.", clip_on=False)
assert naive.sum() < 0.6 * better.sum()


# %% [markdown]
# The stored order is left, right, left, right, so going round means swapping the last two. A few quadrilaterals still cross themselves or have a dent, because clicks were swapped or slipped.
# In a convex polygon every turn goes the same way: all four cross products have one sign.

# %%
#| exports
def is_crooked(
    quad: np.ndarray,  # (4, 2) corners: top-left, top-right, bottom-left, bottom-right
) -> bool:
    "Whether the quadrilateral crosses itself or is not convex."
    ring = np.asarray(quad, dtype=float)[[0, 1, 3, 2]]
    edge = np.roll(ring, -1, 0) - ring
    after = np.roll(edge, -1, 0)
    turn = edge[:, 0] * after[:, 1] - edge[:, 1] * after[:, 0]
    return not (np.all(turn > 0) or np.all(turn < 0))


# %%
assert not is_crooked(quad) and is_crooked(quad[[1, 0, 2, 3]])
assert is_crooked(np.array([[20, 20], [80, 25], [18, 60], [30, 30]]))  # a dent


# %% [markdown]
# A crooked vertebra is not dropped; it gets the convex hull of its points: the quadrilateral that was meant, when clicks are merely out of order.

# %%
#| exports
def outline(
    quad: np.ndarray,  # (4, 2) corners: top-left, top-right, bottom-left, bottom-right
) -> np.ndarray:  # (3 or 4, 2) corners in order around the vertebra
    "The corners in ring order; of a crooked quadrilateral its convex hull."
    quad = np.asarray(quad, dtype=float)
    if not is_crooked(quad):
        return quad[[0, 1, 3, 2]]
    from scipy.spatial import ConvexHull, QhullError

    try:
        return quad[ConvexHull(quad).vertices]
    except QhullError:  # four points on one line: an empty vertebra
        return quad


# %%
#| exports
def fill_convex(
    mask: np.ndarray,  # bool (H, W), changed in place
    ring: np.ndarray,  # (n, 2) corners x, y of a convex polygon, in order
) -> None:
    "Switch on the pixels whose centre lies inside: on the same side of all edges."
    height, width = mask.shape
    (left, top) = np.floor(ring.min(0)).astype(int)
    (right, bottom) = np.ceil(ring.max(0)).astype(int)
    rows, columns = (slice(max(low, 0), min(max(high, 0), end))
                     for low, high, end in ((top, bottom, height), (left, right, width)))
    y, x = np.ogrid[rows, columns]
    inside, outside = True, True
    for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, 0), strict=True):
        turn = (x2 - x1) * (y + 0.5 - y1) - (y2 - y1) * (x + 0.5 - x1)
        inside, outside = inside & (turn >= 0), outside & (turn <= 0)
    mask[rows, columns] |= inside | outside


# %%
crossed = np.array([[70.0, 20], [20, 25], [18, 70], [68, 66]])  # the first two clicks swapped
board = np.zeros((90, 90), bool)
fill_convex(board, outline(crossed))
assert is_crooked(crossed) and abs(board.sum() - 50 * 45.5) < 60  # nearly the whole vertebra


# %% [markdown]
# The mask is drawn on the network's canvas, on a grid five times finer, and then averaged: a pixel belongs to it when at least half of it is covered.

# %%
#| exports
def landmarks_to_mask(
    landmarks: np.ndarray,  # (68, 2) x, y in pixels of the mask; any multiple of 4 corners works
    height: int,  # of the mask
    width: int,
    supersample: int = 5,  # finer grid on which the polygons are filled; odd: no ties
) -> np.ndarray:  # uint8 {0, 1}, (height, width): a pixel counts when half of it is covered
    "Fill every vertebra."
    n = supersample
    fine = np.zeros((height * n, width * n), dtype=bool)
    for quad in np.asarray(landmarks, dtype=float).reshape(-1, 4, 2):
        fill_convex(fine, outline(quad) * n)
    covered = fine.reshape(height, n, width, n).mean((1, 3))  # (h n) (w n) -> h w
    return (covered >= 0.5).astype(np.uint8)


# %%
square = np.array([[10.0, 10], [50, 10], [10, 40], [50, 40]])
for name, q in dict(straight=square, crossed=square[[1, 0, 2, 3]]).items():
    area = landmarks_to_mask(q, 60, 60).sum()
    print(f"{name:9s} area {area}, exact {40 * 30}")
    assert abs(area - 1200) <= 12
moved = landmarks_to_mask(square + (3, 5), 60, 60)
assert (np.roll(landmarks_to_mask(square, 60, 60), (5, 3), (0, 1)) == moved).all()


# %%
def show(samples, titles):
    fig, axes = plt.subplots(
        1, len(samples), figsize=(1.25 * len(samples), 3.2), layout="constrained"
    )
    for axis, s, title in zip(axes, samples, titles):
        axis.imshow(s.image[0], cmap="gray", vmin=0, vmax=1)
        axis.set_axis_off()
        axis.contour(s.mask[0], [0.5], colors="orange", linewidths=0.6)
        axis.set_title(title, fontsize=8)
    return fig


if XRAY:
    xray = XRaySet(XRAY, "all")
    picks = [0, 100, 200, 481, 530, 600]
    show(
        [xray[i] for i in picks],
        [f"{xray.splits[i]} {i}\nCobb {xray.angles[i, 0]:.0f}°" for i in picks],
    )

# %% [markdown]
# The crooked ones, as stored (black) and as repaired (orange). The hull has four corners when the lines cross, and three when one point lies inside (a dent). In image 265 two clicks fell on nearly one spot, enlarged at the end.

# %%
if XRAY:
    crooked = [
        (i, v)
        for i in range(len(xray))
        for v in range(17)
        if is_crooked(xray.shares[i, 4 * v : 4 * v + 4])
    ]
    print(
        f"{len(crooked)} of {17 * len(xray):,} are crooked: (image, vertebra from the top)", crooked
    )
    assert (
        sorted({i for i, _ in crooked}) == [193, 265, 480, *(481 + np.array([3, 45, 85, 89]))]
        and len(crooked) == 7
    )


# %%
def draw_quad(axis, i, v):
    "Vertebra v of image i as stored and as repaired; returns its four corners."
    q = xray.landmarks(i)[4 * v : 4 * v + 4]
    axis.fill(*outline(q).T, color="orange", alpha=0.4)
    axis.plot(*q[[0, 1, 3, 2, 0]].T, "k.-", lw=0.8)
    axis.set_aspect("equal")
    return q


if XRAY:
    fig, axes = plt.subplots(1, 8, figsize=(9, 1.6), layout="constrained")
    faults = {}
    for axis, (i, v) in zip(axes, crooked):
        q = draw_quad(axis, i, v)
        faults[i] = "crossed" if len(outline(q)) == 4 else "dent"
        axis.set_title(f"image {i}:\n{faults[i]}", fontsize=8)
        axis.set_axis_off()
        axis.invert_yaxis()
    x, y = draw_quad(axes[-1], 265, 15)[2:].mean(0)  # the two lower clicks of image 265
    axes[-1].set(xlim=(x - 9, x + 9), ylim=(y + 9, y - 9), xticks=[], yticks=[])
    axes[-1].set_title("image 265:\n18 pixels of it", fontsize=8)
    assert list(faults.values()).count("crossed") == 6 and faults[480] == "dent"


# %% [markdown]
# ## 4 · Cobb angles
#
# Scoliosis is measured by the Cobb angle, the angle between the two most tilted vertebrae. With $u_i$ the vector from the
# middle of the left side of vertebra $i$ to the middle of its right side,
#
# $$\theta_{ij} = \arccos \frac{u_i \cdot u_j}{|u_i|\,|u_j|}, \qquad \text{Cobb} = \max_{i,j} \theta_{ij}.$$
#
# The set carries three angles per image. The other two lie above and below the main pair: for one bend they are the angles to the first and to the last vertebra, for an S the largest angles above and below the main pair. (If the main pair of an S lies in the lower half of the film, the third angle is taken above the second.)

# %%
#| exports
def tilt_angles(
    landmarks: np.ndarray,  # (68, 2) x, y in pixels
) -> np.ndarray:  # (17, 17) degrees between each two vertebrae
    "Angle between the midlines of all pairs of vertebrae."
    quads = np.asarray(landmarks, dtype=float).reshape(-1, 4, 2)
    u = quads[:, [1, 3]].mean(1) - quads[:, [0, 2]].mean(1)
    u /= np.maximum(np.linalg.norm(u, axis=1, keepdims=True), 1e-12)
    return np.degrees(np.arccos(np.clip(u @ u.T, -1, 1)))


# %%
#| exports
def is_s_shaped(
    landmarks: np.ndarray,  # (68, 2) x, y in pixels
) -> bool:
    "Whether the spine's centre line crosses the straight line between its two ends."
    quads = np.asarray(landmarks, dtype=float).reshape(-1, 4, 2)
    line = np.stack([quads[:, :2].mean(1), quads[:, 2:].mean(1)], 1).reshape(-1, 2)  # 34 x 2
    chord, rest = line[-1] - line[0], line[1:-2] - line[0]
    side = chord[0] * rest[:, 1] - chord[1] * rest[:, 0]
    return bool((side > 0).any() and (side < 0).any())


# %%
#| exports
def cobb_angles(
    landmarks: np.ndarray,  # (68, 2) x, y in pixels
    height: int,  # of the image: tells the upper from the lower half
) -> np.ndarray:  # (3,) degrees: main curve, then the two beside it
    "The three Cobb angles, by the rules of the public X-ray set."
    angles = tilt_angles(landmarks)
    upper, lower = np.unravel_index(angles.argmax(), angles.shape)
    main = angles[upper, lower]
    if not is_s_shaped(landmarks):
        return np.array([main, angles[0, upper], angles[-1, lower]])
    middle = np.asarray(landmarks, dtype=float).reshape(-1, 4, 2)[:, :2].mean(1)  # top edges
    above = angles[upper, :upper + 1]
    if middle[upper, 1] + middle[lower, 1] < height:  # main curve in the upper half
        return np.array([main, above.max(), angles[lower, lower:].max()])
    third = above.argmax()
    return np.array([main, above.max(), angles[third, :third + 1].max()])


# %%
tilted = np.concatenate(
    [
        square @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) + (0, 50 * i)
        for i, a in enumerate(np.radians(np.linspace(-10, 20, 17)))
    ]
)
print(cobb_angles(tilted, 900).round(2), "S-shaped" if is_s_shaped(tilted) else "one bend")
assert np.isclose(cobb_angles(tilted, 900)[0], 30) and np.isclose(tilt_angles(tilted)[0, 16], 30)

# %% [markdown]
# The angle between the two lines is the largest entry of $\theta_{ij}$:

# %%
fig, axes = plt.subplots(1, 2, figsize=(5, 3.2), layout="constrained")
for q in tilted.reshape(17, 4, 2):
    axes[0].fill(*outline(q).T, color="orange", alpha=0.5)
for q in tilted.reshape(17, 4, 2)[[0, -1]]:
    left, right = q[[0, 2]].mean(0), q[[1, 3]].mean(0)
    axes[0].axline(left, right, color="k", lw=1)
axes[0].set(xlim=(-120, 180), ylim=(870, -20), aspect="equal", title="Cobb 30°")
shown = axes[1].imshow(tilt_angles(tilted), cmap="magma", extent=(0.5, 17.5, 17.5, 0.5))
axes[1].set(title="angle between two", xlabel="vertebra", ylabel="vertebra")
fig.colorbar(shown, label="degrees", shrink=0.8);

# %% [markdown]
# And the angles. The set comes from the AASCE challenge of 2019, whose notes call the columns *proximal thoracic, main thoracic, thoracolumbar*; our rule gives the main curve first.

# %%
if XRAY:
    sizes = [xray._load(i, small=True)[1] for i in range(len(xray))]
    ours = np.array([cobb_angles(xray.shares[i] * (w, h), h) for i, (h, w) in enumerate(sizes)])
    close = np.abs(ours - xray.angles) < 0.5
    print("first column is the largest in", f"{(xray.angles.argmax(1) == 0).mean():.1%}", "of rows")
    print("ours within half a degree, column by column:", [f"{c:.1%}" for c in close.mean(0)])
    high, wide = np.array(sizes).T
    print(
        f"height {high.min()} to {high.max()}, width {wide.min()} to {wide.max()} pixels; "
        f"width / height {(wide / high).min():.2f} to {(wide / high).max():.2f}"
    )
    assert close[:, 0].all() and close.mean() > 0.99

# %% [markdown]
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | size | 250×750, squashed | letterbox (`fit = squash` in the profile `paper`) | squashing bends the very shapes that Section 2.4 relies on |
# | masks | landmarks by "two professional doctors" | quadrilaterals of the landmarks, hulls of crooked ones | the public set has no other truth |
# | split | not given | the official 481 / 128; validation by study, twins kept together | films of one back are not independent |
# | twins across the split | not mentioned | results on 128, on 120 and on 112 test images | 16 test images have a twin that was trained on |
#
# ## Exercises
#
# **1 · Predict.** A phantom of 35°, 576 pixels high and 240 wide, is letterboxed and squashed to the paper's 250×750. Where does `cobb_angles` of the canvas landmarks still say 35°?
#
# <details><summary>Answer</summary>
#
# Only in the letterboxed one: one scale for both axes keeps angles. (A phantom 192 wide would keep them when squashed, too: it has the canvas's shape.)
#
# </details>

# %%
p = draw_phantom(7, image_size=(576, 240), cobb=35)
seen = {
    fit: cobb_angles(place(576, 240, (750, 250), fit).points(p.landmarks), 750)[0]
    for fit in ("letterbox", "squash")
}
print({k: round(float(v), 1) for k, v in seen.items()})
assert abs(seen["letterbox"] - 35) < 0.2 and abs(seen["squash"] - 35) > 2


# %% [markdown]
# **2 · Change.** Fill the polygons with Pillow's `ImageDraw.polygon`, the obvious tool. Measure how much area that wins or loses on 20 phantoms at 192×64, with and without a five times finer grid.
#
# <details><summary>Answer</summary>
#
# `ImageDraw.polygon` also takes every pixel that the border touches: each vertebra grows by half a (fine) pixel on every side. So `fill_convex` tests pixel centres. A finer grid does not improve the total area of that; it decides each pixel by the area covered instead of by its centre.
#
# </details>

# %%
def pillow(landmarks, height, width, n):
    fine = Image.new("L", (width * n, height * n))
    for quad in landmarks.reshape(-1, 4, 2):
        ImageDraw.Draw(fine).polygon([tuple(p) for p in (outline(quad) * n).tolist()], fill=255)
    return np.asarray(fine.reduce(n)) >= 128


def excess(rasterise, n):
    drawn = sum(rasterise(m.landmarks / 3, 192, 64, n).sum() for m in many[:20])
    return drawn / sum(landmarks_to_mask(m.landmarks, 576, 192).sum() / 9 for m in many[:20]) - 1


for n in (1, 5):
    print(
        f"grid {n}x: Pillow {excess(pillow, n):+.1%}, pixel centres "
        f"{excess(landmarks_to_mask, n):+.1%}"
    )
assert excess(pillow, 1) > 0.05 > 0.02 > abs(excess(landmarks_to_mask, 5))


# %% [markdown]
# **3 · Implement.** Write the area of a ring of corners by the shoelace formula and use it to check `landmarks_to_mask` on a phantom, without rounding to pixels.
#
# <details><summary>Answer</summary>
#
# $$A = \tfrac12 \Bigl| \sum_i x_i\, y_{i+1} - x_{i+1}\, y_i \Bigr|$$
#
# </details>

# %%
def shoelace(ring):
    (x, y), (x2, y2) = ring.T, np.roll(ring, -1, 0).T
    return abs((x * y2 - x2 * y).sum()) / 2


exact = sum(shoelace(outline(q)) for q in many[0].landmarks.reshape(17, 4, 2))
print(f"exact {exact:.0f}, mask {landmarks_to_mask(many[0].landmarks, 576, 192).sum()} pixels")
assert abs(landmarks_to_mask(many[0].landmarks, 576, 192).sum() / exact - 1) < 0.01

# %% [markdown]
# Next: [04 · Augmentation](04_augment.ipynb), where one image becomes many.

# %%
#| hide
shutil.rmtree(folder)
