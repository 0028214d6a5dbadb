# %% [markdown]
# # What disturbs it
# > Noise, blur, metal, borders, other shapes: what each costs, before and after training that shows them

# %% [markdown]
# A radiograph from elsewhere is noisier, cropped in another way, inverted, or shows metal. What does the network of the package lose there, and what does training get back that draws such things? Every number is read by code from a stored result of `bench/disturbed.py`: the prior alone, validation radiographs only (the test part stays closed), Dice at 768×256. **Inversion, mirrored edges, a square frame and metal cost most. Training wins back most of it, at a price on clean radiographs; weights part of the way between the two networks win back much of it at no price that can be seen.**
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/lab/disturbed.ipynb).

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

set_matplotlib_formats("jpeg", pil_kwargs={"quality": 82})
results = Path(verdiff.__file__).resolve().parent.parent / "bench/results"
path = results / "disturbed.json"
stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
if not stored:
    print("The stored result is in a clone only; the cells below are skipped.")

# %%
#| code-fold: true
def said(row, sign="+"):
    mean, low, high = row
    return f"{mean:{sign}.3f}<br>[{low:{sign}.3f}, {high:{sign}.3f}]"


if stored:
    first, second = stored["models"]
    packaged, trained, gain = (stored["table"][k] for k in (first, second, "second_minus_first"))
    runs = json.loads((results / "long/runs.json").read_text())
    print(f"{stored['radiographs']} validation radiographs; trained further: "
          f"{sum(r['step'] for r in runs)} steps, "
          f"{sum(r['cpu_seconds'] for r in runs) / 3600:.1f} CPU hours")
    print(f"commit {stored['commit'][:7]}")

# %% [markdown]
# ## What it costs
# Dice of a condition minus that of the clean radiograph, paired, with a 95 % bootstrap interval over radiographs; and what further training changes in the Dice of the same condition. *Further training* goes on from the package's weights with noise, blur, gamma, other sizes and cut-off drawn into the batches (profile `long`; metal, letters, borders, inversion and JPEG came into it after 590 steps), at last with a rate that falls to zero. *Mirrored* edges repeat the spine, and what is found in the repetition counts as wrong.

# %%
#| code-fold: true
if stored:
    rows = ["| condition | package: Dice, cost | trained further: Dice, cost | change |",
            "|---|---|---|---|"]
    for name in gain:
        cells = (f"{t[name]['dice'][0]:.3f}<br>" + ("" if name == "clean" else
                 said(t[name]["minus_clean"])) for t in (packaged, trained))
        rows.append(f"| {name} | " + " | ".join(cells) + f" | {said(gain[name]['dice'])} |")
    display(Markdown("\n".join(rows)))

# %%
#| code-fold: true
#| fig-alt: "For each condition two points with intervals: the Dice that the package's network loses against clean radiographs, and that of the network trained further."
if stored:
    names = [n for n in sorted(gain, key=lambda n: packaged[n]["minus_clean"][0]) if n != "clean"]
    fig, axis = plt.subplots(figsize=(6.5, 0.27 * len(names) + 0.8), layout="constrained")
    for offset, (label, t, colour) in zip((-0.15, 0.15), (
            ("package", packaged, "tab:orange"), ("trained further", trained, "tab:blue"))):
        mean, low, high = np.transpose([t[n]["minus_clean"] for n in names])
        axis.errorbar(mean, np.arange(len(names)) + offset, xerr=(mean - low, high - mean), fmt="o",
                      markersize=4, color=colour, label=label)
    axis.set_yticks(range(len(names)), names)
    axis.axvline(0, color="k", linewidth=0.6)
    axis.set(xlabel="Dice minus that of the clean radiograph")
    axis.legend(loc="center left")

# %% [markdown]
# ## What was hoped
# Noise of 0.05 should cost at most 0.02, a blur of four pixels 0.04, drawn metal 0.10, and clean radiographs nothing:

# %%
#| code-fold: true
if stored:
    for name, most in (("noise 0.05", 0.02), ("blur of 4 pixels", 0.04), ("drawn metal", 0.10)):
        for label, t in (("package", packaged), ("trained further", trained)):
            lost = -t[name]["minus_clean"][0]
            print(f"{name:18s}{label:17s}costs {lost:.3f}, at most {most}: "
                  f"{'met' if lost <= most else 'not met'}")
    mean, low, high = gain["clean"]["dice"]
    print("clean radiographs, trained further minus package: "
          f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]: {'met' if high >= 0 else 'not met'}")

# %% [markdown]
# ## L5
# How often is L5 missed (Dice below a half near it), where it lies wholly on the picture? Cutting the radiograph below L5, moving it, or adding to it changes where L5 stands on the canvas:

# %%
#| code-fold: true
if stored:
    rows = ["| condition | package | trained further |", "|---|---|---|"]
    for name in gain:
        pair = [t[name]["l5_missed"] for t in (packaged, trained)]
        if all(pair):
            rows.append(f"| {name} | " + " | ".join(
                f"{m:.0%} [{low:.0%}, {high:.0%}]" for m, low, high in pair) + " |")
    display(Markdown("\n".join(rows)))
    missed = {n: packaged[n]["l5_missed"][0] for n in gain if n not in ("inverted", "clean")}
    assert max(missed, key=missed.get) == "cut below L5"

# %% [markdown]
# So the edge is what loses L5: inverted radiographs aside, which lose everything, nothing costs it as often as a picture that ends just below it, and there further training, which cuts radiographs off as well, gets back most.
#
# ## Between the two
# Fine-tuning forgets. Must one choose between the old network and the new? [Wortsman et al. 2022](https://arxiv.org/abs/2109.01903) average the weights of the two, $(1 - a)\,w_{\text{old}} + a\,w_{\text{new}}$, and often keep the best of both. Dice of the average (`bench/average.py`, the same validation radiographs):

# %%
#| code-fold: true
path = results / "average.json"
between = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
if between:
    shares = sorted(between["table"], key=float)
    conditions = list(between["table"]["0"])
    rows = ["| share of the new | " + " | ".join(conditions) + " |",
            "|---" * (1 + len(conditions)) + "|"]
    for share in shares:
        marks = "**{}**" if share == between["chosen"] else "{}"
        cells = (marks.format(f"{between['table'][share][c]['dice'][0]:.3f}") for c in conditions)
        rows.append(f"| {marks.format(share)} | " + " | ".join(cells) + " |")
    display(Markdown("\n".join(rows)))

# %%
#| code-fold: true
#| fig-alt: "Dice on clean radiographs against the mean Dice over the disturbances, a line through the shares from 0 to 1: it first rises steeply while clean hardly falls, then turns back to the left."
if between:
    t = between["table"]
    clean = [t[a]["clean"]["dice"][0] for a in shares]
    other = [np.mean([t[a][c]["dice"][0] for c in conditions if c != "clean"]) for a in shares]
    fig, axis = plt.subplots(figsize=(4.6, 2.8), layout="constrained")
    axis.plot(clean, other, "o-")
    for x, y, a in zip(clean, other, shares, strict=True):
        axis.annotate(a, (x, y), (-4, -11), textcoords="offset points", ha="right", fontsize=8)
    axis.set(xlabel="Dice, clean", ylabel="Dice, mean of the disturbed")

# %%
#| code-fold: true
if between:
    some = "clean", "noise 0.05", "drawn metal"
    rows = ["| minus the package | " + " | ".join(some) + " |", "|---" * 4 + "|"]
    for share, change in between["against_0"].items():
        rows.append(f"| {share} | " + " | ".join(said(change[c]["dice"]) for c in some) + " |")
    display(Markdown("\n".join(rows)))
    print(f"chosen: {between['chosen']}, the largest share whose interval on clean "
          "radiographs holds 0")
    best = between["against_0"][between["chosen"]]
    assert best["clean"]["dice"][2] >= 0 and best["padded to a square"]["dice"][1] > 0

# %% [markdown]
# The chosen average is not yet the package's network: its limits for a confidence, its predicted Dice and the test part, which is opened once for each shipped network, are still to be done. To have it, `python bench/average.py verdiff/weights/xray-384x128 bench/results/long --out DIR`, then `verdiff segment IMAGE --model DIR`.
#
# The zoom of [library/zoom](../library/zoom.ipynb) is off on this page; it is the other answer to a small spine.
