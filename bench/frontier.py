"""Which network reaches the best validation Dice for its minutes? One core each, one seed.

    VERDIFF_XRAY=xray.zip python bench/frontier.py [--minutes 2,4,8] [--names half,stem4] ...

Every network learns from the same stream of augmented batches, at one constant rate, with averaged
weights, so that one run gives the Dice at every budget. Only steps count, in minutes of the
processor's time; other work on the machine disturbs that little, not at all it does not. Scored on
the validation films at 768x256; the test films are not opened. The same command goes on where it
stopped, and more minutes continue the same runs. Each point enters the JSON as it is done.
"""
import argparse
import json
import os
import platform
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from verdiff.data.datasets import training_data
from verdiff.data.packed import Packed
from verdiff.files import VerdiffError, git_revision, write_json
from verdiff.lab.comparison import predict
from verdiff.lab.fitting import fit
from verdiff.lab.methods import Diffusion, Missing, Plain, make_network
from verdiff.metrics import dice, summary
from verdiff.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parent.parent
SHARED = ["lr_schedule=constant", "warmup_steps=20", "ema_decay=0.98", "sample_steps=1",
          "ensemble=1", "checkpoint_every=25"]
# name: method, what it is, its settings
CANDIDATES = {
    "half": ("prior", "the shipped body at 384x128", "height=384 width=128 channels=16,32,64,128"),
    "quarter": ("prior", "the shipped body at 192x64", "height=192 width=64 channels=16,32,64,128"),
    "stem4": ("prior", "stem of 4, as in profile long",
              "height=768 width=256 stem=4 channels=32,64,96,128,128"),
    "stem2": ("prior", "stem of 2", "height=768 width=256 stem=2 channels=16,32,64,128,128"),
    "stem4-narrow": ("prior", "stem of 4, half as wide",
                     "height=768 width=256 stem=4 channels=16,32,48,64,64"),
    "stem4-wide": ("prior", "stem of 4, twice as wide",
                   "height=768 width=256 stem=4 channels=64,128,192,256"),
    "stem4-deep": ("prior", "stem of 4, two blocks a level",
                   "height=768 width=256 stem=4 channels=32,64,96,128,128 blocks=2"),
    "stem4-pair": ("verdiff", "stem of 4, both U-Nets",
                   "height=768 width=256 stem=4 channels=32,64,96,128,128 input_scale=0.1"),
    "nnunet-quarter": ("nnunet", "nnU-Net's network at 192x64", "height=192 width=64"),
    "nnunet-half": ("nnunet", "nnU-Net's network at 384x128", "height=384 width=128"),
    "half-pair": ("verdiff", "the shipped pair at 384x128",
                  "height=384 width=128 channels=16,32,64,128"),
}


def settings_of(name: str, more: list[str]) -> Settings:
    "The profile `comparison` with a candidate's own numbers."
    return load_settings("comparison", [*SHARED, *CANDIDATES[name][2].split(), *more])


def dice_of(network: nn.Module, films: Packed, size: tuple[int, int]) -> list[float]:
    "Dice of each film at the films' size."
    scores = []
    for first in range(0, len(films), 4):
        part = films.subset(range(first, min(first + 4, len(films))))
        scores.append(dice(predict(network, part.images, size, first)[0] > 0.5, part.masks > 0))
    return [round(v, 4) for v in torch.cat(scores).tolist()]


@torch.no_grad()
def cost_of(network: nn.Module, size: tuple[int, int]) -> dict[str, float]:
    "Parameters, and GFLOP and processor seconds of one film at the network's size."
    image, times = torch.rand(1, 1, *size), []
    with FlopCounterMode(display=False) as counter:
        network.probability(image)
    for _ in range(3):
        start = time.process_time()
        network.probability(image)
        times.append(time.process_time() - start)
    return {"parameters": sum(p.numel() for p in network.parameters()),
            "gflop": round(counter.get_total_flops() / 1e9, 3),
            "seconds_per_film": round(min(times), 4)}


def point(name: str, minutes: float, data: str, runs: Path, more: list[str]) -> dict:
    "Train a candidate up to that budget, or on to it, and score it on the validation films."
    s = settings_of(name, more)
    size = f"{s.height}x{s.width}"
    train_data, _ = training_data(data, s, runs / f"films-{size}.npz")
    large = settings_of(name, [*more, f"height={s.eval_height}", f"width={s.eval_width}"])
    _, films = training_data(data, large, runs / f"films-{s.eval_height}x{s.eval_width}.npz")
    done = fit(make_network(CANDIDATES[name][0], s), s, train_data, runs / name, minutes=minutes)
    network = done.average
    scores = {"dice": dice_of(network, films, s.size)}
    if isinstance(network, Diffusion):
        prior = Plain(nn.Sequential(network.net.features, network.net.conditional), s).eval()
        scores["prior_dice"] = dice_of(prior, films, s.size)
    return {"minutes": minutes, "cpu_minutes": round(done.cpu_seconds / 60, 3),
            "clock_minutes": round(done.seconds / 60, 3), "steps": len(done.losses),
            "loss": round(float(np.mean(done.losses[-20:])), 4), "commit": git_revision(),
            "date": date.today().isoformat(), **scores, "cost": cost_of(network, s.size)}


def record_of(name: str, points: list[dict], more: list[str]) -> dict:
    "What the JSON says of a candidate."
    method, about, _ = CANDIDATES[name]
    s = settings_of(name, more)
    return {"method": method, "about": about, "size": list(s.size), "channels": list(s.channels),
            "stem": s.stem, "blocks": s.blocks, "batch_size": s.batch_size, "seed": s.seed,
            "learning_rate": s.learning_rate, **points[-1]["cost"],
            "points": [{k: v for k, v in p.items() if k != "cost"} for p in points]}


def numbers(text: str) -> list[float]:
    "Turn 2,4,8 into numbers."
    return [float(word) for word in text.split(",")]


def main() -> None:
    "All budgets, from the smallest; in each all candidates."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", default=os.environ.get("VERDIFF_XRAY"), help="default: $VERDIFF_XRAY")
    add("--minutes", type=numbers, default=[2.0, 4.0, 8.0], help="budgets (default: 2,4,8)")
    add("--names", default=",".join(CANDIDATES), help="candidates (default: all)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="for all candidates")
    add("--runs", type=Path, default=ROOT / "runs" / "frontier", help="checkpoints")
    add("--json", type=Path, default=ROOT / "bench" / "results" / "frontier.json")
    options = parser.parse_args()
    if not options.data:
        sys.exit("set VERDIFF_XRAY to the zip or folder of the X-ray set (`verdiff data xray`)")
    torch.set_num_threads(1)
    options.runs.mkdir(parents=True, exist_ok=True)
    kept = json.loads(options.json.read_text()) if options.json.exists() else {"candidates": {}}
    kept |= {"torch": torch.__version__, "device": f"cpu, {platform.machine()}", "threads": 1}
    for minutes in options.minutes:
        for name in options.names.split(","):
            known = kept["candidates"].get(name, {"points": []})
            if any(p["minutes"] == minutes for p in known["points"]):
                continue
            try:
                new = point(name, minutes, options.data, options.runs, options.set)
            except Missing as error:
                print(f"{name}: not run, {error}", flush=True)
                continue
            except VerdiffError as error:
                sys.exit(str(error))
            record = record_of(name, [*known["points"], new], options.set)
            kept["candidates"][name] = record
            write_json(options.json, kept)
            print(f"{name:15s} {minutes:4g} min {new['steps']:5d} steps  "
                  f"Dice {summary(new['dice'])}  {record['gflop']:.2f} GFLOP  "
                  f"{record['seconds_per_film']:.3f} s  {record['parameters']:,}", flush=True)


if __name__ == "__main__":
    main()
