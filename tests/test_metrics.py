"Dice and IoU against the libraries, borders, intervals, Jensen, calibration."
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import DiceMetric, compute_hausdorff_distance, compute_surface_dice

from verdiff.metrics import (
    TABLE_1,
    bootstrap_interval,
    dice,
    expected_calibration_error,
    hd95,
    iou,
    iou_from_dice,
    jensen_bound,
    jensen_check,
    paired_difference,
    risk_coverage,
    summary,
    surface_dice,
)


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_dice_is_monais_and_iou_follows(seed, a, b):
    g = torch.Generator().manual_seed(seed)
    p, t = torch.rand(3, 1, 9, 7, generator=g) < a, torch.rand(3, 1, 9, 7, generator=g) < b
    theirs = DiceMetric(ignore_empty=False)(p.float(), t.float())[:, 0].double()
    torch.testing.assert_close(dice(p, t), theirs, atol=1e-6, rtol=0)
    torch.testing.assert_close(iou(p, t), iou_from_dice(dice(p, t)))
    torch.testing.assert_close(dice(p, t), dice(t, p))


def test_empty_masks_and_wrong_input():
    empty, full = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    assert dice(empty, empty) == iou(empty, empty) == surface_dice(empty, empty) == 1
    assert hd95(empty, empty) == 0 and hd95(empty, full).isinf() and surface_dice(empty, full) == 0
    with pytest.raises(ValueError, match="threshold"):
        dice(full * 0.5, full)
    for score in (dice, iou, hd95, surface_dice):
        with pytest.raises(ValueError, match="target"):
            score(full, full[..., :3])


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1), st.sampled_from([0.0, 1.0, 2.0, 3.5]))
@settings(max_examples=40, deadline=None)
def test_borders_are_monais(seed, a, b, tolerance):
    "Scattered pixels and one blob, at the image's edge too; one mask empty is ours to say."
    g = torch.Generator().manual_seed(seed)
    p, t = torch.rand(3, 1, 12, 9, generator=g) < a, torch.rand(3, 1, 12, 9, generator=g) < b
    p[0, 0, :5, :4], t[0, 0, 2:, 3:] = True, True
    ours, share = hd95(p, t), surface_dice(p, t, tolerance)
    both = p.any((1, 2, 3)) & t.any((1, 2, 3))
    x, y = p[both].float(), t[both].float()
    theirs = compute_hausdorff_distance(x, y, include_background=True, percentile=95)[:, 0]
    torch.testing.assert_close(ours[both], theirs.double(), atol=1e-5, rtol=0)
    theirs = compute_surface_dice(x, y, [tolerance], include_background=True)[:, 0]
    torch.testing.assert_close(share[both], theirs.double(), atol=1e-6, rtol=0)
    empty = ~(p | t).any(1).any(1).any(1)
    assert (ours[~both] == torch.where(empty, 0.0, torch.inf)[~both]).all()
    assert (share[~both] == empty[~both].double()).all()
    torch.testing.assert_close(ours, hd95(t, p))


def test_a_mask_against_its_own_pixels_moved_on_the_diagonal():
    a = torch.zeros(1, 1, 40, 40)
    a[..., 10, 10] = 1
    assert hd95(a, a.roll((3, 4), (-1, -2))) == 5
    assert surface_dice(a, a.roll((3, 4), (-1, -2)), 5.0) == 1
    assert surface_dice(a, a.roll((3, 4), (-1, -2)), 4.9) == 0


def test_a_shift_by_five_pixels_is_five_pixels():
    a = torch.zeros(1, 1, 40, 40)
    a[..., 10:20, 10:20] = 1
    assert hd95(a, a.roll(5, -1)) == 5 and surface_dice(a, a.roll(1, -1), 2.0) == 1


def test_intervals():
    x = np.random.default_rng(0).normal(0.8, 0.1, 100)
    low, high = bootstrap_interval(x)
    half = 1.96 * x.std(ddof=1) / 10
    assert abs(low - (x.mean() - half)) < 0.004 and abs(high - (x.mean() + half)) < 0.004
    s = summary(x)
    assert s.n == 100 and s.lo < s.mean < s.hi and str(s).endswith("(n=100)")
    assert summary([0.5]).sd == 0 and bootstrap_interval([0.5]) == (0.5, 0.5)
    mean, low, high = paired_difference(x + 0.01, x)
    assert mean == pytest.approx(0.01) and low == pytest.approx(0.01) == high
    with pytest.raises(ValueError, match="same images"):
        paired_difference(x, x[:5])
    with pytest.raises(ValueError, match="no values"):
        summary([])


@given(st.lists(st.floats(0, 1), min_size=2, max_size=60))
@settings(max_examples=200, deadline=None)
def test_jensen_holds_for_any_scores(d):
    d = np.array(d)
    low, high = jensen_bound(d.mean(), d.std())
    assert low - 1e-9 <= iou_from_dice(d).mean() <= high + 1e-9


def test_what_jensen_says_of_table_1():
    verdict = {(c.method, c.data): v for c, *_, v in jensen_check()}
    assert len(TABLE_1) == len(verdict) == 32
    assert verdict["Verdiff-Net", "X-ray"] == verdict["MedSegDiff", "X-ray"] == "too low"
    assert verdict["Verdiff-Net", "CT-Pri"] == "too high" and verdict["U-Net", "X-ray"] == "fits"


def test_calibration_and_risk():
    g = torch.Generator().manual_seed(0)
    p = torch.rand(100_000, generator=g)
    y = (torch.rand(100_000, generator=g) < p).float()
    assert expected_calibration_error(p, y) < 0.01 < expected_calibration_error(p ** 3, y)
    error = np.arange(10) / 10
    coverage, risk, area = risk_coverage(error, error)
    assert coverage[-1] == 1 and risk[-1] == error.mean() and area < risk_coverage(error, -error)[2]


def test_one_image_has_no_interval_in_print():
    assert str(summary([0.8])) == "0.800 (n=1)" and "[" in str(summary([0.8, 0.9]))
