# %% [markdown]
# # Why more steps lose
# > One frozen prior, four ways to train the diffusion beside it, Dice and likeness after 1 to 50 steps

# %% [markdown]
# Ten steps of the diffusion have a lower Dice than one. Here is what changes that, and what it costs: **less signal in training, or training on the network's own estimates, stops most of the loss and makes samples alike; no way gets above the prior.** Every number is read by code from a stored result of `bench/why_steps.py`: tiny networks (96×32 pixels), a weak prior, validation radiographs only, so the page compares ways of training and says nothing about a large network.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/lab/why_steps.ipynb).

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| code-fold: true
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown, display
from matplotlib_inline.backend_inline import set_matplotlib_formats

import verdiff
from verdiff.metrics import bootstrap_interval

set_matplotlib_formats("jpeg", pil_kwargs={"quality": 82})
path = Path(verdiff.__file__).resolve().parent.parent / "bench/results/why_steps.json"
stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
if not stored:
    print("The stored result is in a clone only; the cells below are skipped.")

# %%
#| code-fold: true
STEPS = (1, 2, 5, 10, 20, 50)


def by_image(way, steps, what):
    "Mean over seeds of each image; of `mean` and `one`, minus the prior's Dice of the image."
    parts, found = stored["results"][way], []
    for seed, part in parts.items():
        values = np.array(part["scores"][str(steps)][what])
        prior = np.array(stored["results"]["prior"][seed]["dice"])
        every = 1 if len(values) == len(prior) else -(-len(prior) // len(values))
        found.append(values - prior[::every] if what in ("mean", "one") else values)
    return np.mean(found, 0)


def said(values, sign="+"):
    low, high = bootstrap_interval(values)
    return f"{np.mean(values):{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


# %% [markdown]
# ## Results
# Dice minus the prior's, image by image, mean over seeds; the 95 % interval is a bootstrap of the images and does not hold the spread between seeds. 50 steps were walked on every third image only, so that row is of other images than the rest.

# %%
#| code-fold: true
if stored:
    seeds = list(stored["results"]["prior"])
    ways = list(stored["ways"])
    prior = [np.mean(stored["results"]["prior"][s]["dice"]) for s in seeds]
    print(f"{len(seeds)} seeds, {stored['validation']} validation images of {stored['data']}; "
          "the prior's Dice by seed: " + ", ".join(f"{p:.3f}" for p in prior))
    for what, title in (("mean", "mean of five"), ("one", "one sample")):
        rows = [f"| {title} | " + " | ".join(ways) + " |", "|---" * (1 + len(ways)) + "|"]
        for n in STEPS:
            cells = (said(by_image(way, n, what)).replace(" ", "<br>", 1) for way in ways)
            rows.append(f"| {n} step{'s' * (n > 1)} | " + " | ".join(cells) + " |")
        display(Markdown("\n".join(rows)))

# %%
#| code-fold: true
if stored:
    print("ten steps minus one step, mean of five, all seeds and then seed by seed")
    for way in ways:
        gap = by_image(way, 10, "mean") - by_image(way, 1, "mean")
        each = [np.mean(p["scores"]["10"]["mean"]) - np.mean(p["scores"]["1"]["mean"])
                for p in stored["results"][way].values()]
        print(f"{way:8s}{said(gap)}   " + ", ".join(f"{e:+.3f}" for e in each))
    print("\nat ten steps: how alike two samples are (Dice), share of pieces below half the median")
    for way in ways:
        print(f"{way:8s}{said(by_image(way, 10, 'alike'), '')}   "
              f"{said(by_image(way, 10, 'halves'), '')}")
    masks = np.array(stored["truth_halves"])
    print(f"truth{'':29s}{said(masks, '')}")

# %%
#| code-fold: true
#| fig-alt: "Left: Dice minus the prior's against steps with bands, one line for each way of training. Right: the same at ten steps against how unlike two samples are, one point for each way."
if stored:
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for way in ways:
        rows = [by_image(way, n, "mean") for n in STEPS[:5]]
        low, high = np.transpose([bootstrap_interval(r) for r in rows])
        line, = left.plot(STEPS[:5], [r.mean() for r in rows], "o-", label=way)
        left.fill_between(STEPS[:5], low, high, alpha=0.2, color=line.get_color())
        right.plot(1 - by_image(way, 10, "alike").mean(), rows[3].mean(), "o", label=way)
    left.axhline(0, color="k", linewidth=0.6)
    left.set(xscale="log", xticks=STEPS[:5], xticklabels=STEPS[:5], xlabel="steps",
             ylabel="Dice minus the prior's, mean of five")
    left.minorticks_off()
    right.set(xlabel="diversity at ten steps: 1 − Dice of two samples",
              ylabel="Dice minus the prior's, mean of five")
    right.legend()

# %%
#| code-fold: true
if stored:
    means = {way: [by_image(way, n, "mean").mean() for n in STEPS[:5]] for way in ways}
    falls = [w for w in ways if all(np.diff(means[w]) < 0)]
    reach = [w for w in ways if max(means[w]) >= 0]
    kept = [w for w in ways if abs(means[w][3] - means[w][0]) <= 0.005]
    print("Dice falls with each larger number of steps:", ", ".join(falls) or "no way")
    print("reaches the prior with some number of steps:", ", ".join(reach) or "no way")
    print("ten steps within 0.005 of one:", ", ".join(kept) or "no way")
    print("from most to least diverse at ten steps:",
          ", ".join(sorted(ways, key=lambda w: by_image(w, 10, "alike").mean())))

# %% [markdown]
# So steps can stop hurting; that they help is not shown, and the price is diversity: with both remedies the diffusion draws nearly the same mask every time. These diffusion networks are trained for few steps, and even one step of them stays below the prior. The gap between ten steps and one differs from seed to seed, and the interval does not hold that.
#
# ## Why: what the network sees
# In training $x_t$ holds the truth; in sampling it holds what the network said before. The Dice of the network's word at time $t$, given each:

# %%
#| code-fold: true
#| fig-alt: "For each way of training the Dice of the network's prediction against time, once with the truth in the noisy mask and once in the network's own walk. The plain way has the widest gap at small times."
if stored:
    fig, axes = plt.subplots(1, len(ways), figsize=(2.3 * len(ways), 2.6), sharey=True,
                             layout="constrained", squeeze=False)
    for axis, way in zip(axes[0], ways, strict=True):
        for kind in ("truth", "walk"):
            found = np.mean([p["exposure"][kind] for p in stored["results"][way].values()], 0)
            axis.plot(stored["times"], found, "o-", label=f"x_t from {kind}", markersize=3)
            print(f"{way:8s}{kind:6s}" + " ".join(f"{v:.3f}" for v in found))
        axis.set(title=way, xlabel="t")
    axes[0, 0].set_ylabel("Dice")
    axes[0, 0].legend(fontsize=7)

# %% [markdown]
# ## What was done
# The prior (features and conditional U-Net) is trained once a seed and frozen. Beside it each way trains its diffusion U-Net from the same first weights on the same batches; `scale` multiplies the mask by 0.2 before noise is added, so the signal-to-noise ratio is 0.2² of the plain one ([Chen 2023](https://arxiv.org/abs/2301.10972)), `recycle` makes $x_t$ of 70 % of the rows from the network's own estimate ([Fu et al. 2023](https://arxiv.org/abs/2308.16355)), `both` does both. Five samples an image. No test radiograph was opened.

# %%
#| code-fold: true
if stored:
    s = stored["settings"]
    print(f"{s['height']}x{s['width']}, channels {s['channels']}, stem {s['stem']}, "
          f"batches of {s['batch_size']}")
    print(f"{stored['training']} training images, prior {stored['prior_steps']} steps, "
          f"each way {stored['steps']} steps")
    print(f"{stored['cpu_minutes']} CPU minutes on one thread, commit {stored['commit'][:7]}")

# %% [markdown]
# Not decided here: other scales and shares, whether the order of the ways stays with larger networks and a prior that is right more often, and how to keep samples that differ where the image leaves a choice.
