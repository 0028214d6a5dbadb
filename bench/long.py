"""Start the long training in the background, or go on with it; say where and how far it is.

    VERDIFF_XRAY=xray.zip python bench/long.py

Folder: $VERDIFF_LONG, else ~/verdiff-long. It holds the code at the commit at which the run began,
so that later commits do not change it, the run itself, log.txt and pid. A run that is stopped
(`kill PID` saves a checkpoint, `kill -9` or a power cut loses a few minutes) goes on to the bit.

A new folder begins with the averaged weights of the longest run so far, results/long, or with those
of the package where there is none; `--keep` puts a run's averaged weights and its notes there.
`--finish 400` goes on from a run's averaged weights for 400 steps, in FOLDER/finish, at a rate that
falls to zero: weights to be used, not to be trained on.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

from verdiff.files import VerdiffError, run_lock, write_json
from verdiff.networks.model import VerdiffNet
from verdiff.segmentation.models import find_model
from verdiff.training.checkpoint import checkpoints, read_checkpoint

ROOT = Path(__file__).resolve().parent.parent
PROFILE = "long"
RELAY = "bench/results/long"
BEGIN = (RELAY, "verdiff/weights/xray-384x128")  # with the first of these that is there
FINISH = ("lr_schedule=cosine", "warmup_steps=10", "ema_decay=0.98", "recycle=0.7")


def running(run: Path) -> bool:
    "Whether a process trains there: the one in `pid` lives, or one holds the lock."
    pid = run.parent / "pid"
    if pid.exists():
        ps = ["ps", "-o", "args=", "-p", pid.read_text().strip()]
        if str(run) in subprocess.run(ps, capture_output=True, text=True).stdout:
            return True
    try:
        with run_lock(run):
            return False
    except VerdiffError:
        return True


def start(folder: Path, data: str, *words: str, begin: Path | None = None) -> None:
    "Train in the background at the lowest priority, with the code that the run began with."
    code = folder / "code"
    if not code.exists():
        subprocess.run(["git", "clone", "-q", ROOT, code], check=True)
    weights = [begin] if begin else [code / p for p in BEGIN if (code / p).exists()]
    new = (code / "verdiff" / "__main__.py").exists()  # older code had a module for each command
    command = ["-m", *(("verdiff", "train") if new else ("verdiff.training",)),
               "--data", data, "--profile", PROFILE,
               *(("--start-from", weights[0]) if weights else ()),
               "--out", folder / "run", *words]
    env = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", **os.environ,
           "PYTHONPATH": str(code)}
    with open(folder / "log.txt", "a") as log:
        process = subprocess.Popen(["nice", "-n", "19", sys.executable, *command], cwd=code,
                                   env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   start_new_session=True)
    (folder / "pid").write_text(f"{process.pid}\n")


def progress(run: Path) -> str:
    "Steps, hours and the newest validation, as the last checkpoint left them."
    if not checkpoints(run):
        return "no checkpoint yet"
    about, history = (json.loads((run / f"{name}.json").read_text()) for name in ("run", "history"))
    said = f"step {about['step']}, {about['cpu_seconds'] / 3600:.2f} CPU hours"
    for entry in [e for e in history if "prior_dice" in e][-1:]:
        said += (f"; validation at step {entry['step']}: prior {entry['prior_dice']:.3f}, one step "
                 f"{entry['one_step_dice']:.3f}, ten {entry['diffusion_dice']:.3f}")
    return said


def keep(run: Path, home: Path, earlier: Path | None = None) -> None:
    "The averaged weights of the newest checkpoint, and how they came about, into a folder."
    if not checkpoints(run) or (state := read_checkpoint(checkpoints(run)[-1])) is None:
        sys.exit(f"{run}: no readable checkpoint; `make long` starts a run")
    model = VerdiffNet.from_pretrained(find_model(str(run / "model")))
    model.load_state_dict(state["average"])
    notes = (earlier or home) / "runs.json"
    before = json.loads(notes.read_text()) if notes.exists() else []
    about, history = (json.loads((run / f"{name}.json").read_text()) for name in ("run", "history"))
    about = {k: about[k] for k in ("commit", "device", "torch", "step", "cpu_seconds", "settings")}
    about["validated"] = [e for e in history if "prior_dice" in e]
    model.save_pretrained(home)
    others = [r for r in before if any(r[k] != about[k] for k in ("commit", "settings"))]
    write_json(home / "runs.json", [*others, about])


def finish(folder: Path, data: str, steps: str) -> None:
    "Start the stage whose rate falls, or go on with it."
    end, words = folder / "finish", (f"max_steps={steps}", *FINISH)
    if not checkpoints(end / "run"):
        keep(folder / "run", end / "from", ROOT / RELAY)
    if not running(end / "run"):
        start(end, data, *(w for word in words for w in ("--set", word)), begin=end / "from")
    print(f"{end}: {progress(end / 'run')}")


def main() -> None:
    folder = Path(os.environ.get("VERDIFF_LONG", "~/verdiff-long")).expanduser().resolve()
    if sys.argv[1:] == ["--keep"]:
        if checkpoints(folder / "finish" / "run"):
            return keep(folder / "finish" / "run", ROOT / RELAY, folder / "finish" / "from")
        return keep(folder / "run", ROOT / RELAY)
    data, was = os.environ.get("VERDIFF_XRAY"), running(folder / "run")
    if not (was or data):
        sys.exit("set VERDIFF_XRAY to the zip or folder of the X-ray set (`verdiff data xray`)")
    data = str(Path(data).resolve()) if data and Path(data).exists() else data
    if sys.argv[1:2] == ["--finish"]:
        return finish(folder, data, *sys.argv[2:])
    if not was:
        start(folder, data, *sys.argv[1:])
    pid = (folder / "pid").read_text().strip()
    how = "running" if was else "started"
    print(f"{folder}: {how} as process {pid}, {progress(folder / 'run')}")


if __name__ == "__main__":
    main()
