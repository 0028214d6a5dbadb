"kill -9, twenty times and at every stage of saving: the run ends in the weights of one that nobody disturbed."
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from verdiff.data.packed import Packed
from verdiff.settings import load_settings
from verdiff.training.checkpoint import checkpoints, read_checkpoint
from verdiff.networks import pretrained
from verdiff.training import run
from verdiff.training.run import train

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kill -9")

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
    train(SETTINGS, data, data.subset([0, 1]), out, progress=False)


@pytest.fixture(scope="module")
def server():
    "Processes that start in no time: forked from one that has imported everything already."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["verdiff.training.run", "accelerate"])
    return context


def final(out):
    state = read_checkpoint(checkpoints(out)[-1])
    flat = {k: v for k, v in state.items() if k not in ("seconds", "verdiff")}
    model = {p.name: p.read_bytes() for p in (out / "model").iterdir()}
    return flat, model, json.loads((out / "history.json").read_text())


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def finish(server, out, stage=None, countdown=1, seconds=None):
    "Start a try; kill it after some seconds if asked. Its exit code."
    process = server.Process(target=go, args=(out, stage, countdown))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def test_twenty_kills_change_nothing(server, tmp_path):
    calm, wild, dice = tmp_path / "calm", tmp_path / "wild", random.Random(35)
    assert finish(server, calm) == 0  # also warms the server up
    begin = time.monotonic()
    assert finish(server, tmp_path / "timed") == 0
    length = time.monotonic() - begin
    fates = [(stage, None) for stage in STAGES] * 2
    fates += [(None, length * dice.uniform(0.05, 0.6)) for _ in range(20 - len(fates))]
    dice.shuffle(fates)
    killed, begun, steps = 0, 0, []
    while killed < 20:
        stage, seconds = fates[killed]
        code = finish(server, wild, stage, dice.randint(1, 2), seconds)
        assert code in (0, -signal.SIGKILL), f"{stage}: exit code {code}"
        for path in checkpoints(wild):  # nothing half-written bears the name
            assert read_checkpoint(path) is not None, f"{stage}: {path.name}"
        steps.append(max([int(p.stem[11:]) for p in checkpoints(wild)], default=0))
        if code == 0:  # done before it was killed: start another one
            assert same(final(wild), final(calm))
            wild, begun = tmp_path / f"wild{begun}", begun + 1
            continue
        killed += 1
    assert finish(server, wild) == 0
    assert same(final(wild), final(calm)), steps
    assert same(final(tmp_path / "timed"), final(calm))
    assert not list(wild.rglob("*.part")) and len(checkpoints(wild)) == 3
    assert max(steps) > 4
