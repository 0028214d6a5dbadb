# %% [markdown]
# # Labels of volumes
# > Which number is a vertebra, in which data set

# %% [markdown]
# A label map is a volume of small numbers, and each data set counts its own way: VerSe and CTSpine1K from the first cervical vertebra down, SPIDER from the lowest lumbar one up, TotalSegmentator somewhere among 117 organs, its two versions differently. A number alone does not tell: 19 is T12 in VerSe, all vertebrae together in TotalSegmentator's MR, a small piece of nothing elsewhere. So every data set has its table here, and numbers that stand in no table are refused in one sentence that lists them; a vertebra taken for background, or a disc for a vertebra, would train silently.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/volume_labels.ipynb).

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks,medical] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp data.volume_labels

# %%
#| export
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from verdiff.files import DataError


# %%
#| exports
class Part(NamedTuple):
    "What a label stands for."

    kind: str  # "vertebra", "sacrum", "canal", "disc", "other"
    name: str  # "L1", say


# %%
#| exports
@dataclass(frozen=True)
class Scheme:
    "The numbers of one data set."

    name: str
    parts: dict[int, Part]
    open: bool = False  # whether numbers that are not in the table are other organs, not mistakes

    def check(self, values: Iterable[int], where: Path) -> None:
        "DataError where a number stands for nothing."
        if unknown := sorted(set(values) - {0} - set(self.parts)) if not self.open else []:
            raise DataError(f"{where}: label{'s' * (len(unknown) > 1)} "
                            f"{', '.join(map(str, unknown[:8]))}{', ...' * (len(unknown) > 8)} "
                            f"unknown to the scheme {self.name!r}; choose with --labels: "
                            f"numbers such as 1-24, or one of {', '.join(SCHEMES)}")

    def values(self, kinds: Iterable[str] = ("vertebra",)) -> list[int]:
        "The numbers of these kinds."
        wanted = set(kinds)
        return [value for value, part in self.parts.items() if part.kind in wanted]


# %% [markdown]
# VerSe and CTSpine1K count C1 = 1, T1 = 8, L1 = 20; 25 is a sixth lumbar vertebra, 28 a thirteenth thoracic one, which some people have. A gap in the numbers is no mistake either: others have no T12.

# %%
#| exports
SPINE = [*(f"C{k}" for k in range(1, 8)), *(f"T{k}" for k in range(1, 13)),
         *(f"L{k}" for k in range(1, 7))]
VERSE = Scheme("verse", {k: Part("vertebra", name) for k, name in enumerate(SPINE, 1)}
               | {26: Part("sacrum", "sacrum"), 27: Part("sacrum", "coccyx"),
                  28: Part("vertebra", "T13")})

# %% [markdown]
# SPIDER counts from the bottom up, so its names are right where the lowest vertebra is L5; 101 and up are vertebrae that the image cuts, 201 and up the discs below each.

# %%
#| exports
UPWARDS = SPINE[23::-1]  # L5, L4, ... C1
SPIDER = Scheme("spider", {k: Part("vertebra", UPWARDS[k - 1] if k <= 24 else f"{k}")
                           for k in range(1, 26)}
                | {100: Part("canal", "canal")}
                | {100 + k: Part("vertebra", f"cut {k}") for k in range(1, 26)}
                | {200 + k: Part("disc", f"disc {k}") for k in range(1, 26)})

# %% [markdown]
# TotalSegmentator's maps hold other organs too, so what is not in its tables is background.

# %%
#| exports
def upwards(first: int) -> dict[int, Part]:
    "L5 = `first`, and on to C1."
    return {first + k: Part("vertebra", name) for k, name in enumerate(UPWARDS)}


TOTAL_1 = Scheme("totalsegmentator-v1", upwards(18) | {92: Part("sacrum", "sacrum")}, open=True)
TOTAL_2 = Scheme("totalsegmentator-v2", upwards(27) | {
    25: Part("sacrum", "sacrum"), 26: Part("sacrum", "S1"), 79: Part("canal", "cord")}, open=True)
TOTAL_MR = Scheme("totalsegmentator-mr", {
    18: Part("sacrum", "sacrum"), 19: Part("vertebra", "vertebrae"), 20: Part("disc", "discs"),
    21: Part("canal", "cord")}, open=True)
BINARY = Scheme("binary", {value: Part("vertebra", "vertebrae") for value in (1, 255)})
IDS = Scheme("ids", {k: Part("vertebra", f"{k}") for k in range(1, 256)})
SCHEMES = {s.name: s for s in (VERSE, SPIDER, TOTAL_1, TOTAL_2, TOTAL_MR, BINARY, IDS)}


# %% [markdown]
# `--labels` and the setting `labels` choose by hand: a scheme, or numbers.

# %%
#| exports
def label_numbers(
    text: str,  # auto, numbers such as 1-24,28, or one of SCHEMES
) -> list[int] | None:  # that are vertebrae; None: auto
    "The labels that count; DataError for other words."
    if text == "auto":
        return None
    if text in SCHEMES:
        return SCHEMES[text].values()
    ends = [[int(n) for n in part.split("-")] if re.fullmatch(r"\s*\d{1,5}(-\d{1,5})?\s*", part)
            else [0] for part in text.split(",")]
    if any(not 0 < part[0] <= part[-1] < 2**16 for part in ends):
        raise DataError(f"labels {text!r}: expected numbers such as 1-24,28, or one of "
                        f"{', '.join(SCHEMES)}")
    return sorted({k for part in ends for k in range(part[0], part[-1] + 1)})


# %%
assert label_numbers("1-3, 28") == [1, 2, 3, 28] and label_numbers("auto") is None
assert label_numbers("verse")[-1] == 28 and 26 not in label_numbers("verse")

# %% [markdown]
# Names in the file settle it (TotalSegmentator 2 writes them). Without them a map is taken for binary, SPIDER's or VerSe's only where each of its numbers fits.

# %%
#| exports
def named_part(
    name: str,  # as TotalSegmentator names its classes
) -> Part | None:  # None: some other organ
    "What a class name stands for."
    short = name.removeprefix("vertebrae_")
    if short != name:
        return Part("sacrum" if short == "S1" else "vertebra", short)
    kinds = {"sacrum": "sacrum", "vertebrae": "vertebra", "intervertebral_discs": "disc",
             "spinal_cord": "canal", "spinal_canal": "canal"}
    return Part(kinds[name], name) if name in kinds else None


# %%
#| exports
def find_scheme(
    values: Iterable[int],  # that occur in the map
    where: Path,  # to name in errors
    labels: str = "auto",  # as `label_numbers` takes it
    names: dict[int, str] | None = None,  # that the file gives to its labels
) -> Scheme:
    "The scheme of a label map; DataError where the numbers fit none."
    there = set(map(int, values)) - {0}
    if labels != "auto":
        if labels not in SCHEMES:
            chosen = label_numbers(labels) or ()
            return Scheme("chosen", {k: Part("vertebra", f"{k}") for k in chosen}, open=True)
        SCHEMES[labels].check(there, where)
        return SCHEMES[labels]
    if names:
        parts = {v: part for v, name in names.items() if (part := named_part(name))}
        return Scheme("named in the file", parts, open=True)
    if there <= {1} or there == {255}:
        return BINARY
    for scheme in (VERSE, SPIDER):
        if there <= set(scheme.parts):
            return scheme
    raise DataError(
        f"{where}: its {len(there)} labels (up to {max(there)}) fit neither VerSe nor SPIDER; "
        f"choose with --labels: numbers such as 1-24, or one of {', '.join(SCHEMES)}"
    )


# %% [markdown]
# Labels come as whole numbers, except where a program has stored them as floats: 24.9999 is 25. What lies between two whole numbers has been interpolated, and is no label.

# %%
#| exports
def whole(
    block: np.ndarray,  # any numbers
    where: Path,  # to name in errors
) -> np.ndarray:  # int16, the same shape
    "Labels as integers; DataError where they are none."
    if block.dtype.kind == "f":
        near = np.rint(block)
        if not np.isfinite(near).all() or np.abs(block - near).max(initial=0) > 0.01:
            raise DataError(
                f"{where}: holds values that are no whole numbers, such as "
                f"{odd_value(block):.6g}; a mask that was resampled with interpolation? "
                "use nearest neighbour"
            )
        block = near
    if block.size and (block.min() < 0 or block.max() > 32767):
        raise DataError(f"{where}: holds labels from {block.min():g} to {block.max():g}; is it an "
                        "image, not a mask?")
    return block.astype(np.int16)


def odd_value(block: np.ndarray) -> float:
    "One value that is no whole number."
    off = np.abs(block - np.rint(block))
    return float(block.flat[int(np.argmax(~(off <= 0.01)))])


# %%
here = Path("mask.nii.gz")
assert whole(np.array([0, 24.9999, 3.0]), here).tolist() == [0, 25, 3]
assert VERSE.parts[24].name == SPIDER.parts[1].name == TOTAL_1.parts[18].name == "L5"
assert TOTAL_2.parts[33].name == "T11" and TOTAL_1.parts[41].name == "C1"
assert find_scheme([0, 18, 20, 25, 28], here).name == "verse"  # T12 missing, L6 and T13 there
assert find_scheme([1, 2, 100, 201], here) is SPIDER and find_scheme([255], here) is BINARY
for values in ([1.5], [-3.0]):
    try:
        whole(np.array(values), here)
        raise AssertionError("taken for labels")
    except DataError as error:
        print(error)
try:
    find_scheme(range(105), here)
except DataError as error:
    print(error)

# %% [markdown]
# The tables side by side, lowest vertebrae first:

# %%
import matplotlib.pyplot as plt

# %%
#| fig-alt: "The number of each vertebra from C1 to L5 in four schemes: VerSe rises downwards, SPIDER and both versions of TotalSegmentator rise upwards, shifted against each other."
fig, axis = plt.subplots(figsize=(4.6, 2.6), layout="constrained")
for scheme in (VERSE, SPIDER, TOTAL_1, TOTAL_2):
    number = {p.name: v for v, p in scheme.parts.items() if p.kind == "vertebra"}
    axis.plot([number[n] for n in SPINE[:24]], ".-", lw=0.8, label=scheme.name)
axis.set(xticks=range(0, 24, 3), xticklabels=SPINE[:24:3], ylabel="label")
axis.legend(fontsize=7, frameon=False)
None
