"Augmentation beyond the paper: off by default, half of the images untouched, rows on their own."
from dataclasses import replace

import pytest
import torch
from scipy.ndimage import gaussian_filter

from verdiff.data.augment import Augment, gaussian_blur
from verdiff.settings import load_settings
from verdiff.training.batches import generator_for

STILL = dict(rotation=0, shift=(0, 0), elastic=0, contrast=0)
MORE = dict(zoom_out=2.0, gamma=0.4, blur=0.05, noise=0.1, cut=0.3)


def batch(n=40, size=(96, 32)):
    g = torch.Generator().manual_seed(1)
    masks = torch.zeros(n, 1, *size)
    masks[..., 8:88, 10:22] = 1
    return 0.2 + 0.4 * masks + 0.1 * torch.rand(masks.shape, generator=g), masks


def apply(batch, seed=0, **strengths):
    return Augment(**STILL | strengths)(*batch, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", MORE)
def test_half_untouched_half_changed(name):
    before = batch()
    plain, (image, mask) = apply(before), apply(before, **{name: MORE[name]})
    same = (image - plain[0]).abs().amax((1, 2, 3)) < 1e-4
    share = {"gamma": 0.0, "cut": 0.25}.get(name, 0.5)  # two ends may be cut, gamma has two signs
    assert abs(same.float().mean() - share) < 0.2
    assert torch.equal(mask, plain[1]) == (name in ("gamma", "blur", "noise"))
    assert 0 <= image.min() and image.max() <= 1 and set(mask.unique().tolist()) <= {0.0, 1.0}


def test_zoom_keeps_image_and_mask_together_and_widens_the_image():
    image, mask = apply(batch(), zoom_out=2.0)
    inside = torch.where(mask > 0, image, torch.nan).nanmean((1, 2, 3))
    assert (inside > 0.5).all()
    small = mask.sum((1, 2, 3)) / batch()[1][0].sum()
    assert small.min() < 0.25 and small.max() > 0.95 and small.min() > 1 / 10
    sides = image[small < 0.5][..., 48, :3].mean((1, 2))  # beyond the image: black or its border
    assert ((sides < 0.02) | (sides > 0.15)).all() and (sides < 0.02).any() and (sides > 0.15).any()


def test_cut_is_black_and_unlabelled_at_the_ends_only():
    image, mask = apply(batch(), cut=0.3)
    gone = (image.amax((1, 3)) == 0)
    assert gone.any() and not gone[:, 30:66].any()
    assert (mask.amax((1, 3))[gone] == 0).all()


@pytest.mark.parametrize("sigma", [0.7, 3.0])
def test_blur_is_scipys(sigma):
    image = batch(1)[0]
    ours = gaussian_blur(image, torch.tensor([sigma]), 12)
    theirs = gaussian_filter(image[0, 0].numpy(), sigma, mode="nearest", radius=12)
    torch.testing.assert_close(ours[0, 0], torch.from_numpy(theirs), atol=1e-5, rtol=1e-4)


def test_rows_depend_on_their_own_generator_alone():
    before = batch(4)
    all_on = Augment(**MORE)
    whole = all_on(*before, [generator_for(i) for i in range(4)])
    last = all_on(*(x[3:] for x in before), [generator_for(3)])
    torch.testing.assert_close(last[0], whole[0][3:], atol=1e-5, rtol=0)
    assert torch.equal(last[1], whole[1][3:])


def test_profiles():
    assert all(getattr(Augment.from_settings(load_settings("paper")), k) == 0 for k in MORE)
    assert all(getattr(Augment.from_settings(load_settings("long")), k) > 0 for k in MORE)
    assert Augment.from_settings(replace(load_settings("demo"), blur=0.1)).blur == 0.1
