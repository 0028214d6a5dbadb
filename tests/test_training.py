"The loop: one batch overfits, runs resume to the last bit, wrong runs are refused."
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import verdiff.training as training
from verdiff.data import Packed
from verdiff.metrics import dice
from verdiff.model import VerdiffConfig, VerdiffNet
from verdiff.sampling import sample
from verdiff.settings import VerdiffError, load_settings
from verdiff.training import (
    averaged,
    batch_indices,
    learning_rate,
    load_checkpoint,
    random_times,
    soft_dice_loss,
    train,
    training_loss,
    validate,
)

SMOKE = load_settings("smoke")


def films(n=6, size=SMOKE.size):
    g = torch.Generator().manual_seed(0)
    masks = torch.zeros(n, 1, *size, dtype=torch.uint8)
    for i in range(n):
        top = 4 + 5 * i
        masks[i, :, top:top + 20, 8 + i:20 + i] = 1
    images = (masks * 120 + torch.randint(0, 60, masks.shape, generator=g)).to(torch.uint8)
    return Packed(images, masks, [f"{i}.png" for i in range(n)])


def weights(path):
    return (Path(path) / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_one_batch_overfits(kind):
    data = films(2)
    image, mask = data.images.float() / 255, data.masks.float()
    torch.manual_seed(0)
    model = VerdiffNet(channels=(8, 16), height=64, width=32, prediction_type=kind)
    optimizer, g = torch.optim.AdamW(model.parameters(), 5e-3), torch.Generator().manual_seed(0)
    for k in range(240):
        noise = torch.randn(mask.shape, generator=g)
        loss = training_loss(model, image, mask, random_times(2, 1000, g), noise)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - k / 240)
    got = sample(model.eval(), image, steps=2, ensemble=1)
    assert dice(got.samples[0] > 0.5, mask).min() > 0.99
    assert dice(got.prior_prob > 0.5, mask).min() > 0.99


def test_the_loss_is_the_sum_of_its_parts():
    data = films(2)
    image, mask = data.images.float() / 255, data.masks.float()
    model = VerdiffNet(VerdiffConfig.from_settings(SMOKE))
    got = training_loss(model, image, mask, torch.tensor([1, 40]), torch.randn(mask.shape), 0.3, 0.7)
    torch.testing.assert_close(got["total"], got["mse"] + 0.3 * got["bce"] + 0.7 * got["dice"])
    assert got["mse"].item() == pytest.approx(1)  # the output starts at zero, the mask is plus or minus one
    sure = 40 * (2 * mask - 1)
    assert soft_dice_loss(sure, mask) < 1e-3 < 0.9 < soft_dice_loss(-sure, mask)


@given(st.integers(1, 40), st.integers(1, 17), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_every_epoch_sees_every_image_once(n, size, seed):
    stream = torch.cat([batch_indices(n, size, b, seed) for b in range(-(-3 * n // size))])
    for epoch in stream[:3 * n].view(3, n):
        assert sorted(epoch.tolist()) == list(range(n))


def test_times_are_uniform():
    g = torch.Generator().manual_seed(0)
    count = torch.bincount(torch.cat([random_times(4, 10, g) for _ in range(5000)]), minlength=10)
    assert count.min() > 0.93 * 2000 and count.max() < 1.07 * 2000


def test_the_learning_rate():
    s = load_settings("smoke", ["max_steps=100", "warmup_steps=10", "learning_rate=1.0"])
    rates = [learning_rate(s, k) for k in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1 and rates[100] < 1e-12
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    flat = load_settings("smoke", ["lr_schedule=constant", "warmup_steps=0"])
    assert learning_rate(flat, 3) == flat.learning_rate


def test_the_average_follows():
    net = torch.nn.Linear(2, 2)
    average = averaged(net, 0.9)
    for _ in range(200):
        average.update_parameters(net)
    torch.testing.assert_close(average.module.weight, net.weight)
    off = averaged(net, 0.0)
    off.update_parameters(net)
    with torch.no_grad():
        net.weight.add_(1)
    off.update_parameters(net)
    assert torch.equal(off.module.weight, net.weight)


@pytest.mark.parametrize("overrides", [[], ["norm=batch", "ema_decay=0"], ["accumulate=2"],
                                       ["mixed_precision=bf16"], ["detach_prior=false"]])
def test_an_interrupted_run_ends_in_the_same_weights(tmp_path, monkeypatch, overrides):
    s, data = load_settings("smoke", overrides), films()
    train(s, data, data.subset([0, 1]), tmp_path / "a", progress=False)
    loss, calls = training.training_loss, []

    def stop(*args, **kw):
        calls.append(1)
        if len(calls) == 3 * s.accumulate:
            raise KeyboardInterrupt
        return loss(*args, **kw)

    monkeypatch.setattr(training, "training_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        train(s, data, data.subset([0, 1]), tmp_path / "b", progress=False)
    monkeypatch.undo()
    train(s, data, data.subset([0, 1]), tmp_path / "b", progress=False)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    histories = [json.loads((tmp_path / r / "history.json").read_text()) for r in "ab"]
    assert histories[0] == histories[1]


def test_a_second_run_changes_nothing_and_fresh_starts_over(tmp_path):
    data = films()
    train(SMOKE, data, None, tmp_path, progress=False)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    train(SMOKE, data, None, tmp_path, progress=False)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    train(SMOKE, data, None, tmp_path, resume=False, progress=False)
    assert weights(tmp_path) == before[tmp_path / "model" / "model.safetensors"]


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, monkeypatch):
    loss = training.training_loss

    def broken(*args, **kw):
        return {**loss(*args, **kw), "total": torch.tensor(float("nan"))}

    monkeypatch.setattr(training, "training_loss", broken)
    with pytest.raises(VerdiffError, match="step 1 .*png.*learning_rate"):
        train(SMOKE, films(), None, tmp_path, progress=False)


def test_other_settings_and_other_images_are_refused(tmp_path):
    data = films()
    train(SMOKE, data, None, tmp_path, progress=False)
    with pytest.raises(VerdiffError, match="seed .there 35, here 1"):
        train(load_settings("smoke", ["seed=1"]), data, None, tmp_path, progress=False)
    with pytest.raises(VerdiffError, match="other images"):
        train(SMOKE, data.subset([1, 2, 3]), None, tmp_path, progress=False)
    with pytest.raises(VerdiffError, match="no image"):
        train(SMOKE, data.subset([]), None, tmp_path / "x", progress=False)


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    s = load_settings("smoke", ["max_steps=6", "checkpoint_every=1", "keep_checkpoints=2"])
    train(s, films(), None, tmp_path, progress=False)
    assert [p.name for p in sorted(tmp_path.glob("*.pt"))] == ["checkpoint-000005.pt", "checkpoint-000006.pt"]
    assert load_checkpoint(tmp_path / "nothing", s, "") is None


def test_validation_leaves_the_mode_alone():
    model = VerdiffNet(VerdiffConfig.from_settings(SMOKE)).train()
    got = validate(model, films(3), steps=2, batch_size=2)
    assert model.training and set(got) == {"prior_dice", "diffusion_dice"} and 0 <= got["prior_dice"] <= 1


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_real_ctrl_c_saves_and_goes_on(tmp_path):
    command = [sys.executable, "-m", "verdiff.training", "--data", "phantom", "--profile", "smoke", "--out",
               str(tmp_path / "run"), "--set", "max_steps=100000", "--set", "checkpoint_every=50000",
               "--set", "validate_every=50000"]
    env = dict(os.environ, OMP_NUM_THREADS="1")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, cwd=tmp_path)
    deadline = time.time() + 60
    while not (tmp_path / "run" / "tensorboard").exists() and time.time() < deadline:
        time.sleep(0.2)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "goes on from there" in err and "Traceback" not in err
    assert len(list((tmp_path / "run").glob("checkpoint-*.pt"))) == 1
