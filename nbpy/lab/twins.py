# %% [markdown]
# # Twins
# > Radiographs that occur more than once, found by their pixels

# %% [markdown]
# A test image that was also trained on flatters every method. **In the public X-ray set 16 of the 128 test images have a twin in the training part: the same radiograph, printed twice.** Eight had been known; the search below finds fifteen of the sixteen from pixels alone. So every result on this site is also given for the 112 images without a twin. Here: the pairs, how they were found, and the code. The page takes seconds ([![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/lab/twins.ipynb)), the search over all 609 images two minutes of one CPU core.

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().run_line_magic(  # noqa: F821
        "pip", "install -q 'verdiff[notebooks] @ git+https://github.com/verdiff/verdiff'")

# %%
#| default_exp lab.twins

# %%
#| code-fold: true
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.xray import XRaySet
from verdiff.files import git_revision
from verdiff.io.download import find_xray
from verdiff.lab.twins import find_duplicates

# %%
#| code-fold: true
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 75})
XRAY = find_xray()

# %% [markdown]
# ## The pairs
#
# Recorded run: one CPU core, 2026-11-27, code of commit 0e78ae4. Images are named by their place in the list of training, then test images; no file name is needed.

# %%
#| slow
#| code-fold: true
data = XRaySet(XRAY, "all", (400, 400))


def thumbnail(i):
    "400 pixels high."
    image = data.read_image(i)
    return np.asarray(image.resize((round(400 * image.width / image.height), 400)))


thumbnails = [thumbnail(i) for i in range(len(data))]
pairs = find_duplicates(thumbnails, progress=False)
across = [p for p in pairs if data.splits[p[0]] != data.splits[p[1]]]
print(f"{len(data)} images, {len(pairs)} pairs are alike; {len(across)} of them lie across the "
      f"official split and touch {len({j for _, j, *_ in across})} test images")
for i, j, n, c in across:
    print(f"image {i:3d} (training) = {j} (test): {n:3d} features agree, details correlate {c:.2f}")

# %%
#| slow
#| code-fold: true
#| fig-alt: "Four pairs of radiographs of a spine, training above, test below. Each pair shows the same patient in the same pose with the same marks; crop and brightness differ."
fig, axes = plt.subplots(2, 4, figsize=(6, 6.4), layout="constrained")
for column, (i, j, *_) in zip(axes.T, across[::5]):
    for axis, k in zip(column, (i, j)):
        axis.imshow(thumbnails[k], cmap="gray")
        axis.set_axis_off()
        axis.set_title(f"{data.splits[k]}, {k}", fontsize=8)

# %% [markdown]
# *Radiographs: SpineWeb set 16, the AASCE challenge of 2019, reduced to 400 rows.* The other pairs lie within one part; what is one study stays together when a part is held back for validation ([page 03](../03_xray_set.ipynb)). One more test image adds the sixteenth twin: too dark for the search to be sure of, but in the same run of numbers and alike to the eye.
#
# ## What was done
#
# Names do not tell; pixels do. Two prints of one radiograph share many local features, wherever they were cropped.
#
# 1. Each SIFT feature (a point with a description of its surroundings) *votes* for the image that holds its nearest neighbour: one matrix product. Pairs with at least three votes are suspects.
# 2. The matched points of a suspect must agree on *one* map (rotation, scale, shift; RANSAC tries many and keeps the one that most points obey).
# 3. Laid over each other, the two must show the same *details*: after a high-pass filter, which removes the exposure, their grey values must correlate. This tells one radiograph, printed twice, from two radiographs of one patient with the same braces.
#
# ## The code, step by step
#
# It is shown on random textures: one, a stranger, and a brightened crop of the first.

# %%
#| code-fold: true
def texture(seed):
    noise = np.random.default_rng(seed).normal(127, 40, (80, 40)).clip(0, 255)
    return np.asarray(Image.fromarray(noise.astype(np.uint8)).resize((200, 400), 3))


one, other = texture(0), texture(1)
crop = np.asarray(Image.fromarray(one[30:370, 10:190]).resize((190, 360)))
crop = (0.7 * crop + 60).astype(np.uint8)

# %%
#| exports
#| code-fold: true
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from verdiff.lab.methods import need


# %%
#| exports
#| code-fold: true
Features = tuple[np.ndarray, np.ndarray]  # points (n, 2), x y in pixels; unit descriptors (n, 128)


def local_features(
    image: np.ndarray,  # uint8 (H, W)
    count: int = 200,  # the strongest ones
) -> Features:
    """SIFT of OpenCV, as RootSIFT (Arandjelovic and Zisserman 2012); n at most `count`, perhaps 0.

    Missing where OpenCV is not installed.
    """
    cv2 = need("cv2", extra="notebooks")
    points, found = cv2.SIFT_create(count).detectAndCompute(np.ascontiguousarray(image), None)
    if found is None:
        return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32)
    root = np.sqrt(found / np.maximum(found.sum(1, keepdims=True), 1e-9))
    return np.array([p.pt for p in points], np.float32), root.astype(np.float32)


# %%
features = [local_features(x) for x in (one, other, crop)]
print([len(points) for points, _ in features], "features, each", features[0][1].shape[1], "numbers")


# %%
#| exports
#| code-fold: true
def votes(
    features: Sequence[Features],  # of each image
    progress: bool = True,
) -> Counter[tuple[int, int]]:  # (i, j), i < j: votes between these two images
    "Let each feature vote for the image, other than its own, that holds its nearest neighbour."
    owner = torch.cat([torch.full((len(f[0]),), i) for i, f in enumerate(features)])
    every = torch.from_numpy(np.concatenate([f[1] for f in features]))
    tally: Counter[tuple[int, int]] = Counter()
    for i, (_, own) in enumerate(tqdm(features, "votes", disable=None if progress else True)):
        if len(own):
            like = torch.from_numpy(own) @ every.T  # cosine of every feature to every other
            like[:, owner == i] = -1
            tally.update((min(i, j), max(i, j)) for j in owner[like.argmax(1)].tolist())
    return tally


# %%
print(votes(features, progress=False))


# %% [markdown]
# One and its crop, (0, 2), collect most votes, but a vote is only a suspicion.

# %%
#| exports
#| code-fold: true
def match(
    features_a: Features,
    features_b: Features,
    ratio: float = 0.85,  # Lowe's test: the second best match must be that much worse
) -> tuple[np.ndarray, np.ndarray]:  # points of a, and their partners in b, (n, 2) each
    "Features that are alike, and alike to no other."
    (points_a, like_a), (points_b, like_b) = features_a, features_b
    if min(len(points_a), len(points_b)) < 2:
        return np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32)
    distance = np.sqrt(np.maximum(2 - 2 * like_a @ like_b.T, 0))
    two = np.partition(distance, 1, axis=1)
    good = two[:, 0] < ratio * two[:, 1]
    return points_a[good], points_b[distance.argmin(1)[good]]


# %%
#| exports
#| code-fold: true
def alignment(
    a: np.ndarray,  # uint8 image
    b: np.ndarray,
    features_a: Features,
    features_b: Features,
) -> tuple[int, float]:  # matches that agree, correlation of details where a covers b
    """Lay `a` over `b` by the similarity that most matches agree on (RANSAC, of fixed draws).

    (0, 0.0) where fewer than five features match, or the scale leaves [0.5, 2]; the correlation,
    in [-1, 1], is 0.0 where `a` covers less than 0.3 of `b`. Missing without OpenCV.
    """
    cv2 = need("cv2", extra="notebooks")
    points, partners = match(features_a, features_b)
    if len(points) < 5:
        return 0, 0.0
    cv2.setRNGSeed(0)
    move, inlier = cv2.estimateAffinePartial2D(points, partners, ransacReprojThreshold=3.0)
    if move is None or not 0.5 < np.sqrt(abs(np.linalg.det(move[:, :2]))) < 2:
        return 0, 0.0
    shape = b.shape[::-1]
    covered = cv2.warpAffine(np.ones_like(a), move, shape) > 0
    if covered.mean() < 0.3:
        return int(inlier.sum()), 0.0
    laid = (np.float32(x) for x in (cv2.warpAffine(a, move, shape), b))
    fine = [x - cv2.GaussianBlur(x, (0, 0), 12) for x in laid]
    return int(inlier.sum()), float(np.corrcoef(*(x[covered] for x in fine))[0, 1])


# %%
#| exports
#| code-fold: true
def find_duplicates(
    images: Sequence[np.ndarray],  # uint8 (H, W), about 400 pixels high
    correlation: float = 0.6,  # of details, from which on it is the same radiograph
    inliers: int = 10,  # matched features that agree on one map
    ballots: int = 3,  # votes that make a pair worth comparing
    progress: bool = True,
) -> list[tuple[int, int, int, float]]:  # (i, j, inliers, correlation), i < j
    """Pairs that show the same radiograph, cropped, scaled and exposed as they may be.

    Missing where OpenCV is not installed.
    """
    features = [local_features(image) for image in images]
    tally = votes(features, progress)
    pairs = sorted(pair for pair, n in tally.items() if n >= ballots)
    found = [(i, j, *alignment(images[i], images[j], features[i], features[j])) for i, j in pairs]
    return [f for f in found if f[2] >= inliers and f[3] >= correlation]


# %%
found = find_duplicates([one, other, crop], progress=False)
print(found)
assert [(i, j) for i, j, *_ in found] == [(0, 2)]

# %%
#| code-fold: true
#| fig-alt: "Two grey noise textures side by side, the right one brighter and smaller. Coloured lines join matched points; all but one run parallel, as one map moves them."
lines = match(features[0], features[2])
fig, axis = plt.subplots(figsize=(2.8, 2.8), layout="constrained")
axis.imshow(np.hstack([one, np.pad(crop, ((0, 40), (0, 0)))]), cmap="gray")
axis.set_axis_off()
axis.plot(*np.stack([lines[0], lines[1] + (200, 0)])[:, ::12].transpose(2, 0, 1), lw=1.5)
dx, dy = (lines[1] - lines[0] * 190 / 180).T
spread = [np.median(np.abs(v - np.median(v))) for v in (dx, dy)]
print("half of the matches are moved alike to within", np.round(spread, 2), "pixels")
assert max(spread) < 1
