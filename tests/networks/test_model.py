"""The whole network: switches, sizes, gradients, saving, refusing, exporting, overfitting."""
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from torch.nn import functional as F

import verdiff
from verdiff.files import VerdiffError
from verdiff.networks.config import VerdiffConfig
from verdiff.networks.model import Conditioning, VerdiffNet, adapter_below_full
from verdiff.networks.nsa import NoiseSemanticAdapter
from verdiff.networks.pretrained import CONFIG_FILE, WEIGHTS_FILE, weights_difference
from verdiff.settings import load_settings

SMALL = dict(channels=(8, 16), height=32, width=16, timesteps=50)


def make(seed=0, wake=True, **kwargs):
    "A small model; `wake` gives the zero-initialised output some weight."
    torch.manual_seed(seed)
    model = VerdiffNet(**{**SMALL, **kwargs})
    if wake:
        for p in model.diffusion.parameters():
            if not p.any():
                torch.nn.init.normal_(p, std=0.1)
    return model.eval()


def batch(b=2, h=32, w=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(b, 1, h, w, generator=g), torch.randn(b, 1, h, w, generator=g),
            torch.randint(0, 50, (b,), generator=g))


ROWS = [dict(msfm=m, nsa=n) for m in (False, True) for n in (False, True)]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_the_four_rows_of_table_2(row, norm):
    model = make(**row, norm=norm)
    out, c = model(*batch())
    assert out.shape == c.prior.shape == c.logits.shape == (2, 1, 32, 16)
    assert c.features.shape == (2, 8, 32, 16)
    torch.testing.assert_close(c.prior, 2 * c.logits.sigmoid() - 1)
    has = any(isinstance(m, NoiseSemanticAdapter) for m in model.modules())
    assert has is row["nsa"]
    assert model.num_parameters() == sum(p.numel() for p in model.parameters())


def test_the_shift_is_one_argument_away():
    assert make(shift=True).process().shift and not make(shift=False).process().shift
    assert make(timesteps=7, schedule="cosine").process().timesteps == 7


def test_adapters_sit_at_every_level_below_full_resolution():
    give = adapter_below_full("hard")
    levels = [give(c) for c in (8, 8, 16)]
    assert levels[0] is None and all(isinstance(a, NoiseSemanticAdapter) for a in levels[1:])
    assert levels[1].choice == "hard"
    model = make(channels=(8, 8, 16))
    assert sum(isinstance(m, NoiseSemanticAdapter) for m in model.modules()) == 2


@pytest.mark.parametrize("size", [(64, 32), (75, 51), (1, 1), (9, 33), (375, 751), (1024, 512)])
def test_every_size(size):
    model = make(channels=(8, 16, 16))
    with torch.no_grad():
        out, c = model(*batch(1, *size))
    assert out.shape == c.prior.shape == (1, 1, *size)
    assert out.isfinite().all()


def test_zero_initialised_output():
    model = make(wake=False)
    out, _ = model(*batch())
    assert not out.any()


def test_forward_is_condition_then_denoise():
    model, (image, x_t, t) = make(), batch()
    out, c = model(image, x_t, t)
    torch.testing.assert_close(model.denoise(x_t, t, model.condition(image)), out)


def test_conditioning_repeats_selects_and_detaches():
    model, (image, x_t, t) = make(), batch()
    c = model.condition(image)
    many = c.repeat(3)
    assert isinstance(many, Conditioning) and many.prior.shape[0] == 6
    torch.testing.assert_close(many.select(slice(0, 3)).prior, c.prior[:1].expand(3, -1, -1, -1))
    torch.testing.assert_close(many.select([0, 3]).features, c.features)
    assert c.logits.requires_grad and not c.detach().logits.requires_grad
    one = model.denoise(x_t[:1], t[:1], c.select([0]))
    torch.testing.assert_close(one, model.denoise(x_t, t, c)[:1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("detach", [True, False])
def test_detached_or_joint(detach):
    model = make(detach_prior=detach)
    out, _ = model(*batch())
    out.square().sum().backward()
    grads = [p.grad for p in model.conditional.parameters()]
    reached = any(g is not None and g.any() for g in grads)
    assert reached is (not detach)
    assert any(p.grad.any() for p in model.features.parameters())  # X is shared either way


def test_every_parameter_learns():
    model = make().train()
    out, c = model(*batch())
    (out.square().mean() + c.logits.square().mean()).backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # a bias in front of a one-channel-per-group norm may cancel; nothing else may be idle
    assert not [n for n in idle if not n.endswith("bias")], idle


def test_the_image_is_checked():
    with pytest.raises(ValueError, match="image must be"):
        make().condition(torch.zeros(1, 3, 8, 8))
    model = make()
    with pytest.raises(ValueError, match="conditioning is for"):
        model.denoise(torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long),
                      model.condition(torch.zeros(1, 1, 16, 8)))


def test_a_shift_by_the_stride_shifts_the_output():
    model = make(nsa=False)
    image, x_t = torch.zeros(2, 1, 1, 128, 128)
    image[..., 60:68, 60:66] = torch.rand(8, 6)
    x_t[..., 58:70, 58:70] = torch.randn(12, 12)
    t = torch.tensor([3])
    with torch.no_grad():
        out, c = model(image, x_t, t)
        moved, c_moved = model(image.roll((2, 4), (2, 3)), x_t.roll((2, 4), (2, 3)), t)
    inner = slice(50, 78)
    for a, b in ((out, moved), (c.logits, c_moved.logits)):
        torch.testing.assert_close(b.roll((-2, -4), (2, 3))[..., inner, inner],
                                   a[..., inner, inner], atol=5e-3, rtol=1e-2)


def test_with_adapters_too_a_shift_by_the_stride_shifts_the_output():
    model = make(channels=(4, 8))
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, (torch.nn.GroupNorm, torch.nn.LayerNorm)):
                setattr(module, name, torch.nn.Identity())
    torch.manual_seed(0)
    image, x_t = torch.zeros(2, 1, 1, 192, 192)
    image[..., 90:102, 92:100] = torch.rand(12, 8)
    x_t[..., 88:104, 88:104] = torch.randn(16, 16)
    t, inner = torch.tensor([3]), slice(84, 108)
    with torch.no_grad():
        out, c = model(image, x_t, t)
        moved, c_moved = model(image.roll((2, 4), (2, 3)), x_t.roll((2, 4), (2, 3)), t)
    for a, b in ((out, moved), (c.prior, c_moved.prior)):
        assert a[..., inner, inner].std() > 1e-3  # there is something to compare
        torch.testing.assert_close(b.roll((-2, -4), (2, 3))[..., inner, inner],
                                   a[..., inner, inner], atol=1e-5, rtol=1e-4)


def test_the_numbers_of_parameters_on_page_11_are_the_models():
    page = Path(__file__).resolve().parents[2] / "nbs" / "11_model.ipynb"
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    text = "".join("".join(o.get("text", "")) for c in cells for o in c.get("outputs", []))
    rows = re.findall(r"^(neither|MSFM|NSA|both).*? ([\d,]+) parameters", text, re.M)
    assert [name for name, _ in rows] == ["neither", "MSFM", "NSA", "both"]
    config = VerdiffConfig.from_settings(load_settings("demo"))
    for (_, number), row in zip(rows, (ROWS[0], ROWS[2], ROWS[1], ROWS[3]), strict=True):
        assert int(number.replace(",", "")) == VerdiffNet(config, **row).num_parameters(), row


# saving and loading

def save(tmp_path, **kwargs):
    model = make(**kwargs)
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


@pytest.mark.parametrize("row", ROWS)
def test_saving_and_loading_is_bit_exact(tmp_path, row):
    model, folder = save(tmp_path, **row, prediction_type="v_prediction", norm="batch")
    again = VerdiffNet.from_pretrained(folder)
    assert again.config == model.config and again.size == (32, 16) and not again.training
    own, other = model.state_dict(), again.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[k], other[k]) and own[k].dtype == other[k].dtype for k in own)
    with torch.no_grad():
        assert torch.equal(model(*batch())[0], again(*batch())[0])
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]  # no pickle


def test_the_weights_that_travel_with_the_package_load():
    folder = Path(verdiff.__file__).parent / "weights" / "xray-384x128"
    model = VerdiffNet.from_pretrained(folder)
    assert model.config.channels == (16, 32, 64, 128) and model.size == (384, 128)
    assert weights_difference(model, model.state_dict()) is None


def test_config_round_trip():
    config = VerdiffConfig(channels=(4, 8), nsa_choice="hard", beta_end=0.01)
    assert VerdiffConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert VerdiffNet(config, msfm=False).config.msfm is False


def test_config_from_settings():
    settings = SimpleNamespace(**{**VerdiffConfig(channels=(4, 8)).to_dict(), "channels": (4, 8),
                                  "learning_rate": 1})
    assert VerdiffConfig.from_settings(settings) == VerdiffConfig(channels=(4, 8))


@pytest.mark.parametrize(("change", "message"), [
    (dict(chanels=[8]), "unknown key 'chanels'; did you mean 'channels'"),
    (dict(channels="8,16"), "channels = '8,16' must be whole numbers from 2 to 8192"),
    (dict(channels=[]), "channels = () must be whole numbers"),
    (dict(msfm=1), "msfm = 1 must be true or false"),
    (dict(timesteps=True), "timesteps = True must be a whole number"),
    (dict(beta_end="x"), "beta_end = 'x' must be a number"),
    (dict(beta_end=float("nan")), "beta_end = nan must lie between 1e-09 and 0.999999999"),
    (dict(height=-5), "height = -5 must lie between 8 and 8192"),
    (dict(height=10**9), "height = 1000000000 must lie between"),
    (dict(timesteps=10**12), "timesteps = 1000000000000 must lie between"),
    (dict(channels=[8, 10**6]), "channels = (8, 1000000) must be whole numbers from 2 to 8192"),
    (dict(fit="crop"), "fit cannot be 'crop'; allowed: letterbox, squash"),
])
def test_a_bad_config_is_refused(tmp_path, change, message):
    _, folder = save(tmp_path)
    values = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**values, **change}))
    with pytest.raises(VerdiffError, match=CONFIG_FILE) as error:
        VerdiffNet.from_pretrained(folder)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_config_with_a_missing_key_is_refused(tmp_path):
    _, folder = save(tmp_path)
    values = json.loads((folder / CONFIG_FILE).read_text())
    del values["prediction_type"]
    (folder / CONFIG_FILE).write_text(json.dumps(values))
    with pytest.raises(VerdiffError, match="'prediction_type' is missing"):
        VerdiffNet.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"channels": [8'])
def test_a_config_that_is_not_json_is_refused(tmp_path, text):
    _, folder = save(tmp_path)
    (folder / CONFIG_FILE).write_text(text)
    with pytest.raises(VerdiffError, match=CONFIG_FILE):
        VerdiffNet.from_pretrained(folder)


@pytest.mark.parametrize("other", [dict(channels=(8, 24)), dict(msfm=False), dict(nsa=False),
                                   dict(msfm_dim=5), dict(blocks=2)])
def test_weights_of_another_config_are_refused(tmp_path, other):
    _, folder = save(tmp_path)
    values = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**values, **other}, default=list))
    with pytest.raises(VerdiffError, match=f"{WEIGHTS_FILE} does not belong to"):
        VerdiffNet.from_pretrained(folder)


def test_weights_difference_names_the_first_one():
    model = make()
    weights = dict(model.state_dict())
    assert weights_difference(model, weights) is None
    key = next(iter(weights))
    assert "should be" in weights_difference(model, {**weights, key: torch.zeros(1, 2, 3)})
    assert "strange" in weights_difference(model, {**weights, "strange": torch.zeros(1)})
    del weights[key]
    assert weights_difference(model, weights) == f"it has no {key!r}"


@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path, keep):
    _, folder = save(tmp_path)
    data = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(data[:int(keep * len(data)) if keep < 1 else keep])
    with pytest.raises(VerdiffError, match="damaged or cut off") as error:
        VerdiffNet.from_pretrained(folder)
    assert WEIGHTS_FILE in str(error.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, bad):
    model, folder = save(tmp_path)
    weights = {k: v.clone().contiguous() for k, v in model.state_dict().items()}
    key = next(iter(weights))
    weights[key].view(-1)[0] = bad
    safetensors.torch.save_file(weights, folder / WEIGHTS_FILE)
    with pytest.raises(VerdiffError, match=f"{WEIGHTS_FILE} is damaged: {key!r} holds NaN"):
        VerdiffNet.from_pretrained(folder)


def test_a_pickle_is_never_opened(tmp_path):
    _, folder = save(tmp_path)
    os.remove(folder / WEIGHTS_FILE)
    torch.save(make().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(VerdiffError, match=f"holds no {WEIGHTS_FILE}"):
        VerdiffNet.from_pretrained(folder)
    torch.save(make().state_dict(), folder / WEIGHTS_FILE)  # a pickle under the right name
    with pytest.raises(VerdiffError, match="damaged"):
        VerdiffNet.from_pretrained(folder)


def test_a_place_without_a_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("verdiff.networks.pretrained.hf_hub_download",
                        lambda *a, **k: (_ for _ in ()).throw(OSError("offline")))
    (tmp_path / "file").write_text("x")
    for place, message in ((tmp_path, "holds no"), (tmp_path / "file", "is a file"),
                           (tmp_path / "nowhere", "neither a model folder")):
        with pytest.raises(VerdiffError, match=message):
            VerdiffNet.from_pretrained(place)


def test_a_failed_save_leaves_the_previous_model(tmp_path, monkeypatch):
    model, folder = save(tmp_path)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("verdiff.networks.pretrained.save_file", full)
    with pytest.raises(VerdiffError, match="No space left on device"):
        make(seed=1).save_pretrained(folder)
    again = VerdiffNet.from_pretrained(folder)
    assert torch.equal(next(again.parameters()), next(model.parameters()))


# export, compile, precision, learning

def diffusion_args(model):
    image, x_t, t = batch()
    c = model.condition(image).detach()
    return torch.cat([x_t, c.prior, c.features], 1), t, c.prior


def test_export_of_the_diffusion_unet():
    model = make()
    args = diffusion_args(model)
    program = torch.export.export(model.diffusion, args)
    torch.testing.assert_close(program.module()(*args), model.diffusion(*args))


@pytest.mark.parametrize("backend", [
    "aot_eager", pytest.param("inductor", marks=pytest.mark.skipif(
        "VERDIFF_INDUCTOR" not in os.environ, reason="minutes of C++; set VERDIFF_INDUCTOR=1"))])
def test_the_compiled_diffusion_unet_says_the_same(backend):
    model = make(channels=(4, 4), height=8, width=8)
    image, x_t, t = batch(1, 8, 8)
    c = model.condition(image).detach()
    args = torch.cat([x_t, c.prior, c.features], 1), t, c.prior
    weight = model.diffusion.encoder.stem.weight
    compiled = torch.compile(model.diffusion, backend=backend, fullgraph=True)
    outs = [net(*args) for net in (compiled, model.diffusion)]
    grads = [torch.autograd.grad(out.square().sum(), weight)[0] for out in outs]
    torch.testing.assert_close(outs[0], outs[1], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize(("dtype", "batches"), [(torch.bfloat16, 1000), (torch.float16, 100)])
def test_half_precision_stays_finite(dtype, batches):
    model = make(channels=(8, 8))
    for seed in range(batches):
        with torch.no_grad(), torch.autocast("cpu", dtype):
            out, c = model(*batch(1, 16, 8, seed))
        assert out.isfinite().all() and c.logits.isfinite().all(), seed


def dice(pred, truth):
    p = (pred > 0).float()
    return ((2 * (p * truth).sum((1, 2, 3))) / (p + truth).sum((1, 2, 3))).min().item()


def test_one_batch_overfits():
    g = torch.Generator().manual_seed(0)
    mask = torch.zeros(4, 1, 64, 32)
    for i in range(4):
        for row in range(4, 60, 11):
            col = int(torch.randint(4, 18, (), generator=g))
            mask[i, 0, row:row + 7, col:col + 9] = 1
    image = (0.3 + 0.4 * mask + 0.1 * torch.randn(mask.shape, generator=g)).clamp(0, 1)
    x_0 = 2 * mask - 1
    torch.manual_seed(0)
    model = VerdiffNet(channels=(8, 16, 32), height=64, width=32)
    process = model.process()
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    for _ in range(120):
        t = torch.randint(0, 1000, (4,))
        c = model.condition(image)
        x_t = process.q_sample(x_0, t, c.prior, torch.randn_like(x_0))
        loss = F.mse_loss(model.denoise(x_t, t, c), x_0)
        loss = loss + F.binary_cross_entropy_with_logits(c.logits, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        c = model.condition(image)
        out = model.denoise(c.prior + torch.randn_like(x_0), torch.full((4,), 999), c)
    assert dice(c.prior, mask) > 0.99
    assert dice(out, mask) > 0.99
