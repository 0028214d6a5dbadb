# %% [markdown]
# # Ablation
# > Take one part out, train again, and again with other random numbers

# %% [markdown]
# You will write the sweep behind the paper's Table 2 and five other choices, the paper's noise prediction among them, interrupt it, see a ranking depend on the seed, and build an interval that knows about films *and* seeds. **A cell without output has not been run yet; those marked `#| cuda` wait for a GPU.** The recorded runs, thirty on phantoms and eighteen on radiographs, took less than an hour of one CPU core at 96×32 pixels, the rest half a minute.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/lab/ablation.ipynb)

# %%
#| default_exp lab.ablation

# %%
#| export
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from verdiff.data.canvas import Placement
from verdiff.data.datasets import open_dataset
from verdiff.data.packed import Packed, pack
from verdiff.data.pairs import MaskFolder
from verdiff.data.phantom_set import PhantomSet
from verdiff.data.splits import clean_test_indices, grouped_split
from verdiff.data.xray import XRaySet
from verdiff.files import VerdiffError, write_json
from verdiff.segmentation.evaluation import check_shape, evaluate
from verdiff.settings import Settings, load_settings
from verdiff.training.run import train

# %%
import argparse
import io
import shutil
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout

import matplotlib.pyplot as plt
import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats

import verdiff.training as training
from verdiff.cli import ablate_options, run_ablate, seed_list
from verdiff.io.download import find_xray
from verdiff.lab.tables import (
    crossed_interval, effects, film_interval, forest_plot, format_table,
)
from verdiff.metrics import TABLE_2, dice
from verdiff.networks.config import VerdiffConfig
from verdiff.networks.model import VerdiffNet

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)
folder = Path(tempfile.mkdtemp())
XRAY = find_xray()

# %% [markdown]
# ## 1 · Rows
#
# An ablation asks what a part is worth. The answer is a difference between two networks trained alike in all else: films, steps, learning rate. So a row is a name and the settings in which it differs, such as MSFM (page [09](../09_msfm.ipynb)) and NSA ([10](../10_nsa.ipynb)):

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
# Letterbox and squash (page [03](../03_xray_set.ipynb)) differ only where films differ in shape, and all phantoms so far are 3:1. So here they come in three shapes, as radiographs do.

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
# Radiographs with a twin in the training part are left out (page 03). A table that is *reported* is scored on test films. For a table by which one *chooses*, a tenth of the training studies is held back instead (`on="validation"`).

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
# A sweep is many runs, and somebody will interrupt it. So a finished run is one file, `result.json`, written in one go: settings, and the Dice of every film by every way to segment. The sweep makes what is missing; training resumes from its checkpoints (page [13](../13_training.ipynb)). A result of other settings or films is refused.

# %%
#| export
@dataclass
class AblationRun:
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


def main_ways(run: AblationRun) -> list[str]:
    "The prior alone, one step and one sample, most steps and their mean."
    ways = list(run.dice)
    return list(dict.fromkeys([ways[0], ways[1], ways[-1]]))


# %%
#| export
NOT_COMPARED = ("profile", "log_every", "checkpoint_every", "keep_checkpoints", "validate_every",
           "val_images", "stream")  # do not change what a run gives


def run_key(
    settings: Settings,
    *films: Packed,  # on the CPU
) -> str:
    "Tells runs apart: the settings that matter, and every pixel."
    facts = {k: v for k, v in settings.to_dict().items() if k not in NOT_COMPARED}
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
) -> AblationRun:
    "A finished run; VerdiffError if it is damaged or another one."
    try:
        run = AblationRun(**json.loads(path.read_text(encoding="utf-8")))
        theirs = dict(run.settings)
    except (ValueError, TypeError):
        raise VerdiffError(f"{path}: damaged; remove it, the same command makes it again") from None
    if settings is None or run.key == key:
        return run
    differ = [f"{k} (there {theirs.get(k)!r}, here {v!r})" for k, v in settings.to_dict().items()
              if k not in NOT_COMPARED and theirs.get(k) != v]
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
# Training and scoring are those of pages 10 and [16](../16_segment.ipynb), with the averaged weights of the last step: no best checkpoint is chosen.

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
) -> AblationRun:
    "Train, score, leave result.json; a finished run is only read."

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
    run = AblationRun(row, seed, key, settings.to_dict(), result.names,
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
) -> list[AblationRun]:
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


# %%
print(parse_row("wide: channels=12,24,48 max_steps=400"), seed_list("35,36,37"))

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
# Next: [Real radiographs](xray.ipynb), one network and 128 films.

# %%
#| hide
shutil.rmtree(folder)
