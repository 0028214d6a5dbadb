# %% [markdown]
# # Tables with two sources of chance
# > Intervals over seeds and radiographs, and the forest plot

# %% [markdown]
# A segmentation paper prints a mean over test images, sometimes with an interval over images. Another seed would print another mean, and that interval does not know it. **Where seeds differ, the usual 95 % interval holds the truth in two sweeps of three; one over seeds and images comes close to its word, even with three seeds.** First the trial, then the formula, then the code that makes the tables of [the ablation](ablation.ipynb). Half a minute on a laptop ([![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/lab/tables.ipynb)).

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().run_line_magic(  # noqa: F821
        "pip", "install -q 'verdiff[notebooks] @ git+https://github.com/verdiff/verdiff'")

# %%
#| default_exp lab.tables

# %%
#| code-fold: true
import json
import shutil
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.lab.ablation import AblationRun, main_ways
from verdiff.lab.tables import crossed_interval
from verdiff.metrics import TABLE_2, bootstrap_interval

# %%
#| code-fold: true
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
folder = Path(tempfile.mkdtemp())
rng = np.random.default_rng(0)

# %% [markdown]
# ## Which interval keeps its word?
#
# Two worlds with a true difference of zero, in one of which the seeds differ more ("restless"), 400 sweeps each of three seeds and 24 images: how often does a 95 % interval contain the zero?

# %%
#| code-fold: true
kinds = {"one seed, images": lambda d: bootstrap_interval(d[0], n=500),
         "all 72 scores as images": lambda d: bootstrap_interval(d, n=500),
         "mean of seeds, images": lambda d: bootstrap_interval(d.mean(0), n=500),
         "seeds and images": crossed_interval}


def a_sweep(seed_sd):
    seeds, images = rng.normal(0, seed_sd, (3, 1)), rng.normal(0, 0.02, 24)
    return seeds + images + rng.normal(0, 0.02, (3, 24))


held = {}
for world, seed_sd in {"restless seeds": 0.010, "calm seeds": 0.002}.items():  # sd of their means
    trials = [a_sweep(seed_sd) for _ in range(400)]
    held[world] = {k: np.mean([lo <= 0 <= hi for lo, hi in map(f, trials)])
                   for k, f in kinds.items()}
    print(world, {k: f"{v:.0%}" for k, v in held[world].items()})
restless = held["restless seeds"]
assert restless["seeds and images"] > 0.92 > 0.7 > restless["one seed, images"]

# %%
#| code-fold: true
#| fig-alt: "How often four kinds of 95 % interval hold the truth, a red bar for restless seeds and a blue one for calm seeds. Only the interval over seeds and images reaches the dotted line at 0.95 in both; the others stay at 0.6 to 0.75 with restless seeds."
fig, axis = plt.subplots(figsize=(5.5, 2.2), layout="constrained")
for k, (world, found) in enumerate(held.items()):
    axis.barh(np.arange(4) - 0.2 + 0.4 * k, list(found.values()), 0.38, label=world,
              color=["crimson", "tab:blue"][k])
axis.axvline(0.95, color="k", ls=":")
axis.set_yticks(range(4), list(kinds))
axis.invert_yaxis()
axis.set(xlabel="how often the 95 % interval holds the truth", xlim=(0, 1))
fig.legend(fontsize=7, loc="outside upper right", ncols=2);

# %% [markdown]
# With restless seeds the usual interval, from one run, misses the truth in a third of the sweeps, and pooling three runs as if they had 72 images is worse. Only the last comes close to its word, and pays with width.
#
# ## The formula
#
# *Other images* would give another mean: the test images are a sample. *Another seed* would give another network: initial weights, batches, noise. With $d_{si}$ the difference for seed $s$ and image $i$,
#
# $$d_{si} = \mu + a_s + b_i + e_{si},$$
#
# we want $\mu$. A bootstrap over images knows $b_i$ and is blind to $a_s$. Both together, with $\bar d_{s\cdot}$ the mean of a seed over images and $\bar d_{\cdot i}$ of an image over seeds:
#
# $$\widehat{\mathrm{Var}}(\bar d)=\frac{\mathrm{var}_s(\bar d_{s\cdot})}{S}+\frac{\mathrm{var}_i(\bar d_{\cdot i})}{N},$$
#
# which counts $e$ twice, so the variance errs on the safe side. The rest is Student's $t$, with Satterthwaite's (1946) degrees of freedom: near $S-1$ if the seeds dominate. For three seeds that is two, and a factor of 4.3 where one is used to 1.96.

# %%
#| exports
#| code-fold: true
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.special import stdtrit

import verdiff
from verdiff.files import VerdiffError, write_csv, write_json
from verdiff.lab.ablation import AblationRun, choose, main_ways
from verdiff.metrics import bootstrap_interval


# %%
#| exports
#| code-fold: true
def image_interval(
    d: np.ndarray,  # (S, N): seeds by images
    level: float = 0.95,
) -> tuple[float, float]:
    "Bootstrap over images of the mean over seeds: these networks, other images."
    return bootstrap_interval(d.mean(0), level)


# %%
#| exports
#| code-fold: true
def crossed_interval(
    d: np.ndarray,  # (S, N): seeds by images
    level: float = 0.95,
) -> tuple[float, float]:  # minus and plus infinity for one seed
    "Interval of the mean for other seeds and other images; Student's t after Satterthwaite (1946)."
    (s, n), mean = d.shape, d.mean()
    if s < 2 or n < 2:
        return -np.inf, np.inf
    seeds, images = d.mean(1).var(ddof=1) / s, d.mean(0).var(ddof=1) / n
    if seeds + images == 0:
        return float(mean), float(mean)
    freedom = (seeds + images) ** 2 / (seeds ** 2 / (s - 1) + images ** 2 / (n - 1))
    reach = stdtrit(freedom, (1 + level) / 2) * np.sqrt(seeds + images)
    return float(mean - reach), float(mean + reach)


# %% [markdown]
# With one seed nothing can be said about two *methods*, only about these two networks: the interval over seeds and images is infinite. Any contrast of rows will do as $d$. Whether the gain of both modules is the sum of the single gains is one: *both - msfm - nsa + neither*. In the paper's four numbers the two gains add up but for a third of a point, whose chance is unknown; made-up scores with an interaction of 0.05 give it back with its interval:

# %%
#| code-fold: true
one = rng.normal(0.015, 0.012, (1, 24))
print("one seed: over images", np.round(image_interval(one), 3), "over both", crossed_interval(one))
assert image_interval(one)[0] > 0 and np.isinf(crossed_interval(one)).all()
level = rng.normal(0.8, 0.05, (3, 24))
both, msfm, nsa, neither = (level + gain + rng.normal(0, 0.005, (3, 24))
                            for gain in (0.10, 0.03, 0.02, 0.0))
d = both - msfm - nsa + neither
low, high = crossed_interval(d)
keys = ((True, True), (True, False), (False, True), (False, False))
theirs = sum(sign * TABLE_2[key][0] for key, sign in zip(keys, (1, -1, -1, 1)))
print(f"made up: {d.mean():.3f} [{low:.3f}, {high:.3f}]; the paper's: {theirs:+.2f} points")
assert low < 0.05 < high and 0 < theirs < 0.5

# %% [markdown]
# ## Differences of rows
#
# The same seed for two rows means the same batches, augmentation and noise; the same image means the same difficulty. So differences are taken *within* seed and image.

# %%
#| exports
#| code-fold: true
@dataclass(frozen=True)
class Effect:
    "Mean Dice of a row, or its mean difference to another row, with three intervals."

    row: str
    way: str  # of segmenting
    mean: float  # over seeds and images
    both: tuple[float, float]  # other seeds, other images: the one to judge by
    images: tuple[float, float]  # these networks, other images
    by_seed: tuple[float, ...]  # mean over images, for each seed
    n: int  # number of images

    @property
    def verdict(self) -> str:
        "`better`, `worse` or `open`, by the interval over seeds and images."
        return "better" if self.both[0] > 0 else "worse" if self.both[1] < 0 else "open"

    def text(self, sign: str = "") -> str:
        "Mean and interval; with sign='+' the sign is always shown."
        return f"{self.mean:{sign}.3f} [{self.both[0]:{sign}.3f}, {self.both[1]:{sign}.3f}]"

    def to_dict(self) -> dict[str, Any]:
        "One flat record; an infinite bound becomes empty."
        names = ("low", "high", "images_low", "images_high")
        bounds = {name: float(v) if np.isfinite(v) else None
                  for name, v in zip(names, (*self.both, *self.images), strict=True)}
        return {"row": self.row, "way": self.way, "seeds": len(self.by_seed), "images": self.n,
                "mean": self.mean, **bounds, "by_seed": " ".join(f"{v:.5f}" for v in self.by_seed)}


# %%
#| exports
#| code-fold: true
def scores_of(
    runs: Sequence[AblationRun],
    row: str,
    way: str,  # of segmenting
) -> np.ndarray:  # (S, N): Dice by seed, in rising order, and image
    "All scores of a row."
    mine = sorted((r for r in runs if r.row == row), key=lambda r: r.seed)
    return np.array([r.dice[way] for r in mine], dtype=np.float64)


# %%
#| exports
#| code-fold: true
def effects(
    runs: Sequence[AblationRun],  # of one sweep
    way: str,  # of segmenting
    reference: str | None = "both",  # a row to subtract; None: the Dice itself
    level: float = 0.95,
) -> list[Effect]:  # one a row, in the order of the sweep
    """Means and intervals, paired by seed and image.

    VerdiffError where rows have not the same seeds and images, or `reference` is no row.
    """
    rows = dict.fromkeys(r.row for r in runs)
    have = {row: sorted((r.seed, r.names) for r in runs if r.row == row) for row in rows}
    if odd := [row for row in rows if have[row] != have[runs[0].row]]:
        raise VerdiffError(f"the rows {runs[0].row!r} and {odd[0]!r} have not the same seeds and "
                           "images, so they cannot be compared in pairs")
    if reference is not None:
        base = scores_of(runs, *choose([reference], {r: () for r in rows}), way)
    found = []
    for row in rows:
        d = scores_of(runs, row, way) - (0 if reference is None else base)
        if row != reference:
            intervals = crossed_interval(d, level), image_interval(d, level)
            by_seed = tuple(map(float, d.mean(1)))
            found.append(Effect(row, way, float(d.mean()), *intervals, by_seed, d.shape[1]))
    return found


# %% [markdown]
# Made-up runs show the forms: three rows, three seeds, six images; `msfm` is worse by 0.03, `nsa` differs by chance.

# %%
#| code-fold: true
WAYS = ["prior alone", "diffusion, 1 step, 1 sample", "diffusion, 10 steps, mean of 5"]
hard = rng.normal(0.8, 0.04, 6)  # an image is as hard for one row as for another
runs = [AblationRun(row, seed, "", {}, [f"{i}.png" for i in range(6)],
                    {w: list(hard + gain + rng.normal(0, 0.004) + rng.normal(0, 0.003, 6))
                     for w in WAYS}, 97_662)
        for row, gain in {"both": 0, "msfm": -0.03, "nsa": 0}.items() for seed in (35, 36, 37)]
for e in effects(runs, WAYS[0]):
    print(e.row, e.text("+"), e.verdict)
    assert e.both[0] < e.mean < e.both[1] and np.isclose(e.mean, np.mean(e.by_seed))
one_seed = effects([r for r in runs if r.seed == 35], WAYS[0])[0]
assert one_seed.verdict == "open" and one_seed.to_dict()["low"] is None  # one run: no interval

# %% [markdown]
# ## The table and the forest
#
# `save_tables` keeps every score, for anyone who wants another interval.

# %%
#| exports
#| code-fold: true
def format_table(
    runs: Sequence[AblationRun],
    reference: str = "both",
    level: float = 0.95,
) -> str:
    "Dice of each row, then the differences to the reference, by three ways to segment."
    ways, seeds = main_ways(runs[0]), len({r.seed for r in runs})
    size = {r.row: r.parameters for r in runs}
    lines = [f"mean Dice over {seeds} seeds and {len(runs[0].names)} images "
             f"[{level:.0%} interval over seeds and images]",
             f"{'row':14s}{'parameters':>11s}  " + "".join(f"{w:32s}" for w in ways)]
    for k, kind in enumerate((None, reference)):
        table = [effects(runs, w, kind, level) for w in ways]
        if k:
            lines.append(f"difference to {reference!r}, same seeds, same images")
        for cells in zip(*table, strict=True):
            texts = [c.text("+" if k else "") + (f" {c.verdict}" if k else "") for c in cells]
            row = cells[0].row
            lines.append(f"{row:14s}{size[row]:11,d}  " + "".join(f"{t:32s}" for t in texts))
    return "\n".join(lines)


# %%
#| exports
#| code-fold: true
def save_tables(
    runs: Sequence[AblationRun],
    out: Path,  # folder
    reference: str = "both",
) -> list[Path]:  # ablation.csv, ablation.json, scores.csv
    "Means, differences and all scores, each file written whole; errors as of `effects`."
    ways = list(runs[0].dice)
    records = [{"against": kind or "", **e.to_dict()}
               for kind in (None, reference) for w in ways for e in effects(runs, w, kind)]
    scores = [{"row": r.row, "seed": r.seed, "way": w, "image": name, "dice": value}
              for r in runs for w in ways for name, value in zip(r.names, r.dice[w], strict=True)]
    facts = [{k: v for k, v in asdict(r).items() if k not in ("dice", "names")} for r in runs]
    about = {"verdiff": verdiff.__version__, "reference": reference, "table": records,
             "runs": facts}
    paths = [out / name for name in ("ablation.csv", "ablation.json", "scores.csv")]
    write_csv(paths[0], records)
    write_json(paths[1], about)
    write_csv(paths[2], scores)
    return paths


# %%
#| code-fold: true
print(format_table(runs))
files = save_tables(runs, folder)
print(*files[0].read_text().splitlines()[:2], sep="\n")
assert len(json.loads(files[1].read_text())["runs"]) == len(runs)
assert len(files[2].read_text().splitlines()) == 1 + len(runs) * len(main_ways(runs[0])) * 6


# %% [markdown]
# In the picture a thick line says *other images*, the thin one *other seeds and images*; small dots are seeds. A thin line across zero decides nothing.

# %%
#| exports
#| code-fold: true
def draw_effect(axis: Any, y: int, effect: Effect, limit: float | None) -> None:
    "One line of the forest."
    colour = {"better": "tab:green", "worse": "tab:red", "open": "0.35"}[effect.verdict]
    if limit and abs(effect.mean) > limit:
        side = np.sign(effect.mean)
        axis.annotate(f"{effect.mean:+.2f}", (side * limit, y), (-38 * side, 0), fontsize=7,
                      textcoords="offset points", va="center", ha="left" if side < 0 else "right",
                      color=colour, arrowprops={"arrowstyle": "->", "color": colour})
        return
    reach = np.clip(effect.both, -10, 10)
    axis.plot(reach, (y, y), color=colour, lw=1)
    axis.plot(effect.images, (y, y), color=colour, lw=4, alpha=0.6, solid_capstyle="butt")
    axis.plot(effect.by_seed, [y] * len(effect.by_seed), ".", ms=2.5, color="k")
    axis.plot(effect.mean, y, "o", ms=5, color=colour)


# %%
#| exports
#| code-fold: true
def forest_plot(
    runs: Sequence[AblationRun],
    reference: str = "both",
    limit: float | None = None,  # of the axis, to both sides; what lies beyond becomes an arrow
    published: Mapping[str, float] | None = None,  # a paper's differences, for the last panel
) -> Figure:
    "Differences in Dice to the reference, one panel a way to segment; errors as of `effects`."
    ways = main_ways(runs[0])
    rows = [e.row for e in effects(runs, ways[0], reference)]
    figure = Figure((2.9 * len(ways) + 0.6, 0.32 * len(rows) + 1.1), layout="constrained")
    axes = figure.subplots(1, len(ways), sharey=True, squeeze=False)[0]
    for axis, way in zip(axes, ways, strict=True):
        axis.axvline(0, color="grey", lw=0.8)
        for y, effect in enumerate(effects(runs, way, reference)):
            draw_effect(axis, y, effect, limit)
        for k, (row, value) in enumerate((published or {}).items() if axis is axes[-1] else ()):
            axis.plot(value, rows.index(row), "D", ms=5, mfc="none", color="crimson",
                      label="" if k else "published")
        axis.set_title(way, fontsize=9)
        axis.set_xlabel(f"Dice minus that of {reference!r}")
        axis.set_xlim((-limit, limit) if limit else None)
        axis.set_yticks(range(len(rows)), rows)
    axes[0].invert_yaxis()
    if published:
        axes[-1].legend(fontsize=7, handletextpad=0.1)
    return figure


# %%
#| code-fold: true
#| fig-alt: "Three panels, one a way to segment, with two rows each: msfm about 0.03 left of zero, nsa near zero. Thick lines stand for other images, thin ones for other seeds and images, dots for seeds, red for worse."
forest_plot(runs)

# %%
#| hide
shutil.rmtree(folder)
