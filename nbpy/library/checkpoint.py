# %% [markdown]
# # Checkpoints
# > A run that was killed goes on to the same weights

# %% [markdown]
# A long run gets interrupted: by Ctrl-C, by a cluster, by a power cut in the middle of a save. A checkpoint is one file with all that is needed
# to go on: weights, their average, optimiser, step, history, settings and a fingerprint of the images (names; and pixels and masks where they lie
# in memory, so whoever corrects a label begins another run). It is written under a temporary name, forced to the disk and renamed; a few are
# kept, and a damaged one is named and passed over. [`train`](run.ipynb) writes and reads them. Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/checkpoint.ipynb).

# %%
#| default_exp training.checkpoint

# %%
#| export
import hashlib
import pickle
import re
import shlex
import sys
import zipfile
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from verdiff.data.packed import Packed, Streamed
from verdiff.files import VerdiffError, atomic_write
from verdiff.networks.model import VerdiffNet
from verdiff.settings import LATER, Settings

# %%
#| code-fold: true
import shutil
import tempfile
from contextlib import redirect_stderr

from verdiff.settings import load_settings

# %%
#| code-fold: true
torch.set_num_threads(1)
tiny = load_settings("smoke")
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Write and find

# %%
#| export
def checkpoints(
    out: Path,  # folder of a run
) -> list[Path]:  # the oldest first
    "The checkpoints of a run, by step."
    paths = out.glob("checkpoint-*.pt")
    found = ((re.fullmatch(r"checkpoint-(\d+)\.pt", p.name), p) for p in paths)
    return [p for _, p in sorted((int(m[1]), p) for m, p in found if m)]


# %%
#| export
def save_checkpoint(
    out: Path,
    state: dict[str, Any],  # must hold "step"
    keep: int = 3,
) -> Path:
    "Write checkpoint-NNNNNN.pt atomically; it and the `keep` - 1 before it stay."
    path = out / f"checkpoint-{state['step']:06d}.pt"
    with atomic_write(path) as temporary:
        torch.save(state, temporary)
    there = checkpoints(out)
    here = there.index(path)
    for old in [*there[:max(here + 1 - keep, 0)], *there[here + 1:]]:  # later ones are damaged
        old.unlink()
    return path


# %%
for k in (1, 999_999, 1_000_000):
    save_checkpoint(folder, {"step": k}, keep=2)
print([p.name for p in checkpoints(folder)])
assert [p.stem[11:] for p in checkpoints(folder)] == ["999999", "1000000"]


# %% [markdown]
# ## Read
# A damaged file is named, and the one before it used: the zip's checksums notice one flipped bit. Nothing from a checkpoint is executed.

# %%
#| export
def read_checkpoint(
    path: Path,
) -> dict[str, Any] | None:  # None: damaged
    "What `save_checkpoint` wrote; every byte is checked, nothing from the file is executed."
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip() is not None:
                return None
        state = torch.load(path, map_location="cpu", weights_only=True)
        known = {"step", "settings", "data"} <= set(state) and isinstance(state["settings"], dict)
        return state if known else None
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, NotImplementedError,
            pickle.UnpicklingError, zipfile.BadZipFile, zlib.error):
        return None


# %%
content = {"step": 7, "settings": {}, "data": "", "model": torch.randn(1000)}
path = save_checkpoint(folder, content)
assert read_checkpoint(path)["step"] == 7
damaged = bytearray(path.read_bytes())
damaged[len(damaged) // 2] ^= 1  # one bit
for some in (damaged, damaged[:900]):
    path.write_bytes(some)
    assert read_checkpoint(path) is None

# %% [markdown]
# ## Is it the same run?
# A checkpoint of *another* run is refused with a sentence that names the settings that differ; those that do not change the training may. Four images on each of two devices are
# the same run as eight on one. A setting that is newer than the checkpoint counts as what runs did before there was one (`LATER`).

# %%
#| export
MAY_CHANGE = ("profile", "log_every", "checkpoint_every", "keep_checkpoints", "eval_height",
              "eval_width", "ensemble", "sample_steps", "sampler", "validate_every", "val_images",
              "stream")  # on resuming


def check_same_run(
    state: dict[str, Any],  # a checkpoint
    settings: Settings,
    data_key: str,  # tells the training images
    processes: int,
    path: Path,  # to name in errors
) -> None:
    "VerdiffError where a checkpoint belongs to another run."
    away = "use another --out, or start over with --fresh"
    theirs, mine = {**LATER, **state["settings"]}, settings.to_dict()
    theirs["batch_size"] = theirs.get("batch_size", 0) * state.get("processes", 1)
    mine["batch_size"] *= processes
    every = [*mine, *(k for k in theirs if k not in mine)]  # the last: of a newer verdiff
    if differ := [k for k in every if k not in MAY_CHANGE and theirs.get(k) != mine.get(k)]:
        said = ", ".join(f"{k} (there {theirs.get(k)!r}, here {mine.get(k)!r})" for k in differ)
        on = (f"; to train it further, add --start-from {shlex.quote(str(path.parent))} and "
              "another --out") if differ == ["max_steps"] else ""
        raise VerdiffError(f"{path} belongs to a run with other settings: {said}; {away}{on}")
    (names, _, pixels), (our_names, _, our_pixels) = (
        key.partition(":") for key in (state["data"], data_key))
    if names != our_names or (pixels and our_pixels and pixels != our_pixels):
        raise VerdiffError(f"{path} belongs to a run on other images or masks; {away}")


# %%
#| export
def load_checkpoint(
    out: Path,
    settings: Settings,
    data_key: str,  # tells the training images
    processes: int = 1,
) -> dict[str, Any] | None:  # None: there is none yet
    "The newest readable checkpoint; VerdiffError if all are damaged or it is of another run."
    paths = checkpoints(out)[::-1]
    for path in paths:
        if (state := read_checkpoint(path)) is not None:
            check_same_run(state, settings, data_key, processes, path)
            return state
        print(f"{path.name} is damaged; trying the one before it", file=sys.stderr)
    if paths:
        raise VerdiffError(f"{out}: {paths[0].name} and all before it are damaged; remove them or "
                           "start over with --fresh")
    return None


# %%
(folder / "checkpoint-1000000.pt").write_bytes(damaged)
other = tiny.to_dict() | {"batch_size": 2, "learning_rate": 1.0}
del other["recycle"]  # as before there was such a key
state = {"step": 999_999, "settings": other, "data": "", "processes": 2}
save_checkpoint(folder, state)
try:
    with redirect_stderr(sys.stdout):
        load_checkpoint(folder, tiny, "")
except VerdiffError as error:
    print(str(error).replace(str(folder), "..."))
    assert "learning_rate" in str(error)
    assert "batch_size" not in str(error) and "recycle" not in str(error)
assert "learning_rate" not in MAY_CHANGE and "stream" in MAY_CHANGE

# %% [markdown]
# ## Start from other weights
# A trained network can be *fine-tuned* on other images, or at a larger size (convolutions do not mind). The settings that say what its output means (`MUST_MATCH`) must be the same.

# %%
#| export
MUST_MATCH = ("channels", "blocks", "stem", "norm", "msfm", "msfm_dim", "nsa", "nsa_choice",
              "shift", "timesteps", "schedule", "beta_start", "beta_end", "input_scale",
              "prediction_type")  # on fine-tuning


def start_from(
    model: VerdiffNet,  # gets the weights
    trained: VerdiffNet,  # gives them
) -> VerdiffNet:  # model
    "Begin with the weights of a trained network; VerdiffError where it is another kind of network."
    here, there = asdict(model.config), asdict(trained.config)
    if differ := [k for k in MUST_MATCH if here[k] != there[k]]:
        said = ", ".join(f"{k} (there {there[k]!r}, here {here[k]!r})" for k in differ)
        raise VerdiffError(f"the network to start from has other settings: {said}; "
                           "change them with --set, or start from another network")
    model.load_state_dict(trained.state_dict())
    return model


# %%
assert "channels" in MUST_MATCH and "height" not in MUST_MATCH
twins = [VerdiffNet(channels=(8, 16), height=h, width=h // 2) for h in (64, 128)]
start_from(*twins)
for a, b in zip(*(n.state_dict().values() for n in twins), strict=True):
    assert torch.equal(a, b)
try:
    start_from(VerdiffNet(channels=(8, 16), shift=False), twins[0])
except VerdiffError as error:
    print(error)


# %%
#| export
def data_key(data: Packed | Streamed) -> str:
    "Tells images from others: by name, and by pixel and mask where they lie in memory."
    digest = hashlib.sha256("\n".join(data.names).encode("utf-8", "surrogateescape"))
    names = digest.hexdigest()
    if not isinstance(data, Packed):
        return names
    for pixels in (data.images, data.masks):
        digest.update(pixels.cpu().contiguous().numpy().data)
    return f"{names}:{digest.hexdigest()}"


# %%
masks = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
key = data_key(Packed(masks, masks, ["a.png", "b.png"]))
masks[1, 0, 3, 3] = 1  # somebody corrects a label
other = data_key(Packed(masks, masks, ["a.png", "b.png"]))
assert key != other and key.partition(":")[0] == other.partition(":")[0]

# %%
#| hide
shutil.rmtree(folder)
