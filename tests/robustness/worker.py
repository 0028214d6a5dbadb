"A process that takes names of inputs from a pipe and tells what became of each."
import contextlib
import hashlib
import io
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from robustness.handmade import cases
from robustness.inputs import TINY, change, images, model, pairs, pick, published, random_case

from verdiff.cli import COMMANDS, main, make_parser
from verdiff.data.datasets import open_dataset
from verdiff.data.packed import pack
from verdiff.files import VerdiffError
from verdiff.io.images import Picture, open_images
from verdiff.io.masks import read_mask
from verdiff.io.volume_files import read_volume
from verdiff.segmentation.segmenter import Segmenter
from verdiff.settings import load_settings
from verdiff.training.checkpoint import load_checkpoint

MEMORY = 1 << 30  # above what the process had at the start of an input
HOSTILE = ["", " ", "-1", "0", "1.5", "nan", "x" * 300, "../..", "\udcff", "1,2,", ",", "=", "a=b=c", "1x1", "0x0", "-1x-1", "é", "null",
           "/dev/null", "a/b", "9" * 400, "--", "%s", "{}", "cuda:99", "height=-5", "height=1e9", "seed=nan", "channels=", "channels=4,,8",
           "stream=maybe", "batch_size=99999999999", "nonsense=1", "all", "laptop", "phantom"]
HOLDS = {"model": ["--model", "{model}"], "data": ["--data", "{data}"], "out": ["--out", "{out}"]}
LEAST = {"segment": ["{film}", "-o", "{out}", "--model", "{model}", "-q"],
         "train": ["--data", "{data}", "--profile", "smoke", "--out", "{out}", *(w for t in TINY for w in ("--set", t))],
         "evaluate": ["--data", "{data}", "--model", "{model}", "--steps", "1", "--ensemble", "1", "-o", "{out}"],
         "calibrate": ["--images", "{data}", "--model", "{model}", "-o", "{out}", "--ensemble", "1"],
         "data": ["phantom", "--out", "{out}", "--training", "1", "--test", "1"],
         "demo": ["--profile", "smoke", "--out", "{out}", "--training", "4", "--test", "1", *(w for t in TINY for w in ("--set", t))],
         "ablate": ["--rows", "both", "--seeds", "1", "--profile", "smoke", "--out", "{out}", "--training", "4", "--test", "1",
                    *(w for t in TINY for w in ("--set", t))],
         "compare": ["--data", "{data}", "--methods", "prior", "--profile", "smoke", "--out", "{out}", "--limit", "1",
                     *(w for t in TINY for w in ("--set", t))]}


def write(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def words_of(command, places, more=()):
    return [command, *(w.format(**places) for w in LEAST[command]), *more]


def hostile_words(number, places):
    "A command with one or two of its words replaced by something that nobody should type."
    rng = np.random.default_rng([19, number])
    command = pick(rng, [c.name for c in COMMANDS])
    known = next(a for a in make_parser()._actions if a.choices).choices[command]
    options = [a.option_strings[-1] for a in known._actions if a.option_strings and a.nargs != 0]
    more = [w for _ in range(int(rng.integers(1, 3))) for w in (pick(rng, options), pick(rng, HOSTILE))]
    more = [w for pair in zip(more[::2], more[1::2], strict=True) if pair[0] != "--out" or pair[1] in ("", "/dev/null") for w in pair]
    return words_of(command, places, [w if w not in ("../..",) else f"{places['out']}/../in" for w in more])


class Case:
    "One input, with its folders."

    def __init__(self, name, work):
        planted = ("planted", {}, [name]) if name in PLANTED else None
        self.kind, self.files, self.words = planted or (random_case(int(name)) if name.isdigit() else cases()[name])
        self.rng = np.random.default_rng([20, int(name) if name.isdigit() else 0])
        digest = hashlib.sha256(name.encode()).hexdigest()[:12]
        self.root = work / (name if name.isdigit() else digest)
        shutil.rmtree(self.root, ignore_errors=True)
        for part in ("in", "out", "tmp", "home", "cwd"):
            (self.root / part).mkdir(parents=True)
        write(self.root / "in", pairs() if self.kind == "cache" else self.files)
        self.shared = work / "shared"
        if not self.shared.exists():
            write(self.shared / "model", {k: v for k, v in model().items() if k != "reference.json"})
            write(self.shared / "data", published())
            write(self.shared / "film", {"film.png": images()[0][1]})
        self.places = {"model": self.shared / "model", "data": self.shared / "data", "film": self.shared / "film", "out": self.root / "out" / "run"}

    def command(self, name, places=None, more=()):
        return main(words_of(name, {**self.places, **(places or {})}, more))

    def run(self):
        "What the case is about; the words that tell what came out."
        source, out = self.root / "in", self.root / "out"
        if self.kind == "image":
            return self.image(next(source.rglob("*.*"), None) or next(p for p in source.rglob("*") if p.is_file()))
        if self.kind == "volume":
            return str(read_volume(next(source.iterdir())).array.shape)
        if self.kind == "set":
            data = open_dataset(source / self.words[0] if self.words else source, "training", (32, 16))
            return str(tuple(pack(data, out / "images.npz", False).images.shape))
        if self.kind == "settings":
            return str(load_settings("smoke", path=source / "settings.ini").size)
        if self.kind == "model":
            Segmenter.from_pretrained(source).predict(np.zeros((9, 9), np.uint8))
            return "loaded"
        if self.kind == "words":
            return main(hostile_words(self.words[0], self.places))
        if self.kind in ("train", "evaluate", "compare"):
            return self.command(self.kind, {"data": source})
        if self.kind == "calibrate":
            return self.command("calibrate", {"data": source})
        if self.kind == "segment":
            return self.command("segment", {"film": source})
        return getattr(self, self.kind)(out)

    def image(self, path):
        shown = list(open_images(path))
        assert all(isinstance(p, Picture) and p.pixels.dtype == np.uint8 and p.pixels.ndim == 2 for p in shown)
        try:
            read_mask(path)
        except VerdiffError as error:
            assert one_line(str(error)), error
        return str([p.pixels.shape for p in shown][:3])

    def checkpoint(self, out):
        "A run that was stopped, and whose files were changed."
        settings = load_settings("smoke", TINY)
        assert self.command("train") == 0
        run = Path(self.places["out"])
        path = pick(self.rng, sorted(p for p in run.rglob("*") if p.is_file()))
        path.write_bytes(change(path.read_bytes(), self.rng))
        if "checkpoint" in path.name:
            load_checkpoint(run, settings, "other")
        return self.command("train")

    def cache(self, out):
        "Decoded images that were changed: they are decoded again, or are the same."
        source = self.root / "in"
        first = pack(open_dataset(source, "training", (32, 16)), out / "images.npz", False)
        path = out / "images.npz"
        path.write_bytes(change(path.read_bytes(), self.rng))
        again = pack(open_dataset(source, "training", (32, 16)), out / "images.npz", False)
        assert torch.equal(first.images, again.images) and torch.equal(first.masks, again.masks), "other pixels from a damaged cache"
        return "decoded"

    def results(self, out):
        "Results of which one was changed: made again, kept as they are, or refused."
        assert self.command("segment") == 0
        run = Path(self.places["out"])
        before = {p: p.read_bytes() for p in run.iterdir()}
        path = pick(self.rng, sorted(before))
        path.write_bytes(change(before[path], self.rng))
        code = self.command("segment")
        return code


    def planted(self, out):
        "A fault that must be seen, else the search itself is broken."
        return PLANTED[self.words[0]](self.root)


def nested(depth):
    return nested(depth + 1)


PLANTED = {
    "planted traceback": lambda root: nested(0), "planted code": lambda root: 1, "planted silence": lambda root: 2,
    "planted memory": lambda root: len(b"x" * (1100 << 20)) and 0, "planted hang": lambda root: time.sleep(99),
    "planted file outside": lambda root: (root / "cwd/x").write_bytes(b""),
    "planted change": lambda root: (root.parent / "shared/film/film.png").touch(),
    "planted half": lambda root: (root / "out/x.json").write_text("{") and 0,
    "planted rest": lambda root: (root / "out/.x.7.part").write_text("")}


def one_line(text):
    return bool(text.strip()) and "Traceback" not in text and len(text) < 4000


def tree(root):
    return {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file() or p.is_symlink()}


def half_written(out):
    "A file that is not whole, or a temporary one."
    for path in out.rglob("*"):
        if ".part" in path.name or path.name.startswith(".") and path.name != ".lock":
            return f"left behind: {path.name}"
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        if path.suffix == ".png" and path.is_file():
            Image.open(path).load()


def peak():
    with open("/proc/self/status") as file:
        return 1024 * int(next(line for line in file if line.startswith("VmHWM")).split()[1])


def attempt(name, work):
    "What became of one input; seconds are the processor's, so that a busy machine makes no fault."
    case = Case(name, work)
    os.environ.update(TMPDIR=str(case.root / "tmp"), HOME=str(case.root / "home"))
    tempfile.tempdir = None  # it remembers that of the input before
    os.chdir(case.root / "cwd")
    before, out, err, fault = tree(work), io.StringIO(), io.StringIO(), None
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    start, began = peak(), time.process_time()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            done = case.run()
        if isinstance(done, int) and done not in (0, 2):
            fault = f"exit code {done}"
        lines = [x for x in err.getvalue().splitlines() if x.startswith("verdiff: error: ")]
        if done == 2 and not (lines and all(map(one_line, lines))):
            fault = f"exit code 2 without a sentence: {err.getvalue()[-500:]}"
        if "Traceback" in err.getvalue() + out.getvalue():
            fault = f"a traceback was printed: {err.getvalue()[-1500:]}"
        outcome = lines[-1] if lines else str(done)
    except VerdiffError as error:
        outcome = f"{type(error).__name__}: {error}"
        fault = None if one_line(str(error)) else f"no sentence: {error!r}"
    except SystemExit as error:
        outcome = f"argparse {error.code}"
        fault = None if error.code in (0, 2) else outcome
    except BaseException as error:
        outcome = type(error).__name__
        fault = "".join(traceback.format_exception(error))[-3000:]
    seconds, used = time.process_time() - began, (peak() - start) >> 20
    fault = fault or (f"{used} MiB" if used > MEMORY >> 20 else None) or (f"{seconds:.1f} s" if seconds > 10 else None)
    inside, phantoms = case.root / "out", case.root / f"tmp/verdiff-{os.getuid()}"  # drawn on first use
    after = tree(work)
    strange = [str(p) for p in after if before.get(p) != after[p] and not {inside, phantoms} & {*p.parents}]
    gone = [str(p) for p in before if p not in after]
    if strange or gone:
        fault = fault or f"changed outside of the target folder: {strange[:3] + gone[:3]}"
    try:
        if self_made := case.kind not in ("results", "checkpoint", "cache"):
            fault = fault or half_written(inside)
    except Exception as error:
        fault = fault or f"half a file: {error!r} {self_made}"
    os.chdir(work)
    if fault is None:
        shutil.rmtree(case.root)
    return {"name": name, "kind": case.kind, "outcome": outcome[:300], "fault": fault, "mib": used, "seconds": round(seconds, 2)}


def serve(pipe, work):
    "Take names until there are no more."
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("MPLCONFIGDIR", matplotlib.get_cachedir())  # its list of fonts
    Segmenter.from_pretrained(None).predict(np.zeros((9, 9), np.uint8))  # libraries that load late
    with open("/proc/self/status") as file:
        size = 1024 * int(next(line for line in file if line.startswith("VmSize")).split()[1])
    resource.setrlimit(resource.RLIMIT_AS, (size + 4 * MEMORY, resource.RLIM_INFINITY))
    while (name := pipe.recv()) is not None:
        try:
            pipe.send(attempt(name, work) if name else list(cases()))
        except Exception as error:  # of the test itself
            pipe.send({"name": name, "kind": "?", "outcome": "", "fault": "".join(traceback.format_exception(error)), "mib": 0, "seconds": 0})


if __name__ == "__main__":
    for one in sys.argv[2:]:
        print(json.dumps(attempt(one, Path(sys.argv[1]).resolve()), indent=1, ensure_ascii=False))
