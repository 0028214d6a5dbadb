"""Does the network know how good its mask will be? Predicted Dice: chosen on validation, one test.

usage: python bench/uncertainty.py [--model DIR] [--data ZIP] [--work DIR] [--choose] [--write]

--data, or VERDIFF_XRAY, is the X-ray set. Validation: the radiographs that the model was not
trained on, by its run.json, and two disturbed copies of each; there measures are chosen, by the
least error when each study is predicted by the others. Then the test radiographs, once: rank
correlation, coverage of the 90 % interval, the five worst, risk against coverage, for each
radiograph and for each labelled vertebra. Writes bench/results/uncertainty.json; --work keeps what
the network answered, so that a stopped run goes on; --write puts the predictor into the model's
reference.json. Ten to forty minutes of one core.
"""
import argparse
import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from common import machine
from scipy.spatial import cKDTree
from scipy.stats import spearmanr

from verdiff.data.datasets import open_dataset
from verdiff.data.packed import Packed
from verdiff.data.splits import image_subsets, study
from verdiff.files import atomic_write, git_revision, write_json
from verdiff.metrics import risk_coverage
from verdiff.segmentation.confidence import load_reference, save_reference, sha256_of_weights
from verdiff.segmentation.evaluation import validation_index
from verdiff.segmentation.models import find_model
from verdiff.segmentation.segmenter import Segmenter
from verdiff.segmentation.uncertainty import (
    MEASURES,
    answers,
    features,
    fit_predictor,
    logit,
    mask_dice,
    measures,
    predict_others,
)

SIZE = 768, 256
CHOICES = {"prior": ("prior",), "mean": ("mean",), "between": ("between",), "spread": ("spread",),
           "prior, between": ("prior", "between"), "prior, apart": ("prior", "apart"),
           "prior, mean, between": ("prior", "mean", "between"), "all": MEASURES}
WORST = 88, 92, 15, 86, 65  # of the 128, from 0, with an earlier network
BAD_LABEL = 88, 92, 15  # of these, by eye: much of the label lies on discs


def cells(size, centres):
    "Number of the nearest vertebra for each pixel, (H, W)."
    y, x = np.mgrid[:size[0], :size[1]] + 0.5
    scale = np.array(size) / SIZE
    points = np.c_[x.ravel() / scale[1], y.ravel() / scale[0]]
    return cKDTree(centres).query(points)[1].reshape(size)


def measured(film, centres):
    "All that is kept of one answer: measures and Dice, of the whole and of each vertebra."
    record = {"index": film.index, "kind": film.kind, "dice": mask_dice(film.pred, film.true),
              "found": measures(film.prior, film.samples)}
    if film.kind == "clean":
        small, large = cells(film.prior.shape, centres), cells(SIZE, centres)
        record["vertebrae"] = [
            {"dice": mask_dice(film.pred[large == k], film.true[large == k]),
             "found": measures(film.prior[small == k], film.samples[:, small == k])}
            for k in range(17)]
    return record


def measure(model, dataset, index, copies, keep):
    "Records of these radiographs; `keep` holds those of a run that was stopped."
    done = json.loads(keep.read_text()) if keep.exists() else []
    for n, i in enumerate(index):
        if any(r["index"] == i for r in done):
            continue
        image, mask, where = dataset.arrays(i)
        begin = time.perf_counter()
        one = Packed(*(torch.from_numpy(np.array(a))[None, None] for a in (image, mask)),
                     [dataset.names[i]])
        centres = where.points(dataset.truth(i, where)[0]).reshape(17, 4, 2).mean(1)
        new = [measured(film._replace(index=i), centres)
               for film in answers(model, one, copies, first=n, progress=False)]
        new[0]["seconds"] = time.perf_counter() - begin
        done += new
        with atomic_write(keep) as temporary:
            temporary.write_text(json.dumps(done))
    return done


def spread_of(statistic, n, each=1, repeats=2000):
    "A statistic of an index, with its 95 % bootstrap interval over n radiographs of `each` values."
    rng, own = np.random.default_rng(0), np.arange(n * each).reshape(n, each)
    again = [statistic(own[rng.integers(0, n, n)].ravel()) for _ in range(repeats)]
    return [float(x) for x in (statistic(own.ravel()), *np.quantile(again, [0.025, 0.975]))]


def rank_correlation(a, b, each=1):
    "Spearman's, with its interval."
    return spread_of(lambda i: spearmanr(a[i], b[i]).statistic, len(a) // each, each)


def choose(records, groups):
    "A row for each choice of measures, with and without copies: how well the others predict."
    true, clean = np.array([r["dice"] for r in records]), [r["kind"] == "clean" for r in records]
    clean, groups, rows = np.array(clean), np.array(groups), []
    for title, names in CHOICES.items():
        x, y = features([r["found"] for r in records], names), logit(true)
        for copies in (False, True):
            guess = np.zeros(len(y))
            for group in np.unique(groups):  # learns from clean ones alone, or from all
                own = groups == group
                use = ~own & (clean | copies)
                part = np.r_[np.flatnonzero(use), np.flatnonzero(own)]
                label = np.where(own[part], "own", "other")
                guess[own] = predict_others(x[part], y[part], label)[label == "own"]
            rows.append({"measures": title, "copies": copies,
                         "error_clean": float(np.sqrt(np.mean((guess - y)[clean] ** 2))),
                         "error_all": float(np.sqrt(np.mean((guess - y) ** 2))),
                         "rank_clean": float(spearmanr(guess[clean], y[clean]).statistic),
                         "rank_all": float(spearmanr(guess, y).statistic)})
    return rows


def curve(true, doubt):
    "Mean Dice of the kept share, at 5 % steps, and the area under the risk."
    coverage, risk, area = risk_coverage(1 - true, doubt)
    at = [max(round(s * len(true)), 1) - 1 for s in np.arange(0.05, 1.01, 0.05)]
    return {"share": coverage[at].tolist(), "dice": (1 - risk[at]).tolist(), "area": area}


def judged(records, predictor, each=1):
    "What the test says of a predictor and of each measure alone; `each` values a radiograph."
    true, found = np.array([r["dice"] for r in records]), [r["found"] for r in records]
    value, low, high = np.array([predictor.predict(f) for f in found]).T
    held, miss, n = (low <= true) & (true <= high), np.abs(value - true), len(true) // each
    orders = {"predicted": -value, "oracle": -true,
              **{m: np.array([f[m] for f in found]) for m in MEASURES}}
    return {"radiographs": n, "n": len(true), "dice": float(true.mean()),
            "rank": rank_correlation(value, true, each),
            "coverage": spread_of(lambda i: held[i].mean(), n, each),
            "error": spread_of(lambda i: miss[i].mean(), n, each),
            "width": float((high - low).mean()),
            "rank_of_measures": {m: rank_correlation(-orders[m], true, each) for m in MEASURES},
            "risk_coverage": {name: curve(true, doubt) for name, doubt in orders.items()}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="folder (default: the one that travels along)")
    parser.add_argument("--data", default=os.environ.get("VERDIFF_XRAY"))
    parser.add_argument("--work", default="runs/uncertainty", type=Path)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--choose", action="store_true", help="stop before the test")
    args = parser.parse_args()
    if not args.data:
        parser.error("give the X-ray set with --data or VERDIFF_XRAY")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    folder = Path(find_model(args.model))
    segmenter = Segmenter.from_pretrained(folder)
    weights = sha256_of_weights(folder)
    work = args.work / weights[:12]
    work.mkdir(parents=True, exist_ok=True)
    sets = {part: open_dataset(args.data, part, SIZE, segmenter.model.config.fit)
            for part in ("training", "test")}
    index = validation_index(sets["training"], folder)
    records = measure(segmenter.model, sets["training"], index, 2, work / "validation.json")
    groups = [study(sets["training"].names[r["index"]]) for r in records]
    rows = choose(records, groups)
    best = min(rows, key=lambda row: row["error_all"] if row["copies"] else np.inf)
    plain = min(rows, key=lambda row: row["error_clean"])
    for row in rows:
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
    print("least error over clean and disturbed:", best["measures"],
          "; over clean alone:", plain["measures"], plain["copies"])
    if args.choose:
        return
    clean = [r["kind"] == "clean" for r in records]
    used = CHOICES[best["measures"]]
    predictor, others = fit_predictor([r["found"] for r in records], [r["dice"] for r in records],
                                      groups, clean, used)
    parts = [(v, g) for r, g, c in zip(records, groups, clean, strict=True) if c
             for v in r["vertebrae"]]
    vertebra, _ = fit_predictor([v["found"] for v, _ in parts], [v["dice"] for v, _ in parts],
                                [g for _, g in parts], names=used)
    test = measure(segmenter.model, sets["test"], range(len(sets["test"])), 0, work / "test.json")
    subsets = image_subsets(sets["test"].names)
    guess = np.array([predictor.predict(r["found"]).value for r in test])
    place = {int(i): int((guess < guess[i]).sum()) + 1 for i in range(len(test))}
    order = np.argsort([r["dice"] for r in test], kind="stable")[:5]
    result = {
        "commit": git_revision(), "seed": 0, "device": str(segmenter.device), **machine(
            torch.get_num_threads()),
        "minutes": round(sum(r.get("seconds", 0) for r in records + test) / 60, 1),
        "weights": weights, "steps": 1, "ensemble": 5, "size": list(SIZE),
        "validation": {"films": sum(clean), "copies": len(clean) - sum(clean),
                       "studies": len(set(groups)), "choices": rows, "chosen": best,
                       "rank_of_others": rank_correlation(
                           others[clean], np.array([r["dice"] for r in records])[clean])},
        "predictor": asdict(predictor), "vertebra_predictor": asdict(vertebra),
        "test": {title: judged([test[i] for i in part], predictor)
                 for title, part in subsets.items()},
        "vertebrae": {title: judged([v for i in part for v in test[i]["vertebrae"]], vertebra, 17)
                      for title, part in subsets.items()},
        "listed": [{"film": i, "dice": test[i]["dice"], "predicted": list(predictor.predict(
            test[i]["found"])), "place": place[i], "label": "doubtful" if i in BAD_LABEL else
            "sound"} for i in WORST],
        "worst": [{"film": int(i), "dice": test[i]["dice"], "place": place[int(i)]} for i in order],
        "scores": [{"dice": round(r["dice"], 4), "predicted": [round(x, 4) for x in
                    predictor.predict(r["found"])], "new": i in subsets["without any twin"]}
                   for i, r in enumerate(test)]}
    write_json(Path(__file__).parent / "results/uncertainty.json", result)
    for title, r in result["test"].items():
        print(title, r["n"], "rank", np.round(r["rank"], 3), "coverage", np.round(r["coverage"], 3))
    print(result["listed"], result["worst"], sep="\n")
    if args.write and (reference := load_reference(folder)) is not None:
        print("written:", save_reference(replace(reference, dice=predictor), folder))


if __name__ == "__main__":
    main()
