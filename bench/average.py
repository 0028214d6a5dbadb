"""Weights between two networks of one kind: which share of the second is worth taking?

    VERDIFF_XRAY=xray.zip python bench/average.py FIRST SECOND [--shares 0.3 0.5] [--out DIR]

The averages (1 - share) x FIRST + share x SECOND are scored by their prior on the validation
radiographs of bench/disturbed.py, as they are and under some of its conditions (Wortsman et al.
2022, "Robust fine-tuning of zero-shot models", do so for a network and its fine-tuned child). The
largest share whose clean Dice does not lie below FIRST's (95 % interval of the paired difference
holds 0) is chosen and written to --out. What is scored already is kept, share by share.
"""
import argparse
import json
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from common import machine
from disturbed import read_model, score, table, validation_films

from verdiff.files import git_revision, write_json
from verdiff.networks.model import VerdiffNet
from verdiff.networks.pretrained import weights_digest

CONDITIONS = ("clean", "noise 0.05", "blur of 4 pixels", "drawn metal", "padded to a square",
              "cut below L5")


def average(first: VerdiffNet, second: VerdiffNet, share: float) -> VerdiffNet:
    "(1 - share) x first + share x second, weight by weight; ValueError for networks of two kinds."
    if first.config != second.config:
        raise ValueError("the two networks differ in kind")
    a, b = first.state_dict(), second.state_dict()
    net = VerdiffNet(first.config)
    net.load_state_dict({k: torch.lerp(a[k], b[k], share) if a[k].is_floating_point() else a[k]
                         for k in a})
    return net.eval()


def choose(models: dict[str, dict]) -> str:
    "The largest share whose clean Dice does not lie reliably below that of share 0."
    def differs(share: str) -> float:
        pair = {k: models[k] for k in ("0", share)}
        return table(pair)["second_minus_first"]["clean"]["dice"][2]  # upper end

    return max((k for k in models if k == "0" or differs(k) >= 0), key=float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--shares", nargs="+", type=float, default=[0, 0.3, 0.4, 0.5, 0.7, 1])
    parser.add_argument("--only", nargs="+", choices=CONDITIONS, default=CONDITIONS)
    parser.add_argument("--json", type=Path, default=Path("bench/results/average.json"))
    parser.add_argument("--out", type=Path, help="folder for the chosen average")
    args = parser.parse_args()
    if "VERDIFF_XRAY" not in os.environ:
        parser.error("set VERDIFF_XRAY to the zip or folder of the X-ray set (`verdiff data xray`)")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    first, second = map(read_model, (args.first, args.second))
    names, films = validation_films(os.environ["VERDIFF_XRAY"])
    about = {"result": "prior", "radiographs": len(names), "weights": {
        path.name: weights_digest(net)[:12] for path, net in ((args.first, first),
                                                              (args.second, second))}}
    kept = json.loads(args.json.read_text()) if args.json.exists() else {}
    models = kept["models"] if all(kept.get(k) == v for k, v in about.items()) else {}
    for share in sorted({0.0, *args.shares}):
        key, net = f"{share:g}", average(first, second, share)
        done = models.setdefault(key, {"conditions": {}})["conditions"]
        for condition in [c for c in ("clean", *args.only) if c not in done]:
            done[condition] = score(net, films, condition, prior=True)
            print(f"share {key:4s} {condition:20s} "
                  f"Dice {table(models)[key][condition]['dice']}", flush=True)
        write_json(args.json, about | {
            "commit": git_revision(), "machine": machine(1), "models": models,
            "table": table(models), "chosen": choose(models), "against_0": {
                k: table({"0": models["0"], k: m})["second_minus_first"]
                for k, m in models.items() if k != "0"}})
    print(f"chosen: {choose(models)}")
    if args.out:
        average(first, second, float(choose(models))).save_pretrained(args.out)


if __name__ == "__main__":
    main()
