# %% [markdown]
# # 05 · Metrics
# > Dice, IoU, what they hide, how sure a mean can be, and which rows of Table 1 cannot be true

# %% [markdown]
# A network gives a mask. Is it a good one? You will write the scores that the whole course reports, check them against two well-kept libraries, watch Dice overlook a vertebra slid by one level, put an interval around a mean, and hold the paper's Table 1 against an inequality from 1906. Under a minute on a laptop. Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/05_metrics.ipynb).

# %%
#| hide
import sys

from IPython import get_ipython

if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp metrics

# %%
#| exports
#| code-fold: true
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import Tensor

# %%
#| code-fold: true
import warnings

import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats
from monai.metrics import (
    DiceMetric, MeanIoU, compute_hausdorff_distance, compute_surface_dice,
)
from torchmetrics.functional.segmentation import dice_score

from verdiff.data.landmarks import landmarks_to_mask
from verdiff.data.phantoms import draw_phantom

# %%
#| code-fold: true
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)
warnings.filterwarnings("ignore", module="monai|torchmetrics")


# %% [markdown]
# ## 1 · Dice and IoU
#
# How well does a predicted mask cover the true one? With $P$ the predicted and $G$ the true pixels, Eq. (17) and (18) are
#
# $$\mathrm{Dice} = \frac{2\,|P \cap G|}{|P| + |G|}, \qquad \mathrm{IoU} = \frac{|P \cap G|}{|P \cup G|}.$$
#
# One score *per image*: a mean over images is a statement about patients, a score over all pixels at once is not. If both masks are empty the formulas say 0/0. An empty answer to an empty question is right, so it scores one; that is also MONAI's convention with `ignore_empty=False`.

# %%
#| exports
def _overlap(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    "|P and G|, |P|, |G| of each image, float64."
    if pred.shape != target.shape:
        raise ValueError(f"pred is {tuple(pred.shape)}, "
                         f"target is {tuple(target.shape)}")
    p, g = (x.reshape(len(x), -1) for x in (pred, target))  # b (c h w)
    for name, x in (("pred", p), ("target", g)):
        if x.dtype != torch.bool and not ((x == 0) | (x == 1)).all():
            raise ValueError(f"{name} must hold only 0 and 1; "
                             "threshold it first, for example > 0.5")
    p, g = p.bool().cpu(), g.bool().cpu()  # not every device knows float64
    return tuple(x.sum(1, dtype=torch.float64) for x in (p & g, p, g))


def dice(
    pred: Tensor,  # bool or {0, 1}, (B, ...)
    target: Tensor,  # the same shape
) -> Tensor:  # float64 in [0, 1], (B,)
    "Eq. (17) for each image, both empty: 1; ValueError for any other input."
    both, p, g = _overlap(pred, target)
    return torch.where(p + g > 0, 2 * both / (p + g).clamp(min=1), 1.0)


def iou(
    pred: Tensor,  # bool or {0, 1}, (B, ...)
    target: Tensor,  # the same shape
) -> Tensor:  # float64 in [0, 1], (B,)
    "Eq. (18) for each image, both empty: 1; ValueError for any other input."
    both, p, g = _overlap(pred, target)
    union = p + g - both
    return torch.where(union > 0, both / union.clamp(min=1), 1.0)


# %% [markdown]
# By hand: four pixels, two predicted, two true, one in common. Then the edge cases.

# %%
p, g = torch.tensor([[1, 1, 0, 0]]), torch.tensor([[0, 1, 1, 0]])
empty = torch.zeros_like(p)
assert dice(p, g) == 0.5 and iou(p, g) == 1 / 3
assert dice(p, empty) == iou(p, empty) == 0
assert dice(empty, empty) == iou(empty, empty) == 1

# %% [markdown]
# And against MONAI, on a hundred random masks, some of them empty:

# %%
random = torch.Generator().manual_seed(0)
fill = torch.rand(100, 1, 1, 1, generator=random).sub(0.1).clamp(min=0)
shape = 100, 1, 24, 16
pred, true = (torch.rand(shape, generator=random) < fill for _ in range(2))

# %%
for ours, theirs in ((dice, DiceMetric), (iou, MeanIoU)):
    public = theirs(ignore_empty=False)(pred.float(), true.float())[:, 0]
    gap = (ours(pred, true) - public).abs().max()
    print(f"{ours.__name__}: largest difference {gap:.0e}")
    assert gap < 1e-6

# %% [markdown]
# torchmetrics agrees as well, but answers the empty question in its own way:

# %%
def theirs(pred, true):
    one_class = dict(num_classes=1, input_format="one-hot", average="none")
    return dice_score(pred.long(), true.long(), **one_class)[:, 0].double()


some = (pred | true).any(dim=(1, 2, 3))
torch.testing.assert_close(
    dice(pred, true)[some], theirs(pred[some], true[some]), atol=1e-6, rtol=0
)
print("two empty masks:", theirs(pred[~some][:1], true[~some][:1]).item())

# %% [markdown]
# ## 2 · What Dice hides
#
# Take a perfect mask and name each vertebra after the one above it: every name sits one too low, the top vertebra gets no box, and a surgeon operates on the wrong level. Or leave one vertebra out, or make each a little too big, or slide the whole mask down by half a vertebra.

# %%
phantom = draw_phantom(3)
boxes = phantom.landmarks.reshape(17, 4, 2)  # vertebra, corner, (x, y)


def drawn(boxes):
    mask = landmarks_to_mask(boxes.reshape(-1, 2), 576, 192)
    return torch.from_numpy(mask).bool()[None, None]


# %%
truth, centre = drawn(boxes), boxes.mean(1, keepdims=True)
cases = {
    "truth": truth,
    "one level off": drawn(boxes[1:]),  # each box on the vertebra below
    "one missing": drawn(np.delete(boxes, 8, 0)),
    "10 % too big": drawn(centre + 1.10 * (boxes - centre)),
    "half a body low": drawn(boxes + (0, 12)),
}

# %%
for name, mask in cases.items():
    both = dice(mask, truth).item(), iou(mask, truth).item()
    print("{:16s} Dice {:.3f}  IoU {:.3f}".format(name, *both))

# %%
assert dice(cases["10 % too big"], truth) < dice(cases["one missing"], truth)

# %%
#| code-fold: true
#| fig-alt: "Five times the same drawn radiograph with an outlined mask and its Dice: the truth 1.000; one level off, where L1 stands one vertebra lower; one vertebra missing; boxes too big; boxes half a vertebra too low, with by far the lowest score."
levels = [f"T{k}" for k in range(1, 13)] + [f"L{k}" for k in range(1, 6)]


def write_names(axis, boxes, names):
    "Each name beside its box; one of them, L1, on red."
    for (x, y), name in zip(boxes.mean(1), names):
        colour = "crimson" if name == "L1" else "black"
        axis.text(x + 28, y, name, color="white", fontsize=6, va="center",
                  bbox={"color": colour, "pad": 0.6, "lw": 0})


fig, axes = plt.subplots(1, 5, figsize=(6.8, 4), layout="constrained")
for axis, (name, mask) in zip(axes, cases.items()):
    axis.imshow(phantom.image, cmap="gray")
    axis.set_axis_off()
    axis.set_title(f"{name}\n{dice(mask, truth).item():.3f}", fontsize=8)
    axis.contour(mask[0, 0], [0.5], colors="orange", linewidths=0.7)
write_names(axes[0], boxes, levels)
write_names(axes[1], boxes[1:], levels)
write_names(axes[2], np.delete(boxes, 8, 0), np.delete(levels, 8))


# %% [markdown]
# A harmless border costs more than a lost vertebra. And the second picture, with the highest Dice of all wrong ones, gives all sixteen vertebrae that it shows a wrong name: follow L1, on red. (T counts the vertebrae of the chest, L those of the lower back.)
#
# So we also measure distances between *borders*. A border is what an erosion takes away, and a distance transform says of every pixel how far the nearest border is. From these distances, both ways, come **HD95**, the 95th percentile of the distance from one border to the other (after Hausdorff; the larger of the two ways), and **surface Dice**, the share of both borders that lies within a tolerance of the other. If one mask is empty there is no distance; we say infinity, and a share of zero. Both empty count as perfect.

# %%
#| exports
def _border_scores(
    pred: Tensor,  # bool or {0, 1}, (B, 1, H, W)
    target: Tensor,  # the same shape
    score: Callable[[np.ndarray, np.ndarray], float],  # of both distances
    perfect: float,  # where both masks are empty
    worst: float,  # where one is
) -> Tensor:  # float64 (B,)
    "A score of the distances from either border to the other, in pixels."
    _, p, g = _overlap(pred, target)
    out = torch.where(p + g == 0, perfect, worst).double()
    for i in torch.nonzero((p > 0) & (g > 0)).flatten().tolist():
        masks = [x[i, 0].bool().cpu().numpy() for x in (pred, target)]
        one, two = (mask & ~binary_erosion(mask) for mask in masks)
        out[i] = score(distance_transform_edt(~two)[one],
                       distance_transform_edt(~one)[two])
    return out


def hd95(
    pred: Tensor,  # bool or {0, 1}, (B, 1, H, W)
    target: Tensor,  # the same shape
) -> Tensor:  # pixels, float64 (B,)
    "95th percentile of the distance between borders; one empty: infinity."

    def score(*ways: np.ndarray) -> float:
        return max(np.quantile(way, 0.95) for way in ways)

    return _border_scores(pred, target, score, 0.0, float("inf"))


def surface_dice(
    pred: Tensor,  # bool or {0, 1}, (B, 1, H, W)
    target: Tensor,  # the same shape
    tolerance: float = 2.0,  # pixels
) -> Tensor:  # float64 in [0, 1], (B,)
    "Share of both borders that lies within the tolerance of the other."

    def score(*ways: np.ndarray) -> float:
        return float(np.mean(np.concatenate(ways) <= tolerance))

    return _border_scores(pred, target, score, 1.0, 0.0)


# %% [markdown]
# A square shifted by five pixels is five pixels away, and the edge cases are what we said:

# %%
box = torch.zeros(1, 1, 40, 40, dtype=torch.bool)
box[..., 10:20, 10:20] = True
nothing = box & ~box
assert hd95(box, box.roll(5, -1)) == 5 and hd95(box, nothing).isinf()
assert surface_dice(box, box.roll(1, -1)) == 1 == surface_dice(nothing, nothing)

# %% [markdown]
# MONAI gives the same on the random masks of Section 1, wherever both have a border:

# %%
full = (pred.any((1, 2, 3)) & true.any((1, 2, 3)), ...)
one, two = pred[full].float(), true[full].float()
theirs = {
    hd95: compute_hausdorff_distance(one, two, percentile=95),
    surface_dice: compute_surface_dice(one, two, [2.0]),
}

# %%
for ours, public in theirs.items():
    gap = (ours(one, two) - public[:, 0]).abs().max()
    print(f"{ours.__name__}: largest difference {gap:.0e} on {len(one)}")
    assert gap < 1e-5

# %% [markdown]
# Now the five cases again:

# %%
for name, mask in cases.items():
    share = surface_dice(mask, truth).item()
    print(f"{name:16s} HD95 {hd95(mask, truth).item():5.1f} px,", end=" ")
    print(f"surface Dice (2 px) {share:.3f}")

# %%
missing, fat = cases["one missing"], cases["10 % too big"]
assert hd95(missing, truth) > 5 > hd95(fat, truth)
assert hd95(cases["one level off"], truth) == 0

# %% [markdown]
# HD95 tells the lost vertebra from the fat border, which Dice had in the wrong order. But *one level off* is a distance of zero: the vertebra that is gone holds less than 5 % of the border, and the 95th percentile forgives 5 %. No score of one binary mask can see a wrong name; that takes a mask for each vertebra (exercise 2).
#
# ## 3 · A mean, and how sure it is
#
# "88.74 ± 7.04" in Table 1: is that the spread of patients, or the uncertainty of the mean? We give both: the standard deviation of the scores, and a 95 % *bootstrap* interval of their mean. For that, draw as many images again, with replacement, ten thousand times, and look where the means fall.

# %%
#| exports
Values = Sequence[float] | np.ndarray | Tensor


def bootstrap_interval(
    values: Values,  # one score an image
    level: float = 0.95,
    n: int = 10_000,  # resamples
    seed: int = 0,
) -> tuple[float, float]:
    "Percentile interval of the mean (Efron 1979); ValueError for no values."
    x = np.asarray(values, dtype=np.float64).ravel()
    if not len(x):
        raise ValueError("no values to average")
    rng, means = np.random.default_rng(seed), []
    for k in range(0, n, 500):  # not all resamples at once: memory
        draws = rng.integers(len(x), size=(min(500, n - k), len(x)))
        means.append(x[draws].mean(1))
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(np.concatenate(means), tails)
    return float(low), float(high)


# %%
scores = 1 - np.random.default_rng(1).beta(2, 18, 30)
low, high = bootstrap_interval(scores)
assert low < scores.mean() < high
assert bootstrap_interval([0.5]) == (0.5, 0.5)

# %%
#| code-fold: true
#| fig-alt: "Thirty scores as ticks on a line from 0.75 to 1, and the much shorter black bar of the interval of their mean near 0.9."
fig, axis = plt.subplots(figsize=(4.5, 2.2), layout="constrained")
axis.plot(scores, np.zeros(30), "|", ms=14, color="orange", label="30 images")
axis.plot([low, high], [0, 0], "k", lw=4, label="95 % interval of the mean")
axis.axvline(scores.mean(), color="k", lw=0.8, label="mean")
axis.set(xlabel="Dice", yticks=[], ylim=(-1, 2))
axis.legend(fontsize=8, loc="upper left");


# %%
#| exports
class Summary(NamedTuple):
    "Mean, standard deviation over images, interval of the mean, and how many."

    mean: float
    sd: float
    lo: float
    hi: float
    n: int

    def __str__(self) -> str:
        if self.n < 2:  # one image has no spread, and tells nothing of others
            return f"{self.mean:.3f} (n={self.n})"
        return (f"{self.mean:.3f} ± {self.sd:.3f} "
                f"[{self.lo:.3f}, {self.hi:.3f}] (n={self.n})")


def summary(
    values: Values,  # one score an image
) -> Summary:
    "What a table should say of one method; ValueError for no values."
    x = np.asarray(values, dtype=np.float64).ravel()
    low, high = bootstrap_interval(x)
    sd = float(x.std(ddof=1)) if len(x) > 1 else 0.0
    return Summary(float(x.mean()), sd, low, high, len(x))


# %% [markdown]
# An interval that says 95 % should hold the truth in 95 % of all cases. We test it on scores as skewed as Dice scores are, 30 images at a time:

# %%
rng = np.random.default_rng(0)
print("for example", summary(1 - rng.beta(2, 18, 30)))
trials = (1 - rng.beta(2, 18, 30) for _ in range(400))  # the mean is 0.9
tries = [bootstrap_interval(x, n=1000, seed=k) for k, x in enumerate(trials)]
hits = np.array([low <= 0.9 <= high for low, high in tries])

# %%
print(f"the interval held the true mean in {hits.mean():.1%} of 400 trials")
assert 0.90 < hits.mean() < 0.97

# %%
#| code-fold: true
#| fig-alt: "Eighty vertical bars, one a trial, most of them blue and crossing the line at 0.9; a few red ones lie wholly above or below it."
fig, axis = plt.subplots(figsize=(6, 2.2), layout="constrained")
for k, ((low, high), hit) in enumerate(zip(tries[:80], hits)):
    colour = "tab:blue" if hit else "crimson"
    axis.plot([k, k], [low, high], color=colour, lw=1.5)
axis.axhline(0.9, color="k", lw=0.8)
axis.set(xlabel="trial", ylabel="mean Dice");


# %% [markdown]
# The first 80 trials; blue intervals hold the true mean, red ones miss it. With 30 skewed scores the interval is somewhat too narrow. We keep it, because everybody can read it; a difference that it barely separates is not shown. (Radiographs of one study are not independent, which makes it too narrow again.)
#
# ### Two methods on the same images
#
# Comparing two intervals wastes what we know: an image that is hard for one method is hard for the other. The interval that counts is that of the *difference per image*.

# %%
#| exports
def paired_difference(
    a: Values,  # one score an image
    b: Values,  # of the same images
    level: float = 0.95,
) -> tuple[float, float, float]:  # mean of a - b, its bootstrap interval
    "How much better a is on the same images; ValueError if they are not."
    x, y = (np.asarray(v, dtype=np.float64).ravel() for v in (a, b))
    if x.shape != y.shape:
        raise ValueError(f"{len(x)} and {len(y)} scores "
                         "are not of the same images")
    return float((x - y).mean()), *bootstrap_interval(x - y, level)


# %%
first = 1 - rng.beta(2, 10, 60)  # some images are hard
second = first - rng.normal(0.01, 0.01, 60)  # for both methods
mean, low, high = paired_difference(first, second)
print("alone: ", summary(first), summary(second), sep="\n  ")
print(f"paired: {mean:.3f} [{low:.3f}, {high:.3f}]")

# %%
assert low > 0 and summary(second).hi > summary(first).lo


# %% [markdown]
# ## 4 · Jensen reads Table 1
#
# For *one* image one score gives the other: $\mathrm{IoU} = D/(2-D)$ with $D$ its Dice. That curve is convex, so by Jensen's inequality the mean IoU over images is at least the IoU of the mean Dice. And since its second derivative, $4/(2-D)^3$, is at most 4, a standard deviation can lift it by no more than twice its square:
#
# $$\frac{\bar D}{2-\bar D} \;\le\; \overline{\mathrm{IoU}} \;\le\; \frac{\bar D}{2-\bar D} + 2\,\mathrm{sd}^2 .$$

# %%
#| exports
def iou_from_dice(
    d: float | np.ndarray | Tensor,  # Dice of one image, in [0, 1]
) -> float | np.ndarray | Tensor:
    "IoU of the same image."
    return d / (2 - d)


def jensen_bound(
    mean_dice: float,  # over images
    sd: float | None = None,  # of Dice over images; None: any
) -> tuple[float, float]:  # smallest and largest mean IoU that can go with it
    "Bounds of the mean IoU; it is never above the mean Dice."
    low = iou_from_dice(mean_dice)
    high = mean_dice if sd is None else min(mean_dice, low + 2 * sd ** 2)
    return low, high


# %%
scores = 1 - rng.beta(1.2, 5, 25)
low, high = jensen_bound(scores.mean(), scores.std())
assert low <= iou_from_dice(scores).mean() <= high

# %%
#| code-fold: true
#| fig-alt: "The curve IoU = D / (2 - D), bending upwards; 25 orange dots on it; the star of their means lies a little above the curve."
d = np.linspace(0, 1, 101)
fig, axis = plt.subplots(figsize=(4, 3), layout="constrained")
axis.plot(d, iou_from_dice(d), "k", label="IoU = D / (2 − D)")
axis.plot(scores, iou_from_dice(scores), "o", ms=4, color="orange",
          label="images")
axis.plot(scores.mean(), iou_from_dice(scores).mean(), "*", ms=13,
          color="crimson", label="their means")
axis.set(xlabel="Dice", ylabel="IoU")
axis.legend(fontsize=8);


# %% [markdown]
# The star never lies below the curve. Now the paper's two tables, as data; each data set of Table 1 has four columns: Dice, its ±, IoU, its ±.

# %%
#| exports
#| code-fold: true
@dataclass(frozen=True)
class Cell:
    "One pair of Table 1, in per cent."

    method: str
    data: str
    dice: float
    dice_sd: float
    iou: float
    iou_sd: float


_TABLE_1 = {
    "CT-Verse": """
        U-Net       83.25 4.08 71.35 3.23
        FCN         82.22 4.34 69.88 3.61
        DeepLabv3   80.41 4.50 67.29 3.27
        nnU-Net     92.98 3.86 86.97 2.93
        Swin-U-Net  81.65 4.19 69.27 3.44
        SAM         79.78 4.23 66.89 3.50
        MedSegDiff  92.44 3.75 88.27 2.91
        Verdiff-Net 94.37 3.73 90.89 2.87""",
    "CT-Pri": """
        U-Net       93.22 1.83 87.34 3.19
        FCN         93.24 1.79 87.36 3.07
        DeepLabv3   93.06 1.88 86.94 4.05
        nnU-Net     93.33 1.69 88.04 2.97
        Swin-U-Net  91.27 2.15 84.02 5.64
        SAM         80.36 3.44 76.35 8.21
        MedSegDiff  91.07 1.69 84.51 2.86
        Verdiff-Net 93.84 1.56 91.87 2.79""",
    "X-ray": """
        U-Net       60.78 10.23 43.75 9.82
        FCN         65.30 9.53 52.60 8.17
        DeepLabv3   72.44 8.59 63.91 6.72
        nnU-Net     89.77 6.69 81.69 5.26
        Swin-U-Net  68.93 9.06 53.13 8.08
        SAM         67.89 9.22 52.56 13.32
        MedSegDiff  87.59 7.24 76.68 5.78
        Verdiff-Net 88.74 7.04 77.04 5.75""",
    "MR": """
        U-Net       91.23 2.76 84.00 4.59
        FCN         91.50 2.75 84.44 4.57
        DeepLabv3   91.06 2.93 83.70 5.15
        nnU-Net     92.16 2.73 84.97 4.53
        Swin-U-Net  85.86 7.94 75.39 16.48
        SAM         81.00 9.27 70.92 17.57
        MedSegDiff  92.96 2.87 86.53 3.71
        Verdiff-Net 93.86 1.98 88.58 3.83""",
}
_ROWS = {data: [row.split() for row in table.strip().splitlines()]
         for data, table in _TABLE_1.items()}
TABLE_1 = tuple(
    Cell(rows[k][0], data, *map(float, rows[k][1:]))
    for k in range(8) for data, rows in _ROWS.items()
)
TABLE_2 = {  # (MSFM, NSA): (Dice, IoU)
    (False, False): (88.68, 83.96),
    (True, False): (91.96, 86.82),
    (False, True): (90.27, 85.21),
    (True, True): (93.86, 88.58),
}

# %%
print(TABLE_1[-2])
full_model = TABLE_1[-1].dice, TABLE_1[-1].iou
assert len(TABLE_1) == 32 and TABLE_2[True, True] == full_model


# %% [markdown]
# Each pair against its two bounds, with half a unit of the last digit granted for rounding. The lower bound holds whatever the ± means; the upper one takes it as the standard deviation over images, as the caption does not say otherwise.

# %%
#| exports
def jensen_check(
    rounding: float = 0.005,  # per cent: the table prints two digits
) -> list[tuple[Cell, float, float, str]]:  # cell, bounds in per cent, verdict
    "Which pairs can be means over the same images: fits, too low, too high."
    rows = []
    for cell in TABLE_1:
        low, _ = jensen_bound((cell.dice - rounding) / 100)
        _, high = jensen_bound((cell.dice + rounding) / 100,
                               (cell.dice_sd + rounding) / 100)
        low, high = 100 * low - rounding, 100 * high + rounding
        verdict = ("too low" if cell.iou < low else
                   "too high" if cell.iou > high else "fits")
        rows.append((cell, low, high, verdict))
    return rows


# %%
rows = jensen_check()
for c, low, high, verdict in rows:
    if verdict != "fits":
        print(f"{c.data:9s}{c.method:12s} Dice {c.dice:.2f} ± {c.dice_sd:5.2f}:"
              f" IoU {low:.2f} to {high:.2f}, not {c.iou:.2f} ({verdict})")

# %%
fits = sum(verdict == "fits" for *_, verdict in rows)
print(fits, "of", len(rows), "pairs can be means over the same images")
verdicts = {(c.method, c.data): v for c, _, _, v in rows}
assert verdicts["Verdiff-Net", "X-ray"] == "too low"
assert verdicts["Verdiff-Net", "CT-Pri"] == "too high"

# %%
#| code-fold: true
#| fig-alt: "The 32 pairs of Table 1 over mean Dice, and the curve of the lowest possible mean IoU: 16 green dots just above it, 5 red ones below, 11 purple ones far above; the four of Verdiff-Net are ringed, none is green."
fig, axis = plt.subplots(figsize=(5, 4), layout="constrained")
axis.plot(100 * d, 100 * iou_from_dice(d), "k", lw=1,
          label="lowest possible mean IoU")
colours = {"fits": "tab:green", "too low": "crimson", "too high": "tab:purple"}
for verdict, colour in colours.items():
    xy = [(c.dice, c.iou) for c, *_, v in rows if v == verdict]
    axis.plot(*zip(*xy), "o", ms=5, color=colour,
              label=f"{verdict} ({len(xy)})")
own = [(c.dice, c.iou) for c, *_ in rows if c.method == "Verdiff-Net"]
axis.plot(*zip(*own), "o", ms=11, mfc="none", color="k", label="Verdiff-Net")
axis.set(xlim=(58, 96), ylim=(40, 94), xlabel="mean Dice, %",
         ylabel="mean IoU, %", title="Table 1 against Jensen")
axis.legend();

# %% [markdown]
# The five points below the curve cannot be means over the same images, whatever the ± is; the eleven far above it cannot if the ± is the spread over images. Half of the table fails, baselines included, not only the paper's own rows (ringed).
#
# Table 2 has no standard deviations, so only the lower bound applies. All four pairs respect it:

# %%
for (msfm, nsa), (mean_dice, mean_iou) in TABLE_2.items():
    low, _ = jensen_bound(mean_dice / 100)
    print(f"MSFM {msfm!s:5} NSA {nsa!s:5} Dice {mean_dice:.2f}: "
          f"IoU at least {100 * low:.2f}, printed {mean_iou:.2f}")
    assert 100 * low <= mean_iou


# %% [markdown]
# ## 5 · Is an uncertainty worth something?
#
# Some methods say how sure they are: a probability for each pixel, or an uncertainty for each image. Both can be checked. **Calibration**: of the pixels called 0.8, eight in ten should be vertebra; the mean gap is the *expected calibration error* (ECE). **Risk and coverage**: leave out the pixels (or images) that the method is least sure of, and the error of the rest (the risk) should fall.

# %%
#| exports
def reliability(
    prob: Tensor,  # in [0, 1], any shape
    target: Tensor,  # {0, 1}, the same shape
    bins: int = 15,
) -> tuple[Tensor, Tensor, Tensor]:  # mean probability, share of ones, pixels
    "Of equal bins of probability, each (bins,); empty bins hold NaN."
    p, g = prob.reshape(-1).double(), target.reshape(-1).double()
    index = (p * bins).long().clamp(0, bins - 1)
    count = torch.bincount(index, minlength=bins).double()
    sums = (torch.bincount(index, x, bins) for x in (p, g))
    return *(s / count for s in sums), count


def expected_calibration_error(
    prob: Tensor,  # in [0, 1], any shape
    target: Tensor,  # {0, 1}, the same shape
    bins: int = 15,
) -> float:
    "Mean gap of probability and frequency over pixels (Naeini et al. 2015)."
    p, g, count = reliability(prob, target, bins)
    return float(((p - g).abs().nan_to_num() * count).sum() / count.sum())


# %% [markdown]
# A forecaster that knows its own chances is calibrated; the same one made bold, with every probability pushed towards 0 or 1, is not.

# %%
chance = torch.rand(200_000, generator=random)
happened = (torch.rand(200_000, generator=random) < chance).float()
bold = torch.sigmoid(3 * torch.logit(chance.clamp(1e-4, 1 - 1e-4)))
assert expected_calibration_error(chance, happened) < 0.01
assert expected_calibration_error(bold, happened) > 0.1

# %%
#| code-fold: true
#| fig-alt: "Frequency over probability: the honest forecaster lies on the diagonal, the bold one on an S-shaped curve far from it."
fig, axis = plt.subplots(figsize=(3.2, 3.2), layout="constrained")
axis.plot([0, 1], [0, 1], "k:", lw=1)
for name, prob in (("honest", chance), ("bold", bold)):
    x, y, _ = reliability(prob, happened)
    gap = expected_calibration_error(prob, happened)
    axis.plot(x, y, "o-", ms=4, label=f"{name}, ECE {gap:.3f}")
axis.set(xlabel="probability", ylabel="frequency")
axis.legend(fontsize=8);


# %%
#| exports
def risk_coverage(
    error: Values,  # of each image or pixel
    uncertainty: Values,  # of the same
) -> tuple[np.ndarray, np.ndarray, float]:  # coverage, risk, area under it
    """Mean error of the most certain share (Geifman and El-Yaniv 2017).

    A lower area is better; ValueError where the two are not of the same."""
    e, u = (np.asarray(v, dtype=np.float64).ravel()
            for v in (error, uncertainty))
    if e.shape != u.shape or not len(e):
        raise ValueError(f"{len(e)} errors and {len(u)} uncertainties "
                         "do not go together")
    kept = np.arange(1, len(e) + 1)
    risk = e[np.argsort(u, kind="stable")].cumsum() / kept
    return kept / len(e), risk, float(risk.mean())


# %% [markdown]
# Risk over the share kept, for an uncertainty that knows the error, half knows it, or guesses. The area under the curve, *AURC*, should be small:

# %%
error = rng.beta(2, 18, 200)  # of 200 images
uncertainties = {
    "knows": error,
    "half knows": error + rng.normal(0, 0.06, 200),
    "guesses": rng.random(200),
}
areas = [risk_coverage(error, u)[2] for u in uncertainties.values()]
assert areas == sorted(areas)

# %%
#| code-fold: true
#| fig-alt: "Mean error over the share of images kept: all three curves end in one point; the one that knows rises slowly from near zero, the one that half knows lies above it, the one that guesses is flat."
fig, axis = plt.subplots(figsize=(4, 2.6), layout="constrained")
for name, uncertainty in uncertainties.items():
    coverage, risk, area = risk_coverage(error, uncertainty)
    axis.plot(coverage, risk, label=f"{name}, area {area:.3f}")
axis.set(xlabel="share of images kept", ylabel="mean error of those")
axis.legend(fontsize=8);

# %% [markdown]
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | averaging | not said | one score an image, then the mean | a statement about patients; Jensen holds |
# | ± | not said | standard deviation over images, and a bootstrap interval of the mean | two different things |
# | both masks empty | not said | 1 | the right answer to an empty question |
# | borders | none | HD95, surface Dice | Dice hides a lost vertebra |
#
# ## Exercises
#
# **1 · Predict.** A method has a mean Dice of 0.80 on 100 images. It fails completely on 10 of them and is equally good on the rest. Is its mean IoU nearer to 0.67 or to 0.72? Decide, then compute it.

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# The 90 others have 0.889, an IoU of 0.8; times 0.9 that is 0.72. The lower bound, 0.667, is reached only if all images score alike. The more uneven the scores, the higher the mean IoU.

# %%
#| code-fold: true
uneven = np.r_[np.zeros(10), np.full(90, 0.8 / 0.9)]
mean = iou_from_dice(uneven).mean()
print(f"{mean:.3f}, lower bound {jensen_bound(0.8)[0]:.3f}")
assert np.isclose(mean, 0.72)

# %% [markdown]
# </details>
#
# **2 · Implement.** Dice per *vertebra*: let each pixel of the prediction belong to the vertebra whose centre is nearest, give each of the seventeen its own Dice, and report the worst. Which of the cases of Section 2 have a vertebra with a score of zero?

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# "One missing" and "one level off": both lack a vertebra, which the overall Dice hides. That "one level off" *names* the other sixteen wrongly is hidden still: the prediction would have to carry the names.

# %%
#| code-fold: true
pixels = np.stack(np.mgrid[0:576, 0:192][::-1], -1) + 0.5  # h w (x, y)
distance = ((pixels - centre[:, None]) ** 2).sum(-1)  # 17 h w
nearest = torch.from_numpy(distance.argmin(0))


def worst_vertebra(mask):
    return min(dice(mask & (nearest == k), drawn(box[None])).item()
               for k, box in enumerate(boxes))


worst = {name: round(worst_vertebra(mask), 2) for name, mask in cases.items()}
print(worst)
assert worst["one missing"] == worst["one level off"] == 0
assert worst["truth"] == 1 and worst["10 % too big"] > 0

# %% [markdown]
# </details>
#
# **3 · Diagnose (hard).** Two groups score the *same* predictions on the same radiographs. Both compute Dice without a mistake. One reports 0.86, the other 0.80, and neither has left out an image. What can differ, and which number would you believe about the next patient? Build predictions for which the two ways disagree by at least 0.05.

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# One takes the mean of the scores of images, the other pools all pixels and takes one score. Pooling weighs an image by the size of its mask: an image with few mask pixels (a short field of view, a child) may fail and hardly counts. If failures are on *small* masks, the pooled score is the flattering one; if on large ones, the mean is. The mean over images speaks about the next patient; the pooled score speaks about the next pixel.

# %%
#| code-fold: true
large, small = torch.zeros(2, 8, 1, 64, 64, dtype=torch.bool)
large[..., 8:56, 8:56] = True
small[..., 28:36, 28:36] = True
answers = torch.cat([large, small[:2]])
missed = small[:2].roll(8, -1)
predictions = torch.cat([large, missed])
mean = dice(predictions, answers).mean().item()
pooled = dice(predictions.reshape(1, -1), answers.reshape(1, -1)).item()
print(f"mean over images {mean:.2f}, all pixels at once {pooled:.2f}")
assert pooled - mean > 0.05

# %% [markdown]
# </details>
#
# One mask for one image cannot tell where *on this radiograph* it cannot be trusted. Many masks of one image could: where they differ, the method is not sure. But a network gives one answer, always the same, unless chance comes in; and the paper brings it in as noise. How can noise help to find a mask? Next: [06 · The forward process](06_forward.ipynb).
