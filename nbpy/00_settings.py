# %% [markdown]
# # 00 · Settings, and how to read this course
# > Every number of every run in one file that you can read, and a map of where we are going
#
# This course builds a diffusion model that segments vertebrae: it marks their pixels in spine radiographs. Such a model learns to
# remove noise step by step; ours, Verdiff-Net, starts from a first network's guess of the mask. This short
# lesson explains the pages and the symbols, and builds what all others use: a settings file that refuses nonsense in
# one clear sentence, and a way to save files that never leaves half of one.
#
# *Three seconds on a laptop; no GPU needed.*
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/00_settings.ipynb)

# %%
#| default_exp settings

# %%
#| eval: false
# !pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"  # only on Colab

# %%
#| export
import configparser
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

# %%
import tempfile
from collections.abc import Callable
from dataclasses import fields

import matplotlib.pyplot as plt


# %% [markdown]
# ## 1 · How a page works
#
# One notebook is one lesson *and* one module. Cells that begin with `#| export` are copied, by nbdev, into the package (here `verdiff/settings.py`); the cells between them
# call what was just defined, draw it, or assert what must be true of it. Continuous integration executes every notebook from a fresh kernel, except
# cells marked `#| cuda` or `#| slow`, whose recorded outputs are kept.
#
# Three habits will help:
#
# - **Run every cell** and change a number in it. The phantoms (drawn spines) need no download. Cells that show real radiographs do nothing where the
#   X-ray set is missing; page [01](01_data.ipynb) says how to get it.
# - **Predict before you look.** Each lesson ends with three exercises: predict, change, implement. The answers fold out, and an
#   `assert` checks them.
# - **Keep the paper beside you.** Where an equation of the paper is used, its number stands near the code that computes it. Where the paper
#   contradicts itself or is silent, a table says what it prints, what we do, and why; [13](13_paper_checked.ipynb) collects all of them.
#
# The lessons, from the ground up:
#
# | | lesson | you will be able to |
# |---|---|---|
# | ground | [01 data](01_data.ipynb), [02 augment](02_augment.ipynb), [03 metrics](03_metrics.ipynb) | load radiographs, bend them, score a mask honestly |
# | process | [04 forward](04_forward.ipynb), [05 posterior](05_posterior.ipynb) | derive the shifted diffusion and check it against Bayes' rule |
# | networks | [06 U-Net](06_unet.ipynb), [07 MSFM](07_msfm.ipynb) (multi-scale fusion), [08 NSA](08_nsa.ipynb) (noise semantic adapter), [09 model](09_model.ipynb) | build each module of the paper's Figure 3 |
# | learning | [10 training](10_training.ipynb), [11 sampling](11_sampling.ipynb) | train it, interrupt it, resume it, draw masks from it |
# | use | [12 segment](12_segment.ipynb), [13 the paper checked](13_paper_checked.ipynb) | segment your own images; know which claims hold |
# | results | [14 ablation](14_ablation.ipynb), [15 real radiographs](15_xray.ipynb), [16 comparison](16_comparison.ipynb) | say what each part adds, and how sure that is |
#
# ## 2 · Symbols
#
# The paper counts time from 1 to $T$, the code from 0 to $T-1$. In the code the least noisy mask is `t = 0`, the paper's $x_1$; the clean mask is always called $x_0$. Use the table for reference; page 04 explains the process.
#
# | paper | code | meaning | range |
# |---|---|---|---|
# | $b$ | `image` | radiograph | $[0, 1]$ |
# | $x_0$ | `x_0` | true mask, scaled: `2 * mask - 1` | $\{-1, 1\}$ |
# | $x_t$ | `x_t` | noisy mask | about $[-4, 4]$ |
# | $f(b)$ | `prior` | conditional U-Net's mask, scaled: `2 * sigmoid(logits) - 1` | $[-1, 1]$ |
# | $\epsilon$ | `noise` | standard normal noise | |
# | $\beta_t,\ \alpha_t = 1-\beta_t$ | `betas`, `alphas` | schedule | $(0, 1)$ |
# | $\bar\alpha_t = \prod \alpha_s$ | `alphas_cumprod` | what is left of the mask's energy | $(0, 1)$ |
# | $s_t = \sqrt{1-\bar\alpha_t}$ | `sigmas` | how much noise, and how much shift | $(0, 1)$ |
# | $T$ | `timesteps` | length of the chain | |
# | $X$ | `features` | what the multi-scale fusion module gives | |
# | $\Phi_\theta$ | `model.denoise` | the diffusion U-Net | |
#
# Images are `(B, 1, H, W)` tensors throughout; a size is `(height, width)`.
#
# ## 3 · One sentence when something is wrong
#
# A traceback helps those who wrote the code. Users need a sentence: which file or key, what is wrong with it, what to do. All such
# errors are a `VerdiffError`; the command line prints the sentence and ends with exit code 2.

# %%
#| export
class VerdiffError(ValueError):
    "Something that a user can put right; the message is one sentence that says how."


# %% [markdown]
# A helper that shows these sentences:

# %%
def complaint(f: Callable) -> str:
    "The sentence with which f refuses."
    try:
        f()
    except VerdiffError as error:
        return str(error)

def refuse():
    raise VerdiffError("xray.zip: the archive is cut off; download it again")

print(complaint(refuse))
assert issubclass(VerdiffError, ValueError)

# %% [markdown]
# ## 4 · Never half a file
#
# The naive way to save is to open the file and write. If the power goes, or the disk is full, the old content is already gone and the new one is not yet there:

# %%
folder = Path(tempfile.mkdtemp())
notes = folder / "checkpoint.txt"
notes.write_text("three days of training")

def naive_save(path, parts):
    with open(path, "w") as file:
        for part in parts:
            if part is None:
                raise OSError(28, "No space left on device")
            file.write(part)

try:
    naive_save(notes, ["four da", None])
except OSError as error:
    print(f"{error.strerror}; the file now says: {notes.read_text()!r}")


# %% [markdown]
# Three days are gone. The fix: write to another name in the same folder, force it to the disk, then rename. A rename happens entirely or not at all.

# %%
#| export
def _sync_folder(folder: Path) -> None:
    "Let the rename, too, survive a power cut, where the system can."
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        with suppress(OSError):  # some network drives refuse
            os.fsync(number)
        os.close(number)


# %%
#| export
@contextmanager
def atomic_write(
    path: str | Path,  # the file to write; its folder must exist
) -> Iterator[Path]:  # a temporary file in the same folder: write to it
    """Write a file whole or not at all: temporary name, fsync, rename.

    When the body or the disk fails, the previous file stays as it was and the temporary one is
    removed. OSError (a full disk, say) and what torch and safetensors raise in its place become a
    VerdiffError that names the file; other errors pass.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    kept = "the previous file is unchanged" if path.exists() else "nothing was written"
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise VerdiffError(f"could not save {path}: {error.strerror or error}; {kept}") from error
    except Exception as error:
        if not _disk_trouble(error):
            raise
        raise VerdiffError(
            f"could not save {path}: writing broke off, probably because the disk is "
            f"full ({error}); {kept}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


# %%
notes.write_text("three days of training")
def careful_save():
    with atomic_write(notes) as path:
        naive_save(path, ["four da", None])

print(complaint(careful_save).replace(str(folder), "runs"))
assert notes.read_text() == "three days of training"
assert list(folder.iterdir()) == [notes]  # nothing left behind


# %% [markdown]
# torch and safetensors do not pass the disk's own error on. `_disk_trouble`, which `atomic_write` asks, knows theirs by their words:

# %%
#| export
def _disk_trouble(error: Exception) -> bool:
    "Whether a library wrapped an error of the disk: torch's writer and safetensors do."
    words = str(error).lower()
    return any(
        w in words
        for w in (
            "no space left",
            "file write failed",
            "unexpected pos",
            "i/o error",
            "iostream error",
        )
    )


# %%
assert _disk_trouble(
    RuntimeError("PytorchStreamWriter failed: file write failed")
) and not _disk_trouble(KeyError("nsa"))


# %% [markdown]
# Now fail at every moment. Six parts are written, and the failure comes before part 0, 1, 2 …, or never:

# %%
def after_failure(save, at):
    notes.write_text("old" * 6)
    try:
        save([None if k == at else "new" for k in range(6)])
    except (OSError, VerdiffError):
        pass
    return {"old" * 6: "old", "new" * 6: "new"}.get(notes.read_text(), "broken")


def atomic_save(parts):
    with atomic_write(notes) as path:
        naive_save(path, parts)


# %%
states = [
    [after_failure(save, at) for at in range(7)]
    for save in (lambda parts: naive_save(notes, parts), atomic_save)
]
fig, ax = plt.subplots(figsize=(5, 1.5), layout="constrained")
ax.imshow(
    [[("broken", "old", "new").index(state) for state in row] for row in states],
    cmap="RdYlGn",
    vmin=-0.7,
    vmax=2.7,
    aspect="auto",
)
for row, found in enumerate(states):
    for at, state in enumerate(found):
        ax.text(at, row, state, ha="center", va="center", fontsize=8)
ax.set_yticks([0, 1], ["naive", "atomic"])
ax.set_xticks(range(7), [*range(6), "never"])
ax.set_xlabel("failure before part")
assert states == [["broken"] * 6 + ["new"], ["old"] * 6 + ["new"]]


# %% [markdown]
# ## 5 · The numbers of a run
#
# Sizes, widths, learning rates, seeds: all live in `settings.ini`, one section a *profile*. `[DEFAULT]` holds what profiles share.
#
# | profile | for | takes |
# |---|---|---|
# | `smoke` | tests: does it run at all? | seconds |
# | `demo` | `make demo`, phantoms | minutes on 2 cores |
# | `laptop` | real radiographs without a GPU | an hour or so on 2 cores |
# | `ablation` | each of the many runs of a sweep, [14](14_ablation.ipynb) | a minute |
# | `fine` | a second stage at twice the size, from the weights of `laptop` | hours on 2 cores |
# | `comparison` | the same budget for several methods, [16](16_comparison.ipynb) | minutes each |
# | `gpu` | the full size, our choices | a GPU |
# | `paper` | Section 3.3 of the paper to the letter | a GPU |
#
# The file sits at the top of the repository, and a copy travels in the wheel. Where is it?

# %%
#| export
def settings_path() -> Path:
    "The settings.ini of this installation: the top of a clone, or the copy inside the package."
    return Path(__file__).resolve().parent / "settings.ini" if "__file__" in globals() else (
        next(p / "settings.ini" for p in [Path.cwd(), *Path.cwd().parents]
             if (p / "settings.ini").is_file()))


# %%
ini = settings_path()
print(*ini.read_text(encoding="utf-8").splitlines()[:14], sep="\n")


# %% [markdown]
# The file is text: is `1e-4` a number, is `yes` true, may `channels` be empty? A frozen dataclass gives every key a type and a meaning. The keys come in four classes, each adding to the one before. First the data and the process:

# %%
#| export
@dataclass(frozen=True)
class _DataKeys:
    "What goes in, and how it is drowned in noise."

    profile: str  # section of settings.ini
    seed: int  # of weights, batches, augmentation, noise
    height: int  # pixels at which the networks work
    width: int
    eval_height: int  # pixels at which results are scored
    eval_width: int
    fit: str  # "letterbox" keeps the shape, "squash" does not
    val_fraction: float  # share of the training studies kept for validation
    timesteps: int  # T
    schedule: str  # "linear" or "cosine"
    beta_start: float
    beta_end: float
    prediction_type: str  # "epsilon", "sample" (x_0) or "v_prediction"
    shift: bool  # Eq. (3); false: plain DDPM


# %% [markdown]
# The networks and their loss:

# %%
#| export
@dataclass(frozen=True)
class _ModelKeys(_DataKeys):
    "The two U-Nets and what they are trained for."

    channels: tuple[int, ...]  # width of each level of both U-Nets
    blocks: int  # residual blocks a level
    norm: str  # "group" or "batch"
    msfm: bool
    msfm_dim: int  # d of Eq. (13)
    nsa: bool
    nsa_choice: str  # "soft" or "hard"
    detach_prior: bool  # keep the diffusion loss out of the conditional U-Net
    bce_weight: float  # of the prior's binary cross entropy
    dice_weight: float  # of the prior's soft Dice


# %% [markdown]
# How it is trained, and what is done to the images on the way:

# %%
#| export
@dataclass(frozen=True)
class _TrainingKeys(_ModelKeys):
    "Optimisation and augmentation."

    max_steps: int  # optimiser steps
    batch_size: int  # images a step (a device)
    accumulate: int  # batches a step
    optimizer: str  # "adam" or "adamw"
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    lr_schedule: str  # "constant" or "cosine"
    grad_clip: float  # largest norm of the gradient; 0: off
    mixed_precision: str  # "no" or "bf16"
    ema_decay: float  # of the averaged weights; 0: off
    rotation: float  # degrees
    shift_min: float  # shares of height and width
    shift_max: float
    elastic: float  # standard deviation of the displacement, share of the width
    contrast: float  # strength
    scale_min: float
    scale_max: float
    flip: float  # probability of a left-right flip
    stream: str  # decode images when needed: "true", "false", "auto" (where memory is short)


# %%
assert [len(fields(c)) for c in (_DataKeys, _ModelKeys)] < [
    len(fields(c)) for c in (_ModelKeys, _TrainingKeys)
]
print(*[f.name for f in fields(_TrainingKeys)], sep=", ")


# %% [markdown]
# Book-keeping and sampling complete them:

# %%
#| export
@dataclass(frozen=True)
class _RunKeys(_TrainingKeys):
    "What is written on the way, and how masks are drawn."

    validate_every: int  # steps
    val_images: int  # how many validation images are sampled on the way
    checkpoint_every: int  # steps
    keep_checkpoints: int
    log_every: int  # steps
    sampler: str  # "ddpm", "ddim" or "dpm"
    sample_steps: int
    ensemble: int  # samples an image


# %%
#| export
def _text(value: Any) -> str:
    "A value as settings.ini has it."
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


# %%
assert [_text(v) for v in (True, [8, 16], 0.5)] == ["true", "8,16", "0.5"]


# %% [markdown]
# The finished class can be turned into plain values and back:

# %%
#| export
@dataclass(frozen=True)
class Settings(_RunKeys):
    "All numbers of one run; made by `load_settings`, which checks them."

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
        types = get_type_hints(cls)
        for key in values:
            _known(key, types, f"{where}: unknown key")
        if missing := [key for key in types if key not in values]:
            raise VerdiffError(f"{where}: the key {missing[0]!r} is missing")
        settings = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        _validate(settings, where)
        return settings

    def __str__(self) -> str:
        return "\n".join(f"{key:18s}{_text(value)}" for key, value in self.to_dict().items())


# %% [markdown]
# Types are read from the annotations, so a new key is one line here and one rule below. What may a value be? Two small tables say, and a few rules that join keys:

# %%
#| export
CHOICES: dict[str, tuple[str, ...]] = {
    "fit": ("letterbox", "squash"),
    "schedule": ("linear", "cosine"),
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "norm": ("group", "batch"),
    "nsa_choice": ("soft", "hard"),
    "optimizer": ("adam", "adamw"),
    "lr_schedule": ("constant", "cosine"),
    "mixed_precision": ("no", "bf16"),
    "sampler": ("ddpm", "ddim", "dpm"),
    "stream": ("auto", "true", "false"),
}
# key: (smallest, largest) allowed value
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("height", "width", "eval_height", "eval_width"), (8, 8192)),
    **dict.fromkeys(("max_steps", "accumulate", "validate_every", "val_images", "checkpoint_every",
                     "keep_checkpoints", "log_every"), (1, 10**9)),
    **dict.fromkeys(("timesteps", "sample_steps"), (1, 10**6)),
    "blocks": (1, 100), "msfm_dim": (1, 8192), "batch_size": (1, 10**5), "ensemble": (1, 10**4),
    **dict.fromkeys(("bce_weight", "dice_weight", "weight_decay", "warmup_steps", "grad_clip",
                     "contrast"), (0, 10**9)),
    **dict.fromkeys(("shift_min", "shift_max", "elastic", "flip"), (0, 1)),
    **dict.fromkeys(("beta_start", "beta_end"), (1e-9, 1 - 1e-9)),
    "seed": (0, 2**31 - 1), "learning_rate": (1e-12, 10), "rotation": (0, 180),
    "val_fraction": (0, 0.9), "ema_decay": (0, 0.999999), "scale_min": (0.1, 10),
    "scale_max": (0.1, 10),
}


# %%
#| export
def _known(key: str, allowed: Any, what: str) -> None:
    "Refuse a word that is not allowed, with the nearest one that is."
    if key not in allowed:
        near = get_close_matches(key, list(allowed), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise VerdiffError(f"{what} {key!r}{hint} (allowed: {', '.join(allowed)})" if hint
                           else f"{what} {key!r}; allowed: {', '.join(allowed)}")


# %%
#| export
def _check_value(key: str, value: Any, where: str) -> None:
    "Refuse a value of the wrong type or out of range."
    kind = get_type_hints(Settings)[key]
    if key == "channels":
        whole = isinstance(value, tuple) and all(type(c) is int for c in value)
        if not whole or not value or not 2 <= min(value) <= max(value) <= 8192:
            raise VerdiffError(f"{where}: channels = {value!r} must be whole numbers from 2 to "
                               "8192, such as 16,32,64")
    elif type(value) not in {int: (int,), float: (int, float)}.get(kind, (kind,)):
        raise VerdiffError(f"{where}: {key} = {value!r} must be {_WORDS[kind]}")
    if key in CHOICES:
        _known(value, CHOICES[key], f"{where}: {key} cannot be")
    low, high = RANGES.get(key, (0, 0))
    if key in RANGES and not low <= value <= high:
        raise VerdiffError(f"{where}: {key} = {value!r} must lie between {low:.10g} and "
                           f"{high:.10g}")


def _validate(settings: Settings, where: str) -> None:
    "Refuse what is out of range or does not go together."
    for key, value in asdict(settings).items():
        _check_value(key, value, where)
    for small, large in (("beta_start", "beta_end"), ("shift_min", "shift_max"),
                         ("scale_min", "scale_max"), ("sample_steps", "timesteps")):
        if getattr(settings, small) > getattr(settings, large):
            raise VerdiffError(f"{where}: {small} = {getattr(settings, small)} must not exceed "
                               f"{large} = {getattr(settings, large)}")


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


# %%
#| export
def _parse(key: str, text: str, where: str) -> Any:
    "The text of settings.ini, or of --set, as a value of the key's type."
    kind = get_type_hints(Settings)[key]
    text = text.strip()
    try:
        if key == "channels":
            return tuple(int(c) for c in text.split(","))
        if kind is bool:
            return {"true": True, "yes": True, "on": True, "1": True,
                    "false": False, "no": False, "off": False, "0": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError):
        word = "whole numbers with commas" if key == "channels" else _WORDS[kind]
        raise VerdiffError(f"{where}: {key} = {text!r} must be {word}") from None


def _read(path: Path | None) -> tuple[configparser.ConfigParser, Path]:
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
    "Names of the profiles."
    return _read(path)[0].sections()


# %%
print(profiles())


# %%
#| export
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
    _known(profile, table.sections(), f"{path.name}: there is no profile")
    texts = {key: (text, f"{path.name} [{profile}]") for key, text in table[profile].items()}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise VerdiffError(f"--set {override}: write it as key=value")
        texts[key.strip().lower()] = (text, f"--set {override}")
    types = get_type_hints(Settings)
    for key, (_, where) in texts.items():
        _known(key, [k for k in types if k != "profile"], f"{where}: unknown key")
    values = {key: _parse(key, text, where) for key, (text, where) in texts.items()}
    for key, (_, where) in texts.items():  # names the --set that is wrong, not the file
        _check_value(key, values[key], where)
    return Settings.from_dict({"profile": profile, **values}, f"{path.name} [{profile}]")


# %%
laptop = load_settings("laptop")
print(laptop)

# %% [markdown]
# All profiles beside each other: how many pixels does a run look at, from its first step to its last?

# %%
seen = {
    name: s.max_steps * s.batch_size * s.height * s.width
    for name, s in ((n, load_settings(n)) for n in profiles())
}
fig, ax = plt.subplots(figsize=(5.5, 2.4), layout="constrained")
ax.plot(list(seen.values()), list(seen), "o", color="#443983")
for name, pixels in seen.items():
    ax.annotate(f"{pixels:.0e}", (pixels, name), (6, -3), textcoords="offset points", fontsize=8)
ax.set(xscale="log", xlabel="pixels seen in training")
ax.margins(x=0.2)
ax.grid(axis="y", lw=0.3)
ax.invert_yaxis()

# %% [markdown]
# Anything can be changed for one run: on the command line with `--set`, here with a list. `from_dict(to_dict())` gives the same object back, which is how checkpoints carry their settings.

# %%
short = load_settings("laptop", ["max_steps=100", "channels=8,16", "nsa=off"])
assert (short.max_steps, short.channels, short.nsa) == (100, (8, 16), False)
assert Settings.from_dict(short.to_dict()) == short and short != laptop
assert short.size == laptop.size == (laptop.height, laptop.width) and len(short.eval_size) == 2

# %% [markdown]
# And nonsense is refused with a sentence. Where a word is near to an allowed one, it ends with all that are allowed; the first and the fifth show them here, the keys are too many:

# %%
for profile, override in [
    ("labtop", ""),
    ("laptop", "max_step=3"),
    ("laptop", "nsa=maybe"),
    ("laptop", "beta_end=1.5"),
    ("laptop", "norm=layer"),
    ("laptop", "beta_end=1e-5"),
    ("laptop", "channels=16;32"),
]:
    sentence = complaint(lambda: load_settings(profile, [override] if override else []))
    print("-", sentence if profile == "labtop" else sentence.split(" (allowed")[0])
    assert sentence

# %% [markdown]
# Every key has a rule: `CHOICES` for words, `RANGES` for numbers; the rest are switches, the list of channels, and the profile's name.

# %%
free = [f.name for f in fields(Settings) if f.name not in CHOICES and f.name not in RANGES]
print(free)
assert set(free) == {"profile", "shift", "channels", "msfm", "nsa", "detach_prior"}

# %% [markdown]
# ## 6 · The paper's profile, and what it leaves open
#
# The paper gives, in Sections 3.1 to 3.3: 250×750, batch 1, Adam, learning rate 1e-4, 9,000 steps, seed 35. The rest is ours:
#
# | | paper | ours (`gpu`, `laptop`) | why |
# |---|---|---|---|
# | size | 250×750 (width first, as the paper prints it) | letterboxed | squashing changes angles; [06](06_unet.ipynb), section 9 |
# | normalisation | batch norm, batch of one | group norm | with a batch of one, batch norm is one function in training and another in use ([06](06_unet.ipynb)); of MSFM's vector it has no statistics at all ([07](07_msfm.ipynb)) |
# | $T$, schedule | not stated | 1000, linear 1e-4 … 0.02 | Ho et al. 2020; the shift was analysed for it in [04](04_forward.ipynb) |
# | network predicts | $\epsilon$ | $x_0$ | a mask is learned faster than noise at this budget; [13](13_paper_checked.ipynb), section 7 |
# | widths | not stated | see `channels` | fits the machine |
# | sampler | $T$ steps | DDIM, 10 steps, mean of 5 | [11](11_sampling.ipynb) |

# %%
paper = load_settings("paper")
assert paper.size == (750, 250) and paper.batch_size == 1 and paper.optimizer == "adam"
assert (paper.learning_rate, paper.max_steps, paper.seed) == (1e-4, 9000, 35)

# %% [markdown]
# ## Exercises
#
# **1. Predict.** `load_settings("smoke", ["MAX_STEPS = 7"])`: an error, or not?
#
# <details><summary>Answer</summary>
#
# No error. Keys of an ini file are not sensitive to case, and blanks around the equals sign do not count; `--set` follows the same rules.
#
# </details>

# %%
assert load_settings("smoke", ["MAX_STEPS = 7"]).max_steps == 7

# %% [markdown]
# **2. Change.** Write a settings file of your own with one profile `mine` that differs from `smoke` in its seed, and load it.
#
# <details><summary>Answer</summary>
#
# The lines below: every key of `smoke`, from its dictionary, with another seed. `load_settings(path=...)` reads any file.
#
# </details>

# %%
values = load_settings("smoke").to_dict() | {"seed": 7}
del values["profile"]
values["channels"] = ",".join(map(str, values["channels"]))
own = folder / "own.ini"
own.write_text("[mine]\n" + "\n".join(f"{k} = {v}" for k, v in values.items()))
assert profiles(own) == ["mine"] and load_settings("mine", path=own).seed == 7


# %% [markdown]
# **3. Implement.** A function `changed(a, b)` that gives the keys in which two settings differ ([10](10_training.ipynb) uses one like it to refuse a foreign checkpoint).
#
# <details><summary>Answer</summary>
#
# `[k for k, v in a.to_dict().items() if v != b.to_dict()[k]]`
#
# </details>

# %%
def changed(a, b):
    return [k for k, v in a.to_dict().items() if v != b.to_dict()[k]]

assert changed(laptop, short) == ["channels", "nsa", "max_steps"]

# %% [markdown]
# ## What we have
#
# `load_settings`, `Settings`, `VerdiffError` and `atomic_write`. Nothing here imports torch, so `verdiff --help` answers at once. Next: [pictures](01_data.ipynb).
