"The bundled network gives for one phantom what it gave before the package moved into sub-packages."
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from verdiff.segmentation.segmenter import Segmenter

FIXTURES = Path(__file__).parents[1] / "fixtures"  # written by the flat package


def test_the_same_mask_and_probability_as_before():
    segmenter = Segmenter.from_pretrained(device="cpu")
    segmenter.reference = replace(segmenter.reference, dice=None)  # the flat package had none
    result = segmenter.predict(FIXTURES / "phantom.png")
    mask = np.asarray(Image.open(FIXTURES / "phantom_mask.png")) > 0
    probability = np.asarray(Image.open(FIXTURES / "phantom_probability.png")).astype(np.float64) / 65535
    assert round(result.confidence, 3) == 0.651
    assert np.abs(result.probability - probability).max() < 1e-3  # another CPU rounds otherwise
    assert (result.mask.astype(bool) != mask).sum() <= 5
