"Augmentation: one field for image and mask, in pixel geometry, repeatable."
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from verdiff.data.augment import Augment, affine_matrix, elastic_field
from verdiff.settings import load_settings

OFF = dict(rotation=0, shift=(0, 0), elastic=0, contrast=0)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def batch(n=3, size=(96, 40)):
    masks = torch.zeros(n, 1, *size)
    masks[..., 30:60, 12:30] = 1
    return F.avg_pool2d(masks, 3, 1, 1), masks


@given(st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_image_and_mask_move_together_and_stay_in_range(seed):
    _, masks = batch()
    image, mask = Augment(contrast=0)(masks, masks, seeded(seed))
    assert torch.equal((image >= 0.5).float(), mask)
    image, mask = Augment()(*batch(), seeded(seed))
    assert 0 <= image.min() and image.max() <= 1 and set(mask.unique().tolist()) <= {0.0, 1.0}


def test_same_seed_same_batch_other_seed_other_batch():
    a, b, c = (Augment()(*batch(), seeded(s)) for s in (1, 1, 2))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and not torch.equal(a[0], c[0])


@pytest.mark.parametrize("size", [(96, 96), (120, 40), (40, 120)])
def test_rotation_keeps_area_and_shape(size):
    x = torch.zeros(1, 1, *size)
    h, w = size[0] // 2, size[1] // 2
    x[..., h - 8:h + 8, w - 8:w + 8] = 1
    theta = affine_matrix(torch.tensor([math.radians(30)]), torch.ones(1), torch.zeros(1, 2), size)
    y = F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)
    assert abs(y.sum() / 256 - 1) < 0.02


def test_scale_and_shift_are_what_they_say():
    image, mask = batch(40)
    _, big = Augment(**OFF | dict(scale=(1.2, 1.2)))(image, mask, seeded(0))
    assert abs(big.sum() / mask.sum() - 1.44) < 0.1
    _, moved = Augment(**OFF | dict(shift=(0.05, 0.05)))(image, mask, seeded(0))
    assert torch.unique(moved.flatten(1), dim=0).shape[0] == 4  # either sign on either axis
    assert abs(moved.sum() / mask.sum() - 1) < 0.05


def test_nothing_in_nothing_out():
    image, mask = batch()
    same = Augment(**OFF)(image, mask)
    torch.testing.assert_close(same[0], image, atol=2e-5, rtol=0)
    assert torch.equal(same[1], mask)
    with pytest.raises(ValueError, match="masks"):
        Augment()(image, mask[..., :4])


def test_the_elastic_field_is_as_strong_as_asked_in_pixels():
    field = elastic_field(200, (120, 40), 0.05, seeded(0))
    pixels = field.std((0, 1, 2)) * torch.tensor([20.0, 60.0])
    assert ((pixels / (0.05 * 40) - 1).abs() < 0.1).all()


def test_settings_reach_it():
    a = Augment.from_settings(load_settings("paper"))
    assert type(a) is Augment and (a.rotation, a.shift, a.scale, a.flip) == (30, (0.01, 0.05), (1, 1), 0)
