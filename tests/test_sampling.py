"Samplers: a perfect predictor comes home; parity with the public ones; seeded ensembles."
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from verdiff.forward import ShiftedDiffusion, cosine_schedule, linear_schedule
from verdiff.model import VerdiffNet
from verdiff.posterior import training_target, unshift
from verdiff.sampling import (
    SegmentationSamples,
    ddim_sample,
    ddpm_sample,
    dpm_solver_sample,
    randn,
    sample,
    timestep_sequence,
)

PROCESS = ShiftedDiffusion(linear_schedule())
SHORT = ShiftedDiffusion(cosine_schedule(50))


def seeded(seed):
    return randn(torch.Generator().manual_seed(seed))


def oracle(process, x_0, f, kind):
    "A network that knows x_0 and answers in its own language."
    def predict(x, t):
        root, s = (process.coefficient(v, t, x) for v in (process.alphas_cumprod.sqrt(), process.sigmas))
        eps = (unshift(process, x, t, f) - root * x_0) / s
        return training_target(process, x_0, t, eps, kind)
    return predict


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("how", ["ddpm", "ddim 1", "ddim 2", "ddim 10", "ddim 10 eta", "dpm 1", "dpm 2", "dpm 10"])
@pytest.mark.parametrize("process", [PROCESS, SHORT], ids=["linear", "cosine"])
def test_a_perfect_predictor_comes_home_from_the_prior(process, how, kind):
    g = torch.Generator().manual_seed(1)
    x_0 = torch.randn(2, 1, 6, 4, generator=g).double().sign()
    f = torch.rand(2, 1, 6, 4, generator=g).double() * 2 - 1
    x_T = process.prior_sample(f, seeded(2)(f))
    words = how.split()
    predict = oracle(process, x_0, f, kind)
    if words[0] == "ddpm":
        got = ddpm_sample(process, predict, x_T, f, kind, seeded(3))
    elif words[0] == "ddim":
        got = ddim_sample(process, predict, x_T, f, kind, int(words[1]), float(len(words) > 2), seeded(3))
    else:
        got = dpm_solver_sample(process, predict, x_T, f, kind, int(words[1]))
    torch.testing.assert_close(got, x_0, atol=1e-6, rtol=0)


@given(st.integers(1, 1000), st.integers(1, 1000))
@settings(max_examples=200, deadline=None)
def test_times_fall_from_the_last_and_never_repeat(timesteps, steps):
    if steps > timesteps:
        with pytest.raises(ValueError, match="steps"):
            timestep_sequence(timesteps, steps)
        return
    times = timestep_sequence(timesteps, steps)
    assert len(times) == steps and times[0] == timesteps - 1 and times[-1] >= 0
    assert all(a > b for a, b in zip(times, times[1:], strict=False))


@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
def test_ddim_without_a_prior_is_the_public_one(steps):
    public = DDIMScheduler(beta_schedule="linear", prediction_type="epsilon", clip_sample=False,
                           timestep_spacing="trailing", set_alpha_to_one=True)
    public.alphas_cumprod = PROCESS.alphas_cumprod
    public.set_timesteps(steps)
    x = x_T = seeded(0)(torch.zeros(2, 1, 4, 3).double())
    for t in public.timesteps:
        x = public.step(torch.sin(x), t, x).prev_sample
    ours = ddim_sample(PROCESS, lambda x, t: torch.sin(x), x_T, None, "epsilon", steps, clip=False)
    torch.testing.assert_close(ours, x, atol=1e-6, rtol=1e-6)


def test_eta_one_with_all_steps_is_ancestral():
    x_T, f = (seeded(s)(torch.zeros(2, 1, 4, 3).double()) for s in (0, 1))
    a = ddpm_sample(SHORT, lambda x, t: torch.tanh(x), x_T, f, noise=seeded(5))
    b = ddim_sample(SHORT, lambda x, t: torch.tanh(x), x_T, f, steps=50, eta=1.0, noise=seeded(5))
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = VerdiffNet(channels=(8, 16), height=32, width=16, timesteps=40).eval()
    torch.nn.init.normal_(net.diffusion.out[-1].weight, std=0.3)
    return net


@pytest.mark.parametrize("sampler", ["ddim", "dpm", "ddpm"])
def test_an_ensemble_does_not_depend_on_its_batch(model, sampler):
    image = torch.rand(4, 1, 32, 16, generator=torch.Generator().manual_seed(0))
    whole = sample(model, image, 4, 3, 7, sampler)
    one = sample(model, image[3:], 4, 3, 7, sampler, first_index=3)
    few = sample(model, image, 4, 2, 7, sampler, batch_size=3)
    torch.testing.assert_close(whole.samples[:, 3:], one.samples, atol=1e-3, rtol=0)
    torch.testing.assert_close(whole.samples[:2], few.samples, atol=1e-3, rtol=0)
    assert not torch.allclose(whole.samples, sample(model, image, 4, 3, 8, sampler).samples, atol=1e-3)
    assert (whole.samples[0] - whole.samples[1]).abs().max() > 1e-3


def test_mean_vote_and_doubt():
    s = SegmentationSamples(torch.zeros(1, 1, 1, 2), torch.tensor([[0.0, 0.4], [1.0, 0.6]]).view(2, 1, 1, 1, 2))
    torch.testing.assert_close(s.mean.flatten(), torch.tensor([0.5, 0.5]))
    assert s.vote.flatten().tolist() == [0.5, 0.5]
    torch.testing.assert_close(s.std.flatten(), torch.tensor([0.5, 0.1]))


def test_a_sampler_that_does_not_exist(model):
    with pytest.raises(ValueError, match="ddim"):
        sample(model, torch.rand(1, 1, 32, 16), sampler="euler")


@pytest.mark.parametrize("solver, order", [(ddim_sample, 1), (dpm_solver_sample, 2)])
def test_errors_fall_at_the_promised_order(solver, order):
    "Against the analytic end of the deterministic road for a Gaussian x_0 and a prior in the mean."
    process, m, c = ShiftedDiffusion(linear_schedule(2000, 5e-5, 0.01)), 0.3, 0.7
    f = torch.full((1, 1), 0.8).double()

    def best(x, t):
        y = unshift(process, x, t, f)
        r, s = (process.coefficient(v, t, y) for v in (process.alphas_cumprod.sqrt(), process.sigmas))
        return m + c ** 2 * r * (y - r * m) / (c ** 2 * r ** 2 + s ** 2)

    x_T = process.prior_sample(f, torch.full((1, 1), 1.3).double())
    y, r, s = x_T - process.sigmas[-1] * f, process.alphas_cumprod.sqrt()[-1], process.sigmas[-1]
    goal = m + c * (y - r * m) / (r ** 2 * c ** 2 + s ** 2).sqrt()
    error = [(solver(process, best, x_T, f, steps=n, clip=False) - goal).abs().log2().item() for n in (5, 320)]
    assert abs((error[0] - error[1]) / 6 - order) < 0.15


@pytest.mark.parametrize("timesteps", [1, 2, 7])
def test_the_shortest_chains(timesteps):
    process = ShiftedDiffusion(linear_schedule(timesteps, 0.1, 0.4))
    x_0, f = torch.ones(2, 1, 3, 3), torch.full((2, 1, 3, 3), 0.5)
    x_T = process.prior_sample(f, seeded(0)(f))
    for got in (ddpm_sample(process, lambda x, t: x_0, x_T, f, noise=seeded(1)),
                ddim_sample(process, lambda x, t: x_0, x_T, f, steps=timesteps),
                dpm_solver_sample(process, lambda x, t: x_0, x_T, f, steps=1)):
        torch.testing.assert_close(got, x_0)
