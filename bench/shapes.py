"""Radiographs of any shape: Dice with and without the zoom to the spine, of the same films as they
are, padded, cut off, and of other sizes.

usage: python bench/shapes.py --data scoliosis-xray-single-view.zip [--on validation|test]
                              [--films N] [--ensemble 5] [--shrink 1] [--out bench/results]

Each radiograph, made smaller by `--shrink`, becomes each variant, is segmented as `verdiff segment`
does (one step, mean of so many samples), and scored at the variant's own size against the mask that
was padded, cut or resized along with it. Padding is black; "in a frame" puts the radiograph into
twice its height and width. Validation radiographs are those that training with these weights was
validated on; they chose the zoom's constants. Writes shapes-ON.json: means, paired differences to
the radiograph as it is, and every single score. Each radiograph's scores are kept in
shapes-ON.part.json until all are there, so the same command goes on after an interruption.
"""
import argparse
import hashlib
import json
import subprocess
import time
from pathlib import Path

import numpy as np
import torch
from common import machine
from PIL import Image

from verdiff.data.splits import grouped_split
from verdiff.data.xray import XRaySet
from verdiff.files import write_json
from verdiff.metrics import paired_difference, summary
from verdiff.segmentation import zoom
from verdiff.segmentation.models import find_model
from verdiff.segmentation.segmenter import Segmenter


def padded(x: np.ndarray, height: int, width: int) -> np.ndarray:
    "In the middle of black."
    rows, columns = max(height, x.shape[0]), max(width, x.shape[1])
    out, top, left = np.zeros((rows, columns), x.dtype), *(
        (n - m) // 2 for n, m in zip((rows, columns), x.shape, strict=True))
    out[top:top + x.shape[0], left:left + x.shape[1]] = x
    return out


def resized(x: np.ndarray, factor: float) -> np.ndarray:
    "With antialiasing."
    size = round(factor * x.shape[1]), round(factor * x.shape[0])
    return np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BILINEAR))


VARIANTS = {
    "as it is": lambda x: x,
    "padded to 4:3": lambda x: padded(x, 0, round(0.75 * x.shape[0])),
    "padded to 1:1": lambda x: padded(x, 0, x.shape[0]),
    "in a frame": lambda x: padded(x, 2 * x.shape[0], 2 * x.shape[1]),
    "half the pixels": lambda x: resized(x, 0.5),
    "twice the pixels": lambda x: resized(x, 2),
    "upper two thirds": lambda x: x[:round(2 * x.shape[0] / 3)],
    "lower two thirds": lambda x: x[-round(2 * x.shape[0] / 3):],
}


def mask_dice(a: np.ndarray, b: np.ndarray) -> float:
    "Of two masks, 1 where both are empty."
    both = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / both if both else 1.0


def score(segmenter: Segmenter, image: np.ndarray, mask: np.ndarray, samples: int) -> dict:
    "Dice with and without zoom of each variant, and whether it zoomed."
    found = {}
    for name, make in VARIANTS.items():
        film, truth = Image.fromarray(make(image)), make(255 * mask) > 127
        near = segmenter.predict(film, 1, samples)
        far = near if near.zoomed_to is None else segmenter.predict(film, 1, samples, zoom=False)
        found[name] = {"zoom": mask_dice(near.mask > 0, truth),
                       "whole": mask_dice(far.mask > 0, truth),
                       "zoomed": near.zoomed_to is not None}
    return found


def rows_of(scores: list[dict]) -> list[dict]:
    "A line a variant: means and intervals, and differences to the radiograph as it is, unzoomed."
    rows, start = [], [s["as it is"]["whole"] for s in scores]
    for name in VARIANTS:
        row = {"variant": name, "zoomed": sum(s[name]["zoomed"] for s in scores)}
        for way in ("whole", "zoom"):
            values = [s[name][way] for s in scores]
            mean, (lost, low, high) = summary(values), paired_difference(values, start)
            row[way] = {"dice": mean.mean, "low": mean.lo, "high": mean.hi, "lost": lost,
                        "lost_low": low, "lost_high": high}
        rows.append(row)
    return rows


def kept_scores(path: Path, key: dict) -> dict:
    "Of an earlier run with the same key that was interrupted; by name of the radiograph."
    try:
        there = json.loads(path.read_text())
        return there["scores"] if there["key"] == key else {}
    except (OSError, ValueError, KeyError):
        return {}


def main() -> None:
    "Print the table, write the JSON."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--model")
    parser.add_argument("--on", choices=("validation", "test"), default="validation")
    parser.add_argument("--films", type=int, help="so many, drawn with seed 0 (default: all)")
    parser.add_argument("--ensemble", type=int, default=5)
    parser.add_argument("--shrink", type=int, default=1, help="take every film at 1/N of its size")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    o = parser.parse_args()
    torch.set_num_threads(1)
    start, segmenter = time.perf_counter(), Segmenter.from_pretrained(o.model)
    data = XRaySet(o.data, "test" if o.on == "test" else "training")
    index = list(range(len(data)))
    if o.on == "validation":
        run = json.loads((Path(find_model(o.model)) / "run.json").read_text())["settings"]
        index = grouped_split(data.names, float(run["val_fraction"]), int(run["seed"]))[1]
    if o.films:
        index = sorted(np.random.default_rng(0).permutation(index)[:o.films].tolist())
    o.out.mkdir(parents=True, exist_ok=True)
    part, code = o.out / f"shapes-{o.on}.part.json", Path(zoom.__file__).read_bytes()
    key = {"fingerprint": segmenter.fingerprint(), "samples": o.ensemble, "shrink": o.shrink,
           "zoom": hashlib.sha256(code).hexdigest()}
    known = kept_scores(part, key)
    for n, i in enumerate(index):
        if (name := data.names[i]) not in known:
            image, mask = np.asarray(data.read_image(i)), data.original_mask(i)
            if o.shrink > 1:
                image = np.asarray(Image.fromarray(image).reduce(o.shrink))
                mask = np.asarray(Image.fromarray(255 * mask).reduce(o.shrink)) // 128
            known[name] = score(segmenter, image, mask, o.ensemble)
            write_json(part, {"key": key, "scores": known})
        print(f"{n + 1} of {len(index)}", flush=True)
    scores = [known[data.names[i]] for i in index]
    rows = rows_of(scores)
    for row in rows:
        far, near = row["whole"], row["zoom"]
        print(f"{row['variant']:18s} whole {far['dice']:.3f} ({far['lost']:+.3f})  zoom "
              f"{near['dice']:.3f} ({near['lost']:+.3f} [{near['lost_low']:+.3f}, "
              f"{near['lost_high']:+.3f}])  zoomed {row['zoomed']} of {len(index)}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True,
                            text=True, check=False, cwd=Path(__file__).parent).stdout.strip()
    write_json(o.out / f"shapes-{o.on}.json", {
        "machine": machine(1), "device": str(segmenter.device), "commit": commit,
        "minutes": round((time.perf_counter() - start) / 60, 1), "model": o.model or "bundled",
        "fingerprint": segmenter.fingerprint(), "on": o.on, "steps": 1, "samples": o.ensemble,
        "seed": 0, "shrink": o.shrink, "films": len(index), "rows": rows,
        "scores": {str(i): s for i, s in zip(index, scores, strict=True)}})  # by number in the part
    part.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
