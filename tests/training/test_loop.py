"The lesson's loop: the same weights as the run that survives, for the same settings."
import pytest
import torch

from verdiff.data.packed import Packed
from verdiff.networks.config import VerdiffConfig
from verdiff.networks.model import VerdiffNet
from verdiff.settings import load_settings
from verdiff.training.loop import make_accelerator, make_optimizer, take_step, train_loop
from verdiff.training.run import train

SMOKE = load_settings("smoke")


def films(n=6, size=SMOKE.size):
    g = torch.Generator().manual_seed(0)
    masks = (torch.rand(n, 1, *size, generator=g) > 0.7).to(torch.uint8)
    images = masks * 120 + torch.randint(0, 60, masks.shape, generator=g).to(torch.uint8)
    return Packed(images, masks, [f"{i}.png" for i in range(n)])


def network(settings):
    torch.manual_seed(settings.seed)
    return VerdiffNet(VerdiffConfig.from_settings(settings))


@pytest.mark.parametrize("overrides", [[], ["accumulate=2"], ["mixed_precision=bf16"], ["norm=batch", "ema_decay=0"],
                                       ["recycle=0.5"], ["grad_clip=0", "optimizer=adam", "lr_schedule=constant"]])
def test_the_same_weights_as_the_run_that_survives(tmp_path, overrides):
    s, data = load_settings("smoke", overrides), films()
    ours = train_loop(network(s), data, s).state_dict()
    theirs = train(s, data, None, tmp_path, progress=False).state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items())
    start = network(s).state_dict()
    assert any(not torch.equal(v, start[k]) for k, v in ours.items())


def test_it_looks_now_and_then_at_the_average():
    s, seen = load_settings("smoke", ["max_steps=5", "validate_every=2"]), []

    def look(model, step):
        seen.append((step, model, model.training, any(p.requires_grad for p in model.parameters())))

    model = network(s).eval()
    average = train_loop(model, films(), s, look)
    assert [step for step, *_ in seen] == [2, 4] and all(m is average for _, m, *_ in seen)
    assert not any(training or grads for *_, training, grads in seen) and model.training


class Quadratic(torch.nn.Module):
    "A loss whose gradient is the batch: total = weight * x."

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return {"total": self.weight * x, "part": x}


def test_an_accumulated_step_is_the_mean_of_its_batches():
    s = load_settings("smoke", ["accumulate=4", "grad_clip=0", "optimizer=adam", "weight_decay=0"])
    net = Quadratic()
    seen = []
    optimizer = make_optimizer(net, s)
    optimizer.register_step_pre_hook(lambda *_: seen.append(net.weight.grad.item()))
    stream = iter([[torch.tensor(float(x))] for x in (1, 2, 3, 6, 99)])
    losses = take_step(net, optimizer, stream, s, 0, make_accelerator(s))
    assert seen == [3.0] and losses.tolist() == [0.0, 3.0]
    assert net.weight.grad is None and len(list(stream)) == 1


@pytest.mark.parametrize("norm, wanted", [(0.5, 0.5), (0.0, 8.0)])
def test_a_gradient_is_clipped_to_the_norm_or_not_at_all(norm, wanted):
    s, net, seen = load_settings("smoke", [f"grad_clip={norm}"]), Quadratic(), []
    optimizer = make_optimizer(net, s)
    optimizer.register_step_pre_hook(lambda *_: seen.append(net.weight.grad.item()))
    take_step(net, optimizer, iter([[torch.tensor(8.0)]]), s, 0, make_accelerator(s))
    assert seen == [pytest.approx(wanted, rel=1e-4)]


def test_a_gradient_that_is_no_number_makes_the_losses_none():
    net = Quadratic()
    s = load_settings("smoke")
    losses = take_step(net, make_optimizer(net, s), iter([[torch.tensor(float("inf"))]]), s, 0, make_accelerator(s))
    assert losses.isnan()[0]


def test_each_run_gets_its_own_precision():
    for word in ("bf16", "no", "bf16"):
        assert make_accelerator(load_settings("smoke", [f"mixed_precision={word}"])).mixed_precision == word
