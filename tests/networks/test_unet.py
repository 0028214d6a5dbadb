"U-Net and multi-scale fusion."
import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from verdiff.networks.msfm import DescriptorBatchNorm, MultiScaleFusion, descriptor_norm
from verdiff.networks.unet import (
    ConditionalUNet,
    Encoder,
    ResBlock,
    UNet,
    make_norm,
    pad_to_multiple,
    timestep_embedding,
)

PAGES = Path(__file__).resolve().parents[2] / "nbs"


def printed(page):
    "All that the cells of a page printed when it was last executed."
    cells = json.loads((PAGES / f"{page}.ipynb").read_text(encoding="utf-8"))["cells"]
    return "".join("".join(o.get("text", "")) for c in cells for o in c.get("outputs", []))


def without_norm(net):
    "The same net with its group norms taken out: what is left is local."
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    return net


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_every_size_goes_in_and_comes_out(height, width, levels):
    net = UNet(2, 3, (8,) * levels, time_dim=8)
    assert net(torch.randn(1, 2, height, width), torch.tensor([3])).shape == (1, 3, height, width)


def test_padding_does_not_reach_images_that_need_none():
    torch.manual_seed(0)
    net = UNet(1, channels=(8, 16, 16)).eval()
    x = torch.randn(2, 1, 32, 16)
    assert torch.equal(net.pad(x), x) and net.pad(torch.randn(1, 1, 33, 1)).shape[-2:] == (36, 4)
    padded = pad_to_multiple(torch.arange(3.0).reshape(1, 1, 1, 3), 4)
    assert padded.tolist() == [[[[0, 1, 2, 2]] * 4]]


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_images_of_a_batch_do_not_see_each_other(norm):
    torch.manual_seed(0)
    net = ConditionalUNet(1, (8, 16), norm=norm).eval()
    x = torch.randn(3, 1, 24, 16)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]), atol=1e-5, rtol=1e-4)


def test_time_and_zero_output():
    torch.manual_seed(0)
    net, x = UNet(1, channels=(8, 16), time_dim=16), torch.randn(1, 1, 16, 8)
    assert not torch.allclose(net(x, torch.tensor([1])), net(x, torch.tensor([900])))
    assert UNet(1, time_dim=16, zero_output=True)(x, torch.tensor([1])).abs().max() == 0
    e = timestep_embedding(torch.tensor([0, 7]), 6)
    assert e[0].tolist() == [1, 1, 1, 0, 0, 0] and e.abs().max() <= 1
    with pytest.raises(ValueError, match="even"):
        timestep_embedding(torch.tensor([0]), 5)
    with pytest.raises(ValueError, match="norm"):
        make_norm("layer", 8)


def test_adapters_are_called_once_a_level_with_the_prior_at_its_size():
    sizes = []

    class Spy(nn.Module):
        def forward(self, h, prior):
            sizes.append((tuple(h.shape), tuple(prior.shape)))
            return torch.zeros_like(h)

    torch.manual_seed(0)
    plain = UNet(1, channels=(8, 8, 16))
    spied = UNet(1, channels=(8, 8, 16), adapter=lambda c: Spy() if c == 16 else None)
    spied.load_state_dict(plain.state_dict())
    x = torch.randn(2, 1, 21, 12)
    torch.testing.assert_close(spied(x, prior=torch.zeros_like(x)), plain(x))
    assert sizes == [((2, 16, 6, 3), (2, 1, 6, 3))]


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("batch", [1, 4])
def test_weights_sum_to_one_and_gradients_reach_everything(norm, batch):
    torch.manual_seed(0)
    net, x = MultiScaleFusion(1, 8, 4, norm=norm), torch.rand(batch, 1, 17, 9)
    net(x)  # batch norm with a batch of one needs estimates that differ from this very image
    weights = net.select(x)
    assert weights.shape == (batch, 3, 8) and (weights > 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(batch, 8))
    (net(x) ** 2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in net.named_parameters()
               if not (norm == "batch" and n.startswith("compress.bias")))


def test_equation_14_by_hand():
    torch.manual_seed(0)
    net, x = MultiScaleFusion(1, 2, 4), torch.rand(1, 1, 8, 6)
    a, b, c = (nn.functional.elu(branch(x)) for branch in net.branches)
    wa, wb, wc = net.select(x)[0]
    by_hand = sum(w.view(1, 2, 1, 1) * y for w, y in ((wa, a), (wb, b), (wc, c)))
    torch.testing.assert_close(net(x), by_hand)


def test_the_selection_sees_more_than_brightness():
    torch.manual_seed(0)
    stripes = (torch.arange(32) % 4 < 2).float().expand(1, 1, 32, 32)
    net = MultiScaleFusion(1, 8, 4)
    gap = (net.select(stripes) - net.select(torch.full_like(stripes, 0.5))).abs().max()
    assert gap > 1e-3


def test_a_batch_norm_that_survives_one():
    norm = DescriptorBatchNorm(3)
    before = norm.running_mean.clone()
    out = norm(torch.tensor([[1.0, 2.0, 3.0]]))
    assert out.isfinite().all() and not torch.equal(norm.running_mean, before)
    many = torch.randn(6, 3)
    theirs = nn.BatchNorm1d(3)
    torch.testing.assert_close(DescriptorBatchNorm(3)(many), theirs(many))
    norm.eval()
    assert torch.equal(norm(many[:1]), norm(many)[:1])
    with pytest.raises(ValueError, match="'group' or 'batch'"):
        descriptor_norm("layer", 4)


# gradients, shifts, sizes, numbers on the page

@pytest.mark.parametrize("net", [
    lambda: ResBlock(2, 4, 6), lambda: UNet(1, channels=(2, 4), time_dim=4),
    lambda: MultiScaleFusion(1, 4, 3)], ids=["block", "unet", "msfm"])
def test_gradients_agree_with_finite_differences(net):
    torch.manual_seed(0)
    net = net().double()
    channels = {ResBlock: 2}.get(type(net), 1)
    x = torch.rand(1, channels, 6, 4, dtype=torch.float64, requires_grad=True)
    if isinstance(net, ResBlock):
        more = (torch.rand(1, 6, dtype=torch.float64, requires_grad=True),)
    elif isinstance(net, UNet):
        net.time.forward = lambda e: nn.Sequential.forward(net.time, e.double())
        more = (torch.tensor([7]),)
    else:
        more = ()
    assert torch.autograd.gradcheck(net, (x, *more))


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_a_shift_by_the_stride_shifts_the_output(levels):
    torch.manual_seed(0)
    net = without_norm(UNet(1, channels=(4,) * levels)).double()
    stride = 2 ** (levels - 1)
    x = torch.randn(1, 1, 128, 128, dtype=torch.float64)
    inner = slice(48, 80)  # what the border cannot reach
    with torch.no_grad():
        a = net(x)
        b, c = (net(x.roll((n, 2 * n), (2, 3))).roll((-n, -2 * n), (2, 3)) for n in (stride, 1))
    torch.testing.assert_close(b[..., inner, inner], a[..., inner, inner])
    if levels > 1:  # and only a shift by the stride does
        assert not torch.allclose(c[..., inner, inner], a[..., inner, inner])


def test_msfm_shifts_with_its_image():
    torch.manual_seed(0)
    net, x = MultiScaleFusion(1, 4, 3), torch.zeros(1, 1, 40, 30)
    x[..., 12:24, 10:18] = torch.rand(12, 8)
    inner = (..., slice(6, -6), slice(6, -6))
    moved = net(x.roll((1, 2), (2, 3))).roll((-1, -2), (2, 3))
    torch.testing.assert_close(moved[inner], net(x)[inner])


@pytest.mark.parametrize("size", [(64, 32), (375, 751), (751, 375), (1024, 512), (1, 7)])
def test_conditional_unet_at_every_size(size):
    with torch.no_grad():
        out = ConditionalUNet(1, (8, 8, 8, 8))(torch.rand(1, 1, *size))
    assert out.shape == (1, 1, *size) and out.isfinite().all()


def test_the_encoder_halves_level_by_level():
    levels = Encoder(1, (4, 8, 6))(torch.zeros(1, 1, 20, 12))
    assert [tuple(h.shape[1:]) for h in levels] == [(4, 20, 12), (8, 10, 6), (6, 5, 3)]


def test_the_numbers_of_parameters_on_page_08_are_the_networks():
    rows = re.findall(r"^stem (\d): .*?([\d,]+) parameters", printed("08_unet"), re.M)
    assert [stem for stem, _ in rows] == ["1", "2", "4"]
    for stem, number in rows:
        net = ConditionalUNet(1, (16, 32, 64, 128), stem=int(stem))
        assert int(number.replace(",", "")) == sum(p.numel() for p in net.parameters())
