"Placements: there and back."
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from verdiff.data.canvas import fit_image, place, unfit


@given(st.integers(1, 900), st.integers(1, 900), st.integers(8, 200), st.integers(8, 200),
       st.sampled_from(["letterbox", "squash"]))
@settings(max_examples=60, deadline=None)
def test_there_and_back_gives_the_size_back(height, width, rows, columns, fit):
    canvas, where = fit_image(Image.new("L", (width, height), 200), (rows, columns), fit)
    assert canvas.size == (columns, rows)
    assert 0 <= where.top <= rows - where.content[0] and 0 <= where.left <= columns - where.content[1]
    back = unfit(np.asarray(canvas, np.float32), where)
    assert back.shape == (height, width) and np.abs(back - 200).max() < 1
    if fit == "squash":
        assert where.content == (rows, columns)


def test_corners_go_where_the_image_goes():
    where = place(400, 100, (200, 100), "letterbox")
    assert where.points(np.array([[0, 0], [100, 400]])).tolist() == [[25, 0], [75, 200]]
    with pytest.raises(ValueError, match="fit"):
        place(4, 4, (2, 2), "stretch")
