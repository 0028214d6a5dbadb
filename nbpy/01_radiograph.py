# %% [markdown]
# # 01 · A radiograph and its mask
# > 68 clicks a spine, and the masks and angles that follow from them

# %% [markdown]
# What does a network need before anything else? One that marks vertebrae learns from masks. But nobody ever painted one for the paper's radiographs: all there is are points that an expert
# clicked. How do points become pixels that can be trusted? You will fill vertebrae (first wrongly), repair crooked ones, and
# measure how bent a spine is. Half a minute on a laptop; one cell shows a real radiograph where the X-ray set is at hand.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/01_radiograph.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp data.landmarks

# %%
#| exports
import numpy as np
from scipy.spatial import ConvexHull, QhullError

# %%
#| code-fold: true
import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats
from PIL import Image, ImageDraw

from verdiff.data.canvas import place
from verdiff.data.phantoms import draw_phantom
from verdiff.data.xray import XRaySet
from verdiff.io.download import find_xray

# %%
#| code-fold: true
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})


def panels(count, size):
    "A row of axes without frames."
    fig, axes = plt.subplots(1, count, figsize=size, layout="constrained")
    for axis in np.atleast_1d(axes):
        axis.set_axis_off()
    return axes


# %% [markdown]
# ## 1 · What a spine comes as
#
# The paper's public X-ray set (SpineWeb set 16, used in the AASCE challenge of 2019) holds radiographs taken from the front. In each, an expert clicked the four corners of 17 vertebrae, twelve of the
# chest and five lumbar ones: 68 *landmarks*, from the top of the spine to its bottom. The table of landmarks stores them as 68 values of $x$, then 68 of $y$, as
# shares of the radiograph's width and height, so that they survive any scaling.
#
# Four points in a row are one vertebra. Their order within it decides all that follows; here for three made-up vertebrae:

# %%
one = np.array([[20, 10], [60, 8], [18, 32], [63, 30]])  # corner, x y
three = np.stack([one + [3 * i, 30 * i] for i in range(3)])
clicks = three.reshape(-1, 2)  # 12 2, as 68 2 in a whole spine

# %%
#| code-fold: true
#| fig-alt: "Twelve numbered points in three groups of four: 1 top left, 2 top right, 3 bottom left, 4 bottom right, then 5 to 8 and 9 to 12 in the same order below."
fig, axis = plt.subplots(figsize=(3, 3.2), layout="constrained")
axis.plot(*clicks.T, "o", color="darkorange", ms=4)
for k, point in enumerate(clicks):
    axis.annotate(k + 1, point, (3, 3), textcoords="offset points", fontsize=9)
axis.set(xlim=(5, 80), ylim=(100, 0), xlabel="x, pixels", ylabel="y, pixels");

# %% [markdown]
# Rows grow downwards, as in every image: the point $(0, 0)$ is the top left corner.
#
# ## 2 · From clicks to a mask
#
# Four corners make a quadrilateral. Fill it, seventeen times, and there is the mask. The naive way takes the corners as they are stored:

# %%
quad = np.array([[20, 20], [80, 25], [18, 60], [78, 66]])


def pillow_fill(points):
    picture = Image.new("L", (100, 90))
    corners = [tuple(p) for p in points.tolist()]
    ImageDraw.Draw(picture).polygon(corners, fill=1)
    return np.asarray(picture)


# %%
naive, better = pillow_fill(quad), pillow_fill(quad[[0, 1, 3, 2]])
print(f"{naive.sum()} pixels and {better.sum()} pixels")
assert naive.sum() < 0.6 * better.sum()

# %%
#| code-fold: true
#| fig-alt: "Left: the corners joined as stored give two triangles that touch in a point, a bow tie. Right: joined around the vertebra they give a full quadrilateral."
titles = "joined as stored: a bow tie", "joined around the vertebra"
for axis, picture, title in zip(panels(2, (6, 2.8)), (naive, better), titles):
    axis.imshow(picture, cmap="magma")
    axis.plot(*quad.T, "c.", ms=9, clip_on=False)
    axis.set_title(title, fontsize=10)

# %% [markdown]
# The stored order is left, right, left, right: joined like that, the outline crosses itself and half of the bone is gone. To go round, swap the last two.
# No program would have complained; a network trained on bow ties would have learned to draw bow ties. *Look at your labels before you train on them.*
#
# Swapping is not enough for a few vertebrae whose clicks were themselves out of order or slipped. How can a program notice? Walk around
# the outline: in a convex polygon every turn goes the same way. With edges $e_k$, all cross products $e_k \times e_{k+1}$ have one sign.

# %%
#| exports
def is_crooked(
    quad: np.ndarray,  # (4, 2) x, y: top left, top right, then the bottom
) -> bool:
    "Whether the quadrilateral crosses itself or is not convex."
    ring = np.asarray(quad, dtype=float)[[0, 1, 3, 2]]
    edge = np.roll(ring, -1, 0) - ring
    after = np.roll(edge, -1, 0)
    turn = edge[:, 0] * after[:, 1] - edge[:, 1] * after[:, 0]
    return not (np.all(turn > 0) or np.all(turn < 0))


# %%
swapped = quad[[1, 0, 2, 3]]  # the two upper clicks exchanged
dented = np.array([[20, 20], [80, 25], [18, 60], [30, 30]])
assert not is_crooked(quad)
assert is_crooked(swapped) and is_crooked(dented)

# %% [markdown]
# A crooked vertebra is not thrown away. It gets the convex *hull* of its four points, the rubber band around them: exactly the quadrilateral that was meant
# when clicks are merely out of order, and a fair guess when one slipped inside.

# %%
#| exports
def outline(
    quad: np.ndarray,  # (4, 2) x, y: top left, top right, then the bottom
) -> np.ndarray:  # (3 or 4, 2) corners in order around the vertebra
    "The corners in ring order; of a crooked quadrilateral its convex hull."
    quad = np.asarray(quad, dtype=float)
    if not is_crooked(quad):
        return quad[[0, 1, 3, 2]]
    try:
        return quad[ConvexHull(quad).vertices]
    except QhullError:  # four points on one line: an empty vertebra
        return quad


# %%
#| code-fold: true
#| fig-alt: "Three quadrilaterals as stored, in black, over their repaired outline in orange: a sound one, a crossed one whose hull has four corners, a dented one whose hull is a triangle."
shapes = {"sound": quad, "crossed": swapped, "dented": dented}
for axis, (title, q) in zip(panels(3, (6.5, 2.3)), shapes.items()):
    axis.fill(*outline(q).T, color="darkorange", alpha=0.4)
    axis.plot(*q[[0, 1, 3, 2, 0]].T, "k.-", lw=1)
    axis.set(title=f"{title}: {len(outline(q))} corners", aspect="equal")
    axis.invert_yaxis()

# %% [markdown]
# Now fill it. A pixel belongs to a convex polygon when its *centre* lies on the same side of all edges, which is again the sign of a cross product.

# %%
#| exports
def fill_convex(
    mask: np.ndarray,  # bool (H, W), changed in place
    ring: np.ndarray,  # (n, 2) x, y of a convex polygon's corners, in order
) -> None:
    "Switch on the pixels whose centre lies on the same side of all edges."
    (left, top), (right, bottom) = (
        np.floor(ring.min(0)).astype(int), np.ceil(ring.max(0)).astype(int))
    rows, columns = (
        slice(max(low, 0), min(max(high, 0), end)) for low, high, end in
        ((top, bottom, mask.shape[0]), (left, right, mask.shape[1])))
    y, x = np.ogrid[rows, columns]
    inside, outside = True, True
    for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, 0), strict=True):
        turn = (x2 - x1) * (y + 0.5 - y1) - (y2 - y1) * (x + 0.5 - x1)
        inside, outside = inside & (turn >= 0), outside & (turn <= 0)
    mask[rows, columns] |= inside | outside


# %%
board = np.zeros((90, 90), bool)
fill_convex(board, outline(swapped))
print(f"{board.sum()} pixels, as if no click had been swapped")
again = np.zeros((90, 90), bool)
fill_convex(again, outline(quad))
assert (board == again).all()

# %% [markdown]
# One more thing. On a small canvas a vertebra is a dozen pixels wide, and a hard yes or no at each pixel's centre makes its border ragged. So the
# polygons are filled on a grid five times finer, which is then averaged: a pixel counts when at least half of it is covered.

# %%
#| exports
def landmarks_to_mask(
    landmarks: np.ndarray,  # (68, 2) x, y in pixels; any multiple of 4 works
    height: int,  # of the mask
    width: int,
    supersample: int = 5,  # finer grid for the polygons; odd: no ties
) -> np.ndarray:  # uint8 {0, 1}, (height, width)
    "Fill every vertebra; a pixel counts when half of it is covered."
    n = supersample
    fine = np.zeros((height * n, width * n), dtype=bool)
    for quad in np.asarray(landmarks, dtype=float).reshape(-1, 4, 2):
        fill_convex(fine, outline(quad) * n)
    covered = fine.reshape(height, n, width, n).mean((1, 3))  # (h n) (w n)
    return (covered >= 0.5).astype(np.uint8)


# %%
box = np.array([[10, 10], [50, 10], [10, 40], [50, 40]])
for q in (box, box[[1, 0, 2, 3]]):
    print(f"area {landmarks_to_mask(q, 60, 60).sum()}, exact {40 * 30}")
    assert abs(landmarks_to_mask(q, 60, 60).sum() - 1200) <= 12

# %% [markdown]
# A whole spine, drawn by the program of [lesson 02](02_phantoms.ipynb), with clicks and mask:

# %%
phantom = draw_phantom(seed=7, cobb=35)
mask = landmarks_to_mask(phantom.landmarks, *phantom.image.shape)

# %%
#| code-fold: true
#| fig-alt: "A drawn spine radiograph; the same with 68 orange points on the corners of its 17 vertebrae; the mask, 17 white quadrilaterals on black."
axes = panels(3, (5.5, 5))
for axis, picture in zip(axes, (phantom.image, phantom.image, 255 * mask)):
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
axes[1].plot(*phantom.landmarks.T, ".", color="darkorange", ms=4)
for axis, title in zip(axes, ("radiograph $b$", "68 clicks", "mask")):
    axis.set_title(title, fontsize=10)

# %% [markdown]
# That pair, the radiograph $b$ and its mask, is all that the network will ever see. And a real one, the first of the public set (SpineWeb set 16, AASCE 2019; shown for
# teaching):

# %%
#| fig-alt: "A real radiograph of a spine from the front, and the same with its clicks and the outlines of 17 filled vertebrae in orange, following the bodies from the chest to the pelvis."
if XRAY := find_xray():
    real = XRaySet(XRAY, "training", size=(576, 192))[0]
    left, right = panels(2, (4.6, 5.6))
    for axis in (left, right):
        axis.imshow(real.image[0], cmap="gray", vmin=0, vmax=1)
    right.contour(real.mask[0], [0.5], colors="darkorange", linewidths=0.8)
    points = real.placement.points(real.landmarks)
    right.plot(*points.T, ".", color="cyan", ms=2)
else:
    print("this cell needs the X-ray set: verdiff data xray")

# %% [markdown]
# Look closely: bodies of vertebrae have rounded, hollow sides, and straight lines between corners cut some bone off and add some disc. The mask is not the
# truth but what four clicks say of it. Nor do two clickings of one radiograph agree completely: [real radiographs](lab/xray.ipynb) measures how much, and finds in it the *ceiling*
# of every score on this set.
#
# ## 3 · How bent is it? The Cobb angle
#
# Physicians want one number of a bent spine (scoliosis). The *Cobb angle* is the angle between the two vertebrae that are tilted
# most against each other. With $u_i$ the vector from the middle of the left side of vertebra $i$ to the middle of its right side,
#
# $$\theta_{ij} = \arccos \frac{u_i \cdot u_j}{|u_i|\,|u_j|}, \qquad \text{Cobb} = \max_{i,j} \theta_{ij}.$$

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
theta = tilt_angles(phantom.landmarks)
upper, lower = np.unravel_index(theta.argmax(), theta.shape)
print(f"{theta.max():.1f} degrees between vertebrae",
      upper + 1, "and", lower + 1)
assert np.isclose(theta.max(), 35)  # what the phantom was asked for

# %%
#| code-fold: true
#| fig-alt: "Left: the outlines of a bent spine with black lines through the two most tilted vertebrae. Right: a 17 by 17 map of angles, dark on its diagonal, brightest at the pair of these two."
fig, axes = plt.subplots(1, 2, figsize=(7, 4), layout="constrained")
for k, q in enumerate(phantom.landmarks.reshape(17, 4, 2)):
    axes[0].fill(*outline(q).T, color="darkorange", alpha=0.5)
    if k in (upper, lower):
        axes[0].axline(q[[0, 2]].mean(0), q[[1, 3]].mean(0), color="k", lw=1)
axes[0].set(xlim=(0, 192), ylim=(576, 0), aspect="equal", title="the pair")
shown = axes[1].imshow(theta, cmap="magma", extent=(0.5, 17.5, 17.5, 0.5))
axes[1].set(title="angle between two", xlabel="vertebra", ylabel="vertebra")
fig.colorbar(shown, label="degrees", shrink=0.8);

# %% [markdown]
# The set publishes *three* angles for each radiograph: that of the main curve, and one for what lies above and below it. Their rule differs between a spine that
# bends once, like a C, and one that bends there and back, like an S. Which of the two is it? An S crosses the straight line between its ends:

# %%
#| exports
def is_s_shaped(
    landmarks: np.ndarray,  # (68, 2) x, y in pixels
) -> bool:
    "Whether the centre line crosses the straight line between its two ends."
    quads = np.asarray(landmarks, dtype=float).reshape(-1, 4, 2)
    edges = np.stack([quads[:, :2].mean(1), quads[:, 2:].mean(1)], 1)
    line = edges.reshape(-1, 2)  # 34 2, two points a vertebra
    chord, rest = line[-1] - line[0], line[1:-2] - line[0]
    side = chord[0] * rest[:, 1] - chord[1] * rest[:, 0]
    return bool((side > 0).any() and (side < 0).any())


# %%
s_shaped = [is_s_shaped(draw_phantom(i).landmarks) for i in range(20)]
print("of twenty phantoms,", sum(s_shaped), "are bent like an S")

# %% [markdown]
# For a C, the other two are the angles from the main pair to the first and to the last vertebra. For an S they are the largest angles above and below the main pair; where its main
# pair lies in the lower half of the radiograph, the third is taken above the second.

# %%
#| exports
def cobb_angles(
    landmarks: np.ndarray,  # (68, 2) x, y in pixels
    height: int,  # of the radiograph: tells its upper from its lower half
) -> np.ndarray:  # (3,) degrees: main curve, then the two beside it
    "The three Cobb angles, by the rules of the public X-ray set."
    angles = tilt_angles(landmarks)
    upper, lower = np.unravel_index(angles.argmax(), angles.shape)
    main = angles[upper, lower]
    if not is_s_shaped(landmarks):
        return np.array([main, angles[0, upper], angles[-1, lower]])
    quads = np.asarray(landmarks, dtype=float).reshape(-1, 4, 2)
    middle = quads[:, :2].mean(1)  # of the top edges
    above = angles[upper, :upper + 1]
    if middle[upper, 1] + middle[lower, 1] < height:  # main curve: upper half
        below = angles[lower, lower:]
        return np.array([main, above.max(), below.max()])
    third = above.argmax()
    beyond = angles[third, :third + 1]
    return np.array([main, above.max(), beyond.max()])


# %%
for seed in (2, 7):
    p = draw_phantom(seed, cobb=35)
    kind = "S" if is_s_shaped(p.landmarks) else "C"
    print(f"{kind}:", cobb_angles(p.landmarks, height=576).round(1))
    assert np.isclose(cobb_angles(p.landmarks, 576)[0], 35)

# %% [markdown]
# The rules beyond the main curve are our reading of the published numbers; [lesson 03](03_xray_set.ipynb) counts how often they agree.
#
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | masks | landmarks by "two professional doctors" | quadrilaterals of the landmarks, hulls of crooked ones | the public set has no other truth |
# | size | 250×750, squashed | [letterbox](library/canvas.ipynb): one scale for both axes | squashing changes every angle (exercise 1), and Section 2.4 of the paper relies on the shape |
#
# ## Exercises
#
# **1 · Predict.** A phantom of 35°, 576 pixels high and 240 wide, goes to the paper's canvas of 750×250 in two ways: letterboxed, and squashed.
# What does `cobb_angles` say in each? (`place(576, 240, (750, 250), fit).points(landmarks)` moves the points; `fit` is `"letterbox"` or `"squash"`.) Write your guesses down, then run.

# %%
p = draw_phantom(7, image_size=(576, 240), cobb=35)
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# One scale for both axes keeps every angle: 35°. Squashing stretches this phantom more along its height than across, so that every tilt grows steeper, and a patient
# would have gained some degrees of scoliosis. (A phantom 192 wide would keep its angles even then: it has the canvas's shape.)

# %%
#| code-fold: true
for fit in ("letterbox", "squash"):
    points = place(576, 240, (750, 250), fit).points(p.landmarks)
    print(f"{fit:9s} {cobb_angles(points, 750)[0]:.1f} degrees")

# %% [markdown]
# </details>
#
# **2 · Implement.** The area of a ring of corners is $A = \tfrac12 \bigl| \sum_i x_i\, y_{i+1} - x_{i+1}\, y_i \bigr|$, the shoelace formula. Write it, and use it to check
# `landmarks_to_mask` on a whole phantom without counting pixels.

# %%
def shoelace(ring):
    ...  # your code here


# %%
#| code-fold: true
#| code-summary: "Answer and check"
def shoelace_answer(ring):
    (x, y), (x2, y2) = ring.T, np.roll(ring, -1, 0).T
    return abs((x * y2 - x2 * y).sum()) / 2


quads = phantom.landmarks.reshape(17, 4, 2)
exact = sum(shoelace_answer(outline(q)) for q in quads)
print(f"exact {exact:.0f}, mask {mask.sum()} pixels")
assert abs(mask.sum() / exact - 1) < 0.01

# %% [markdown]
# **3 · Diagnose (hard).** A colleague fills the polygons with Pillow's `ImageDraw.polygon`, as `pillow_fill` does above, on a canvas of 192×64. On the training masks everything looks right, yet
# the vertebrae that her network draws touch each other, and all her areas come out too large. Look at one corner of `better`, or measure: what does Pillow do, and why does it matter more
# on a small canvas? Would a finer grid cure it?

# %%
small = phantom.landmarks / 3  # on 192 x 64
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# `ImageDraw.polygon` also takes every pixel that the border touches, so each vertebra grows by about half a pixel on every side. Half a pixel is nothing for a vertebra of 100 pixels
# and much for one of ten; the discs between them, thinner still, close. A finer grid makes the pixel, and with it the error, smaller. Testing centres, as `fill_convex` does, removes
# it on any grid.

# %%
#| code-fold: true
#| code-summary: "Check"
def pillow_mask(landmarks, height, width, n):
    fine = Image.new("L", (width * n, height * n))
    for q in landmarks.reshape(-1, 4, 2):
        ring = [tuple(p) for p in (outline(q) * n).tolist()]
        ImageDraw.Draw(fine).polygon(ring, fill=255)
    return np.asarray(fine.reduce(n)) >= 128


for n in (1, 5):
    excess = [rasterise(small, 192, 64, n).sum() / (exact / 9) - 1
              for rasterise in (pillow_mask, landmarks_to_mask)]
    print(f"grid {n}x: Pillow {excess[0]:+.1%}, centres {excess[1]:+.1%}")
    assert excess[0] > 2 * abs(excess[1])

# %% [markdown]
# </details>
#
# Masks from clicks, then. But a course cannot wait for patients' data: where do a thousand radiographs come from that anybody may have?
# Next: [02 · Phantoms](02_phantoms.ipynb).
