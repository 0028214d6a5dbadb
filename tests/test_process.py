"Forward process and posterior: exact identities."
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from verdiff.forward import ShiftedDiffusion, cosine_schedule, linear_schedule, make_schedule
from verdiff.posterior import (
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
        x = process.q_step(x, torch.tensor([t]), f, zero)
        torch.testing.assert_close(x, process.q_sample(x_0, torch.tensor([t]), f, zero), atol=1e-12, rtol=0)


def test_steps_give_the_marginal_in_distribution():
    n, g = 40_000, torch.Generator().manual_seed(0)
    x, f = torch.full((n,), -1.0).double(), torch.full((n,), 0.8).double()
    for t in range(SMALL.timesteps):
        x = SMALL.q_step(x, torch.tensor([t]), f, torch.randn(n, generator=g).double())
        s = SMALL.sigmas[t].item()
        wanted = -SMALL.alphas_cumprod[t].sqrt().item() + 0.8 * s
        assert abs(x.mean().item() - wanted) < 4.5 * s / n ** 0.5
        assert abs(x.var().item() - s ** 2) < 4.5 * s ** 2 * (2 / n) ** 0.5


def test_the_printed_step_drifts_to_fifteen_priors():
    x, one = torch.zeros(1).double(), torch.ones(1).double()
    for t in range(1000):
        x = PROCESS.q_step_printed(x, torch.tensor([t]), one, 0 * one)
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
def schedules(draw):
    "Any schedule: linear, cosine or drawn at random, from one step to two thousand."
    timesteps = draw(st.sampled_from([1, 2, 3, 10, 100, 1000, 2000]))
    kind = draw(st.sampled_from(["linear", "cosine", "random"]))
    if kind == "cosine":
        return ShiftedDiffusion(cosine_schedule(timesteps))
    if kind == "linear":
        return ShiftedDiffusion(linear_schedule(timesteps, 1e-4, draw(st.floats(1e-3, 0.5))))
    g = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    top = min(0.5, 20 / timesteps)  # the signal must not underflow
    return ShiftedDiffusion(1e-5 + top * torch.rand(timesteps, generator=g, dtype=torch.float64))


@given(schedules(), st.sampled_from([torch.float32, torch.float64]), st.booleans(), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_one_step_of_the_mean_on_any_schedule(process, dtype, plain, seed):
    "q_step of the marginal's mean at t-1 is the marginal's mean at t, at both ends of every schedule."
    g = torch.Generator().manual_seed(seed)
    x_0, f = (torch.rand(1, 2, 3, generator=g, dtype=torch.float64).to(dtype) * 2 - 1 for _ in range(2))
    f = None if plain else f
    zero = torch.zeros_like(x_0)
    for t in {0, process.timesteps // 2, process.timesteps - 1}:
        before = x_0 if t == 0 else process.q_sample(x_0, torch.tensor([t - 1]), f, zero)
        after = process.q_step(before, torch.tensor([t]), f, zero)
        torch.testing.assert_close(after, process.q_sample(x_0, torch.tensor([t]), f, zero), atol=2e-6, rtol=1e-5)
        assert after.dtype == dtype


@given(schedules(), st.booleans(), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_posterior_keeps_to_the_marginal_on_any_schedule(process, plain, seed):
    "Mean and variance of q(x_{t-1} | x_t, x_0) averaged over x_t are those of the marginal at t-1."
    g = torch.Generator().manual_seed(seed)
    x_0, f = (torch.randn(1, 4, generator=g, dtype=torch.float64) for _ in range(2))
    f = None if plain else f
    zero = torch.zeros_like(x_0)
    k = posterior_coefficients(process)
    for t in {0, process.timesteps // 2, process.timesteps - 1}:
        x_t = process.q_sample(x_0, torch.tensor([t]), f, zero)
        mean, variance = q_posterior(process, x_0, x_t, torch.tensor([t]), f)
        wanted = x_0 if t == 0 else process.q_sample(x_0, torch.tensor([t - 1]), f, zero)
        torch.testing.assert_close(mean, wanted, atol=1e-9, rtol=1e-9)
        spread = variance.item() + k.x_t[t].item() ** 2 * (1 - process.alphas_cumprod[t].item())
        assert abs(spread - (1 - process.alphas_cumprod_prev[t].item())) < 1e-9


def test_times_that_increase_are_no_schedule():
    with pytest.raises(ValueError, match="decrease"):
        ShiftedDiffusion(torch.tensor([0.1, -0.05, 0.1]))  # a negative beta: the signal would grow
