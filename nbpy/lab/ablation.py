# %% [markdown]
# # Ablation
# > Take one part out, train again, and again with other random numbers

# %% [markdown]
# What are MSFM, NSA and the shift worth? The paper's Table 2 answers with one number a row. Here every row was trained three times, and the interval knows that other seeds *and* other images would give other numbers. **On radiographs one of fifteen differences is decided, barely: without both modules, ten steps lose three points. One step shows nothing of it, and leaving out the shift decides nothing either.** First both tables, then what was done, then the code ([![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/lab/ablation.ipynb)). The recorded runs, thirty on phantoms and eighteen on radiographs, took less than an hour of one CPU core, the rest half a minute.

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().run_line_magic(  # noqa: F821
        "pip", "install -q 'verdiff[notebooks] @ git+https://github.com/verdiff/verdiff'")

# %%
#| default_exp lab.ablation

# %%
#| code-fold: true
import argparse
import io
import shutil
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats
from scipy.stats import t as student

import verdiff
from verdiff.cli import ablate_options, run_ablate, seed_list
from verdiff.files import VerdiffError
from verdiff.io.download import find_xray
from verdiff.lab.ablation import ROWS, TABLE_2_ROWS, choose, main_ways, sweep
from verdiff.lab.tables import effects, forest_plot, format_table
from verdiff.metrics import TABLE_2, dice
from verdiff.networks.config import VerdiffConfig
from verdiff.networks.model import VerdiffNet
from verdiff.training.loss import training_loss

# %%
#| code-fold: true
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)
folder = Path(tempfile.mkdtemp())
ROOT = Path(verdiff.__file__).resolve().parent.parent  # runs/ lies there, in a clone
XRAY = find_xray()


def printed(row):  # Dice of the paper's Table 2, whose keys are (MSFM, NSA)
    return TABLE_2[row in ("msfm", "both"), row in ("nsa", "both")][0] / 100


paper = {row: printed(row) - printed("both") for row in TABLE_2_ROWS[:3]}

# %% [markdown]
# ## On radiographs
#
# Recorded run: one CPU core, 2026-11-25, recorded by commit 60f3519, seeds 35 to 37; trained and sampled at 96×32 pixels for 200 steps, scored at 288×96 on the 112 test images without a twin. (Where a recorded output says *film*, the code now says *image*.)

# %%
#| slow
#| code-fold: true
six = choose([*TABLE_2_ROWS, "no-shift", "again"])
with redirect_stdout(io.StringIO()):
    patients = sweep(XRAY, six, out=ROOT / "runs/ablation-xray", progress=False)
print(format_table(patients))

# %%
#| slow
#| code-fold: true
#| fig-alt: "Three panels of differences in Dice to the row with both modules: prior alone, one step, ten steps. All intervals cross zero but one: at ten steps the row with neither module lies left of it. Red diamonds, the paper's differences, lie at -0.02 to -0.05."
forest_plot(patients, limit=0.12, published=paper)

# %% [markdown]
# A thick line says *other images*, the thin one *other seeds and images*; small dots are seeds. A thin line across zero decides nothing. Red diamonds are the differences that the paper prints for its MR images (Table 2, against its full model), one number a row, so without an interval.
#
# The row with neither module falls behind `both` at ten steps, in every seed, as in Table 2. It is the only verdict in fifteen looks, its interval just misses zero, the stricter reading below drops it, and one step shows nothing of it. And the ten steps of every row stay below that row's own prior.
#
# This was a rehearsal. The experiment, ten rows at the size of the profile `gpu`, waits for a GPU.
#
# ## On phantoms
#
# Recorded run: one CPU core, 2026-11-25, recorded by commit ef0cf4d, seeds 35 to 37; the same sizes and steps, scored on 24 phantoms of three shapes. Each line is a run; the paper prints one such number a row.

# %%
#| slow
#| code-fold: true
OUT = ROOT / "runs/ablation"
with redirect_stdout(io.StringIO()):  # a line a run
    table_2 = sweep("phantom", choose(TABLE_2_ROWS), out=OUT, progress=False)
for r in table_2:
    print(f"{r}; {r.about['seconds']:.0f} s")

# %%
#| slow
#| code-fold: true
silent_rows = {name: row for name, row in ROWS.items() if name not in TABLE_2_ROWS}
with redirect_stdout(io.StringIO()):
    silent = sweep("phantom", silent_rows, out=OUT, progress=False)
everything = table_2 + silent
print(format_table(everything))

# %%
#| slow
#| code-fold: true
#| fig-alt: "Three panels of differences in Dice to the row with both modules, nine rows each. Red, left of zero: at one step the row epsilon, far beyond the axis; at ten steps msfm and no-shift. Green, right of zero: the row again, at one and at ten steps. All others cross zero."
forest_plot(everything, limit=0.12, published=paper)

# %% [markdown]
# `again` changes nothing but the random numbers.
#
# ### One run a row ranks the seeds
#
# The paper prints one number a row. Do the same, seed by seed:

# %%
#| slow
#| code-fold: true
ways, seeds = main_ways(table_2[0]), sorted({r.seed for r in table_2})
mean_of = {(r.row, r.seed, w): np.mean(r.dice[w]) for r in table_2 for w in ways}
order = {(s, w): sorted(TABLE_2_ROWS, key=lambda row: -mean_of[row, s, w])
         for w in ways for s in seeds}
for w in ways:
    print(w, *(f"  seed {s}: {' > '.join(order[s, w])}" for s in seeds), sep="\n")

# %%
#| slow
#| code-fold: true
#| fig-alt: "Three panels of the places 1 to 4 of the four rows of Table 2 under three seeds. Lines cross in each panel; neither and nsa take turns at the top, both is third or fourth."
fig, axes = plt.subplots(1, 3, figsize=(8, 2.4), layout="constrained", sharey=True)
for axis, w in zip(axes, ways):
    for row, colour in zip(TABLE_2_ROWS, ("tab:grey", "tab:orange", "tab:green", "tab:blue")):
        places = [1 + order[s, w].index(row) for s in seeds]
        axis.plot(range(3), places, "o-", color=colour, lw=2)
        axis.text(2.1, places[-1], row, color=colour, fontsize=8, va="center")
    axis.set(xlim=(-0.3, 2.8), xlabel="seed", ylim=(4.4, 0.6), yticks=[1, 2, 3, 4])
    axis.set_xticks(range(3), seeds)
    axis.set_title(w, fontsize=9)
axes[0].set_ylabel("place");

# %% [markdown]
# Each line could have been published, and within a way to segment they differ though only the seed has changed. Not in all: `neither` is above `both` in eight of nine lines, the reverse of Table 2. One run a row ranks four *networks*, each a random draw from its *method*.
#
# ### Many looks
#
# At 95 % one honest interval in twenty misses: among the 27 in the picture, one or two, and rather together, as all subtract the same three runs of `both`. (Four rows leave the prior as it is.) A stricter reading (Bonferroni) divides the 5 % by the number of looks. Recorded run: one CPU core, 2026-11-25, commit ef0cf4d.

# %%
#| slow
#| code-fold: true
looks = 3 * (len(ROWS) - 1)
for level in (0.95, 1 - 0.05 / looks):
    print(f"level {level:.2%}")
    for w in ways:
        decided = [e for e in effects(everything, w, level=level) if e.verdict != "open"]
        print(f"  {w}:", ", ".join(f"{e.row} {e.verdict}" for e in decided) or "nothing")

# %%
#| slow
#| code-fold: true
for w in ways:
    again = effects(table_2 + silent, w)[-1]
    print(f"{again.row}, {w}: {again.text('+')}, seed by seed", np.round(again.by_seed, 3))

# %% [markdown]
# `again` is called better twice, though it differs from `both` in nothing. (It shares no random numbers with `both`, so it moves further than a paired row would.) `msfm` and `no-shift` are worse at 95 % only. The stricter reading keeps only `epsilon`.
#
# ### Beside Table 2
#
# The paper tells its table as gains over the row with neither module. So do we, for most steps and the mean of samples, the nearest to what it does. Recorded run: one CPU core, 2026-11-25, commits ef0cf4d (phantoms) and 60f3519 (radiographs).

# %%
#| slow
#| code-fold: true
gains = effects(table_2, ways[-1], reference="neither")
for e in gains:
    theirs = printed(e.row) - printed("neither")
    where = "inside" if e.both[0] <= theirs <= e.both[1] else "outside"
    print(f"{e.row:5s} ours {e.text('+')} {e.verdict:6s} the paper's {theirs:+.4f}, {where} ours")
need = max(np.std(e.by_seed, ddof=1) for e in gains)
print(f"from seed to seed these gains have a standard deviation of up to {need:.3f}")

# %%
#| slow
#| code-fold: true
for e in effects(patients, ways[-1], reference="neither"):
    print(f"{e.row:9s} minus neither, {ways[-1]}: {e.text('+')} {e.verdict}, "
          f"seed by seed {np.round(e.by_seed, 3)}")
looks = 3 * (len(six) - 1)
strict = [e for w in ways for e in effects(patients, w, level=1 - 0.05 / looks)]
print(f"against both, {looks} looks, Bonferroni:",
      ", ".join(e.row for e in strict if e.verdict != "open") or "nothing is decided")

# %% [markdown]
# How many seeds make the interval ± one point with that restlessness? (A true difference of one point is then found half of the time.) The half-width of the interval for $S$ seeds, images left aside, is $t_{S-1}\,\sigma/\sqrt S$:

# %%
#| slow
#| code-fold: true
#| fig-alt: "Half of the interval against the number of seeds, on a logarithmic axis: from 0.24 at two seeds and 0.07 at three, marked red, down to 0.01 at thirty."
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
# ## How to read all this
#
# * **What an interval allows.** A thin line on one side of zero says: with this budget, at this size, on images like these, the row differs from `both` in the mean over seeds, unless this is one of the intervals that miss, as for `again`. Longer training or other images may say otherwise.
# * **What it does not allow.** *Open* is not *equal*. An effect as large as the far end of the thin line may hide in it.
# * **Some losses are arithmetic, not chance.** For `epsilon` one step from pure noise (with $y_T=x_T-s_Tf$) means $\hat x_0=(y_T-s_T\hat\epsilon)/\sqrt{\bar\alpha_T}$, and the root is tiny: every error of the network is multiplied a hundredfold and more, then clipped. Many steps mend that in part, no seed does.
# * **Beside the paper, fairly.** With other images, far fewer pixels, minutes instead of hours and a mask predicted instead of noise, and a baseline that keeps prior and shift, a printed gain inside our interval is not confirmed, one outside is not refuted. But a table of single runs cannot tell a module from a seed: nobody knows whether the paper's gains of two to five points are the modules' or the seed's.
#
# ### The experiment at full size
#
# Not run yet: it needs a GPU. Ten rows at the size of the profile `gpu`, with fewer steps, in 30 runs.

# %%
#| cuda
#| code-fold: true
xray = sweep(XRAY, ROWS, out=ROOT / "runs/ablation-xray-gpu", profile="gpu",
             overrides=["max_steps=4000", "warmup_steps=200", "checkpoint_every=500"])
print(torch.cuda.get_device_name(), format_table(xray), sep="\n")

# %%
#| cuda
#| code-fold: true
forest_plot(xray, limit=0.05, published=paper)

# %% [markdown]
# ## What was done
#
# ```sh
# verdiff ablate --data phantom --seeds 35,36,37 --out runs/ablation
# verdiff ablate --data scoliosis-xray-single-view.zip --rows neither,msfm,nsa,both,no-shift,again --out runs/ablation-xray
# ```
#
# One command runs and resumes a sweep. Steps, widths, images, rows and seeds were fixed before any result was seen, and all rows are shown.
#
# | | paper | ours | why |
# |---|---|---|---|
# | data of Table 2 | MR, not public | phantoms of three shapes, then the X-ray set | anyone can repeat it |
# | rows | 4 | 10 | other choices matter too; `again` shows chance |
# | runs a row | one, as far as it says | 3 seeds | single runs rank the seeds too |
# | interval | none | over seeds and images, paired ([tables](tables.ipynb)) | without one no difference can be judged |
# | baseline | "DDPM" | neither module, but prior and shift | one thing changes at a time |
# | budget | not said | equal steps; parameters printed, seconds kept | seconds depend on the machine |
# | selection | not said | averaged weights of the last step | a best checkpoint would be a second choice |
#
# ## Rows
#
# An ablation asks what a part is worth. The answer is a difference between two networks trained alike in all else: images, steps, learning rate. So a row is a name and the settings in which it differs, such as MSFM (page [09](../09_msfm.ipynb)) and NSA ([10](../10_nsa.ipynb)).

# %%
#| exports
#| code-fold: true
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
from verdiff.data.datasets import open_dataset, patients
from verdiff.data.packed import Packed, pack
from verdiff.data.pairs import MaskFolder
from verdiff.data.phantom_set import PhantomSet
from verdiff.data.splits import clean_test_indices, grouped_split
from verdiff.data.xray import XRaySet
from verdiff.files import VerdiffError, read_json, write_json
from verdiff.segmentation.evaluation import check_shape, evaluate
from verdiff.settings import LATER, Settings, load_settings
from verdiff.training.run import train


# %%
#| exports
#| code-fold: true
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
#| exports
#| code-fold: true
def choose(
    names: Sequence[str],
    registry: Mapping[str, tuple[str, ...]] = ROWS,
) -> dict[str, tuple[str, ...]]:  # name: settings that it changes
    "Some rows, in the order asked for; VerdiffError, with the nearest name, for an unknown one."
    for name in names:
        if name not in registry:
            near = get_close_matches(name, registry, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise VerdiffError(f"there is no row {name!r}; {hint}rows: {', '.join(registry)}")
    return {name: registry[name] for name in names}


# %%
#| code-fold: true
mine = choose(["both", "neither"]) | {"wide": ("channels=12,24,48",)}  # your own: one line
print(mine)
try:
    choose(["bothh"])
except VerdiffError as error:
    print(error)

# %% [markdown]
# `both` is the course's default, and every row is held against it. The row `again` changes *nothing* but the random numbers: it shows what chance alone can do. The profile `ablation` (small and short), the seed and the row's own words make a run:

# %%
#| exports
#| code-fold: true
def row_settings(
    row: tuple[str, ...],  # "key=value"; {seed} stands for the seed
    seed: int,
    profile: str = "ablation",
    overrides: Sequence[str] = (),  # "key=value" for all rows; the row's own words win
) -> Settings:
    "The numbers of one run; VerdiffError as of `load_settings`."
    words = [word.replace("{seed}", str(seed)) for word in row]
    return load_settings(profile, [*overrides, f"seed={seed}", *words])


# %%
#| code-fold: true
base = row_settings(ROWS["both"], 35)
print(f"{base.size}, channels {base.channels}, {base.max_steps} steps of {base.batch_size} images, "
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
#| code-fold: true
#| fig-alt: "Bars of the number of parameters a row: 90,000 for neither, a little more for msfm, 96,500 for nsa and 97,700 for both and the six other rows."
fig, axis = plt.subplots(figsize=(5, 2.4), layout="constrained")
colours = ["tab:blue" if name in TABLE_2_ROWS else "tab:grey" for name in sizes]
axis.barh(list(sizes), list(sizes.values()), color=colours)
axis.invert_yaxis()
axis.set(xlabel="parameters", xlim=(0.9 * min(sizes.values()), 1.01 * max(sizes.values())))
axis.locator_params(axis="x", nbins=4)
axis.set_title("how much smaller a row is (the axis does not start at 0)", fontsize=9)
assert sizes["neither"] < min(sizes["msfm"], sizes["nsa"]) and sizes["again"] == sizes["both"]

# %% [markdown]
# ## Images of three shapes
#
# Letterbox and squash (page [03](../03_xray_set.ipynb)) differ only where images differ in shape, and all phantoms so far are 3:1. So here they come in three shapes, as radiographs do.

# %%
#| exports
#| code-fold: true
PHANTOM_SHAPES = ((576, 160), (576, 192), (576, 256))  # (height, width)


class JoinedSet:
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
#| exports
#| code-fold: true
def open_sweep_data(
    data: str | Path,  # zip or folder, or the word "phantom"
    split: str,  # "training" or "test"
    size: tuple[int, int],  # (height, width) of the canvas
    fit: str,  # "letterbox" or "squash"
    n_training: int = 96,  # phantoms, a third of each shape
    n_test: int = 24,
) -> JoinedSet | XRaySet | MaskFolder:
    """The images of a sweep: phantoms of three shapes, or somebody's data.

    VerdiffError for fewer phantoms than shapes, or as of `open_dataset`.
    """
    if str(data) != "phantom":
        return open_dataset(data, split, size, fit)
    if min(n_training, n_test) < len(PHANTOM_SHAPES):
        raise VerdiffError(f"{n_training} phantoms to train on, {n_test} to test on: too few; "
                           f"they come in {len(PHANTOM_SHAPES)} shapes, take as many of both")
    parts = {}
    for k, shape in enumerate(PHANTOM_SHAPES):
        counts = [(n + k) // len(PHANTOM_SHAPES) for n in (n_training, n_test)]  # a third of each
        parts[f"{shape[0]}x{shape[1]}"] = PhantomSet(None, split, size, fit, *counts, k + 1, shape)
    return JoinedSet(parts)


# %%
#| code-fold: true
#| fig-alt: "Three phantoms of widening shape, each twice: letterboxed with black bars and its own proportions, and squashed to fill the canvas. The mask's outline is orange."
few = {fit: open_sweep_data("phantom", "test", (288, 96), fit, 6, 6)
       for fit in ("letterbox", "squash")}
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
#| code-fold: true
picture = torch.rand(2, 1, 60, 40, generator=torch.Generator().manual_seed(0)) > 0.6
stretched = picture.repeat_interleave(3, dim=-1)
assert torch.equal(dice(picture[:1], picture[1:]), dice(stretched[:1], stretched[1:]))

# %% [markdown]
# Radiographs with a twin in the training part are left out ([twins](twins.ipynb)). A table that is *reported* is scored on test images. For a table by which one *chooses*, a tenth of the training studies is held back instead (`on="validation"`).

# %%
#| exports
#| code-fold: true
def sweep_data(
    settings: Settings,
    data: str | Path,  # zip or folder, or the word "phantom"
    cache: Path,  # folder for the decoded images
    n_training: int = 96,  # phantoms
    n_test: int = 24,
    on: str = "test",  # where to score: "test" or "validation"
) -> tuple[Packed, Packed]:  # to train on, at the network's size; to score on, at eval_size
    """The images of one run: the whole training split, and the test images without a twin there.

    With `on="validation"` the test split is not touched: the training split is divided by study,
    as `train` divides it with the profile's seed, whatever the seed of the run. VerdiffError where
    nothing is held back, or as of `open_sweep_data`.
    """

    def packed(split: str, size: tuple[int, int]) -> Packed:
        images = open_sweep_data(data, split, size, settings.fit, n_training, n_test)
        cache.mkdir(parents=True, exist_ok=True)
        return pack(images, cache / f"{split}-{settings.fit}-{size[0]}x{size[1]}.npz")

    if on == "validation":
        known, large = packed("training", settings.size), packed("training", settings.eval_size)
        seed = load_settings(settings.profile).seed
        kept, held = grouped_split(patients(known), settings.val_fraction, seed)
        if not held:
            raise VerdiffError(f"{data}: nothing to validate on; it takes training images of two "
                               "studies or more, and a val_fraction above 0")
        return known.subset(kept), large.subset(held)
    test = packed("test", settings.eval_size)
    clean = clean_test_indices(test.names, strict=True)
    return packed("training", settings.size), test.subset(clean)


# %%
#| code-fold: true
TINY = ["height=48", "width=16", "eval_height=96", "eval_width=32", "channels=4,8", "max_steps=40",
        "batch_size=4", "checkpoint_every=10", "sample_steps=3", "ensemble=2"]
tiny = row_settings(ROWS["both"], 35, overrides=TINY)
known, unseen = sweep_data(tiny, "phantom", folder, 12, 6)
print(known.images.shape, unseen.images.shape)
fewer, held = sweep_data(tiny, "phantom", folder, 12, 6, on="validation")
assert set(fewer.names) | set(held.names) == set(known.names) and len(held) > 0
assert not set(fewer.names) & set(held.names)

# %% [markdown]
# ## One run, and many
#
# A sweep is many runs, and somebody will interrupt it. So a finished run is one file, `result.json`, written in one go: settings, and the Dice of every image by every way to segment. The sweep makes what is missing; training resumes from its checkpoints (page [13](../13_training.ipynb)). A result of other settings or images is refused.

# %%
#| exports
#| code-fold: true
@dataclass
class AblationRun:
    "What one training run gave."

    row: str
    seed: int  # of the sweep
    key: str  # of settings and images
    settings: dict[str, Any]
    names: list[str]  # of the N test images
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
#| exports
#| code-fold: true
NOT_COMPARED = ("profile", "log_every", "checkpoint_every", "keep_checkpoints", "validate_every",
                "val_images", "stream")  # do not change what a run gives


def run_key(
    settings: Settings,
    *data: Packed,  # on the CPU
) -> str:
    "Tells runs apart: SHA-256 of the settings that matter and of every pixel."
    facts = {k: v for k, v in settings.to_dict().items()
             if k not in NOT_COMPARED and (k not in LATER or v != LATER[k])}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for pixels in (x for packed in data for x in (packed.images, packed.masks)):
        digest.update(pixels.numpy().tobytes())
    return digest.hexdigest()


# %%
#| exports
#| code-fold: true
def load_run(
    path: Path,  # result.json
    settings: Settings | None = None,  # what it should be of; None: whatever it is
    key: str = "",
) -> AblationRun:
    "A finished run; VerdiffError if it is damaged or another one."
    try:
        run = AblationRun(**read_json(path))
        theirs = LATER | run.settings
    except (ValueError, TypeError):
        raise VerdiffError(f"{path}: damaged; remove it, the same command makes it again") from None
    if settings is None or run.key == key:
        return run
    differ = [f"{k} (there {theirs.get(k)!r}, here {v!r})" for k, v in settings.to_dict().items()
              if k not in NOT_COMPARED and theirs.get(k) != v]
    raise VerdiffError(f"{path} belongs to a sweep with other {', '.join(differ) or 'images'}; use "
                       "another --out, or start over with --fresh")


# %%
#| code-fold: true
rows = [row_settings(ROWS[name], 35, overrides=TINY) for name in ("both", "nsa")]
keys = [run_key(row, known, unseen) for row in rows]
(folder / "result.json").write_text('{"row": "both"')
try:
    load_run(folder / "result.json")
except VerdiffError as error:
    print(str(error).replace(str(folder), "runs/ablation/both-35"))
assert keys[0] != keys[1] and keys[0] == run_key(tiny, known, unseen) != run_key(tiny, known, known)

# %% [markdown]
# Training and scoring are those of pages [13](../13_training.ipynb) and [16](../16_segment.ipynb), with the averaged weights of the last step: no best checkpoint is chosen.

# %%
#| exports
#| code-fold: true
def run_one(
    row: str,  # its name
    seed: int,  # of the sweep
    settings: Settings,
    data: tuple[Packed, Packed],  # as `sweep_data` gives them
    out: Path,  # folder of this run
    fresh: bool = False,  # start over
    progress: bool = True,  # show bars
) -> AblationRun:
    """Train, score, leave result.json; a finished run is only read.

    KeyboardInterrupt after a save; VerdiffError as of `load_run` and `train`.
    """
    path, key = out / "result.json", run_key(settings, *data)
    if path.exists() and not fresh:
        return load_run(path, settings, key)
    path.unlink(missing_ok=True)
    model = train(settings, data[0], None, out, resume=not fresh, progress=progress)
    steps = sorted({1, settings.sample_steps})
    result = evaluate(model, data[1], steps, settings.ensemble, seed=0, progress=progress,
                      sampler=settings.sampler)
    about = json.loads((out / "run.json").read_text(encoding="utf-8"))
    about = {k: about.get(k) for k in ("seconds", "device", "torch", "verdiff", "commit")}
    dice = {s.label: s.dice.tolist() for s in result.scores}
    run = AblationRun(row, seed, key, settings.to_dict(), result.names, dice,
                      model.num_parameters(), about)
    write_json(path, asdict(run))
    return run


# %%
#| code-fold: true
first = run_one("both", 35, tiny, (known, unseen), folder / "one", progress=False)
print(first, first.about)
assert run_one("both", 35, tiny, (known, unseen), folder / "one").dice == first.dice

# %% [markdown]
# The sweep goes seed by seed, so that an interrupted one is complete for its first seeds. What can be refused is refused before the first step.

# %%
#| exports
#| code-fold: true
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
    then reads them. KeyboardInterrupt passes; VerdiffError where rows share no column, a setting,
    the data or a result does not fit.
    """
    plan = [(row, seed, row_settings(words, seed, profile, overrides))
            for seed in dict.fromkeys(seeds) for row, words in rows.items()]
    if len({(s.sample_steps, s.ensemble) for *_, s in plan}) > 1:
        raise VerdiffError("the rows differ in sample_steps or ensemble, so they share no column "
                           "to be compared in; set these for all rows, with --set")
    for *_, s in plan:
        check_shape(s.size, s.eval_size, s.fit)
    out, packed, runs = Path(out), {}, []
    for row, seed, settings in plan:
        canvas = settings.fit, settings.size, settings.eval_size
        if canvas not in packed:
            packed[canvas] = sweep_data(settings, data, out / "images", n_training, n_test, on)
        own = out / f"{row}-{seed}"
        done = " (was there)" if (own / "result.json").exists() and not fresh else ""
        runs.append(run_one(row, seed, settings, packed[canvas], own, fresh, progress))
        print(f"[{len(runs)}/{len(plan)}] {runs[-1]}{done}", flush=True)
    return runs


# %% [markdown]
# Two rows, two seeds, a few thousand parameters. We interrupt the third run (a `KeyboardInterrupt` from the 93rd call of the loss), and start again:

# %%
#| code-fold: true
calls = []


def interrupted(*args, **kw):
    calls.append(1)
    if len(calls) == 93:
        raise KeyboardInterrupt
    return training_loss(*args, **kw)


small = dict(rows=choose(["both", "neither"]), seeds=(35, 36), overrides=TINY,
             n_training=12, n_test=6, progress=False)
try:
    with patch("verdiff.training.loss.training_loss", interrupted), redirect_stderr(sys.stdout):
        sweep(out=folder / "small", **small)
except KeyboardInterrupt:
    left = (folder / "small").glob("*/result.json")
    print("interrupted; finished are", sorted(path.parent.name for path in left))

# %%
#| code-fold: true
runs = sweep(out=folder / "small", **small)
assert len(runs) == 4 and runs[0].dice == first.dice  # the very numbers of the run alone

# %% [markdown]
# Every dot is an image. Look how far the dots of *one* row move with the seed.

# %%
#| code-fold: true
#| fig-alt: "Dice of six phantoms for two rows and two seeds, one line each, with the mean as a black bar. The means of one row lie further apart between the seeds than the means of the two rows within a seed."
way = main_ways(runs[0])[-1]
fig, axis = plt.subplots(figsize=(5, 2.4), layout="constrained")
for k, run in enumerate(runs):
    colour = "tab:blue" if run.row == "both" else "tab:orange"
    axis.plot(run.dice[way], [k] * len(run.names), "o", ms=4, alpha=0.6, color=colour)
    axis.plot(np.mean(run.dice[way]), k, "|", ms=16, color="k")
axis.set_yticks(range(4), [f"{r.row}, seed {r.seed}" for r in runs])
axis.set(xlabel=f"Dice: {way}")
axis.invert_yaxis();

# %% [markdown]
# ## From the command line
#
# `verdiff ablate` is the sweep, the table and the files; a row of your own is one word of it.

# %%
#| exports
#| code-fold: true
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
#| code-fold: true
print(parse_row("wide: channels=12,24,48 max_steps=400"), seed_list("35,36,37"))

# %% [markdown]
# The two rows of above as one types them, and a new one. One seed gives no interval.

# %%
#| code-fold: true
parser = argparse.ArgumentParser()
ablate_options(parser)
words = "--rows both,neither --seeds 35 --training 12 --test 6".split()
words += ["--add", "hard: nsa_choice=hard", "--out", str(folder / "small")]
words += [word for key in TINY for word in ("--set", key)]
with redirect_stdout(io.StringIO()) as said:
    assert run_ablate(parser.parse_args(words)) == 0
print(said.getvalue().replace(str(folder), "..."))

# %%
#| hide
shutil.rmtree(folder)
