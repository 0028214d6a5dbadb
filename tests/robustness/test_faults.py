"Disks that are full, processes that are killed while they write, files that go away: for every writer."
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from robustness.inputs import TINY, model, pairs
from robustness.worker import write

from verdiff.cli import main
from verdiff.data.datasets import open_dataset
from verdiff.data.packed import pack, read_cache
from verdiff.data.phantom_set import write_phantoms
from verdiff.data.xray import XRaySet
from verdiff.files import VerdiffError, write_csv, write_json
from verdiff.networks.config import VerdiffConfig
from verdiff.networks.model import VerdiffNet
from verdiff.segmentation import folder
from verdiff.settings import load_settings

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


def test_films_that_go_away_while_a_folder_is_read(tmp_path, monkeypatch, capsys):
    write(tmp_path / "model", {k: v for k, v in model().items() if k != "reference.json"})
    (tmp_path / "in").mkdir()
    for i in range(4):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 20), np.uint8)).save(tmp_path / f"in/{i}.png")

    def listed(*args, real=folder.list_images):
        found = real(*args)
        (tmp_path / "in/1.png").unlink()
        return found
    monkeypatch.setattr(folder, "list_images", listed)
    words = ["segment", tmp_path / "in", "-o", tmp_path / "out", "--model", tmp_path / "model", "-q"]
    assert main(list(map(str, words))) == 2
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if "/1.png" in line]
    assert len(lines) == 1 and "no such file" in lines[0].lower() and "Traceback" not in said, said
    assert sorted(p.stem for p in Path(tmp_path / "out").glob("*.json")) == ["0", "2", "3"]
