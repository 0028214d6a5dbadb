"`bench/gpu.py`, rehearsed with tiny sizes on the CPU."
import json
import signal
import time

import pytest


@pytest.fixture
def gpu(script):
    return script("gpu")


def words(tmp_path, parts, *more):
    return ["--data", "phantom", "--tiny", "--device", "cpu", "--out", str(tmp_path / "out"),
            "--work", str(tmp_path / "work"), "--parts", parts, *more]


def test_the_first_three_parts(gpu, tmp_path):
    assert gpu.main(words(tmp_path, "bf16,roof,train")) == 0
    found = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "out").glob("*.json")}
    assert found["bf16"]["gradient_cosine"] > 0.99 and 0 < found["bf16"]["gradient_relative_error"] < 0.1
    (step,) = found["roof"]["steps"]
    assert step["tflop"] > 0 and step["share"] > 0
    assert found["train"]["history"][-1]["step"] == 4
    assert (tmp_path / "out/weights/model.safetensors").exists()
    assert all(f["about"]["tiny"] and f["about"]["commit"] for f in found.values())


def test_minutes_end_and_what_is_done_is_not_repeated(gpu, tmp_path, monkeypatch, capsys):
    calls = []

    def quick(call):
        "Done at once."
        calls.append("quick")
        return {"value": 1}

    def slow(call):
        "A command that outlasts the call."
        calls.append("slow")
        call.end = time.time() + 21
        call.verdiff("--version")
        call.end = time.time() - 1
        call.left()

    monkeypatch.setattr(gpu, "PARTS", {"quick": quick, "slow": slow})
    monkeypatch.setattr(gpu, "command", lambda _: 0)
    for _ in range(2):
        assert gpu.main(words(tmp_path, "quick,slow")) == 3
    assert calls == ["quick", "slow", "slow"] and "the same command goes on" in capsys.readouterr().out
    assert not (tmp_path / "out/slow.json").exists()


@pytest.fixture
def interruptible():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist ignores it
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupts_a_command_in_time(gpu, tmp_path, monkeypatch, interruptible):
    def endless(_):
        try:
            time.sleep(20)
        except KeyboardInterrupt:
            return 130
        return 0

    monkeypatch.setattr(gpu, "command", endless)
    call = gpu.Call(gpu_words(tmp_path))
    call.end = time.time() + 0.5
    monkeypatch.setattr(call, "left", lambda need=0.0: 0.5)
    with pytest.raises(gpu.OutOfTime):
        call.verdiff("train")


def gpu_words(tmp_path):
    from argparse import Namespace

    return Namespace(minutes=1, data="phantom", out=tmp_path, work=tmp_path, device="cpu", tiny=True,
                     train_minutes=1, each_minutes=1)


@pytest.mark.parametrize("wrong, said", [(["--parts", "none"], "no such part"), (["--device", "cuda"], "no GPU")])
def test_refused(gpu, tmp_path, wrong, said, capsys):
    if wrong[0] == "--device" and gpu.torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as error:
        gpu.main([*words(tmp_path, "bf16"), *wrong])
    assert error.value.code == 2 and said in capsys.readouterr().err


def test_profile_begins_with_the_network_of_the_package():
    from verdiff.networks.model import VerdiffNet
    from verdiff.segmentation.models import bundled_model
    from verdiff.settings import load_settings

    s, config = load_settings("gpu-fine"), VerdiffNet.from_pretrained(bundled_model()).config
    assert s.channels == config.channels and s.height == 2 * config.height
