"Phantoms in the published layout."
import pickle

import numpy as np
import pytest
import torch
from scipy.io import loadmat

from verdiff.data.phantom_set import PhantomSet, write_phantoms
from verdiff.data.xray import XRaySet
from verdiff.files import DataError


def test_phantoms_are_read_as_radiographs_are(root):
    data = XRaySet(root, "all", (96, 32))
    assert len(data) == 9 and data.splits.count("test") == 3
    sample = data[4]
    assert sample.image.dtype == sample.mask.dtype == torch.float32
    assert set(sample.mask.unique().tolist()) == {0.0, 1.0} and 0.04 < sample.mask.mean() < 0.25
    mat = loadmat(root / f"boostnet_labeldata/labels/{data.splits[4]}/{sample.name}.mat")["p2"]
    assert np.abs(mat - sample.landmarks).max() < 0.04
    assert data.original_mask(4).shape == (192, 64) and pickle.loads(pickle.dumps(data))[4].name == sample.name


def test_nothing_is_overwritten(root):
    with pytest.raises(DataError, match="already exists"):
        write_phantoms(root, 1, 1)


def test_phantom_set_is_drawn_once(tmp_path):
    first = PhantomSet(tmp_path / "p", n_training=2, n_test=1, image_size=(96, 32), size=(48, 16))
    stamp = first.fingerprint()
    again = PhantomSet(tmp_path / "p", n_training=2, n_test=1, image_size=(96, 32), size=(48, 16))
    assert again.fingerprint() == stamp != PhantomSet(tmp_path / "p", size=(64, 16)).fingerprint()
