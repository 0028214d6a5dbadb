# %% [markdown]
# # 16 · One radiograph in, a mask out
# > Any file, at its own size, with a probability and an uncertainty for every pixel

# %% [markdown]
# Lesson 15 left a question: does it work on *my* file? So far everything was a tensor of one size; people own files of
# all sizes and depths. You will take one to the network's canvas and back, turn samples into a mask, a probability and an
# uncertainty, and test whether that uncertainty marks the errors. A minute on a laptop, training included.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/16_segment.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp segmentation.segmenter

# %%
#| exports
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import binary_erosion

from verdiff.data.canvas import fit_image, unfit
from verdiff.diffusion.sampling import sample
from verdiff.files import VerdiffError
from verdiff.io.images import read_image
from verdiff.networks.model import VerdiffNet
from verdiff.networks.pretrained import weights_digest
from verdiff.segmentation.confidence import (
    find_reference, judge, traits, usual_way,
)
from verdiff.segmentation.models import find_model
from verdiff.segmentation.uncertainty import PredictedDice, measures
from verdiff.segmentation.zoom import Box, find_spine

# %%
#| code-fold: true
import tempfile

import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.landmarks import landmarks_to_mask
from verdiff.data.packed import pack
from verdiff.data.phantom_set import PhantomSet
from verdiff.data.phantoms import draw_phantom
from verdiff.data.xray import XRaySet
from verdiff.io.download import find_xray
from verdiff.metrics import dice
from verdiff.settings import load_settings
from verdiff.training.run import train

# %%
#| code-fold: true
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)
folder = Path(tempfile.mkdtemp())


def show(pictures, titles, styles=None, width=1.7):
    "A row of pictures, grey unless told otherwise."
    grey = {"cmap": "gray", "vmin": 0, "vmax": 255}
    size = (width * len(pictures), 4)
    fig, axes = plt.subplots(1, len(pictures), figsize=size,
                             layout="constrained")
    styles = styles or [grey] * len(pictures)
    for axis, x, title, style in zip(axes, pictures, titles, styles):
        axis.imshow(x, **(style or grey))
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    return axes


# %% [markdown]
# ## 1 · Whatever the file holds
#
# `read_image` ([images](library/images.ipynb)) brings any picture to 8 bits of grey. One phantom in two files: with 8 bits, and as
# a hospital would export it, 12 bits of 16 and a bright lead marker.

# %%
phantom = draw_phantom(seed=3, image_size=(576, 192))
deep = phantom.image.astype(np.uint16) * 9 + 400
deep[40:60, 15:35] = 60_000
Image.fromarray(phantom.image).save(folder / "plain.png")
Image.fromarray(deep).save(folder / "deep.tif")

# %%
#| code-fold: true
#| fig-alt: "Three times one drawn spine: its 16 bits divided by 256, almost black but for the marker; the 8-bit file; the 16-bit file as it is read, as clear as the 8-bit one."
both = [read_image(folder / name) for name in ("plain.png", "deep.tif")]
show([(deep / 256).astype(np.uint8), *both],
     ["16 bits / 256", "plain.png", "deep.tif"]);

# %%
assert np.array_equal(both[0], phantom.image)

# %% [markdown]
# ## 2 · Into the canvas and back
#
# The network knows one size, $h \times w$; the radiograph has $H \times W$. `fit_image` ([canvas](library/canvas.ipynb)) scales both
# sides alike, centres the result and fills the rest with black: a *letterbox*. Column $X$ of the radiograph lands at
#
# $$x = r\,X + \ell, \qquad r = \min\left(\tfrac{h}{H}, \tfrac{w}{W}\right), \qquad \ell = \tfrac{w - rW}{2},$$
#
# and the rows likewise. On a wide radiograph:

# %%
wide = draw_phantom(seed=5, image_size=(480, 260))
truth = landmarks_to_mask(wide.landmarks, *wide.image.shape)
size = (192, 64)
canvas, placement = fit_image(Image.fromarray(wide.image), size)
print(placement)

# %% [markdown]
# For the way back, `mask.resize(original size)` is tempting. Try it on the true mask, so that no network can be blamed.

# %%
truth_canvas = fit_image(Image.fromarray(truth * 255), size)[0]
there = truth.shape[::-1]  # Pillow puts the width first
naive_back = np.asarray(truth_canvas.resize(there)) > 127
soft = np.asarray(truth_canvas, np.float32) / 255
exact_back = unfit(soft, placement) > 0.5


# %%
def mask_dice(a, b):
    "Dice of two masks."
    a, b = (torch.tensor(np.array(x)).bool()[None, None] for x in (a, b))
    return dice(a, b).item()


# %%
#| code-fold: true
#| fig-alt: "A wide phantom on its canvas between black bars, its mask there, and two outlines on the original: the naive one squashed and misplaced, the exact one on the vertebrae."
axes = show([canvas, truth_canvas, wide.image, wide.image],
            ["canvas", "its mask", "resized straight back",
             "bars cut off first"], width=2)
for axis, back in zip(axes[2:], (naive_back, exact_back)):
    axis.contour(back, [0.5], colors="darkorange", linewidths=1.2)

# %%
found = [mask_dice(back, truth) for back in (naive_back, exact_back)]
print(f"Dice with the true mask: {found[0]:.3f} and {found[1]:.3f}")
assert found[1] > 0.9 > found[0]

# %% [markdown]
# The stretched bars squash the spine; `unfit` cuts them off first. What is still lost is the canvas's resolution, which no
# network can win back.
#
# ## 3 · From samples to a mask
#
# From an ensemble of $E$ samples $x_0^{(1)}, \dots, x_0^{(E)}$ ([14](14_sampling.ipynb)), brought to $[0, 1]$, come
#
# $$\bar p = \frac{1}{E} \sum_e x_0^{(e)}, \qquad u = \sqrt{\frac{1}{E} \sum_e \left(x_0^{(e)} - \bar p\right)^2}, \qquad \text{mask} = [\bar p > \tfrac12].$$
#
# The spread $u$ is at most one half, where half of the samples say bone and half background. A result is four arrays at the
# radiograph's own size:

# %%
#| exports
@dataclass
class Segmentation:
    "What one radiograph gives, all at its own height and width."

    mask: np.ndarray  # {0, 1} uint8, (H, W): probability above one half
    probability: np.ndarray  # ensemble's mean, float32 in [0, 1], (H, W)
    uncertainty: np.ndarray  # its sd, float32 in [0, 0.5], (H, W)
    prior: np.ndarray  # of the conditional U-Net alone, in [0, 1], (H, W)
    confidence: float | None = None  # in [0, 1]; None: unknown
    warning: str | None = None  # a sentence where confidence < 1/2
    measures: dict[str, float] | None = None  # how much it hesitates
    predicted_dice: PredictedDice | None = None  # with its 90 % interval
    zoomed_to: Box | None = None  # the part that was segmented; None: all

    def record(self) -> dict[str, Any]:
        "Its numbers in short, for JSON."
        known = self.confidence is not None
        dice = self.predicted_dice
        return {"height": self.mask.shape[0], "width": self.mask.shape[1],
                "share_of_bone": round(float(self.mask.mean()), 4),
                "mean_uncertainty": round(float(self.uncertainty.mean()), 4),
                "confidence": round(self.confidence, 3) if known else None,
                "predicted_dice": dice and {
                    k: round(v, 3) for k, v in dice._asdict().items()},
                "warning": self.warning, "zoomed_to":
                self.zoomed_to and self.zoomed_to._asdict()}


# %%
#| exports
def segment_image(
    model: VerdiffNet,  # trained
    image: Image.Image,  # mode "L", of any size
    steps: int = 1,  # steps of the sampler
    ensemble: int = 5,  # samples whose mean and spread are given
    seed: int = 0,  # the same seed, the same mask
) -> Segmentation:  # at the image's own size
    "Fit to the canvas, sample, undo the fit: pixels match the original's."
    canvas, placement = fit_image(image, model.size, model.config.fit)
    b = torch.from_numpy(np.array(canvas, dtype=np.float32) / 255)
    got = sample(model, b[None, None].to(model.device), steps=steps,
                 ensemble=ensemble, seed=seed)  # 1 1 h w

    def back(x: torch.Tensor) -> np.ndarray:  # 1 1 h w -> H W
        array = x[0, 0].float().cpu().numpy()
        return unfit(array, placement).astype(np.float32)

    probability = back(got.mean)
    return Segmentation((probability > 0.5).astype(np.uint8), probability,
                        back(got.std), back(got.prior_prob),
                        measures=measures(got.prior_prob[0, 0].cpu(),
                                          got.samples[:, 0, 0].cpu()))


# %%
untrained = VerdiffNet(channels=(8,), height=48, width=16)
nothing = segment_image(untrained, Image.fromarray(wide.image), 1, 1)
assert nothing.mask.shape == nothing.prior.shape == wide.image.shape

# %% [markdown]
# Where the spine is small on the canvas, [`find_spine`](library/zoom.ipynb) finds the part of the radiograph to segment instead; then the
# result goes back to where the part was cut.

# %%
#| exports
def in_whole(
    part: Segmentation,  # of the part
    box: Box,  # where it was cut
    image: Image.Image,  # the radiograph that it was cut from
) -> Segmentation:  # of the radiograph
    "Put a result back into the radiograph; around it all is zero."
    shape = image.height, image.width
    known = ("mask", "probability", "uncertainty", "prior")
    return replace(part, zoomed_to=box, **{
        k: box.put_back(getattr(part, k), shape) for k in known})


# %% [markdown]
# `Segmenter` adds what a user expects: a device, a word for what cannot be, and a
# [confidence](library/confidence.ipynb) that says how usual the result looks.

# %%
#| exports
def pick_device(
    name: str | None = None,  # "cpu", "cuda", "mps"; None: a GPU, else the CPU
) -> torch.device:
    "The device to run on; VerdiffError where it does not exist."
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError):
        raise VerdiffError(f"the device {name!r} does not exist here; "
                           "try --device cpu") from None
    return device


def check_steps(
    model: VerdiffNet,  # whose process has T times
    steps: Sequence[int],  # of the sampler
) -> None:
    "VerdiffError where the sampler cannot take that many steps."
    T = model.config.timesteps
    if bad := [k for k in steps if not 1 <= k <= T]:
        raise VerdiffError(f"{bad[0]} steps are not possible: this model has "
                           f"{T} times, so give a number from 1 to that")


# %%
for problem in (lambda: check_steps(untrained, [5, 1001]),
                lambda: pick_device("abacus")):
    try:
        problem()
    except VerdiffError as error:
        print(error)


# %%
#| exports
class Segmenter:
    "A trained network that takes radiographs of any size."

    def __init__(
        self,
        model: VerdiffNet,  # trained
        device: str | None = None,  # None: the first GPU, else the CPU
        reference: Any = None,  # `Reference` of a calibration; None: none
    ):
        self.device = pick_device(device)
        self.model = model.to(self.device).eval()
        self.reference = reference

    @classmethod
    def from_pretrained(
        cls, model: str | Path | None = None, device: str | None = None
    ) -> "Segmenter":
        "A folder, a Hub id, or None for the bundled model; else VerdiffError."
        found = find_model(model)
        net = VerdiffNet.from_pretrained(found)
        return cls(net, device, find_reference(found))

    @property
    def usual(self) -> tuple[int, int]:
        "Steps and samples of the calibration, else one step, five samples."
        known = self.reference
        return (known.steps, known.ensemble) if known else (1, 5)

    def predict(
        self,
        image: Any,  # as `read_image` takes it
        steps: int | None = None,  # of the sampler; None: the usual number
        ensemble: int | None = None,  # samples; None: the usual number
        seed: int = 0,
        zoom: bool = True,  # to a spine that is small, see `find_spine`
    ) -> Segmentation:
        """Mask, probability and uncertainty of an image, at its own size.

        A confidence is given where steps and ensemble are those of the
        calibration. VerdiffError for numbers that cannot be, or what is no
        image.
        """
        steps = self.usual[0] if steps is None else steps
        ensemble = self.usual[1] if ensemble is None else ensemble
        given = (("steps", steps, 1), ("ensemble", ensemble, 1),
                 ("seed", seed, 0))
        for name, number, least in given:
            if not hasattr(number, "__index__") or number < least:
                raise VerdiffError(f"{name} = {number!r} must be a whole "
                                   f"number from {least} on")
        check_steps(self.model, [steps])
        grey = read_image(image)
        box = find_spine(self.model, grey) if zoom else None
        part = box.cut(grey) if box else grey
        result = segment_image(self.model, part, steps, ensemble, seed)
        if self.reference is not None and (steps, ensemble) == self.usual:
            if self.reference.dice and result.mask.any():
                result.predicted_dice = self.reference.dice.predict(
                    result.measures)
            result.confidence, result.warning = self.judged(part, result)
            if result.warning and (way := usual_way(
                    grey, result.confidence, self.confidence_of)):
                result.warning += f"; {way}"
        elif not result.mask.any():
            result.warning = "the mask is empty; the model found no vertebra"
        return in_whole(result, box, grey) if box else result

    def judged(
        self, image: Image.Image, result: Segmentation
    ) -> tuple[float, str | None]:
        "Confidence, and a warning where it is below one half."
        return judge(
            self.reference, traits(image, result), result.predicted_dice)

    def confidence_of(self, image: Image.Image) -> float:
        "By a single sample of the whole image, which is fast."
        result = segment_image(self.model, image, self.usual[0], 1)
        return self.judged(image, result)[0]

    def fingerprint(self) -> str:
        "SHA-256 of all that decides a result: equal ones give equal results."
        about = [self.model.config.to_dict(),
                 self.reference and asdict(self.reference),
                 weights_digest(self.model)]
        text = json.dumps(about, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


# %% [markdown]
# Some seconds of training give a very small network (`make demo` trains a better one):

# %%
tiny = "height=96 width=32 channels=8,16,32 max_steps=150 batch_size=8"
tiny += " validate_every=1000 checkpoint_every=1000 rotation=5"
settings = load_settings("demo", tiny.split())
phantoms = pack(PhantomSet(size=settings.size, n_training=64),
                progress=False)
model = train(settings, phantoms, None, folder / "run", progress=False)
segmenter = Segmenter(model)

# %%
result = segmenter.predict(wide.image, steps=1, ensemble=5, seed=0)
print(f"Dice at its own size: {mask_dice(result.mask, truth):.3f}")
assert result.mask.shape == wide.image.shape == (480, 260)

# %%
#| code-fold: true
#| fig-alt: "A wide phantom, its prior, the mean of five samples, their spread, bright along the borders of the vertebrae, and the true mask."
one, half = ({"cmap": c, "vmin": 0, "vmax": v} for c, v in
             (("magma", 1), ("viridis", 0.5)))
show([wide.image, result.prior, result.probability, result.uncertainty,
      truth], ["radiograph", "prior f(b)", "mean of 5", "uncertainty",
               "truth"], [None, one, one, half, one]);

# %% [markdown]
# The same seed gives the same mask, and the 16-bit file nearly that of its 8-bit twin.

# %%
again = segmenter.predict(wide.image, seed=0)
assert np.array_equal(again.probability, result.probability)
twins = [segmenter.predict(folder / name).mask
         for name in ("plain.png", "deep.tif")]
print(f"Dice between the masks of the two files: {mask_dice(*twins):.3f}")
assert mask_dice(*twins) > 0.8


# %%
#| exports
def overlay(
    image: Any,  # the radiograph, as `read_image` takes it
    segmentation: Segmentation,  # of that radiograph
    colour: tuple[int, int, int] = (255, 140, 0),  # of the mask
    alpha: float = 0.3,  # how much the mask covers
) -> Image.Image:  # mode "RGB", same size
    """The mask over the radiograph, a light tint and a firm outline.

    ValueError where their sizes differ.
    """
    pixels = np.array(read_image(image).convert("RGB"), dtype=np.float32)
    mask = segmentation.mask.astype(bool)
    if mask.shape != pixels.shape[:2]:
        raise ValueError(f"a mask of {mask.shape} does not lie over an image "
                         f"of {pixels.shape[:2]}")
    thick = max(1, round(max(mask.shape) / 500))
    line = mask & ~binary_erosion(mask, iterations=thick)
    for where, share in ((mask & ~line, alpha), (line, 0.9)):
        tint = share * np.array(colour, np.float32)
        pixels[where] = (1 - share) * pixels[where] + tint
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


# %%
#| fig-alt: "The wide phantom with its mask: each vertebra tinted orange inside a firm orange outline."
overlay(wide.image, result)

# %% [markdown]
# ## 4 · Reading the uncertainty
#
# If the spread is honest, the pixels it marks are wrong more often. We sort the pixels of eight held-out phantoms:

# %%
held_out = [draw_phantom(900 + i, (576, 192)) for i in range(8)]
results = [segmenter.predict(p.image, seed=i)
           for i, p in enumerate(held_out)]
truths = [landmarks_to_mask(p.landmarks, *p.image.shape) for p in held_out]
u = np.concatenate([r.uncertainty.ravel() for r in results])
wrong = np.concatenate([(r.mask != m).ravel()
                        for r, m in zip(results, truths)])

# %%
edges = np.quantile(u, [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0])
bins = np.digitize(u, edges[:-1])
rate = np.array([wrong[bins == k].mean() for k in range(8)])
quiet = np.bincount(bins[wrong], minlength=8) / wrong.sum()
assert rate[-1] > 5 * rate[0]

# %%
#| code-fold: true
#| fig-alt: "Left: the share of wrong pixels rises from almost nothing in the least uncertain half to the largest value in the most uncertain two per cent. Right: the share of all errors that lie in each of these bins."
names = ["lowest half", "50–60 %", "60–70 %", "70–80 %", "80–90 %",
         "90–95 %", "95–98 %", "top 2 %"]
fig, axes = plt.subplots(1, 2, figsize=(8, 2.7), layout="constrained")
labels = "share of wrong pixels", "share of all errors"
for axis, values, label in zip(axes, (rate, quiet), labels):
    axis.bar(names, values, color="#443983")
    axis.tick_params("x", rotation=45, labelsize=8)
    axis.set(xlabel="uncertainty of the pixel", ylabel=label)

# %%
print(f"wrong: {rate[0]:.2%} of the least uncertain half, "
      f"{rate[-1]:.0%} of the most uncertain 2 %")
print(f"of all errors, {quiet[0]:.0%} lie in the least uncertain half, "
      f"{1 - quiet[-1]:.0%} outside the most uncertain 2 %")

# %% [markdown]
# So the map shows where to look twice, within an image. But it is blind where all samples make the same mistake, and its mean hardly
# knows *which image* failed ([real radiographs](lab/xray.ipynb)). Five measures together know it better: `result.predicted_dice` holds the Dice
# [predicted from them](library/uncertainty.ipynb), with a 90 % interval, where the model was calibrated on radiographs with masks.
#
# ## 5 · A real radiograph
#
# The package's network was trained on the training part of the public set. Here is what it says of the first test
# radiograph (SpineWeb set 16, AASCE 2019; shown for teaching).

# %%
#| fig-alt: "A real spine radiograph of the public test set with the network's mask: the vertebrae from the chest down to the lumbar spine outlined in orange."
if XRAY := find_xray():
    real = XRaySet(XRAY, split="test")
    answer = Segmenter.from_pretrained().predict(real.read_image(0))
    true_mask = real.original_mask(0)
    foreseen = answer.predicted_dice
    print(f"Dice {mask_dice(answer.mask, true_mask):.3f}, "
          f"predicted {foreseen.value:.2f} "
          f"[{foreseen.low:.2f}, {foreseen.high:.2f}], "
          f"confidence {answer.confidence:.2f}")
    picture = overlay(real.read_image(0), answer)
    picture.thumbnail((400, 600))
    display(picture)
else:
    print("this cell needs the X-ray set: verdiff data xray")

# %% [markdown]
# On the command line the same is `verdiff segment image.png -o results`, for one file or [a folder of thousands](library/folder.ipynb); for your
# own radiographs with masks, `verdiff train --data my_folder --profile fine --start-from bundled` needs only `images/` and `masks/`
# in it. Another clinic's images need their own calibration, from eight on, without masks: `verdiff calibrate --images images/ -o my_model`.
#
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | size of the images | resized (250×750 for X-ray) | letterboxed on the way in, undone on the way out | Section 2.4 itself warns that resizing harms the shape; a mask must fit its file |
# | number of samples | not given | 5, `--ensemble` | the spread needs some; each costs |
# | steps | all $T$ (Algorithm 2) | one, `--steps` | chosen on validation: better Dice and calibration, ten times faster than ten ([real radiographs](lab/xray.ipynb)); the lessons before use ten, to show the walk |
# | mask from samples | not stated | mean above one half | the mean is also a probability; the vote ([14](14_sampling.ipynb)) drops how sure each sample is |
# | uncertainty | not reported | standard deviation of the samples | the samples are there anyway |
# | pictures that are no spine | not asked | a confidence | a network that knows only spines draws them on anything |
# | depth of files | not stated | 8 bits unchanged, deeper ones windowed | detectors use part of the 16 bits, markers outshine bone |
#
# ## Exercises
#
# **1 · Predict.** What uncertainty does an ensemble of one sample give? Write your number down, then run.

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# Zero everywhere: one number does not differ from its own mean.

# %%
#| code-fold: true
alone = segmenter.predict(wide.image, steps=5, ensemble=1)
print(alone.uncertainty.max())

# %% [markdown]
# </details>
#
# **2 · Implement.** Write `to_canvas(points, placement)`, which takes points $(X, Y)$ of the radiograph to the canvas by the
# formula of section 2 (`placement.scale` holds $r$ after rounding, vertical first).

# %%
def to_canvas(points, placement):
    ...  # your code here


# %%
#| code-fold: true
#| code-summary: "Answer and check"
def to_canvas_answer(points, placement):
    down, right = placement.scale
    return points * [right, down] + [placement.left, placement.top]


drawn = landmarks_to_mask(to_canvas_answer(wide.landmarks, placement), *size)
assert mask_dice(drawn, np.asarray(truth_canvas) > 127) > 0.85

# %% [markdown]
# **3 · Diagnose (hard).** A colleague segments radiographs of 2,000×2,000 pixels whose spine fills the middle third, and finds Dice
# far below yours with `zoom=False`, though the same images cropped to the spine do well. Nothing in the network is wrong. What happens,
# and what would you measure to be sure?

# %%
square = np.zeros((480, 480), np.uint8)  # the same spine, more around it
square[:, 110:370] = wide.image
padded = segmenter.predict(square, zoom=False).mask[:, 110:370]

# %% [markdown]
# <details><summary>Answer</summary>
#
# The canvas is three times as high as wide, so a square is letterboxed until its *width* fits, and the spine is left with a third of the
# canvas's rows: fewer pixels per vertebra than in training. Measure the height of a vertebra on the canvas (`placement.scale`),
# and Dice against it. The remedy is to find the spine coarsely and to zoom to it, as `predict` does by itself.

# %%
#| code-fold: true
#| code-summary: "Check"
placed = fit_image(Image.fromarray(square), model.size)[1].scale[0]
close = fit_image(Image.fromarray(wide.image), model.size)[1].scale[0]
print(f"canvas pixels per pixel {close:.3f} -> {placed:.3f}, "
      f"Dice {mask_dice(segmenter.predict(wide.image).mask, truth):.3f} "
      f"-> {mask_dice(padded, truth):.3f}")
assert placed < 0.6 * close

# %% [markdown]
# </details>
#
# What did all of this show about the paper itself? Next: [17 · The paper, checked](17_paper_checked.ipynb).
