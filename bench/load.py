"""`verdiff segment` over many phantoms: flat memory, three interruptions, nothing done twice.

usage: python bench/load.py [--count 5000] [--json bench/results/robustness.json]

The command runs as a process of its own. After each quarter it is ended: by Ctrl-C, by a kill that
nothing can catch, and by Ctrl-C again; the same command goes on. At the end every phantom has its
five files, what was there at an interruption is untouched, and some masks are compared with those
of a run that nobody interrupted. Memory is what the process holds, read while it works.
"""
import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from verdiff.data.phantoms import draw_phantom

WORDS = ["--steps", "1", "--ensemble", "1", "--device", "cpu", "-q"]
ENDINGS = (signal.SIGINT, signal.SIGKILL, signal.SIGINT)


def draw(folder: Path, count: int) -> None:
    "Small phantoms, in folders of a hundred; every one is another picture."
    for i in range(count):
        path = folder / f"{i // 100:03d}" / f"{i:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        film = draw_phantom(seed=i % 500, image_size=(96, 32)).image.copy()
        film.flat[:2] = i // 256, i % 256
        Image.fromarray(film).save(path)


def done(out: Path) -> dict[Path, int]:
    "The results that are whole, and when they were written: STEM.json comes last."
    return {p: p.stat().st_mtime_ns for p in out.rglob("*.json")}


def held(process: subprocess.Popen) -> float:
    "MiB."
    with open(f"/proc/{process.pid}/status") as file:
        found = [line for line in file if line.startswith("VmRSS")]
    return int(found[0].split()[1]) / 1024 if found else 0


def segment(films: Path, out: Path, until: int, ending: int | None) -> list[tuple[int, float]]:
    "Run the command until so many are done; (number done, MiB) while it works."
    found: list[tuple[int, float]] = []
    command = [sys.executable, "-m", "verdiff", "segment", films, "-o", out, *WORDS]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL)) as process:
        begin = len(done(out))
        while process.poll() is None:
            time.sleep(0.5)
            if (number := len(done(out))) > begin and process.poll() is None:
                found.append((number, held(process)))
            if ending is not None and number >= until:
                process.send_signal(ending)
                process.wait()
    if ending is None and process.returncode:
        raise SystemExit(f"ended with {process.returncode}")
    return [(number, mib) for number, mib in found if mib]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    root, again = Path(tempfile.mkdtemp(prefix="verdiff-load-")), 0
    films, out = root / "in", root / "out"
    draw(films, args.count)
    memory = []
    for i, ending in enumerate((*ENDINGS, None)):
        before = done(out)
        memory.append(segment(films, out, args.count * (i + 1) // 4, ending))
        after = done(out)
        again += sum(after.get(path) != written for path, written in before.items())
        print(f"{len(after)} of {args.count}, {memory[-1][0]} to {memory[-1][-1]}", flush=True)
    names = [p for p in out.rglob("*") if p.is_file()]
    some = root / "some"
    some.mkdir()
    for path in sorted(films.rglob("*.png"))[::max(1, args.count // 20)]:
        (some / path.parent.name).mkdir(exist_ok=True)
        shutil.copy(path, some / path.parent.name)
    segment(some, root / "undisturbed", 0, None)
    alone = root / "undisturbed"
    pairs = [(p, out / p.relative_to(alone)) for p in alone.rglob("*_mask.png")]
    other = [p for p, q in pairs if not np.array_equal(Image.open(p), Image.open(q))]
    gained = [part[-1][1] - part[len(part) // 4][1] for part in memory]  # first, libraries load
    result = {
        "phantoms": args.count, "interruptions": len(ENDINGS), "done_twice": again,
        "results": len(done(out)), "files": len(names),
        "temporary_files_left": sum(name.name.endswith(".part") for name in names),
        "compared": len(pairs), "other_masks": len(other),
        "most_mib": round(max(mib for part in memory for _, mib in part)),
        "most_mib_gained": round(max(gained), 1)}
    print(json.dumps(result, indent=1))
    if args.json:
        there = json.loads(args.json.read_text()) if args.json.exists() else {}
        args.json.write_text(json.dumps(there | {"load": result}, indent=1) + "\n")
    shutil.rmtree(root)
    sys.exit(0 if not again and not other and result["results"] == args.count else 1)


if __name__ == "__main__":
    main()
