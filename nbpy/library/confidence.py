# %% [markdown]
# # Does the question make sense?
# > How usual a result is, learned from radiographs that the model was not trained on

# %% [markdown]
# A network that has seen nothing but spines finds them everywhere, on a blank sheet too, and the spread of its samples hardly says so. So the
# *result* is asked six questions, and the answers are compared with what is usual for this model on radiographs that it was not trained on:
#
# | trait | asks | strange when |
# |---|---|---|
# | agreement | Dice between the prior's mask and the ensemble's | low |
# | margin | mean of $2\,\lvert \bar p - \tfrac12 \rvert$ inside the mask: how far from undecided? | low |
# | area | share of the image that is mask | low, high |
# | extent | share of the height that the mask spans | low, high |
# | widening | $(b - a) / (b + a)$ for the area $a$ of the upper and $b$ of the lower third of the mask's rows; vertebrae grow downwards | low, high |
# | contrast | standard deviation of the grey values, from 0 to 1 | low |
#
# Of each trait $x$ the median $m$ is kept and a limit $l$ on either side, a quarter farther from $m$ than the most extreme radiograph. Then
#
# $$z_j = \frac{\lvert x_j - m_j \rvert}{\lvert l_j - m_j \rvert}, \qquad \text{confidence} = \frac{1}{1 + \left(\max_j z_j\right)^4}.$$
#
# Below one half, where the worst trait passes its limit, there is a warning. The confidence says how usual a result looks; it is not the
# probability that the mask is right, and a mask that is off by one vertebra looks usual.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/confidence.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp segmentation.confidence

# %%
#| export
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from verdiff.files import VerdiffError, read_json, write_json
from verdiff.io.images import read_image
from verdiff.networks.pretrained import WEIGHTS_FILE, fetch_file

# %%
import shutil
import tempfile
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
from PIL import Image
from matplotlib.cbook import get_sample_data
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.phantoms import draw_phantom
from verdiff.segmentation.segmenter import Segmenter

# %%
#| code-fold: true
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 80})
torch.set_num_threads(1)


# %%
#| export
TRAITS = {  # name -> what a value below and one above the usual means; None: never strange
    "agreement": ("prior and diffusion contradict each other", None),
    "margin": ("the samples are undecided even inside the mask", None),
    "area": ("the mask is unusually small", "the mask is unusually large"),
    "extent": ("the mask covers little of the height", "the mask covers too much of the height"),
    "widening": ("the mask narrows downwards (is the image upside down?)",
                 "the mask widens too much downwards"),
    "contrast": ("the image is almost blank", None),
}


def traits(
    image: Any,  # the radiograph, as `read_image` takes it
    segmentation: Any,  # `Segmentation` of that radiograph
) -> dict[str, float]:  # one value for each of TRAITS
    "Six numbers in [-1, 1] by which a strange result gives itself away; an empty mask: zeros."

    mask, prior = segmentation.mask.astype(bool), segmentation.prior > 0.5
    contrast = float(np.asarray(read_image(image), np.float32).std() / 255)
    if not mask.any():
        return dict.fromkeys(TRAITS, 0.0) | {"contrast": contrast}
    rows = np.flatnonzero(mask.any(1))
    thirds = np.array_split(mask[rows[0]:rows[-1] + 1], 3)
    upper, lower = thirds[0].sum(), thirds[-1].sum()
    inside = segmentation.probability[mask]
    return {"agreement": float(2 * (mask & prior).sum() / (mask.sum() + prior.sum())),
            "margin": float((2 * np.abs(inside - 0.5)).mean()), "area": float(mask.mean()),
            "extent": float((rows[-1] - rows[0] + 1) / len(mask)),
            "widening": float((lower - upper) / max(lower + upper, 1)), "contrast": contrast}


# %%
#| export
SLACK = 1.25  # how much farther than the validation films a trait may lie


@dataclass(frozen=True)
class Reference:
    "What is usual for the masks of one model."

    limits: dict[str, tuple[float, float, float]]  # trait -> lower limit, median, upper limit
    films: int = 0  # how many radiographs it was learned from
    weights: str = ""  # SHA-256 of the model's weights
    steps: int = 1  # of the sampler, for which it holds
    ensemble: int = 5  # samples, likewise


def learn_limits(
    found: Sequence[dict[str, float]],  # traits of radiographs that the model was not trained on
) -> dict[str, tuple[float, float, float]]:  # trait -> lower limit, median, upper limit
    "Medians, and limits a quarter farther out than the most extreme one."
    limits = {}
    for name in TRAITS:
        x = np.array([f[name] for f in found])
        middle = float(np.median(x))
        below, above = (max(SLACK * float(d), 0.01) for d in (middle - x.min(), x.max() - middle))
        limits[name] = middle - below, middle, middle + above
    return limits


# %%
#| export
def judge(
    reference: Reference,
    found: dict[str, float],  # of one image, by `traits`
) -> tuple[float, str | None]:  # confidence in [0, 1], and a sentence where it is below one half
    "How usual the worst of the traits is, and the names of the two worst."
    odd = []
    for name, (low, middle, high) in reference.limits.items():
        below, above = TRAITS[name]
        limit, reason = (low, below) if found[name] < middle else (high, above)
        if reason:
            odd.append((abs(found[name] - middle) / abs(limit - middle), reason))
    odd.sort(reverse=True)
    confidence = 1 / (1 + odd[0][0] ** 4)
    why = [reason for z, reason in odd if z > 1]
    why.sort(key=lambda reason: reason != TRAITS["contrast"][0])  # a blank image explains the rest
    sentence = (
        f"confidence {confidence:.2f}: {', and '.join(why[:2])}; unlike the radiographs that this "
        "model knows, so look before you use the mask"
    )
    return confidence, sentence if confidence < 0.5 else None


# %%
#| export
def calibrate(
    segmenter: Any,  # `Segmenter`; gets the reference
    images: Iterable[Any],  # radiographs that it was not trained on, at least 8
    weights: str = "",  # SHA-256 of the model's weights
    progress: bool = True,  # show a bar
    steps: int = 1,  # of the sampler; `predict` takes them from now on
    ensemble: int = 5,  # samples, likewise
) -> float:  # share of the radiographs that is flagged when the others set the limits
    "What is usual in masks of so many steps and samples; VerdiffError for too few radiographs."

    images = tqdm(images, "calibrate", unit="image", disable=None if progress else True)
    found = [traits(grey, segmenter.predict(grey, steps, ensemble))
             for grey in map(read_image, images)]
    if len(found) < 8:
        raise VerdiffError(
            f"{len(found)} radiographs are too few to calibrate with; give 8 or more"
        )
    if (empty := sum(f["area"] == 0 for f in found)) > len(found) / 4:
        raise VerdiffError(
            f"the model finds nothing in {empty} of {len(found)} radiographs; train it "
            "longer before it is calibrated"
        )
    others = (Reference(learn_limits(found[:i] + found[i + 1 :])) for i in range(len(found)))
    flagged = [judge(r, f)[1] is not None for r, f in zip(others, found, strict=True)]
    segmenter.reference = Reference(learn_limits(found), len(found), weights, steps, ensemble)
    return sum(flagged) / len(flagged)


# %% [markdown]
# ## Files
# A reference counts for its weights, by their SHA-256, and for the steps and samples with which it was learned.

# %%
#| export
REFERENCE_FILE = "reference.json"


def sha256_of_weights(
    folder: str | Path,  # of a model
) -> str:  # "" where there are none
    "What tells these weights from others."
    path = Path(folder) / WEIGHTS_FILE
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def save_reference(
    reference: Reference,
    folder: str | Path,  # of the model
) -> Path:  # reference.json
    "Put it beside the weights, whole or not at all."
    path = Path(folder) / REFERENCE_FILE
    write_json(path, asdict(reference))
    return path


# %%
#| export
def load_reference(
    folder: str | Path,  # of a model
) -> Reference | None:  # None: never calibrated, or calibrated with other weights
    "The reference beside the weights; VerdiffError where it is damaged."
    path = Path(folder) / REFERENCE_FILE
    if not path.is_file():
        return None
    try:
        values = read_json(path)
        limits = {name: tuple(map(float, values["limits"][name])) for name in TRAITS}
        if not all(-9 < low < middle < high < 9 for low, middle, high in limits.values()):
            raise ValueError("limits out of order")
        reference = Reference(limits, int(values["films"]), str(values["weights"]),
                              int(values["steps"]), int(values["ensemble"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise VerdiffError(f"{path} is damaged ({type(error).__name__}: {error}); remove it, or "
                           "write it again with `verdiff calibrate`") from None
    return reference if reference.weights == sha256_of_weights(folder) else None


def find_reference(
    found: str,  # what `find_model` gives: a folder, or an id on the Hub
) -> Reference | None:
    "The reference of a model, wherever it lies."

    if Path(found).is_dir():
        return load_reference(found)
    try:
        fetch_file(found, REFERENCE_FILE)
    except VerdiffError:
        return None
    return load_reference(fetch_file(found, WEIGHTS_FILE).parent)


# %% [markdown]
# ## Use
# The bundled model, calibrated on two dozen phantoms, and pictures that are no upright radiograph (the photograph comes with matplotlib):

# %%
segmenter = Segmenter.from_pretrained()
usual = [draw_phantom(700 + i, (576, 192)).image for i in range(24)]
share = calibrate(segmenter, usual, progress=False)
print(f"{share:.0%} of them flagged when the others set the limits")
assert segmenter.reference.films == 24


# %%
def strange_pictures(image, seed=0):
    "What a segmenter of spines should not be proud of: name -> grey picture."
    rng, (h, w) = np.random.default_rng(seed), image.shape
    with get_sample_data("grace_hopper.jpg") as file:
        photograph = np.asarray(Image.open(file).convert("L"))
    wave = np.sin(np.arange(h)[:, None] / rng.uniform(6, 14) + np.arange(w) / rng.uniform(6, 60))
    return {"photograph": photograph, "noise": rng.integers(0, 256, (h, w), dtype=np.uint8),
            "stripes": np.uint8(127 + 100 * wave), "blank": np.full((h, w), 90, np.uint8),
            "negative": 255 - image, "upside down": image[::-1, ::-1], "on its side": image.T}


image = draw_phantom(901, (576, 192)).image
pictures = {"a phantom": image, **strange_pictures(image)}
answers = {name: segmenter.predict(picture) for name, picture in pictures.items()}
for name, answer in answers.items():
    print(f"{name:12s} {(answer.warning or 'no warning').split(';')[0]}")
assert all(answers[n].warning for n in ("noise", "blank", "photograph"))


# %%
#| code-fold: true
#| fig-alt: "A phantom and seven strange pictures (photograph, noise, stripes, blank, negative, upside down, on its side), each with its confidence and the outline of the mask that was drawn all the same."
fig, axes = plt.subplots(1, len(pictures), figsize=(9, 2.9), layout="constrained")
for axis, (name, answer) in zip(axes, answers.items()):
    axis.imshow(pictures[name], cmap="gray", vmin=0, vmax=255)
    if answer.mask.any():
        axis.contour(answer.mask, [0.5], colors="darkorange", linewidths=1)
    axis.set_title(f"{name}\n{answer.confidence:.2f}", fontsize=8)
    axis.set_axis_off()


# %%
folder = Path(tempfile.mkdtemp())
segmenter.model.save_pretrained(folder)
save_reference(replace(segmenter.reference, weights=sha256_of_weights(folder)), folder)
assert load_reference(folder).limits == segmenter.reference.limits
(folder / WEIGHTS_FILE).write_bytes(b"others")
assert load_reference(folder) is None
shutil.rmtree(folder)
