"Recycled rows see the network's own estimate; the target stays the truth; resuming stays exact."
from dataclasses import replace

import pytest
import torch

from verdiff.data.packed import Packed
from verdiff.files import VerdiffError
from verdiff.networks.model import VerdiffNet
from verdiff.settings import Settings, load_settings
from verdiff.training.batches import augment_batch
from verdiff.training.loss import first_estimate, training_loss
from verdiff.training.run import train

SMOKE = load_settings("smoke")


def films(n=6):
    masks = torch.zeros(n, 1, *SMOKE.size, dtype=torch.uint8)
    masks[..., 8:40, 8:20] = 1
    return Packed(masks * 120, masks, [f"{i}.png" for i in range(n)])


class Spy(VerdiffNet):
    "Remembers what it was shown; always answers 0.5."

    def denoise(self, x_t, t, conditioning):
        self.seen = [*getattr(self, "seen", []), (x_t.clone(), t.clone())]
        return torch.full_like(x_t, 0.5, requires_grad=torch.is_grad_enabled())


def test_what_the_network_sees():
    net, g = Spy(channels=(4, 8), height=64, width=32), torch.Generator().manual_seed(0)
    mask = films(3).masks.float()
    noise, t = torch.randn(mask.shape, generator=g), torch.tensor([10, 500, 900])
    rows = torch.tensor([True, False, True])
    parts = training_loss(net, mask, mask, t, noise, recycled=rows)
    process, prior = net.process(), net.condition(mask).prior
    (first, when), (second, _) = net.seen
    assert when.tolist() == [999, 999]
    torch.testing.assert_close(first, (prior + noise)[rows])
    shown = torch.where(rows.view(-1, 1, 1, 1), torch.full_like(mask, 0.5), 2 * mask - 1)
    torch.testing.assert_close(second, process.q_sample(shown, t, prior, noise))
    torch.testing.assert_close(parts["mse"], ((0.5 - (2 * mask - 1)) ** 2).mean())


def test_none_recycled_is_as_before():
    net, mask = VerdiffNet(channels=(4, 8)), films(2).masks.float()
    args = net, mask, mask, torch.tensor([3, 700]), torch.randn(mask.shape)
    nobody = training_loss(*args, recycled=torch.zeros(2, dtype=torch.bool))
    assert torch.equal(training_loss(*args)["total"], nobody["total"])


def test_estimate_has_no_gradient_and_range():
    net = VerdiffNet(channels=(4, 8))
    torch.nn.init.constant_(net.diffusion.out[-1].bias, 7.0)
    mask = films(2).masks.float()
    got = first_estimate(net, torch.randn(mask.shape), net.condition(mask), net.process())
    assert not got.requires_grad and (got == 1).all()


def test_share_and_independence_of_the_other_draws():
    data, some = films(), replace(SMOKE, recycle=0.7)
    plain, batch = (augment_batch(data.images, data.masks, s, 3) for s in (SMOKE, some))
    assert all(torch.equal(a, b) for a, b in zip(plain[:4], batch[:4], strict=True))
    assert not plain.recycled.any()
    rows = torch.cat([augment_batch(data.images, data.masks, some, n).recycled for n in range(60)])
    assert abs(rows.float().mean() - 0.7) < 0.08


def test_resumes_to_the_bit(tmp_path):
    s = replace(SMOKE, recycle=0.5, max_steps=4, checkpoint_every=2)
    whole = train(s, films(), None, tmp_path / "a", progress=False).state_dict()
    train(s, films(), None, tmp_path / "b", progress=False)
    (tmp_path / "b/checkpoint-000004.pt").unlink()
    again = train(s, films(), None, tmp_path / "b", progress=False).state_dict()
    assert all(torch.equal(v, again[k]) for k, v in whole.items())


def test_needs_predictions_of_the_mask():
    with pytest.raises(VerdiffError, match="recycle needs prediction_type"):
        load_settings("smoke", ["recycle=0.5", "prediction_type=epsilon"])


def test_a_run_from_before_there_was_such_a_key_goes_on(tmp_path):
    s = replace(SMOKE, max_steps=4, checkpoint_every=2)
    whole = train(s, films(), None, tmp_path / "a", progress=False).state_dict()
    train(s, films(), None, tmp_path / "b", progress=False)
    (tmp_path / "b/checkpoint-000004.pt").unlink()
    path = tmp_path / "b/checkpoint-000002.pt"
    state = torch.load(path, weights_only=True)
    for key in ("recycle",):
        del state["settings"][key]
    del state["cpu_seconds"]
    torch.save(state, path)
    again = train(s, films(), None, tmp_path / "b", progress=False).state_dict()
    assert all(torch.equal(v, again[k]) for k, v in whole.items())
    old = {k: v for k, v in SMOKE.to_dict().items() if k != "recycle"}
    assert Settings.from_dict(old) == SMOKE
