"Weights between two networks: the ends are the two, and the choice is the largest share that costs nothing."
import pytest
import torch

from verdiff.networks.model import VerdiffNet

SMALL = dict(channels=(8, 16), height=48, width=16)


@pytest.fixture
def bench(script):
    return script("average")


def networks():
    for seed in (0, 1):
        torch.manual_seed(seed)
        yield VerdiffNet(**SMALL).eval()


def test_the_ends_are_the_two_networks(bench):
    first, second = networks()
    for share, net in ((0.0, first), (1.0, second)):
        mixed = bench.average(first, second, share).state_dict()
        assert all(torch.equal(v, mixed[k]) for k, v in net.state_dict().items())
    half = bench.average(first, second, 0.5).state_dict()
    a, b = first.state_dict(), second.state_dict()
    assert all(torch.allclose(half[k], (a[k] + b[k]) / 2) for k in a if a[k].is_floating_point())


def test_networks_of_two_kinds_are_refused(bench):
    first, _ = networks()
    with pytest.raises(ValueError, match="kind"):
        bench.average(first, VerdiffNet(**SMALL | {"msfm": False}), 0.5)


@pytest.mark.parametrize("lost, chosen", [(0.0, "0.5"), (0.1, "0.3")])
def test_the_largest_share_that_costs_nothing(bench, lost, chosen):
    def scored(minus):
        dice = [0.8 + 0.01 * k - minus for k in range(10)]
        return {"conditions": {"clean": {"dice": dice, "lumbar": [[0.9] * 5] * 10}}}

    models = {"0": scored(0), "0.3": scored(0), "0.5": scored(lost), "1": scored(0.2)}
    assert bench.choose(models) == chosen
