"Twins: the same picture is found cropped, scaled and brightened; strangers are not; nothing breaks on empty pictures."
import sys

import numpy as np
import pytest
from PIL import Image

from verdiff.files import VerdiffError
from verdiff.lab.twins import alignment, find_duplicates, local_features, match, votes

pytest.importorskip("cv2")


def test_duplicates_are_found_and_strangers_are_not():
    def texture(seed):
        noise = np.random.default_rng(seed).normal(127, 40, (80, 40)).clip(0, 255).astype(np.uint8)
        return np.asarray(Image.fromarray(noise).resize((200, 400), Image.Resampling.BICUBIC))

    films = [texture(i) for i in range(3)]
    crop = np.asarray(Image.fromarray(films[1][40:380, 8:184]).resize((184, 355)))
    found = find_duplicates([*films, (0.8 * crop + 20).astype(np.uint8)], progress=False)
    pairs = [(i, j) for i, j, *_ in found]
    assert pairs == [(1, 3)]


def test_features_are_points_and_unit_vectors():
    image = np.random.default_rng(0).integers(0, 255, (120, 80), dtype=np.uint8)
    points, like = local_features(image, 50)
    assert points.shape == (len(like), 2) and 0 < len(like) <= 51 and like.shape[1] == 128
    np.testing.assert_allclose(np.linalg.norm(like, axis=1), 1, atol=1e-5)


def test_a_blank_image_matches_nothing():
    blank = np.zeros((200, 100), np.uint8)
    nothing = local_features(blank)
    assert nothing[0].shape == (0, 2) and nothing[1].shape == (0, 128)
    assert alignment(blank, blank, nothing, nothing) == (0, 0.0) and len(match(nothing, nothing)[0]) == 0
    assert find_duplicates([blank, blank], progress=False) == []


def test_nobody_votes_for_itself():
    rng = np.random.default_rng(1)
    features = [local_features(rng.integers(0, 255, (100, 60), dtype=np.uint8), 30) for _ in range(3)]
    tally = votes(features, progress=False)
    assert all(i < j for i, j in tally) and sum(tally.values()) == sum(len(f[0]) for f in features)


def test_without_opencv_it_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(VerdiffError, match=r'needs the package cv2: pip install "verdiff\[notebooks\]"'):
        local_features(np.zeros((50, 50), np.uint8))
