# %% [markdown]
# # Is it any good?
# > Dice and IoU of prior and diffusion, with intervals

# %% [markdown]
# `evaluate` scores the prior alone, and the diffusion at several numbers of steps, as a single sample and as an ensemble's mean: mean ± standard
# deviation and a 95 % bootstrap interval. Dice is counted at the size of the data, the probability enlarged bilinearly, so that networks
# of different canvases can share a table; radiographs in both splits of the public set are once counted, once left out
# ([lesson 3](../03_xray_set.ipynb)).
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/evaluation.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp segmentation.evaluation

# %%
#| export
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from tqdm import tqdm

import verdiff
from verdiff.data.datasets import open_dataset, patients
from verdiff.data.packed import Packed, pack
from verdiff.data.phantom_set import PhantomSet
from verdiff.data.phantoms import draw_phantom
from verdiff.data.splits import grouped_split, image_subsets
from verdiff.diffusion.sampling import SegmentationSamples, sample
from verdiff.files import VerdiffError, atomic_write, read_json, write_csv, write_json
from verdiff.metrics import Summary, dice, iou, summary
from verdiff.networks.model import VerdiffNet
from verdiff.segmentation.segmenter import Segmenter, check_steps
from verdiff.segmentation.uncertainty import DicePredictor, learn_predictor
from verdiff.settings import load_settings

# %%
import json
import shutil
import tempfile

from PIL import Image

from verdiff.segmentation.models import find_model


# %% [markdown]
# ## The table

# %%
#| export
@dataclass
class Scores:
    "Dice and IoU of one way to segment, image by image."

    method: str  # "prior" or "diffusion"
    steps: int  # steps of the sampler, 0 for the prior
    samples: int  # how many samples were averaged, 0 for the prior
    dice: np.ndarray  # (N,)
    iou: np.ndarray  # (N,)
    seconds: float  # per image

    @property
    def label(self) -> str:
        "In words, for tables."
        if self.method == "prior":
            return "prior alone"
        of = "1 sample" if self.samples == 1 else f"mean of {self.samples}"
        return f"diffusion, {self.steps} step{'s' * (self.steps > 1)}, {of}"


# %%
#| export
@dataclass
class Row:
    "One line of the table."

    images: str  # which test images: "all", "without duplicates" (120), "without any twin" (112)
    scores: Scores  # where the numbers come from
    dice: Summary  # mean, sd, interval, n
    iou: Summary  # the same of IoU

    def to_dict(self) -> dict[str, Any]:
        "One flat record for JSON and CSV."
        how = self.scores
        flat: dict[str, Any] = {"images": self.images, "n": self.dice.n, "method": how.method,
                                "steps": how.steps, "samples": how.samples}
        for name, s in (("dice", self.dice), ("iou", self.iou)):
            flat |= {name: s.mean, f"{name}_sd": s.sd, f"{name}_low": s.lo, f"{name}_high": s.hi}
        return flat | {"seconds_per_image": how.seconds}


# %%
#| export
@dataclass
class Evaluation:
    "Scores of the prior and of the diffusion on the same images."

    names: list[str]  # of the N images
    scores: list[Scores]  # one a way to segment
    size: tuple[int, int]  # (height, width) at which everything was scored

    def rows(self) -> list[Row]:
        "On all images and, where some have a twin in the training set, without those."
        return [Row(title, s, summary(s.dice[index]), summary(s.iou[index]))
                for title, index in image_subsets(self.names).items() for s in self.scores]

    def __str__(self) -> str:
        lines = [f"{'':34s} {'Dice':36s} {'IoU':36s} s/image"]
        seen = None
        for row in self.rows():
            if row.images != seen:
                seen = row.images
                lines.append(f"{row.dice.n} images, {seen}")
            lines.append(f"  {row.scores.label:32s} {str(row.dice):36s} {str(row.iou):36s} "
                         f"{row.scores.seconds:.2f}")
        return "\n".join(lines)

    def save(self, folder: Path, **about: Any) -> list[Path]:
        "As `save_evaluation`; VerdiffError where the disk fails."
        return save_evaluation(self, folder, **about)


# %%
#| export
def save_evaluation(
    evaluation: Evaluation,
    folder: Path,  # where to; made if missing
    **about: Any,  # what else the JSON should say: model, data, seed, ...
) -> list[Path]:  # evaluation.json, evaluation.csv and scores.csv
    "The table as JSON and CSV, and the scores of every image as CSV."
    rows = [row.to_dict() for row in evaluation.rows()]
    per_image = [{"name": name, "method": s.method, "steps": s.steps, "samples": s.samples,
                  "dice": float(s.dice[i]), "iou": float(s.iou[i])}
                 for s in evaluation.scores for i, name in enumerate(evaluation.names)]
    about = {"verdiff": verdiff.__version__, **about, "size": list(evaluation.size), "rows": rows}
    paths = [Path(folder) / n for n in ("evaluation.json", "evaluation.csv", "scores.csv")]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    write_json(paths[0], about)
    write_csv(paths[1], rows)
    write_csv(paths[2], per_image)
    return paths


# %% [markdown]
# ## Scoring

# %%
#| export
Way = tuple[str, int, int]  # method, steps, samples, as in `Scores`


def ways_to_segment(
    model: VerdiffNet,  # trained
    image: torch.Tensor,  # (B, 1, H, W) in [0, 1], at the model's size
    steps: Sequence[int],
    ensemble: int,
    **options: Any,  # of `sample`
) -> Iterator[tuple[Way, torch.Tensor, float]]:  # which way, probability (B, 1, H, W), seconds
    "Prior alone, then for each number of steps one sample and the ensemble's mean."
    for k in steps:
        start = time.perf_counter()
        got = sample(model, image, steps=k, ensemble=ensemble, **options)
        took = time.perf_counter() - start
        if k == steps[0]:
            yield ("prior", 0, 0), got.prior_prob, 0.0
        yield ("diffusion", k, 1), got.samples[0], took / ensemble
        if ensemble > 1:
            yield ("diffusion", k, ensemble), got.mean, took


# %%
#| export
def check_shape(
    size: tuple[int, int],  # (height, width) of the network
    scored: tuple[int, int],  # (height, width) at which to score
    fit: str,  # of the network
) -> None:
    "VerdiffError where letterboxed images would be stretched by more than 5 % to be scored."
    (h, w), (H, W) = size, scored
    if fit == "letterbox" and not 0.95 < H * w / (W * h) < 1.05:
        raise VerdiffError(f"scoring at {H}x{W} would stretch the images of a model for {h}x{w}; "
                           f"take a size of the same shape, such as {2 * h}x{2 * w}")


# %%
#| export
def evaluate(
    model: VerdiffNet,  # trained
    data: Packed,  # images and masks at the size at which to score
    steps: Sequence[int] = (1, 5, 10),  # numbers of steps to try
    ensemble: int = 5,  # samples an image; a single one is scored as well
    seed: int = 0,  # of the sampler's noise
    batch_size: int = 8,  # images at once
    progress: bool = True,  # show a bar
    sampler: str = "ddim",  # or "ddpm", "dpm"
) -> Evaluation:
    """Prior alone, and diffusion at each number of steps, as one sample and as the ensemble's mean.

    VerdiffError where a letterboxed model would see the images stretched by more than 5 %.
    """

    check_steps(model, steps)
    steps = list(dict.fromkeys(steps))
    size, found, seconds = tuple(data.images.shape[-2:]), {}, Counter()
    check_shape(model.size, size, model.config.fit)
    model.eval()
    for first in tqdm(range(0, len(data), batch_size), "evaluate", unit="batch",
                      disable=None if progress else True):
        part = slice(first, first + batch_size)
        mask = data.masks[part].to(model.device) > 0
        image = data.images[part].to(model.device).float() / 255
        image = F.interpolate(image, model.size, mode="area")  # b 1 H W -> b 1 h w
        for way, prob, took in ways_to_segment(model, image, steps, ensemble, seed=seed,
                                               first_index=first, sampler=sampler):
            large = F.interpolate(prob.float(), size=size, mode="bilinear", align_corners=False)
            found.setdefault(way, []).append(overlaps(large > 0.5, mask))
            seconds[way] += took / len(data)
    scores = [Scores(*way, *np.concatenate(parts, 1), seconds[way]) for way, parts in found.items()]
    return Evaluation(list(data.names), scores, size)


def overlaps(pred: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    "Dice and IoU of a batch, float64 (2, B)."
    return torch.stack([dice(pred, mask), iou(pred, mask)]).cpu().double().numpy()


# %% [markdown]
# ## Pictures

# %%
#| export
def draw_samples(
    images: torch.Tensor,  # (B, 1, h, w) in [0, 1]
    samples: SegmentationSamples,  # of these images
    masks: torch.Tensor | None = None,  # true masks, (B, 1, H, W)
    shown: int = 3,  # how many single samples to show
) -> Figure:
    "One row an image: the image, the prior, some samples, their mean, their spread, the truth."
    unit, most = {"cmap": "magma", "vmin": 0, "vmax": 1}, max(0.01, float(samples.std.max()))
    columns: list[tuple[str, Any, dict[str, Any]]] = [
        ("image", images, {"cmap": "gray"}), ("prior", samples.prior_prob, unit),
        *((f"sample {i + 1}", s, unit) for i, s in enumerate(samples.samples[:shown])),
        ("mean", samples.mean, unit),
        (f"spread\n0 to {most:.2f}", samples.std, {"cmap": "viridis", "vmin": 0, "vmax": most})]
    if masks is not None:
        columns.append(("truth", masks, unit))
    rows, (h, w) = len(images), images.shape[-2:]
    figure = Figure((1.1 * len(columns), 1.1 * rows * h / w + 0.3), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for column, (title, pictures, style) in zip(axes.T, columns, strict=True):
        column[0].set_title(title, fontsize=8)
        for axis, picture in zip(column, pictures, strict=True):
            axis.imshow(picture[0].float().cpu().numpy(), **style)
    return figure


# %%
#| export
def save_figure(
    figure: Figure,  # of matplotlib
    path: Path,  # of the PNG
    dpi: int = 110,  # dots per inch
) -> None:
    "Write a figure as PNG, whole or not at all."
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)


# %% [markdown]
# ## Radiographs to calibrate with

# %%
#| export
def trained_with(
    folder: Path,  # of the model; run.json lies in it or above it
) -> dict[str, Any]:  # val_fraction, seed, labels
    "What tells a model's validation part; VerdiffError for a damaged run.json."
    notes = [p / "run.json" for p in (folder, folder.parent) if (p / "run.json").is_file()]
    try:
        run = read_json(notes[0])["settings"] if notes else load_settings().to_dict()
        return {"val_fraction": float(run["val_fraction"]), "seed": int(run["seed"]),
                "labels": str(run.get("labels", "auto"))}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VerdiffError(f"{notes[0]} is damaged ({type(error).__name__}: {error}), so the "
                           "images to validate on are unknown; train again with --fresh") from None


def validation_index(
    opened: Any,  # the dataset's training part, as `open_dataset` gives it
    folder: Path,  # of the model; run.json lies in it or above it
) -> list[int]:
    "Which of it the model was validated on, not trained on; VerdiffError for a damaged run.json."
    run = trained_with(folder)
    return grouped_split(patients(opened), run["val_fraction"], run["seed"])[1]


def validation_images(
    data: str,  # a zip, a folder, or the word "phantom"
    segmenter: Segmenter,
    folder: Path,  # of the model; run.json lies in it or above it
) -> list[Any]:  # grey images
    """The radiographs that the model was validated on, not trained on; of phantoms, new ones.

    VerdiffError for a damaged run.json.
    """
    if data == "phantom":
        return [draw_phantom(seed=50_000 + i).image for i in range(24)]
    opened = open_dataset(data, "training", segmenter.model.size, segmenter.model.config.fit,
                          labels=trained_with(folder)["labels"])
    return [opened.read_image(i) for i in validation_index(opened, folder)]


def validation_pairs(
    data: str,  # as for `validation_images`
    segmenter: Segmenter,
    folder: Path,
) -> Packed:  # enlarged to about 768 rows
    "The same radiographs with their masks; of phantoms others. VerdiffError likewise."
    model = segmenter.model
    factor = max(1, round(768 / model.size[0]))
    size = model.size[0] * factor, model.size[1] * factor
    if data == "phantom":
        return pack(PhantomSet(None, "test", size, model.config.fit, 1, 24, 50), progress=False)
    opened = open_dataset(data, "training", size, model.config.fit,
                          labels=trained_with(folder)["labels"])
    index = validation_index(opened, folder)
    parts = [opened.arrays(i)[:2] for i in index]
    if not parts:
        return Packed(torch.zeros(0), torch.zeros(0), [])
    images, masks = (torch.from_numpy(np.stack(p)[:, None]) for p in zip(*parts, strict=True))
    groups = patients(opened)
    return Packed(images, (masks > 0).to(torch.uint8), [opened.names[i] for i in index],
                  [groups[i] for i in index] if getattr(opened, "groups", None) else None)


def predictor_from(
    data: str,  # as for `validation_images`
    segmenter: Segmenter,  # calibrated: its steps and samples count
    folder: Path,
) -> DicePredictor | None:  # None, after a note: too few studies or patients
    "Learn to [foresee Dice](uncertainty.ipynb) from the same radiographs and their masks."
    pairs = validation_pairs(data, segmenter, folder)
    try:
        return learn_predictor(segmenter.model, pairs, *segmenter.usual)
    except VerdiffError as error:
        print(f"verdiff: note: no predicted Dice: {error}", file=sys.stderr)
        return None


# %% [markdown]
# ## Use
# The bundled model on a few phantoms, which it has never seen the like of in training:

# %%
folder = Path(tempfile.mkdtemp())
model = VerdiffNet.from_pretrained(find_model(None))
test = pack(PhantomSet(split="test", size=model.size, n_test=24), progress=False).subset(range(6))
evaluation = evaluate(model, test, steps=(1,), ensemble=3, progress=False)
print(evaluation)
files = evaluation.save(folder, data="phantom")
assert json.loads(files[0].read_text())["rows"][0]["method"] == "prior"
print(*files[1].read_text().splitlines()[:3], sep="\n")


# %%
#| fig-alt: "Two phantoms, a row each: image, prior, three samples, their mean, their spread, the truth."
two = test.images[:2].float() / 255
figure = draw_samples(two, sample(model, two, steps=1, ensemble=3), test.masks[:2])
save_figure(figure, folder / "result.png", dpi=80)
Image.open(folder / "result.png")


# %%
#| hide
shutil.rmtree(folder)
