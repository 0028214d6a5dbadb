# %% [markdown]
# # The run that survives
# > The lesson's step inside a loop that no power cut, no bad file and no second process can upset

# %% [markdown]
# [Lesson 13](../13_training.ipynb) writes Algorithm 1 on one screen. `train` calls the same `take_step`, and adds what a run of days needs:
# it resumes from [checkpoints](checkpoint.ipynb) to the last bit, stops politely, keeps the best network by validation, refuses
# a second process in its folder, says which images made a loss infinite, and runs on several devices through accelerate. Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/run.ipynb).

# %%
#| default_exp training.run

# %%
#| export
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import InitProcessGroupKwargs
from torch import Tensor, nn
from tqdm import tqdm

import verdiff
from verdiff.data.packed import Packed, Streamed
from verdiff.diffusion.sampling import sample
from verdiff.files import VerdiffError, git_revision, is_memory_short, run_lock, write_json
from verdiff.metrics import dice
from verdiff.networks.config import VerdiffConfig
from verdiff.networks.model import VerdiffNet
from verdiff.networks.pretrained import CONFIG_FILE, WEIGHTS_FILE, weights_digest
from verdiff.settings import Settings
from verdiff.training.batches import Batch, batch_indices, batches, prefetch
from verdiff.training.checkpoint import (
    checkpoints, data_key, load_checkpoint, save_checkpoint, start_from,
)
from verdiff.training.loop import (
    ema_update, learning_rate, make_accelerator, make_optimizer, take_step,
)
from verdiff.training.loss import LOSSES, Objective

# %%
#| code-fold: true
import json
import shutil
import subprocess
import tempfile

import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats

from verdiff.data.datasets import training_data
from verdiff.settings import load_settings

# %%
#| code-fold: true
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The state of a run

# %%
#| export
@dataclass
class Run:
    "The state of one training run."

    settings: Settings
    out: Path  # its folder
    accelerator: Any  # accelerate's: device, precision, other processes
    data: Packed | Streamed  # to train on; Packed: on the device
    val_data: Packed | None  # to validate on
    model: VerdiffNet
    average: VerdiffNet  # of the model's weights
    objective: nn.Module  # the loss, wrapped by accelerate
    optimizer: Any  # wrapped by accelerate
    step: int = 0
    best: float = -1.0  # validated Dice of what is in OUT/model
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of all threads of this process
    clean: bool = True  # False while weights are being changed
    key: str = ""  # of the training images
    start: str = ""  # of the weights that `--start-from` named

    @property
    def main(self) -> bool:
        "Whether this process writes files and speaks."
        return self.accelerator.is_main_process

    def changing(self, *_: Any) -> None:
        "From here on until the step is over, the weights belong to no step."
        self.clean = False

    def spend(self, since: tuple[float, float]) -> tuple[float, float]:
        "Count the time since then, by the wall's clock and by the processor's; the time now."
        now = time.perf_counter(), time.process_time()
        self.seconds, self.cpu_seconds = (
            spent + b - a for spent, a, b in zip((self.seconds, self.cpu_seconds), since, now,
                                                 strict=True))
        return now


# %%
#| export
def group_timeout() -> InitProcessGroupKwargs:
    "For `Accelerator`: processes wait for the one that validates, however long it takes."
    return InitProcessGroupKwargs(timeout=timedelta(hours=12))


def prepare(
    settings: Settings,
    train_data: Packed | Streamed,
    val_data: Packed | None,
    out: Path,
    trained: VerdiffNet | None = None,  # a network to start from
) -> Run:
    "A run at step 0. VerdiffError where there is no image, or images of another size."
    if not len(train_data):
        raise VerdiffError("there is no image to train on")
    if isinstance(train_data, Packed) and tuple(train_data.images.shape[-2:]) != settings.size:
        raise VerdiffError(f"the images are {'x'.join(map(str, train_data.images.shape[-2:]))} and "
                           f"the settings say {settings.height}x{settings.width}")
    accelerator = make_accelerator(settings, kwargs_handlers=[group_timeout()])
    key = data_key(train_data)
    if isinstance(train_data, Packed):
        train_data = train_data.to(accelerator.device)
    count = min(settings.val_images, len(val_data) if val_data is not None else 0)
    torch.manual_seed(settings.seed)
    model = VerdiffNet(VerdiffConfig.from_settings(settings))
    if trained is not None:
        start_from(model, trained)
    model.to(accelerator.device)
    optimizer = make_optimizer(model, settings)
    wrapped = accelerator.prepare(Objective(model, settings), optimizer)
    some = val_data.subset(range(count)) if count else None
    average = deepcopy(model).eval().requires_grad_(False)
    run = Run(settings, out, accelerator, train_data, some, model, average, *wrapped, key=key,
              start="" if trained is None else weights_digest(trained))
    optimizer.register_step_pre_hook(run.changing)
    return run


# %% [markdown]
# ## Files
# `history.json` holds the curves, `run.json` says what this run is, a checkpoint holds all that is needed to go on.

# %%
#| export
def snapshot(run: Run) -> dict[str, Any]:
    "All that a checkpoint holds."
    return {"step": run.step, "settings": run.settings.to_dict(), "data": run.key,
            "start": run.start, "processes": run.accelerator.num_processes,
            "model": run.model.state_dict(), "average": run.average.state_dict(),
            "optimizer": run.optimizer.state_dict(), "best": run.best, "history": run.history,
            "seconds": run.seconds, "cpu_seconds": run.cpu_seconds,
            "verdiff": verdiff.__version__}


def restore(run: Run, state: dict[str, Any]) -> None:
    """Go back to a checkpoint.

    VerdiffError where another version of verdiff wrote it, or the run began with other weights
    than `--start-from` names now.
    """
    if run.start and run.start != state.get("start"):
        raise VerdiffError(f"{run.out} holds a run that began with other weights than those to "
                           "start from; use another --out, or start over with --fresh")
    try:
        run.model.load_state_dict(state["model"])
        run.average.load_state_dict(state["average"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.step, run.best = state["step"], state["best"]
        run.history, run.seconds = state["history"], state["seconds"]
        run.cpu_seconds = state.get("cpu_seconds", 0.0)
        run.start = state.get("start", "")
        if any(state["settings"].get(k) != v for k, v in run.settings.to_dict().items()
               if k in ("val_images", "sampler", "sample_steps")):
            run.best = -1.0  # measured in another way
    except (KeyError, RuntimeError, ValueError) as error:  # the last: of the optimiser
        raise VerdiffError(f"{run.out}: verdiff {state.get('verdiff', '(unknown)')} wrote the "
                           f"checkpoint, this is {verdiff.__version__}, and it does not fit; go "
                           "on with that version, or start over with --fresh") from error


# %%
#| export
def save(run: Run) -> Path:
    "The history and what this run is, both as JSON, and a checkpoint."
    acc, val = run.accelerator, run.val_data
    about = {"verdiff": verdiff.__version__, "torch": torch.__version__, "commit": git_revision(),
             "device": str(acc.device), "processes": acc.num_processes, "images": len(run.data),
             "validated_on": len(val) if val is not None else 0,
             "parameters": run.model.num_parameters(), "step": run.step,
             "seconds": round(run.seconds, 1), "cpu_seconds": round(run.cpu_seconds, 1),
             "best": run.best, "settings": run.settings.to_dict()}
    write_json(run.out / "history.json", run.history)
    write_json(run.out / "run.json", about)
    return save_checkpoint(run.out, snapshot(run), run.settings.keep_checkpoints)


LEFT_BY_A_RUN = ("run.json", "history.json", f"model/{CONFIG_FILE}", f"model/{WEIGHTS_FILE}")


def resume_run(run: Run, resume: bool = True) -> None:
    """Go back to the newest checkpoint, or remove the old run; sweep up what a kill left behind.

    VerdiffError where the checkpoints are damaged or of another run.
    """
    if run.main:
        run.out.mkdir(parents=True, exist_ok=True)
        old = [*run.out.glob(".*.part"), *run.out.glob("model/.*.part")]
        old += [] if resume else [*checkpoints(run.out), *(run.out / n for n in LEFT_BY_A_RUN)]
        for path in old:
            path.unlink(missing_ok=True)
    run.accelerator.wait_for_everyone()
    count = run.accelerator.num_processes
    if resume and (state := load_checkpoint(run.out, run.settings, run.key, count)):
        restore(run, state)
    if run.main and run.step:
        done = run.step >= run.settings.max_steps
        said = "finished already" if done else f"going on after step {run.step}"
        print(f"{run.out.name}: {said}")


# %% [markdown]
# ## After a step
# All processes agree on their mean losses and on whether somebody pressed Ctrl-C. A loss or gradient that is not finite has spoilt
# the weights: nothing more is saved, and the message says where.

# %%
#| export
def all_reduce(
    run: Run,
    losses: Tensor,  # of this process
    asked: bool,  # to stop
) -> tuple[dict[str, float], bool]:  # losses of all processes, and whether any was asked
    "What every process must know alike after a step: one small message, one wait for the device."
    told = torch.cat([losses, losses.new_tensor([float(asked)])])
    *means, stop = run.accelerator.reduce(told, "mean").tolist()
    return dict(zip(LOSSES, means, strict=True)), stop > 0


def check_finite(run: Run, losses: dict[str, float]) -> None:
    "VerdiffError with step, files and last checkpoint where loss or gradient is no number."
    if math.isfinite(losses["total"]):
        return
    s, kept = run.settings, checkpoints(run.out)
    size = s.batch_size * run.accelerator.num_processes
    numbers = range((run.step - 1) * s.accumulate, run.step * s.accumulate)
    index = torch.cat([batch_indices(len(run.data), size, n, s.seed) for n in numbers]).tolist()
    names = ", ".join(run.data.names[i] for i in index[:32]) + (", ..." if len(index) > 32 else "")
    raise VerdiffError(
        f"the loss or its gradient is {losses['total']} at step {run.step} (images {names}); "
        "try a smaller learning_rate or mixed_precision=no; the last checkpoint is "
        f"{kept[-1].name if kept else 'none'}")


# %% [markdown]
# Validation keeps the best network. First the network, then the checkpoint: killed between the two, the run resumes from the older
# checkpoint, finds the same Dice and writes the same network again. The other order could lose it.

# %%
#| export
@torch.no_grad()
def validate(
    model: VerdiffNet,
    data: Packed,
    steps: int = 10,  # of the sampler
    batch_size: int = 8,
    seed: int = 0,
    sampler: str = "ddim",
) -> dict[str, float]:  # "prior_dice", "diffusion_dice": means over images, at the network's size
    "Dice of the prior and of one sample."
    was, scores = model.training, []
    model.eval()
    for first in range(0, len(data), batch_size):
        part = slice(first, first + batch_size)
        image, mask = (x[part].to(model.device) for x in (data.images, data.masks))
        got = sample(model, image.float() / 255, steps, 1, seed, sampler, first)
        scores.append(torch.stack([dice(p > 0.5, mask) for p in (got.prior_prob, got.samples[0])]))
    model.train(was)
    prior, diffusion = torch.cat(scores, 1).mean(1).tolist()
    return {"prior_dice": prior, "diffusion_dice": diffusion}


def keep_best(run: Run) -> dict[str, float]:
    "Validate the averaged weights; the best so far, with `sample_steps`, are kept in OUT/model."
    s = run.settings
    found, one = (validate(run.average, run.val_data, steps, s.batch_size, s.seed, s.sampler)
                  for steps in (s.sample_steps, 1))
    found |= {"one_step_dice": one["diffusion_dice"], "cpu_hours": run.cpu_seconds / 3600}
    if found["diffusion_dice"] >= run.best:
        run.average.save_pretrained(run.out / "model")
        run.best = found["diffusion_dice"]
    return found


def report(run: Run, losses: dict[str, float], bar: tqdm) -> None:
    "Validate, note and save when it is time."
    s, step, end = run.settings, run.step, run.step == run.settings.max_steps
    entry = {"step": step, **losses, "lr": learning_rate(s, step - 1)}
    if validated := run.val_data is not None and (step % s.validate_every == 0 or end):
        entry |= keep_best(run)
        bar.set_postfix({k: f"{entry[k]:.3f}" for k in ("prior_dice", "diffusion_dice")})
    if step % s.log_every == 0 or end or validated:
        run.history.append(entry)
    if end and run.val_data is None:
        run.average.save_pretrained(run.out / "model")
    if step % s.checkpoint_every == 0 or end:
        save(run)


# %% [markdown]
# ## Stopping politely
# Ctrl-C should not hit in the middle of a weight update. The first one only raises a flag, read between two steps; so does
# SIGTERM, by which a cluster wants its machine back.

# %%
#| export
@contextmanager
def polite_interrupt() -> Iterator[threading.Event]:
    "While it holds, Ctrl-C and SIGTERM set the event; Ctrl-C again, a second later, interrupts."
    asked, since = threading.Event(), [0.0]

    def handler(number: int, frame: Any) -> None:
        if asked.is_set() and number == signal.SIGINT and time.monotonic() - since[0] > 1:
            raise KeyboardInterrupt
        asked.set()
        since[0] = time.monotonic()

    ours = (signal.SIGINT, signal.SIGTERM)
    here = threading.current_thread() is threading.main_thread()  # others may not
    before = {number: signal.signal(number, handler) for number in ours if here}
    try:
        yield asked
    finally:
        for number, old in before.items():
            signal.signal(number, old)


# %%
#| export
class Work(NamedTuple):
    "What the loop needs beside the run."

    stream: Iterator[Batch]  # the batches of this process from the run's step on
    bar: tqdm
    asked: threading.Event  # to stop


def smaller(settings: Settings) -> str:
    "Settings that take less memory; the gradient is of as many images where that is possible."
    s = settings
    if s.batch_size > 1:
        return f"batch_size={s.batch_size // 2} --set accumulate={2 * s.accumulate}"
    return f"height={s.height // 2} --set width={s.width // 2}"


@contextmanager
def at_work(run: Run, progress: bool = True) -> Iterator[Work]:
    """Batches made ahead, a bar, an ear for signals; a checkpoint when the loop is interrupted.

    What goes wrong inside is raised again once the batches have stopped; memory that runs short
    becomes a VerdiffError, after a checkpoint.
    """
    s, acc = run.settings, run.accelerator
    stream = prefetch(batches(run.data, s, run.step * s.accumulate, acc.device,
                              acc.process_index, acc.num_processes))
    bar = tqdm(total=s.max_steps, initial=run.step, desc="train", unit="step",
               disable=None if progress and run.main else True)
    try:
        with polite_interrupt() as asked, closing(stream), bar:
            yield Work(stream, bar, asked)
    except (KeyboardInterrupt, MemoryError, RuntimeError) as error:
        short = is_memory_short(error)
        if not (short or isinstance(error, KeyboardInterrupt)):
            raise
        if run.main and run.clean and run.step:
            print(f"saved {save(run).name}; the same command goes on from there", file=sys.stderr)
        if short:
            raise VerdiffError(f"not enough memory for a batch of {s.batch_size} at {s.height}x"
                               f"{s.width}; free some and give the same command again, or start "
                               f"over with --fresh --set {smaller(s)}") from error
        raise


# %% [markdown]
# ## The loop
# Compare it with the one of lesson 13.

# %%
#| exports
def train(
    settings: Settings,
    train_data: Packed | Streamed,
    val_data: Packed | None,  # None or empty: the last weights are kept, else the best
    out: str | Path,  # folder of the run
    resume: bool = True,  # go on from the newest checkpoint in `out`
    progress: bool = True,  # show a bar
    trained: VerdiffNet | None = None,  # a network to start from; None: from nothing
) -> VerdiffNet:  # the averaged model, best on the validation part, in eval mode
    """Algorithm 1. Writes checkpoints, history.json, run.json and OUT/model.

    KeyboardInterrupt passes after a checkpoint was saved. VerdiffError: a loss that is no number,
    a checkpoint of another run, a second process in `out`, a disk that is full.
    """
    run, s = prepare(settings, train_data, val_data, Path(out), trained), settings
    with run_lock(run.out) if run.main else nullcontext():
        resume_run(run, resume)
        since = time.perf_counter(), time.process_time()
        with at_work(run, progress) as work:
            while run.step < s.max_steps:
                losses = take_step(run.objective, run.optimizer, work.stream, s, run.step,
                                   run.accelerator)
                ema_update(run.average, run.model, s.ema_decay, run.step)
                run.step, run.clean = run.step + 1, True
                losses, stop = all_reduce(run, losses, work.asked.is_set())
                check_finite(run, losses)
                since = run.spend(since)
                work.bar.update()
                if run.main:
                    report(run, losses, work.bar)
                if stop:
                    raise KeyboardInterrupt
        return finished_model(run)


def finished_model(run: Run) -> VerdiffNet:
    "OUT/model of a run that is done; the last averaged weights where it is not complete."
    kept = run.out / "model"
    if run.main and not all((kept / f).exists() for f in (CONFIG_FILE, WEIGHTS_FILE)):
        print(f"{kept} is not complete; the last averaged weights take its place")
        run.average.save_pretrained(kept)
    run.accelerator.wait_for_everyone()
    return VerdiffNet.from_pretrained(kept).to(run.accelerator.device)


# %% [markdown]
# ## Use
# Sixty steps on eighteen phantoms.

# %%
small = load_settings("smoke", "height=72 width=24 channels=8,16,32 max_steps=60 batch_size=8 "
                      "learning_rate=0.006 warmup_steps=5 rotation=10 ema_decay=0.9 timesteps=1000 "
                      "validate_every=20 checkpoint_every=10 log_every=1 sample_steps=5 "
                      "val_fraction=0.25".split())
parts = training_data("phantom", small, n_training=24)
model = train(small, *parts, folder / "whole", progress=False)
print(sorted(p.name for p in (folder / "whole").iterdir()))

# %% [markdown]
# The same in a process of its own, which gets a cluster's signal after its first checkpoint and is started again. The weights are the same, byte
# by byte. (A test does it with `kill -9`, which no program can catch, twenty times and at every stage of saving.)

# %%
script = f"""
import os, signal, sys, threading, time
from pathlib import Path
from verdiff.data.datasets import training_data
from verdiff.settings import Settings
from verdiff.training.run import train

out = Path({str(folder / "cut")!r})
def stop():
    while not list(out.glob("checkpoint-*.pt")):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)

small = Settings.from_dict({small.to_dict()})
if sys.argv[1] == "stop":
    threading.Thread(target=stop, daemon=True).start()
train(small, *training_data("phantom", small, n_training=24), out, progress=False)
"""
for word in ("stop", "go on"):
    done = subprocess.run([sys.executable, "-c", script, word], capture_output=True, text=True)
    lines = [s for s in (done.stdout + done.stderr).splitlines() if "step" in s or "saved" in s]
    print(*lines[:1])
weights = [(folder / name / "model/model.safetensors").read_bytes() for name in ("whole", "cut")]
assert weights[0] == weights[1]

# %%
#| code-fold: true
#| fig-alt: "Left: total loss falls over sixty steps. Right: validated Dice at steps 20, 40 and 60 of the prior, of one sample in one step and of one in five steps."
history = json.loads((folder / "whole/history.json").read_text())
fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.3), layout="constrained")
left.plot([h["step"] for h in history], [h["total"] for h in history])
left.set(xlabel="step", ylabel="loss")
for key in ("prior_dice", "one_step_dice", "diffusion_dice"):
    seen = [h for h in history if key in h]
    right.plot([h["step"] for h in seen], [h[key] for h in seen], "o-", label=key)
right.set(xlabel="step", ylabel="Dice, validation")
right.legend();

# %%
#| hide
shutil.rmtree(folder)
