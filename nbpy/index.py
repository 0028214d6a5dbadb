# %% [markdown]
# # verdiff
# > Verdiff-Net in notebooks: a spine radiograph in, a mask of its vertebrae out, with a doubt for every pixel

# %% [markdown]
# Verdiff-Net ([Zhang et al., 2024](https://doi.org/10.3390/bioengineering11101031)) segments vertebrae with a conditional
# diffusion model: a first network looks at the radiograph and guesses the mask, and a second one removes noise from a mask
# step by step, starting at that guess. verdiff is this method twice over. It is a course of notebooks that builds the method
# from its equations, with a picture for every idea and a check for every claim; and it is the library and
# the command that are exported from those notebooks. There is no other source: what you read is what runs.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/index.ipynb)

# %%
import json
import os
import tempfile

import matplotlib.pyplot as plt
from IPython.display import Markdown
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.packed import pack
from verdiff.data.phantom_set import PhantomSet
from verdiff.data.phantoms import draw_phantom
from verdiff.data.splits import grouped_split
from verdiff.segmentation.models import bundled_model
from verdiff.segmentation.segmenter import Segmenter, overlay
from verdiff.settings import load_settings
from verdiff.training.run import train

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
here = os.getcwd()
os.chdir(tempfile.mkdtemp())  # the example writes runs/ where nobody minds


def show(radiograph, result):
    panels = [(radiograph, "gray", 255, "radiograph"), (result.prior, "magma", 1, "the guess f(b)"),
              (result.probability, "magma", 1, "mean of 5 samples"),
              (result.uncertainty, "viridis", result.uncertainty.max(), "spread of 5 samples"),
              (overlay(radiograph, result), None, 1, "mask")]
    fig, axes = plt.subplots(1, 5, figsize=(8, 4.6), layout="constrained")
    for axis, (picture, cmap, top, title) in zip(axes, panels, strict=True):
        axis.imshow(picture, cmap=cmap, vmin=0, vmax=top)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()


# %% [markdown]
# ## Two commands
#
# ```sh
# git clone https://github.com/verdiff/verdiff && cd verdiff
# make demo     # install, train on drawn spines, segment unseen ones, picture in runs/demo/ (under 10 minutes, 2 cores)
# make test     # every check: notebooks, exports, tests, formulas, wheel (under 25 minutes, 2 cores)
# ```
#
# Both put what they need into `.venv` first. Neither needs a GPU or patient data: the demonstration runs on *phantoms*, spine
# radiographs drawn by a program.

# %% [markdown]
# ## Three lines
#
# A small network trained on real radiographs travels with the package, so nothing has to be trained before the first mask:

# %%
#| hide

# %%
radiograph = draw_phantom(seed=2024, image_size=(1152, 384)).image  # or "my_xray.png"
result = Segmenter.from_pretrained().predict(radiograph)
print("mask", result.mask.shape, result.mask.dtype, "probability", result.probability.dtype,
      f"largest standard deviation of the 5 samples {result.uncertainty.max():.2f}")

# %%
#| echo: false
show(radiograph, result)

# %% [markdown]
# *No patient is shown here: the radiograph is a phantom, drawn by a program; the network has only ever seen real ones. On all films of the
# official test part of the public X-ray set, without the eight of them that were known to have a twin in its training part, and
# without all sixteen that have one, it reaches*

# %%
#| echo: false
recorded = json.loads((bundled_model() / "evaluation.json").read_text())
rows = [r for r in recorded["rows"] if r["steps"] in (0, 1, 10) and r["samples"] in (0, 5)]
sets = {"all": "all", "without duplicates": "without the 8 known twins",
        "without any twin": "without all 16 twins"}
names = {0: "prior alone", 1: "1 step, mean of 5", 10: "10 steps, mean of 5"}
table = ["| films | | Dice | 95 % interval | IoU |", "|---|---|---|---|---|"]
for r in rows:
    table.append(
        f"| {r['n']}, {sets[r['images']]} | {names[r['steps']]} | {r['dice']:.3f} ± {r['dice_sd']:.3f} "
        f"| {r['dice_low']:.3f} to {r['dice_high']:.3f} | {r['iou']:.3f} |"
    )
Markdown("\n".join(table))

# %% [markdown]
# *How these numbers come about, what the best possible number would be (the labels do not agree with themselves), and what more steps cost: [Real radiographs](lab/xray.ipynb).*
#
# ## Install
#
# ```sh
# pip install "verdiff @ git+https://github.com/verdiff/verdiff"               # the library and the command
# pip install "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"    # to run the course as well
# ```
#
# Python 3.10 or newer. Then, in a shell:
#
# ```sh
# verdiff segment my_xray.png -o results                         # with the network that travels along
# verdiff demo                                                   # the whole way once, on phantoms
# verdiff data xray --out data/xray                              # the public X-ray set that the paper used
# verdiff train --data data/xray --profile laptop --out runs/xray
# verdiff evaluate --data data/xray --model runs/xray --steps 1,5,10 -o results
# verdiff segment my_xray.png more_xrays/ -o results --model runs/xray
# verdiff train --data my_pairs/ --profile fine --start-from bundled  # your own images/ and masks/, from the network that travels along
# ```
#
# `segment` writes five files an image: `X_mask.png` (0 or 255), `X_probability.png`, `X_uncertainty.png` (16 bits), `X_overlay.png`, and
# `X.json` with a *confidence*; it warns where a picture is unlike those that the model knows. It reads PNG, JPEG and TIFF, no DICOM. The
# film should be upright and show the whole spine from the front; the vertebrae come as one mask, neither separated nor numbered.
# Details: [16](16_segment.ipynb).
#
# `verdiff COMMAND --help` explains the rest. A training, or a folder of images, that was interrupted goes on when the same command is given again.
#
# ## Ten lines
#
# Train a small network of your own, here on drawn spines, and segment one that it has not seen:

# %%
settings = load_settings("demo", ["height=96", "width=32", "channels=8,16,32", "max_steps=300"])
data = pack(PhantomSet(split="training", size=settings.size), progress=False)
training, validation = (data.subset(i) for i in grouped_split(data.names))
model = train(settings, training, validation, "runs/ten-lines", progress=False)

radiograph = draw_phantom(seed=2024, image_size=(576, 192)).image
result = Segmenter(model).predict(radiograph)

# %%
#| echo: false
os.chdir(here)
show(radiograph, result)

# %% [markdown]
# *What the ten lines above make of it after a few seconds of training; both pictures are made by running this page.*
#
# ## The map of the course
#
# | notebook | you build | module |
# |---|---|---|
# | [Settings](library/settings.ipynb) | every number of a run in one file, and how to read the course | `verdiff.settings` |
# | [03 Data](03_xray_set.ipynb) | radiographs, landmarks, masks, honest splits, phantoms | `verdiff.data` |
# | [04 Augment](04_augment.ipynb) | rotation, shift and elastic warp in one sampling; contrast | `verdiff.augment` |
# | [05 Metrics](05_metrics.ipynb) | Dice, IoU, intervals, and what they hide | `verdiff.metrics` |
# | [06 Forward](06_forward.ipynb) | noise with a prior in its mean: Eq. (3) | `verdiff.forward` |
# | [07 Posterior](07_posterior.ipynb) | the way back, one step at a time | `verdiff.posterior` |
# | [08 U-Net](08_unet.ipynb) | the two networks' common body, any image size | `verdiff.unet` |
# | [09 MSFM](09_msfm.ipynb) | multi-scale fusion: three kernels that compete | `verdiff.msfm` |
# | [10 NSA](10_nsa.ipynb) | the noise semantic adapter: a gate that knows where bone may be | `verdiff.nsa` |
# | [11 Model](11_model.ipynb) | Verdiff-Net, and plain DDPM one switch away | `verdiff.model` |
# | [13 Training](13_training.ipynb) | the loop, from ten lines to one that survives a crash | `verdiff.training` |
# | [14 Sampling](14_sampling.ipynb) | Algorithm 2 as printed and exact, DDIM, ensembles | `verdiff.sampling` |
# | [16 Segment](16_segment.ipynb) | any file in, its mask out; the command line | `verdiff.inference` |
# | [17 The paper, checked](17_paper_checked.ipynb) | each equation and table with its verdict | |
# | [Ablation](lab/ablation.ipynb) | what each part is worth: seeds, pairs, intervals | `verdiff.ablation` |
# | [Real radiographs](lab/xray.ipynb) | 128 test films, error bars, the labels' own ceiling | |
# | [Comparison](lab/comparison.ipynb) | the other methods of Table 1, same films, same budget | `verdiff.comparison` |
#
# Read them in order, or jump: each one starts from what the earlier ones *export*, never from what they left in memory. Each
# has exercises with answers that check themselves, and opens on Colab.
#
# ## What the paper says that cannot hold
#
# We owe the method to its authors, and the idea is good: shift the noise to the first guess, and the diffusion starts where the
# anatomy already is. Building it line by line, we met statements that cannot be meant as printed. Each is shown by running code, with
# the reading that we took instead:
#
# - the one-step kernel, Eq. (2), is not the kernel of the marginal, Eq. (3); iterated, it drifts to fifteen times the prior
#   ([06](06_forward.ipynb));
# - the posterior's coefficient of the prior and the sampling step of Eq. (7) leave part of the shift out, and Algorithm 2 starts at
#   N(0, I) where Eq. (5) and the text say N(f, I) ([07](07_posterior.ipynb), [14](14_sampling.ipynb));
# - Eq. (9) would be a cross entropy with Gaussian noise as its target, which is unbounded ([13](13_training.ipynb));
# - the shapes in Eq. (16) do not match, and batch normalisation of one descriptor does not work at the batch size of one
#   ([10](10_nsa.ipynb), [09](09_msfm.ipynb));
# - half of the pairs of mean Dice and mean IoU in Table 1, all four of Verdiff-Net among them, cannot be averages over the same images: some fall
#   below Jensen's inequality, the others exceed what the printed spread allows if it is the spread over images ([05](05_metrics.ipynb));
# - split, schedule, T, channels and ensemble size are not given: every such choice here is ours, and named.
#
# The whole list, computed, is in [17](17_paper_checked.ipynb). Beyond the paper: 16 of the 128 test radiographs of the public set stand in its training part as
# well, twice as many as were known, so every result here is given with and without them ([03](03_xray_set.ipynb)).
#
# ## Intended use
#
# Research and teaching. This is not a medical device: do not use it for diagnosis or for treatment. A network that learned on one
# hospital's images may fail on another's without saying so, and the uncertainty it gives knows only what it has seen
# ([16](16_segment.ipynb) shows an example).
#
# Licence: Apache 2.0. The X-ray set belongs to its authors and comes under their terms; none of its images is in this repository.
