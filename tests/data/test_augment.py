"Augmentation: one field for image and mask, in pixel geometry, repeatable."
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from verdiff.data.augment import Augment, affine_matrix, change_contrast, elastic_field
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


def test_flipped_twice_is_as_before():
    image, mask = batch()
    flip = Augment(**OFF, flip=1)
    torch.testing.assert_close(flip(image, mask)[0], image.flip(-1), atol=2e-5, rtol=0)
    torch.testing.assert_close(flip(*flip(image, mask))[1], mask)


def test_the_same_random_stream_as_ever():
    "Recorded before three classes became one: a resumed training goes on with the same pictures."
    image = torch.linspace(0, 1, 96).view(1, 1, 96, 1) * torch.linspace(1, 0.2, 40).view(1, 1, 1, 40)
    image = image.expand(2, 1, 96, 40).contiguous()
    mask = ((image > 0.3) & (image < 0.6)).float()
    image, mask = Augment(scale=(0.8, 1.25), flip=0.5)(image, mask, seeded(35))
    seen = torch.stack([image.mean((1, 2, 3)), image[:, 0, 48, 20], image[:, 0, 70, 10]], 1)
    recorded = torch.tensor([[0.34892, 0.42658, 0.35722], [0.33870, 0.48601, 0.74424]])
    torch.testing.assert_close(seen, recorded, atol=2e-5, rtol=0)
    assert (mask.sum((1, 2, 3)) - torch.tensor([1173, 931])).abs().max() <= 2


@pytest.mark.parametrize("generators", [lambda: seeded(3), lambda: [seeded(k) for k in range(3)]])
def test_contrast_keeps_the_range_and_draws_last(generators):
    image, mask = batch()
    from_zero_to_one = change_contrast(image, 0.9, generators())
    assert 0 <= from_zero_to_one.min() and from_zero_to_one.max() <= 1
    moved = [Augment(contrast=c)(image, mask, generators())[1] for c in (0, 0.25)]
    assert torch.equal(*moved)
