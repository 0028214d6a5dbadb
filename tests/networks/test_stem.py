"The stem: full size outside, fewer pixels inside; keys that are newer than a file."
import json

import pytest
import torch
from torch import nn

from verdiff.files import VerdiffError
from verdiff.networks.config import VerdiffConfig, scale_signal
from verdiff.networks.model import VerdiffNet
from verdiff.networks.unet import ConditionalUNet, Folded
from verdiff.settings import LATER, Settings, load_settings
from verdiff.training.checkpoint import start_from

WIDTHS = (16, 16, 32)


@pytest.mark.parametrize("stem", [1, 2, 4])
@pytest.mark.parametrize("msfm", [True, False])
@pytest.mark.parametrize("size", [(96, 32), (75, 25)])
def test_full_size_outside(stem, msfm, size):
    net = VerdiffNet(channels=WIDTHS, stem=stem, msfm=msfm)
    image, x_t = torch.rand(2, 1, *size), torch.randn(2, 1, *size)
    output, conditioning = net(image, x_t, torch.tensor([3, 900]))
    assert output.shape == conditioning.logits.shape == (2, 1, *size)
    assert conditioning.features.shape == (2, 16 // stem**2, *size)
    (output + conditioning.logits).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_inside_works_at_a_quarter():
    net, seen = ConditionalUNet(1, WIDTHS, stem=4), []
    net.encoder.stem.register_forward_hook(lambda m, i, o: seen.append(tuple(i[0].shape)))
    net(torch.rand(1, 1, 96, 32))
    assert seen == [(1, 16, 24, 8)]


def test_folded_convolution_of_stride():
    "A folded 1x1 convolution is one of stride s, its channels laid out as pixels."
    folded = Folded(nn.Conv2d(9, 9, 1, bias=False), 3)
    with torch.no_grad():
        folded.module.weight[:] = torch.eye(9)[..., None, None]
    x = torch.rand(1, 1, 10, 8)
    torch.testing.assert_close(folded(x), x, rtol=0, atol=0)


def test_no_stem_changes_no_bit():
    x = torch.rand(2, 3, 16, 8).to(memory_format=torch.channels_last)
    for f in (nn.functional.pixel_unshuffle, nn.functional.pixel_shuffle, nn.functional.avg_pool2d):
        y = f(x, 1)
        assert torch.equal(y, x) and y.is_contiguous(memory_format=torch.channels_last)


def test_prior_reaches_the_adapters_pooled():
    net = VerdiffNet(channels=WIDTHS, stem=2).eval()
    nn.init.ones_(net.diffusion.out[-1].weight)
    image, x_t, t = torch.rand(1, 1, 48, 16), torch.randn(1, 1, 48, 16), torch.tensor([5])
    known, seen = net.condition(image), []
    net.diffusion.encoder.adapters[1].register_forward_hook(lambda m, i, o: seen.append(i[1]))
    net.denoise(x_t, t, known)
    torch.testing.assert_close(seen[0], nn.functional.avg_pool2d(known.prior, 4))


def test_widths_must_fit():
    with pytest.raises(VerdiffError, match="multiple of stem"):
        VerdiffNet(channels=(8, 16), stem=4)


def test_saved_before_the_stem(tmp_path):
    VerdiffNet(channels=(8, 16)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert {"stem", "input_scale"} <= LATER.keys() and not LATER.keys() & config.keys()
    assert VerdiffNet.from_pretrained(tmp_path).config == VerdiffConfig(channels=(8, 16))
    smoke = load_settings("smoke")
    old = {k: v for k, v in smoke.to_dict().items() if k not in LATER}
    assert Settings.from_dict(old) == smoke
    with pytest.raises(VerdiffError, match="is missing"):  # an old key is not filled in
        Settings.from_dict({k: v for k, v in old.items() if k != "blocks"})


def test_a_stem_is_saved(tmp_path):
    net = VerdiffNet(channels=(16, 16), stem=2, input_scale=0.1)
    net.save_pretrained(tmp_path)
    assert VerdiffNet.from_pretrained(tmp_path).config == net.config


def test_fine_tuning_keeps_the_stem():
    one, two = VerdiffNet(channels=(16, 16)), VerdiffNet(channels=(16, 16), input_scale=0.5)
    for trained in (two, VerdiffNet(channels=(16, 16), stem=2)):
        with pytest.raises(VerdiffError, match="has other settings"):
            start_from(one, trained)
    assert torch.equal(start_from(one, VerdiffNet(one.config)).features.choose.weight,
                       one.features.choose.weight)


def test_a_smaller_signal():
    plain, scaled = (VerdiffNet(channels=(8, 8), input_scale=b).process() for b in (1.0, 0.2))
    ratio = [p.alphas_cumprod / (1 - p.alphas_cumprod) for p in (plain, scaled)]
    torch.testing.assert_close(ratio[1][:-1], 0.04 * ratio[0][:-1])
    # b x_0 under the plain schedule, divided by its standard deviation, is x_0 under the scaled one
    x_0, noise = torch.tensor([[1.0, -1.0]]).double(), torch.randn(1, 2).double()
    t, bar = torch.tensor([400]), plain.alphas_cumprod[400]
    whole = (bar * 0.2**2 + 1 - bar).sqrt()
    torch.testing.assert_close(scaled.q_sample(x_0, t, None, noise),
                               plain.q_sample(0.2 * x_0, t, None, noise) / whole)
    assert (scale_signal(plain.betas, 0.1) > 0).all()
