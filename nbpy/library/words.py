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

# %%
assert steps_list("1,5,10") == [1, 5, 10] and size_pair("768x256") == (768, 256)
for wrong in ("768", "768x", "768x-1", "1e3x256"):
    try:
        size_pair(wrong)
    except argparse.ArgumentTypeError as error:
        print("-", error)
