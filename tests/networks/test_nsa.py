"""The noise semantic adapter: shape, reach, choice, gradients, its twin in the literature."""
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from verdiff.networks.nsa import (
    AdapterMaps,
    NoiseSemanticAdapter,
    kernel_choice,
    mask_density,
    pool_channels,
)


def seen_by(f, channels=4, size=37):
    "Input pixels with a gradient on the central output pixel."
    torch.manual_seed(0)
    x = torch.randn(1, channels, size, size, dtype=torch.float64, requires_grad=True)
    f(x)[..., size // 2, size // 2].sum().backward()
    return x.grad.abs().sum((0, 1)) > 0


def square(size, side):
    "A centred square of ones, as a mask."
    seen = torch.zeros(size, size, dtype=torch.bool)
    edge = (size - side) // 2
    seen[edge:edge + side, edge:edge + side] = True
    return seen


@pytest.mark.parametrize("choice", ["soft", "hard"])
@pytest.mark.parametrize("channels", [2, 3, 8, 32])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (48, 16), (33, 64)])
def test_keeps_the_shape(choice, channels, size):
    adapter = NoiseSemanticAdapter(channels, choice)
    x, prior = torch.randn(2, channels, *size), torch.rand(2, 1, *size) * 2 - 1
    maps = adapter.maps(x, prior)
    assert isinstance(maps, AdapterMaps)
    assert maps.output.shape == adapter(x, None).shape == x.shape
    assert maps.fine.shape == maps.spatial.shape == (2, channels // 2, *size)
    assert maps.gate.shape == (2, 2, *size) and maps.choice.shape == (2, 1, *size)
    assert 0 <= maps.gate.min() and maps.gate.max() <= 1
    torch.testing.assert_close(maps.output, maps.v_bar * x)
    torch.testing.assert_close(adapter(x, prior), maps.output)


@pytest.mark.parametrize(("prior", "side"), [(1.0, 27), (-1.0, 29)])
def test_sees_exactly_its_receptive_field(prior, side):
    adapter = NoiseSemanticAdapter(4, choice="hard").double()
    p = torch.full((1, 1, 37, 37), prior, dtype=torch.float64)
    assert torch.equal(seen_by(lambda x: adapter(x, p)), square(37, side))


def test_soft_choice_sees_29_pixels_of_features_and_of_prior():
    adapter = NoiseSemanticAdapter(4).double()
    x = torch.randn(1, 4, 37, 37, dtype=torch.float64)
    assert torch.equal(seen_by(lambda f: adapter(f, x[:, :1].tanh())), square(37, 29))
    assert torch.equal(seen_by(lambda p: adapter(x, p.tanh()), channels=1), square(37, 29))


def test_the_dilated_kernel_alone_is_a_comb_of_49_pixels():
    seen = seen_by(NoiseSemanticAdapter(4).double().spatial_7)
    rows = seen.any(1).nonzero().flatten()
    assert seen.sum() == 49 and rows[-1] - rows[0] + 1 == 19


def test_density_counts_and_ignores_what_is_outside():
    prior = -torch.ones(1, 1, 8, 10)
    prior[..., 5:] = 1
    assert mask_density(prior)[0, 0, 0].tolist() == pytest.approx(
        [0, 0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1])
    assert mask_density(torch.full((1, 1, 4, 4), 0.5)).tolist() == torch.full(
        (1, 1, 4, 4), 0.75).tolist()
    assert (mask_density(torch.full((1, 1, 4, 4), 0.5), binary=True) == 1).all()


def test_many_mask_pixels_take_3x3_and_few_take_5x5():
    adapter = NoiseSemanticAdapter(4, choice="hard")
    x = torch.randn(1, 4, 9, 9)
    for prior, kernel in ((1.0, adapter.fine_3), (-1.0, adapter.fine_5)):
        maps = adapter.maps(x, torch.full((1, 1, 9, 9), prior))
        torch.testing.assert_close(maps.fine, adapter.halve_f(kernel(x)))


def test_soft_choice_approaches_the_hard_one():
    prior = (torch.rand(1, 1, 30, 30) > 0.7).float() * 2 - 1
    clear = (mask_density(prior) - 0.25).abs() > 0.01
    steep = kernel_choice(prior, "soft", sharpness=5000.0)
    assert (steep - kernel_choice(prior, "hard"))[clear].abs().max() < 1e-6


def test_only_the_soft_choice_has_a_slope_in_the_prior():
    for choice, expected in (("soft", True), ("hard", False)):
        prior = torch.zeros(1, 1, 6, 6, requires_grad=True)
        out = NoiseSemanticAdapter(4, choice)(torch.randn(1, 4, 6, 6), prior)
        (grad,) = torch.autograd.grad(out.sum(), prior, allow_unused=True)
        assert (grad is not None and bool(grad.abs().sum() > 0)) is expected


def test_gradients_agree_with_finite_differences():
    torch.manual_seed(0)
    adapter = NoiseSemanticAdapter(4).double()
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64, requires_grad=True)
    prior = torch.rand(2, 1, 6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(adapter, (x, prior))


def test_every_parameter_learns():
    adapter = NoiseSemanticAdapter(6)
    adapter(torch.randn(2, 6, 20, 20), torch.rand(2, 1, 20, 20)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters())


def test_a_shift_of_the_input_shifts_the_output():
    adapter = NoiseSemanticAdapter(4)
    x, prior = torch.randn(1, 4, 70, 70), torch.rand(1, 1, 70, 70) * 2 - 1
    out = adapter(x, prior)
    moved = adapter(x.roll((3, 5), (2, 3)), prior.roll((3, 5), (2, 3)))
    inner = slice(24, 46)
    torch.testing.assert_close(moved.roll((-3, -5), (2, 3))[..., inner, inner],
                               out[..., inner, inner])


def test_on_background_it_is_lsknets_block():
    ours = NoiseSemanticAdapter(8, choice="hard")
    x = torch.randn(2, 8, 31, 22)
    near = F.conv2d(x, ours.fine_5.weight, ours.fine_5.bias, padding=2, groups=8)
    w, b = ours.spatial_7.weight, ours.spatial_7.bias
    far = F.conv2d(near, w, b, padding=9, dilation=3, groups=8)
    one, two = ours.halve_f(near), ours.halve_s(far)
    both = torch.cat([one, two], 1)
    gate = ours.mix(torch.cat([both.mean(1, True), both.max(1, True).values], 1)).sigmoid()
    expected = x * ours.expand(one * gate[:, [0]] + two * gate[:, [1]])
    torch.testing.assert_close(ours(x, -torch.ones(2, 1, 31, 22)), expected)


def test_pool_channels():
    x = torch.randn(2, 5, 3, 3)
    torch.testing.assert_close(pool_channels(x), torch.stack([x.mean(1), x.amax(1)], 1))


def test_parameter_count():
    c = 16
    expected = (c * (9 + 1) + c * (25 + 1) + c * (49 + 1) + 2 * (c * c // 2 + c // 2)
                + 2 * 2 * 49 + 2 + (c // 2 * c + c))
    assert sum(p.numel() for p in NoiseSemanticAdapter(c).parameters()) == expected


def test_half_precision_stays_finite():
    adapter = NoiseSemanticAdapter(8).to(torch.bfloat16)
    for seed in range(50):
        torch.manual_seed(seed)
        x = torch.randn(1, 8, 16, 16, dtype=torch.bfloat16) * 10
        assert adapter(x, torch.rand(1, 1, 16, 16)).isfinite().all()


@pytest.mark.parametrize("size", [(32, 96, 32), (16, 192, 64), (64, 96, 32)])
def test_mixed_precision_gives_the_gradients_of_float32(size):
    "bf16 on a CPU, channels last: torch's own gradient of the dilated kernel is unwritten memory."
    c, h, w = size
    torch.manual_seed(0)
    adapter = NoiseSemanticAdapter(c).to(memory_format=torch.channels_last)
    x = torch.randn(4, c, h, w).contiguous(memory_format=torch.channels_last)
    prior, upstream = 2 * torch.rand(4, 1, h, w) - 1, torch.randn(4, c, h, w)

    def gradients(half):
        adapter.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            output = adapter(x, prior)
        output.backward(upstream.to(output.dtype))
        return {name: p.grad.clone() for name, p in adapter.named_parameters()}

    exact = gradients(False)
    for _ in range(3):  # memory that nobody wrote differs from time to time
        for name, g in gradients(True).items():
            assert (g - exact[name]).norm() < 0.06 * exact[name].norm(), name


@pytest.mark.parametrize(("call", "message"), [
    (lambda: NoiseSemanticAdapter(1), "2 or more"),
    (lambda: NoiseSemanticAdapter(4, "firm"), "'soft' or 'hard'"),
    (lambda: NoiseSemanticAdapter(4)(torch.zeros(1, 4, 8, 8), torch.zeros(1, 1, 4, 4)),
     "prior must be"),
    (lambda: NoiseSemanticAdapter(4)(torch.zeros(1, 4, 8, 8), torch.zeros(1, 2, 8, 8)),
     "prior must be"),
])
def test_clear_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_exports():
    adapter = NoiseSemanticAdapter(4).eval()
    args = torch.randn(1, 4, 12, 8), torch.rand(1, 1, 12, 8)
    program = torch.export.export(adapter, args)
    torch.testing.assert_close(program.module()(*args), adapter(*args))
    assert isinstance(adapter, nn.Module)
