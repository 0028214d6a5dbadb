"Disks that are full, processes that are killed while they write, files that go away: for every writer."
import contextlib
import ctypes
import io
import itertools
import os
import shutil
import signal
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from formats import phantom
from PIL import Image
from robustness.inputs import TINY, pairs
from robustness.worker import write

from verdiff.cli import main
from verdiff.data.datasets import open_dataset
from verdiff.data.packed import pack, read_cache
from verdiff.data.phantom_set import write_phantoms
from verdiff.data.xray import XRaySet
from verdiff.files import VerdiffError, tell_once, write_csv, write_json
from verdiff.networks.config import VerdiffConfig
from verdiff.networks.model import VerdiffNet
from verdiff.segmentation import folder
from verdiff.segmentation.segmenter import Segmenter
from verdiff.segmentation.zoom import find_spine
from verdiff.settings import load_settings
from verdiff.training import loss
from verdiff.training.checkpoint import checkpoints

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and limits of the system")


def network(seed):
    torch.manual_seed(seed)
    return VerdiffNet(VerdiffConfig.from_settings(load_settings("smoke", TINY)))


def cache(out, seed):
    data = open_dataset(write(out.parent / f"own{seed}", pairs()), "training", (32 + 2 * seed, 16))
    pack(data, out / "images.npz", False)


WRITERS = {
    "json": lambda out, seed: write_json(out / "x.json", list(range(9000 + seed))),
    "csv": lambda out, seed: write_csv(out / "x.csv", [{"a": i + seed} for i in range(9000)]),
    "model": lambda out, seed: network(seed).save_pretrained(out),
    "cache": cache}


def contents(out):
    return {p.name: p.read_bytes() for p in out.iterdir() if not p.name.endswith(".part") and not p.name.startswith(".")}


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_that_is_killed_leaves_what_was_there(name, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    WRITERS[name](out, 0)
    before = contents(out)
    if (child := os.fork()) == 0:
        os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
        try:
            WRITERS[name](out, 1)
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert before and contents(out) == before
    WRITERS[name](out, 1)
    assert contents(out).keys() == before.keys() and contents(out) != before


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_on_a_full_disk_leaves_what_was_there(name, tmp_path):
    "Not simulated: no file of this process may grow beyond 3 kB."
    out = tmp_path / "out"
    out.mkdir()
    WRITERS[name](out, 0)
    before = contents(out)
    if (child := os.fork()) == 0:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        code = 1
        try:
            WRITERS[name](out, 1)
        except VerdiffError as error:
            code = 0 if "could not save" in str(error) or "File too large" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert contents(out) == before and not list(out.glob(".*.part"))


@pytest.mark.parametrize("stop", [3, 11])
def test_phantoms_are_complete_or_not_there(tmp_path, stop):
    if (child := os.fork()) == 0:
        save, left = Image.Image.save, [stop]

        def last(*args, **how):
            left[0] -= 1
            return save(*args, **how) if left[0] else os.kill(os.getpid(), signal.SIGKILL)
        Image.Image.save = last
        try:
            write_phantoms(tmp_path / "set", 8, 4, image_size=(96, 32))
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL and not (tmp_path / "set").exists()
    write_phantoms(tmp_path / "set", 8, 4, image_size=(96, 32))
    assert len(XRaySet(tmp_path / "set", "all")) == 12


def test_a_damaged_cache_is_made_again(tmp_path):
    (tmp_path / "out").mkdir()
    cache(tmp_path / "out", 0)
    path = tmp_path / "out/images.npz"
    path.write_bytes(path.read_bytes()[:-200])
    assert read_cache(path, "") is None


@pytest.fixture
def films(tmp_path):
    "A model and four radiographs of noise; the words of `verdiff segment`."
    net = network(0)
    torch.nn.init.normal_(net.diffusion.out[-1].weight, std=0.3)  # an untrained one says nothing
    net.save_pretrained(tmp_path / "model")
    (tmp_path / "in").mkdir()
    for i in range(4):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 20), np.uint8)).save(tmp_path / f"in/{i}.png")
    return ["segment", *map(str, [tmp_path / "in", "-o", tmp_path / "out", "--model", tmp_path / "model"]), "-q"]


def test_films_that_go_away_while_a_folder_is_read(films, tmp_path, monkeypatch, capsys):
    def listed(*args, real=folder.list_images):
        there = real(*args)
        (tmp_path / "in/1.png").unlink()
        return there
    monkeypatch.setattr(folder, "list_images", listed)
    assert main(films) == 2
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if "/1.png" in line]
    assert len(lines) == 1 and "no such file" in lines[0].lower() and "Traceback" not in said, said
    assert sorted(p.stem for p in Path(tmp_path / "out").glob("*.json")) == ["0", "2", "3"]


# ---------------------------------------------------------------- memory that runs short, a device that is gone


SHORT = {"a GPU": lambda: torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
         "torch": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:113] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
         "Windows": lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), "Python": MemoryError}
GONE = "CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported at some other API call"


def found(out):
    return {p.name: np.asarray(Image.open(p)) for p in sorted(Path(out).glob("*_probability.png"))}


@pytest.fixture
def room(monkeypatch):
    "Let the diffusion network have room for so many rows; the sizes that were tried."
    real, tried = VerdiffNet.denoise, []

    def make(rows, error):
        def denoise(net, x, *more):
            tried.append(len(x))
            if len(x) > rows:
                raise error()
            return real(net, x, *more)
        monkeypatch.setattr(VerdiffNet, "denoise", denoise)
        tell_once.cache_clear()
        return tried
    return make


@pytest.mark.parametrize("kind", SHORT)
def test_short_of_memory_the_batch_is_halved_and_told_once(films, room, kind, tmp_path, capsys):
    assert main(films) == 0
    wanted = found(tmp_path / "out")
    tried = room(2, SHORT[kind])
    capsys.readouterr()
    assert main([*films, "--fresh"]) == 0
    assert tried == 4 * [5, 3, 2, 2, 1]
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("verdiff: note: memory")]
    assert said == [f"verdiff: note: memory runs short, going on with {n} samples at a time" for n in (3, 2)]
    assert wanted.keys() == found(tmp_path / "out").keys()
    for name, values in found(tmp_path / "out").items():  # the batch changes rounding only
        assert values.std() > 99 and np.abs(values.astype(int) - wanted[name]).max() <= 2, name


@pytest.mark.parametrize("kind", SHORT)
def test_no_room_for_one_row_is_one_sentence(films, room, kind, fails):
    tried = room(0, SHORT[kind])
    fails(*films, words=["memory does not hold even one sample"])
    assert tried == [5, 3, 2, 1]


def test_the_search_for_the_spine_too_is_halved(monkeypatch):
    segmenter = Segmenter.from_pretrained(device="cpu")
    wide = np.pad(phantom(0, (192, 64))[0], ((0, 0), (400, 290)))
    box, real, tried = find_spine(segmenter.model, Image.fromarray(wide)), VerdiffNet.condition, []

    def condition(net, image):
        tried.append(len(image))
        if len(image) > 3:
            raise MemoryError
        return real(net, image)
    monkeypatch.setattr(VerdiffNet, "condition", condition)
    assert box is not None and find_spine(segmenter.model, Image.fromarray(wide)) == box
    assert max(tried) > 3 and sum(n for n in tried if n <= 3) >= max(tried)


def test_one_image_too_large_for_the_memory_stops_no_other(films, monkeypatch, capsys, tmp_path):
    real = Segmenter.predict

    def predict(self, image, *args):
        if np.array_equal(image, Image.open(tmp_path / "in/1.png")):
            raise MemoryError
        return real(self, image, *args)
    monkeypatch.setattr(Segmenter, "predict", predict)
    assert main(films) == 2
    assert [x for x in capsys.readouterr().err.splitlines() if "error" in x] == [
        f"verdiff: error: {tmp_path / 'in/1.png'}: not enough memory; give a smaller copy"]
    assert sorted(found(tmp_path / "out")) == [f"{i}_probability.png" for i in (0, 2, 3)]


def test_a_device_that_vanishes_keeps_what_is_done(films, monkeypatch, fails, tmp_path, capsys):
    assert main(films) == 0
    wanted = found(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    real, calls = VerdiffNet.denoise, []

    def denoise(net, *args):
        calls.append(1)
        if len(calls) > 2:
            raise getattr(torch, "AcceleratorError", RuntimeError)(GONE)
        return real(net, *args)
    monkeypatch.setattr(VerdiffNet, "denoise", denoise)
    assert "\n" not in fails(*films, words=["device stopped working (CUDA error: unspecified launch failure)", "goes on"])
    assert sorted(found(tmp_path / "out")) == ["0_probability.png", "1_probability.png"]
    monkeypatch.setattr(VerdiffNet, "denoise", real)
    assert main(films) == 0 and "2 there already" in capsys.readouterr().out
    assert all(np.array_equal(values, wanted[name]) for name, values in found(tmp_path / "out").items())


def steps(out):
    return [p.name for p in checkpoints(Path(out))]


@pytest.fixture
def training(tmp_path):
    "Words of `verdiff train` without its output folder: four steps, a checkpoint after each."
    write(tmp_path / "own", pairs())
    more = [t for t in TINY if not t.startswith("max_steps")] + ["max_steps=4", "checkpoint_every=1"]
    return ["train", "--data", str(tmp_path / "own"), "--profile", "smoke", *(w for t in more for w in ("--set", t)), "--out"]


@pytest.mark.parametrize("error, words", [
    (SHORT["a GPU"], ["memory for a batch of 2 at 32x16", "--fresh --set batch_size=1 --set accumulate=2"]),
    (MemoryError, ["memory for a batch of 2"]), (lambda: RuntimeError(GONE), ["device stopped working", "goes on"])])
def test_training_that_is_stopped_so_goes_on_to_the_same_weights(training, tmp_path, monkeypatch, fails, error, words):
    assert main([*training, str(tmp_path / "calm")]) == 0
    real, calls = loss.training_loss, []

    def broken(*args, **how):
        calls.append(1)
        if len(calls) == 3:
            raise error()
        return real(*args, **how)
    monkeypatch.setattr(loss, "training_loss", broken)
    assert "\n" not in fails(*training, tmp_path / "wild", words=words)
    assert steps(tmp_path / "wild")[-1] == "checkpoint-000002.pt"
    assert main([*training, str(tmp_path / "wild")]) == 0 and len(calls) == 3 + 2
    assert contents(tmp_path / "calm/model") == contents(tmp_path / "wild/model")


# ---------------------------------------------------------------- the clock, and folders without permission


def test_a_clock_that_runs_backwards_changes_nothing(training, films, tmp_path, monkeypatch, capsys):
    assert main([*training, str(tmp_path / "calm")]) == 0
    began = itertools.count(2**31, -86400)  # each look a day earlier
    monkeypatch.setattr(time, "time", lambda: float(next(began)))
    stop, real = [], loss.training_loss

    def late(*args, **how):
        stop.append(1)
        if len(stop) == 3:
            raise KeyboardInterrupt
        return real(*args, **how)
    monkeypatch.setattr(loss, "training_loss", late)
    assert main([*training, str(tmp_path / "wild")]) == 130
    for age, path in enumerate(checkpoints(tmp_path / "wild")):  # the newest step has the oldest file
        os.utime(path, (10**9 - 10**6 * age,) * 2)
    assert main([*training, str(tmp_path / "wild")]) == 0 and len(stop) == 3 + 2
    assert contents(tmp_path / "calm/model") == contents(tmp_path / "wild/model") and steps(tmp_path / "wild") == steps(tmp_path / "calm")
    assert main(films) == 0
    for path in [*(tmp_path / "in").iterdir(), *(tmp_path / "out").iterdir()]:
        os.utime(path, (0, 0))
    capsys.readouterr()
    assert main(films) == 0 and "4 there already" in capsys.readouterr().out


def without_privileges(call):
    "What a call returns in a process that may do no more than the modes of files say: the superuser's rights are gone."
    read, written = os.pipe()
    if (child := os.fork()) == 0:
        try:
            none = ctypes.CDLL(None, use_errno=True).capset(struct.pack("<Ii", 0x20080522, 0), bytes(24))
            os.write(written, repr(call() if none == 0 else os.strerror(ctypes.get_errno())).encode())
        except BaseException as error:
            os.write(written, repr(error).encode())
        finally:
            os._exit(0)
    os.close(written)
    os.waitpid(child, 0)
    with os.fdopen(read) as file:
        return file.read()


@pytest.fixture
def locked(tmp_path):
    "A folder, and a function that takes the right to write there away."
    folder = tmp_path / "locked"
    folder.mkdir()
    yield folder, lambda: folder.chmod(0o555)
    folder.chmod(0o755)


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_without_permission_leaves_what_was_there(name, locked):
    out, lock = locked
    WRITERS[name](out, 0)
    before = contents(out)
    lock()
    said = without_privileges(lambda: WRITERS[name](out, 1))
    assert said.startswith("VerdiffError('could not save") and said.endswith("Permission denied; the previous file is unchanged')"), said
    assert contents(out) == before


@pytest.mark.parametrize("command", ["segment", "train"])
def test_a_command_without_permission_is_one_sentence(command, locked, request, tmp_path):
    (out, lock), words = locked, request.getfixturevalue({"segment": "films", "train": "training"}[command])
    words = [w.replace(str(tmp_path / "out"), str(out / "new")) for w in words] + [str(out / "new")] * (command == "train")
    lock()

    def run():
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            return main(words), err.getvalue()
    assert without_privileges(run) == repr((2, f"verdiff: error: {out}: no permission to write there; name another folder\n"))
    assert not list(out.iterdir())
