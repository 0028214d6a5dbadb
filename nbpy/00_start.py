# %% [markdown]
# # 00 · How to read this course
# > A map, the symbols, and the numbers of a run

# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/00_start.ipynb)

# %%
import tempfile
from pathlib import Path

from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.settings import load_settings, profiles

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## 1 · How a page works
#
# One notebook is one lesson *and* one module. Cells that begin with `#| export` are copied, by nbdev, into the package (here `verdiff/settings.py`); the cells between them
# call what was just defined, draw it, or assert what must be true of it. Continuous integration executes every notebook from a fresh kernel, except
# cells marked `#| cuda` or `#| slow`, whose recorded outputs are kept.
#
# Three habits will help:
#
# - **Run every cell** and change a number in it. The phantoms (drawn spines) need no download. Cells that show real radiographs do nothing where the
#   X-ray set is missing; page [03](03_xray_set.ipynb) says how to get it.
# - **Predict before you look.** Each lesson ends with three exercises: predict, change, implement. The answers fold out, and an
#   `assert` checks them.
# - **Keep the paper beside you.** Where an equation of the paper is used, its number stands near the code that computes it. Where the paper
#   contradicts itself or is silent, a table says what it prints, what we do, and why; [17](17_paper_checked.ipynb) collects all of them.
#
# The lessons, from the ground up:
#
# | | lesson | you will be able to |
# |---|---|---|
# | ground | [03 data](03_xray_set.ipynb), [04 augment](04_augment.ipynb), [05 metrics](05_metrics.ipynb) | load radiographs, bend them, score a mask honestly |
# | process | [06 forward](06_forward.ipynb), [07 posterior](07_posterior.ipynb) | derive the shifted diffusion and check it against Bayes' rule |
# | networks | [08 U-Net](08_unet.ipynb), [09 MSFM](09_msfm.ipynb) (multi-scale fusion), [10 NSA](10_nsa.ipynb) (noise semantic adapter), [11 model](11_model.ipynb) | build each module of the paper's Figure 3 |
# | learning | [13 training](13_training.ipynb), [14 sampling](14_sampling.ipynb) | train it, interrupt it, resume it, draw masks from it |
# | use | [16 segment](16_segment.ipynb), [17 the paper checked](17_paper_checked.ipynb) | segment your own images; know which claims hold |
# | results | [ablation](lab/ablation.ipynb), [real radiographs](lab/xray.ipynb), [comparison](lab/comparison.ipynb) | say what each part adds, and how sure that is |
#
# ## 2 · Symbols
#
# The paper counts time from 1 to $T$, the code from 0 to $T-1$. In the code the least noisy mask is `t = 0`, the paper's $x_1$; the clean mask is always called $x_0$. Use the table for reference; page 06 explains the process.
#
# | paper | code | meaning | range |
# |---|---|---|---|
# | $b$ | `image` | radiograph | $[0, 1]$ |
# | $x_0$ | `x_0` | true mask, scaled: `2 * mask - 1` | $\{-1, 1\}$ |
# | $x_t$ | `x_t` | noisy mask | about $[-4, 4]$ |
# | $f(b)$ | `prior` | conditional U-Net's mask, scaled: `2 * sigmoid(logits) - 1` | $[-1, 1]$ |
# | $\epsilon$ | `noise` | standard normal noise | |
# | $\beta_t,\ \alpha_t = 1-\beta_t$ | `betas`, `alphas` | schedule | $(0, 1)$ |
# | $\bar\alpha_t = \prod \alpha_s$ | `alphas_cumprod` | what is left of the mask's energy | $(0, 1)$ |
# | $s_t = \sqrt{1-\bar\alpha_t}$ | `sigmas` | how much noise, and how much shift | $(0, 1)$ |
# | $T$ | `timesteps` | length of the chain | |
# | $X$ | `features` | what the multi-scale fusion module gives | |
# | $\Phi_\theta$ | `model.denoise` | the diffusion U-Net | |
#
# Images are `(B, 1, H, W)` tensors throughout; a size is `(height, width)`.
#
# ## 3 · One sentence when something is wrong
#
# A traceback helps those who wrote the code. Users need a sentence: which file or key, what is wrong with it, what to do. All such
# errors are a `VerdiffError`; the command line prints the sentence and ends with exit code 2.

# %% [markdown]
# ## 6 · The paper's profile, and what it leaves open
#
# The paper gives, in Sections 3.1 to 3.3: 250×750, batch 1, Adam, learning rate 1e-4, 9,000 steps, seed 35. The rest is ours:
#
# | | paper | ours (`gpu`, `laptop`) | why |
# |---|---|---|---|
# | size | 250×750 (width first, as the paper prints it) | letterboxed | squashing changes angles; [08](08_unet.ipynb), section 9 |
# | normalisation | batch norm, batch of one | group norm | with a batch of one, batch norm is one function in training and another in use ([08](08_unet.ipynb)); of MSFM's vector it has no statistics at all ([09](09_msfm.ipynb)) |
# | $T$, schedule | not stated | 1000, linear 1e-4 … 0.02 | Ho et al. 2020; the shift was analysed for it in [06](06_forward.ipynb) |
# | network predicts | $\epsilon$ | $x_0$ | a mask is learned faster than noise at this budget; [17](17_paper_checked.ipynb), section 7 |
# | widths | not stated | see `channels` | fits the machine |
# | sampler | $T$ steps | DDIM, 10 steps, mean of 5 | [14](14_sampling.ipynb) |

# %%
paper = load_settings("paper")
assert paper.size == (750, 250) and paper.batch_size == 1 and paper.optimizer == "adam"
assert (paper.learning_rate, paper.max_steps, paper.seed) == (1e-4, 9000, 35)

# %% [markdown]
# ## Exercises
#
# **1. Predict.** `load_settings("smoke", ["MAX_STEPS = 7"])`: an error, or not?
#
# <details><summary>Answer</summary>
#
# No error. Keys of an ini file are not sensitive to case, and blanks around the equals sign do not count; `--set` follows the same rules.
#
# </details>

# %%
assert load_settings("smoke", ["MAX_STEPS = 7"]).max_steps == 7

# %% [markdown]
# **2. Change.** Write a settings file of your own with one profile `mine` that differs from `smoke` in its seed, and load it.
#
# <details><summary>Answer</summary>
#
# The lines below: every key of `smoke`, from its dictionary, with another seed. `load_settings(path=...)` reads any file.
#
# </details>

# %%
values = load_settings("smoke").to_dict() | {"seed": 7}
del values["profile"]
values["channels"] = ",".join(map(str, values["channels"]))
own = folder / "own.ini"
own.write_text("[mine]\n" + "\n".join(f"{k} = {v}" for k, v in values.items()))
assert profiles(own) == ["mine"] and load_settings("mine", path=own).seed == 7


# %% [markdown]
# **3. Implement.** A function `changed(a, b)` that gives the keys in which two settings differ ([13](13_training.ipynb) uses one like it to refuse a foreign checkpoint).
#
# <details><summary>Answer</summary>
#
# `[k for k, v in a.to_dict().items() if v != b.to_dict()[k]]`
#
# </details>

# %%
def changed(a, b):
    return [k for k, v in a.to_dict().items() if v != b.to_dict()[k]]

assert changed(laptop, short) == ["channels", "nsa", "max_steps"]

# %% [markdown]
# ## What we have
#
# `load_settings`, `Settings`, `VerdiffError` and `atomic_write`. Nothing here imports torch, so `verdiff --help` answers at once. Next: [pictures](03_xray_set.ipynb).
