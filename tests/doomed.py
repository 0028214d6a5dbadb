"What test_crash.py starts as a process of its own: a run that kills itself at a chosen place."
import json
import os
import signal
from pathlib import Path

import torch

from verdiff.data.packed import Packed
from verdiff.networks import pretrained
from verdiff.settings import load_settings
from verdiff.training import run

SETTINGS = load_settings("smoke", [
    "height=32", "width=16", "channels=4,8", "max_steps=14", "batch_size=2", "checkpoint_every=2",
    "validate_every=3", "val_images=2", "log_every=1", "sample_steps=1"])
STAGES = ("half a checkpoint", "before the rename", "before the old ones go", "half a model",
          "between model and checkpoint", "half a history")


def films():
    g = torch.Generator().manual_seed(0)
    masks = (torch.rand(7, 1, *SETTINGS.size, generator=g) > 0.7).to(torch.uint8)
    images = masks * 120 + torch.randint(0, 60, masks.shape, generator=g).to(torch.uint8)
    return Packed(images, masks, [f"{i}.png" for i in range(7)])


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def fatal(stage, countdown):
    "Arrange that this process kills itself at a stage of saving, when it gets there for the n-th time."
    def at(module, name, instead=die):
        real, left = getattr(module, name), [countdown]

        def patched(*args, **kwargs):
            left[0] -= 1
            return instead(*args, **kwargs) if left[0] == 0 else real(*args, **kwargs)

        setattr(module, name, patched)

    def half(state, path):
        torch.serialization.save(state, f"{path}x")
        raw = Path(f"{path}x").read_bytes()
        os.unlink(f"{path}x")
        Path(path).write_bytes(raw[:len(raw) // 2])
        die()

    if stage == "half a checkpoint":
        at(torch, "save", half)
    elif stage == "before the rename":
        at(os, "replace")
    elif stage == "before the old ones go":
        at(Path, "unlink")
    elif stage == "half a model":
        at(pretrained, "save_file")
    elif stage == "between model and checkpoint":
        at(run, "save")
    elif stage == "half a history":
        at(json, "dumps")


def go(out, stage=None, countdown=1):
    "One try to train, in a process of its own."
    torch.set_num_threads(1)
    fatal(stage, countdown)
    data = films()
    run.train(SETTINGS, data, data.subset([0, 1]), out, progress=False)
