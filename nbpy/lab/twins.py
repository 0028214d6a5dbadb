# %% [markdown]
# # Twins
# > Radiographs that occur more than once, found by their pixels

# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/lab/twins.ipynb)

# %%
#| default_exp lab.twins

# %%
#| export
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

# %%
import matplotlib.pyplot as plt
from PIL import Image
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.io.download import find_xray

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)
XRAY = find_xray()

# %% [markdown]
# The *official* split was not made that way. Are there radiographs on both sides? Names do not tell; pixels do. Two prints of one film share many local features, wherever they were cropped. Each SIFT feature (a point with a description of its surroundings) votes for the
# image that holds its nearest neighbour: one matrix product.

# %%
#| export
Features = tuple[np.ndarray, np.ndarray]  # points (n, 2), x y in pixels; unit descriptors (n, 128)


def local_features(
    image: np.ndarray,  # uint8 (H, W)
    count: int = 200,  # the strongest ones
) -> Features:
    "SIFT of OpenCV, as RootSIFT."
    import cv2

    points, found = cv2.SIFT_create(count).detectAndCompute(np.ascontiguousarray(image), None)
    if found is None:
        return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32)
    root = np.sqrt(found / np.maximum(found.sum(1, keepdims=True), 1e-9))
    return np.array([p.pt for p in points], np.float32), root.astype(np.float32)


# %% [markdown]
# First on random textures: one, a stranger, and a brightened crop.

# %%
def texture(seed):
    noise = np.random.default_rng(seed).normal(size=(80, 40))
    return np.asarray(
        Image.fromarray((127 + 40 * noise).clip(0, 255).astype(np.uint8)).resize((200, 400), 3)
    )


one, other = texture(0), texture(1)
crop = (0.7 * np.asarray(Image.fromarray(one[30:370, 10:190]).resize((190, 360))) + 60).astype(
    np.uint8
)
features = [local_features(x) for x in (one, other, crop)]
print([len(points) for points, _ in features], "features, each", features[0][1].shape[1], "numbers")


# %%
#| export
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
# Picture and crop, (0, 2), collect most votes, but a vote is only a suspicion. For a proof the matched points must agree on *one* map (rotation, scale, shift; found by RANSAC, which tries many and keeps the one that most points obey), and the images, laid over each other, must show the same *details*: after a high-pass filter, which removes the exposure, their grey values must correlate. This tells one film, printed twice, from two films of one patient with the same metal rods.

# %%
#| export
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
#| export
def alignment(
    a: np.ndarray,  # uint8 image
    b: np.ndarray,
    features_a: Features,
    features_b: Features,
) -> tuple[int, float]:  # matches that agree, correlation of details where a covers b
    "Lay `a` over `b`; (0, 0.0) where that cannot be done."
    import cv2

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
#| export
def find_duplicates(
    images: Sequence[np.ndarray],  # uint8 (H, W), about 400 pixels high
    correlation: float = 0.6,  # of details: same film
    inliers: int = 10,  # matched features that agree on one map
    ballots: int = 3,  # votes that make a pair worth comparing
    progress: bool = True,
) -> list[tuple[int, int, int, float]]:  # (i, j, inliers, correlation), i < j
    "Pairs that show the same radiograph, cropped, scaled and exposed as they may be."
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
lines = match(features[0], features[2])
fig, axis = plt.subplots(figsize=(2.8, 2.8), layout="constrained")
axis.imshow(np.hstack([one, np.pad(crop, ((0, 40), (0, 0)))]), cmap="gray")
axis.set_axis_off()
axis.plot(*np.stack([lines[0], lines[1] + (200, 0)])[:, ::12].transpose(2, 0, 1), lw=1.5)
dx, dy = (lines[1] - lines[0] * 190 / 180).T
assert (
    np.median(np.abs(dx - np.median(dx))) < 1 and np.median(np.abs(dy - np.median(dy))) < 1
)  # one map moves them all

# %% [markdown]
# The search over the whole set takes two minutes; this is a recorded run.

# %%
if XRAY:
    def thumbnail(i):
        image = xray._load(i, small=True)[0]
        return np.asarray(image.resize((round(400 * image.width / image.height), 400)))

    thumbnails = [thumbnail(i) for i in range(len(xray))]

# %%
#| slow
pairs = find_duplicates(thumbnails, progress=False)
across = [p for p in pairs if xray.splits[p[0]] != xray.splits[p[1]]]
print(
    len(pairs),
    "pairs are alike,",
    len(across),
    "of them across the official split, with",
    len({j for _, j, *_ in across}),
    "test images",
)
for i, j, n, c in across:
    print(
        f"training {xray.names[i][10:-4]:20s} test {xray.names[j][10:-4]:20s} {n:4d} features "
        f"agree, details correlate {c:.2f}"
    )
