"Forward process and posterior: exact identities."
import copy
import gc
import pickle
import weakref

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from verdiff.diffusion import forward
from verdiff.diffusion.forward import (
    ShiftedDiffusion,
    betas_from_alphas_cumprod,
    cosine_schedule,
    linear_schedule,
    make_schedule,
    q_step,
    q_step_printed,
)
from verdiff.diffusion.posterior import (
    PREDICTION_TYPES,
    posterior_coefficients,
    predict_noise,
    predict_x_0,
    q_posterior,
    q_posterior_printed,
    reshift,
    training_target,
    unshift,
)

PROCESS = ShiftedDiffusion(linear_schedule())
SMALL = ShiftedDiffusion(linear_schedule(60, 1e-3, 0.25))
number = st.floats(-2, 2)


def col(*values):
    return torch.tensor(values, dtype=torch.float64).view(-1, 1)


@pytest.mark.parametrize("process", [SMALL, ShiftedDiffusion(cosine_schedule(60))])
def test_steps_give_the_marginal_exactly_without_noise(process):
    x = x_0 = col(-1.0, 0.3, 1.0)
    f, zero = col(0.8, -0.5, 1.0), torch.zeros(3, 1).double()
    for t in range(process.timesteps):
        x = q_step(process, x, torch.tensor([t]), f, zero)
        torch.testing.assert_close(x, process.q_sample(x_0, torch.tensor([t]), f, zero), atol=1e-12, rtol=0)


def test_steps_give_the_marginal_in_distribution():
    n, g = 40_000, torch.Generator().manual_seed(0)
    x, f = torch.full((n,), -1.0).double(), torch.full((n,), 0.8).double()
    for t in range(SMALL.timesteps):
        x = q_step(SMALL, x, torch.tensor([t]), f, torch.randn(n, generator=g).double())
        s = SMALL.sigmas[t].item()
        wanted = -SMALL.alphas_cumprod[t].sqrt().item() + 0.8 * s
        assert abs(x.mean().item() - wanted) < 4.5 * s / n ** 0.5
        assert abs(x.var().item() - s ** 2) < 4.5 * s ** 2 * (2 / n) ** 0.5


def test_the_printed_step_drifts_to_fifteen_priors():
    x, one = torch.zeros(1).double(), torch.ones(1).double()
    for t in range(1000):
        x = q_step_printed(PROCESS, x, torch.tensor([t]), one, 0 * one)
    assert 14.9 < x.item() < 15.0


@given(st.integers(1, 59), number, number, number)
@settings(max_examples=60, deadline=None)
def test_posterior_is_bayes_rule(t, x_0, x_t, f):
    z = torch.linspace(-12, 12, 60_001, dtype=torch.float64)
    s_prev = SMALL.sigmas_prev[t]
    pull = SMALL.sigmas[t] - SMALL.alphas[t].sqrt() * s_prev
    log = -(z - SMALL.alphas_cumprod_prev[t].sqrt() * x_0 - s_prev * f) ** 2 / (2 * s_prev ** 2)
    log = log - (x_t - SMALL.alphas[t].sqrt() * z - pull * f) ** 2 / (2 * SMALL.betas[t])
    w = torch.softmax(log, 0)
    mean = (w * z).sum()
    ours, variance = q_posterior(SMALL, col(x_0), col(x_t), torch.tensor([t]), col(f))
    assert abs(ours.item() - mean.item()) < 1e-8
    assert abs(variance.item() - (w * (z - mean) ** 2).sum().item()) < 1e-8


def test_the_printed_posterior_differs_only_in_the_prior():
    k = posterior_coefficients(PROCESS)
    assert 0 <= k.prior.min() and k.prior.max() < 0.0101 and PROCESS.sigmas.max() > 0.999
    args = PROCESS, col(1.0), col(0.3), torch.tensor([500])
    torch.testing.assert_close(q_posterior(*args)[0], q_posterior_printed(*args)[0])
    gap = q_posterior_printed(*args, col(0.5))[0] - q_posterior(*args, col(0.5))[0]
    torch.testing.assert_close(gap, 0.5 * (PROCESS.sigmas - k.prior)[500].view(1, 1))


def test_without_a_prior_it_is_a_public_ddpm_step_by_step():
    public = DDPMScheduler(beta_schedule="linear", prediction_type="epsilon", clip_sample=False)
    public.betas, public.alphas = PROCESS.betas, PROCESS.alphas
    public.alphas_cumprod = PROCESS.alphas_cumprod
    g = torch.Generator().manual_seed(0)
    x = y = torch.randn(2, 1, 4, 3, generator=g).double()
    for t in reversed(range(900, 1000)):
        eps, steps = torch.tanh(x), torch.full((2,), t)
        torch.testing.assert_close(PROCESS.q_sample(x, steps, None, eps), public.add_noise(x, eps, steps))
        mean, variance = q_posterior(PROCESS, predict_x_0(PROCESS, x, steps, eps), x, steps)
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(t), dtype=x.dtype)
        y = public.step(eps, t, y, generator=torch.Generator().manual_seed(t)).prev_sample
        x = mean + variance.sqrt() * z
        torch.testing.assert_close(x, y, atol=1e-9, rtol=1e-9)


@given(st.integers(0, 999), st.sampled_from(PREDICTION_TYPES), st.booleans(), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_round_trips(t, kind, shift, seed):
    process = ShiftedDiffusion(linear_schedule(), shift)
    g = torch.Generator().manual_seed(seed)
    x_0, f, eps = (torch.randn(2, 1, 3, 3, generator=g).double() for _ in range(3))
    t = torch.tensor([t, 999 - t])
    x_t = process.q_sample(x_0, t, f, eps)
    said = training_target(process, x_0, t, eps, kind)
    torch.testing.assert_close(predict_x_0(process, x_t, t, said, f, kind), x_0, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(predict_noise(process, x_t, t, said, f, kind), eps, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(reshift(process, unshift(process, x_t, t, f), t, f), x_t)


def test_reshift_ends_without_a_shift():
    y, f = torch.randn(3, 1, 2, 2).double(), torch.randn(3, 1, 2, 2).double()
    t = torch.tensor([-1, 0, 999])
    got = reshift(PROCESS, y, t, f)
    assert torch.equal(got[0], y[0])
    torch.testing.assert_close(got[1:], y[1:] + PROCESS.sigmas[[0, 999]].view(2, 1, 1, 1) * f[1:])


def test_float32_and_each_row_its_own_time():
    x, f, eps = torch.randn(3, 4, 1, 5, 5)
    t = torch.tensor([0, 5, 500, 999])
    whole = PROCESS.q_sample(x, t, f, eps)
    assert whole.dtype == torch.float32
    for i in range(4):
        torch.testing.assert_close(whole[i:i + 1], PROCESS.q_sample(x[i:i + 1], t[i:i + 1], f[i:i + 1], eps[i:i + 1]))


@pytest.mark.parametrize("betas", [[], [0.0, 0.1], [0.1, 1.0], [0.1, float("nan")], [[0.1]]])
def test_schedules_that_are_none(betas):
    with pytest.raises(ValueError, match="betas"):
        ShiftedDiffusion(torch.tensor(betas))


def test_times_and_priors_that_are_wrong():
    x = torch.zeros(2, 1, 3, 3)
    for t in (torch.tensor([0.5, 1]), torch.tensor([0, 1000]), torch.tensor([-1, 0]), torch.tensor([1, 2, 3])):
        with pytest.raises(ValueError, match="t must"):
            PROCESS.q_sample(x, t, None, x)
    with pytest.raises(ValueError, match="prior"):
        PROCESS.q_sample(x, torch.tensor([1, 2]), x[..., :2], x)
    with pytest.raises(ValueError, match="schedule"):
        make_schedule("sigmoid")
    with pytest.raises(ValueError, match="prediction_type"):
        predict_x_0(PROCESS, x, torch.tensor([1, 2]), x, None, "score")


@st.composite
def schedules(draw, most=2000):
    "Any schedule: linear, cosine, constant or drawn at random, from one step to two thousand."
    timesteps = draw(st.one_of(st.sampled_from([1, 2, most]), st.integers(1, most)))
    kind = draw(st.sampled_from(["linear", "cosine", "constant", "random"]))
    if kind == "cosine":
        return ShiftedDiffusion(cosine_schedule(timesteps))
    top = min(0.5, 20 / timesteps)  # the signal must not underflow
    if kind == "linear":
        return ShiftedDiffusion(linear_schedule(timesteps, 1e-4, draw(st.floats(1e-3, top))))
    if kind == "constant":  # for short chains abar_T stays far from zero
        return ShiftedDiffusion(torch.full((timesteps,), draw(st.floats(1e-5, top))).double())
    g = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return ShiftedDiffusion(1e-5 + top * torch.rand(timesteps, generator=g, dtype=torch.float64))


@st.composite
def batches(draw, process_of=schedules):
    "A process, x_0, a prior (none, zero, perfect, opposite, any), noise, and times with both ends."
    process, dtype = draw(process_of()), draw(st.sampled_from([torch.float32, torch.float64]))
    shape = (draw(st.integers(1, 4)), *draw(st.lists(st.integers(1, 5), min_size=0, max_size=3)))
    g = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    x_0 = (torch.rand(shape, generator=g, dtype=torch.float64) * 2 - 1).to(dtype)
    f = {"none": None, "zero": torch.zeros_like(x_0), "perfect": x_0, "opposite": -x_0,
         "any": torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)}[
        draw(st.sampled_from(["none", "zero", "perfect", "opposite", "any"]))]
    noise = torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
    last = process.timesteps - 1
    t = torch.tensor([draw(st.sampled_from([0, last, last // 2])) for _ in range(shape[0])])
    return process, x_0, f, noise, t


def closeness(dtype):
    return {"atol": 5e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-11, "rtol": 1e-11}


def earlier(process, x_0, t, f, noise):
    "The marginal one step earlier; x_0 itself before t = 0."
    before = process.q_sample(x_0, (t - 1).clamp(min=0), f, noise)
    return torch.where((t == 0).view(-1, *[1] * (x_0.ndim - 1)), x_0, before)


@given(batches())
@settings(max_examples=80, deadline=None)
def test_one_step_of_the_mean_is_the_marginals_mean(batch):
    "On any schedule, shape, prior and type, at both ends; each row has a time of its own."
    process, x_0, f, noise, t = batch
    zero = torch.zeros_like(x_0)
    after = q_step(process, earlier(process, x_0, t, f, zero), t, f, zero)
    torch.testing.assert_close(after, process.q_sample(x_0, t, f, zero), **closeness(x_0.dtype))
    variance = process.alphas * process.sigmas_prev ** 2 + process.betas
    torch.testing.assert_close(variance, process.sigmas ** 2, atol=1e-12, rtol=1e-9)
    assert after.dtype == x_0.dtype and after.shape == x_0.shape


@given(batches())
@settings(max_examples=80, deadline=None)
def test_the_posterior_keeps_to_the_marginal(batch):
    "Averaged over x_t, mean and variance of q(x_{t-1} | x_t, x_0, f) are those of the marginal at t-1."
    process, x_0, f, noise, t = batch
    x_t = process.q_sample(x_0, t, f, torch.zeros_like(x_0))
    mean, variance = q_posterior(process, x_0, x_t, t, f)
    wanted = earlier(process, x_0, t, f, torch.zeros_like(x_0))
    torch.testing.assert_close(mean, wanted, **closeness(x_0.dtype))
    k = posterior_coefficients(process)
    spread = k.variance + k.x_t ** 2 * process.sigmas ** 2
    torch.testing.assert_close(spread, process.sigmas_prev ** 2, atol=1e-12, rtol=1e-9)
    assert k.variance[0] == 0 and (k.variance >= 0).all() and variance.dtype == x_0.dtype


@given(batches())
@settings(max_examples=80, deadline=None)
def test_without_its_shift_it_is_plain(batch):
    "unshift(x_t) is the process without a prior, and reshift goes back."
    process, x_0, f, noise, t = batch
    x_t = process.q_sample(x_0, t, f, noise)
    y_t = unshift(process, x_t, t, f)
    tolerance = closeness(x_0.dtype)
    torch.testing.assert_close(y_t, process.q_sample(x_0, t, None, noise), **tolerance)
    torch.testing.assert_close(reshift(process, y_t, t, f), x_t, **tolerance)
    unshifted = ShiftedDiffusion(process.betas, shift=False)
    torch.testing.assert_close(unshifted.q_sample(x_0, t, f, noise), y_t, **tolerance)
    ends = reshift(process, y_t, torch.full_like(t, -1), f)
    assert torch.equal(ends, y_t)


@given(schedules(60), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_any_schedule_is_that_of_a_public_ddpm_step_by_step(process, seed):
    "f = 0: the whole chain, there and back, on any schedule."
    public = DDPMScheduler(process.timesteps, trained_betas=process.betas.tolist(), clip_sample=False,
                           prediction_type="sample")
    public.betas, public.alphas = process.betas, process.alphas
    public.alphas_cumprod = process.alphas_cumprod
    g = torch.Generator().manual_seed(seed)
    x = y = torch.randn(2, 1, 3, 2, generator=g).double()
    zero = torch.zeros_like(x)
    for t in reversed(range(process.timesteps)):
        steps = torch.full((2,), t)
        noisy = public.add_noise(torch.cos(x), x, steps)
        torch.testing.assert_close(process.q_sample(torch.cos(x), steps, zero, x), noisy)
        mean, variance = q_posterior(process, torch.cos(x), x, steps, zero)
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(t), dtype=x.dtype)
        x = mean + variance.sqrt() * z if t else mean
        y = public.step(torch.cos(y), t, y, generator=torch.Generator().manual_seed(t)).prev_sample
        # the public one puts a floor of 1e-20 under the variance
        torch.testing.assert_close(x, y, atol=1e-9, rtol=1e-9)


@given(schedules(300), st.data())
@settings(max_examples=40, deadline=None)
def test_the_posterior_is_bayes_rule_on_any_schedule(process, data):
    if process.timesteps == 1:
        return  # the only step back leads to x_0 itself; no density to compare
    t = data.draw(st.integers(1, process.timesteps - 1))
    x_0, x_t, f = (data.draw(st.floats(-1.5, 1.5)) for _ in range(3))
    mean, variance = (v.item() for v in q_posterior(process, col(x_0), col(x_t), torch.tensor([t]), col(f)))
    z = mean + variance ** 0.5 * torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    s_prev, a = process.sigmas_prev[t], process.alphas[t].sqrt()
    log = -(z - process.alphas_cumprod_prev[t].sqrt() * x_0 - s_prev * f) ** 2 / (2 * s_prev ** 2)
    log -= (x_t - a * z - (process.sigmas[t] - a * s_prev) * f) ** 2 / (2 * process.betas[t])
    w = torch.softmax(log, 0)
    found = (w * z).sum()
    assert abs(found.item() - mean) < 1e-6 * variance ** 0.5 + 1e-9
    assert abs((w * (z - found) ** 2).sum().item() / variance - 1) < 1e-6


@pytest.mark.parametrize("timesteps", [1, 2, 2000])
def test_the_shortest_and_the_longest_chain(timesteps):
    process = ShiftedDiffusion(linear_schedule(timesteps))
    x_0, f, noise = torch.ones(1, 2), torch.full((1, 2), 0.5), torch.zeros(1, 2)
    x = x_0
    for t in range(timesteps):
        x = q_step(process, x, torch.tensor([t]), f, noise)
    torch.testing.assert_close(x, process.q_sample(x_0, torch.tensor([timesteps - 1]), f, noise), atol=1e-4, rtol=0)
    mean, variance = q_posterior(process, x_0, x, torch.tensor([0]), f)
    torch.testing.assert_close(mean, x_0)
    assert variance.item() == 0


def test_where_abar_T_is_not_zero_the_start_is_not_the_end():
    "N(f, I) misses the marginal by what is left of the mask; with abar_T near zero by nothing."
    x_0, f, noise = torch.ones(1, 1), torch.full((1, 1), 0.5), torch.zeros(1, 1)
    for process, small in ((PROCESS, True), (ShiftedDiffusion(linear_schedule(50)), False)):
        last = torch.tensor([process.timesteps - 1])
        gap = (process.q_sample(x_0, last, f, noise) - process.prior_sample(f, noise)).abs().item()
        left = process.alphas_cumprod[-1].sqrt().item()
        assert (gap < 0.01) == small and abs(gap - abs(left - 0.5 * (1 - process.sigmas[-1].item()))) < 1e-6


@given(schedules())
@settings(max_examples=40, deadline=None)
def test_betas_from_their_product(process):
    back = betas_from_alphas_cumprod(process.alphas_cumprod)
    torch.testing.assert_close(back, process.betas, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("bar, t", [([0.9, 0.5, 0.6], 2), ([0.9, 0.9], 1), ([1.0, 0.5], 0), ([1.2, 0.5], 0),
                                    ([0.9, 0.0], 1), ([0.9, -0.1], 1), ([0.9, float("nan")], 1)])
def test_a_schedule_that_increases_is_refused(bar, t):
    with pytest.raises(ValueError, match=f"alphas_cumprod must fall.*t = {t}"):
        betas_from_alphas_cumprod(torch.tensor(bar))


@pytest.mark.parametrize("betas, text", [([0.1, -0.05, 0.1], r"decreases; betas\[1\] is -0.05"),
                                         ([0.1, 0.2, 1.5], r"betas\[2\] is 1.5"), ([0.0], r"betas\[0\] is 0")])
def test_a_beta_out_of_range_is_named(betas, text):
    with pytest.raises(ValueError, match=text):
        ShiftedDiffusion(torch.tensor(betas))


def test_every_way_in_refuses_a_wrong_time_and_a_wrong_prior():
    x, t, off = torch.zeros(2, 1, 3, 3), torch.tensor([0, 1]), torch.tensor([0, 1000])
    calls = [lambda t, f: PROCESS.q_sample(x, t, f, x), lambda t, f: q_step(PROCESS, x, t, f, x),
             lambda t, f: q_step_printed(PROCESS, x, t, f, x), lambda t, f: q_posterior(PROCESS, x, x, t, f),
             lambda t, f: unshift(PROCESS, x, t, f), lambda t, f: reshift(PROCESS, x, t, f),
             lambda t, f: predict_x_0(PROCESS, x, t, x, f), lambda t, f: predict_noise(PROCESS, x, t, x, f, "sample")]
    for call in calls:
        with pytest.raises(ValueError, match="t must lie between 0 and 999, not reach from 0 to 1000"):
            call(off, None)
        with pytest.raises(ValueError, match="the prior has shape"):
            call(t, x[:1])
    with pytest.raises(ValueError, match="the prior has shape"):
        PROCESS.prior_sample(x[:1], x)


def test_a_copy_of_a_process_is_a_process_of_its_own():
    x, t = torch.randn(2, 1, 3, 3), torch.tensor([0, 999])
    one = ShiftedDiffusion(linear_schedule())
    wanted = one.q_sample(x, t, x, x), q_posterior(one, x, x, t, x)[0]
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert other.sigmas is not one.sigmas
        assert torch.equal(other.q_sample(x, t, x, x), wanted[0])
        assert torch.equal(q_posterior(other, x, x, t, x)[0], wanted[1])


def test_coefficients_are_moved_once_and_forgotten_with_their_process():
    process = ShiftedDiffusion(linear_schedule(7))
    x, t = torch.zeros(2, 3), torch.tensor([0, 6])
    before, row = len(forward._COPIES), process.sigmas
    for dtype in (torch.float64, torch.float32, torch.float16, torch.float32):
        got = process.coefficient(row, t, x.to(dtype))
        assert got.dtype == dtype and got.shape == (2, 1)
        assert torch.equal(got[:, 0], row[t].to(dtype))
    assert set(forward._COPIES[row]) == {(x.device, torch.float32), (x.device, torch.float16)}
    assert posterior_coefficients(process) is posterior_coefficients(process)
    q_posterior(process, x, x, t)
    dead = weakref.ref(process)
    del process, row, got
    gc.collect()
    assert dead() is None and len(forward._COPIES) == before


def test_a_first_use_without_gradients_does_not_spoil_training():
    process = ShiftedDiffusion(linear_schedule(5))
    x, t = torch.ones(2, 3), torch.tensor([0, 4])
    with torch.inference_mode():
        process.q_sample(x, t, x, x)
        q_posterior(process, x, x, t, x)
    f = torch.ones(2, 3, requires_grad=True)
    (process.q_sample(x, t, f, x).sum() + q_posterior(process, f, x, t, f)[0].sum()).backward()
    assert f.grad.isfinite().all() and f.grad.abs().min() > 0


def test_the_values_of_t_are_looked_at_only_on_the_cpu():
    "On another device a look would wait for its queue; the meta device cannot be looked at at all."
    x, t = torch.zeros(2, 1, 3, device="meta"), torch.tensor([0, 5], device="meta")
    assert PROCESS.q_sample(x, t, x, x).shape == x.shape
    mean, variance = q_posterior(PROCESS, x, x, t, x)
    assert mean.device.type == "meta" and variance.shape == (2, 1, 1)
    for wrong in (t.float(), t[None]):
        with pytest.raises(ValueError, match="t must"):
            PROCESS.q_sample(x, wrong, x, x)


def test_small_types_of_t_count_as_numbers():
    x = torch.zeros(3, 1).double()
    for dtype in (torch.uint8, torch.int16, torch.int32):
        t = torch.tensor([0, 1, 1], dtype=dtype)
        assert torch.equal(PROCESS.coefficient(PROCESS.sigmas, t, x)[:, 0], PROCESS.sigmas[[0, 1, 1]])
