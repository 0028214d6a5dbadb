# %% [markdown]
# # How good will the mask be?
# > A predicted Dice with an interval, learned from radiographs that the model was not trained on

# %% [markdown]
# Nobody knows the Dice of a new radiograph, but much of it can be foreseen: a network that hesitates over many pixels is wrong on many. Five measures
# are taken of each result, on the network's canvas and without the label:
#
# | measure | asks |
# |---|---|
# | prior | $\sum f(1-f) / \sum [f > \tfrac12]$ of the prior's probability $f$: how much does it hesitate, for each pixel of its mask? |
# | mean | the same of the samples' mean |
# | between | one minus the mean Dice of each two samples |
# | spread | standard deviation of the samples, summed, for each pixel of the mask |
# | apart | one minus the Dice of the prior's mask and that of the mean |
#
# A ridge regression from their logarithms to the logit of Dice is fitted on validation radiographs and copies of them that were disturbed (noise,
# blur, ends cut off, a spine that is small on the radiograph), so that low values occur. Each study is then predicted by the others; what those
# predictions miss gives an interval that should hold nine Dice of ten, as long as new radiographs are like the old ones.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/uncertainty.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp segmentation.uncertainty

# %%
#| export
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from verdiff.data.augment import affine_matrix, gaussian_blur
from verdiff.data.packed import Packed
from verdiff.data.splits import study
from verdiff.diffusion.sampling import sample
from verdiff.files import VerdiffError
from verdiff.metrics import dice
from verdiff.networks.model import VerdiffNet
from verdiff.training.batches import generator_for

# %%
import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.packed import pack
from verdiff.data.phantom_set import PhantomSet
from verdiff.metrics import risk_coverage
from verdiff.segmentation.models import find_model

# %%
#| code-fold: true
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 80})
torch.set_num_threads(1)

# %% [markdown]
# ## Measures

# %%
#| export
MEASURES = ("prior", "mean", "between", "spread", "apart")


def mask_dice(
    a: np.ndarray,  # bool
    b: np.ndarray,  # bool, the same shape
) -> float:  # in [0, 1]; both empty: 1
    "Eq. (17) of two NumPy masks."
    return dice(torch.from_numpy(a)[None], torch.from_numpy(b)[None]).item()


def measures(
    prior: np.ndarray,  # in [0, 1], any shape: a canvas, or the pixels around one vertebra
    samples: np.ndarray,  # in [0, 1], (E, *that shape)
) -> dict[str, float]:  # one value from 0 on for each of MEASURES
    """How much a result hesitates; 1 in all of them for an empty mask, whose Dice will be 0.

    Dice between samples as a predictor of quality: Roy et al. 2019.
    """
    prior, samples = np.asarray(prior, np.float64), np.asarray(samples, np.float64)
    mean, masks = samples.mean(0), samples > 0.5
    first, joint = prior > 0.5, mean > 0.5
    if not joint.any():
        return dict.fromkeys(MEASURES, 1.0)
    between = [mask_dice(a, b) for a, b in combinations(masks, 2)] or [1.0]
    return {"prior": float((prior * (1 - prior)).sum() / max(first.sum(), 1)),
            "mean": float((mean * (1 - mean)).sum() / joint.sum()),
            "between": 1 - float(np.mean(between)),
            "spread": float(samples.std(0).sum() / joint.sum()),
            "apart": 1 - mask_dice(first, joint)}


# %% [markdown]
# ## Prediction

# %%
#| export
class PredictedDice(NamedTuple):
    "What a mask is expected to reach."

    value: float  # in (0, 1)
    low: float  # of the 90 % interval
    high: float


def logit(x: Any) -> np.ndarray:
    "log x / (1 - x), x kept within 0.01 and 0.99."
    x = np.clip(np.asarray(x, np.float64), 0.01, 0.99)
    return np.log(x / (1 - x))


@dataclass(frozen=True)
class DicePredictor:
    "From measures to a Dice; plain numbers, so that it fits into a JSON."

    names: tuple[str, ...]  # of the measures it reads
    weights: tuple[float, ...]  # of their logarithms
    bias: float
    below: float  # from the prediction to the interval's ends, on the scale of logits
    above: float
    usual: float  # median of its predictions for validation radiographs
    limit: float  # the Dice that 19 of 20 of these reached
    films: int  # how many radiographs it was learned from, without disturbed copies

    def predict(self, found: Mapping[str, float]) -> PredictedDice:
        "Value and 90 % interval for the measures of one result."
        z = self.bias + float(features([found], self.names)[0] @ np.array(self.weights))
        return PredictedDice(*(1 / (1 + math.exp(-min(max(x, -30), 30)))
                               for x in (z, z - self.below, z + self.above)))


def features(found: Sequence[Mapping[str, float]], names: Sequence[str]) -> np.ndarray:
    "Logarithms of the measures, kept within 0.001 and 10, (N, K)."
    return np.log(np.clip([[f[name] for name in names] for f in found], 1e-3, 10))


# %%
#| export
def ridge(x: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    "Weights and bias of a ridge regression on standardised columns (Hoerl and Kennard 1970)."
    middle, scale = x.mean(0), x.std(0) + 1e-6
    z = (x - middle) / scale
    weights = np.linalg.solve(z.T @ z + strength * np.eye(z.shape[1]), z.T @ (y - y.mean())) / scale
    return weights, float(y.mean() - middle @ weights)


def predict_others(
    x: np.ndarray,  # features, (N, K)
    y: np.ndarray,  # logits of Dice, (N,)
    groups: Sequence[str],  # study of each
    strength: float = 1.0,
) -> np.ndarray:  # logits, (N,)
    "Each study predicted from all others."
    groups, out = np.array(groups), np.zeros(len(y))
    for group in np.unique(groups):
        own = groups == group
        weights, bias = ridge(x[~own], y[~own], strength)
        out[own] = x[own] @ weights + bias
    return out


def conformal(misses: np.ndarray, share: float = 0.9) -> float:
    "What so many of new misses stay below (Vovk et al. 2005): a rank of n + 1, not of n."
    rank = min(math.ceil(share * (len(misses) + 1)), len(misses))
    return float(np.sort(misses)[rank - 1])


# %%
#| export
def fit_predictor(
    found: Sequence[Mapping[str, float]],  # measures of each result
    true: Sequence[float],  # its Dice
    groups: Sequence[str],  # its study, so that no study predicts itself; 5 or more
    clean: Sequence[bool] | None = None,  # not a disturbed copy; None: all. These make the interval
    names: Sequence[str] = MEASURES,
    strength: float = 1.0,  # of the ridge
) -> tuple[DicePredictor, np.ndarray]:  # and each Dice as the other studies predict it
    """Learn to foresee Dice (Kohlberger et al. 2012, Robinson et al. 2018: regression from
    what a segmentation shows of itself), with the interval of leave-one-study-out misses
    (jackknife+ of Barber et al. 2021, in its simple form). VerdiffError for too few studies.
    """
    clean = np.ones(len(true), bool) if clean is None else np.array(clean, bool)
    if len(set(np.array(groups)[clean])) < 5:
        raise VerdiffError("too few studies to learn a predicted Dice from; give 5 or more")
    x, y = features(found, names), logit(true)
    others = predict_others(x, y, groups, strength)
    misses = (others - y)[clean]
    weights, bias = ridge(x, y, strength)
    usual = np.median(x[clean] @ weights + bias)
    limit = np.quantile(y[clean], 0.05)
    back = 1 / (1 + np.exp(-np.array([usual, min(limit, usual - 0.1)])))
    predictor = DicePredictor(tuple(names), tuple(map(float, weights)), bias,
                              max(conformal(misses, 0.95), 0.0), max(conformal(-misses, 0.95), 0.0),
                              *map(float, back), int(clean.sum()))
    return predictor, 1 / (1 + np.exp(-others))


# %%
#| export
def strangeness(
    predictor: DicePredictor,
    predicted: PredictedDice,
) -> float:  # 0: usual or better; above 1: below the limit
    "How far a predicted Dice lies below the usual, for `judge` to take beside its traits."
    value, usual, limit = logit([predicted.value, predictor.usual, predictor.limit])
    return float(max(usual - value, 0) / (usual - limit))


# %%
#| export
def read_predictor(
    values: Mapping[str, Any] | None,  # of reference.json
) -> DicePredictor | None:
    "As `asdict` wrote it; ValueError, TypeError or KeyError where it is damaged."
    if values is None:
        return None
    names, weights = tuple(values["names"]), tuple(map(float, values["weights"]))
    rest = [float(values[key]) for key in ("bias", "below", "above", "usual", "limit")]
    if not set(names) <= set(MEASURES) or len(names) != len(weights):
        raise ValueError("measures of the predicted Dice that this version does not know")
    if not np.isfinite([*weights, *rest]).all() or not 0 < rest[4] < rest[3] < 1:
        raise ValueError("numbers of the predicted Dice out of order")
    return DicePredictor(names, weights, *rest, int(values["films"]))


# %% [markdown]
# ## Radiographs to learn from

# %%
#| export
DISTURBANCES = ("noise", "blur", "cut", "zoom")


def disturb(
    image: Tensor,  # (1, 1, H, W) in [0, 1]
    mask: Tensor,  # (1, 1, H, W) {0, 1}
    kind: str,  # one of DISTURBANCES
    generator: torch.Generator,  # draws how much of it
) -> tuple[Tensor, Tensor]:
    "White noise, blur, both ends lost, or a spine that is small on the film."
    share, part = torch.rand(2, generator=generator).tolist()
    height, width = image.shape[-2:]
    if kind == "noise":
        white = torch.randn(image.shape, generator=generator)
        return (image + (0.02 + 0.13 * share) * white).clamp(0, 1), mask
    if kind == "blur":
        sigma = (0.008 + 0.035 * share) * width
        return gaussian_blur(image, torch.tensor([sigma]), math.ceil(3 * sigma)), mask
    if kind == "cut":
        lost = height * (0.1 + 0.3 * share)
        rows = torch.arange(height)[:, None]
        kept = (rows >= lost * part) & (rows < height - lost * (1 - part))
        return image * kept, mask * kept
    if kind != "zoom":
        raise ValueError(f"kind must be one of {', '.join(DISTURBANCES)}, not {kind!r}")
    theta = affine_matrix(torch.zeros(1), torch.tensor([1 / (1.15 + 0.85 * share)]),
                          torch.zeros(1, 2), (height, width))
    both = torch.cat([image, mask.float()], 1)
    both = F.grid_sample(both, F.affine_grid(theta, list(both.shape), align_corners=False),
                         align_corners=False)
    return both[:, :1], (both[:, 1:] >= 0.5).to(mask)


# %%
#| export
class Film(NamedTuple):
    "One radiograph, or a disturbed copy, as the model answers it."

    index: int  # in the data
    kind: str  # "clean", or one of DISTURBANCES
    prior: np.ndarray  # in [0, 1], (h, w) of the network
    samples: np.ndarray  # in [0, 1], (E, h, w)
    pred: np.ndarray  # bool, (H, W) of the data: mean above one half
    true: np.ndarray  # bool, (H, W)


def answers(
    model: VerdiffNet,  # trained
    data: Packed,  # at the size at which to score
    copies: int = 2,  # disturbed copies of each radiograph, 0 to 2, the kinds take turns
    steps: int = 1,
    ensemble: int = 5,
    first: int = 0,  # number of the first one, for the seeds
    progress: bool = True,  # show a bar
) -> Iterator[Film]:  # one after the other
    "Segment every radiograph and its disturbed copies."
    bar = tqdm(range(len(data)), "predicted Dice", unit="image", disable=None if progress else True)
    for i in bar:
        image, mask = data.images[i:i + 1].float() / 255, data.masks[i:i + 1]
        number = first + i
        kinds = [DISTURBANCES[(number + 2 * k) % 4] for k in range(copies)]
        for kind in ("clean", *kinds):
            draw = None if kind == "clean" else generator_for(7, number, DISTURBANCES.index(kind))
            x, y = disturb(image, mask, kind, draw) if draw else (image, mask)
            small = F.interpolate(x, model.size, mode="area").to(model.device)
            got = sample(model, small, steps=steps, ensemble=ensemble, first_index=number)
            large = F.interpolate(got.mean, y.shape[-2:], mode="bilinear", align_corners=False)
            yield Film(i, kind, got.prior_prob[0, 0].cpu().numpy(),
                       got.samples[:, 0, 0].cpu().numpy(), large[0, 0].cpu().numpy() > 0.5,
                       y[0, 0].numpy() > 0)


def learn_predictor(
    model: VerdiffNet,  # trained
    data: Packed,  # radiographs that it was not trained on
    steps: int = 1,  # of the sampler
    ensemble: int = 5,  # samples
    copies: int = 2,  # disturbed ones of each, 0 to 2
    progress: bool = True,
) -> DicePredictor:
    "Measure, score and fit; VerdiffError for fewer than 5 studies or patients."
    films = [(f.index, f.kind, measures(f.prior, f.samples), mask_dice(f.pred, f.true))
             for f in answers(model, data, copies, steps, ensemble, progress=progress)]
    names = data.groups or [study(name) for name in data.names]
    index, kinds, found, true = zip(*films, strict=True)
    return fit_predictor(found, true, [names[i] for i in index], [k == "clean" for k in kinds])[0]


# %% [markdown]
# ## Use
# The package's network on phantoms, which it was never trained on, so that good and bad masks occur. Half of them teach, the others test:

# %%
model = VerdiffNet.from_pretrained(find_model(None))
phantoms = pack(PhantomSet(None, "training", model.size, n_training=24), progress=False)
films = list(answers(model, phantoms, copies=1, progress=False))
found = [measures(f.prior, f.samples) for f in films]
true = np.array([mask_dice(f.pred, f.true) for f in films])
learn = np.array([f.index < 16 for f in films])
clean = np.array([f.kind == "clean" for f in films])
print(f"Dice of {len(films)} results: {true.min():.2f} to {true.max():.2f}")

# %%
half = np.flatnonzero(learn)
predictor, _ = fit_predictor([found[i] for i in half], true[half], [films[i].index for i in half])
rest = [predictor.predict(f) for f, own in zip(found, learn) if not own]
held = sum(p.low <= d <= p.high for p, d in zip(rest, true[~learn]))
print(f"{held} of {len(rest)} within their 90 % interval")
assert held >= 0.7 * len(rest)

# %% [markdown]
# Sort by the predicted Dice, set the lowest aside: what is left gets better, if the prediction is worth something (risk and coverage:
# Geifman and El-Yaniv 2017; [page 05](../05_metrics.ipynb)).

# %%
#| code-fold: true
#| fig-alt: "Left: true against predicted Dice of phantoms that did not teach, with intervals; the points rise with the diagonal. Right: mean Dice of the kept share, which rises as the lowest predictions are set aside."
value, low, high = np.array(rest).T
fig, axes = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
axes[0].errorbar(value, true[~learn], xerr=[value - low, high - value], fmt=".", lw=0.6)
axes[0].plot([0.2, 1], [0.2, 1], "k:", lw=1)
axes[0].set(xlabel="predicted Dice", ylabel="true Dice")
share, risk, _ = risk_coverage(1 - true[~learn], -value)
axes[1].plot(share, 1 - risk)
axes[1].set(xlabel="share kept", ylabel="mean Dice of those");
