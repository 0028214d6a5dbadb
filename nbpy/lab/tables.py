# %% [markdown]
# # Tables with two sources of chance
# > Intervals over seeds and radiographs, and the forest

# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/lab/tables.ipynb)

# %%
#| default_exp lab.tables

# %%
#| export
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import verdiff
from verdiff.files import VerdiffError, write_csv, write_json
from verdiff.lab.ablation import AblationRun, choose, main_ways
from verdiff.metrics import bootstrap_interval

# %%
import io
import json
import tempfile
from contextlib import redirect_stdout

import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats
from scipy.stats import t as student

from verdiff.lab.ablation import ROWS, TABLE_2_ROWS, sweep
from verdiff.metrics import TABLE_2

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
folder = Path(tempfile.mkdtemp())


# %% [markdown]
# Each line could have been published, and within a way to segment they differ though only the seed has changed. Not in all: `neither` is above `both` in eight of nine lines, the reverse of Table 2. One run a row ranks four *networks*, each a random draw from its *method*.
#
# ## 5 · Two sources of chance
#
# *Other films* would give another mean: the 24 test films are a sample. *Another seed* would give another network: initial weights, batches, noise. With $d_{si}$ the difference for seed $s$ and film $i$,
#
# $$d_{si} = \mu + a_s + b_i + e_{si},$$
#
# we want $\mu$. A bootstrap over films knows $b_i$ and is blind to $a_s$. Both together, with $\bar d_{s\cdot}$ the mean of a seed over films and $\bar d_{\cdot i}$ of a film over seeds:
#
# $$\widehat{\mathrm{Var}}(\bar d)=\frac{\mathrm{var}_s(\bar d_{s\cdot})}{S}+\frac{\mathrm{var}_i(\bar d_{\cdot i})}{N},$$
#
# which counts $e$ twice, so the variance errs on the safe side. The rest is Student's $t$, with Satterthwaite's (1946) degrees of freedom: near $S-1$ if the seeds dominate. For three seeds that is two, and a factor of 4.3 where one is used to 1.96.

# %%
#| export
def film_interval(
    d: np.ndarray,  # (S, N): seeds by films
    level: float = 0.95,
) -> tuple[float, float]:
    "Bootstrap over films of the mean over seeds: these networks, other films."

    return bootstrap_interval(d.mean(0), level)


# %%
#| export
def crossed_interval(
    d: np.ndarray,  # (S, N): seeds by films
    level: float = 0.95,
) -> tuple[float, float]:  # minus and plus infinity for one seed
    "Interval of the mean for other seeds and other films; Student's t after Satterthwaite (1946)."
    from scipy.stats import t

    (s, n), mean = d.shape, d.mean()
    if s < 2 or n < 2:
        return -np.inf, np.inf
    seeds, films = d.mean(1).var(ddof=1) / s, d.mean(0).var(ddof=1) / n
    if seeds + films == 0:
        return float(mean), float(mean)
    freedom = (seeds + films) ** 2 / (seeds ** 2 / (s - 1) + films ** 2 / (n - 1))
    reach = t.ppf((1 + level) / 2, freedom) * np.sqrt(seeds + films)
    return float(mean - reach), float(mean + reach)


# %% [markdown]
# Does the interval keep its 95 %? Two worlds with a true difference of zero, in one of which the seeds differ more ("restless"), 400 sweeps each: how often does an interval contain the zero?

# %%
rng = np.random.default_rng(0)
kinds = {"one seed, films": lambda d: bootstrap_interval(d[0], n=500),
         "all 72 scores as films": lambda d: bootstrap_interval(d, n=500),
         "mean of seeds, films": lambda d: bootstrap_interval(d.mean(0), n=500),
         "seeds and films": crossed_interval}


def a_sweep(seed_sd):
    seeds, films = rng.normal(0, seed_sd, (3, 1)), rng.normal(0, 0.02, 24)
    return seeds + films + rng.normal(0, 0.02, (3, 24))


# %%
held = {}
for world, seed_sd in {"restless seeds": 0.010, "calm seeds": 0.002}.items():  # sd of their means
    trials = [a_sweep(seed_sd) for _ in range(400)]
    held[world] = {k: np.mean([lo <= 0 <= hi for lo, hi in map(f, trials)])
                   for k, f in kinds.items()}
    print(world, {k: f"{v:.0%}" for k, v in held[world].items()})
restless = held["restless seeds"]
assert restless["seeds and films"] > 0.92 > 0.7 > restless["one seed, films"]

# %%
fig, axis = plt.subplots(figsize=(5.5, 2.2), layout="constrained")
for k, (world, found) in enumerate(held.items()):
    axis.barh(
        np.arange(4) - 0.2 + 0.4 * k,
        list(found.values()),
        0.38,
        label=world,
        color=["crimson", "tab:blue"][k],
    )
axis.axvline(0.95, color="k", ls=":")
axis.set_yticks(range(4), list(kinds))
axis.invert_yaxis()
axis.set(xlabel="how often the 95 % interval holds the truth", xlim=(0, 1))
fig.legend(fontsize=7, loc="outside upper right", ncols=2)


# %% [markdown]
# With restless seeds the usual interval, from one run, misses the truth in a third of the sweeps, and pooling three runs as if they had 72 films is worse. Only the last comes close to its word, and pays with width.

# %%
#| export
@dataclass(frozen=True)
class Effect:
    "Mean Dice of a row, or its mean difference to another row, with three intervals."

    row: str
    way: str  # of segmenting
    mean: float  # over seeds and films
    both: tuple[float, float]  # other seeds, other films: the one to judge by
    films: tuple[float, float]  # these networks, other films
    by_seed: tuple[float, ...]  # mean over films, for each seed
    n: int  # films

    @property
    def verdict(self) -> str:
        "What the interval over seeds and films allows to say of a difference."
        return "better" if self.both[0] > 0 else "worse" if self.both[1] < 0 else "open"

    def text(self, sign: str = "") -> str:
        "Mean and interval; with sign='+' the sign is always shown."
        return f"{self.mean:{sign}.3f} [{self.both[0]:{sign}.3f}, {self.both[1]:{sign}.3f}]"

    def to_dict(self) -> dict[str, Any]:
        "One flat record; an infinite bound becomes empty."
        bounds = dict(zip(("low", "high", "films_low", "films_high"),
                          (float(v) if np.isfinite(v) else None for v in (*self.both, *self.films)),
                          strict=True))
        return {"row": self.row, "way": self.way, "seeds": len(self.by_seed), "films": self.n,
                "mean": self.mean, **bounds, "by_seed": " ".join(f"{v:.5f}" for v in self.by_seed)}


# %% [markdown]
# The same seed for two rows means the same batches, augmentation and noise; the same film means the same difficulty. So differences are taken *within* seed and film.

# %%
#| export
def scores_of(
    runs: Sequence[AblationRun],
    row: str,
    way: str,  # of segmenting
) -> np.ndarray:  # (S, N): Dice by seed, in rising order, and film
    "All scores of a row."
    mine = sorted((r for r in runs if r.row == row), key=lambda r: r.seed)
    return np.array([r.dice[way] for r in mine], dtype=np.float64)


# %%
#| export
def effects(
    runs: Sequence[AblationRun],  # of one sweep
    way: str,  # of segmenting
    reference: str | None = "both",  # a row to subtract; None: the Dice itself
    level: float = 0.95,
) -> list[Effect]:  # one a row, in the order of the sweep
    "Means and intervals, paired by seed and film; VerdiffError where rows have other ones."
    rows = dict.fromkeys(r.row for r in runs)
    have = {row: sorted((r.seed, r.names) for r in runs if r.row == row) for row in rows}
    if odd := [row for row in rows if have[row] != have[runs[0].row]]:
        raise VerdiffError(f"the rows {runs[0].row!r} and {odd[0]!r} have not the same seeds and "
                           "films, so they cannot be compared in pairs")
    if reference is not None:
        base = scores_of(runs, *choose([reference], {r: () for r in rows}), way)
    found = []
    for row in rows:
        d = scores_of(runs, row, way) - (0 if reference is None else base)
        if row != reference:
            intervals = crossed_interval(d, level), film_interval(d, level)
            by_seed = tuple(map(float, d.mean(1)))
            found.append(Effect(row, way, float(d.mean()), *intervals, by_seed, d.shape[1]))
    return found


# %%
e, = effects(runs, way)
print(e, e.verdict, sep="\n")
one_seed = effects([r for r in runs if r.seed == 35], way)[0]
assert one_seed.verdict == "open" and one_seed.to_dict()["low"] is None  # one run: no interval
assert e.both[0] < e.mean < e.both[1] and np.isclose(e.mean, np.mean(e.by_seed))


# %% [markdown]
# ## 6 · The table and the forest
#
# Now the sweep can be judged by that interval. `save_tables` keeps every score, for anyone who wants another.

# %%
#| export
def format_table(
    runs: Sequence[AblationRun],
    reference: str = "both",
    level: float = 0.95,
) -> str:
    "Dice of each row, then the differences to the reference, by three ways to segment."
    ways, seeds = main_ways(runs[0]), len({r.seed for r in runs})
    size = {r.row: r.parameters for r in runs}
    lines = [f"mean Dice over {seeds} seeds and {len(runs[0].names)} films "
             f"[{level:.0%} interval over seeds and films]",
             f"{'row':14s}{'parameters':>11s}  " + "".join(f"{w:32s}" for w in ways)]
    for k, kind in enumerate((None, reference)):
        table = [effects(runs, w, kind, level) for w in ways]
        if k:
            lines.append(f"difference to {reference!r}, same seeds, same films")
        for cells in zip(*table, strict=True):
            texts = [c.text("+" if k else "") + (f" {c.verdict}" if k else "") for c in cells]
            row = cells[0].row
            lines.append(f"{row:14s}{size[row]:11,d}  " + "".join(f"{t:32s}" for t in texts))
    return "\n".join(lines)


# %%
#| export
def save_tables(
    runs: Sequence[AblationRun],
    out: Path,  # folder
    reference: str = "both",
) -> list[Path]:  # ablation.csv, ablation.json, scores.csv
    "Means, differences and all scores."
    ways = list(runs[0].dice)
    records = [{"against": kind or "", **e.to_dict()}
               for kind in (None, reference) for w in ways for e in effects(runs, w, kind)]
    scores = [{"row": r.row, "seed": r.seed, "way": w, "film": name, "dice": value}
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
print(format_table(runs))
files = save_tables(runs, folder / "small")
print(*files[0].read_text().splitlines()[:2], sep="\n")
assert len(json.loads(files[1].read_text())["runs"]) == 4
assert len(files[2].read_text().splitlines()) == 1 + 4 * 5 * 6  # runs, ways, films


# %% [markdown]
# In the picture a thick line says *other films*, the thin one *other seeds and films*; small dots are seeds. A thin line across zero decides nothing.

# %%
#| export
def forest_plot(
    runs: Sequence[AblationRun],
    reference: str = "both",
    limit: float | None = None,  # of the axis, to both sides; what lies beyond becomes an arrow
    published: Mapping[str, float] | None = None,  # a paper's differences, for the last panel
) -> Figure:
    "Differences in Dice to the reference, one panel a way to segment."
    from matplotlib.figure import Figure

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
#| export
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
    axis.plot(effect.films, (y, y), color=colour, lw=4, alpha=0.6, solid_capstyle="butt")
    axis.plot(effect.by_seed, [y] * len(effect.by_seed), ".", ms=2.5, color="k")
    axis.plot(effect.mean, y, "o", ms=5, color=colour)


# %%
forest_plot(runs)

# %%
#| slow
silent_rows = {name: row for name, row in ROWS.items() if name not in TABLE_2_ROWS}
with redirect_stdout(io.StringIO()):
    silent = sweep("phantom", silent_rows, out=OUT, progress=False)
everything = table_2 + silent
print(format_table(everything))


# %%
#| slow
def printed(row):  # Dice of the paper's Table 2, whose keys are (MSFM, NSA)
    return TABLE_2[row in ("msfm", "both"), row in ("nsa", "both")][0] / 100


paper = {row: printed(row) - printed("both") for row in TABLE_2_ROWS[:3]}
forest_plot(everything, limit=0.12, published=paper)

# %% [markdown]
# Red diamonds are the differences that the paper prints for its MR images (Table 2, against its full model), one number a row, so without an interval.
#
# At 95 % one honest interval in twenty misses: among the 27 in this picture, one or two, and rather together: all subtract the same three runs of `both`. (Four rows leave the prior as it is.) A stricter reading (Bonferroni) divides the 5 % by the number of looks:

# %%
#| slow
looks = 3 * (len(ROWS) - 1)
for level in (0.95, 1 - 0.05 / looks):
    print(f"level {level:.2%}")
    for w in ways:
        decided = [e for e in effects(everything, w, level=level) if e.verdict != "open"]
        print(f"  {w}:", ", ".join(f"{e.row} {e.verdict}" for e in decided) or "nothing")

# %%
#| slow
for w in ways:
    again = effects(table_2 + silent, w)[-1]
    print(f"{again.row}, {w}: {again.text('+')}, seed by seed", np.round(again.by_seed, 3))

# %% [markdown]
# `again` is called better twice, though it differs from `both` in nothing. (It shares no random numbers with `both`, so it moves further than a paired row would.) `msfm` and `no-shift` are worse at 95 % only. The stricter reading keeps only `epsilon`.
#
# ## 7 · Beside Table 2
#
# The paper tells its table as gains over the row with neither module. So do we, for most steps and the mean of samples, the nearest to what it does:

# %%
#| slow
gains = effects(table_2, ways[-1], reference="neither")
for e in gains:
    theirs = printed(e.row) - printed("neither")
    where = "inside" if e.both[0] <= theirs <= e.both[1] else "outside"
    print(f"{e.row:5s} ours {e.text('+')} {e.verdict:6s} the paper's {theirs:+.4f}, {where} ours")
need = max(np.std(e.by_seed, ddof=1) for e in gains)
print(f"from seed to seed these gains have a standard deviation of up to {need:.3f}")

# %% [markdown]
# How many seeds make the interval ± one point with that restlessness? (A true difference of one point is then found half of the time.) The half-width of the interval for $S$ seeds, films left aside, is $t_{S-1}\,\sigma/\sqrt S$:

# %%
#| slow
counts = np.arange(2, 41)
half = student.ppf(0.975, counts - 1) * need / np.sqrt(counts)
fig, axis = plt.subplots(figsize=(4.5, 2.3), layout="constrained")
axis.semilogy(counts, half, "o-", ms=3)
axis.axhline(0.01, color="k", ls=":")
axis.axvline(3, color="crimson", lw=1)
axis.set(xlabel="seeds", ylabel="half of the interval")
axis.set_title(f"a standard deviation of {need:.3f} between seeds", fontsize=9)
enough = counts[half < 0.01]
print("seeds for an interval of +-0.01:", enough[0] if len(enough) else f"more than {counts[-1]}")
