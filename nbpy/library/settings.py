# %% [markdown]
# # Settings
# > Every number of every run in one file that you can read

# %% [markdown]
# `settings.ini` holds every number of every run, one section a profile. Notebooks and command line read it through
# `load_settings`, which gives each key a type and a rule and refuses nonsense in one sentence. Each rule stands once, as an
# annotation of its field; [a saved model's configuration](config.ipynb) and the command line's `--set` use the same ones.
# Nothing here imports torch, so that `verdiff --help` answers at once.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/settings.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp settings

# %%
#| export
import configparser
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import verdiff
from verdiff.files import VerdiffError

# %%
#| code-fold: true
import matplotlib.pyplot as plt

# %% [markdown]
# ## Rules
# A number may have a smallest and a largest value, a word must be one of several.

# %%
#| export
class Between(NamedTuple):
    "The smallest and the largest value that a number may have."

    low: float
    high: float


Size = Annotated[int, Between(8, 8192)]  # pixels
Count = Annotated[int, Between(1, 10**9)]
Times = Annotated[int, Between(1, 10**6)]
Share = Annotated[float, Between(0, 1)]
Weight = Annotated[float, Between(0, 10**9)]
Beta = Annotated[float, Between(1e-9, 1 - 1e-9)]
Factor = Annotated[float, Between(0.1, 10)]
Channels = Annotated[tuple[int, ...], Between(2, 8192)]  # width of each level
Dim = Annotated[int, Between(1, 8192)]
Blocks = Annotated[int, Between(1, 100)]
Stem = Annotated[int, Between(1, 16)]
InputScale = Annotated[float, Between(0.001, 1000)]
Fit = Literal["letterbox", "squash"]
ScheduleName = Literal["linear", "cosine"]
PredictionType = Literal["epsilon", "sample", "v_prediction"]
NormName = Literal["group", "batch"]
KernelChoice = Literal["soft", "hard"]


# %%
#| export
class Rule(NamedTuple):
    "What a field may hold."

    kind: type  # int, float, bool, str or tuple (of whole numbers)
    words: tuple[str, ...]  # allowed words; empty: any
    limits: Between | None


def rules(
    cls: type,  # a dataclass
) -> dict[str, Rule]:  # by field
    "The rules that the annotations of a dataclass state."
    return {key: _rule(hint) for key, hint in get_type_hints(cls, include_extras=True).items()}


def _rule(hint: Any) -> Rule:
    limits = next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Between)), None)
    base = get_args(hint)[0] if limits else hint
    if get_origin(base) is Literal:
        return Rule(str, get_args(base), None)
    return Rule(tuple if get_origin(base) is tuple else base, (), limits)


# %%
#| export
def check_word(word: str, allowed: Iterable[str], what: str) -> None:
    "VerdiffError for a word that is not allowed, with the nearest one that is."
    allowed = list(allowed)
    if word in allowed:
        return
    if near := get_close_matches(word, allowed, 1):
        raise VerdiffError(f"{what} {word!r}; did you mean {near[0]!r}? "
                           f"(allowed: {', '.join(allowed)})")
    raise VerdiffError(f"{what} {word!r}; allowed: {', '.join(allowed)}")


TYPE_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


def check_value(
    key: str,
    value: Any,
    rule: Rule,
    where: str,  # what to name in errors
) -> None:
    "VerdiffError for a value of the wrong type, an unknown word or a number out of range."
    kind, words, limits = rule
    low, high = limits or (-float("inf"), float("inf"))
    if kind is tuple:
        whole = isinstance(value, tuple) and value and all(type(v) is int for v in value)
        if not whole or not low <= min(value) <= max(value) <= high:
            raise VerdiffError(f"{where}: {key} = {value!r} must be whole numbers from {low} to "
                               f"{high}, such as 16,32,64")
    elif type(value) not in ((int, float) if kind is float else (kind,)):
        raise VerdiffError(f"{where}: {key} = {value!r} must be {TYPE_WORDS[kind]}")
    elif words:
        check_word(value, words, f"{where}: {key} cannot be")
    elif limits and not low <= value <= high:
        raise VerdiffError(f"{where}: {key} = {value!r} must lie between {low:.10g} and "
                           f"{high:.10g}")


# %% [markdown]
# ## The numbers of a run

# %%
#| exports
@dataclass(frozen=True)
class Settings:
    "All numbers of one run; made by `load_settings`, which checks them."

    profile: str  # section of settings.ini
    seed: Annotated[int, Between(0, 2**31 - 1)]  # of weights, batches, augmentation, noise
    # data
    height: Size  # pixels at which the networks work
    width: Size
    eval_height: Size  # pixels at which results are scored
    eval_width: Size
    fit: Fit  # "letterbox" keeps the shape, "squash" does not
    labels: str  # of masks that are vertebrae: auto, numbers such as 1-24,28, or a scheme
    val_fraction: Annotated[float, Between(0, 0.9)]  # share of the training studies to validate on
    # process
    timesteps: Times  # T
    schedule: ScheduleName
    beta_start: Beta
    beta_end: Beta
    input_scale: InputScale  # signal to noise ratio times its square; 1: as the schedule says
    prediction_type: PredictionType  # "sample" is x_0
    shift: bool  # Eq. (3); false: plain DDPM
    # networks
    channels: Channels  # width of each level of both U-Nets
    blocks: Blocks  # residual blocks a level
    stem: Stem  # both U-Nets work inside at 1 / stem of height and width; 1: none
    norm: NormName
    msfm: bool
    msfm_dim: Dim  # d of Eq. (13)
    nsa: bool
    nsa_choice: KernelChoice
    detach_prior: bool  # keep the diffusion loss out of the conditional U-Net
    # loss
    bce_weight: Weight  # of the prior's binary cross entropy
    dice_weight: Weight  # of the prior's soft Dice
    recycle: Share  # of rows whose x_t holds the network's own estimate (Fu et al. 2023)
    # optimisation
    max_steps: Count  # optimiser steps
    batch_size: Annotated[int, Between(1, 10**5)]  # images a step (a device)
    accumulate: Count  # batches a step
    optimizer: Literal["adam", "adamw"]
    learning_rate: Annotated[float, Between(1e-12, 10)]
    weight_decay: Weight
    warmup_steps: Annotated[int, Between(0, 10**9)]
    lr_schedule: Literal["constant", "cosine"]
    grad_clip: Weight  # largest norm of the gradient; 0: off
    mixed_precision: Literal["no", "bf16"]
    ema_decay: Annotated[float, Between(0, 0.999999)]  # of the averaged weights; 0: off
    # augmentation
    rotation: Annotated[float, Between(0, 180)]  # degrees
    shift_min: Share  # of height and width
    shift_max: Share
    elastic: Share  # standard deviation of the displacement, share of the width
    contrast: Weight  # strength
    scale_min: Factor
    scale_max: Factor
    flip: Share  # probability of a left-right flip
    zoom_out: Annotated[float, Between(0, 10)]  # down to 1 / (1 + that) of the size
    gamma: Annotated[float, Between(0, 3)]  # largest logarithm of an exponent
    blur: Share  # largest standard deviation, share of the width
    noise: Share  # largest standard deviation
    cut: Annotated[float, Between(0, 0.5)]  # largest share of the height lost at either end
    metal: Share  # probability of drawn rods, screws and loose pieces
    invert: Share  # probability of inverted grey
    collimator: Share  # probability of borders
    letters: Share  # probability of burnt-in signs
    jpeg: Share  # probability of a passage through JPEG
    stream: Literal["auto", "true", "false"]  # decode when needed; auto: where memory is short
    # what is written on the way
    validate_every: Count  # steps
    val_images: Count  # how many validation images are sampled on the way
    checkpoint_every: Count  # steps
    keep_checkpoints: Count
    log_every: Count  # steps
    # sampling
    sampler: Literal["ddpm", "ddim", "dpm"]
    sample_steps: Times
    ensemble: Annotated[int, Between(1, 10**4)]  # samples an image

    @property
    def size(self) -> tuple[int, int]:
        "(height, width) at which the networks work."
        return self.height, self.width

    @property
    def eval_size(self) -> tuple[int, int]:
        "(height, width) at which results are scored."
        return self.eval_height, self.eval_width

    def to_dict(self) -> dict[str, Any]:
        "Plain values, ready for JSON."
        return {**asdict(self), "channels": list(self.channels)}

    @classmethod
    def from_dict(
        cls,
        values: dict[str, Any],  # as `to_dict` gives them
        where: str = "settings",  # what to name in errors
    ) -> "Settings":
        "The way back; an unknown or missing key or a value out of range raises VerdiffError."
        settings = cls(**known_values(cls, values, where, complete=True))
        for small, large in (("beta_start", "beta_end"), ("shift_min", "shift_max"),
                             ("scale_min", "scale_max"), ("sample_steps", "timesteps")):
            if getattr(settings, small) > getattr(settings, large):
                raise VerdiffError(f"{where}: {small} = {getattr(settings, small)} must not exceed "
                                   f"{large} = {getattr(settings, large)}")
        if settings.recycle and settings.prediction_type != "sample":
            raise VerdiffError(f"{where}: recycle needs prediction_type = sample: the noise of a "
                               "recycled x_t leads to the estimate, not to the truth")
        return settings

    def __str__(self) -> str:
        return "\n".join(f"{key:18s}{_text(value)}" for key, value in self.to_dict().items())


# %%
#| export
# newer keys: what runs did before there were any
LATER: dict[str, Any] = {
    "stem": 1, "input_scale": 1.0, "recycle": 0.0, "labels": "auto",
    "zoom_out": 0.0, "gamma": 0.0, "blur": 0.0, "noise": 0.0, "cut": 0.0,
    "metal": 0.0, "invert": 0.0, "collimator": 0.0, "letters": 0.0, "jpeg": 0.0}


def known_values(
    cls: type,  # a dataclass with rules
    values: dict[str, Any],  # as JSON gives them: a list stands for a tuple
    where: str,  # what to name in errors
    complete: bool = False,  # also refuse a missing key
) -> dict[str, Any]:  # ready for the dataclass
    "Checked values; VerdiffError for an unknown or missing key and for a value against its rule."
    known = rules(cls)
    before = {k: v for k, v in LATER.items() if complete and k in known}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in (before | values).items()}
    for key, value in values.items():
        check_word(key, known, f"{where}: unknown key")
        check_value(key, value, known[key], where)
    if complete and (missing := [key for key in known if key not in values]):
        raise VerdiffError(f"{where}: the key {missing[0]!r} is missing; write it again with this "
                           "version of verdiff")
    return values


def _text(value: Any) -> str:
    "A value as settings.ini has it."
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


# %% [markdown]
# ## The file

# %%
#| export
def settings_path() -> Path:
    "The settings.ini of this installation, inside the package."
    return Path(verdiff.__file__).resolve().parent / "settings.ini"


def _parse(key: str, text: str, where: str) -> Any:
    "The text of settings.ini, or of --set, as a value of the key's type."
    kind, text = rules(Settings)[key].kind, text.strip()
    try:
        if kind is tuple:
            return tuple(int(c) for c in text.split(","))
        if kind is bool:
            return {"true": True, "yes": True, "on": True, "1": True,
                    "false": False, "no": False, "off": False, "0": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError):
        word = "whole numbers with commas" if kind is tuple else TYPE_WORDS[kind]
        raise VerdiffError(f"{where}: {key} = {text!r} must be {word}") from None


def _read(path: str | Path | None) -> tuple[configparser.ConfigParser, Path]:
    "The file as a table of sections."
    path = Path(path) if path is not None else settings_path()
    table = configparser.ConfigParser(interpolation=None)
    try:
        table.read_string(path.read_text(encoding="utf-8-sig"), source=str(path))
    except OSError as error:
        raise VerdiffError(f"{path}: {error.strerror}; give the path of a settings.ini") from error
    except (configparser.Error, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise VerdiffError(f"{path}: not a settings file ({first}); it holds [profile] lines and "
                           "key = value lines") from error
    return table, path


# %%
#| export
def profiles(
    path: str | Path | None = None,  # a settings.ini; None: the one of this installation
) -> list[str]:  # in the order of the file
    "Names of the profiles. VerdiffError where the file cannot be read."
    return _read(path)[0].sections()


def load_settings(
    profile: str = "laptop",  # section of settings.ini
    overrides: Sequence[str] = (),  # "key=value", as `--set` gives them
    path: str | Path | None = None,  # a settings.ini; None: the one of this installation
) -> Settings:
    """The numbers of a profile, typed and checked.

    Raises VerdiffError, naming what is allowed, for an unknown profile or key, a missing key, and
    a value of the wrong type or out of range.
    """
    table, path = _read(path)
    check_word(profile, table.sections(), f"{path.name}: there is no profile")
    texts = {key: (text, f"{path.name} [{profile}]") for key, text in table[profile].items()}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise VerdiffError(f"--set {override}: write it as key=value")
        texts[key.strip().lower()] = (text, f"--set {override}")
    known, values = rules(Settings), {"profile": profile}
    for key, (text, where) in texts.items():  # names the --set that is wrong, not the file
        check_word(key, [k for k in known if k != "profile"], f"{where}: unknown key")
        values[key] = _parse(key, text, where)
        check_value(key, values[key], known[key], where)
    return Settings.from_dict(values, f"{path.name} [{profile}]")


# %% [markdown]
# ## Use
# Every profile loads and survives the way to JSON and back. How many pixels does each look at, from its first step to
# its last?

# %%
#| code-fold: true
#| fig-alt: "Dots on a logarithmic axis: pixels that each profile sees in training, from some ten thousand (smoke) to more than ten to the tenth (gpu)."
loaded = {name: load_settings(name) for name in profiles()}
pixels = [s.max_steps * s.batch_size * s.height * s.width for s in loaded.values()]
fig, ax = plt.subplots(figsize=(5.5, 2.4), layout="constrained")
ax.plot(pixels, list(loaded), "o", color="#443983")
ax.set(xscale="log", xlabel="pixels seen in training")
ax.grid(axis="y", lw=0.3)
ax.invert_yaxis()

# %%
assert all(Settings.from_dict(s.to_dict()) == s for s in loaded.values())
short = load_settings("laptop", ["max_steps=100", "channels=8,16", "nsa=off"])
assert (short.max_steps, short.channels, short.nsa) == (100, (8, 16), False)

# %% [markdown]
# Nonsense is refused, with the nearest word that is allowed:

# %%
for profile, override in [("labtop", ""), ("laptop", "max_step=3"), ("laptop", "nsa=maybe"),
                          ("laptop", "beta_end=1.5"), ("laptop", "norm=layer"),
                          ("laptop", "beta_end=1e-5"), ("laptop", "channels=16;32")]:
    try:
        load_settings(profile, [override] if override else [])
    except VerdiffError as error:
        print("-", str(error).split(" (allowed")[0])
    else:
        raise AssertionError(override)

# %%
free = [key for key, rule in rules(Settings).items() if not rule.words and rule.limits is None]
assert set(free) == {"profile", "labels", "shift", "msfm", "nsa", "detach_prior"}  # others: a rule
