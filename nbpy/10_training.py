# %% [markdown]
# # 10 · Training
# > Algorithm 1 as a loop that one can read, interrupt, and resume to the last bit
#
# You will read Eq. (9) literally and watch it fall through the floor, read it as it must be meant, overfit one batch on purpose, and train a small model on phantoms; then kill a run and get back exactly what an undisturbed run would have given. A minute on a laptop.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/10_training.ipynb)

# %%
#| default_exp training

# %%
#| eval: false
# !pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"  # only on Colab

# %%
#| export
import argparse
import hashlib
import json
import math
import pickle
import signal
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

import verdiff
from verdiff.augment import Augment
from verdiff.data import Packed, PhantomSet, grouped_split, open_dataset, pack
from verdiff.forward import ShiftedDiffusion
from verdiff.metrics import dice
from verdiff.model import VerdiffConfig, VerdiffNet
from verdiff.posterior import training_target
from verdiff.sampling import sample
from verdiff.settings import Settings, VerdiffError, atomic_write, load_settings

# %%
import shutil
import tempfile
from contextlib import redirect_stderr
import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats

# %%
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
torch.set_num_threads(1)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## 1 · The loss, read literally
#
# Eq. (8) is the usual loss of a diffusion model. Eq. (9) is, as printed, a binary cross entropy between the *noise* $\varepsilon$ and the network's output:
#
# $$\mathcal L_{\mathrm{BCE}} = -\bigl[\varepsilon \log \hat\varepsilon + (1 - \varepsilon)\log(1 - \hat\varepsilon)\bigr].$$
#
# A cross entropy wants targets between 0 and 1. Gaussian noise is negative half of the time and has no bounds. Let us do as we are told: one number to learn per pixel, plain gradient descent.

# %%
g = torch.Generator().manual_seed(35)
noise = torch.randn(1000, generator=g)
logit = torch.zeros(1000, requires_grad=True)
fall = []
for _ in range(300):
    loss = F.binary_cross_entropy_with_logits(logit, noise)
    loss.backward()
    with torch.no_grad():
        logit -= 200 * logit.grad; logit.grad = None
    fall.append(loss.item())
plt.figure(figsize=(4, 2)); plt.plot(fall, color="crimson"); plt.xlabel("step"); plt.ylabel("loss"); plt.title("Eq. (9) taken literally")
print(f"loss {fall[0]:.2f} -> {fall[-1]:.0f}; outputs end at 0 or 1: {((logit.sigmoid() - 0.5).abs() > 0.49).float().mean():.0%}")
assert fall[-1] < -10

# %% [markdown]
# There is no bottom. Where $\varepsilon > 1$ or $\varepsilon < 0$ the loss falls for ever as the output runs to 1 or 0: it learns a sign and calls it noise. (With Bernoulli noise, as in BerDiff, the equation would be literal.)
#
# The paper has two networks, and one of them, the conditional U-Net, gives a mask. A cross entropy against the *true mask* is its natural teacher, and Eq. (10), which adds both losses, then trains both together. With $p = \sigma(\text{logits})$ of the conditional U-Net and $m$ the mask,
#
# $$\mathcal L = \underbrace{\lVert \text{target} - \Phi(x_t, t, f(b))\rVert^2}_{\text{Eq. (8)}} + w_1\,\underbrace{\mathrm{BCE}(p, m)}_{\text{Eq. (9), as it must be meant}} + w_2\,\underbrace{\mathrm{softDice}(p, m)}_{\text{ours}} .$$
#
# The soft Dice is not in the paper ($w_2 = 0$ in its profile). It keeps the small foreground from being outvoted.

# %%
#| export
def soft_dice_loss(
    logits: Tensor,  # (B, 1, H, W)
    mask: Tensor,  # {0, 1}, (B, 1, H, W)
) -> Tensor:  # in [0, 1], a scalar
    "1 - Dice of the probabilities, a mean over images; the one added keeps empty masks harmless."
    p, m = torch.sigmoid(logits).flatten(1), mask.flatten(1)
    return 1 - ((2 * (p * m).sum(1) + 1) / (p.sum(1) + m.sum(1) + 1)).mean()


def training_loss(
    model: VerdiffNet,
    image: Tensor,  # (B, 1, H, W) in [0, 1]
    mask: Tensor,  # {0, 1}, (B, 1, H, W)
    t: Tensor,  # int64 (B,)
    noise: Tensor,  # standard normal, (B, 1, H, W)
    bce_weight: float = 1.0,
    dice_weight: float = 1.0,
    process: ShiftedDiffusion | None = None,  # None: the model's
) -> dict[str, Tensor]:  # "total" and its parts "mse", "bce", "dice"
    "Eq. (10) for one batch: the diffusion loss, and the prior's own."
    process = process or model.process()
    conditioning = model.condition(image)
    x_0 = 2 * mask - 1
    x_t = process.q_sample(x_0, t, conditioning.prior.float(), noise)  # Eq. (3)
    output = model.denoise(x_t, t, conditioning)
    target = training_target(process, x_0, t, noise, model.config.prediction_type)
    logits = conditioning.logits.float()
    parts = {"mse": F.mse_loss(output.float(), target),
             "bce": F.binary_cross_entropy_with_logits(logits, mask),
             "dice": soft_dice_loss(logits, mask)}
    total = parts["mse"] + bce_weight * parts["bce"] + dice_weight * parts["dice"]
    return {"total": total, **parts}


# %% [markdown]
# ## 2 · Overfit one batch
#
# The best test of a training step: four images, again and again. If the loss does not fall to almost nothing, something is wrong and no amount of data will help.

# %%
tiny = load_settings("smoke", ["height=96", "width=32", "channels=8,16,32", "timesteps=1000", "fit=letterbox"])
films = pack(PhantomSet(folder / "films", size=tiny.size, n_training=24, n_test=8), progress=False)
image, mask = films.images[:4].float() / 255, films.masks[:4].float()
torch.manual_seed(0)
model = VerdiffNet(VerdiffConfig.from_settings(tiny))
optimiser = torch.optim.AdamW(model.parameters(), 4e-3)
curve = []
for k in range(260):
    t = torch.randint(1000, (4,), generator=g)
    losses = training_loss(model, image, mask, t, torch.randn(mask.shape, generator=g))
    optimiser.zero_grad(); losses["total"].backward(); optimiser.step()
    optimiser.param_groups[0]["lr"] = 4e-3 * (1 - k / 260)
    curve.append({k: v.item() for k, v in losses.items()})

# %%
got = sample(model.eval(), image, steps=10, ensemble=1)
prior_dice, diffusion_dice = dice(got.prior_prob > 0.5, mask).mean(), dice(got.samples[0] > 0.5, mask).mean()
plt.figure(figsize=(4.5, 2.2))
for name in ("mse", "bce", "dice"):
    plt.semilogy([c[name] for c in curve], label=name)
plt.legend(); plt.xlabel("step")
print(f"after {len(curve)} steps: Dice of the prior {prior_dice:.4f}, of the diffusion {diffusion_dice:.4f}")
assert diffusion_dice > 0.99 and prior_dice > 0.97

# %% [markdown]
# ## 3 · The small things around a loop
#
# **Learning rate.** A linear warm-up, then half a cosine down to zero, or constant as in the paper. A pure function of the step number: nothing to save, nothing to get out of step.

# %%
#| export
def learning_rate(
    settings: Settings,
    step: int,  # from 0
) -> float:
    "Warm-up, then constant or half a cosine to zero."
    rate, warm = settings.learning_rate, settings.warmup_steps
    if step < warm:
        return rate * (step + 1) / warm
    if settings.lr_schedule == "constant":
        return rate
    done = (step - warm) / max(1, settings.max_steps - warm)
    return rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


# %%
shown = load_settings("laptop")
plt.figure(figsize=(4, 1.8)); plt.plot([learning_rate(shown, k) for k in range(shown.max_steps)]); plt.xlabel("step"); plt.ylabel("rate")
assert learning_rate(shown, shown.warmup_steps) == shown.learning_rate and learning_rate(shown, shown.max_steps) < 1e-12

# %% [markdown]
# **Randomness.** The naive way, one global random state, makes a resumed run another run: to continue exactly one must save the state of every generator on every device. Instead, *everything random in step k comes from a generator that is seeded by (seed, k)*. Then the step number is the state.

# %%
#| export
def generator_for(
    *key: int,  # seed, then whatever tells this draw from others; not negative
) -> torch.Generator:  # on the CPU
    "A generator whose stream depends on all the numbers."
    mixed = np.random.SeedSequence([abs(int(k)) for k in key]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed) >> 1)


def batch_indices(
    n: int,  # images
    batch_size: int,
    number: int,  # of the batch, from 0
    seed: int,
) -> Tensor:  # int64 (batch_size,)
    "Batch `number` of an endless stream of shuffled epochs; any batch can be asked for at once."
    places = range(number * batch_size, (number + 1) * batch_size)
    order = {e: torch.randperm(n, generator=generator_for(seed, 1, e)) for e in {p // n for p in places}}
    return torch.stack([order[p // n][p % n] for p in places])


def random_times(
    batch_size: int,
    timesteps: int,
    generator: torch.Generator,
) -> Tensor:  # int64 (B,), each uniform over 0 ... T-1
    "One random offset, evenly spaced over the batch (Kingma et al. 2021): less variance, no bias."
    u = (torch.rand((), generator=generator) + torch.arange(batch_size) / batch_size) % 1
    u = u[torch.randperm(batch_size, generator=generator)]
    return (u * timesteps).long().clamp(max=timesteps - 1)


# %%
stream = torch.cat([batch_indices(10, 4, b, seed=35) for b in range(5)])
print(stream.tolist())
assert sorted(stream[:10].tolist()) == sorted(stream[10:].tolist()) == list(range(10))
times = torch.stack([random_times(8, 1000, generator_for(35, 2, k)) for k in range(2000)])
print(f"mean time {times.float().mean():.0f} of 499.5; sd of a batch's mean {times.float().mean(1).std():.1f}, of 8 independent draws {1000 / 12 ** 0.5 / 8 ** 0.5:.1f}")
assert abs(times.float().mean() - 499.5) < 3 and times.float().mean(1).std() < 50

# %% [markdown]
# **Averaged weights.** The last steps of a run jitter. An exponential moving average of the weights is calmer and nearly always better. Early in a run the average must forget faster, or it keeps the random start: after $n$ updates it uses at most $(1 + n)/(10 + n)$.

# %%
#| export
def averaged(
    model: nn.Module,
    decay: float,  # in [0, 1); 0: no averaging
) -> AveragedModel:
    "An exponential moving average of weights and buffers."
    def blend(average: Tensor, new: Tensor, n: Any) -> Tensor:
        if not new.is_floating_point():
            return new
        d = min(decay, (1 + float(n)) / (10 + float(n))) if decay else 0.0
        return average.lerp(new, 1 - d)

    return AveragedModel(model, avg_fn=blend, use_buffers=True)


# %% [markdown]
# **Looking up now and then.** On a few validation images: Dice of the prior and of the diffusion.

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


# %%
print(validate(model, films.subset(range(4))))

# %% [markdown]
# ## 4 · Checkpoints that survive
#
# A checkpoint is one file: weights, their average, the optimiser, the step, and *what run this is*. It is written under another name and renamed, so that a full disk or a pulled plug never destroys the last good one; the newest few are kept. It is loaded without executing anything from the file (`weights_only=True`). A damaged file is named, and the one before it is used. A checkpoint of another run is refused, with the names of the settings
# that differ.

# %%
#| export
FREE = ("profile", "log_every", "checkpoint_every", "keep_checkpoints", "eval_height", "eval_width",
        "ensemble", "sample_steps", "sampler", "validate_every", "val_images")  # may change on resuming


def save_checkpoint(
    out: Path,
    state: dict[str, Any],  # must hold "step"
    keep: int = 3,
) -> Path:
    "Write checkpoint-NNNNNN.pt atomically, then remove all but the newest `keep`."
    path = out / f"checkpoint-{state['step']:06d}.pt"
    with atomic_write(path) as temporary:
        torch.save(state, temporary)
    for old in sorted(out.glob("checkpoint-*.pt"))[:-keep]:
        old.unlink()
    return path


def load_checkpoint(
    out: Path,
    settings: Settings,
    data_key: str,  # tells the training images
) -> dict[str, Any] | None:  # None: there is none yet
    "The newest readable checkpoint; VerdiffError if all are damaged or it is of another run."
    paths = sorted(out.glob("checkpoint-*.pt"), reverse=True)
    for path in paths:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            theirs, key = state["settings"], state["data"]
            break
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError,
                pickle.UnpicklingError, zipfile.BadZipFile):
            print(f"{path.name} is damaged; trying the one before it", file=sys.stderr)
    else:
        if paths:
            raise VerdiffError(f"{out}: {paths[0].name} and all before it are damaged; remove them "
                               "or start over with --fresh")
        return None
    mine = settings.to_dict()
    differ = [k for k in mine if k not in FREE and theirs.get(k) != mine[k]]
    if differ:
        said = ", ".join(f"{k} (there {theirs.get(k)!r}, here {mine[k]!r})" for k in differ)
        raise VerdiffError(f"{path} belongs to a run with other settings: {said}; use another --out, "
                           "or start over with --fresh")
    if key != data_key:
        raise VerdiffError(f"{path} belongs to a run on other images; use another --out, or start "
                           "over with --fresh")
    return state


# %% [markdown]
# Ctrl-C should not hit in the middle of a weight update. So the first one only raises a flag, which the loop reads between two steps.

# %%
#| export
@contextmanager
def polite_interrupt() -> Iterator[threading.Event]:
    "While it holds, the first Ctrl-C sets the event; the second one interrupts as usual."
    asked = threading.Event()

    def handler(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, handler) if main_thread else None
    try:
        yield asked
    finally:
        if main_thread:
            signal.signal(signal.SIGINT, before)


# %% [markdown]
# ## 5 · The loop
#
# Algorithm 1 of the paper: *draw an image and its mask, a time, noise; take a gradient step*. In our words below: `draw` makes a batch, `training_loss` is Eq. (10), the optimiser steps, the average follows. Distribution over GPUs and bf16 are `accelerate`'s; the wrapper `Objective` exists because it must see one call of one module per step.

# %%
#| export
class Objective(nn.Module):
    "The loss as a module, so that one wrapped call a step computes everything."

    def __init__(self, model: VerdiffNet, settings: Settings):
        super().__init__()
        self.model, self.weights = model, (settings.bce_weight, settings.dice_weight)
        self.process = model.process()

    def forward(self, image: Tensor, mask: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        "As `training_loss`."
        return training_loss(self.model, image, mask, t, noise, *self.weights, process=self.process)


def draw(
    data: Packed,  # on the device
    settings: Settings,
    augment: Augment,
    number: int,  # of the batch
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[str]]:  # image, mask, t, noise, names
    "Everything random of one batch, from (seed, number)."
    index = batch_indices(len(data), settings.batch_size, number, settings.seed)
    g = generator_for(settings.seed, 2, number)
    where = index.to(data.images.device)
    image, mask = augment(data.images[where], data.masks[where], g)
    t = random_times(len(index), settings.timesteps, g)
    noise = torch.randn(mask.shape, generator=g)
    return image, mask, t.to(mask.device), noise.to(mask.device), [data.names[i] for i in index]


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    "Adam or AdamW, as the settings say."
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)


# %% [markdown]
# Nobody has to start from nothing: a trained network, ours or yours, can be *fine-tuned* on other images, or at a larger size (convolutions do not mind). What decides the meaning of its output must stay as it was.

# %%
#| export
MEANING = ("channels", "blocks", "norm", "msfm", "msfm_dim", "nsa", "nsa_choice", "shift", "timesteps",
           "schedule", "beta_start", "beta_end", "prediction_type")  # must not change on fine-tuning


def start_from(
    model: VerdiffNet,  # gets the weights
    trained: VerdiffNet,  # gives them
) -> VerdiffNet:  # model
    "Begin with the weights of a trained network; VerdiffError where it is another kind of network."
    here, there = model.config.to_dict(), trained.config.to_dict()
    if differ := [f"{k} (there {there[k]!r}, here {here[k]!r})" for k in MEANING if here[k] != there[k]]:
        raise VerdiffError(f"the network to start from has other settings: {', '.join(differ)}; "
                           "change them with --set, or start from another network")
    model.load_state_dict(trained.state_dict())
    return model


# %%
tiny_twins = [VerdiffNet(channels=(8, 16), height=h, width=h // 2) for h in (64, 128)]
start_from(*tiny_twins)
assert all(torch.equal(a, b) for a, b in zip(*(n.state_dict().values() for n in tiny_twins), strict=True))
try:
    start_from(VerdiffNet(channels=(8, 16), shift=False), tiny_twins[0])
except VerdiffError as error:
    print(error)


# %%
#| export
def train(
    settings: Settings,
    train_data: Packed,
    val_data: Packed | None,  # None or empty: the last weights are kept, else the best
    out: str | Path,  # folder of the run
    resume: bool = True,  # go on from the newest checkpoint in `out`
    progress: bool = True,  # show a bar
    trained: VerdiffNet | None = None,  # a network to start from; None: from nothing
) -> VerdiffNet:  # the averaged model, best on the validation part, in eval mode
    """Algorithm 1. Writes checkpoints, history.json, run.json, TensorBoard logs and OUT/model.

    KeyboardInterrupt passes after a checkpoint was saved. VerdiffError: a loss that is no number,
    a checkpoint of another run, a disk that is full.
    """
    return Trainer(settings, train_data, val_data, Path(out), progress, trained).run(resume)


class Trainer:
    "The state of one run, and the loop over it."

    def __init__(self, settings: Settings, train_data: Packed, val_data: Packed | None, out: Path,
                 progress: bool = True, trained: VerdiffNet | None = None):
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        if not len(train_data):
            raise VerdiffError("there is no image to train on")
        self.settings, self.out, self.progress = settings, out, progress
        AcceleratorState._reset_state()  # a second run in one process may want another precision
        self.accelerator = Accelerator(mixed_precision=settings.mixed_precision)
        self.names = train_data.names
        self.data_key = hashlib.sha256("\n".join(train_data.names).encode()).hexdigest()
        device = self.accelerator.device
        self.data = Packed(train_data.images.to(device), train_data.masks.to(device), train_data.names)
        count = min(settings.val_images, len(val_data) if val_data is not None else 0)
        self.val_data = val_data.subset(range(count)) if count else None
        torch.manual_seed(settings.seed)
        self.model = VerdiffNet(VerdiffConfig.from_settings(settings))
        if trained is not None:
            start_from(self.model, trained)
        self.model.to(device)
        self.ema = averaged(self.model, settings.ema_decay)
        optimizer = make_optimizer(self.model, settings)
        self.objective, self.optimizer = self.accelerator.prepare(Objective(self.model, settings), optimizer)
        self.augment = Augment.from_settings(settings)
        self.step, self.best, self.history, self.seconds = 0, -1.0, [], 0.0
        self.clean = True  # False while weights are being changed

    def state(self) -> dict[str, Any]:
        "All that a checkpoint holds."
        return {"step": self.step, "settings": self.settings.to_dict(), "data": self.data_key,
                "model": self.model.state_dict(), "ema": self.ema.state_dict(),
                "optimizer": self.optimizer.state_dict(), "best": self.best,
                "history": self.history, "seconds": self.seconds, "verdiff": verdiff.__version__}

    def restore(self, state: dict[str, Any]) -> None:
        "Go back to a checkpoint."
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best = state["step"], state["best"]
        self.history, self.seconds = state["history"], state["seconds"]

    def run(self, resume: bool = True) -> VerdiffNet:
        "Train to max_steps; see `train`."
        s, main = self.settings, self.accelerator.is_main_process
        if main:
            self.out.mkdir(parents=True, exist_ok=True)
            if not resume:
                for old in self.out.glob("checkpoint-*.pt"):
                    old.unlink()
        self.accelerator.wait_for_everyone()
        if resume and (state := load_checkpoint(self.out, s, self.data_key)):
            self.restore(state)
            finished = self.step >= s.max_steps and (self.out / "model" / "config.json").exists()
            if main:
                print(f"{self.out.name}: " + ("finished already" if finished else f"going on after step {self.step}"))
            if finished:
                return VerdiffNet.from_pretrained(self.out / "model").to(self.accelerator.device)
        bar = tqdm(total=s.max_steps, initial=self.step, desc="train", unit="step",
                   disable=None if self.progress and main else True)
        log, since = self.open_log(), time.perf_counter()
        try:
            with polite_interrupt() as asked:
                while self.step < s.max_steps:
                    losses = self.advance()
                    self.seconds += time.perf_counter() - since
                    since = time.perf_counter()
                    bar.update()
                    self.report(losses, bar, log)
                    if asked.is_set():
                        raise KeyboardInterrupt
        except KeyboardInterrupt:
            bar.close()
            if main and self.clean and self.step:
                print(f"saved {self.save().name}; the same command goes on from there", file=sys.stderr)
            raise
        finally:
            bar.close()
            if log is not None:
                log.close()
        self.accelerator.wait_for_everyone()
        return VerdiffNet.from_pretrained(self.out / "model").to(self.accelerator.device)

    def advance(self) -> dict[str, float]:
        "One step of Algorithm 1."
        s, acc = self.settings, self.accelerator
        self.objective.train()
        total: dict[str, Tensor] = {}
        for k in range(s.accumulate):
            number = (self.step * s.accumulate + k) * acc.num_processes + acc.process_index
            *batch, names = draw(self.data, s, self.augment, number)
            last = k == s.accumulate - 1
            with nullcontext() if last else acc.no_sync(self.objective), acc.autocast():
                losses = self.objective(*batch)
            if not torch.isfinite(losses["total"]):
                kept = sorted(self.out.glob("checkpoint-*.pt"))
                raise VerdiffError(
                    f"the loss is {losses['total'].item()} at step {self.step + 1} (images {', '.join(names[:4])}); "
                    f"try a smaller learning_rate or mixed_precision=no; the last checkpoint is "
                    f"{kept[-1].name if kept else 'none'}")
            acc.backward(losses["total"] / s.accumulate)
            total = {n: total.get(n, 0) + v.detach() / s.accumulate for n, v in losses.items()}
        self.clean = False
        if s.grad_clip:
            acc.clip_grad_norm_(self.objective.parameters(), s.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(s, self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update_parameters(self.model)
        self.step += 1
        self.clean = True
        return {name: float(value) for name, value in total.items()}

    def report(self, losses: dict[str, float], bar: tqdm, log: Any) -> None:
        "Log, validate and save when it is time."
        s, end = self.settings, self.step == self.settings.max_steps
        if not self.accelerator.is_main_process:
            return
        entry = {"step": self.step, **losses, "lr": learning_rate(s, self.step - 1)}
        if self.val_data is not None and (self.step % s.validate_every == 0 or end):
            found = validate(self.ema.module, self.val_data, s.sample_steps, s.batch_size, s.seed, s.sampler)
            entry |= found
            bar.set_postfix(prior=f"{found['prior_dice']:.3f}", diffusion=f"{found['diffusion_dice']:.3f}")
            if found["diffusion_dice"] >= self.best:
                self.best = found["diffusion_dice"]
                self.ema.module.save_pretrained(self.out / "model")
        if self.step % s.log_every == 0 or end or len(entry) > 6:
            self.history.append(entry)
            if log is not None:
                for name, value in entry.items():
                    log.add_scalar(name, value, self.step)
        if end and self.val_data is None:
            self.ema.module.save_pretrained(self.out / "model")
        if self.step % s.checkpoint_every == 0 or end:
            self.save()

    def save(self) -> Path:
        "A checkpoint, the history as JSON, and what this run is."
        path = save_checkpoint(self.out, self.state(), self.settings.keep_checkpoints)
        about = {"verdiff": verdiff.__version__, "torch": torch.__version__, "device": str(self.accelerator.device),
                 "processes": self.accelerator.num_processes, "images": len(self.data),
                 "validated_on": len(self.val_data) if self.val_data is not None else 0,
                 "parameters": self.model.num_parameters(), "step": self.step,
                 "seconds": round(self.seconds, 1), "best": self.best, "settings": self.settings.to_dict()}
        for name, content in (("history.json", self.history), ("run.json", about)):
            with atomic_write(self.out / name) as temporary:
                temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return path

    def open_log(self) -> Any:
        "A TensorBoard writer of the main process; None where TensorBoard is not installed."
        if not self.accelerator.is_main_process:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        return SummaryWriter(str(self.out / "tensorboard"), purge_step=self.step or None)


# %% [markdown]
# Sixty steps on two dozen phantoms, all the way through:

# %%
short = load_settings("smoke", ["height=96", "width=32", "channels=8,16,32", "timesteps=1000", "max_steps=60", "batch_size=8", "learning_rate=0.004",
                                "validate_every=20", "checkpoint_every=20", "log_every=1", "val_images=8", "rotation=10", "ema_decay=0.9", "sample_steps=5"])
index_train, index_val = grouped_split(films.names, 0.25)
model = train(short, films.subset(index_train), films.subset(index_val), folder / "run", progress=False)
history = json.loads((folder / "run" / "history.json").read_text())
print({k: round(v, 3) for k, v in history[-1].items()})
print(sorted(p.name for p in (folder / "run").iterdir()))

# %%
fig, axes = plt.subplots(1, 2, figsize=(7, 2.3), layout="constrained")
for name in ("mse", "bce", "dice"):
    axes[0].plot([h["step"] for h in history], [h[name] for h in history], label=name)
checks = [h for h in history if "prior_dice" in h]
for name in ("prior_dice", "diffusion_dice"):
    axes[1].plot([h["step"] for h in checks], [h[name] for h in checks], "o-", label=name)
for axis in axes:
    axis.legend(fontsize=8); axis.set_xlabel("step")
assert history[-1]["mse"] < 0.5 * history[0]["mse"]

# %% [markdown]
# ## 6 · Kill it
#
# Now the promise. A second run is interrupted in the middle of a step (we raise `KeyboardInterrupt` from inside the loss, the 33rd time it is called) and started again. Its weights must be those of the undisturbed run, byte for byte.

# %%
calls, original = [], training_loss


def interrupted(*args, **kw):
    calls.append(1)
    if len(calls) == 33:
        raise KeyboardInterrupt
    return original(*args, **kw)


training_loss = interrupted
try:
    with redirect_stderr(sys.stdout):
        train(short, films.subset(index_train), films.subset(index_val), folder / "killed", progress=False)
except KeyboardInterrupt:
    print("interrupted; there is", sorted(p.name for p in (folder / "killed").glob("*.pt"))[-1])
training_loss = original
train(short, films.subset(index_train), films.subset(index_val), folder / "killed", progress=False)
one, two = ((folder / r / "model" / "model.safetensors").read_bytes() for r in ("run", "killed"))
print("identical:", one == two)
assert one == two

# %% [markdown]
# And what is refused: another architecture, a damaged newest file (the one before it serves).

# %%
try:
    train(load_settings("smoke", ["channels=8"]), films.subset(index_train), None, folder / "killed", progress=False)
except VerdiffError as error:
    print(str(error).replace(str(folder), "...")[:150], "...")
newest = sorted((folder / "killed").glob("*.pt"))[-1]
newest.write_bytes(newest.read_bytes()[:1000])
key = hashlib.sha256("\n".join(films.subset(index_train).names).encode()).hexdigest()
with redirect_stderr(sys.stdout):
    assert load_checkpoint(folder / "killed", short, key)["step"] == 40

# %% [markdown]
# ## 7 · From the command line
#
# `verdiff train` is the comfortable way ([12](12_segment.ipynb)). On several GPUs or machines it is `accelerate launch -m verdiff.training` with the same words; accelerate starts the processes, and every process draws its own part of the stream of batches.

# %%
#| export
def main(
    argv: Sequence[str] | None = None,  # None: those of the process
) -> int:
    "Train as one of accelerate's processes: `accelerate launch -m verdiff.training --data ...`."
    parser = argparse.ArgumentParser(prog="python -m verdiff.training", description=main.__doc__)
    parser.add_argument("--data", required=True, help="zip or folder, or the word phantom")
    parser.add_argument("--profile", default="gpu")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out")
    parser.add_argument("--fresh", action="store_true", help="start over")
    args = parser.parse_args(argv)
    try:
        settings = load_settings(args.profile, args.set)
        out = Path(args.out or f"runs/{args.profile}")
        out.mkdir(parents=True, exist_ok=True)
        kind = PhantomSet if args.data == "phantom" else open_dataset
        root = () if args.data == "phantom" else (args.data,)
        packed = pack(kind(*root, split="training", size=settings.size, fit=settings.fit), out / "images.npz")
        parts = grouped_split(packed.names, settings.val_fraction, settings.seed)
        train(settings, *map(packed.subset, parts), out, resume=not args.fresh)
    except VerdiffError as error:
        print(f"verdiff: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


# %%
#| export
#| eval: false
if __name__ == "__main__":
    sys.exit(main())

# %% [markdown]
# ## Paper, ours, why
#
# | | paper | ours | why |
# |---|---|---|---|
# | Eq. (9) | cross entropy of the noise | cross entropy of the prior against the mask | the literal one has no bottom |
# | "optimised by Equation (9)" | | Eq. (10), the sum | Eq. (9) alone has no diffusion loss |
# | soft Dice | none | weight 1; 0 in `paper` | small foreground |
# | what the diffusion loss teaches the prior | not said | nothing (`detach_prior`); everything in `paper` | otherwise the prior may become a code that only the other net can read |
# | batch, rate, steps | 1, $10^{-4}$, 9,000 | by profile | what the machine can carry |
# | average of the weights | none | yes; off in `paper` | calmer, better |
#
# ## Exercises
#
# **1 · Predict.** At the first step the output layer of the diffusion U-Net is zero. What is the `mse` for `prediction_type` "sample", and for "epsilon"?
#
# <details><summary>Answer</summary>
#
# "sample": the target is $\pm1$, so exactly 1. "epsilon": the target is standard normal, so about 1, up to chance.
#
# </details>

# %%
for kind in ("sample", "epsilon"):
    fresh = VerdiffNet(VerdiffConfig.from_settings(tiny), prediction_type=kind)
    first = training_loss(fresh, image, mask, torch.tensor([1, 200, 500, 900]), torch.randn(mask.shape, generator=g))["mse"].item()
    print(kind, round(first, 4))
    assert abs(first - 1) < (1e-6 if kind == "sample" else 0.05)

# %% [markdown]
# **2 · Change.** Switch `detach_prior` off. Which gradient appears that was zero before?
#
# <details><summary>Answer</summary>
#
# That of the conditional U-Net with respect to the `mse`.
#
# </details>

# %%
for detach in (True, False):
    torch.manual_seed(0)
    net = VerdiffNet(VerdiffConfig.from_settings(tiny), detach_prior=detach)
    torch.nn.init.normal_(net.diffusion.out[-1].weight)
    training_loss(net, image, mask, torch.tensor([1, 200, 500, 900]), torch.randn(mask.shape, generator=g))["mse"].backward()
    got = [p.grad for p in net.conditional.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    print("detached" if detach else "attached", len(got), "tensors of the conditional U-Net feel the mse")
    assert bool(got) != detach

# %% [markdown]
# **3 · Implement.** Accumulation: two half batches should give the gradient of one whole batch. Check it for the `mse`.
#
# <details><summary>Answer</summary>
#
# The mean over four images is the mean of the means over two and two; so are the gradients. (With batch norm they would differ.)
#
# </details>

# %%
def gradient(parts):
    net.zero_grad()
    for p in parts:
        (training_loss(net, image[p], mask[p], times4[p], noise4[p])["mse"] / len(parts)).backward()
    return net.diffusion.out[-1].weight.grad.clone()


times4, noise4 = torch.tensor([1, 200, 500, 900]), torch.randn(mask.shape, generator=g)
torch.testing.assert_close(gradient([slice(0, 4)]), gradient([slice(0, 2), slice(2, 4)]), atol=1e-4, rtol=1e-3)

# %% [markdown]
# Next: [11 · Sampling](11_sampling.ipynb), where the trained net is asked for masks.

# %%
#| hide
shutil.rmtree(folder)
