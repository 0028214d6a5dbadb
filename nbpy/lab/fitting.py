# %% [markdown]
# # Training any method
# > One loop for every network, with a budget of steps or of minutes

# %% [markdown]
# [The comparison](comparison.ipynb) is only as fair as its loop. This one takes anything with a `loss`; its step is that of page [13](../13_training.ipynb). The same steps cost one network two minutes and another forty, so the budget may be minutes instead: of the processor's time on a CPU, where other work on the machine then counts little, and of the clock on a GPU ([![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/lab/fitting.ipynb)).

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().run_line_magic(  # noqa: F821
        "pip", "install -q 'verdiff[notebooks,compare] @ git+https://github.com/verdiff/verdiff'")

# %%
#| default_exp lab.fitting

# %%
#| code-fold: true
import shutil
import tempfile

from verdiff.data.packed import pack
from verdiff.data.phantom_set import PhantomSet
from verdiff.lab.methods import make_network
from verdiff.settings import load_settings

# %%
#| exports
#| code-fold: true
import time
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, replace
from math import ceil, inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from tqdm import tqdm

from verdiff.data.packed import Packed
from verdiff.files import VerdiffError
from verdiff.settings import Settings
from verdiff.training.batches import batches
from verdiff.training.checkpoint import data_key, load_checkpoint, save_checkpoint
from verdiff.training.loop import ema_update, make_optimizer, take_step
from verdiff.training.run import polite_interrupt

# %% [markdown]
# ## The state
#
# What a checkpoint holds: the network, the average of its weights, the optimiser, the losses, and the time that the steps took.

# %%
#| exports
#| code-fold: true
class MethodLoss(nn.Module):
    "A method's loss in the form that `take_step` of page 13 expects."

    def __init__(self, network: nn.Module):  # with `loss`
        super().__init__()
        self.network = network

    def forward(self, *batch: Tensor) -> dict[str, Tensor]:
        "A `Batch` (image, mask, t, noise, ...) -> {\"total\": scalar}."
        return {"total": self.network.loss(*batch[:4])}  # no method but ours recycles


# %%
#| exports
#| code-fold: true
@dataclass
class FitState:
    "A method's network while it learns."

    network: nn.Module
    average: nn.Module  # of its weights
    optimizer: torch.optim.Optimizer
    losses: list[float]  # of every step so far
    seconds: float = 0.0  # of the steps, by the clock
    cpu_seconds: float = 0.0  # of the steps, of all threads of this process

    def state(self) -> dict[str, Any]:
        "For a checkpoint."
        parts = {k: getattr(self, k).state_dict() for k in ("network", "average", "optimizer")}
        return parts | {"step": len(self.losses), "losses": self.losses, "seconds": self.seconds,
                        "cpu_seconds": self.cpu_seconds}

    def restore(self, state: dict[str, Any]) -> None:
        "Go back to a checkpoint."
        for k in ("network", "average", "optimizer"):
            getattr(self, k).load_state_dict(state[k])
        self.losses, self.seconds = state["losses"], state["seconds"]
        self.cpu_seconds = state.get("cpu_seconds", 0.0)


# %% [markdown]
# ## The budget
#
# A cosine must know its end. With a budget of minutes nobody knows how many steps there will be, so at each step the share of the budget that is spent takes the place of the share of the steps. A run of another budget would have had another cosine, and is refused; with `lr_schedule=constant` a run may be given more minutes later.

# %%
#| exports
#| code-fold: true
def check_minutes(minutes: float | None) -> None:
    "VerdiffError for a budget that is no positive number."
    if minutes is not None and not 0 < minutes < inf:
        raise VerdiffError(f"--minutes {minutes:g}: give a number above 0, such as 60 or 0.5")


# %%
#| exports
#| code-fold: true
def share_done(
    run: FitState,
    settings: Settings,
    minutes: float | None,  # None: max_steps count
    device: torch.device | str = "cpu",
) -> float:  # 1 or more: done
    "Share of the budget that is spent: of steps, of processor minutes, on a GPU of minutes."
    if minutes is None:
        return len(run.losses) / settings.max_steps
    spent = run.cpu_seconds if torch.device(device).type == "cpu" else run.seconds
    return spent / (60 * minutes)


# %%
#| exports
#| code-fold: true
def at_pace(
    settings: Settings,
    step: int,  # from 0
    share: float,  # of the budget
) -> Settings:
    "As if max_steps were what the budget of minutes allows at the pace so far."
    end = ceil(step / share) if share > 0 else 10**9
    return replace(settings, max_steps=min(max(end, step + 1), 10**9))


# %% [markdown]
# ## The loop

# %%
#| exports
#| code-fold: true
def start_fit(
    network: nn.Module,  # with `loss`, on its device
    settings: Settings,
    data: Packed,
    out: Path,  # folder of the checkpoint; made if missing
    minutes: float | None = None,  # the budget; None: max_steps
) -> tuple[FitState, str]:  # where it stands, and what tells its images
    """Step 0, or where the checkpoint in `out` left off.

    VerdiffError where there is no image, or the checkpoint is of another run or budget."""
    if not len(data):
        raise VerdiffError("there is no image to train on")
    out.mkdir(parents=True, exist_ok=True)
    average = deepcopy(network).eval().requires_grad_(False)
    run = FitState(network.train(), average, make_optimizer(network, settings), [])
    key = data_key(data)
    if state := load_checkpoint(out, settings, key):
        there = state.get("minutes")
        if settings.lr_schedule != "constant" and there != minutes:
            said = " and ".join("max_steps" if m is None else f"{m:g} minutes"
                                for m in (there, minutes))
            raise VerdiffError(f"{out} holds a run with another budget (there and here: {said}); "
                               "use another --out, or start over with --fresh")
        run.restore(state)
    return run, key


# %%
#| exports
#| code-fold: true
def fit(
    network: nn.Module,  # with `loss`
    settings: Settings,
    data: Packed,  # at the network's size
    out: Path,  # folder of the checkpoint
    device: torch.device | str = "cpu",
    progress: bool = True,
    minutes: float | None = None,  # of the processor, on a GPU of the clock; None: max_steps
) -> FitState:  # `average` is what counts, in eval mode
    """Spend the budget, or go on from the checkpoint in `out`; KeyboardInterrupt after a save.

    Only steps are timed. VerdiffError where there is no image, the checkpoint is another run's,
    or the loss is no number."""
    check_minutes(minutes)
    s, out = settings, Path(out)
    run, key = start_fit(network.to(device), s, data.to(device), out, minutes)
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=s.mixed_precision, cpu=str(device) == "cpu")
    objective = accelerator.prepare_model(MethodLoss(run.network), device_placement=False)
    endless = replace(s, max_steps=s.max_steps if minutes is None else 10**9)
    stream = batches(data.to(device), endless, len(run.losses) * s.accumulate, device)
    bar = tqdm(total=None if minutes else s.max_steps, initial=len(run.losses), desc=out.name,
               unit="step", disable=None if progress else True)
    with polite_interrupt() as asked, bar, closing(stream):
        while (share := share_done(run, s, minutes, device)) < 1:
            start, cpu, step = time.perf_counter(), time.process_time(), len(run.losses)
            now = s if minutes is None else at_pace(s, step, share)
            loss = take_step(objective, run.optimizer, stream, now, step, accelerator).item()
            if not np.isfinite(loss):
                raise VerdiffError(f"the loss or its gradient is {loss} at step {step + 1}; try a "
                                   "smaller learning_rate with --set, or mixed_precision=no")
            run.losses.append(loss)
            ema_update(run.average, run.network, s.ema_decay, step)
            run.seconds += time.perf_counter() - start
            run.cpu_seconds += time.process_time() - cpu
            bar.update()
            end = share_done(run, s, minutes, device) >= 1
            if asked.is_set() or end or (step + 1) % s.checkpoint_every == 0:
                save_checkpoint(out, run.state() | {
                    "settings": s.to_dict(), "data": key, "minutes": minutes}, keep=1)
            if asked.is_set() and not end:
                raise KeyboardInterrupt
    return run


# %% [markdown]
# ## The same minutes
#
# Two networks, two seconds of the processor each: the cheaper one makes more steps of it.

# %%
#| code-fold: true
tiny = load_settings("smoke", [
    "height=96", "width=32", "channels=8,16,32", "timesteps=1000", "batch_size=8", "rotation=10",
    "learning_rate=0.004", "checkpoint_every=1000", "ema_decay=0.9"])
phantoms = pack(PhantomSet(size=tiny.size, split="training", n_training=24), progress=False)
torch.set_num_threads(1)
folder = Path(tempfile.mkdtemp())
runs = {name: fit(make_network(name, tiny), tiny, phantoms, folder / name, progress=False,
                  minutes=2 / 60) for name in ("verdiff", "prior")}
for name, run in runs.items():
    print(f"{name:8s} {len(run.losses):3d} steps in {run.cpu_seconds:.1f} s")
    assert run.cpu_seconds >= 2
assert len(runs["prior"].losses) > len(runs["verdiff"].losses)

# %% [markdown]
# A constant rate may go on; a cosine may not:

# %%
#| code-fold: true
flat = replace(tiny, lr_schedule="constant")
for minutes in (1 / 60, 2 / 60):
    run = fit(make_network("prior", flat), flat, phantoms, folder / "flat", progress=False,
              minutes=minutes)
    print(len(run.losses), "steps after", f"{60 * minutes:.0f} s")
try:
    fit(make_network("prior", tiny), tiny, phantoms, folder / "prior", progress=False, minutes=1)
except VerdiffError as error:
    print(str(error).replace(str(folder), "..."))

# %%
#| hide
shutil.rmtree(folder)
