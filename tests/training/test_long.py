"`make long`: starts in the background, says where it is, is not started twice, goes on."
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from verdiff.data.phantom_set import PhantomSet

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(os.name != "posix" or not (ROOT / ".git").exists(),
                                reason="needs a clone, nice and signals")


@pytest.fixture
def long(script, monkeypatch):
    module = script("long")
    monkeypatch.setattr(module, "PROFILE", "smoke")
    monkeypatch.setattr(module, "BEGIN", ())
    monkeypatch.setattr(sys, "argv", ["long.py", "--set", "max_steps=100000"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return module


def wait(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.2)


def stop(long, folder):
    os.kill(int((folder / "pid").read_text()), signal.SIGTERM)
    wait(lambda: not long.running(folder / "run"))


def test_starts_once_and_goes_on(long, tmp_path, monkeypatch, capsys):
    folder, data = tmp_path / "away", tmp_path / "films"
    monkeypatch.setenv("VERDIFF_LONG", str(folder))
    monkeypatch.delenv("VERDIFF_XRAY", raising=False)
    with pytest.raises(SystemExit, match="VERDIFF_XRAY"):
        long.main()
    PhantomSet(data, n_training=6, n_test=2)
    monkeypatch.setenv("VERDIFF_XRAY", str(data))
    long.main()
    try:
        wait(lambda: long.checkpoints(folder / "run"))
        first = (folder / "pid").read_text()
        long.main()
        assert (folder / "pid").read_text() == first
        said = capsys.readouterr().out
        assert "started" in said and "running" in said and "validation at step" in said
        stop(long, folder)
        step = long.checkpoints(folder / "run")[-1].name
        long.main()
        wait(lambda: long.checkpoints(folder / "run")[-1].name > step)
        assert "going on after step" in (folder / "log.txt").read_text()
    finally:
        if long.running(folder / "run"):
            stop(long, folder)
    kept = tmp_path / "kept"
    long.keep(folder / "run", kept)
    state = long.read_checkpoint(long.checkpoints(folder / "run")[-1])
    weights = long.VerdiffNet.from_pretrained(kept).state_dict()
    assert all(torch.equal(weights[k], v) for k, v in state["average"].items())
    assert [run["step"] for run in json.loads((kept / "runs.json").read_text())] == [state["step"]]
    assert (ROOT / long.RELAY / "model.safetensors").exists()  # what the next run begins with


def test_the_last_stage_begins_with_the_run_and_ends(long, tmp_path, monkeypatch, capsys):
    folder, data = tmp_path / "away", tmp_path / "films"
    monkeypatch.setenv("VERDIFF_LONG", str(folder))
    monkeypatch.setenv("VERDIFF_XRAY", str(data))
    monkeypatch.setattr(long, "RELAY", "nothing there")
    PhantomSet(data, n_training=6, n_test=2)
    monkeypatch.setattr(sys, "argv", ["long.py", "--set", "max_steps=2", "--set", "recycle=0"])
    long.main()
    wait(lambda: long.checkpoints(folder / "run") and not long.running(folder / "run"))
    monkeypatch.setattr(sys, "argv", ["long.py", "--finish", "3"])
    long.main()
    run = folder / "finish" / "run"
    wait(lambda: long.checkpoints(run) and not long.running(run))
    about = json.loads((run / "run.json").read_text())
    assert about["step"] == 3 and about["settings"]["lr_schedule"] == "cosine"
    long.keep(run, tmp_path / "kept", folder / "finish" / "from")
    runs = json.loads((tmp_path / "kept" / "runs.json").read_text())
    assert [r["step"] for r in runs] == [2, 3]
