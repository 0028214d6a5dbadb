# %% [markdown]
# # 05 · Metrics
# > Dice, IoU, what they hide, how sure a mean can be, and which rows of Table 1 cannot be true

# %% [markdown]
# You will write the scores that the whole course reports, check them against two well-kept libraries, watch Dice overlook a vertebra slid by one level, put an interval around a mean, and hold the paper's Table 1 against an inequality from 1906. Under a minute on a laptop.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/05_metrics.ipynb)

# %%
#| default_exp metrics

# %%
#| export
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# %%
import warnings

import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats
from monai.metrics import DiceMetric, MeanIoU
from torchmetrics.functional.segmentation import dice_score

from verdiff.data.landmarks import landmarks_to_mask
from verdiff.data.phantoms import draw_phantom

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)

# %%
warnings.filterwarnings("ignore", module="monai|torchmetrics")


# %% [markdown]
# ## 1 · Dice and IoU
#
# How well does a predicted mask cover the true one? With $P$ the predicted and $T$ the true pixels, Eq. (17) and (18) are
#
# $$\mathrm{Dice} = \frac{2\,|P \cap T|}{|P| + |T|}, \qquad \mathrm{IoU} = \frac{|P \cap T|}{|P \cup T|}.$$
#
# One score *per image*: a mean over images is a statement about patients, a score over all pixels at once is not. If both masks are empty the formulas say 0/0. An empty answer to an empty question is right, so it scores one; that is also MONAI's convention with `ignore_empty=False`.

# %%
#| exports
def _overlap(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    "|P and T|, |P|, |T| of each image, float64."
    if pred.shape != target.shape:
        raise ValueError(f"pred is {tuple(pred.shape)}, target is {tuple(target.shape)}")
    p, t = (x.reshape(len(x), -1) for x in (pred, target))  # b (c h w)
    for name, x in (("pred", p), ("target", t)):
        if x.dtype != torch.bool and not ((x == 0) | (x == 1)).all():
            raise ValueError(
                f"{name} must hold only 0 and 1; threshold it first, for example > 0.5"
            )
    p, t = p.bool().cpu(), t.bool().cpu()  # not every device knows float64
    return tuple(x.sum(1, dtype=torch.float64) for x in (p & t, p, t))


def dice(
    pred: Tensor,  # bool or {0, 1}, (B, ...)
    target: Tensor,  # the same shape
) -> Tensor:  # float64 in [0, 1], (B,)
    "Eq. (17) for each image; both masks empty: 1."
    both, p, t = _overlap(pred, target)
    return torch.where(p + t > 0, 2 * both / (p + t).clamp(min=1), 1.0)


def iou(
    pred: Tensor,  # bool or {0, 1}, (B, ...)
    target: Tensor,  # the same shape
) -> Tensor:  # float64 in [0, 1], (B,)
    "Eq. (18) for each image; both masks empty: 1."
    both, p, t = _overlap(pred, target)
    union = p + t - both
    return torch.where(union > 0, both / union.clamp(min=1), 1.0)


# %% [markdown]
# By hand: four pixels, two predicted, two true, one in common. Then the edge cases.

# %%
p, t = torch.tensor([[1, 1, 0, 0]]), torch.tensor([[0, 1, 1, 0]])
empty = torch.zeros_like(p)
print("Dice", dice(p, t).item(), "IoU", iou(p, t).item())
assert dice(p, t) == 0.5 and iou(p, t) == 1 / 3
assert dice(empty, empty) == iou(empty, empty) == 1 and dice(p, empty) == iou(p, empty) == 0

# %% [markdown]
# And against MONAI and torchmetrics, on a hundred random masks, some of them empty. (torchmetrics answers the empty question in its own way, see the last line, so those are left out for it.)

# %%
g = torch.Generator().manual_seed(0)
fill = torch.rand(100, 1, 1, 1, generator=g).sub(0.1).clamp(min=0)
P, T = (torch.rand(100, 1, 24, 16, generator=g) < fill for _ in range(2))
monai = DiceMetric(ignore_empty=False)(P.float(), T.float())[:, 0]
torch.testing.assert_close(dice(P, T), monai.double(), atol=1e-6, rtol=0)
torch.testing.assert_close(
    iou(P, T), MeanIoU(ignore_empty=False)(P.float(), T.float())[:, 0].double(), atol=1e-6, rtol=0
)
some = (P.sum((1, 2, 3)) + T.sum((1, 2, 3))) > 0
tm = dice_score(
    P[some].long(), T[some].long(), num_classes=1, input_format="one-hot", average="none"
)[:, 0]
torch.testing.assert_close(dice(P, T)[some], tm.double(), atol=1e-6, rtol=0)
print("equal on", len(P), "images,", int((~some).sum()), "of them with two empty masks")
print(
    "two empty masks in torchmetrics:",
    dice_score(
        P[~some][:1].long(),
        T[~some][:1].long(),
        num_classes=1,
        input_format="one-hot",
        average="none",
    ).item(),
)

# %% [markdown]
# ## 2 · What Dice hides
#
# Take a perfect mask and name each vertebra after the one above it: every name sits one vertebra too low, the top vertebra gets no box, and a surgeon would operate on the wrong level. Or leave one vertebra out, or make each a little too big, or slide the whole mask down by half a vertebra.

# %%
film = draw_phantom(3)
truth = torch.from_numpy(landmarks_to_mask(film.landmarks, 576, 192)).bool()[None, None]
quads = film.landmarks.reshape(17, 4, 2)


def drawn(quads):
    return torch.from_numpy(landmarks_to_mask(quads.reshape(-1, 2), 576, 192)).bool()[None, None]


down = drawn(quads[1:])  # every box is on the vertebra below its own; the last has none, and drops
missing = drawn(np.delete(quads, 8, 0))
middle = quads.mean(1, keepdims=True)
fat = drawn(middle + 1.10 * (quads - middle))
slid = drawn(quads + (0, 12))
cases = {
    "truth": truth,
    "one level off": down,
    "one missing": missing,
    "10 % too big": fat,
    "half a body low": slid,
}
for name, x in cases.items():
    print(f"{name:16s} Dice {dice(x, truth).item():.3f}  IoU {iou(x, truth).item():.3f}")
assert dice(fat, truth) < dice(missing, truth)  # a harmless border costs more than a lost vertebra

# %%
levels = [f"T{k}" for k in range(1, 13)] + [f"L{k}" for k in range(1, 6)]


def write_names(axis, quads, names):
    "Each name beside its box; one of them, L1, on red."
    for (x, y), name in zip(quads.mean(1), names):
        tag = {"color": "crimson" if name == "L1" else "black", "pad": 0.6, "lw": 0}
        axis.text(x + 28, y, name, color="white", fontsize=6, va="center", bbox=tag)


fig, axes = plt.subplots(1, 5, figsize=(6.8, 4), layout="constrained")
for axis, (name, x) in zip(axes, cases.items()):
    axis.imshow(film.image, cmap="gray")
    axis.set_axis_off()
    axis.set_title(f"{name}\n{dice(x, truth).item():.3f}", fontsize=8)
    axis.contour(x[0, 0], [0.5], colors="orange", linewidths=0.7)
write_names(axes[0], quads, levels)
write_names(axes[1], quads[1:], levels)
write_names(axes[2], np.delete(quads, 8, 0), np.delete(levels, 8))


# %% [markdown]
# A Dice of 0.97 can hide a lost vertebra. The second picture, with the highest Dice of all wrong ones, gives all sixteen vertebrae that it shows a wrong name: follow L1, on red, from the first to the second. (T counts the vertebrae of the chest, L those of the lower back. The mask itself holds no names.) So we also measure distances between borders, and leave that to MONAI: the 95th percentile of the distance from one border to the other (HD95, after Hausdorff), and the share of the border that lies within a tolerance of the other (surface Dice). If one mask is empty there is no distance; we say infinity (and a share of zero). Both empty count as perfect.

# %%
#| exports
def _borders(
    pred: Tensor, target: Tensor, measure: str, perfect: float, worst: float, **kw
) -> Tensor:
    "A metric of MONAI for each image, with both empty = perfect and one empty = worst."
    import warnings

    import monai.metrics

    both, p, t = _overlap(pred, target)
    out = torch.full_like(p, worst)
    out[(p == 0) & (t == 0)] = perfect
    usual = (p > 0) & (t > 0)
    if usual.any():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function = getattr(monai.metrics, measure)
            found = function(
                pred[usual].float(), target[usual].float(), include_background=True, **kw
            )
        out[usual] = found[:, 0].to(out)
    return out


def hd95(
    pred: Tensor,  # bool or {0, 1}, (B, 1, H, W)
    target: Tensor,  # the same shape
) -> Tensor:  # pixels, (B,)
    "95th percentile of the distance between the borders (MONAI); one mask empty: infinity."
    return _borders(pred, target, "compute_hausdorff_distance", 0.0, float("inf"), percentile=95)


def surface_dice(
    pred: Tensor,  # bool or {0, 1}, (B, 1, H, W)
    target: Tensor,  # the same shape
    tolerance: float = 2.0,  # pixels
) -> Tensor:  # in [0, 1], (B,)
    "Share of both borders that lies within the tolerance of the other (MONAI)."
    return _borders(pred, target, "compute_surface_dice", 1.0, 0.0, class_thresholds=[tolerance])


# %% [markdown]
# A square shifted by five pixels is five pixels away, and the edge cases are what we said:

# %%
box = torch.zeros(1, 1, 40, 40, dtype=torch.bool)
box[..., 10:20, 10:20] = True
assert hd95(box, box.roll(5, -1)) == 5 and surface_dice(box, box.roll(1, -1), tolerance=2) == 1
assert (
    hd95(box, box & ~box).isinf()
    and hd95(box & ~box, box & ~box) == 0
    and surface_dice(box & ~box, box & ~box) == 1
)

# %%
for name, x in cases.items():
    print(
        f"{name:16s} HD95 {hd95(x, truth).item():5.1f} px   surface Dice (2 px) "
        f"{surface_dice(x, truth).item():.3f}"
    )
assert hd95(missing, truth) > 5 > hd95(fat, truth) and hd95(down, truth) == hd95(truth, truth) == 0

# %% [markdown]
# HD95 tells the lost vertebra from the fat border, which Dice had in the wrong order. But *one level off* is a distance of zero: the vertebra that is gone holds less than 5 % of the border, and the 95th percentile forgives 5 %. No score of one binary mask can see a wrong name; that takes a mask for each vertebra. Exercise 3 goes half of that way.

# %% [markdown]
# ## 3 · A mean, and how sure it is
#
# "88.74 ± 7.04" in Table 1: is that the spread of patients, or the doubt about the mean? Papers rarely say. We give both: the standard deviation of the scores, and a 95 % *bootstrap* interval of their mean. For that, draw as many images again, with replacement, ten thousand times, and look where the means fall.

# %%
#| exports
Values = Sequence[float] | np.ndarray | Tensor


def bootstrap_interval(
    values: Values,  # one score an image
    level: float = 0.95,
    n: int = 10_000,  # resamples
    seed: int = 0,
) -> tuple[float, float]:
    "Percentile interval of the mean (Efron 1979)."
    x = np.asarray(values, dtype=np.float64).ravel()
    if not len(x):
        raise ValueError("no values to average")
    rng = np.random.default_rng(seed)
    parts = [min(500, n - k) for k in range(0, n, 500)]  # not all resamples at once: memory
    means = np.concatenate([x[rng.integers(len(x), size=(k, len(x)))].mean(1) for k in parts])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# %%
scores = 1 - np.random.default_rng(1).beta(2, 18, 30)
low, high = bootstrap_interval(scores)
fig, axis = plt.subplots(figsize=(4.5, 2.2), layout="constrained")
axis.plot(scores, np.zeros(30), "|", ms=14, color="orange", label="30 images")
axis.plot([low, high], [0, 0], "k", lw=4, label="95 % interval of the mean")
axis.axvline(scores.mean(), color="k", lw=0.8, label="mean")
axis.set(xlabel="Dice", yticks=[], ylim=(-1, 2))
axis.legend(fontsize=8, loc="upper left")
assert low < scores.mean() < high and bootstrap_interval([0.5]) == (0.5, 0.5)


# %%
#| exports
class Summary(NamedTuple):
    "Mean, standard deviation over images, interval of the mean, number of images."

    mean: float
    sd: float
    lo: float
    hi: float
    n: int

    def __str__(self) -> str:
        if self.n < 2:  # one image has no spread, and tells nothing of others
            return f"{self.mean:.3f} (n={self.n})"
        return f"{self.mean:.3f} ± {self.sd:.3f} [{self.lo:.3f}, {self.hi:.3f}] (n={self.n})"


def summary(
    values: Values,  # one score an image
) -> Summary:
    "What a table should say of one method."
    x = np.asarray(values, dtype=np.float64).ravel()
    low, high = bootstrap_interval(x)
    return Summary(float(x.mean()), float(x.std(ddof=1)) if len(x) > 1 else 0.0, low, high, len(x))


# %% [markdown]
# An interval that says 95 % should hold the truth in 95 % of all cases. We test it on scores as skewed as Dice scores are, 30 images at a time:

# %%
rng = np.random.default_rng(0)
tries = [bootstrap_interval(1 - rng.beta(2, 18, 30), n=1000, seed=trial) for trial in range(400)]
hits = np.array([low <= 0.9 <= high for low, high in tries])
print(
    f"the interval held the true mean in {hits.mean():.1%} of {len(hits)} trials; e.g.",
    summary(1 - rng.beta(2, 18, 30)),
)
assert 0.90 < hits.mean() < 0.97

# %% [markdown]
# The first 80 trials. Blue intervals hold the true mean (the line), red ones miss it:

# %%
fig, axis = plt.subplots(figsize=(6, 2.2), layout="constrained")
for k, ((low, high), hit) in enumerate(zip(tries[:80], hits)):
    axis.plot([k, k], [low, high], color="tab:blue" if hit else "crimson", lw=1.5)
axis.axhline(0.9, color="k", lw=0.8)
axis.set(xlabel="trial", ylabel="mean Dice");


# %% [markdown]
# A little less often than it says: with 30 skewed scores the interval is somewhat too narrow. We keep it, because everybody can read it; a difference that it barely separates is not shown. (It also takes films for independent. Films of one study are not, which makes it too narrow again.)

# %% [markdown]
# ### Two methods on the same images
#
# Comparing two intervals wastes what we know: an image that is hard for one method is hard for the other. The interval that counts is that of the *difference per image*.

# %%
#| exports
def paired_difference(
    a: Values,  # one score an image
    b: Values,  # of the same images
    level: float = 0.95,
) -> tuple[float, float, float]:  # mean of a - b, and its bootstrap interval
    "How much better a is than b on the same images."
    x, y = (np.asarray(v, dtype=np.float64).ravel() for v in (a, b))
    if x.shape != y.shape:
        raise ValueError(f"{len(x)} and {len(y)} scores are not of the same images")
    return float((x - y).mean()), *bootstrap_interval(x - y, level)


# %%
hard = rng.beta(2, 10, 60)
first, second = 1 - hard, 1 - hard - rng.normal(0.01, 0.01, 60)
print("alone: ", summary(first), summary(second))
print("paired: {:.3f} [{:.3f}, {:.3f}]".format(*paired_difference(first, second)))
assert paired_difference(first, second)[1] > 0 and summary(second).hi > summary(first).lo


# %% [markdown]
# ## 4 · Jensen reads Table 1
#
# For *one* image one score gives the other: $\mathrm{IoU} = D/(2-D)$. That curve bends upwards (it is convex), so by Jensen's inequality the mean IoU over images is at least the IoU of the mean Dice. And since its second derivative, $4/(2-D)^3$, is at most 4, a standard deviation $\sigma$ can lift it by no more than $2\sigma^2$:
#
# $$\frac{\bar D}{2-\bar D} \;\le\; \overline{\mathrm{IoU}} \;\le\; \frac{\bar D}{2-\bar D} + 2\sigma^2 .$$

# %%
#| exports
def iou_from_dice(
    d: float | np.ndarray | Tensor,  # Dice of one image, in [0, 1]
) -> float | np.ndarray | Tensor:
    "IoU of the same image."
    return d / (2 - d)


def jensen_bound(
    mean_dice: float,  # over images
    sd: float | None = None,  # of Dice over images
) -> tuple[float, float]:  # smallest and largest mean IoU that can go with it
    "Bounds of the mean IoU; without a standard deviation the upper one is the mean Dice itself."
    low = iou_from_dice(mean_dice)
    return low, min(mean_dice, low + 2 * sd ** 2) if sd is not None else mean_dice


# %%
d = np.linspace(0, 1, 101)
scores = 1 - rng.beta(1.2, 5, 25)
fig, axis = plt.subplots(figsize=(4, 3), layout="constrained")
axis.plot(d, iou_from_dice(d), "k", label="IoU = D / (2 − D)")
axis.plot(scores, iou_from_dice(scores), "o", ms=4, color="orange", label="images")
axis.plot(
    scores.mean(), iou_from_dice(scores).mean(), "*", ms=13, color="crimson", label="their means"
)
axis.set(xlabel="Dice", ylabel="IoU")
axis.legend(fontsize=8)
low, high = jensen_bound(scores.mean(), scores.std())
assert low <= iou_from_dice(scores).mean() <= high


# %% [markdown]
# The star never lies below the curve. Now the paper's two tables, as data:

# %%
#| exports
@dataclass(frozen=True)
class Cell:
    "One pair of Table 1, in per cent."

    method: str
    data: str
    dice: float
    dice_sd: float
    iou: float
    iou_sd: float


_TABLE_1 = """
U-Net        83.25 4.08 71.35 3.23 93.22 1.83 87.34 3.19 60.78 10.23 43.75 9.82 91.23 2.76 84.00 4.59
FCN          82.22 4.34 69.88 3.61 93.24 1.79 87.36 3.07 65.30 9.53 52.60 8.17 91.50 2.75 84.44 4.57
DeepLabv3    80.41 4.50 67.29 3.27 93.06 1.88 86.94 4.05 72.44 8.59 63.91 6.72 91.06 2.93 83.70 5.15
nnU-Net      92.98 3.86 86.97 2.93 93.33 1.69 88.04 2.97 89.77 6.69 81.69 5.26 92.16 2.73 84.97 4.53
Swin-U-Net   81.65 4.19 69.27 3.44 91.27 2.15 84.02 5.64 68.93 9.06 53.13 8.08 85.86 7.94 75.39 16.48
SAM          79.78 4.23 66.89 3.50 80.36 3.44 76.35 8.21 67.89 9.22 52.56 13.32 81.00 9.27 70.92 17.57
MedSegDiff   92.44 3.75 88.27 2.91 91.07 1.69 84.51 2.86 87.59 7.24 76.68 5.78 92.96 2.87 86.53 3.71
Verdiff-Net  94.37 3.73 90.89 2.87 93.84 1.56 91.87 2.79 88.74 7.04 77.04 5.75 93.86 1.98 88.58 3.83
"""
TABLE_1 = tuple(
    Cell(line.split()[0], data, *map(float, line.split()[1 + 4 * k : 5 + 4 * k]))
    for line in _TABLE_1.strip().splitlines()
    for k, data in enumerate(("CT-Verse", "CT-Pri", "X-ray", "MR"))
)
TABLE_2 = {
    (False, False): (88.68, 83.96),
    (True, False): (91.96, 86.82),  # (MSFM, NSA): (Dice, IoU)
    (False, True): (90.27, 85.21),
    (True, True): (93.86, 88.58),
}

# %%
print(TABLE_1[-2])
assert len(TABLE_1) == 32 and TABLE_2[True, True] == (
    TABLE_1[-1].dice,
    TABLE_1[-1].iou,
)  # the full model, twice


# %% [markdown]
# Each pair against its two bounds, with half a unit of the last digit granted for rounding. The lower bound holds whatever the ± means; the upper one takes it as the standard deviation over images, as the caption does not say otherwise.

# %%
#| exports
def jensen_check(
    rounding: float = 0.005,  # per cent: the table prints two digits
) -> list[
    tuple[Cell, float, float, str]
]:  # cell, bounds in per cent, "fits", "too low" or "too high"
    "Which pairs of Table 1 can be means over the same images."
    rows = []
    for cell in TABLE_1:
        low, _ = jensen_bound((cell.dice - rounding) / 100)
        _, high = jensen_bound((cell.dice + rounding) / 100, (cell.dice_sd + rounding) / 100)
        low, high = 100 * low - rounding, 100 * high + rounding
        verdict = "too low" if cell.iou < low else "too high" if cell.iou > high else "fits"
        rows.append((cell, low, high, verdict))
    return rows

# %%
rows = jensen_check()
for cell, low, high, verdict in rows:
    if verdict != "fits":
        print(
            f"{cell.data:9s}{cell.method:12s} Dice {cell.dice:.2f} ± {cell.dice_sd:5.2f}: "
            f"mean IoU in [{low:.2f}, {high:.2f}], printed {cell.iou:.2f}: {verdict}"
        )
print(
    sum(v == "fits" for *_, v in rows), "of", len(rows), "pairs can be means over the same images"
)
verdicts = {(c.method, c.data): v for c, _, _, v in rows}
assert (
    verdicts["Verdiff-Net", "X-ray"] == verdicts["MedSegDiff", "X-ray"] == "too low"
    and verdicts["Verdiff-Net", "CT-Pri"] == "too high"
)

# %%
fig, axis = plt.subplots(figsize=(5, 4), layout="constrained")
axis.plot(100 * d, 100 * iou_from_dice(d), "k", lw=1, label="lowest possible mean IoU")
for verdict, colour in (("fits", "tab:green"), ("too low", "crimson"), ("too high", "tab:purple")):
    xy = [(c.dice, c.iou) for c, *_, v in rows if v == verdict]
    axis.plot(*zip(*xy), "o", ms=5, color=colour, label=f"{verdict} ({len(xy)})")
own = [(c.dice, c.iou) for c, *_ in rows if c.method == "Verdiff-Net"]
axis.plot(*zip(*own), "o", ms=11, mfc="none", color="k", label="Verdiff-Net")
axis.set(
    xlim=(58, 96),
    ylim=(40, 94),
    xlabel="mean Dice, %",
    ylabel="mean IoU, %",
    title="Table 1 against Jensen",
)
axis.legend();

# %% [markdown]
# Points below the curve, five, cannot be means over the same images, whatever the ± is. The eleven far above it cannot if the ± is the spread over images. Not only the paper's own row (ringed): half of the table fails, baselines included, in both directions.
#
# Table 2 has no standard deviations, so only the lower bound applies. All four pairs respect it:

# %%
for (msfm, nsa), (mean_dice, mean_iou) in TABLE_2.items():
    print(
        f"MSFM {'yes' if msfm else 'no ':3s} NSA {'yes' if nsa else 'no ':3s} Dice "
        f"{mean_dice:.2f}: IoU at least {100 * jensen_bound(mean_dice / 100)[0]:.2f}, "
        f"printed {mean_iou:.2f}"
    )
assert all(100 * jensen_bound(a / 100)[0] <= b for a, b in TABLE_2.values())


# %% [markdown]
# ## 5 · Is the doubt worth something?
#
# A diffusion model gives many masks for one image. Their mean is a probability, their spread a doubt. Both can be checked. **Calibration**: of the pixels called 0.8, eight in ten should be vertebra; the mean gap is the *expected calibration error* (ECE). **Risk and coverage**: leave out the pixels (or images) that the model doubts most, and the error of the rest (the risk) should fall.

# %%
#| exports
def reliability(
    prob: Tensor,  # in [0, 1], any shape
    target: Tensor,  # {0, 1}, the same shape
    bins: int = 15,
) -> tuple[
    Tensor, Tensor, Tensor
]:  # mean probability, share of ones, number of pixels; each (bins,)
    "Equal bins of probability; empty bins hold NaN."
    p, t = prob.reshape(-1).double(), target.reshape(-1).double()
    index = (p * bins).long().clamp(0, bins - 1)
    count = torch.bincount(index, minlength=bins).double()
    return (torch.bincount(index, p, bins) / count, torch.bincount(index, t, bins) / count, count)


def expected_calibration_error(
    prob: Tensor,  # in [0, 1], any shape
    target: Tensor,  # {0, 1}, the same shape
    bins: int = 15,
) -> float:
    "Mean gap between probability and frequency, weighted by pixels (Naeini et al. 2015)."
    p, t, count = reliability(prob, target, bins)
    return float(((p - t).abs().nan_to_num() * count).sum() / count.sum())


# %% [markdown]
# A forecaster that knows its own chances is calibrated; the same one made bold, with every probability pushed towards 0 or 1, is not.

# %%
chance = torch.rand(200_000, generator=g)
happened = (torch.rand(200_000, generator=g) < chance).float()
bold = torch.sigmoid(3 * torch.logit(chance.clamp(1e-4, 1 - 1e-4)))
fig, axis = plt.subplots(figsize=(3.2, 3.2), layout="constrained")
axis.plot([0, 1], [0, 1], "k:", lw=1)
for name, prob in (("honest", chance), ("bold", bold)):
    x, y, _ = reliability(prob, happened)
    axis.plot(
        x, y, "o-", ms=4, label=f"{name}, ECE {expected_calibration_error(prob, happened):.3f}"
    )
axis.set(xlabel="probability", ylabel="frequency")
axis.legend(fontsize=8)
assert (
    expected_calibration_error(chance, happened)
    < 0.01
    < 0.1
    < expected_calibration_error(bold, happened)
)


# %% [markdown]
# Risk against the share kept, for a doubt that knows the error, one that half knows it, and one that guesses; a smaller area under the curve is better:

# %%
#| exports
def risk_coverage(
    error: Values,  # of each image or pixel
    uncertainty: Values,  # of the same
) -> tuple[np.ndarray, np.ndarray, float]:  # coverage, risk, area under the curve (lower is better)
    "Mean error of the most certain share, for every share (Geifman and El-Yaniv 2017)."
    e, u = (np.asarray(v, dtype=np.float64).ravel() for v in (error, uncertainty))
    if e.shape != u.shape or not len(e):
        raise ValueError(f"{len(e)} errors and {len(u)} uncertainties do not go together")
    kept = np.arange(1, len(e) + 1)
    risk = e[np.argsort(u, kind="stable")].cumsum() / kept
    return kept / len(e), risk, float(risk.mean())


# %%
error = rng.beta(2, 18, 200)  # of 200 images
doubts = {
    "knows": error,
    "half knows": error + rng.normal(0, 0.06, 200),
    "guesses": rng.random(200),
}
fig, axis = plt.subplots(figsize=(4, 2.6), layout="constrained")
for name, doubt in doubts.items():
    coverage, risk, area = risk_coverage(error, doubt)
    axis.plot(coverage, risk, label=f"{name}, area {area:.3f}")
axis.set(xlabel="share of images kept", ylabel="mean error of those")
axis.legend(fontsize=8)
areas = [risk_coverage(error, doubt)[2] for doubt in doubts.values()]
assert areas == sorted(areas) and np.isclose(risk[-1], error.mean())

# %% [markdown]
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | averaging | not said | one score an image, then the mean | a statement about films; Jensen holds |
# | ± | not said | standard deviation over images, and a bootstrap interval of the mean | two different things |
# | both masks empty | not said | 1 | the right answer to an empty question |
# | borders | none | HD95, surface Dice | Dice hides a lost vertebra |
#
# ## Exercises
#
# **1 · Predict.** A method has a mean Dice of 0.80 on 100 images. It fails completely on 10 of them and is equally good on the rest. Is its mean IoU nearer to 0.67 or to 0.72?
#
# <details><summary>Answer</summary>
#
# The 90 others have 0.889, an IoU of 0.8; times 0.9 that is 0.72. The lower bound, 0.667, is reached only if all images score alike. The more uneven the scores, the higher the mean IoU.
#
# </details>

# %%
uneven = np.r_[np.zeros(10), np.full(90, 0.8 / 0.9)]
print(iou_from_dice(uneven).mean().round(3), "lower bound", round(jensen_bound(0.8)[0], 3))
assert np.isclose(iou_from_dice(uneven).mean(), 0.72)

# %% [markdown]
# **2 · Change.** Let one image fail, and report the *median* beside the mean. Which of the two moves?
#
# <details><summary>Answer</summary>
#
# One failure in thirty moves the mean by about 0.03 and the median hardly at all. That is a reason to show both, and no reason to hide the failure.
#
# </details>

# %%
good = 1 - rng.beta(2, 18, 30)
failed = np.r_[good[:-1], 0.0]
print(
    f"mean {good.mean():.3f} -> {failed.mean():.3f}, median {np.median(good):.3f} -> "
    f"{np.median(failed):.3f}"
)
assert good.mean() - failed.mean() > 0.02 > np.median(good) - np.median(failed)

# %% [markdown]
# **3 · Implement.** Dice per *vertebra*: let each pixel of the prediction belong to the vertebra whose centre is nearest, give each of the seventeen its own Dice, and report the worst. Which of the cases of section 2 have a vertebra with a score of zero?
#
# <details><summary>Answer</summary>
#
# "One missing" and "one level off": both lack a vertebra, which an overall Dice of about 0.97 and more hides. That "one level off" *names* the other sixteen wrongly is hidden still: the prediction would have to carry the names.
#
# </details>

# %%
y, x = np.mgrid[0:576, 0:192] + 0.5
distance = (x - quads.mean(1)[:, 0, None, None]) ** 2 + (
    y - quads.mean(1)[:, 1, None, None]
) ** 2  # 17 h w
nearest = torch.from_numpy(distance.argmin(0))


def worst_vertebra(prediction):
    return min(
        dice(prediction & (nearest == k), drawn(q[None])).item() for k, q in enumerate(quads)
    )


print({name: round(worst_vertebra(mask), 2) for name, mask in cases.items()})
assert worst_vertebra(truth) == 1 and worst_vertebra(missing) == worst_vertebra(
    down
) == 0 < worst_vertebra(fat)

# %% [markdown]
# Next: [06 · The forward process](06_forward.ipynb), where a mask is drowned in noise on purpose.
