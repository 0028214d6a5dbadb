"""What only a GPU can do, in order of value; each part resumable, a call ends within its minutes.

    python bench/gpu.py --data xray.zip --out results/gpu [--minutes 9] [--parts bf16,roof,...]

bf16      a training step and a prediction in bfloat16 against float32: how far, how much faster
roof      a training step at the full size: seconds, and the share of what a matrix product gives
train     profile gpu-fine from the package's weights, as many steps as fit into --train-minutes
evaluate  that network on the test radiographs (once: the part is not repeated)
paper     profile paper
nnunet    nnU-Net's network, the prior and Verdiff-Net from nothing, --each-minutes, validation

The same command goes on where the last one ended. Checkpoints lie in --work, results (at most eight
files) in --out: one JSON a part, with commit, device, date and seconds, and the weights of `train`.
"""
import argparse
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import cost, machine
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from verdiff.cli import main as command
from verdiff.data.datasets import training_data
from verdiff.data.packed import Packed
from verdiff.diffusion.sampling import sample
from verdiff.files import VerdiffError, git_revision, write_json
from verdiff.lab.comparison import score
from verdiff.lab.fitting import fit
from verdiff.lab.methods import Missing, make_network
from verdiff.metrics import dice, summary
from verdiff.networks.model import VerdiffNet
from verdiff.segmentation.models import bundled_model
from verdiff.settings import Settings, load_settings
from verdiff.training.batches import batches
from verdiff.training.loss import Objective

ROOT = Path(__file__).resolve().parent.parent
TINY = ["height=64", "width=32", "eval_height=64", "eval_width=32", "max_steps=4", "batch_size=2",
        "validate_every=2", "val_images=2", "checkpoint_every=1", "mixed_precision=no"]


class OutOfTime(Exception):
    "The call's minutes are over; the same command goes on."


class Call:
    "The words of the command line, and what the parts share."

    def __init__(self, words: argparse.Namespace):
        self.end = time.time() + 60 * words.minutes
        self.data, self.out, self.work = words.data, words.out, words.work
        self.device, self.tiny = words.device, words.tiny
        self.repeats = 1 if words.tiny else 5
        self.train_minutes, self.each_minutes = words.train_minutes, words.each_minutes

    def settings(self, profile: str, *more: str) -> Settings:
        "A profile's settings; tiny ones for a rehearsal."
        return load_settings(profile, [*(TINY if self.tiny else ()), *more])

    def films(self, settings: Settings) -> tuple[Packed, Packed]:
        "Training and validation radiographs at a size, decoded once."
        cache = self.work / f"films-{settings.fit}-{settings.height}x{settings.width}.npz"
        return training_data(self.data, settings, cache)

    def left(self, need: float = 0.0) -> float:
        "Seconds left; OutOfTime where they are fewer than needed."
        if (left := self.end - time.time()) < need:
            raise OutOfTime
        return left

    def verdiff(self, *words: object) -> None:
        "A command; interrupted when the call's minutes end."
        timer = threading.Timer(self.left(20), os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            code = command([str(word) for word in words])
        finally:
            timer.cancel()
        if code and time.time() >= self.end:
            raise OutOfTime
        if code:
            raise VerdiffError(f"`verdiff {' '.join(map(str, words))}` ended with {code}")


def shipped(call: Call) -> VerdiffNet:
    "The network of the package, on the device."
    return VerdiffNet.from_pretrained(bundled_model()).to(call.device)


def one_batch(call: Call, settings: Settings) -> tuple[Tensor, ...]:
    "The first augmented batch, on the device."
    films, _ = call.films(settings)
    return next(batches(films.to(call.device), settings, device=call.device))


def narrow(call: Call, on: bool) -> torch.autocast | nullcontext:
    "bfloat16 where it is on."
    return torch.autocast(torch.device(call.device).type, torch.bfloat16) if on else nullcontext()


def gradient(call: Call, objective: Objective, batch: tuple[Tensor, ...], on: bool) -> Tensor:
    "All gradients of one step as one vector."
    objective.zero_grad(set_to_none=True)
    with narrow(call, on):
        loss = objective(*batch)["total"]
    loss.backward()
    parts = (p.grad for p in objective.parameters() if p.grad is not None)
    return torch.cat([g.flatten().float() for g in parts])


def part_bf16(call: Call) -> dict:
    "Losses, gradients and masks in bfloat16 beside float32."
    s = call.settings("gpu-fine")
    model, batch = shipped(call), one_batch(call, s)
    objective = Objective(model.train(), s)
    full, short = (gradient(call, objective, batch, on) for on in (False, True))
    angle = torch.nn.functional.cosine_similarity(full, short, 0).item()
    model.eval()
    _, held = call.films(replace(s, height=s.eval_height, width=s.eval_width))
    held = held.subset(range(min(len(held), 4 if call.tiny else 32)))
    masks = {}
    for on in (False, True):
        with narrow(call, on), torch.no_grad():
            got = [sample(model, held.images[k : k + 4].to(call.device).float() / 255, steps=1,
                          ensemble=1, seed=k) for k in range(0, len(held), 4)]
        masks[on] = torch.cat([g.samples[0].float().cpu() for g in got]) > 0.5
    scores = {on: dice(m, held.masks > 0).numpy() for on, m in masks.items()}
    times = {on: cost(partial(gradient, call, objective, batch, on), call.device,
                      call.repeats).seconds for on in (False, True)}
    return {"batch": list(batch[0].shape), "gradient_cosine": angle,
            "gradient_relative_error": ((short - full).norm() / full.norm()).item(),
            "dice_float32": scores[False].tolist(), "dice_bf16": scores[True].tolist(),
            "pixels_that_differ": (masks[True] != masks[False]).float().mean().item(),
            "seconds_float32": times[False], "seconds_bf16": times[True]}


def part_roof(call: Call) -> dict:
    "FLOPs and seconds of a training step, against a large matrix product on the same card."
    s, rows = call.settings("gpu-fine"), []
    n = 64 if call.tiny else 8192
    a, b = (torch.randn(n, n, device=call.device, dtype=torch.bfloat16) for _ in range(2))
    peak = 2 * n**3 / cost(lambda: a @ b, call.device, 2 * call.repeats).seconds
    objective = Objective(shipped(call).train(), s)
    sizes = (2,) if call.tiny else (4, 8, 16, 32)
    for size in sizes:
        batch = one_batch(call, replace(s, batch_size=size))
        with FlopCounterMode(display=False) as counter:
            gradient(call, objective, batch, True)
        took = cost(partial(gradient, call, objective, batch, True), call.device, call.repeats)
        reached = counter.get_total_flops() / took.seconds
        rows.append({"batch_size": size, "seconds": took.seconds, "megabytes": took.megabytes,
                     "tflop": counter.get_total_flops() / 1e12, "share": reached / peak})
    return {"size": list(s.size), "matmul_tflop_per_second": peak / 1e12, "steps": rows}


def part_train(call: Call) -> dict:
    "Go on from the weights of the package at the full size; the rate falls to zero."
    s, run = call.settings("gpu-fine"), call.work / "gpu-fine"
    speed = json.loads((call.out / "roof.json").read_text())["steps"]
    seconds = next((r["seconds"] for r in speed if r["batch_size"] == s.batch_size), None)
    if seconds is None:
        raise VerdiffError(f"roof.json has no batches of {s.batch_size}; run the part roof")
    steps = max(s.warmup_steps + 1, int(60 * call.train_minutes / (1.15 * seconds)))
    plan = run.with_name("gpu-fine-steps.json")
    if plan.exists():  # the cosine must know its end, in a later call as well
        steps = json.loads(plan.read_text())
    write_json(plan, steps)
    steps = s.max_steps if call.tiny else steps
    words = [f"--set={w}" for w in (*(TINY if call.tiny else ()), f"max_steps={steps}")]
    call.verdiff("train", "--data", call.data, "--profile", "gpu-fine", *words,
                 "--start-from", "bundled", "--out", run)
    shutil.copytree(run / "model", call.out / "weights", dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("*.md", "history.json", "run.json"))
    return {"steps": steps, "history": json.loads((run / "history.json").read_text())}


def part_evaluate(call: Call) -> dict:
    "The test radiographs, once."
    report, run = call.work / "report", call.work / "gpu-fine"
    size = call.settings("gpu-fine")
    call.verdiff("evaluate", "--data", call.data, "--model", run, "--steps", "1,10", "-o", report,
                 "--size", f"{size.eval_height}x{size.eval_width}", "--device", call.device)
    return json.loads((report / "evaluation.json").read_text())


def part_paper(call: Call) -> dict:
    "Section 3.3 to the letter."
    run = call.work / "paper"
    words = [f"--set={w}" for w in (TINY if call.tiny else ())]
    call.verdiff("train", "--data", call.data, "--profile", "paper", *words, "--out", run)
    return {"history": json.loads((run / "history.json").read_text())}


def part_nnunet(call: Call) -> dict:
    "Three networks from nothing, the same minutes each; validation radiographs."
    s = replace(call.settings("gpu-fine"), lr_schedule="constant", sample_steps=1, ensemble=1)
    train, held = call.films(s)
    _, large = call.films(replace(s, height=s.eval_height, width=s.eval_width))
    found = {}
    for method in ("nnunet", "prior", "verdiff"):
        call.left(0 if (call.work / method).exists() else 30)
        minutes = min(call.each_minutes, 0.01) if call.tiny else call.each_minutes
        try:
            done = fit(make_network(method, s), s, train, call.work / method, call.device,
                       minutes=minutes)
        except Missing as why:
            found[method] = {"not_run": str(why)}
            continue
        scores, _ = score(done.average, large, s.size, call.device)
        found[method] = {"minutes": done.seconds / 60, "steps": len(done.losses),
                         "dice": np.asarray(scores["dice"]).tolist()}
        print(method, summary(found[method]["dice"]), flush=True)
    return found


PARTS: dict[str, Callable[[Call], dict]] = {
    "bf16": part_bf16, "roof": part_roof, "train": part_train, "evaluate": part_evaluate,
    "paper": part_paper, "nnunet": part_nnunet}


def main(words: list[str] | None = None) -> int:
    "The parts that are asked for and not yet done; 0 when all are, 3 when the minutes ended."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", default=os.environ.get("VERDIFF_XRAY"), help="default: $VERDIFF_XRAY")
    add("--out", type=Path, default=ROOT / "runs/gpu/results", help="results")
    add("--work", type=Path, default=ROOT / "runs/gpu", help="checkpoints, decoded radiographs")
    add("--parts", default=",".join(PARTS), help="default: all, in this order")
    add("--minutes", type=float, default=9.0, help="of this call (default: 9)")
    add("--train-minutes", type=float, default=8.0, help="of the part train (default: 8)")
    add("--each-minutes", type=float, default=2.5, help="of each network in nnunet (default: 2.5)")
    add("--device", default="cuda")
    add("--tiny", action="store_true", help="a rehearsal of all parts with tiny sizes")
    said = parser.parse_args(words)
    if not said.data:
        parser.error("set VERDIFF_XRAY to the zip or folder of the X-ray set (`verdiff data xray`)")
    if unknown := set(said.parts.split(",")) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if said.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no GPU here; --tiny --device cpu rehearses all parts")
    for folder in (said.out, said.work):
        folder.mkdir(parents=True, exist_ok=True)
    call = Call(said)
    for name in said.parts.split(","):
        if (said.out / f"{name}.json").exists():
            continue
        begin = time.time()
        print(f"== {name}: {PARTS[name].__doc__}", flush=True)
        try:
            call.left(10)
            found = PARTS[name](call)
        except OutOfTime:
            print(f"the minutes of this call are over in {name}; the same command goes on")
            return 3
        except VerdiffError as why:
            sys.exit(f"{name}: {why}")
        about = {**machine(torch.get_num_threads()), "device": said.device, "tiny": said.tiny,
                 "commit": git_revision(), "date": date.today().isoformat(),
                 "seconds_of_this_call": round(time.time() - begin, 1)}
        write_json(said.out / f"{name}.json", {"about": about, **found})
        print(f"   {time.time() - begin:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
