"The loop: one batch overfits, runs resume to the last bit, wrong runs are refused."
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verdiff.data.datasets import must_stream, training_data
from verdiff.data.packed import Packed, Streamed
from verdiff.diffusion.sampling import sample
from verdiff.files import VerdiffError
from verdiff.metrics import dice
from verdiff.networks.config import VerdiffConfig
from verdiff.networks.model import VerdiffNet
from verdiff.settings import load_settings
from verdiff.training.batches import (
    augment_batch,
    batch_indices,
    batches,
    pixel_batches,
    prefetch,
    random_times,
)
from verdiff.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from verdiff.training.loop import ema_update, learning_rate
from verdiff.training.loss import soft_dice_loss, training_loss
from verdiff.training.run import keep_best, prepare, restore, snapshot, train, validate

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
    net, average = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    start, weight = average.weight.clone(), net.weight.clone()
    ema_update(average, net, 0.9, 0)
    torch.testing.assert_close(average.weight, 0.1 * start + 0.9 * weight)  # forgets fast at first
    for k in range(1, 200):
        ema_update(average, net, 0.9, k)
    torch.testing.assert_close(average.weight, weight)
    before = average.weight.clone()
    with torch.no_grad():
        net.weight.add_(1)
    ema_update(average, net, 0.9, 10_000)
    torch.testing.assert_close(average.weight, before + 0.1)
    ema_update(average, net, 0.0, 5)
    assert torch.equal(average.weight, net.weight)


def test_the_average_copies_what_counts():
    net, average = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    net(torch.randn(8, 3))
    ema_update(average, net, 0.5, 100)
    assert average.num_batches_tracked == 1
    torch.testing.assert_close(average.running_mean, 0.5 * net.running_mean)


@pytest.mark.parametrize("overrides", [[], ["norm=batch", "ema_decay=0"], ["accumulate=2"],
                                       ["mixed_precision=bf16"], ["detach_prior=false"]])
def test_an_interrupted_run_ends_in_the_same_weights(tmp_path, monkeypatch, overrides):
    s, data = load_settings("smoke", overrides), films()
    train(s, data, data.subset([0, 1]), tmp_path / "a", progress=False)
    loss, calls = training_loss, []

    def stop(*args, **kw):
        calls.append(1)
        if len(calls) == 3 * s.accumulate:
            raise KeyboardInterrupt
        return loss(*args, **kw)

    monkeypatch.setattr("verdiff.training.loss.training_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        train(s, data, data.subset([0, 1]), tmp_path / "b", progress=False)
    monkeypatch.undo()
    train(s, data, data.subset([0, 1]), tmp_path / "b", progress=False)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    histories = [json.loads((tmp_path / r / "history.json").read_text()) for r in "ab"]
    for entry in histories[0] + histories[1]:
        entry.pop("cpu_hours", None)  # the only thing in it that a clock decides
    assert histories[0] == histories[1]


def test_a_second_run_changes_nothing_and_fresh_starts_over(tmp_path):
    data = films()
    train(SMOKE, data, None, tmp_path, progress=False)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    train(SMOKE, data, None, tmp_path, progress=False)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    train(SMOKE, data, None, tmp_path, resume=False, progress=False)
    assert weights(tmp_path) == before[tmp_path / "model" / "model.safetensors"]


@pytest.mark.parametrize("lost", ["model", "model/model.safetensors", "model/config.json"])
def test_a_finished_run_that_lost_its_model_gives_one_again(tmp_path, lost, capsys):
    train(SMOKE, films(), None, tmp_path, progress=False)
    before, path = weights(tmp_path), tmp_path / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    train(SMOKE, films(), None, tmp_path, progress=False)
    assert weights(tmp_path) == before and "model is not complete" in capsys.readouterr().out


def test_names_that_are_no_utf_8(tmp_path):
    data = films()
    data.names[0] = "r\udcf6ntgen.png"
    train(SMOKE, data, None, tmp_path, progress=False)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, monkeypatch):
    loss = training_loss

    def broken(*args, **kw):
        losses = loss(*args, **kw)
        return {**losses, "total": losses["total"] * float("nan")}

    monkeypatch.setattr("verdiff.training.loss.training_loss", broken)
    with pytest.raises(VerdiffError, match="step 1 .*png.*learning_rate"):
        train(SMOKE, films(), None, tmp_path, progress=False)


def test_a_gradient_that_is_no_number_is_not_saved(tmp_path, monkeypatch):
    loss, calls, data = training_loss, [], films()

    def broken(net, *args, **kw):
        calls.append(1)
        losses = loss(net, *args, **kw)
        spoil = (next(net.parameters()) * 0).abs().sqrt().sum() if len(calls) == 3 else 0  # 0, with slope nan
        return {**losses, "total": losses["total"] + spoil}

    monkeypatch.setattr("verdiff.training.loss.training_loss", broken)
    with pytest.raises(VerdiffError, match="gradient is nan at step 3 .*the last checkpoint is checkpoint-000002.pt"):
        train(SMOKE, data, None, tmp_path, progress=False)
    monkeypatch.undo()
    assert all(v.isfinite().all() for v in train(SMOKE, data, None, tmp_path, progress=False).state_dict().values())


def test_films_of_another_size_are_refused(tmp_path):
    with pytest.raises(VerdiffError, match="the images are .* and the settings say"):
        train(replace(SMOKE, height=SMOKE.height + 32), films(), None, tmp_path, progress=False)


def test_a_bad_step_is_named_with_its_files_and_the_last_good_checkpoint(tmp_path, monkeypatch):
    loss, calls, data = training_loss, [], films()

    def broken(*args, **kw):
        calls.append(1)
        return {n: v * (float("inf") if len(calls) == 3 else 1) for n, v in loss(*args, **kw).items()}

    monkeypatch.setattr("verdiff.training.loss.training_loss", broken)
    with pytest.raises(VerdiffError, match="inf at step 3 .*the last checkpoint is checkpoint-000002.pt") as error:
        train(SMOKE, data, data.subset([0]), tmp_path, progress=False)
    names = [data.names[i] for i in batch_indices(6, SMOKE.batch_size, 2, SMOKE.seed)]
    assert f"(images {', '.join(names)})" in str(error.value)
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-000002.pt"]
    monkeypatch.undo()
    train(SMOKE, data, data.subset([0]), tmp_path, progress=False)
    train(SMOKE, data, data.subset([0]), tmp_path / "calm", progress=False)
    assert weights(tmp_path) == weights(tmp_path / "calm")


def test_other_settings_and_other_images_are_refused(tmp_path):
    data = films()
    train(SMOKE, data, None, tmp_path, progress=False)
    with pytest.raises(VerdiffError, match="seed .there 35, here 1"):
        train(load_settings("smoke", ["seed=1"]), data, None, tmp_path, progress=False)
    with pytest.raises(VerdiffError, match="other images"):
        train(SMOKE, data.subset([1, 2, 3]), None, tmp_path, progress=False)
    with pytest.raises(VerdiffError, match="no image"):
        train(SMOKE, data.subset([]), None, tmp_path / "x", progress=False)


def test_a_setting_that_this_version_does_not_know_is_another_run(tmp_path):
    "A checkpoint of a newer verdiff: what the key did cannot be gone on with."
    state = {"step": 2, "settings": SMOKE.to_dict() | {"a_newer_key": 1.0}, "data": "x", "processes": 1}
    save_checkpoint(tmp_path, state)
    with pytest.raises(VerdiffError, match="a_newer_key .there 1.0, here None"):
        load_checkpoint(tmp_path, SMOKE, "x")


@pytest.mark.parametrize("what", ["images", "masks"])
def test_changed_pixels_are_another_run(tmp_path, what):
    "Somebody corrects labels and trains again: the old weights must not pass for new ones."
    data = films()
    train(SMOKE, data, None, tmp_path, progress=False)
    other = films()
    getattr(other, what)[3, 0, 7, 7] ^= 1
    with pytest.raises(VerdiffError, match="other images or masks"):
        train(SMOKE, other, None, tmp_path, progress=False)
    train(SMOKE, data, None, tmp_path, progress=False)
    train(SMOKE, other, None, tmp_path, resume=False, progress=False)


def test_another_network_to_start_from_is_another_run(tmp_path):
    torch.manual_seed(1)
    one, two = (VerdiffNet(VerdiffConfig.from_settings(SMOKE)) for _ in range(2))
    train(SMOKE, films(), None, tmp_path / "a", progress=False)
    with pytest.raises(VerdiffError, match="began with other weights"):
        train(SMOKE, films(), None, tmp_path / "a", progress=False, trained=one)
    train(SMOKE, films(), None, tmp_path / "b", progress=False, trained=one)
    with pytest.raises(VerdiffError, match="began with other weights"):
        train(SMOKE, films(), None, tmp_path / "b", progress=False, trained=two)
    for same in (one, None):  # goes on also where nobody says again where it began
        train(SMOKE, films(), None, tmp_path / "b", progress=False, trained=same)


def test_pruning_keeps_what_was_just_written(tmp_path):
    "After a damaged newest checkpoint the run goes on from the one before it, and writes fewer steps."
    for k in (100, 200, 300):
        save_checkpoint(tmp_path, {"step": k})
    path = save_checkpoint(tmp_path, {"step": 250}, keep=1)
    assert checkpoints(tmp_path) == [path]
    save_checkpoint(tmp_path, {"step": 260}, keep=2)
    assert [p.stem[-3:] for p in checkpoints(tmp_path)] == ["250", "260"]


def test_one_process_a_run(tmp_path):
    pytest.importorskip("fcntl")
    script = ("import sys, time; from pathlib import Path; from verdiff.files import run_lock\n"
              "with run_lock(Path(sys.argv[1])): print('in', flush=True); time.sleep(600)")
    with subprocess.Popen([sys.executable, "-c", script, tmp_path / "run"], text=True,
                          stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as other:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(VerdiffError, match="another process is at work there"):
            train(SMOKE, films(), None, tmp_path / "run", progress=False)
        other.kill()  # its lock goes with it
    train(SMOKE, films(), None, tmp_path / "run", progress=False)


def test_fresh_leaves_nothing_of_the_old_run(tmp_path, monkeypatch):
    train(SMOKE, films(), films(2), tmp_path, progress=False)
    assert (tmp_path / "model" / "model.safetensors").exists()

    def stop(*args, **kwargs):
        raise KeyboardInterrupt
    monkeypatch.setattr("verdiff.training.loss.training_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        train(SMOKE, films(), films(2), tmp_path, resume=False, progress=False)
    assert not list(tmp_path.rglob("*.json")) and not list(tmp_path.rglob("*.safetensors"))


def test_the_best_dice_is_that_of_a_model_that_was_written(tmp_path, monkeypatch):
    run = prepare(SMOKE, films(), films(2), tmp_path)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt
    monkeypatch.setattr(VerdiffNet, "save_pretrained", stop)
    with pytest.raises(KeyboardInterrupt):
        keep_best(run)
    assert run.best == -1


@pytest.mark.parametrize("change, kept", [([], True), (["log_every=7"], True),
                                          (["val_images=1"], False), (["sample_steps=1"], False)])
def test_a_best_dice_measured_in_another_way_is_forgotten(tmp_path, change, kept):
    run = prepare(SMOKE, films(), films(2), tmp_path)
    run.best = 0.9
    state = snapshot(run)
    again = prepare(load_settings("smoke", change), films(), films(2), tmp_path)
    restore(again, state)
    assert again.best == (0.9 if kept else -1)


def test_what_a_worker_complains_of_is_one_sentence():
    class Bad:
        names = ["a.png", "b.png"]

        def __len__(self):
            return 2

        def arrays(self, i):
            raise VerdiffError(f"{self.names[i]}: damaged; replace it")

    for workers in (0, 2):
        with pytest.raises(VerdiffError) as found:
            list(pixel_batches(Streamed(Bad()), [[0], [1]], workers=workers))
        assert str(found.value) == "a.png: damaged; replace it"
        assert not multiprocessing.active_children()  # though the error is still held


def test_blank_masks_are_refused_when_they_are_streamed(tmp_path):
    from PIL import Image
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        for i in range(40):
            Image.new("L", (32, 64), 90 * (part == "images")).save(tmp_path / part / f"{i}.png")
    for stream in ("true", "false"):
        s = load_settings("smoke", [f"stream={stream}", "val_fraction=0.3"])
        with pytest.raises(VerdiffError, match="masks is empty"):
            training_data(tmp_path, s)


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    s = load_settings("smoke", ["max_steps=6", "checkpoint_every=1", "keep_checkpoints=2"])
    train(s, films(), None, tmp_path, progress=False)
    assert [p.name for p in sorted(tmp_path.glob("*.pt"))] == ["checkpoint-000005.pt", "checkpoint-000006.pt"]
    assert load_checkpoint(tmp_path / "nothing", s, "") is None


def test_validation_leaves_the_mode_alone():
    model = VerdiffNet(VerdiffConfig.from_settings(SMOKE)).train()
    got = validate(model, films(3), steps=2, batch_size=2)
    assert model.training and set(got) == {"prior_dice", "diffusion_dice"} and 0 <= got["prior_dice"] <= 1


def parts_of(batch, processes, number, data):
    size = batch // processes
    for p in range(processes):
        where = batch_indices(len(data), size, number * processes + p, SMOKE.seed)
        yield augment_batch(data.images[where], data.masks[where], SMOKE, number, p, processes)


@pytest.mark.parametrize("number", [0, 7])
def test_processes_share_the_very_batch_of_one(number):
    data = films()
    whole = next(parts_of(8, 1, number, data))
    for processes in (2, 4):
        parts = list(parts_of(8, processes, number, data))
        for name in whole._fields:
            together = torch.cat([getattr(p, name) for p in parts])
            torch.testing.assert_close(together, getattr(whole, name), atol=1e-5, rtol=0)
        assert torch.equal(torch.cat([p.noise for p in parts]), whole.noise)
        assert torch.equal(torch.cat([p.t for p in parts]), whole.t)


def test_half_batches_on_twice_the_devices_are_the_same_run(tmp_path):
    s, half = load_settings("smoke"), load_settings("smoke", ["batch_size=2"])
    state = {"step": 2, "settings": half.to_dict(), "data": "x", "processes": 2}
    save_checkpoint(tmp_path, state)
    assert load_checkpoint(tmp_path, s, "x", processes=1)["step"] == 2
    with pytest.raises(VerdiffError, match="batch_size .there 4, here 8"):
        load_checkpoint(tmp_path, s, "x", processes=2)


def test_checkpoints_are_sorted_by_number(tmp_path):
    for step in (5, 999_999, 1_000_000, 1_000_001):
        save_checkpoint(tmp_path, {"step": step}, keep=3)
    (tmp_path / "checkpoint-best.pt").write_bytes(b"mine")
    assert [p.stem[11:] for p in checkpoints(tmp_path)] == ["999999", "1000000", "1000001"]


@pytest.mark.parametrize("damage", ["bit", "half", "nothing", "text", "other",
                                    "list", "none"])
def test_damage_to_a_checkpoint_is_seen(tmp_path, damage, capsys):
    s = SMOKE
    for step in (1, 2):
        state = {"step": step, "settings": s.to_dict(), "data": "x", "model": torch.randn(5000)}
        newest = save_checkpoint(tmp_path, state)
    raw = bytearray(newest.read_bytes())
    raw[len(raw) // 2] ^= 4
    torch.save({"step": 2}, tmp_path / "o")
    torch.save([1, 2], tmp_path / "l")
    torch.save({**state, "settings": None}, tmp_path / "n")
    newest.write_bytes({"bit": raw, "half": raw[:len(raw) // 2], "nothing": b"", "text": b"hello",
                        "other": (tmp_path / "o").read_bytes(), "list": (tmp_path / "l").read_bytes(),
                        "none": (tmp_path / "n").read_bytes()}[damage])
    assert load_checkpoint(tmp_path, s, "x")["step"] == 1
    assert "checkpoint-000002.pt is damaged" in capsys.readouterr().err


class Disk:
    "A set of any size: image i is made when it is asked for."

    def __init__(self, n, size=SMOKE.size):
        self.n, self.size, self.names = n, size, [f"{i}.png" for i in range(n)]

    def __len__(self):
        return self.n

    def arrays(self, i):
        image = np.random.default_rng(i).integers(0, 255, self.size, dtype=np.uint8)
        return image, (image > 128).astype(np.uint8), None


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_gives_the_batches_of_memory_from_any_position(workers):
    streamed = Streamed(Disk(11)).subset(range(1, 10))
    s = load_settings("smoke", ["max_steps=5", "accumulate=2"])
    for first in (0, 7):
        both = batches(streamed.pack(), s, first), batches(streamed, s, first, workers=workers)
        count = 0
        for a, b in zip(*both, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
            count += 1
        assert count == 10 - first


def test_a_streamed_run_ends_in_the_weights_of_memory(tmp_path, monkeypatch):
    streamed = Streamed(Disk(9))
    monkeypatch.setattr("verdiff.training.batches.worker_count", lambda: 1)
    train(SMOKE, streamed.pack(), None, tmp_path / "a", progress=False)
    train(load_settings("smoke", ["stream=true"]), streamed, None, tmp_path / "b", progress=False)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_memory_is_flat_in_the_size_of_the_set():
    def peak(n):
        data = Streamed(Disk(n, (64, 64)))
        plan = (batch_indices(n, 4, b, 0).tolist() for b in range(30))
        tracemalloc.start()
        for _ in pixel_batches(data, plan, workers=0):
            pass
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(10)
    few, many = peak(50), peak(20_000)  # in memory the second would be 164 MB
    assert many < few + 500_000


def test_when_a_set_is_streamed():
    assert not must_stream(load_settings("paper"), 609)
    assert must_stream(load_settings("paper"), 10**9)
    assert must_stream(load_settings("smoke", ["stream=true"]), 1)
    assert not must_stream(load_settings("smoke", ["stream=false"]), 10**12)


def test_a_thread_ahead_changes_nothing_and_passes_errors_on():
    assert list(prefetch(iter(range(7)))) == list(range(7)) and list(prefetch(iter([]))) == []

    def breaks():
        yield 1
        raise VerdiffError("film 3 is damaged")

    got = prefetch(breaks())
    assert next(got) == 1
    with pytest.raises(VerdiffError, match="film 3"):
        next(got)


def test_leftovers_are_swept(tmp_path):
    (tmp_path / "model").mkdir()
    left = [tmp_path / ".checkpoint-000002.pt.99.part", tmp_path / "model" / ".config.json.99.part"]
    for path in left:
        path.write_bytes(b"half")
    train(SMOKE, films(), None, tmp_path, progress=False)
    assert not any(p.exists() for p in left)


@pytest.mark.skipif(os.name != "posix", reason="gloo")
def test_two_processes_train_as_one_with_twice_the_batch(tmp_path):
    common = ["--data", "phantom", "--profile", "smoke"]
    for word in ("max_steps=6", "log_every=1", "learning_rate=0.01", "validate_every=6", "accumulate=2"):
        common += ["--set", word]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(free_port())]
    env = dict(os.environ, OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", ACCELERATE_USE_CPU="true")
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), env.get("PYTHONPATH", "")])
    for name, before, batch in (("two", launch, 2), ("one", [], 4)):
        words = [*before, "-m", "verdiff", "train", *common, "--set", f"batch_size={batch}"]
        done = subprocess.run([sys.executable, *words, "--out", str(tmp_path / name)], env=env, cwd=tmp_path,
                              capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    about = json.loads((tmp_path / "two" / "run.json").read_text())
    assert about["processes"] == 2
    two, one = (json.loads((tmp_path / name / "history.json").read_text()) for name in ("two", "one"))
    assert len(one) == len(two) == 6
    for a, b in zip(one, two, strict=True):
        assert (a.pop("cpu_hours", 0) > 0) == (b.pop("cpu_hours", 0) > 0)
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
    assert one[0]["total"] != one[5]["total"]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_real_ctrl_c_saves_and_goes_on(tmp_path, number):
    command = [sys.executable, "-m", "verdiff", "train", "--data", "phantom", "--profile", "smoke", "--out",
               str(tmp_path / "run"), "--set", "max_steps=100000", "--set", "checkpoint_every=50000",
               "--set", "validate_every=50000"]
    env = dict(os.environ, OMP_NUM_THREADS="1")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, cwd=tmp_path)
    deadline = time.time() + 60
    while not (tmp_path / "run" / ".lock").exists() and time.time() < deadline:
        time.sleep(0.2)
    time.sleep(2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "goes on from there" in err and "Traceback" not in err
    assert len(list((tmp_path / "run").glob("checkpoint-*.pt"))) == 1
