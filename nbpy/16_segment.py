# %% [markdown]
# # 16 · One radiograph in, a mask out
# > Any file, at its own size, with a probability and an uncertainty for every pixel

# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/16_segment.ipynb)

# %%
#| default_exp segmentation.segmenter

# %%
#| export
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from verdiff.data.canvas import fit_image, unfit
from verdiff.diffusion.sampling import sample
from verdiff.files import VerdiffError
from verdiff.io.images import read_image
from verdiff.networks.model import VerdiffNet
from verdiff.networks.pretrained import weights_digest
from verdiff.segmentation.confidence import find_reference, judge, traits
from verdiff.segmentation.models import find_model

# %%
import tempfile

import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.landmarks import landmarks_to_mask
from verdiff.data.packed import pack
from verdiff.data.phantom_set import PhantomSet
from verdiff.data.phantoms import draw_phantom
from verdiff.data.xray import XRaySet
from verdiff.io.download import find_xray
from verdiff.metrics import dice
from verdiff.segmentation.models import bundled_model
from verdiff.settings import load_settings
from verdiff.training.run import train

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)

# %% [markdown]
# ## Whatever the file holds
#
# `read_image` (section 8 of page [03](03_xray_set.ipynb)) brings any PNG, JPEG, TIFF or BMP to 8 bits of grey. For later, one phantom in two files: with 8 bits, and as a hospital
# would export it, 12 bits of 16 and a bright lead marker. And a letter that only claims to be a picture.

# %%
folder = Path(tempfile.mkdtemp())
phantom = draw_phantom(seed=3, image_size=(576, 192))
deep = phantom.image.astype(np.uint16) * 9 + 400
deep[40:60, 15:35] = 60_000
Image.fromarray(phantom.image).save(folder / "plain.png")
Image.fromarray(deep).save(folder / "deep.tif")
(folder / "letter.png").write_text("Dear colleague, …")


def show(pictures, titles, width=1.7, **kwargs):
    "A row of grey pictures."
    fig, axes = plt.subplots(
        1, len(pictures), figsize=(width * len(pictures), 4), layout="constrained"
    )
    for axis, picture, title in zip(axes, pictures, titles, strict=True):
        axis.imshow(picture, **({"cmap": "gray", "vmin": 0, "vmax": 255} | kwargs))
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    return axes


both = [read_image(folder / name) for name in ("plain.png", "deep.tif")]
_ = show([(deep / 256).astype(np.uint8), *both], ["16 bits / 256", "plain.png", "deep.tif"])
assert np.array_equal(both[0], phantom.image)

# %% [markdown]
# ## Into the canvas and back
#
# The network knows one size, $h \times w$; the radiograph has $H \times W$. `fit_image` ([03](03_xray_set.ipynb)) scales
# both sides alike, centres the result and fills the rest with black: a *letterbox*. Column $X$ of
# the radiograph lands at
#
# $$x = s\,X + \ell, \qquad s = \min\left(\tfrac{h}{H}, \tfrac{w}{W}\right), \qquad \ell = \tfrac{w - sW}{2},$$
#
# and the rows likewise. On a wide radiograph:

# %%
wide = draw_phantom(seed=5, image_size=(480, 260))
truth = landmarks_to_mask(wide.landmarks, *wide.image.shape)
canvas, placement = fit_image(Image.fromarray(wide.image), (192, 64), "letterbox")
placement

# %% [markdown]
# For the way back, `mask.resize(original size)` is tempting. Try it on the true mask, so that no network can be blamed.

# %%
truth_canvas = fit_image(Image.fromarray(truth * 255), (192, 64), "letterbox")[0]
naive_back = np.asarray(truth_canvas.resize(truth.shape[::-1], Image.Resampling.BILINEAR)) > 127
exact_back = unfit(np.asarray(truth_canvas, np.float32) / 255, placement) > 0.5


# %%
def as_batch(x):
    return torch.tensor(np.array(x)).bool()[None, None]  # 1 1 H W


def mask_dice(a, b):
    return dice(as_batch(a), as_batch(b)).item()


axes = show(
    [canvas, truth_canvas, wide.image, wide.image],
    ["canvas", "its mask", "resized straight back", "bars cut off first"],
    width=2,
)
for axis, back in zip(axes[2:], (naive_back, exact_back), strict=True):
    axis.contour(back, [0.5], colors="darkorange", linewidths=1.2)
print(
    f"Dice with the true mask: {mask_dice(naive_back, truth):.3f} and "
    f"{mask_dice(exact_back, truth):.3f}"
)

# %% [markdown]
# The stretched bars squash the spine; `unfit` cuts them off first. What is still lost is the canvas's resolution, which no network can win back.

# %%
assert mask_dice(exact_back, truth) > 0.9 > mask_dice(naive_back, truth)


# %% [markdown]
# ## The segmenter
#
# A result is four arrays at the radiograph's own size: mask, probability, uncertainty and prior (the conditional U-Net's guess).
# From an ensemble of $E$ samples $x_0^{(1)}, \dots, x_0^{(E)}$, brought to $[0, 1]$, come
#
# $$\bar p = \frac{1}{E} \sum_e x_0^{(e)}, \qquad u = \sqrt{\frac{1}{E} \sum_e \left(x_0^{(e)} - \bar p\right)^2}, \qquad \text{mask} = [\bar p > \tfrac12].$$
#
# The spread $u$ is at most one half, where half of the samples say bone and half background.

# %%
#| exports
@dataclass
class Segmentation:
    "What one radiograph gives, all at its own height and width."

    mask: np.ndarray  # {0, 1} uint8, (H, W): probability above one half
    probability: np.ndarray  # mean of the ensemble, float32 in [0, 1], (H, W)
    uncertainty: np.ndarray  # standard deviation of the ensemble, float32 in [0, 0.5], (H, W)
    prior: np.ndarray  # the conditional U-Net's probability alone, float32 in [0, 1], (H, W)
    confidence: float | None = None  # in [0, 1], see "Does the question make sense?"; None: unknown
    warning: str | None = None  # a sentence where the confidence is below one half

    def record(self) -> dict[str, Any]:
        "Its numbers in short, for JSON."
        confidence = None if self.confidence is None else round(self.confidence, 3)
        return {"height": self.mask.shape[0], "width": self.mask.shape[1],
                "share_of_bone": round(float(self.mask.mean()), 4),
                "mean_uncertainty": round(float(self.uncertainty.mean()), 4),
                "confidence": confidence, "warning": self.warning}


# %%
#| exports
def pick_device(
    name: str | None = None,  # "cpu", "cuda", "cuda:1", "mps"; None: the first GPU, else the CPU
) -> torch.device:
    "The device to run on; VerdiffError where it does not exist."

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError):
        raise VerdiffError(f"the device {name!r} does not exist here; try --device cpu") from None
    return device


# %%
try:
    find_model("runs/not_there_yet")
except VerdiffError as error:
    print(error)


# %%
#| exports
def check_steps(
    model: VerdiffNet,  # whose process has T times
    steps: Sequence[int],  # of the sampler
) -> None:
    "VerdiffError where the sampler cannot take that many steps."
    if bad := [k for k in steps if not 1 <= k <= model.config.timesteps]:
        raise VerdiffError(f"{bad[0]} steps are not possible: this model has "
                           f"{model.config.timesteps} times, so give a number from 1 to that")


# %%
try:
    check_steps(VerdiffNet(channels=(8,), timesteps=50), [5, 51])
except VerdiffError as error:
    print(error)


# %%
#| exports
def segment_image(
    model: VerdiffNet,  # trained
    image: Image.Image,  # mode "L", of any size
    steps: int = 1,  # steps of the sampler
    ensemble: int = 5,  # samples whose mean and spread are given
    seed: int = 0,  # the same seed, the same mask
) -> Segmentation:  # at the image's own size
    "Fit to the network's canvas, sample, undo the fit: pixels match those of the original."

    canvas, placement = fit_image(image, model.size, model.config.fit)
    b = torch.from_numpy(np.array(canvas, dtype=np.float32) / 255)[None, None]  # 1 1 h w
    got = sample(model, b.to(model.device), steps=steps, ensemble=ensemble, seed=seed)

    def back(x: torch.Tensor) -> np.ndarray:  # 1 1 h w -> H W
        return unfit(x[0, 0].float().cpu().numpy(), placement).astype(np.float32)

    probability = back(got.mean)
    return Segmentation((probability > 0.5).astype(np.uint8), probability,
                        back(got.std), back(got.prior_prob))


# %%
fresh = segment_image(
    VerdiffNet(channels=(8,), height=48, width=16), Image.fromarray(wide.image), 1, 1
)
assert fresh.mask.shape == wide.image.shape


# %% [markdown]
# `Segmenter` adds the device and a self-check, explained below.

# %%
#| exports
class Segmenter:
    "A trained network that takes radiographs of any size."

    def __init__(
        self,
        model: VerdiffNet,  # trained
        device: str | None = None,  # None: the first GPU, else the CPU
        reference: Any = None,  # a `Reference`, what `calibrate` learned; None: no confidence is given
    ):
        self.device = pick_device(device)
        self.model = model.to(self.device).eval()
        self.reference = reference

    @classmethod
    def from_pretrained(
        cls, model: str | Path | None = None, device: str | None = None
    ) -> "Segmenter":
        "Load what `save_pretrained` or `verdiff train` wrote: folder, Hub id, None for the bundled."

        found = find_model(model)
        return cls(VerdiffNet.from_pretrained(found), device, find_reference(found))

    @property
    def usual(self) -> tuple[int, int]:
        "Steps and samples of the calibration, else one step and five samples."
        return (self.reference.steps, self.reference.ensemble) if self.reference else (1, 5)

    def predict(
        self,
        image: Any,  # as `read_image` takes it
        steps: int | None = None,  # of the sampler; None: as calibrated, else 1
        ensemble: int | None = None,  # samples; None: as calibrated, else 5
        seed: int = 0,
    ) -> Segmentation:
        """Mask, probability and doubt of an image, at its own size.

        A confidence is given where steps and ensemble are those of the calibration. VerdiffError
        for numbers that cannot be, or what is no image.
        """

        steps = self.usual[0] if steps is None else steps
        ensemble = self.usual[1] if ensemble is None else ensemble
        for name, number in (("steps", steps), ("ensemble", ensemble), ("seed", seed)):
            least = 0 if name == "seed" else 1
            if not hasattr(number, "__index__") or number < least:
                raise VerdiffError(f"{name} = {number!r} must be a whole number from {least} on")
        check_steps(self.model, [steps])
        grey = read_image(image)
        result = segment_image(self.model, grey, steps, ensemble, seed)
        if self.reference is not None and (steps, ensemble) == self.usual:
            result.confidence, result.warning = judge(self.reference, traits(grey, result))
        elif not result.mask.any():
            result.warning = "the mask is empty; the model found no vertebra"
        return result

    def fingerprint(self) -> str:
        "SHA-256 of weights, configuration and reference: equal ones give equal results."

        about = [self.model.config.to_dict(), self.reference and asdict(self.reference),
                 weights_digest(self.model)]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


# %% [markdown]
# Some seconds of training give a very small network (`make demo` trains a better one):

# %%
settings = load_settings(
    "demo",
    [
        "height=96",
        "width=32",
        "channels=8,16,32",
        "max_steps=250",
        "batch_size=8",
        "validate_every=1000",
        "checkpoint_every=1000",
        "rotation=5",
    ],
)
phantoms = pack(PhantomSet(split="training", size=settings.size, n_training=64), progress=False)
model = train(settings, phantoms, None, folder / "run", progress=False)
segmenter = Segmenter(model)

# %%
result = segmenter.predict(wide.image, steps=1, ensemble=5, seed=0)
assert result.mask.shape == wide.image.shape == (480, 260)
print(f"Dice at the radiograph's own size: {mask_dice(result.mask, truth):.3f}")

# %%
axes = show(
    [wide.image, result.prior, result.probability, result.uncertainty, truth],
    ["radiograph", "prior f(b)", "mean of 5", "uncertainty", "truth"],
)
for axis, (name, top) in zip(
    axes[1:], [("magma", 1), ("magma", 1), ("viridis", 0.5), ("magma", 1)], strict=True
):
    axis.images[0].set(cmap=name, clim=(0, top))

# %% [markdown]
# The same seed gives the same mask, and the 16-bit file nearly that of its 8-bit twin.

# %%
again = segmenter.predict(wide.image, seed=0)
assert np.array_equal(again.probability, result.probability)
twins = [segmenter.predict(folder / name).mask for name in ("plain.png", "deep.tif")]
print(f"Dice between the masks of the 8-bit and the 16-bit file: {mask_dice(*twins):.3f}")
assert mask_dice(*twins) > 0.8


# %%
#| exports
def overlay(
    image: Any,  # the radiograph, as `read_image` takes it
    segmentation: Segmentation,  # of that radiograph
    colour: tuple[int, int, int] = (255, 140, 0),  # of the mask
    alpha: float = 0.3,  # how much the mask covers
) -> Image.Image:  # mode "RGB", same size
    "The mask laid over the radiograph: a light tint and a firm outline."
    from scipy.ndimage import binary_erosion

    pixels = np.array(read_image(image).convert("RGB"), dtype=np.float32)
    mask = segmentation.mask.astype(bool)
    if mask.shape != pixels.shape[:2]:
        raise ValueError(f"a mask of {mask.shape} does not lie over an image of {pixels.shape[:2]}")
    line = mask & ~binary_erosion(mask, iterations=max(1, round(max(mask.shape) / 500)))
    for where, share in ((mask & ~line, alpha), (line, 0.9)):
        pixels[where] = (1 - share) * pixels[where] + share * np.array(colour, np.float32)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


# %%
overlay(wide.image, result)

# %% [markdown]
# ## Reading the uncertainty
#
# If the spread is honest, the pixels it marks are wrong more often. We sort the pixels of eight held-out phantoms:

# %%
held_out = [draw_phantom(seed=900 + i, image_size=(576, 192)) for i in range(8)]
results = [segmenter.predict(p.image, seed=i) for i, p in enumerate(held_out)]
truths = [landmarks_to_mask(p.landmarks, *p.image.shape) for p in held_out]
u = np.concatenate([r.uncertainty.ravel() for r in results])
wrong = np.concatenate([(r.mask != m).ravel() for r, m in zip(results, truths, strict=True)])

# %%
edges = np.quantile(u, [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0])
bins = np.digitize(u, edges[:-1])
rate = np.array([wrong[bins == k].mean() for k in range(bins.max() + 1)])
fig, axis = plt.subplots(figsize=(5.5, 2.6), layout="constrained")
axis.bar(range(len(rate)), rate, color="#443983")
axis.set_xticks(
    range(len(rate)), ["lowest half", *[f"< {e:.2g}" for e in edges[1:]]], rotation=30, fontsize=8
)
axis.set(xlabel="uncertainty of the pixel", ylabel="share of wrong pixels")
assert rate[-1] > 5 * rate[0]

# %% [markdown]
# They are: the map shows where to look twice. But it is blind
# where all samples make the same mistake. How many of all errors lie in each bin?

# %%
quiet = np.bincount(bins[wrong], minlength=len(rate)) / wrong.sum()
for part, found in zip(
    ("lowest half", "50-60 %", "60-70 %", "70-80 %", "80-90 %", "90-95 %", "95-98 %", "top 2 %"),
    quiet,
    strict=True,
):
    print(f"{part:12s} {found:6.1%} of all errors")

# %% [markdown]
# ## A real radiograph
#
# The package's model was trained on the public set. Its images are for
# research, so we print only a number; pictures are on page [real radiographs](lab/xray.ipynb).

# %%
XRAY = find_xray()
if XRAY and bundled_model():
    real = XRaySet(XRAY, split="test", size=(192, 64))
    patient = Segmenter.from_pretrained().predict(real.read_image(0))
    print(f"{real.names[0]}: Dice {mask_dice(patient.mask, real.original_mask(0)):.3f}")
else:
    print("this cell needs the X-ray set (see 01_data) and a bundled model")

# %% [markdown]
# We check its confidence on every fifth test film, and on strange pictures made from some.
# The count of real films is fair, but for twins in both splits: they had no say in the limits. The strange pictures are made from every third of them. The counts of strange ones are *optimistic*: traits and limits were chosen after looking at pictures of these very kinds (a blank one had slipped through). Of other kinds they say nothing.

# %%
#| slow
if XRAY and bundled_model():
    careful = Segmenter.from_pretrained()
    patients = [np.asarray(real.read_image(i).convert("L")) for i in range(0, len(real), 5)]
    warned = sum(careful.predict(p).warning is not None for p in patients)
    print(
        f"real films: {warned} of {len(patients)} flagged; "
        f"limits from {careful.reference.films} others"
    )
    worst = real.read_image(88)  # of the page on real radiographs, section 7
    answer = careful.predict(worst)
    print(f"test film 88: Dice {mask_dice(answer.mask, real.original_mask(88)):.3f}, "
          f"confidence {answer.confidence:.2f}")
    few = patients[::3]
    for name, count in flagged(careful, few).items():
        print(f"{name}: {count} of {len(few)} flagged")

# %% [markdown]
# ## The paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | size of the images | resized (250×750 for X-ray) | letterboxed on the way in, undone on the way out | Section 2.4 itself warns that resizing harms the shape; a mask must fit its file |
# | number of samples | not given | 5, `--ensemble` | the spread needs some; each costs |
# | steps | all T (Algorithm 2) | one, `--steps` | better Dice, better calibrated, a doubt that finds more of the wrong pixels, and ten times faster than ten (page [real radiographs](lab/xray.ipynb), section 3) |
# | mask from samples | not stated | mean above one half | the mean is also a probability; the vote ([14](14_sampling.ipynb)) drops how sure each sample is |
# | what is scored | mean Dice, mean IoU | mean ± sd, 95 % interval, with and without duplicates, at one size for all | Table 1's rows cannot all come from the same averaging ([05](05_metrics.ipynb)) |
# | uncertainty | not reported | standard deviation of the samples | the samples are there anyway |
# | pictures that are no spine | not asked | a confidence, calibrated on validation films | a network that knows only spines draws them on anything |
# | depth of files | not stated | 8 bits unchanged, deeper ones windowed | detectors use part of the 16 bits, markers outshine bone |
#
# ## Exercises
#
# **1. Predict.** What uncertainty does an ensemble of one sample give?

# %%
alone = segmenter.predict(wide.image, steps=5, ensemble=1)
answer = alone.uncertainty.max()
assert answer == 0

# %% [markdown]
# <details><summary>Answer</summary>
#
# Zero everywhere: one number does not differ from its own mean.
#
# </details>
#
# **2. Change.** Masks at thresholds 0.3, 0.5 and 0.7: which contains which, and does Dice care much? Predict, then run.

# %%
low, middle, high = (result.probability > threshold for threshold in (0.3, 0.5, 0.7))
print([round(mask_dice(m, truth), 3) for m in (low, middle, high)])
assert (high <= middle).all() and (middle <= low).all() and low.sum() > high.sum()


# %% [markdown]
# <details><summary>Answer</summary>
#
# A higher threshold keeps a subset. Dice changes little where the probability is steep, much where the network hesitates.
#
# </details>
#
# **3. Implement.** Write `to_canvas(points, placement)`, which takes points $(X, Y)$ of the radiograph to the canvas by the formula above (`placement.scale` holds $s$ after rounding, vertical first), and check it by
# drawing the landmarks' mask directly on the canvas.

# %%
def to_canvas(points, placement):
    "(N, 2) points x, y of the radiograph, on the canvas."
    scale = np.array(placement.scale[::-1])
    return points * scale + np.array([placement.left, placement.top])


drawn = landmarks_to_mask(to_canvas(wide.landmarks, placement), 192, 64)
print(f"{mask_dice(drawn, np.asarray(truth_canvas) > 127):.3f}")
assert mask_dice(drawn, np.asarray(truth_canvas) > 127) > 0.85

# %% [markdown]
# <details><summary>Answer</summary>
#
# The cell above. The masks differ only at the border: one was drawn large and averaged down.
#
# </details>
#
# Next: [17 · The paper, checked](17_paper_checked.ipynb), equation by equation. For your own
# radiographs, `verdiff train --data my_folder --profile fine --start-from bundled` needs only `images/` and `masks/` in it.
