# %% [markdown]
# # Saved models
# > Two files a model: one that can be read, one that cannot hold code

# %% [markdown]
# A model is a folder: `config.json` ([the configuration](config.ipynb)), which one can read, and `model.safetensors`, which holds
# numbers and cannot hold code (a pickle can). Loading builds from the first, fills from the second, and refuses in one sentence
# whatever is missing, damaged or does not fit. `VerdiffNet.save_pretrained` and `from_pretrained` ([11](../11_model.ipynb)) call
# what stands here, in place of the looser functions of the Hugging Face Hub's mixin. Open this page
# [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/pretrained.ipynb).

# %%
#| default_exp networks.pretrained

# %%
#| export
import hashlib
import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from verdiff.files import VerdiffError, atomic_write
from verdiff.networks.config import read_config

# %%
#| code-fold: true
import tempfile

import torch

from verdiff.networks.model import VerdiffNet

# %% [markdown]
# ## Saving
# Each file is written under another name and renamed, so that a full disk leaves the old one whole.

# %%
#| export
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def save_model(
    model: nn.Module,  # with a `config`
    folder: Path,  # made if missing
    repo_id: str | None = None,  # on the Hub
    push_to_hub: bool = False,
    **hub: Any,  # for `PyTorchModelHubMixin.push_to_hub`
) -> str | None:  # address of the upload
    "config.json and model.safetensors, each whole or not at all; VerdiffError where that fails."
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VerdiffError(f"could not save the model to {folder}: {error.strerror}") from error
    weights = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    with atomic_write(folder / WEIGHTS_FILE) as path:
        save_file(weights, path, metadata={"format": "pt"})
    with atomic_write(folder / CONFIG_FILE) as path:
        path.write_text(json.dumps(model.config.to_dict(), indent=2) + "\n", encoding="utf-8")
    if not push_to_hub:
        return None
    hub = {k: v for k, v in hub.items() if k not in ("config", "model_card_kwargs")}
    return model.push_to_hub(repo_id or folder.name, **hub)


# %%
torch.manual_seed(0)
model = VerdiffNet(channels=(8, 16), height=64, width=32)
folder = Path(tempfile.mkdtemp()) / "model"
save_model(model, folder)
print(*[f"{p.name}: {p.stat().st_size:,} bytes" for p in sorted(folder.iterdir())], sep="\n")


# %% [markdown]
# ## Loading

# %%
#| export
def fetch_file(source: str | Path, name: str, **hub: Any) -> Path:
    """The path of one file of a model: in the folder `source`, or downloaded from the Hub.

    VerdiffError where there is none."""
    if Path(source).is_dir():
        path = Path(source) / name
        if not path.is_file():
            raise VerdiffError(f"{source} holds no {name}; a model folder, as `verdiff train` "
                               f"writes it, has {CONFIG_FILE} and {WEIGHTS_FILE}")
        return path
    if Path(source).exists():
        raise VerdiffError(f"{source} is a file; give the folder that holds {CONFIG_FILE}")
    try:
        return Path(hf_hub_download(str(source), name, **hub))
    except Exception as error:  # bad id, no network, no such repository
        raise VerdiffError(f"{source} is neither a model folder here nor a model that could be "
                           f"downloaded ({type(error).__name__})") from error


# %%
assert fetch_file(folder, CONFIG_FILE) == folder / CONFIG_FILE


# %% [markdown]
# A set of weights is not enough; it must be this model's.

# %%
#| export
def weights_difference(model: nn.Module, weights: dict[str, Tensor]) -> str | None:
    "The first way in which `weights` do not belong to `model`, in words; None when they do."
    own = model.state_dict()
    for key, value in own.items():
        if key not in weights:
            return f"it has no {key!r}"
        if weights[key].shape != value.shape:
            return f"{key!r} is {tuple(weights[key].shape)} and should be {tuple(value.shape)}"
    extra = [key for key in weights if key not in own]
    return f"it has a {extra[0]!r} that the model does not know" if extra else None


def weights_digest(model: nn.Module) -> str:
    "SHA-256 of all weights, by name: tells one trained network from another."
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


# %%
other = VerdiffNet(model.config, nsa=False)
assert weights_difference(model, model.state_dict()) is None
assert weights_digest(model) == weights_digest(model) != weights_digest(other)
print(weights_difference(other, model.state_dict()))


# %%
#| export
def load_model(
    cls: type[nn.Module],  # built from a `VerdiffConfig`
    source: str | Path,  # folder, or id on the Hub
    **hub: Any,  # for `hf_hub_download`
) -> nn.Module:  # in eval mode
    """Build from config.json, fill from model.safetensors.

    VerdiffError where a file is missing, damaged, holds NaN or does not fit the other.
    """
    config = read_config(fetch_file(source, CONFIG_FILE, **hub))
    path = fetch_file(source, WEIGHTS_FILE, **hub)
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise VerdiffError(f"{path} is damaged or cut off ({error}); "
                           "copy or save the model again") from error
    wanted = 9 * sum(c * c for c in config.channels)  # a convolution a level, at the very least
    difference = None if sum(v.numel() for v in weights.values()) > wanted else (
        f"channels = {list(config.channels)} take more numbers than it holds")
    if difference is None:  # else the network might be larger than the memory
        model = cls(config)
        difference = weights_difference(model, weights)
    if difference:
        raise VerdiffError(f"{path} does not belong to the {CONFIG_FILE} beside it: {difference}")
    if bad := [k for k, v in weights.items() if not v.isfinite().all()]:
        raise VerdiffError(f"{path} is damaged: {bad[0]!r} holds NaN or infinity; "
                           "copy or train the model again")
    model.load_state_dict(weights)
    return model.eval()


# %% [markdown]
# ## Use

# %%
again = VerdiffNet.from_pretrained(folder)
assert weights_digest(again) == weights_digest(model)
assert again.config == model.config and not again.training


# %% [markdown]
# What it says when something is wrong; we break it four times:

# %%
def refusal(name, change):
    "Damage one file of the saved model, hear what loading says, and put the file back."
    path = folder / name
    good = path.read_bytes()
    path.write_bytes(change(good))
    try:
        VerdiffNet.from_pretrained(folder)
    except VerdiffError as error:
        return "- " + str(error).replace(str(folder), "model").split("; allowed")[0]
    finally:
        path.write_bytes(good)
    raise AssertionError("loaded all the same")


# %%
print(refusal(CONFIG_FILE, lambda b: b.replace(b'"blocks"', b'"bloks"')))
print(refusal(CONFIG_FILE, lambda b: b.replace(b"8,\n", b"12,\n", 1)))
print(refusal(CONFIG_FILE, lambda b: b.replace(b'"nsa": true', b'"nsa": false')))
print(refusal(WEIGHTS_FILE, lambda b: b[:len(b) // 2]))

# %% [markdown]
# ## Without Python
# `torch.export` can turn the diffusion U-Net into one graph, because no branch in it depends on values; `torch.compile` works for
# the same reason.

# %%
c = again.condition(torch.rand(2, 1, 64, 32)).detach()
args = torch.cat([torch.randn(2, 1, 64, 32), c.prior, c.features], 1), torch.tensor([3, 400])
program = torch.export.export(again.diffusion, args, {"prior": c.prior})
wanted = again.diffusion(*args, prior=c.prior)
torch.testing.assert_close(program.module()(*args, prior=c.prior), wanted)
print(len(program.graph.nodes), "nodes")
