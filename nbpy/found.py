# %% [markdown]
# # What we found
# > Ten answers, each with its number and interval, read from the stored results by code on this page

# %% [markdown]
# The course builds Verdiff-Net and the laboratory asks what each part of it is worth. Here are the answers. Every number below is taken
# from a stored result by code on this page: the record beside the shipped weights, or what a laboratory page printed when its
# recorded run was made. Read the intervals before the means. Open this page
# [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/found.ipynb).

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().system(
        'pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"'
    )

# %%
#| code-fold: true
import json
import re
from pathlib import Path

from IPython.display import Markdown

import verdiff
from verdiff.segmentation.models import bundled_model

# %%
#| code-fold: true
#| code-summary: "Code: the stored results, read"
PAGES = Path(verdiff.__file__).resolve().parent.parent / "nbs"


def printed(page):
    "All that the cells of a page printed when they last ran; empty outside a "
    "clone."
    path = PAGES / f"{page}.ipynb"
    if not path.exists():
        return ""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    outputs = [o for c in cells for o in c.get("outputs", [])]
    return "\n".join(
        "".join(o.get("text", o.get("data", {}).get("text/markdown", "")))
        for o in outputs
    )


def found(page, pattern):
    "The groups of the one place on a page that fits the pattern; what is "
    "missing says so."
    here = re.search(pattern, printed(page), re.M)
    assert here or not PAGES.exists(), f"{page} no longer prints {pattern}"
    return (
        here.groups()
        if here
        else ("(in a clone only)",) * re.compile(pattern).groups
    )


NUMBER = r"([+-]?\d\.\d+)"
INTERVAL = rf"{NUMBER} \[{NUMBER}, {NUMBER}\]"


def say(value, low, high):
    return f"{value} [{low}, {high}]"


record = json.loads((bundled_model() / "evaluation.json").read_text())
rows = {(r["images"], r["steps"], r["samples"]): r for r in record["rows"]}
clean = "without any twin"
prior, one, ten = (rows[(clean, *way)] for way in ((0, 0), (1, 5), (10, 5)))


def score(r):
    return f"{r['dice']:.3f} [{r['dice_low']:.3f}, {r['dice_high']:.3f}]"


gain = found(
    "lab/xray",
    rf"Dice: {INTERVAL}, higher on (\d+)% of the films: one step, mean of 5",
)
loss = found(
    "lab/xray",
    rf"10 steps, mean of 5: Dice {NUMBER}, minus the prior's {INTERVAL}",
)
ceiling = found(
    "lab/xray",
    rf"Dice between two labellings of one film: {NUMBER} ± {NUMBER} "
    rf"\[{NUMBER}, {NUMBER}\] \(n=(\d+)\)",
)
shift = found(
    "lab/ablation",
    rf"difference to 'both'[\s\S]*?no-shift +[\d,]+ +{INTERVAL}"
    rf" \w+ +{INTERVAL} \w+ +{INTERVAL} (\w+)",
)
modules = found(
    "lab/ablation",
    rf"neither +[\d,]+ +{INTERVAL} \w+ +{INTERVAL} \w+ +{INTERVAL} worse",
)
nnunet = found(
    "lab/comparison",
    rf"nnU-Net v2 \(its plan, our loop\) \| .*\| {INTERVAL} \|$",
)
second = found(
    "lab/comparison",
    rf"nnU-Net v2[^\n]*mean over seeds[\s\S]*?"
    rf"seed 36: Dice [\d.]+, minus ours {INTERVAL}",
)
clip = found(
    "15_worth_it",
    rf"exact  [\s\S]*?mean {NUMBER};[\s\S]*?Eq\. \(7\) [\s\S]*?mean {NUMBER};",
)
crowd = found("15_worth_it", rf"ensemble, 5 × 20  {INTERVAL}")
walks = {
    way: found(
        "lab/why_steps",
        rf"one step, mean of five[\s\S]*?^{way} +{INTERVAL} ",
    )
    for way in ("plain", "scale", "recycle")
}
(lumbar,) = found("lab/xray", r"'L5': '(\d+)%'")
path = PAGES.parent / "bench/results/uncertainty.json"
if path.exists():
    known = json.loads(path.read_text(encoding="utf-8"))["test"][clean]
    rank, alone, held, miss = (
        say(*(f"{x:.2f}" for x in v))
        for v in (known["rank"], known["rank_of_measures"]["spread"],
                  known["coverage"], known["error"])
    )
else:
    rank = alone = held = miss = "(in a clone only)"


def of_result(name, pick):
    "Intervals of a stored result of bench/, ready to be said."
    path = PAGES.parent / f"bench/results/{name}.json"
    if not path.exists():
        return ("(in a clone only)",) * 4
    rows = pick(json.loads(path.read_text(encoding="utf-8")))
    return [say(*(f"{v:+.3f}" for v in row)) for row in rows]


def costs(stored):
    "What noise and blur cost the package, and what training changes in it."
    package, _ = stored["models"]
    table = stored["table"][package]
    change = stored["table"]["second_minus_first"]
    kinds = "noise 0.05", "blur of 4 pixels"
    return [*(table[k]["minus_clean"] for k in kinds),
            change[kinds[0]]["dice"], change["clean"]["dice"]]


def square(stored):
    "What a radiograph loses as a square, as a whole and zoomed to."
    row = next(r for r in stored["rows"] if "1:1" in r["variant"])
    return [[row[way][k] for k in ("lost", "lost_low", "lost_high")]
            for way in ("whole", "zoom")]


def between(stored):
    "What the chosen average of weights changes, under noise and clean."
    change = stored["against_0"][stored["chosen"]]
    return [change[k]["dice"] for k in ("noise 0.05", "clean")]


noise, blur, gained, price = of_result("disturbed", costs)
both = of_result("average", between)
whole, zoomed = of_result("shapes-test", square)[:2]
answers = [
    (
        "Does the diffusion help?",
        f"One step: hardly. On the {one['n']} test "
        f"radiographs without a twin its mean of five has Dice {score(one)}, "
        f"the prior alone {score(prior)}; "
        f"image by image {say(*gain[:3])}, better on {gain[3]} %.",
        "lab/xray",
    ),
    (
        "Do more steps help?",
        f"No. Ten steps have {score(ten)}; on validation radiographs they "
        f"differ from the prior by "
        f"{say(*loss[1:])}. With tiny networks ten steps differ from one by "
        f"{say(*walks['plain'])}; with a signal of a fifth by "
        f"{say(*walks['scale'])}, with recycling by {say(*walks['recycle'])}, "
        f"and all stay below the prior ([why](19_more_steps.ipynb)).",
        "lab/why_steps",
    ),
    (
        "Does the shift help?",
        f"Nothing that we could measure: without it Dice differs by "
        f"{say(*shift[6:9])} at ten steps "
        f"(three seeds, 112 radiographs), verdict: {shift[9]}. In the "
        "coordinate without the shift the process is plain "
        "DDPM, so all that the shift can add is another place to start.",
        "lab/ablation",
    ),
    (
        "Do MSFM and NSA help?",
        f"Together perhaps, at ten steps: without both Dice differs by "
        f"{say(*modules[6:9])}, the only one of "
        "fifteen comparisons that its own interval decides, and it does not "
        "survive a correction for fifteen looks.",
        "lab/ablation",
    ),
    (
        "Do samples help?",
        f"Yes: the mean of twenty samples of five steps each beats the "
        f"prior by {say(*crowd)} "
        "on phantoms; a plain U-Net trained for as many seconds beats both.",
        "15_worth_it",
    ),
    (
        "Does the uncertainty know?",
        f"Within an image, yes: its brightest pixels are wrong most often. "
        f"Which image failed its mean does not know: rank correlation with "
        f"Dice {alone}. A Dice predicted from five measures has {rank}; its "
        f"90 % interval holds a share of {held}, and it misses by {miss} on "
        f"average ({one['n']} test radiographs).",
        "lab/xray",
    ),
    (
        "Does it work on other radiographs?",
        f"Less well. Padded to a square their Dice changes by {whole}, by "
        f"{zoomed} where the spine is [zoomed to](library/zoom.ipynb) "
        f"(128 test radiographs). On validation radiographs noise of 0.05 "
        f"changes it by {noise}, a blur of four pixels by {blur}. Further "
        f"training gives {gained} of the noise's cost back but changes clean "
        f"radiographs by {price}; weights between the two networks give "
        f"{both[0]} back and change clean ones by {both[1]}. They are to be "
        f"shipped next.",
        "lab/disturbed",
    ),
    (
        "Printed or exact?",
        f"With networks that had to learn, clipping decides. Without it the "
        f"exact sampler reaches Dice {clip[0]}, the printed Eq. (7), which "
        f"cannot clip, {clip[1]}; with it the exact one beats both.",
        "15_worth_it",
    ),
    (
        "How far could one get?",
        f"Two labellings of one radiograph agree by Dice "
        f"{say(ceiling[0], *ceiling[2:4])} ({ceiling[4]} "
        f"pairs): our mean stands at that ceiling. L5 is missed on {lumbar} % "
        f"of the radiographs.",
        "lab/xray",
    ),
    (
        "And the others?",
        f"With equal steps and small networks, nnU-Net's network differs from "
        f"ours by {say(*nnunet)} with one seed "
        f"and by {say(*second)} with another: between the best four nothing is "
        f"decided.",
        "lab/comparison",
    ),
]
names = {
    "lab/xray": "real radiographs",
    "15_worth_it": "lesson 15",
    "lab/ablation": "ablation",
    "lab/comparison": "comparison",
    "lab/disturbed": "what disturbs it",
    "lab/why_steps": "why more steps lose",
}
lines = [f"**{q}** {a} ([{names[p]}]({p}.ipynb))" for q, a, p in answers]
Markdown("\n\n".join(lines))

# %% [markdown]
# ## How the pieces fit
#
# The [forward process](06_forward.ipynb) centres the noise at a first guess, and in another coordinate it is plain diffusion; so the shift can only
# matter at the start, where [sampling](14_sampling.ipynb) begins around the guess and not around nothing. The
# [network](11_model.ipynb) is given the guess three times anyway. A first step from pure noise estimates the average of all masks that
# fit, and thresholding that average is hard to beat pixel by pixel; every further step may add the errors of a network that has
# practised on masks holding the truth, but walks on masks holding its own mistakes. What others found to help (recycling its own predictions, a
# signal that fades faster at high resolution) stops most of that loss with tiny networks, at the price of samples that are nearly alike: [why more steps lose](lab/why_steps.ipynb).
#
# None of this is a verdict on the authors' network, which nobody can run: their code and split are not public. It is what
# the printed method does in our hands, on two CPU cores.
