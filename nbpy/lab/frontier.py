# %% [markdown]
# # A network for its compute
# > Which body reaches the best validation Dice for its minutes?

# %% [markdown]
# A student has a laptop, not a cluster. Which network should it train: the package's own, one that first folds blocks of pixels into channels (a *stem* of 2 or 4, as ESPCN's pixel shuffle does at the other end, [Shi et al. 2016](https://arxiv.org/abs/1609.05158)) and so sees the radiograph at its full size, or nnU-Net's? Same batches, same rate, same minutes of one processor core; scored on the validation radiographs at 768×256, whatever size the network works at. The numbers are read from a stored result of `bench/frontier.py`. **In a few minutes small pictures win by far: the same network at a quarter of the size takes four times as many steps.** The first minutes decide little about the last: this is a race over minutes, with one seed.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/lab/frontier.ipynb).

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
from verdiff.metrics import bootstrap_interval, paired_difference

set_matplotlib_formats("jpeg", pil_kwargs={"quality": 82})
path = Path(verdiff.__file__).resolve().parent.parent / "bench/results/frontier.json"
stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
if not stored:
    print("The stored result is in a clone only; the cells below are skipped.")

# %% [markdown]
# ## Results

# %%
#| code-fold: true
if stored:
    bodies = stored["candidates"]
    label = {n: b["about"].replace("the same", "the shipped body") for n, b in bodies.items()}
    most = max(p["minutes"] for b in bodies.values() for p in b["points"])
    last = {n: next(p for p in b["points"] if p["minutes"] == most) for n, b in bodies.items()
            if any(p["minutes"] == most for p in b["points"])}
    order = sorted(last, key=lambda n: -np.mean(last[n]["dice"]))
    best = order[0]
    rows = [f"| body | Dice after {most:g} minutes | minus the best | steps of "
            f"{bodies[best]['batch_size']} |", "|---|---|---|---|"]
    for n in order:
        dice, b = last[n]["dice"], bodies[n]
        low, high = bootstrap_interval(dice)
        gap = "" if n == best else "{:+.3f}<br>[{:+.3f}, {:+.3f}]".format(
            *paired_difference(dice, last[best]["dice"]))
        rows.append(f"| {label[n]} | {np.mean(dice):.3f}<br>[{low:.3f}, {high:.3f}] | {gap} | "
                    f"{last[n]['steps']} |")
    display(Markdown("\n".join(rows)))

# %%
#| code-fold: true
if stored:
    rows = ["| body | size | parameters | GFLOP a radiograph | seconds a radiograph |",
            "|---|---|---|---|---|"]
    for n in order:
        b = bodies[n]
        rows.append(f"| {label[n]} | {b['size'][0]}×{b['size'][1]} | {b['parameters']:,} | "
                    f"{b['gflop']:.2f} | {b['seconds_per_film']:.2f} |")
    display(Markdown("\n".join(rows)))

# %%
#| code-fold: true
#| fig-alt: "Left: validation Dice against minutes of training, a line with intervals for each body. Right: Dice after the last budget against seconds for one radiograph, a point for each body."
if stored:
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for n in order:
        points = bodies[n]["points"]
        mean = [np.mean(p["dice"]) for p in points]
        low, high = np.transpose([bootstrap_interval(p["dice"]) for p in points])
        at = [p["cpu_minutes"] for p in points]
        left.errorbar(at, mean, (np.array(mean) - low, high - mean), fmt="o-", capsize=2)
        right.plot(bodies[n]["seconds_per_film"], np.mean(last[n]["dice"]), "o", label=label[n])
    left.set(xlabel="minutes of one core", ylabel="validation Dice at 768×256")
    right.set(xlabel="seconds a radiograph", xlim=(0, None))
    right.legend(fontsize=7)

# %%
#| code-fold: true
if stored:
    said = {n: paired_difference(last[n]["dice"], last[best]["dice"]) for n in order[1:]}
    near = [n for n, (_, _, high) in said.items() if high >= 0]
    print(f"best after {most:g} minutes: {label[best]}")
    print("not reliably behind it:", ", ".join(label[n] for n in near) or "none")
    assert best == "quarter" and not near  # what the first paragraph says

# %% [markdown]
# ## What was done
# Every body learns from the same stream of augmented batches at one constant rate with averaged weights, so that one run gives the Dice at every budget. Only the steps count, in processor time; checkpoints and validation do not. The interval is over radiographs; a second seed may change the order of neighbours. The test part stays closed.

# %%
#| code-fold: true
if stored:
    point = last[best]
    print(f"{len(point['dice'])} validation radiographs, commit {point['commit'][:7]}, "
          f"{point['date']}, one core, seed {bodies[best]['seed']}")
    print("commands: python bench/frontier.py --minutes 2,4 --names " + ",".join(bodies))

# %% [markdown]
# Not answered: longer runs, where a larger picture may overtake (borders need pixels: the package's network was trained for hours at 384×128); nnU-Net's network (the script knows it, its package was not at hand); the same race with the diffusion beside each body (`half-pair` and `stem4-pair` of the script); residual bodies and deep supervision.
