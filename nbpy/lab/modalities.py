# %% [markdown]
# # X-ray, CT and MR
# > One network a modality, one for all, each tested on all three

# %% [markdown]
# The paper trains one network for each of its four data sets. Is that needed? Here four small networks are trained alike, on phantoms: one on radiographs, one on CT slices, one on T2 slices, one on all three; then each is tested on patients of every modality that none of them has seen. The whole page takes about three minutes of one CPU core; everything is undertrained, equally.
#
# **What comes out**: a network is good where it was trained and poor elsewhere; those of radiographs and CT find nothing in T2, where bone is not bright. One network for all, given the same number of steps, stays behind each specialist ([table](#each-on-each)). Phantoms show whether the machinery works and what a network takes for granted; what it would do in a hospital, [three real patients](#real-ct-and-mr) can only hint at.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/lab/modalities.ipynb).

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks,medical] @ git+https://github.com/verdiff/verdiff"')

# %%
#| code-fold: true
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.packed import Packed, pack
from verdiff.data.phantom_layouts import write_volume_set
from verdiff.data.phantom_set import PhantomSet
from verdiff.data.sagittal import SliceOptions
from verdiff.data.volume_layouts import find_cases, one_case
from verdiff.data.volumes import VolumeSlices
from verdiff.diffusion.sampling import sample
from verdiff.metrics import bootstrap_interval
from verdiff.segmentation.evaluation import evaluate
from verdiff.settings import load_settings
from verdiff.training.run import train

# %%
#| code-fold: true
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 82})
torch.set_num_threads(1)
folder = Path(tempfile.mkdtemp())
SIZE, SLICES = (96, 96), SliceOptions(slices=3, step=5)

# %% [markdown]
# ## Three sets of one size
# Eight patients to train on and four to test on, three slices of each; of radiographs, which are one picture a patient, 24 and 12. A canvas of 96×96 for all, letterboxed: a pixel is about 2.5 mm.

# %%
#| code-fold: true
for layout in ("verse20", "spider"):
    write_volume_set(folder / layout, layout, 8, 4, seed=100 * len(layout))


def volumes(layout, split):
    return VolumeSlices(
        folder / layout, split, SIZE, options=SLICES, progress=False)


def radiographs(split):
    return PhantomSet(size=SIZE, split=split, n_training=24, n_test=12)


# %%
#| code-fold: true
sets = {
    "X-ray": radiographs,
    "CT": lambda split: volumes("verse20", split),
    "MR": lambda split: volumes("spider", split),
}
data = {name: {s: make(s) for s in ("training", "test")}
        for name, make in sets.items()}
packed = {name: {s: pack(d, progress=False) for s, d in part.items()}
          for name, part in data.items()}
patients = {name: getattr(part["test"], "groups", part["test"].names)
            for name, part in data.items()}
for name, part in packed.items():
    print(
        f"{name:6s}{len(part['training']):4d} pictures to train on, "
        f"{len(part['test'])} to test on, "
        f"of {len(set(patients[name]))} patients"
    )
for name in ("CT", "MR"):
    assert not set(data[name]["training"].groups) & set(patients[name])

# %%
#| code-fold: true
#| fig-alt: "For each modality three test pictures with the outline of their vertebrae: frontal radiographs, sagittal CT slices, sagittal T2 slices."
fig, axes = plt.subplots(3, 4, figsize=(6.4, 4.9), layout="constrained")
for row, (name, part) in zip(axes, packed.items(), strict=True):
    for axis, k in zip(row, (0, 3, 6, 9), strict=True):
        axis.imshow(part["test"].images[k, 0], cmap="gray")
        axis.contour(part["test"].masks[k, 0], [0.5], colors="orange",
                     linewidths=0.6)
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(name)

# %% [markdown]
# ## Four networks
# The same settings for all, so the one for all three sees each modality a third as often.

# %%
#| code-fold: true
settings = load_settings("ablation", [
    "height=96", "width=96", "eval_height=96", "eval_width=96", "max_steps=60",
    "batch_size=4", "checkpoint_every=1000"])


def together(parts):
    "One training set of several."
    return Packed(
        torch.cat([p.images for p in parts]),
        torch.cat([p.masks for p in parts]),
        [f"{k}/{n}" for k, p in enumerate(parts) for n in p.names])


# %%
#| code-fold: true
training = {name: part["training"] for name, part in packed.items()}
training["all three"] = together(list(training.values()))
models = {
    name: train(settings, part, None,
                folder / f"run-{name}".replace(" ", "-"), progress=False)
    for name, part in training.items()
}

# %% [markdown]
# ## Each on each
# Slices of one patient resemble each other, so the intervals are over patients: mean of each patient's slices, then a bootstrap of patients. Four patients make them wide.


# %%
#| code-fold: true
def by_patient(scores, groups):
    "Mean score of each patient."
    return [np.mean([s for s, g in zip(scores, groups, strict=True) if g == p])
            for p in sorted(set(groups))]


def tested(model, part, groups):
    "Dice and IoU of the diffusion's one-step sample, by patient."
    score = evaluate(model, part, [1], 1, seed=0, progress=False).scores[-1]
    return by_patient(score.dice, groups), by_patient(score.iou, groups)


def said(values):
    low, high = bootstrap_interval(values)
    return f"{np.mean(values):.2f}<br>[{low:.2f}, {high:.2f}]"


# %%
#| code-fold: true
table = {
    (trained, name): tested(model, packed[name]["test"], patients[name])
    for trained, model in models.items()
    for name in sets
}
for k, measure in enumerate(("Dice", "IoU")):
    rows = [(f"{measure}, trained on", *(f"tested on {name}" for name in sets)),
            ["---"] * (1 + len(sets))]
    rows += [(trained, *(said(table[trained, name][k]) for name in sets))
             for trained in models]
    display(Markdown("\n".join(f"| {' | '.join(row)} |" for row in rows)))

# %% [markdown]
# What the table must show to be believed: a network is best, or nearly so, where it was trained.

# %%
#| code-fold: true
own = np.mean([np.mean(table[name, name][0]) for name in sets])
foreign = np.mean(
    [np.mean(table[a, b][0]) for a in sets for b in sets if a != b])
every = np.mean([np.mean(table["all three", name][0]) for name in sets])
print(f"mean Dice: own modality {own:.2f}, another's {foreign:.2f}, "
      f"one network for all {every:.2f}")
assert own > foreign and every > foreign

# %%
#| code-fold: true
#| fig-alt: "A heat map of the Dice: rows are what a network was trained on, columns what it was tested on. The diagonal and the row of the network trained on all three are high."
fig, axis = plt.subplots(figsize=(3.6, 2.8), layout="constrained")
grid = np.array([[np.mean(table[t, n][0]) for n in sets] for t in models])
axis.imshow(grid, cmap="viridis", vmin=0, vmax=1)
for (i, j), value in np.ndenumerate(grid):
    axis.text(j, i, f"{value:.2f}", ha="center", va="center",
              color="w" if value < 0.6 else "k")
axis.set(xticks=range(3), xticklabels=sets, yticks=range(4),
         yticklabels=models, xlabel="tested on", ylabel="trained on");

# %% [markdown]
# Networks that know radiographs or CT find nothing in T2. They have learned that a vertebra is bright; in T2 the canal and the fat of the back are. Radiographs and CT understand each other somewhat, though one is seen from the front and the other from the side. The network for all three knows that modalities differ, and is behind each specialist: in the same number of steps it has seen each modality a third as often. Whether three times the steps would close the gap is not answered here; change `max_steps` and see.
#
# What goes wrong, seen on one picture each:


# %%
#| code-fold: true
def drawn(model, image):
    "The mask of a picture, uint8 (H, W)."
    return sample(model, image[None].float() / 255, 1, 1).mean[0, 0].numpy() > 0.5


# %%
#| code-fold: true
#| fig-alt: "One test picture of each modality, and on it what each of the four networks marks: right on its own modality, scattered bright or dark areas on the others."
fig, axes = plt.subplots(3, 5, figsize=(8, 5), layout="constrained")
for row, name in zip(axes, sets, strict=True):
    image = packed[name]["test"].images[4]
    row[0].imshow(packed[name]["test"].masks[4, 0], cmap="gray")
    row[0].set_title("truth", fontsize=8)
    row[0].set_ylabel(name)
    for axis, (trained, model) in zip(row[1:], models.items(), strict=True):
        axis.imshow(image[0], cmap="gray")
        axis.imshow(np.ma.masked_equal(drawn(model, image), 0), cmap="autumn",
                    alpha=0.6)
        axis.set_title(f"by {trained}", fontsize=8)
    for axis in row:
        axis.set(xticks=[], yticks=[])

# %% [markdown]
# ## Real CT and MR
# Two CT patients (thorax and upper lumbar spine, 0.7×2.5 mm, labels by a machine; abdomen, 3 mm) and one MR patient (lumbar spine), so each network is trained on two patients and tested on the third: leave one out, starting from the network that knows the phantoms of all modalities. With three patients there is no interval, and nothing here may be quoted as accuracy. Without the files the cells say so.

# %%
#| code-fold: true
places = [
    Path(os.environ.get("VERDIFF_SAMPLES", "-")),
    *(Path(p) / "shared/data" for p in ("..", "../..", "../../..")),
]
REAL = next((p / "volumes" for p in places
             if (p / "volumes/layouts").is_dir()), None)
real = {}
if REAL is None:
    print("no real volumes at hand; the cells below are skipped")
else:
    total = REAL / "ct/totalsegmentator"
    cases = {
        "CT, thorax": find_cases(REAL / "layouts/ctspine1k_layout").cases[0],
        "CT, abdomen": one_case(
            total / "example_ct.nii.gz", total / "example_seg_v1_per_class"),
        "MR, lumbar": find_cases(REAL / "layouts/spider_layout").cases[0],
    }
    wide = SliceOptions(slices=7, step=3)
    real = {
        name: pack(VolumeSlices([case], "all", SIZE, options=wide,
                                progress=False), progress=False)
        for name, case in cases.items()
    }

# %%
#| code-fold: true
few = load_settings("ablation", [
    "height=96", "width=96", "eval_height=96", "eval_width=96", "max_steps=40",
    "batch_size=4", "checkpoint_every=1000"])
left, helped = {}, []
for name, held in real.items():
    others = together([part for other, part in real.items() if other != name])
    out = folder / f"real-{len(left)}"
    left[name] = train(few, others, None, out, progress=False,
                       trained=models["all three"])
    scores = [evaluate(m, held, [1], 1, seed=0, progress=False).scores[-1]
              for m in (models["all three"], left[name])]
    phantoms, others = (
        f"{s.dice.mean():.2f} ({s.iou.mean():.2f})" for s in scores)
    print(f"{name:12s} {len(held)} slices, Dice (IoU): phantoms only "
          f"{phantoms}, then two others {others}")
    helped += [name] if scores[1].dice.mean() > scores[0].dice.mean() else []
if real:
    print("helped by the two others:", ", ".join(helped) or "none of the three")

# %%
#| code-fold: true
#| fig-alt: "The middle slice of a real abdominal CT three times: with the true vertebrae, with what the network of the phantoms marks, and with what the one trained on two other patients marks."
if real:
    image, truth = (x[3] for x in (real["CT, abdomen"].images,
                                   real["CT, abdomen"].masks[:, 0] > 0))
    shown = {
        "truth": truth,
        "phantoms only": drawn(models["all three"], image),
        "and two others": drawn(left["CT, abdomen"], image),
    }
    fig, axes = plt.subplots(1, 3, figsize=(6, 2.3), layout="constrained")
    for axis, (title, mask) in zip(axes, shown.items(), strict=True):
        axis.imshow(image[0], cmap="gray")
        axis.imshow(np.ma.masked_equal(np.asarray(mask), 0), cmap="autumn",
                    alpha=0.5)
        axis.set_title(title, fontsize=8)
        axis.set(xticks=[], yticks=[])

# %% [markdown]
# The CT of the abdomen is the example of [TotalSegmentator](https://github.com/wasserth/TotalSegmentator) (Apache 2.0); the others are not shown, because their terms are not known to allow it. The two CT masks hold whole vertebrae, the MR mask the bodies only, as in many MR sets: a network trained on one is punished on the other for what nobody told it. For the MR patient the two others are both CT, and training on them takes away what the phantoms had taught about MR.
#
# ## All of it
# Not run yet: with the published sets and a GPU, at the paper's sizes. Name the folders of CTSpine1K and SPIDER.

# %%
#| cuda
#| code-fold: true
full = load_settings("gpu")
for name, root in (("ct", os.environ["CTSPINE1K"]), ("mr", os.environ["SPIDER"])):
    slices = {
        s: VolumeSlices(root, s, full.size, options=SliceOptions(slices=0),
                        cache=f"runs/{name}-slices")
        for s in ("training", "test")
    }
    model = train(full, pack(slices["training"]), None,
                  f"runs/modalities-{name}")
    scores = tested(model, pack(slices["test"]), slices["test"].groups)
    print(name, *(f"{np.mean(x):.3f} {bootstrap_interval(x)}" for x in scores),
          next(model.parameters()).device)
