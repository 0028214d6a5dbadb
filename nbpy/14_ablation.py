# %% [markdown]
# # 14 · Ablation
# > Take one part out, train again, and again with other random numbers: what Table 2 can say, and what nobody can say from one run
#
# You will write the sweep behind the paper's Table 2 and five other choices, the paper's noise prediction among them, interrupt it, see a ranking depend on the seed, and build an interval that knows about films *and* seeds. **A cell without output has not been run yet; those marked `#| cuda` wait for a GPU.** The recorded runs, thirty on phantoms and eighteen on radiographs, took less than an hour of one CPU core at 96×32 pixels, the rest half a minute.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/14_ablation.ipynb)

# %%
#| default_exp ablation

# %%
#| eval: false
# !pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"  # only on Colab

# %%
#| export
from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import verdiff
from verdiff.inference import (check_shape, evaluate, natural, output_folder, phantom_options,
                               settings_options, write_csv, write_json)
from verdiff.settings import Settings, VerdiffError, load_settings

if TYPE_CHECKING:  # torch takes seconds to import: `verdiff --help` does without it
    from matplotlib.figure import Figure

    from verdiff.data import MaskFolder, Packed, Placement, XRaySet

# %%
import io
import shutil
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data import MaskFolder, Packed, Placement, XRaySet, find_xray
from verdiff.metrics import TABLE_2, bootstrap_interval, dice
from verdiff.model import VerdiffConfig, VerdiffNet

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 82})
torch.set_num_threads(1)
folder = Path(tempfile.mkdtemp())
XRAY = find_xray()

# %% [markdown]
# ## 1 · Rows
#
# An ablation asks what a part is worth. The answer is a difference between two networks trained alike in all else: films, steps, learning rate. So a row is a name and the settings in which it differs, such as MSFM (page [07](07_msfm.ipynb)) and NSA ([08](08_nsa.ipynb)):

# %%
#| export
ROWS: dict[str, tuple[str, ...]] = {
    # Table 2 of the paper
    "neither": ("msfm=off", "nsa=off"),
    "msfm": ("msfm=on", "nsa=off"),
    "nsa": ("msfm=off", "nsa=on"),
    "both": ("msfm=on", "nsa=on"),
    # other choices: ours against the paper's (epsilon), or against what neither takes
    "no-shift": ("shift=off",),
    "joint-prior": ("detach_prior=off",),
    "epsilon": ("prediction_type=epsilon",),
    "v-prediction": ("prediction_type=v_prediction",),
    "squash": ("fit=squash",),
    # nothing at all, but for the random numbers: seed 35 becomes 135
    "again": ("seed=1{seed}",),
}
TABLE_2_ROWS = ("neither", "msfm", "nsa", "both")


# %%
#| export
def choose(
    names: Sequence[str],
    registry: Mapping[str, tuple[str, ...]] = ROWS,
) -> dict[str, tuple[str, ...]]:  # name: settings that it changes
    "Some rows, in the order asked for; VerdiffError for an unknown one."
    for name in names:
        if name not in registry:
            near = get_close_matches(name, registry, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise VerdiffError(f"there is no row {name!r}; {hint}rows: {', '.join(registry)}")
    return {name: registry[name] for name in names}


# %%
mine = choose(["both", "neither"]) | {"wide": ("channels=12,24,48",)}  # your own: one line
print(mine)
try:
    choose(["bothh"])
except VerdiffError as error:
    print(error)

# %% [markdown]
# `both` is the course's default, and every row is held against it. The row `again` changes *nothing* but the random numbers: it shows what chance alone can do.
#
# The profile `ablation` (small and short), the seed and the row's own words make a run:

# %%
#| export
def row_settings(
    row: tuple[str, ...],  # "key=value"; {seed} stands for the seed
    seed: int,
    profile: str = "ablation",
    overrides: Sequence[str] = (),  # "key=value" for all rows; the row's own words win
) -> Settings:
    "The numbers of one run."
    words = [word.replace("{seed}", str(seed)) for word in row]
    return load_settings(profile, [*overrides, f"seed={seed}", *words])


# %%
base = row_settings(ROWS["both"], 35)
print(f"{base.size}, channels {base.channels}, {base.max_steps} steps of {base.batch_size} films, "
      f"scored at {base.eval_size}")
sizes = {}
for name, row in ROWS.items():
    there = row_settings(row, 35)
    sizes[name] = VerdiffNet(VerdiffConfig.from_settings(there)).num_parameters()
    changed = {k: v for k, v in there.to_dict().items() if v != base.to_dict()[k]}
    print(f"{name:13s}", changed or "the reference")
assert row_settings(ROWS["again"], 35).seed == 135

# %% [markdown]
# *Alike in all else* is never quite true: without a module the network is smaller and a step faster. Equal seconds would be fair too. We take equal steps, and record seconds and parameters.

# %%
fig, axis = plt.subplots(figsize=(5, 2.4), layout="constrained")
colours = ["tab:blue" if name in TABLE_2_ROWS else "tab:grey" for name in sizes]
axis.barh(list(sizes), list(sizes.values()), color=colours)
axis.invert_yaxis()
axis.set(xlabel="parameters", xlim=(0.9 * min(sizes.values()), 1.01 * max(sizes.values())))
axis.locator_params(axis="x", nbins=4)
axis.set_title("how much smaller a row is (the axis does not start at 0)", fontsize=9)
assert sizes["neither"] < min(sizes["msfm"], sizes["nsa"]) and sizes["again"] == sizes["both"]

# %% [markdown]
# ## 2 · Films of three shapes
#
# Letterbox and squash (page [01](01_data.ipynb)) differ only where films differ in shape, and all phantoms so far are 3:1. So here they come in three shapes, as radiographs do.

# %%
#| export
PHANTOM_SHAPES = ((576, 160), (576, 192), (576, 256))  # (height, width)


class Films:
    "Several datasets as one, for `pack`; each name gets the name of its part in front."

    def __init__(
        self,
        parts: Mapping[str, XRaySet | MaskFolder],  # by name
    ):
        self.parts = dict(parts)
        self.where = [(part, i) for part in self.parts.values() for i in range(len(part))]
        self.names = [f"{key}/{name}" for key, part in self.parts.items() for name in part.names]

    def __len__(self) -> int:
        return len(self.where)

    def arrays(self, i: int) -> tuple[np.ndarray, np.ndarray, Placement]:
        "Image and mask on the canvas, uint8 (H, W), and the placement."
        part, k = self.where[i]
        return part.arrays(k)

    def fingerprint(self) -> str:
        "Changes when a part changes."
        parts = [(key, part.fingerprint()) for key, part in self.parts.items()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


# %%
#| export
def open_films(
    data: str | Path,  # zip or folder, or the word "phantom"
    split: str,  # "training" or "test"
    size: tuple[int, int],  # (height, width) of the canvas
    fit: str,  # "letterbox" or "squash"
    n_training: int = 96,  # phantoms, a third of each shape
    n_test: int = 24,
) -> Films | XRaySet | MaskFolder:
    "The films of a sweep: phantoms of three shapes, or somebody's data."
    from verdiff.data import PhantomSet, open_dataset

    if str(data) != "phantom":
        return open_dataset(data, split, size, fit)
    if min(n_training, n_test) < len(PHANTOM_SHAPES):
        raise VerdiffError(f"{n_training} phantoms to train on, {n_test} to test on: too few; "
                           f"they come in {len(PHANTOM_SHAPES)} shapes, take as many of both")
    parts = {}
    for k, shape in enumerate(PHANTOM_SHAPES):
        counts = [(n + k) // len(PHANTOM_SHAPES) for n in (n_training, n_test)]  # a third of each
        parts[f"{shape[0]}x{shape[1]}"] = PhantomSet(None, split, size, fit, *counts, k + 1, shape)
    return Films(parts)


# %%
few = {fit: open_films("phantom", "test", (288, 96), fit, 6, 6) for fit in ("letterbox", "squash")}
fig, axes = plt.subplots(1, 6, figsize=(6.2, 3.3), layout="constrained")
for axis, (fit, i) in zip(axes, [(fit, i) for i in (0, 2, 4) for fit in few]):
    image, mask, _ = few[fit].arrays(i)
    axis.imshow(image, cmap="gray")
    axis.contour(mask, [0.5], colors="orange", linewidths=0.7)
    axis.set_title(f"{few[fit].names[i][:7]}\n{fit}", fontsize=8)
    axis.set_axis_off()
assert len(few["squash"]) == len(set(few["squash"].names)) == 6
assert few["squash"].fingerprint() != few["letterbox"].fingerprint()

# %% [markdown]
# Dice can be compared between the two canvases: stretching an axis multiplies all three areas in $2|P\cap T|/(|P|+|T|)$ by the same factor, which cancels, but for the rounding of pixels. (What a network paints into the black bars does count as an error.)

# %%
picture = torch.rand(2, 1, 60, 40, generator=torch.Generator().manual_seed(0)) > 0.6
stretched = picture.repeat_interleave(3, dim=-1)
assert torch.equal(dice(picture[:1], picture[1:]), dice(stretched[:1], stretched[1:]))

# %% [markdown]
# Radiographs with a twin in the training part are left out (page 01). A table that is *reported* is scored on test films. For a table by which one *chooses*, a tenth of the training studies is held back instead (`on="validation"`).

# %%
#| export
def films_for(
    settings: Settings,
    data: str | Path,  # zip or folder, or the word "phantom"
    cache: Path,  # folder for the decoded films
    n_training: int = 96,  # phantoms
    n_test: int = 24,
    on: str = "test",  # where to score: "test" or "validation"
) -> tuple[Packed, Packed]:  # to train on, at the network's size; to score on, at eval_size
    """The films of one run: the whole training split, and the test films without a twin there.

    With `on="validation"` the test split is not touched: the training split is divided by study,
    as `train` divides it with the profile's seed, whatever the seed of the run.
    """
    from verdiff.data import clean_test_indices, grouped_split, pack

    def packed(split: str, size: tuple[int, int]) -> Packed:
        films = open_films(data, split, size, settings.fit, n_training, n_test)
        cache.mkdir(parents=True, exist_ok=True)
        return pack(films, cache / f"{split}-{settings.fit}-{size[0]}x{size[1]}.npz")

    if on == "validation":
        known, large = packed("training", settings.size), packed("training", settings.eval_size)
        seed = load_settings(settings.profile).seed
        kept, held = grouped_split(known.names, settings.val_fraction, seed)
        if not held:
            raise VerdiffError(f"{data}: nothing to validate on; it takes training films of two "
                               "studies or more, and a val_fraction above 0")
        return known.subset(kept), large.subset(held)
    test = packed("test", settings.eval_size)
    clean = clean_test_indices(test.names, strict=True)
    return packed("training", settings.size), test.subset(clean)


# %%
TINY = ["height=48", "width=16", "eval_height=96", "eval_width=32", "channels=4,8", "max_steps=40",
        "batch_size=4", "checkpoint_every=10", "sample_steps=3", "ensemble=2"]
tiny = row_settings(ROWS["both"], 35, overrides=TINY)
known, unseen = films_for(tiny, "phantom", folder, 12, 6)
print(known.images.shape, unseen.images.shape)
fewer, held = films_for(tiny, "phantom", folder, 12, 6, on="validation")
assert set(fewer.names) | set(held.names) == set(known.names) and len(held) > 0
assert not set(fewer.names) & set(held.names)

# %% [markdown]
# ## 3 · One run, and many
#
# A sweep is many runs, and somebody will interrupt it. So a finished run is one file, `result.json`, written in one go: settings, and the Dice of every film by every way to segment. The sweep makes what is missing; training resumes from its checkpoints (page [10](10_training.ipynb)). A result of other settings or films is refused.

# %%
#| export
@dataclass
class Run:
    "What one training run gave."

    row: str
    seed: int  # of the sweep
    key: str  # of settings and films
    settings: dict[str, Any]
    names: list[str]  # of the N test films
    dice: dict[str, list[float]]  # way to segment: N scores
    parameters: int
    about: dict[str, Any] = field(default_factory=dict)  # seconds, versions, device

    def __str__(self) -> str:
        means = ", ".join(f"{way} {np.mean(self.dice[way]):.3f}" for way in main_ways(self))
        return f"{self.row}, seed {self.seed}: {means}"


def main_ways(run: Run) -> list[str]:
    "The prior alone, one step and one sample, most steps and their mean."
    ways = list(run.dice)
    return list(dict.fromkeys([ways[0], ways[1], ways[-1]]))


# %%
#| export
IGNORED = ("profile", "log_every", "checkpoint_every", "keep_checkpoints", "validate_every",
           "val_images", "stream")  # do not change what a run gives


def run_key(
    settings: Settings,
    *films: Packed,  # on the CPU
) -> str:
    "Tells runs apart: the settings that matter, and every pixel."
    facts = {k: v for k, v in settings.to_dict().items() if k not in IGNORED}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for pixels in (x for packed in films for x in (packed.images, packed.masks)):
        digest.update(pixels.numpy().tobytes())
    return digest.hexdigest()


# %%
#| export
def load_run(
    path: Path,  # result.json
    settings: Settings | None = None,  # what it should be of; None: whatever it is
    key: str = "",
) -> Run:
    "A finished run; VerdiffError if it is damaged or another one."
    try:
        run = Run(**json.loads(path.read_text(encoding="utf-8")))
        theirs = dict(run.settings)
    except (ValueError, TypeError):
        raise VerdiffError(f"{path}: damaged; remove it, the same command makes it again") from None
    if settings is None or run.key == key:
        return run
    differ = [f"{k} (there {theirs.get(k)!r}, here {v!r})" for k, v in settings.to_dict().items()
              if k not in IGNORED and theirs.get(k) != v]
    raise VerdiffError(f"{path} belongs to a sweep with other {', '.join(differ) or 'images'}; use "
                       "another --out, or start over with --fresh")


# %%
rows = [row_settings(ROWS[name], 35, overrides=TINY) for name in ("both", "nsa")]
keys = [run_key(row, known, unseen) for row in rows]
(folder / "result.json").write_text('{"row": "both"')
try:
    load_run(folder / "result.json")
except VerdiffError as error:
    print(str(error).replace(str(folder), "runs/ablation/both-35"))
assert keys[0] != keys[1] and keys[0] == run_key(tiny, known, unseen) != run_key(tiny, known, known)

# %% [markdown]
# Training and scoring are those of pages 10 and [12](12_segment.ipynb), with the averaged weights of the last step: no best checkpoint is chosen.

# %%
#| export
def run_one(
    row: str,  # its name
    seed: int,  # of the sweep
    settings: Settings,
    films: tuple[Packed, Packed],  # as `films_for` gives them
    out: Path,  # folder of this run
    fresh: bool = False,  # start over
    progress: bool = True,  # show bars
) -> Run:
    "Train, score, leave result.json; a finished run is only read."
    from verdiff.training import train

    path, key = out / "result.json", run_key(settings, *films)
    if path.exists() and not fresh:
        return load_run(path, settings, key)
    path.unlink(missing_ok=True)
    model = train(settings, films[0], None, out, resume=not fresh, progress=progress)
    steps = sorted({1, settings.sample_steps})
    result = evaluate(model, films[1], steps, settings.ensemble, seed=0, progress=progress,
                      sampler=settings.sampler)
    about = json.loads((out / "run.json").read_text(encoding="utf-8"))
    about = {k: about.get(k) for k in ("seconds", "device", "torch", "verdiff", "commit")}
    run = Run(row, seed, key, settings.to_dict(), result.names,
              {s.label: s.dice.tolist() for s in result.scores}, model.num_parameters(), about)
    write_json(path, asdict(run))
    return run


# %%
first = run_one("both", 35, tiny, (known, unseen), folder / "one", progress=False)
print(first, first.about)
assert run_one("both", 35, tiny, (known, unseen), folder / "one").dice == first.dice

# %% [markdown]
# The sweep goes seed by seed, so that an interrupted one is complete for its first seeds. What can be refused is refused before the first step.

# %%
#| export
def sweep(
    data: str | Path = "phantom",  # zip or folder, or the word "phantom"
    rows: Mapping[str, tuple[str, ...]] = ROWS,
    seeds: Sequence[int] = (35, 36, 37),
    out: str | Path = "runs/ablation",
    profile: str = "ablation",
    overrides: Sequence[str] = (),  # "key=value" for all rows
    n_training: int = 96,  # phantoms
    n_test: int = 24,
    fresh: bool = False,  # start over
    progress: bool = True,  # show bars
    on: str = "test",  # where to score: "test", or "validation" to choose by
) -> list[Run]:
    """Every row with every seed, each in OUT/ROW-SEED; runs that are finished are read.

    Several processes may share a sweep, each with its own seeds; the same call with all seeds
    then reads them. KeyboardInterrupt passes, VerdiffError says what cannot be.
    """
    plan = [(row, seed, row_settings(words, seed, profile, overrides))
            for seed in dict.fromkeys(seeds) for row, words in rows.items()]
    if len({(s.sample_steps, s.ensemble) for *_, s in plan}) > 1:
        raise VerdiffError("the rows differ in sample_steps or ensemble, so they share no column to be "
                           "compared in; set these for all rows, with --set")
    for *_, s in plan:
        check_shape(s.size, s.eval_size, s.fit)
    out, films, runs = Path(out), {}, []
    for row, seed, settings in plan:
        canvas = settings.fit, settings.size, settings.eval_size
        if canvas not in films:
            films[canvas] = films_for(settings, data, out / "films", n_training, n_test, on)
        own = out / f"{row}-{seed}"
        done = " (was there)" if (own / "result.json").exists() and not fresh else ""
        runs.append(run_one(row, seed, settings, films[canvas], own, fresh, progress))
        print(f"[{len(runs)}/{len(plan)}] {runs[-1]}{done}", flush=True)
    return runs


# %% [markdown]
# Two rows, two seeds, a few thousand parameters. We interrupt the third run (a `KeyboardInterrupt` from the 93rd call of the loss), and start again:

# %%
import verdiff.training as training

# %%
calls, original = [], training.training_loss


def interrupted(*args, **kw):
    calls.append(1)
    if len(calls) == 93:
        raise KeyboardInterrupt
    return original(*args, **kw)


small = dict(rows=choose(["both", "neither"]), seeds=(35, 36), overrides=TINY,
             n_training=12, n_test=6, progress=False)
training.training_loss = interrupted
try:
    with redirect_stderr(sys.stdout):
        sweep(out=folder / "small", **small)
except KeyboardInterrupt:
    left = (folder / "small").glob("*/result.json")
    print("interrupted; finished are", sorted(path.parent.name for path in left))
training.training_loss = original

# %%
runs = sweep(out=folder / "small", **small)
assert len(runs) == 4 and runs[0].dice == first.dice  # the very numbers of the run alone

# %% [markdown]
# Every dot is a film. Look how far the dots of *one* row move with the seed.

# %%
way = main_ways(runs[0])[-1]
fig, axis = plt.subplots(figsize=(5, 2.4), layout="constrained")
for k, run in enumerate(runs):
    colour = "tab:blue" if run.row == "both" else "tab:orange"
    axis.plot(run.dice[way], [k] * len(run.names), "o", ms=4, alpha=0.6, color=colour)
    axis.plot(np.mean(run.dice[way]), k, "|", ms=16, color="k")
axis.set_yticks(range(4), [f"{r.row}, seed {r.seed}" for r in runs])
axis.set(xlabel=f"Dice: {way}")
axis.invert_yaxis()

# %% [markdown]
# ## 4 · The naive ablation: one run a row
#
# Now the recorded sweep. One command runs and resumes it:
#
# ```sh
# verdiff ablate --data phantom --profile ablation --seeds 35,36,37 --out runs/ablation
# ```
#
# Steps, widths, films and rows were fixed before any result was seen, and all rows are shown. Table 2's four first:

# %%
#| slow
OUT = Path("runs/ablation")
with redirect_stdout(io.StringIO()):  # a line a run
    table_2 = sweep("phantom", choose(TABLE_2_ROWS), out=OUT, progress=False)
for r in table_2:
    print(f"{r}; {r.about['seconds']:.0f} s")

# %% [markdown]
# The paper prints one number a row. Do the same, seed by seed.

# %%
#| slow
ways, seeds = main_ways(table_2[0]), sorted({r.seed for r in table_2})
mean_of = {(r.row, r.seed, w): np.mean(r.dice[w]) for r in table_2 for w in ways}
order = {(s, w): sorted(TABLE_2_ROWS, key=lambda row: -mean_of[row, s, w])
         for w in ways for s in seeds}
for w in ways:
    print(w, *(f"  seed {s}: {' > '.join(order[s, w])}" for s in seeds), sep="\n")

# %%
#| slow
fig, axes = plt.subplots(1, 3, figsize=(8, 2.4), layout="constrained", sharey=True)
for axis, w in zip(axes, ways):
    for row, colour in zip(TABLE_2_ROWS, ("tab:grey", "tab:orange", "tab:green", "tab:blue")):
        places = [1 + order[s, w].index(row) for s in seeds]
        axis.plot(range(3), places, "o-", color=colour, lw=2)
        axis.text(2.1, places[-1], row, color=colour, fontsize=8, va="center")
    axis.set(xlim=(-0.3, 2.8), xlabel="seed", ylim=(4.4, 0.6), yticks=[1, 2, 3, 4])
    axis.set_xticks(range(3), seeds)
    axis.set_title(w, fontsize=9)
axes[0].set_ylabel("place")

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
    from verdiff.metrics import bootstrap_interval

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
    runs: Sequence[Run],
    row: str,
    way: str,  # of segmenting
) -> np.ndarray:  # (S, N): Dice by seed, in rising order, and film
    "All scores of a row."
    mine = sorted((r for r in runs if r.row == row), key=lambda r: r.seed)
    return np.array([r.dice[way] for r in mine], dtype=np.float64)


# %%
#| export
def effects(
    runs: Sequence[Run],  # of one sweep
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
    runs: Sequence[Run],
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
    runs: Sequence[Run],
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
    runs: Sequence[Run],
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
from scipy.stats import t as student

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

# %% [markdown]
# ### How to read all this
#
# * **What an interval allows.** A thin line on one side of zero says: with this budget, at this size, on films like these, the row differs from `both` in the mean over seeds, unless this is one of the intervals that miss, as for `again`. Longer training or other images may say otherwise.
# * **What it does not allow.** *Open* is not *equal*. An effect as large as the far end of the thin line may hide in it.
# * **Some losses are arithmetic, not chance.** For `epsilon` one step from pure noise (with $y_T=x_T-s_Tf$) means $\hat x_0=(y_T-s_T\hat\epsilon)/\sqrt{\bar\alpha_T}$, and the root is tiny: every error of the network is multiplied a hundredfold and more, then clipped. Many steps mend that in part, no seed does.
# * **Beside the paper, fairly.** With other images, far fewer pixels, minutes instead of hours and a mask predicted instead of noise, and a baseline that keeps prior and shift, a printed gain inside our interval is not confirmed, one outside is not refuted. But a table of single runs cannot tell a module from a seed (section 4): nobody knows whether the paper's gains of two to five points are the modules' or the seed's.
#
# ## 8 · From the command line
#
# `verdiff ablate` is the sweep, the table and the files; a row of your own is one word of it.

# %%
#| export
def parse_row(
    text: str,  # "NAME: key=value key=value"
) -> tuple[str, tuple[str, ...]]:
    "A row as the command line gives it; VerdiffError where it is none."
    name, _, words = (part.strip() for part in text.partition(":"))
    row = tuple(words.split())
    if not row or not re.fullmatch(r"[\w.-]+", name) or not all("=" in word for word in row):
        raise VerdiffError(f"--add {text!r}: write it as 'NAME: key=value key=value', with a name "
                           "of letters, digits and dashes")
    return name, row


def seed_list(text: str) -> list[int]:
    "Turn 35,36,37 into numbers, for argparse."
    return [natural(word.strip()) for word in text.split(",")]


# %%
print(parse_row("wide: channels=12,24,48 max_steps=400"), seed_list("35,36,37"))

# %%
#| export
def ablate_options(parser: argparse.ArgumentParser) -> None:
    "Words of `verdiff ablate`."
    add = parser.add_argument
    add("--data", default="phantom", metavar="PATH", help="as for train (default: phantom)")
    settings_options(parser, "ablation")
    add("--rows", metavar="LIST", help=f"default: all of {','.join(ROWS)}")
    add("--add", action="append", default=[], metavar="ROW",
        help="one more row, 'NAME: key=value key=value'; may be repeated")
    add("--reference", metavar="ROW", help="row to compare with (default: both, or the first row)")
    add("--seeds", type=seed_list, default=[35, 36, 37], metavar="LIST", help="default: 35,36,37")
    add("--out", default="runs/ablation", metavar="DIR", help="default: runs/ablation")
    add("--on", choices=("test", "validation"), default="test",
        help="films to score: test, or a part of the training films to choose by (default: test)")
    phantom_options(parser, 96, 24)
    add("--fresh", action="store_true", help="start over instead of resuming")


# %%
#| export
def run_ablate(args: argparse.Namespace) -> int:
    "The command `verdiff ablate`."
    more = dict(parse_row(text) for text in args.add)
    load_settings(args.profile, args.set)
    for name, row in more.items():
        try:
            row_settings(row, 0, args.profile, args.set)
        except VerdiffError as error:  # not of --set, then
            raise VerdiffError(f"--add {name}: {str(error).removeprefix('--set ')}") from None
    names = [name.strip() for name in args.rows.split(",")] if args.rows else list(ROWS)
    rows = choose([*names, *more], {**ROWS, **more})
    reference = args.reference or ("both" if "both" in rows else next(iter(rows)))
    choose([reference], rows)
    out = output_folder(args.out)
    runs = sweep(args.data, rows, args.seeds, out, args.profile, args.set,
                 args.training, args.test, args.fresh, on=args.on)
    print(format_table(runs, reference))
    print("written:", *save_tables(runs, out, reference))
    return 0


# %% [markdown]
# The two rows of section 3 as one types them, and a new one. One seed gives no interval.

# %%
parser = argparse.ArgumentParser()
ablate_options(parser)
words = "--rows both,neither --seeds 35 --training 12 --test 6".split()
words += ["--add", "hard: nsa_choice=hard", "--out", str(folder / "small")]
words += [word for key in TINY for word in ("--set", key)]
with redirect_stdout(io.StringIO()) as said:
    assert run_ablate(parser.parse_args(words)) == 0
print(said.getvalue().replace(str(folder), "..."))

# %% [markdown]
# ## 9 · The radiographs
#
# Phantoms are not patients. So six of the rows again, on the public X-ray set without twins; rows, seeds and profile were fixed before any result was seen.
#
# ```sh
# verdiff ablate --data scoliosis-xray-single-view.zip --rows neither,msfm,nsa,both,no-shift,again --out runs/ablation-xray
# ```

# %%
#| slow
six = choose([*TABLE_2_ROWS, "no-shift", "again"])
with redirect_stdout(io.StringIO()):
    patients = sweep(XRAY, six, out="runs/ablation-xray", progress=False)
print(format_table(patients))

# %%
#| slow
forest_plot(patients, limit=0.12, published=paper)

# %%
#| slow
for e in effects(patients, ways[-1], reference="neither"):
    print(f"{e.row:9s} minus neither, {ways[-1]}: {e.text('+')} {e.verdict}, "
          f"seed by seed {np.round(e.by_seed, 3)}")
looks = 3 * (len(six) - 1)
strict = [e for w in ways for e in effects(patients, w, level=1 - 0.05 / looks)]
print(f"against both, {looks} looks, Bonferroni:",
      ", ".join(e.row for e in strict if e.verdict != "open") or "nothing is decided")

# %% [markdown]
# On real films the row with neither module falls behind `both` at ten steps, in every seed, as in Table 2. It is the only verdict in fifteen looks, its interval just misses zero, the stricter reading drops it, and one step shows nothing of it. The phantoms had singled out other rows. And the ten steps of every row stay below that row's own prior.
#
# This was a rehearsal, as small and short as on the phantoms. The experiment, not run yet, needs a GPU: ten rows at the size of the profile `gpu`, with fewer steps, in 30 runs.

# %%
#| cuda
xray = sweep(XRAY, ROWS, out="runs/ablation-xray-gpu", profile="gpu",
             overrides=["max_steps=4000", "warmup_steps=200", "checkpoint_every=500"])
print(torch.cuda.get_device_name(), format_table(xray), sep="\n")

# %%
#| cuda
forest_plot(xray, limit=0.05, published=paper)

# %% [markdown]
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | data of Table 2 | MR, not public | phantoms of three shapes, then the X-ray set | anyone can repeat it |
# | rows | 4 | 10 | other choices matter too; `again` shows chance |
# | runs a row | one, as far as it says | 3 seeds | single runs rank the seeds too |
# | interval | none | over seeds and films, paired | without one no difference can be judged |
# | baseline | "DDPM" | neither module, but prior and shift | one thing changes at a time |
# | budget | not said | equal steps; parameters printed, seconds kept | seconds depend on the machine |
# | selection | not said | averaged weights of the last step | a best checkpoint would be a second choice |
#
# ## Exercises
#
# **1 · Predict.** Two rows are scored on 24 films, with *one* seed each. The bootstrap interval of their difference is [0.010, 0.020]. What may you say about the two *methods*? What does `crossed_interval` say?
#
# <details><summary>Answer</summary>
#
# Nothing about the methods: only these two *networks* differ on films like these. With one seed the interval is infinite.
#
# </details>

# %%
one = rng.normal(0.015, 0.012, (1, 24))
print(np.round(film_interval(one), 3), crossed_interval(one))
assert film_interval(one)[0] > 0 and np.isinf(crossed_interval(one)).all()

# %% [markdown]
# **2 · Change.** Add a row without the prior's soft Dice to the tiny sweep, in one line. What is its difference to `both`?
#
# <details><summary>Answer</summary>
#
# `{"no-dice": ("dice_weight=0",)}` beside the others. After so few steps the prior is much worse without it.
#
# </details>

# %%
rows = choose(["both"]) | {"no-dice": ("dice_weight=0",)}
more = sweep(out=folder / "small", **small | {"rows": rows})
effect, = effects(more, main_ways(more[0])[0])
print(effect.row, f"{effect.mean:+.3f}", effect.both, effect.verdict)
assert effect.row == "no-dice" and len(effect.by_seed) == 2

# %% [markdown]
# **3 · Implement.** *Interaction*: is the gain of both modules the sum of the single gains? Write it as one contrast per seed and film, $d=(\text{both}-\text{neither})-(\text{msfm}-\text{neither})-(\text{nsa}-\text{neither})$, with its interval. What do the paper's four numbers give?
#
# <details><summary>Answer</summary>
#
# `both - msfm - nsa + neither`, then `crossed_interval`. The paper's two gains add up but for 0.31 points, whose chance is unknown; the cell's made-up scores have 0.05.
#
# </details>

# %%
def interaction(both, msfm, nsa, neither):  # each (S, N)
    d = both - msfm - nsa + neither
    return d.mean(), crossed_interval(d)


level = rng.normal(0.8, 0.05, (3, 24))
made = [level + gain + rng.normal(0, 0.005, (3, 24)) for gain in (0.10, 0.03, 0.02, 0.0)]
mean, (low, high) = interaction(*made)
theirs = sum(sign * TABLE_2[key][0] for key, sign in zip(
    ((True, True), (True, False), (False, True), (False, False)), (1, -1, -1, 1)))
print(f"made up: {mean:.3f} [{low:.3f}, {high:.3f}]; the paper's: {theirs:+.2f} points")
assert low < 0.05 < high and 0 < theirs < 0.5

# %% [markdown]
# Next: [15 · Real radiographs](15_xray.ipynb), one network and 128 films.

# %%
#| hide
shutil.rmtree(folder)
