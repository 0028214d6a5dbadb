# %% [markdown]
# # 00 · How to read this course
# > A map, the symbols, and the numbers of a run

# %% [markdown]
# What will you have at the end? A network, understood line by line, that marks the vertebrae in a radiograph of a spine and says where it is uncertain: *Verdiff-Net*, a diffusion
# model that begins at a first guess. This page is the map: five minutes to read, seconds to run, no GPU.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/00_start.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| code-fold: true

import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.phantoms import draw_phantom
from verdiff.segmentation.segmenter import Segmenter
from verdiff.settings import VerdiffError, load_settings, profiles

# %%
#| code-fold: true
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})

# %% [markdown]
# ## 1 · Where this leads
#
# A trained network travels with the package. Here it meets a *phantom*, a radiograph drawn by a program:

# %%
phantom = draw_phantom(seed=2024, image_size=(1152, 384))
result = Segmenter.from_pretrained().predict(phantom.image)

# %%
#| code-fold: true
#| fig-alt: "A drawn spine radiograph; the first guess of the mask, a column of soft bright vertebrae; the probability after diffusion; the uncertainty, bright along the borders of the vertebrae and in a blot above the spine, where the guess was wrong."
panels = {"radiograph $b$": (phantom.image, "gray", 255),
          "first guess $f(b)$": (result.prior, "magma", 1),
          "probability": (result.probability, "magma", 1),
          "uncertainty": (result.uncertainty, "viridis", None)}
fig, axes = plt.subplots(1, 4, figsize=(7.5, 5.5), layout="constrained")
for axis, (title, (x, colours, top)) in zip(axes, panels.items()):
    axis.imshow(x, cmap=colours, vmin=0, vmax=top)
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()

# %% [markdown]
# It was trained on real radiographs and has never seen a drawn one. The blot above the spine is a mistake, and the uncertainty marks it.
#
# ## 2 · The map
#
# Each lesson answers a question that the one before left open:
#
# | lesson | its question |
# |---|---|
# | [01 A radiograph](01_radiograph.ipynb) | How do 68 clicks become a mask? |
# | [02 Phantoms](02_phantoms.ipynb) | Where do radiographs come from that anybody may have? |
# | [03 The X-ray set](03_xray_set.ipynb) | What may a score on the public set mean? |
# | [04 Augmentation](04_augment.ipynb) | How does one make much of little data? |
# | [05 Metrics](05_metrics.ipynb) | How good is a mask, and how sure is that? |
# | [06 Forward](06_forward.ipynb) | How is a mask drowned in noise, around a guess? |
# | [07 Posterior](07_posterior.ipynb) | How does one go one step back? |
# | [08 U-Net](08_unet.ipynb) | Which network can look at all scales? |
# | [09 MSFM](09_msfm.ipynb) | How large should its filters be (multi-scale fusion)? |
# | [10 NSA](10_nsa.ipynb) | Where should it look (noise semantic adapter)? |
# | [11 Model](11_model.ipynb) | How do the parts fit together? |
# | [12 Loss](12_loss.ipynb) | What is it to learn? |
# | [13 Training](13_training.ipynb) | How does it learn that? |
# | [14 Sampling](14_sampling.ipynb) | How does a mask come out, and in how many steps? |
# | [15 Worth it?](15_worth_it.ipynb) | What does the walk gain over the first guess? |
# | [16 Segment](16_segment.ipynb) | Does it work on my file? |
# | [17 The paper, checked](17_paper_checked.ipynb) | Which of the paper's claims hold? |
# | [18 X-ray, CT and MR](18_modalities.ipynb) | What must one know to read the other machines? |
# | [19 Why more steps lose](19_more_steps.ipynb) | What would a perfect network do, and what does training hide? |
#
# Beside the course stand the **library** (how the subject becomes a tool: files, settings, checkpoints, the command line) and the **laboratory**, where results come
# first: [what each part is worth](lab/ablation.ipynb), [real radiographs](lab/xray.ipynb), [other methods](lab/comparison.ipynb).
#
# **Before you start** you should have trained some small network in PyTorch, know what a convolution is, and be able to add two normal distributions. No medicine, and no diffusion
# models. **Hours:** we reckon half an hour to an hour a lesson with its exercises, hence ten to fifteen in all; in a hurry, read 01, 06, 07, 12, 13 and 14.
#
# ## 3 · How a page works
#
# One lesson is one notebook and, mostly, one module: the cells that define the subject are exported, as they stand, into the package `verdiff`. There is no other source. Between them stand cells that call
# what was just defined, draw it, or `assert` what must be true. Plots, imports and settings are folded; click to see them.
#
# - **Run every cell** and change a number in it. Nothing needs a download; cells with real radiographs are skipped where the set is missing ([03](03_xray_set.ipynb) says how to get it).
# - **Recorded runs.** What takes long was run once, and the line beside it says when, on what, and from which commit.
# - **Exercises.** Three a page: predict, do, diagnose. Answers, with what their code prints, fold out; do not look before you have written yours down.
# - **The paper** ([Zhang et al., 2024](https://doi.org/10.3390/bioengineering11101031)) need not lie open: its equations stand beside the lines that compute them, and where it contradicts itself or is silent, a table says what it prints,
#   what we do, and why.
#
# To change a page in a clone of the repository, edit the notebook in `nbs/`, or its plain text in `nbpy/` and run `.ci/nb 06_forward`, which brings the text into notebook and module, runs it and keeps its outputs
# (see [CONTRIBUTING](https://github.com/verdiff/verdiff/blob/main/CONTRIBUTING.md)).
#
# ## 4 · Symbols
#
# These letters mean the same on all pages; where the paper uses one of them twice, the page says so. The paper counts time from 1 to $T$, the code from 0 to $T-1$: the least noisy mask is `t = 0` in the code and $x_1$ in the paper, and $x_0$ is always the clean mask. (All words: [glossary](glossary.ipynb).)
#
# | paper | code | meaning | range |
# |---|---|---|---|
# | $b$ | `image` | radiograph | $[0, 1]$ |
# | $x_0$ | `x_0` | true mask, scaled: `2 * mask - 1` | $\{-1, 1\}$ |
# | $x_t$ | `x_t` | noisy mask | about $[-4, 4]$ |
# | $f(b)$ | `prior` | first guess, from the conditional U-Net: `2 * sigmoid(logits) - 1` | $[-1, 1]$ |
# | $\epsilon$ | `noise` | standard normal noise | |
# | $T$, $t$ | `timesteps`, `t` | length of the chain, place on it | |
# | $\beta_t,\ \alpha_t = 1-\beta_t$ | `betas`, `alphas` | schedule of the noise | $(0, 1)$ |
# | $\bar\alpha_t = \prod_{r \le t} \alpha_r$ | `alphas_cumprod` | share of the mask's power that is left | $(0, 1)$ |
# | $s_t = \sqrt{1-\bar\alpha_t}$ | `sigmas` | how much noise, and how much of the guess | $(0, 1)$ |
#
# Tensors of images are `b c h w` (images, channels, height, width); a size is `(height, width)`.
#
# ## 5 · The numbers of a run
#
# No number of a run hides in the code. Sizes, widths, learning rates, seeds: all stand in one file, `settings.ini`, one section a *profile*, with `[DEFAULT]` for what they share.

# %%
print(*profiles(), sep=", ")
demo = load_settings("demo")
print(demo.size, demo.channels, demo.max_steps, demo.seed)

# %% [markdown]
# `smoke` is for tests, `demo` for phantoms, `laptop` and `fine` for real radiographs on two cores, `gpu` for the full size, `gpu-fine` for ten minutes of a GPU from the weights of the package; `paper` is Section 3.3 to the letter:

# %%
paper = load_settings("paper")
assert paper.size == (750, 250) and paper.batch_size == 1
assert (paper.learning_rate, paper.max_steps, paper.seed) == (1e-4, 9000, 35)

# %% [markdown]
# For one run, a number is changed by name, here or with `--set` on the command line. What cannot be is refused in one sentence that says how to mend it:

# %%
print(load_settings("demo", ["max_steps=50"]).max_steps)
try:
    load_settings("demo", ["max_stepps=50"])
except VerdiffError as error:
    print(str(error).partition(" (allowed")[0])

# %% [markdown]
# The rest is in [settings](library/settings.ipynb).
#
# ## Exercises
#
# **1 · Predict.** `load_settings("smoke", ["MAX_STEPS = 7"])`: an error, or not? Decide, then run.

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# No error. Keys of an ini file are not sensitive to case, and blanks around the equals sign do not count; `--set` follows the same rules.

# %%
#| code-fold: true
print(load_settings("smoke", ["MAX_STEPS = 7"]).max_steps)

# %% [markdown]
# </details>
#
# **2 · Implement.** A function `changed(a, b)` that gives the keys in which two settings differ (`to_dict()` gives a settings' keys and values).

# %%
def changed(a, b):
    ...  # your code here


# %%
#| code-fold: true
#| code-summary: "Answer and check"
def changed_answer(a, b):
    theirs = b.to_dict()
    return [k for k, v in a.to_dict().items() if v != theirs[k]]


other = load_settings("demo", ["seed=7", "nsa=false"])
assert changed_answer(demo, other) == ["seed", "nsa"]

# %% [markdown]
# **3 · Diagnose (hard).** A friend runs the course's training with `--profile paper` on a laptop, and after an hour it is still far from its end. Which three keys, compared with `laptop`, cost her most of
# the time? Guess a factor for each.

# %%
laptop = load_settings("laptop")
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# Pixels (`height` times `width`), the `max_steps`, and `sample_steps`, which is paid at every look at the validation images. (Widths of the networks and the size of a batch count
# as well; a batch of one makes a step cheaper.) The first two multiply in training, the first and the third in sampling.

# %%
#| code-fold: true
#| code-summary: "Check"
def factor(key):
    return getattr(paper, key) / getattr(laptop, key)


pixels = factor("height") * factor("width")
print(f"pixels {pixels:.0f}x, steps {factor('max_steps'):.0f}x, "
      f"steps of the sampler {factor('sample_steps'):.0f}x")
assert pixels > 10

# %% [markdown]
# </details>
#
# What does a network need before anything else? Next: [01 · A radiograph and its mask](01_radiograph.ipynb).
