"The bench's walk is the sampler's, its plain loss the project's; masks are counted piece by piece."

import pytest
import torch

from verdiff.diffusion.sampling import ddim_sample
from verdiff.training.loss import training_loss


@pytest.fixture(scope="module")
def why(script):
    return script("why_steps")


def net_of(why, way):
    torch.manual_seed(0)
    settings = why.load_settings("ablation", ["channels=8,16", "nsa=off", "stem=2"])
    net = why.make_net(settings, way)
    torch.nn.init.normal_(net.diffusion.out[-1].weight, std=0.1)
    return net.eval()


@pytest.mark.parametrize("name", ["plain", "scale"])
def test_the_walk_is_the_samplers(why, name):
    way, g = why.WAYS[name], torch.Generator().manual_seed(0)
    net = net_of(why, way)
    known = net.condition(torch.rand(2, 1, 32, 16, generator=g))
    noise = torch.randn(2, 1, 32, 16, generator=g)
    p = net.process()
    wanted = ddim_sample(p, lambda x, t: net.denoise(x, t, known),
                         p.prior_sample(known.prior, noise), known.prior, steps=4)
    torch.testing.assert_close(why.walk(net, known, noise, 4, way), wanted)
    less = why.walk(net, known, noise, 4, why.Way(divide=1.05))
    assert not torch.equal(less, wanted)


def test_the_plain_loss_is_the_projects(why):
    net, g = net_of(why, why.Way()), torch.Generator().manual_seed(0)
    image, noise = torch.rand(3, 1, 32, 16, generator=g), torch.randn(3, 1, 32, 16, generator=g)
    mask, t = (image > 0.5).float(), torch.tensor([3, 400, 900])
    wanted = training_loss(net, image, mask, t, noise)["mse"]
    got = {name: why.diffusion_loss(net, net.condition(image), mask, t, noise, way, net.process(),
                                    torch.Generator().manual_seed(0))
           for name, way in why.WAYS.items() if not way.own}
    torch.testing.assert_close(got["plain"], wanted)
    for name in ("recycle", "perturbed", "weighted", "dropped"):
        assert got[name] != wanted, name
    all_own = why.Way(recycle=1.0)
    rows = torch.ones(3, dtype=torch.bool)
    torch.testing.assert_close(
        why.diffusion_loss(net, net.condition(image), mask, t, noise, all_own, net.process(), g),
        training_loss(net, image, mask, t, noise, recycled=rows)["mse"])


def test_its_own_estimate_reaches_the_network(why):
    way = why.WAYS["own"]
    net = net_of(why, way)
    known = net.condition(torch.rand(1, 1, 32, 16))
    x, t = torch.randn(1, 1, 32, 16), torch.tensor([500])
    none, some = (net.denoise(x, t, why.told(known, e, way)) for e in (None, torch.ones_like(x)))
    assert none.shape == x.shape and not torch.equal(none, some)


def test_a_half_vertebra_is_seen(why):
    mask = torch.zeros(2, 1, 12, 4)
    for top in (0, 4, 8):
        mask[:, :, top:top + 3] = 1
    mask[1, :, 9:] = 0  # the last one: a third of the others
    assert why.halves(mask).tolist() == pytest.approx([0, 1 / 3])


def test_a_finer_mask_stays_readable_for_longer(why):
    masks = torch.zeros(2, 1, 12, 4)
    masks[:, :, 2:6] = 1
    fine = masks.repeat_interleave(8, 2).repeat_interleave(8, 3)
    p = net_of(why, why.Way()).process()
    coarse, finer = why.readable(masks, p, 1), why.readable(fine, p, 8)
    assert finer[3] > coarse[3] + 0.1 and coarse[0] > 0.95
