# %% [markdown]
# # 18 · X-ray, CT and MR
# > The same spine three ways, and what a loader must know of each

# %% [markdown]
# All that the course built was tried on radiographs. But three of the paper's four data sets are CT and MR: what must one know to read those? You will put one phantom spine into all three machines, see why a number means something in CT and nothing in MR, fall into the three traps of volumes (squashed voxels, axes, labels), and end with a data set that trains like the radiographs of page [03](03_xray_set.ipynb). Under a minute on a laptop, no GPU, no data.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/18_modalities.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks,medical] @ git+https://github.com/verdiff/verdiff"')

# %%
#| code-fold: true
import itertools
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.phantom_layouts import write_volume_set
from verdiff.data.phantom_volumes import draw_phantom_volume
from verdiff.data.sagittal import SliceOptions, slow_brightness
from verdiff.data.volume_labels import SPIDER, TOTAL_2, VERSE
from verdiff.data.volume_layouts import find_cases
from verdiff.data.volumes import PAPER_CT, VolumeSlices
from verdiff.io.volume_files import open_volume, read_volume

set_matplotlib_formats("jpeg", pil_kwargs={"quality": 82})


# %%
#| code-fold: true
def show(*pictures, titles=(), **how):
    "Grey pictures side by side."
    fig, axes = plt.subplots(1, len(pictures), squeeze=False,
                             figsize=(2.1 * len(pictures), 2.9),
                             layout="constrained")
    for k, (axis, picture) in enumerate(zip(axes[0], pictures)):
        axis.imshow(picture, **{"cmap": "gray"} | how)
        axis.set(xticks=[], yticks=[], title=titles[k] if titles else "")


# %% [markdown]
# ## 1 · One spine, three machines
# A phantom volume is the same spine in every machine when the seed is the same. We ask for axes to the **R**ight, **A**nterior and **S**uperior, so that an array is indexed `[right, front, up]`:

# %%
ct = draw_phantom_volume(3, "ct", (2, 2, 2), axes="RAS")
mr = draw_phantom_volume(3, "t2", (2, 2, 2), axes="RAS")
assert np.array_equal(ct.labels, mr.labels)
ct.image.shape

# %% [markdown]
# A radiograph is a shadow. Each ray is weakened by everything on its way (Beer and Lambert): with $\mu$ the attenuation per millimetre, $I = I_0\, e^{-\sum \mu\,\Delta}$. CT numbers (Hounsfield units, HU) are attenuation in disguise: $\mathrm{HU} = 1000\,(\mu - \mu_\text{water}) / \mu_\text{water}$. So we can undo the disguise and shine through from front to back:

# %%
mu = 0.02 * (ct.image + 1000).clip(0) / 1000  # water: 0.02 a millimetre
intensity = np.exp(-(mu * 2).sum(1))  # along front-back; r s
radiograph = -np.log(intensity)  # bright bone, as radiographs are shown

# %%
#| code-fold: true
#| fig-alt: "The same phantom spine as a frontal radiograph, where everything overlaps, as a sagittal CT slice with bright bone and as a sagittal T2 slice with a bright canal and dark bone rims."
middle = ct.image.shape[0] // 2
pictures = [a.T[::-1] for a in (radiograph, ct.image[middle], mr.image[middle])]
fig, axes = plt.subplots(1, 3, figsize=(6, 3.4), layout="constrained")
ends = ((None, None), (-300, 900), (0, np.percentile(mr.image, 99.5)))
names = ("X-ray", "CT", "MR (T2)")
for axis, picture, (low, high), name in zip(axes, pictures, ends, names):
    axis.imshow(picture[:, ::-1], cmap="gray", vmin=low, vmax=high)
    axis.set(xticks=[], yticks=[], title=name)

# %% [markdown]
# The shadow adds up muscle, gas and bone; the two slices show one plane each. In CT bone is bright because it is dense. In T2 water is bright: the canal, the discs and the marrow's fat shine, and the dense rim of a vertebra, the brightest thing in CT, is black. A network that has learned "vertebra = bright" is wrong in MR, which the lab page [modalities](lab/modalities.ipynb) measures.

# %% [markdown]
# ## 2 · Numbers that mean something
# Air is -1000, water 0, fat about -100, spongy bone 100 to 300, in every CT of the world. So the grey values come from a fixed *window*, not from the picture's own minimum and maximum. Look at the numbers, then at three windows:

# %%
bone = ct.image[(ct.labels > 0) & (ct.labels < 26)]
print(f"vertebrae: median {np.median(bone):.0f} HU")
print(f"everything: {ct.image.min()} to {ct.image.max()} HU")


# %%
def window(hu, low, high):
    return ((hu - low) / (high - low)).clip(0, 1)


# %%
#| code-fold: true
#| fig-alt: "A CT slice in three windows: minimum to maximum is flat and dark grey, a soft window saturates all bone, the bone window shows rims and marrow."
side = ct.image[middle].T[::-1, ::-1]
show(window(side, side.min(), 3000), window(side, -100, 200),
     window(side, -500, 1300), titles=("widest", "soft tissue", "bone"),
     vmin=0, vmax=1)

# %% [markdown]
# ## 3 · Numbers that mean nothing
# An MR scanner multiplies by whatever its coils and its radiographer gave it. Two scans of one person differ by a factor, and the back, near the coil, outshines the front. So each volume is divided by its own slow brightness, then stretched between its own percentiles:

# %%
field = slow_brightness(mr.image.astype(float), (2, 2, 2), width=30)
even = mr.image / field
low, high = np.percentile(even, (0.5, 99.5))

# %%
#| code-fold: true
#| fig-alt: "A T2 slice as stored, brighter towards the back; the slow brightness alone, a smooth gradient; and the slice divided by it, evenly bright."
show(*(window(a[middle].T[::-1, ::-1], 0, np.percentile(a, 99.5))
       for a in (mr.image, field, even)), vmin=0, vmax=1,
     titles=("as stored", "slow brightness", "divided"))

# %%
means = [[np.median(a[mr.labels == k]) for k in range(19, 25)]
         for a in (mr.image, even)]
spread = [np.std(m) / np.mean(m) for m in means]
print("from vertebra to vertebra {:.0%}, after it {:.0%}".format(*spread))
assert spread[1] < spread[0]

# %% [markdown]
# The factor cancels too. Three times the signal is the same picture:

# %%
louder = 3.0 * mr.image
again = louder / slow_brightness(louder, (2, 2, 2), width=30)
l, h = np.percentile(again, (0.5, 99.5))
assert np.allclose(window(again, l, h), window(even, low, high), atol=0.01)

# %% [markdown]
# ## 4 · The first trap: voxels are no cubes
# A hospital's MR has slices 4 mm apart and pixels of 0.6 mm; a CT often 0.7 mm by 2.5 mm. Shown as an array, the spine is squashed, and with it every angle (page [01](01_radiograph.ipynb) measured some):

# %%
thick = draw_phantom_volume(3, "ct", (2, 1, 4), axes="RAS")
naive = thick.image[middle].T[::-1, ::-1]
naive.shape

# %%
#| code-fold: true
#| fig-alt: "Left, a CT with slices 4 mm apart shown as an array: the spine is squashed to a quarter of its height. Right, with square millimetres."
fig, axes = plt.subplots(1, 2, figsize=(4.4, 3), layout="constrained")
for axis, aspect, title in zip(axes, (1, 4), ("as an array", "in millimetres")):
    axis.imshow(naive, cmap="gray", vmin=-500, vmax=1300, aspect=aspect)
    axis.set(xticks=[], yticks=[], title=title)

# %% [markdown]
# ## 5 · The second trap: which axis is which?
# A file may store its axes in 48 orders and directions, and oblique to the body on top. `image[i]` is a sagittal slice in one file and anything else in the next. Two data sets, written as they publish:

# %%
root = Path(tempfile.mkdtemp())
files = {}
for layout in ("ctspine1k", "verse20"):
    write_volume_set(root / layout, layout, 2, 1, seed=3, oblique=6)
    files[layout] = find_cases(root / layout).cases[0].image

# %%
#| code-fold: true
#| fig-alt: "Above, the middle of the first axis of two files: one shows the spine upside down, one lies across the body. Below, the same after turning the axes by the affine: both show it upright."
raw = {k: np.concatenate(list(open_volume(f).blocks()), 2)
       for k, f in files.items()}
turned = {k: read_volume(f).array for k, f in files.items()}
show(*(a[len(a) // 2].T for a in raw.values()),
     *(a[len(a) // 2].T[::-1, ::-1] for a in turned.values()),
     vmin=-500, vmax=1300,
     titles=[f"{k}: {t}" for t in ("array", "turned") for k in files])

# %% [markdown]
# The *affine*, a 4×4 matrix in the header, says where each voxel lies in the body. `read_volume` turns the axes to right, front, up by it; a file without one is refused, because a guess would be wrong half of the time.

# %%
affine = read_volume(files["verse20"]).affine
print(np.array2string(affine, precision=2, suppress_small=True))

# %% [markdown]
# ## 6 · The third trap: what does 20 mean?

# %%
for scheme in (VERSE, SPIDER, TOTAL_2):
    number = {part.name: v for v, part in scheme.parts.items()}
    twenty = scheme.parts.get(20)
    print(f"{scheme.name:20s} L1 is {number['L1']:3d}; 20 is",
          twenty.name if twenty else "another organ")

# %% [markdown]
# SPIDER counts from the bottom up and marks the canal (100) and the discs (201 and up) too, which the paper removes. Float labels, gaps, a sixth lumbar vertebra: page [volume_labels](library/volume_labels.ipynb) has them all.
#
# ## 7 · One data set for all of it
# `VolumeSlices` does what you have just done: it finds the pairs, turns, windows, resamples, cuts the slices around the middle of the vertebrae and keeps them. From here on a volume is a radiograph:

# %%
slices = SliceOptions(slices=3, step=6)
data = VolumeSlices(root / "verse20", size=(192, 128), options=slices)
image, mask, where = data.arrays(1)
print(*data.names, sep="\n")

# %%
#| code-fold: true
#| fig-alt: "A sagittal slice of the phantom CT letterboxed on the canvas, its mask of the vertebrae, and the same slice squashed to 166 by 369 pixels as the paper does, stretched in height."
squash = VolumeSlices(root / "verse20", size=PAPER_CT, fit="squash",
                      options=slices)
show(image, mask, squash.arrays(1)[0],
     titles=("letterboxed", "its mask", "squashed"))

# %% [markdown]
# ## 8 · Slices are no patients
# The paper has 2,508 CT images from 42 patients. Slices a few millimetres apart are nearly one picture, so a split by picture asks the network what it has seen. `groups` says whose slice each is:

# %%
whole = VolumeSlices(root / "verse20", "all", options=slices)
order = np.random.default_rng(0).permutation(len(whole))
train, test = (np.array(whole.groups)[part] for part in np.split(order, [6]))
print("split by picture, on both sides:", *sorted(set(train) & set(test)))
assert set(train) & set(test)

# %%
cases = find_cases(root / "verse20").cases
assert len({(c.patient, c.split) for c in cases}) == len(set(whole.groups))

# %% [markdown]
# | | paper | here | why |
# |---|---|---|---|
# | which slices | picked by radiologists | around the middle of the labelled vertebrae | repeatable; anyone gets the same |
# | size | 166×369, 880×880, squashed | letterboxed; squashed on request | the shape of a vertebra stays |
# | canal, discs | removed | removed, or kept | a choice of `parts` |
# | split | not told | published, else by patient | no patient on both sides |
#
# ## Exercises
# **1 · Predict.** Of the 48 ways to store three axes (section 5), how many show the body as in a mirror, left and right exchanged? Would you notice in a sagittal slice? Predict, then count.

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# Half: those whose matrix of axes has a negative determinant. In a sagittal slice nobody would notice; in a frontal one the heart lies on the wrong side. So a lost affine cannot be guessed from the picture of a spine.

# %%
#| code-fold: true
ways = [np.eye(3)[list(order)] * signs
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1, -1), repeat=3)]
mirrored = sum(np.linalg.det(way) < 0 for way in ways)
print(f"{mirrored} of {len(ways)}")
assert 2 * mirrored == len(ways)

# %% [markdown]
# </details>
#
# **2 · Change.** Shine through from the side instead of from the front. Which parts of a vertebra no longer overlap?

# %%
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# Sum over axis 0. The body and the spinous process stand apart; left and right overlap.

# %%
#| code-fold: true
#| fig-alt: "The phantom spine shone through from the side: the column of vertebral bodies in front, the spinous processes behind it, apart from each other."
lateral = (mu * 2).sum(0)
show(lateral.T[::-1, ::-1])
assert lateral.shape == ct.image.shape[1:]

# %% [markdown]
# </details>
#
# **3 · Implement.** Turn `raw["verse20"]` to right, front, up with `transpose` and `[::-1]` alone, without `read_volume`. Its axes run to the back, down and to the right.

# %%
# your code here

# %%
#| code-fold: true
#| code-summary: "Answer and check"
mine = raw["verse20"].transpose(2, 0, 1)[:, ::-1, ::-1]
assert np.array_equal(mine, turned["verse20"])

# %% [markdown]
# **4 · Diagnose (hard).** A colleague scales each CT slice between its own minimum and maximum. Her validation Dice is good. In the clinic the network does well, but for patients with a metal screw it finds hardly a vertebra, not even far from the screw. Nothing is wrong with the network. What happened to the bone, which number shows it without any training, and why did her validation not?

# %%
screw = side.copy()
screw[20:24, 20:24] = 8000  # metal, far from most of the bone
# your code here

# %% [markdown]
# <details><summary>Answer</summary>
#
# The maximum is the metal's, so all bone is pushed down to the grey that soft tissue had in training. The number is the grey of bone, with and without the screw: it moves, and under a fixed window it does not. Her validation patients carried no metal; a set that lacks a case cannot warn of it.

# %%
#| code-fold: true
spine = ((ct.labels > 0) & (ct.labels < 26))[middle].T[::-1, ::-1]
for name, ends in (("own minimum and maximum", None), ("window", (-500, 1300))):
    grey = [np.median(window(s, *(ends or (s.min(), s.max())))[spine])
            for s in (side, screw)]
    print("{:24s} bone {:.2f}, with a screw {:.2f}".format(name, *grey))
    assert (abs(grey[0] - grey[1]) < 0.02) == (ends is not None)

# %% [markdown]
# </details>
#
# One question has stood open since [lesson 15](15_worth_it.ipynb): why do more steps of the diffusion lose, and can it be mended? [Lesson 19](19_more_steps.ipynb).
