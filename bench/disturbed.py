"""Validation Dice on disturbed radiographs, and what loses L5: one model, or two side by side.

    VERDIFF_XRAY=xray.zip python bench/disturbed.py DIR [OTHER] --prior --json FILE

DIR is a folder with config.json and model.safetensors, or a checkpoint-*.pt (its averaged weights).
Validation radiographs of the model's own split only; the test split is not opened. Every condition
that is done is in FILE, so the same command goes on after a stop. The metal is that of the page of
real radiographs (nbpy/lab/xray.py), not the one that training draws. Scored at 768x256.
"""
import argparse
import io
import os
import time
from collections.abc import Callable
from hashlib import sha256
from json import loads
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from common import machine
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from verdiff.data.canvas import fit_image
from verdiff.data.landmarks import landmarks_to_mask
from verdiff.data.splits import grouped_split
from verdiff.data.xray import XRaySet
from verdiff.diffusion.sampling import sample
from verdiff.files import git_revision, write_json
from verdiff.metrics import dice, paired_difference, summary
from verdiff.networks.config import VerdiffConfig
from verdiff.networks.model import VerdiffNet
from verdiff.networks.pretrained import weights_digest
from verdiff.settings import Settings, load_settings
from verdiff.training.checkpoint import read_checkpoint

SIZE = 768, 256  # where noise, blur and metal are drawn, and where masks are compared
MISSED = 0.1  # a vertebra with a smaller Dice is missed
Film = tuple[np.ndarray, np.ndarray]  # grey, uint8 (h, w); landmarks (68, 2), x first, pixels


class Canvas(NamedTuple):
    "A radiograph as the networks get it, before it is reduced."

    image: np.ndarray  # (768, 256) in [0, 1]
    inside: np.ndarray  # where the radiograph is, bool
    points: np.ndarray  # (68, 2), canvas pixels
    number: int  # of the radiograph


# ---------------------------------------------------------------- what is done to a radiograph


def padded(film: Film, top: float = 0, bottom: float = 0, sides: float = 0,
           mode: str = "constant") -> Film:
    "More of it around: shares of its height (top, bottom) and of its width (each side)."
    grey, points = film
    h, w = grey.shape
    rows, columns = (round(top * h), round(bottom * h)), (round(sides * w),) * 2
    return np.pad(grey, (rows, columns), mode=mode), points + (columns[0], rows[0])


def zoomed(film: Film, factor: float, mode: str) -> Film:
    "The radiograph smaller by that factor, in the middle of a picture of the same shape."
    more = (factor - 1) / 2
    return padded(film, more, more, more, mode)


def square(film: Film) -> Film:
    h, w = film[0].shape
    return padded(film, sides=max(0, h - w) / 2 / w)


def rows_of(film: Film, first: float, last: float) -> Film:
    "Only these rows, shares of the height."
    grey, points = film
    a, b = (round(x * len(grey)) for x in (first, last))
    return grey[a:b], points - (0, a)


def below_l5(film: Film) -> Film:
    "The radiograph ends where the mask ends, and a fiftieth of the height."
    grey, points = film
    return rows_of(film, 0, min(1.0, points[:, 1].max() / len(grey) + 0.02))


def drawn_metal(canvas: Canvas) -> np.ndarray:
    "Two rods and screws from T4 to L3: `with_metal` of nbpy/lab/xray.py."
    picture = Image.fromarray((255 * canvas.image).astype(np.uint8))
    draw, centre = ImageDraw.Draw(picture), canvas.points.reshape(17, 4, 2).mean(1)
    unit = np.linalg.norm(np.diff(centre, axis=0), axis=1).mean()
    for side in (-1, 1):
        rod = [tuple(p) for p in centre[3:15] + (side * 0.35 * unit, 0)]
        draw.line(rod, fill=250, width=max(2, round(0.14 * unit)), joint="curve")
        for x, y in rod:
            draw.line([(x, y), (x + side * 0.3 * unit, y)], fill=250,
                      width=max(2, round(0.16 * unit)))
    return np.asarray(picture, np.float32) / 255


def noisy(canvas: Canvas) -> np.ndarray:
    rng = np.random.default_rng([35, canvas.number])
    return (canvas.image + 0.05 * rng.standard_normal(canvas.image.shape)).clip(0, 1)


def through_jpeg(canvas: Canvas) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(np.uint8(255 * canvas.image + 0.5)).save(file, "JPEG", quality=10)
    return np.asarray(Image.open(file), np.float32) / 255


BESIDE = {"black": "constant", "mirrored": "reflect"}
FILM: dict[str, Callable[[Film], Film]] = {  # what changes the radiograph itself
    "padded to a square": square,
    "cropped to two thirds": lambda f: rows_of(f, 1 / 6, 5 / 6),
    **{f"smaller by {k}, {word}": lambda f, k=k, mode=mode: zoomed(f, k, mode)
       for k in (1.25, 1.5, 2.0) for word, mode in BESIDE.items()},
    "cut below L5": below_l5,
    "0.2 more below, black": lambda f: padded(f, bottom=0.2),
    "0.2 more below, mirrored": lambda f: padded(f, bottom=0.2, mode="reflect"),
    "0.2 more above, black": lambda f: padded(f, top=0.2),
    "0.2 more above, mirrored": lambda f: padded(f, top=0.2, mode="reflect"),
    "0.1 moved up": lambda f: padded(rows_of(f, 0.1, 1), bottom=1 / 9),
    "0.1 moved down": lambda f: padded(rows_of(f, 0, 0.9), top=1 / 9),
}
GREY: dict[str, Callable[[Canvas], np.ndarray]] = {  # what changes grey values on the canvas
    "noise 0.05": noisy,
    "blur of 4 pixels": lambda c: gaussian_filter(c.image, 4),
    "drawn metal": drawn_metal,
    "JPEG quality 10": through_jpeg,
    "gamma 0.6": lambda c: c.image ** 0.6,
    "gamma 1.6": lambda c: c.image ** 1.6,
    "inverted": lambda c: np.where(c.inside, 1 - c.image, 0),
}
DISTURBED = ("clean", *GREY, "padded to a square", "cropped to two thirds")
CONDITIONS = (*DISTURBED, *(name for name in FILM if name not in DISTURBED))


def canvas_of(film: Film, number: int) -> Canvas:
    picture, where = fit_image(Image.fromarray(film[0]), SIZE)
    inside = np.zeros(SIZE, bool)
    inside[where.top:where.top + where.content[0], where.left:where.left + where.content[1]] = True
    return Canvas(np.asarray(picture, np.float32) / 255, inside, where.points(film[1]), number)


def picture_of(film: Film, number: int, condition: str) -> Canvas:
    "What the network is given."
    canvas = canvas_of(FILM.get(condition, lambda f: f)(film), number)
    image = GREY[condition](canvas) if condition in GREY else canvas.image
    return canvas._replace(image=np.asarray(image, np.float32))


# ---------------------------------------------------------------- scores


def lumbar(found: np.ndarray, true: np.ndarray, canvas: Canvas) -> list[float | None]:
    "Dice near each of L1 to L5, pixels given to the nearest centre; None: not wholly on it."
    quads = canvas.points.reshape(17, 4, 2)
    centre, (y, x) = quads.mean(1), np.nonzero(canvas.inside)
    seen = ((quads >= (x.min(), y.min())) & (quads <= (x.max() + 1, y.max() + 1))).all((1, 2))

    def counts(mask: np.ndarray) -> np.ndarray:
        y, x = np.nonzero(mask)
        return np.bincount(cKDTree(centre).query(np.c_[x + 0.5, y + 0.5])[1], minlength=17)

    both, p, t = counts(found & true), counts(found), counts(true)
    return [round(2 * both[k] / (p[k] + t[k]), 3) if seen[k] else None for k in range(12, 17)]


@torch.no_grad()
def score(net: VerdiffNet, films: list[Film], condition: str, prior: bool) -> dict:
    "By radiograph: Dice, and that of each lumbar vertebra."
    found: dict = {"dice": [], "lumbar": []}
    for i, film in enumerate(films):
        canvas = picture_of(film, i, condition)
        x = F.interpolate(torch.from_numpy(canvas.image)[None, None], net.size, mode="area")
        p = ((net.condition(x).prior + 1) / 2 if prior else
             sample(net, x, steps=1, ensemble=5, first_index=i).mean)
        p = F.interpolate(p, SIZE, mode="bilinear", align_corners=False) > 0.5
        true = (landmarks_to_mask(canvas.points, *SIZE) > 0) & canvas.inside
        found["dice"].append(round(dice(p, torch.from_numpy(true)[None, None]).item(), 4))
        found["lumbar"].append(lumbar(p[0, 0].numpy(), true, canvas))
    return found


def missed(rows: list[list[float | None]], level: int = 4) -> np.ndarray:
    "Whether a lumbar vertebra (0: L1) is missed, by radiograph; nan: not on it."
    return np.array([np.nan if r[level] is None else float(r[level] < MISSED) for r in rows])


def told(values: np.ndarray) -> list[float]:
    "Mean and its 95 % bootstrap interval."
    s = summary(values)
    return [round(float(v), 4) for v in (s.mean, s.lo, s.hi)]


def table(models: dict) -> dict:
    "Dice, what a disturbance costs, L5 missed; and the second model minus the first."
    rows: dict = {name: {} for name in models}
    for name, model in models.items():
        done = model["conditions"]
        for condition, got in done.items():
            gone = missed(got["lumbar"])
            lost = paired_difference(got["dice"], done["clean"]["dice"])
            rows[name][condition] = {
                "dice": told(got["dice"]), "minus_clean": [round(v, 4) for v in lost],
                "l5_missed": told(gone[~np.isnan(gone)]) if (~np.isnan(gone)).any() else None,
                "l1_to_l5_missed": [None if np.isnan(m).all() else round(float(np.nanmean(m)), 4)
                                    for m in (missed(got["lumbar"], k) for k in range(5))]}
    if len(models) == 2:
        (_, a), (_, b) = models.items()
        rows["second_minus_first"] = {}
        for condition in [c for c in a["conditions"] if c in b["conditions"]]:
            x, y = (m["conditions"][condition] for m in (a, b))
            gone = missed(y["lumbar"]) - missed(x["lumbar"])
            rows["second_minus_first"][condition] = {
                "dice": [round(v, 4) for v in paired_difference(y["dice"], x["dice"])],
                "l5_missed": told(gone[~np.isnan(gone)]) if (~np.isnan(gone)).any() else None}
    return rows


# ---------------------------------------------------------------- the plan


def read_model(path: Path) -> VerdiffNet:
    "A folder, or the averaged weights of a checkpoint."
    if path.is_dir():
        return VerdiffNet.from_pretrained(path).eval()
    state = read_checkpoint(path)
    net = VerdiffNet(VerdiffConfig.from_settings(Settings.from_dict(state["settings"])))
    net.load_state_dict(state["average"])
    return net.eval()


def validation_films(root: str) -> tuple[list[str], list[Film]]:
    "Names, and radiographs of at most 1,200 rows with their landmarks."
    data, settings = XRaySet(root, "training", SIZE), load_settings("fine")
    index = grouped_split(data.names, settings.val_fraction, settings.seed)[1]
    films = []
    for i in index:
        image = data.read_image(i)
        scale = min(1.0, 1200 / image.height)
        size = round(scale * image.width), round(scale * image.height)
        grey = np.asarray(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0))
        films.append((grey, data.shares[i] * size))
    return [data.names[i] for i in index], films


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="DIR", help="one or two models")
    parser.add_argument("--prior", action="store_true", help="the prior, not the mean of five")
    parser.add_argument("--only", nargs="+", choices=CONDITIONS, default=CONDITIONS)
    parser.add_argument("--first", type=int, help="so many validation radiographs")
    parser.add_argument("--json", type=Path, default=Path("bench/results/disturbed.json"))
    args = parser.parse_args()
    if len(args.models) > 2:
        parser.error("give one model, or two to compare")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if "VERDIFF_XRAY" not in os.environ:
        parser.error("set VERDIFF_XRAY to the zip or folder of the X-ray set (`verdiff data xray`)")
    names, films = (part[:args.first] for part in validation_films(os.environ["VERDIFF_XRAY"]))
    about = {"result": "prior" if args.prior else "one step, mean of five",
             "radiographs": len(films), "scored_at": list(SIZE),
             "names": sha256("\n".join(names).encode()).hexdigest()[:12]}
    kept = loads(args.json.read_text()) if args.json.exists() else {}
    same = all(kept.get(key) == value for key, value in about.items())
    models = kept.get("models", {}) if same else {}
    nets = {weights_digest(net)[:12]: (path, net) for path in args.models
            for net in [read_model(path)]}
    models = {key: models.get(key, {"model": path.name, "size": list(net.size), "seconds": 0.0,
                                    "conditions": {}}) for key, (path, net) in nets.items()}
    for condition in dict.fromkeys(("clean", *args.only)):
        for key, (_, net) in nets.items():
            if condition in models[key]["conditions"]:
                continue
            start = time.process_time()
            models[key]["conditions"][condition] = score(net, films, condition, args.prior)
            models[key]["seconds"] = round(models[key]["seconds"] + time.process_time() - start, 1)
            write_json(args.json, about | {"commit": git_revision(), "machine": machine(1),
                                           "models": models, "table": table(models)})
            row = table(models)[key][condition]
            print(f"{models[key]['model']:24s} {condition:26s} Dice {row['dice']} "
                  f"L5 missed {row['l5_missed']}", flush=True)


if __name__ == "__main__":
    main()
