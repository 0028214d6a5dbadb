"From clicks to masks and angles."
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verdiff.data.landmarks import cobb_angles, fill_convex, is_crooked, landmarks_to_mask, outline
from verdiff.data.phantoms import draw_phantom


@given(st.permutations(range(4)))
@settings(max_examples=24, deadline=None)
def test_no_order_of_the_clicks_loses_a_vertebra(order):
    quad = np.array([[10.0, 10], [40, 14], [8, 30], [42, 33]])
    mask = landmarks_to_mask(quad[list(order)], 50, 50)
    whole = landmarks_to_mask(quad, 50, 50)
    assert is_crooked(quad) is False and (mask == whole).all() and len(outline(quad)) == 4


def test_area_of_a_tilted_rectangle():
    c, s = np.cos(0.3), np.sin(0.3)
    quad = np.array([[0, 0], [40, 0], [0, 22], [40, 22]]) @ np.array([[c, s], [-s, c]]) + (20, 10)
    assert abs(landmarks_to_mask(quad, 60, 80).sum() / (40 * 22) - 1) < 0.01


@pytest.mark.parametrize("box", [(-30, 5, -10, 20), (5, -30, 20, -10), (-30, -30, -10, -10),
                                 (70, 5, 90, 20), (5, 70, 20, 90)])
def test_a_vertebra_outside_of_the_canvas_marks_nothing(box):
    left, top, right, bottom = box
    mask = np.zeros((64, 64), bool)
    fill_convex(mask, np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float))
    assert not mask.any()


def test_a_dent_gets_its_hull_and_a_line_marks_nothing():
    dent = np.array([[20.0, 20], [80, 25], [18, 60], [30, 30]])
    assert is_crooked(dent) and len(outline(dent)) == 3
    line = np.array([[10.0, 10], [20, 10], [30, 10], [40, 10]])
    assert is_crooked(line) and len(outline(line)) == 4 and not landmarks_to_mask(line, 50, 50)[12:].any()


@given(st.floats(0.1, 9), st.floats(-300, 300), st.integers(0, 40))
@settings(max_examples=30, deadline=None)
def test_the_main_angle_survives_scale_shift_and_mirror(scale, shift, seed):
    points = draw_phantom(seed, (96, 32), cobb=33).landmarks
    mirrored = (points * (-1, 1)).reshape(17, 2, 2, 2)[:, :, ::-1].reshape(68, 2)
    for moved in (points * scale + shift, mirrored):
        assert np.isclose(cobb_angles(moved, 96)[0], 33)
