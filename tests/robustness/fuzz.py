"""Try inputs that nobody should have, and say which of them were not answered by a result or a sentence.

usage: fuzz.py [--count N] [--first N] [--json FILE] [--keep DIR] | fuzz.py --only NAME ...
"""
import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
from robustness.worker import serve

LIMIT = 120  # seconds until a process is killed; ten of the processor are a fault


class Worker:
    "One process; another takes its place when it is killed."

    def __init__(self, work):
        self.work, self.process = Path(work), None

    def start(self):
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, self.work), daemon=True)
        self.process.start()
        other.close()

    def attempt(self, name, limit=LIMIT):
        if self.process is None:
            self.start()
            limit += 600  # it imports everything first
        try:
            self.pipe.send(name)
            if self.pipe.poll(limit):
                return self.pipe.recv()
            fault = f"no answer after {limit} s"
        except (EOFError, OSError):
            fault = "the process died"
        self.stop()
        code = self.process.exitcode
        self.process = None
        return {"name": name, "kind": "?", "outcome": "", "fault": f"{fault} (exit code {code})", "mib": 0, "seconds": limit}

    def stop(self):
        if self.process is not None and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGKILL)
        if self.process is not None:
            self.process.join()


def try_all(names, worker, by_hand=None):
    "Numbers or names, and before them those made by hand that a condition holds for."
    made = worker.attempt("") if by_hand else []
    assert isinstance(made, list), made
    for name in [*filter(by_hand, made), *map(str, names)]:
        yield worker.attempt(name)


def summary(found):
    kinds = Counter(f["kind"] for f in found)
    refused = Counter(f["kind"] for f in found if not f["fault"] and ("rror:" in f["outcome"] or "argparse 2" in f["outcome"]))
    return {"inputs": len(found), "faults": sum(bool(f["fault"]) for f in found), "refused_in_one_sentence": sum(refused.values()),
            "by_kind": {k: {"inputs": n, "refused": refused[k]} for k, n in sorted(kinds.items())},
            "most_mib_above_the_start": max(f["mib"] for f in found), "most_seconds": max(f["seconds"] for f in found)}


def keep(path, part, values):
    "Write one part of a JSON file, and leave the others as they are."
    there = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(there | {part: values}, indent=1) + "\n")


def run():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="folder for the inputs that fail")
    args = parser.parse_args()
    numbers = range(args.first, args.first + args.count)
    work = args.keep or Path(tempfile.mkdtemp(prefix="verdiff-fuzz-"))
    found, worker = [], Worker(work.resolve())
    for i, one in enumerate(try_all(args.only or numbers, worker, None if args.only else bool)):
        found.append(one)
        if one["fault"] or args.only:
            print(json.dumps(one, indent=1, ensure_ascii=False).replace("\\n", "\n"), flush=True)
        if i % 100 == 99:
            if args.json:
                keep(args.json, "fuzz", summary(found))
            print(f"{i + 1} tried, {sum(bool(f['fault']) for f in found)} faults", flush=True)
    worker.stop()
    result = summary(found)
    print(json.dumps(result, indent=1))
    if args.json:
        keep(args.json, "fuzz", result)
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(run())
