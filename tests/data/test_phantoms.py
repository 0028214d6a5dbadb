"Drawn radiographs."
import numpy as np
import pytest

from verdiff.data.landmarks import cobb_angles, is_crooked
from verdiff.data.phantoms import draw_phantom


@pytest.mark.parametrize("cobb", [3, 20, 55])
def test_a_phantom_has_the_curve_it_was_asked_for(cobb):
    p = draw_phantom(11, cobb=cobb)
    assert p.image.shape == (576, 192) and p.image.dtype == np.uint8
    assert np.isclose(p.cobb[0], cobb) and np.allclose(cobb_angles(p.landmarks, 576), p.cobb)
    assert not any(is_crooked(q) for q in p.landmarks.reshape(17, 4, 2))
    assert (draw_phantom(11, cobb=cobb).image == p.image).all()
