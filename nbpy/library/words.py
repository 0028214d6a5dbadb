# %% [markdown]
# # Words as numbers
# > What the command line takes, checked while it is read

# %% [markdown]
# `argparse` calls these functions on what a user typed. What they refuse becomes one sentence that names the word, before anything else runs.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/words.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp words

# %%
#| export
import argparse
import shlex
from functools import partial

# %%
#| export
def whole_number(text: str, least: int = 1, most: int = 10**9) -> int:
    "Turn digits into a number between the two, for argparse. ArgumentTypeError for anything else."
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
    if int(text) > most:
        raise argparse.ArgumentTypeError(f"{text} is too large; the limit is {most}")
    return int(text)


positive, natural = partial(whole_number, least=1), partial(whole_number, least=0)


def seed_list(text: str) -> list[int]:
    "Turn 35,36,37 into numbers, for argparse."
    return [natural(word.strip()) for word in text.split(",")]

# %%
#| export
def steps_list(text: str) -> list[int]:
    "Turn 1,5,10 into numbers, for argparse."
    return list(dict.fromkeys(positive(word) for word in text.split(",")))

# %%
#| export
def size_pair(text: str) -> tuple[int, int]:
    "Turn 768x256 into (height, width), for argparse. ArgumentTypeError for anything else."
    words = text.lower().split("x")
    if len(words) != 2 or not all(words):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 768x256")
    return positive(words[0]), positive(words[1])

# %% [markdown]
# And the other way round: what to type next. A command that would be refused is not proposed.

# %%
#| export
def next_commands(
    data: str,  # that a network was trained on
    run: str,  # the folder of the run
    labels: str,  # the setting
    held: int | None,  # pairs that are held back for the test; None: data with a test of their own
    validated: int,  # images
) -> str:  # a line each
    "What to type after training."
    data, run = shlex.quote(data), shlex.quote(run)
    more = f" --labels {shlex.quote(labels)}" if labels != "auto" else ""
    lines = [f"verdiff evaluate --data {data} --model {run}{more}"] if held != 0 else []
    lines.append(f"verdiff segment IMAGE -o DIR --model {run}")
    lines.append(f"verdiff calibrate --data {data} --model {run}   (a confidence for each mask)"
                 if validated >= 8 else f"verdiff calibrate --images DIR --model {run}   "
                 "(a confidence for each mask, from 8 usual radiographs or more)")
    return "\n".join(f"  {line}" for line in lines)

# %%
print(next_commands("own", "runs/own", "auto", 0, 5))

# %%
assert "evaluate" not in next_commands("own", "runs/own", "auto", 0, 5)
assert steps_list("1,5,10") == [1, 5, 10] and size_pair("768x256") == (768, 256)
for wrong in ("768", "768x", "768x-1", "1e3x256"):
    try:
        size_pair(wrong)
    except argparse.ArgumentTypeError as error:
        print("-", error)
