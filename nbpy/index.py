# %% [markdown]
# # verdiff
# > Verdiff-Net in notebooks: a spine radiograph in, a mask of its vertebrae out, with an uncertainty for every pixel

# %% [markdown]
# Verdiff-Net ([Zhang et al., 2024](https://doi.org/10.3390/bioengineering11101031)) segments vertebrae with a conditional diffusion model: a first
# network looks at the radiograph and guesses the mask; a second one removes noise from a mask step by step, starting around that
# guess. verdiff is this method twice over: a course of notebooks that builds it from its equations, with a picture for every
# idea and a check for every claim, and the library and command that are exported from those notebooks. What you read is
# what runs. Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/index.ipynb).

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().system(
        'pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"'
    )

# %%
#| hide
import io
import json

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Image as Picture, Markdown
from PIL import Image, ImageDraw, ImageFont
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.canvas import fit_image
from verdiff.data.landmarks import landmarks_to_mask
from verdiff.data.phantoms import draw_phantom
from verdiff.diffusion.sampling import ddim_sample
from verdiff.segmentation.models import bundled_model
from verdiff.segmentation.segmenter import Segmenter, overlay

# %%
#| hide
torch.set_num_threads(1)
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
radiograph = draw_phantom(seed=2024, image_size=(768, 256)).image
segmenter = Segmenter.from_pretrained()


def panels(x_t, x_0, title):
    "Radiograph, guess, noisy mask, what the network sees in it; every second "
    "pixel."

    def grey(x, low, high):
        return (
            np.clip(15.9 * (x - low) / (high - low), 0, 15).astype(np.uint8)
            * 17
        )

    parts = [
        grey(b, 0, 1),
        grey(f, -1, 1),
        grey(x_t[0, 0].numpy(), -2.5, 2.5),
        grey(x_0[0, 0].numpy(), -1, 1),
    ]
    gap = np.full((len(parts[0][::2]), 6), 255, np.uint8)
    row = np.concatenate(
        [y for part in parts for y in (part[::2, ::2], gap)][:-1], 1
    )
    frame = Image.fromarray(row).resize((2 * row.shape[1], 2 * row.shape[0]), 0)
    canvas = Image.new("L", (frame.width, frame.height + 32), 255)
    canvas.paste(frame, (0, 32))
    large = ImageFont.load_default(22)  # for phones
    ImageDraw.Draw(canvas).text((2, 2), title, fill=0, font=large)
    return canvas


def walk(image, mask):
    "A mask drowns in noise around the network's guess, and ten steps bring "
    "one back."
    model = segmenter.model
    process, known = model.process(), model.condition(image)
    noise = torch.randn(mask.shape, generator=torch.Generator().manual_seed(35))
    x_0, frames = 2 * mask - 1, []
    for t in (0, 20, 50, 90, 140, 200, 280, 380, 500, 999):
        x_t = process.q_sample(x_0, torch.tensor([t]), known.prior, noise)
        frames.append(panels(x_t, x_0, f"forward: the mask drowns, t = {t}"))
    back = []
    end = ddim_sample(
        process,
        lambda x, t: model.denoise(x, t, known),
        x_t,
        known.prior,
        model.config.prediction_type,
        10,
        callback=lambda t, x, guess: back.append((t, x, guess)),
    )
    frames += [
        panels(x, guess, f"back: step {k + 1} of 10, t = {t}")
        for k, (t, x, guess) in enumerate(back)
    ]
    return [
        *frames,
        panels(end, end, "a mask, drawn from noise around the guess"),
    ]


small, _ = fit_image(Image.fromarray(radiograph), segmenter.model.size)
b = np.asarray(small) / np.float32(255)
drawn = landmarks_to_mask(
    draw_phantom(2024, (768, 256)).landmarks / 2, 384, 128
)
with torch.no_grad():
    image = torch.from_numpy(b)[None, None]
    f = segmenter.model.condition(image).prior[0, 0].numpy()
    frames = walk(image, torch.from_numpy(drawn).float()[None, None])
moving = io.BytesIO()
frames[0].save(
    moving,
    "PNG",
    save_all=True,
    append_images=frames[1:],
    loop=0,
    duration=[900] + [250] * (len(frames) - 2) + [2000],
)

# %%
#| echo: false
#| fig-alt: "Animation in four panels: a drawn radiograph, the first network's guess, a mask that drowns in noise around that guess and comes back in ten steps, and what the second network sees in it at each step."
Picture(moving.getvalue(), format="png")

# %% [markdown]
# *From left to right: radiograph (a drawn one, a "phantom"), the first network's guess, the noisy mask, what the second network makes of it. Real steps of the network in this
# package.*
#
# ::: {.doors}
#
# ::: {.door}
# **Read the course.** Lesson by lesson from a radiograph to a trained model and what it is worth, each within an hour, ten to fifteen
# hours in all. You need Python, some PyTorch, and what a normal distribution is. [00](00_start.ipynb) lists the lessons.
# :::
#
# ::: {.door}
# **Segment your radiograph.** `pip install`, one command, five files: mask, probability, uncertainty, overlay, record. See
# [below](#your-own-radiograph) and [16](16_segment.ipynb).
# :::
#
# ::: {.door}
# **The paper, checked.** Every equation, both algorithms, both tables, each with a verdict from running code:
# [17](17_paper_checked.ipynb). And [what we found](found.ipynb).
# :::
#
# :::
#
# ## Two commands
#
# ```sh
# git clone https://github.com/verdiff/verdiff && cd verdiff
# make demo
# make test
# ```
#
# `make demo` trains on drawn spines, segments unseen ones and leaves a picture in `runs/demo/` (under 10 minutes, 2 cores).
# `make test` runs every check: notebooks, exports, tests, formulas, pages, wheel (under 25 minutes, 2 cores). Both put what they need
# into `.venv` first. Neither needs a GPU or patient data. To change something: pages are notebooks in `nbs/` and the same as text
# in `nbpy/`; `.ci/nb 06_forward` brings an edited text into its notebook and module and runs it (CONTRIBUTING.md says the rest).
#
# ## Does it help?
#
# On the official test radiographs of the public X-ray set, with the small network that travels in this package (Dice, mean ± sd,
# 95 % interval; the *prior* is the first network's guess; 8 of the 128 were known to show a radiograph of the training part again, a *twin*,
# and we found 8 more):

# %%
#| echo: false
recorded = json.loads((bundled_model() / "evaluation.json").read_text())
rows = {
    (r["images"], r["steps"]): r
    for r in recorded["rows"]
    if r["samples"] in (0, 5)
}
sets = {
    "all": "128, all",
    "without duplicates": "120, no known twin",
    "without any twin": "112, no twin",
}
ways = {0: "prior alone", 1: "1 step, mean of 5 samples",
        10: "10 steps, mean of 5"}
lines = [
    "| | " + " | ".join(sets.values()) + " |",
    "|---|" + "---|" * len(sets),
]
for steps, way in ways.items():
    found = [rows[images, steps] for images in sets]
    lines.append(
        f"| {way} | "
        + " | ".join(
            f"{r['dice']:.3f} ± {r['dice_sd']:.3f}<br>[{r['dice_low']:.3f}, "
            f"{r['dice_high']:.3f}]"
            for r in found
        )
        + " |"
    )
by = {
    steps: rows["all", steps]["dice"] - rows["all", 0]["dice"]
    for steps in (1, 10)
}
lines += [
    "",
    f"::: {{.result}}\nOne step of the diffusion equals the prior alone within "
    f"{abs(by[1]):.3f}; "
    f"ten steps lose {-by[10]:.3f}.\n:::",
]
Markdown("\n".join(lines))

# %% [markdown]
# So the honest answer is: on this budget, hardly. [Why more steps lose](19_more_steps.ipynb), what the ceiling of the labels is, and what
# each part is worth: [what we found](found.ipynb).
#
# ## Your own radiograph
#
# ```sh
# pip install "verdiff @ git+https://github.com/verdiff/verdiff"
# ```
#
# Python 3.10 or newer; `verdiff[notebooks]` instead of `verdiff` installs what the course needs as well. In Python:

# %%
from verdiff import Segmenter, draw_phantom

# %%
radiograph = draw_phantom(2024, (768, 256)).image  # or "my_xray.png"
result = Segmenter.from_pretrained().predict(radiograph)
print("mask", result.mask.shape, "confidence", round(result.confidence, 2))

# %%
#| echo: false
#| fig-alt: "A drawn radiograph, the guess f(b), the mean of five samples, their spread, and the mask laid over the radiograph."
shown = [
    (radiograph, "gray", 255, "radiograph"),
    (result.prior, "magma", 1, "the guess f(b)"),
    (result.probability, "magma", 1, "mean of 5 samples"),
    (
        result.uncertainty,
        "viridis",
        result.uncertainty.max(),
        "spread of 5 samples",
    ),
    (overlay(radiograph, result), None, 1, "mask"),
]
fig, axes = plt.subplots(1, 5, figsize=(8, 4.8), layout="constrained")
for axis, (picture, cmap, top, title) in zip(axes, shown):
    axis.imshow(picture, cmap=cmap, vmin=0, vmax=top)
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()

# %% [markdown]
# *A phantom again; the network has only ever seen real radiographs.* In a shell:
#
# ```sh
# # with the network that travels along
# verdiff segment my_xray.png more/ -o results
# # DICOM in; the mask also as DICOM segmentation, or with --nifti as NIfTI (needs verdiff[medical])
# verdiff segment study.dcm -o results
# # the whole way once, on phantoms
# verdiff demo
# # the public X-ray set that the paper used
# verdiff data xray --out data/xray
# verdiff train --data data/xray --profile laptop --out runs/xray
# verdiff evaluate --data data/xray --model runs/xray --steps 1,5,10 -o results
# # your own images/ and masks/; where masks hold more than vertebrae, --labels 1-24 chooses
# verdiff train --data my_pairs/ --profile fine --start-from bundled
# # a confidence for your clinic's images
# verdiff calibrate --images my_images/ -o my_model
# ```
#
# The radiograph should be upright and show the whole spine from the front; it may have any shape, since a small spine in it is
# found first. The vertebrae come as one mask, neither separated nor numbered. Each mask comes with a predicted Dice and its 90 %
# interval (`predicted_dice` in its JSON: [how it was tested](lab/xray.ipynb#predicted-dice)). A picture unlike those that the model
# knows gets a warning. A training, or a folder of images, that was interrupted
# goes on when the same command is given again. `verdiff COMMAND --help` explains the rest.
#
# ## What the paper says that cannot hold
#
# We owe the method to its authors. Building it line by line, we met statements that cannot be meant as printed:
#
# - the one-step kernel, Eq. (2), is not the kernel of the marginal, Eq. (3); iterated, it drifts to fifteen times the prior ([06](06_forward.ipynb));
# - the posterior's coefficient of the prior and the sampling step of Eq. (7) leave part of the shift out, and Algorithm 2 starts
#   at N(0, I) where Eq. (5) and the text say N(f, I) ([07](07_posterior.ipynb), [14](14_sampling.ipynb));
# - Eq. (9) would be a cross entropy with Gaussian noise as its target, which is unbounded ([12](12_loss.ipynb));
# - the shapes in Eq. (16) do not match ([10](10_nsa.ipynb));
# - half of the pairs of mean Dice and mean IoU in Table 1, all four of Verdiff-Net among them, cannot be averages over the same
#   images ([05](05_metrics.ipynb));
# - split, schedule, T, channels and ensemble size are not given: every such choice here is ours, and named.
#
# ## Intended use
#
# Research and teaching. This is not a medical device: do not use it for diagnosis or for treatment. A network that learned on one
# hospital's images may fail on another's without saying so.
#
# Licence: Apache 2.0. The X-ray set (SpineWeb set 16, AASCE 2019) belongs to its authors and comes under their terms; no file of it is
# in this repository, and the few radiographs, and one CT slice, that pages show as figures are credited where they stand.
