"Samplers: a perfect predictor comes home; parity with the public ones; seeded ensembles."
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from verdiff.diffusion.forward import ShiftedDiffusion, cosine_schedule, linear_schedule
from verdiff.diffusion.posterior import training_target, unshift
from verdiff.diffusion.sampling import (
    SegmentationSamples,
    ddim_sample,
    ddpm_sample,
    dpm_solver_sample,
    in_batches,
    randn,
    sample,
    timestep_sequence,
)
from verdiff.files import VerdiffError
from verdiff.networks.model import VerdiffNet

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


@pytest.mark.parametrize("mean, sd", [(0.3, 0.7), (0.0, 0.5)])
@pytest.mark.parametrize("solver, order", [(ddim_sample, 1), (dpm_solver_sample, 2)])
def test_errors_fall_at_the_promised_order(solver, order, mean, sd):
    "Against the analytic road for a Gaussian x_0 and a prior in the mean, at a time that all visit."
    process, at = ShiftedDiffusion(linear_schedule(5120, 0.1 / 5120, 20 / 5120)), 1023
    root, var = process.alphas_cumprod.sqrt(), process.alphas_cumprod * sd ** 2 + process.sigmas ** 2
    f = torch.full((8, 1), 0.8).double()

    def best(x, t):
        i = int(t[0])
        return mean + sd ** 2 * root[i] / var[i] * (unshift(process, x, t, f) - root[i] * mean)

    x_T = process.prior_sample(f, seeded(0)(f))
    quantile = (x_T - process.sigmas[-1] * f - root[-1] * mean) / var[-1].sqrt()
    goal = root[at] * mean + var[at].sqrt() * quantile + process.sigmas[at] * f
    errors = []
    for steps in (40, 80, 160, 320):
        seen = {}
        solver(process, best, x_T, f, steps=steps, clip=False, callback=lambda i, x, _, seen=seen: seen.update({i: x}))
        errors.append((seen[at] - goal).square().mean().sqrt())
    slopes = -torch.stack(errors).log2().diff()
    assert (slopes - order).abs().max() < 0.12, slopes  # each halving, not only the whole


@pytest.mark.parametrize("timesteps", [1, 2, 7])
def test_the_shortest_chains(timesteps):
    process = ShiftedDiffusion(linear_schedule(timesteps, 0.1, 0.4))
    x_0, f = torch.ones(2, 1, 3, 3), torch.full((2, 1, 3, 3), 0.5)
    x_T = process.prior_sample(f, seeded(0)(f))
    for got in (ddpm_sample(process, lambda x, t: x_0, x_T, f, noise=seeded(1)),
                ddim_sample(process, lambda x, t: x_0, x_T, f, steps=timesteps),
                dpm_solver_sample(process, lambda x, t: x_0, x_T, f, steps=1)):
        torch.testing.assert_close(got, x_0)


class Cramped(VerdiffNet):
    "A network on a GPU with room for a few rows only."

    room, seen, conditioned = 4, (), 0

    def condition(self, image):
        self.conditioned += len(image)
        return super().condition(image)

    def denoise(self, x_t, t, conditioning):
        self.seen += (len(x_t),)
        if len(x_t) > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return super().denoise(x_t, t, conditioning)


@pytest.fixture
def cramped(model):
    net = Cramped(model.config).eval()
    net.load_state_dict(model.state_dict())
    return net


@pytest.mark.parametrize("sampler", ["ddim", "dpm", "ddpm"])
@pytest.mark.parametrize("room", [1, 3, 4, 100])
def test_short_of_memory_the_batch_is_halved_and_the_result_stays(model, cramped, sampler, room):
    image = torch.rand(3, 1, 32, 16, generator=torch.Generator().manual_seed(0))
    cramped.room = room
    whole, got = (sample(net, image, 4, 4, 7, sampler) for net in (model, cramped))
    torch.testing.assert_close(got.samples, whole.samples, atol=1e-3, rtol=0)
    fitting = [n for n in cramped.seen if n <= room]
    assert sum(fitting) == 12 * 4  # no row was computed twice once it fitted, none left out
    assert cramped.conditioned == 3  # each image was looked at once
    if room < 12:
        assert cramped.seen[0] == 12 and max(fitting) == {1: 1, 3: 3, 4: 3}[room]


def test_short_of_memory_the_images_too_are_looked_at_in_parts(model):
    image = torch.rand(5, 1, 32, 16, generator=torch.Generator().manual_seed(0))
    whole, seen = sample(model, image, 2, 1), []

    class Narrow(type(model)):
        def condition(self, image):
            seen.append(len(image))
            if len(image) > 2:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return super().condition(image)

    narrow = Narrow(model.config).eval()
    narrow.load_state_dict(model.state_dict())
    got = sample(narrow, image, 2, 1)
    assert sum(n for n in seen if n <= 2) == 5 and max(seen) == 5
    torch.testing.assert_close(got.samples, whole.samples, atol=1e-3, rtol=0)
    torch.testing.assert_close(got.prior_prob, whole.prior_prob, atol=1e-4, rtol=0)


def test_without_room_for_one_row_it_says_so(cramped):
    cramped.room = 0
    with pytest.raises(VerdiffError, match="does not hold even one sample"):
        sample(cramped, torch.rand(1, 1, 32, 16), 2, 2)


@given(st.integers(1, 40), st.integers(1, 40), st.one_of(st.none(), st.integers(1, 50)))
@settings(max_examples=100, deadline=None)
def test_in_batches_gives_every_row_once(rows, room, batch_size):
    tried = []

    def run(first, end):
        tried.append(end - first)
        if end - first > room:
            raise torch.cuda.OutOfMemoryError
        return torch.arange(first, end)

    assert torch.equal(in_batches(run, rows, batch_size), torch.arange(rows))
    assert max(tried) <= (batch_size or rows) and sum(n for n in tried if n <= room) == rows


def test_other_errors_pass_through(cramped):
    def run(first, end):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        in_batches(run, 4)


def test_the_same_seed_gives_the_same_samples_bit_for_bit(model):
    image = torch.rand(2, 1, 32, 16, generator=torch.Generator().manual_seed(0))
    for sampler in ("ddim", "dpm", "ddpm"):
        one, two = (sample(model, image, 3, 2, 5, sampler) for _ in range(2))
        assert torch.equal(one.samples, two.samples) and torch.equal(one.prior_prob, two.prior_prob)
