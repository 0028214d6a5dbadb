"The bench's disturbances keep label and picture together, its table pairs the same radiographs."
import json
from pathlib import Path

import numpy as np
import pytest

from verdiff.data.disturb import draw_metal
from verdiff.data.landmarks import landmarks_to_mask
from verdiff.data.phantoms import draw_phantom
from verdiff.metrics import paired_difference

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def bench(script):
    return script("disturbed")


@pytest.fixture(scope="module")
def film():
    "A picture that is its own mask: where it is bright the label must be."
    phantom = draw_phantom(3)
    return 255 * landmarks_to_mask(phantom.landmarks, *phantom.image.shape), phantom.landmarks


def test_geometry_moves_label_and_picture_alike(bench, film):
    for condition in bench.FILM:
        canvas = bench.picture_of(film, 0, condition)
        true = (landmarks_to_mask(canvas.points, *bench.SIZE) > 0) & canvas.inside
        found = canvas.image > 0.5
        if "mirrored" in condition:  # the surroundings may show a second spine
            found &= landmarks_to_mask(canvas.points, *bench.SIZE) > 0
        both = 2 * (found & true).sum() / (found.sum() + true.sum())
        assert both > 0.9, condition


def test_what_each_does_to_the_size_of_the_spine(bench, film):
    def height(condition):
        return np.ptp(bench.picture_of(film, 0, condition).points[:, 1])

    for factor in (1.25, 1.5, 2.0):
        for word in bench.BESIDE:
            assert height(f"smaller by {factor}, {word}") == pytest.approx(
                height("clean") / factor, rel=0.02)
    assert height("padded to a square") < height("clean") / 2
    assert height("drawn metal") == height("clean")


def test_grey_values(bench, film):
    clean = bench.picture_of(film, 0, "clean").image
    for condition in bench.GREY:
        image = bench.picture_of(film, 0, condition).image
        assert image.shape == clean.shape and 0 <= image.min() and image.max() <= 1
        assert np.array_equal(image, bench.picture_of(film, 0, condition).image)
        if "gamma" not in condition:  # black and white are the same at every gamma
            assert np.abs(image - clean).mean() > 0.001, condition


def test_the_metal_of_training_is_other_metal(bench, film):
    canvas = bench.picture_of(film, 0, "clean")
    flat = canvas._replace(image=np.full_like(canvas.image, 0.3))
    mask = np.float32(landmarks_to_mask(canvas.points, *bench.SIZE))
    tested = bench.drawn_metal(flat) > 0.6
    for seed in range(12):
        trained = draw_metal(flat.image, mask, np.random.default_rng(seed))[0] > 0.6
        assert (trained & tested).sum() < 0.6 * (trained | tested).sum()


def test_a_perfect_mask_misses_nothing_and_a_short_one_l5(bench, film):
    canvas = bench.picture_of(film, 0, "clean")
    true = landmarks_to_mask(canvas.points, *bench.SIZE) > 0
    assert bench.lumbar(true, true, canvas) == [1] * 5
    short = true.copy()
    short[int(canvas.points.reshape(17, 4, 2)[16, :, 1].min()):] = False
    rows = [bench.lumbar(short, true, canvas)]
    assert bench.missed(rows)[0] == 1 and bench.missed(rows, 3)[0] == 0
    cut = bench.picture_of(film, 0, "cropped to two thirds")
    assert bench.lumbar(true, true, cut)[4] is None


def test_stored_table_is_what_the_scores_give(bench):
    path = BENCH / "results" / "disturbed.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    first, second = stored["models"].values()
    assert {"clean"} < set(first["conditions"]) == set(second["conditions"]) <= set(bench.CONDITIONS)
    assert stored["table"] == json.loads(json.dumps(bench.table(stored["models"])))
    for condition, row in stored["table"]["second_minus_first"].items():
        x, y = (m["conditions"][condition]["dice"] for m in (first, second))
        assert len(x) == stored["radiographs"]
        assert row["dice"] == pytest.approx(paired_difference(y, x), abs=1e-4)
