"kill -9, twenty times and at every stage of saving: the run ends in the weights of one that nobody disturbed."
import json
import multiprocessing
import os
import random
import signal
import time

import pytest
import torch
from doomed import (  # found by its children too, which know pytest's path but not its modules
    STAGES,
    go,
)

from verdiff.training.checkpoint import checkpoints, read_checkpoint

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kill -9")


@pytest.fixture(scope="module")
def server():
    "Processes that start in no time: forked from one that has imported everything already."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["verdiff.training.run", "accelerate"])
    return context


def final(out):
    state = read_checkpoint(checkpoints(out)[-1])
    flat = {k: v for k, v in state.items() if k not in ("seconds", "cpu_seconds", "verdiff")}
    model = {p.name: p.read_bytes() for p in (out / "model").iterdir()}
    history = json.loads((out / "history.json").read_text())
    for entry in history + flat["history"]:
        entry.pop("cpu_hours", None)
    return flat, model, history


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
