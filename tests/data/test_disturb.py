"What is drawn on radiographs in training: repeatable, off by default, masks only where they must."
import io

import numpy as np
import pytest
import torch
from PIL import Image

from verdiff.data.augment import Augment
from verdiff.data.disturb import KINDS, disturb
from verdiff.settings import LATER, Settings, load_settings
from verdiff.training.batches import generator_for

STILL = dict(rotation=0, shift=(0, 0), elastic=0, contrast=0)


def batch(n=12, size=(192, 64)):
    g = torch.Generator().manual_seed(1)
    masks = torch.zeros(n, 1, *size)
    masks[..., 16:176, 24:40] = 1
    image = 0.2 + 0.4 * masks + 0.1 * torch.rand(masks.shape, generator=g)
    image[..., :4] = 0  # beside the radiograph
    return image, masks


def own(n, start=0):
    return [generator_for(7, i) for i in range(start, start + n)]


@pytest.mark.parametrize("kind", KINDS)
def test_chance_range_and_mask(kind):
    image, mask = batch(60)
    seeds = torch.arange(60)
    for chance in (0.0, 0.4, 1.0):
        new, kept = disturb(image, mask, seeds, **{kind: chance})
        changed = (new != image).flatten(1).any(1)
        assert abs(changed.float().mean() - chance) < (0.2 if 0 < chance < 1 else 0.05)
        assert 0 <= new.min() and new.max() <= 1 and new.dtype == torch.float32
        assert kind == "collimator" or torch.equal(kept, mask)
        assert (kept <= mask).all() and set(kept.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(disturb(image, mask, seeds, **{kind: 1.0})[0], new)
    assert not torch.equal(disturb(image, mask, seeds + 99, **{kind: 1.0})[0], new)


def test_metal_is_bright_and_lies_on_the_spine():
    image, mask = batch(40)
    new, _ = disturb(image, mask, range(40), metal=1.0)
    brighter = new - image
    assert brighter.min() >= 0
    metal = brighter > 0.1
    on, off = ((metal & (m > 0)).sum() / m.sum() for m in (mask, 1 - mask))
    assert on > 4 * off and 0.02 < on < 0.4
    assert new[metal].max() > 0.8
    empty = torch.zeros_like(mask)
    assert torch.equal(disturb(image, empty, range(40), metal=1.0)[0], image)


def test_inverted_beside_the_radiograph_is_black_or_white():
    image, mask = batch(20)
    new, _ = disturb(image, mask, range(20), invert=1.0)
    torch.testing.assert_close(new[..., 4:], 1 - image[..., 4:])
    assert set(new[..., :4].unique().tolist()) == {0.0, 1.0}


def test_collimator_hides_one_grey_level_and_the_mask_there():
    image, mask = batch(40)
    new, kept = disturb(image, mask, range(40), collimator=1.0)
    for before, after, m, k in zip(image, new, mask, kept, strict=True):
        gone = (before != after)[0]
        assert len(after[0][gone].unique()) == 1 and not k[0][gone].any()
        assert torch.equal(k[0][~gone], m[0][~gone] * (k[0][~gone]))
    assert (kept < mask).flatten(1).any(1).float().mean() > 0.2


def test_letters_leave_the_rest_to_the_bit():
    image, mask = batch(40)
    new, _ = disturb(image, mask, range(40), letters=1.0)
    share = (new != image).float().mean((1, 2, 3))
    assert 0 < share.min() and share.max() < 0.5


def test_jpeg_is_pillows_at_some_quality():
    image, mask = batch(4)
    new, _ = disturb(image, mask, range(4), jpeg=1.0)
    for before, after in zip(image, new, strict=True):
        found = []
        for quality in range(5, 71):
            file = io.BytesIO()
            Image.fromarray(np.uint8(255 * before[0].numpy() + 0.5)).save(file, "JPEG", quality=quality)
            found.append(np.array_equal(np.asarray(Image.open(file)), (255 * after[0]).round().byte()))
        assert any(found)


def test_one_kind_changes_nothing_in_another():
    image, mask = batch(8)
    both = disturb(image, mask, range(8), metal=0.0, letters=1.0)
    assert torch.equal(both[0], disturb(image, mask, range(8), letters=1.0)[0])
    with pytest.raises(ValueError):
        disturb(image, mask, range(8), glitter=1.0)


def test_off_draws_no_number_and_on_depends_on_the_rows_own_generator():
    image, mask = batch(6)
    more = dict(zoom_out=1.0, gamma=0.4, blur=0.02, noise=0.1, cut=0.25)
    g, h = (torch.Generator().manual_seed(3) for _ in range(2))
    old = Augment(**more)(image, mask, g)
    new = Augment(**more, **dict.fromkeys(KINDS, 0.0))(image, mask, h)
    assert torch.equal(old[0], new[0]) and torch.equal(old[1], new[1])
    assert torch.equal(g.get_state(), h.get_state())
    on = Augment(**more, **dict.fromkeys(KINDS, 1.0))
    whole, part = on(image, mask, own(6)), on(image[4:], mask[4:], own(2, 4))
    torch.testing.assert_close(part[0], whole[0][4:], atol=0.03, rtol=0)  # JPEG rounds
    assert torch.equal(part[1], whole[1][4:])
    again = on(image, mask, own(6))
    assert torch.equal(whole[0], again[0]) and torch.equal(whole[1], again[1])


def test_off_is_bit_for_bit_what_section_32_gave():
    image, mask = batch(6)
    a = Augment(**STILL, metal=1.0)(image, mask, own(6))
    b = Augment(**STILL)(image, mask, own(6))
    assert torch.equal(a[1], b[1]) and not torch.equal(a[0], b[0])


def test_settings():
    for profile in ("paper", "laptop", "fine", "comparison"):
        a = Augment.from_settings(load_settings(profile))
        assert [getattr(a, kind) for kind in KINDS] == [0] * len(KINDS)
    a = Augment.from_settings(load_settings("laptop", [f"{k}=0.{i + 1}" for i, k in enumerate(KINDS)]))
    assert [getattr(a, k) for k in KINDS] == [0.1, 0.2, 0.3, 0.4, 0.5]
    old = {k: v for k, v in load_settings("laptop").to_dict().items() if k not in KINDS}
    assert Settings.from_dict(old) == load_settings("laptop")
    assert all(LATER[kind] == 0 for kind in KINDS)
