# %% [markdown]
# # The configuration of a model
# > Everything that decides what a network computes, saved beside its weights

# %% [markdown]
# Weights without their configuration are numbers without a formula. `VerdiffConfig` holds every choice that changes the
# *function* (widths, switches, the process, the meaning of the output), not learning rates and the like, and travels with the
# weights as `config.json` ([saved models](pretrained.ipynb)). It is strict, because a misspelt key that is silently ignored
# costs a training run; its rules are those of [the settings](settings.ipynb). Keys that are newer than a file are filled in with
# what the network did before they existed. Open this page
# [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/config.ipynb).

# %%
#| default_exp networks.config

# %%
#| export
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor

from verdiff.diffusion.forward import betas_from_alphas_cumprod, make_schedule
from verdiff.files import VerdiffError, read_json
from verdiff.settings import (
    LATER, Beta, Between, Blocks, Channels, Dim, Fit, InputScale, KernelChoice, NormName,
    PredictionType, ScheduleName, Size, Stem, Times, known_values,
)

# %%
#| code-fold: true
import json
import tempfile

import torch

from verdiff.settings import load_settings


# %%
#| exports
@dataclass(frozen=True)
class VerdiffConfig:
    "Everything that decides what a `VerdiffNet` computes; it is saved beside the weights."

    in_channels: Annotated[int, Between(1, 8192)] = 1  # channels of the image
    channels: Channels = (16, 32, 64, 128)  # width of each level of both U-Nets
    blocks: Blocks = 1  # residual blocks a level
    stem: Stem = 1  # both U-Nets work inside at 1 / stem of height and width
    norm: NormName = "group"
    msfm: bool = True  # multi-scale fusion module, or one 3x3 convolution of the image
    nsa: bool = True  # noise semantic adapters in the diffusion encoder
    shift: bool = True  # Eq. (3) with the prior in the mean, or plain DDPM
    msfm_dim: Dim = 16  # d of Eq. (13)
    nsa_choice: KernelChoice = "soft"  # choice between 3x3 and 5x5
    timesteps: Times = 1000  # T
    schedule: ScheduleName = "linear"
    beta_start: Beta = 1e-4
    beta_end: Beta = 0.02
    input_scale: InputScale = 1.0  # signal to noise ratio times its square (Chen 2023)
    prediction_type: PredictionType = "sample"  # x_0
    detach_prior: bool = True  # keep the diffusion loss out of the conditional U-Net
    height: Size = 192  # size that the model was trained at, pixels
    width: Size = 64
    fit: Fit = "letterbox"  # how images are brought to that size

    @classmethod
    def from_settings(cls, settings: Any) -> "VerdiffConfig":
        "The part of `Settings` (or any object with these attributes) that describes the model."
        names = [f.name for f in fields(cls) if hasattr(settings, f.name)]
        return cls(**{name: getattr(settings, name) for name in names})

    @classmethod
    def from_dict(
        cls,
        values: dict[str, Any],  # as `to_dict` or JSON gives them
        where: str = "config",  # file to name in errors
        complete: bool = False,  # also refuse a missing key
    ) -> "VerdiffConfig":
        """Strict: VerdiffError for an unknown key, a value of another type or out of range, and a
        first width that `stem` x `stem` pixels do not fit into."""
        config = cls(**known_values(cls, values, where, complete))
        if config.channels[0] % config.stem**2:
            raise VerdiffError(f"{where}: channels = {config.channels[0]},... must begin with a "
                               f"multiple of stem * stem = {config.stem**2}")
        return config

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON. Newer keys are left out where they change nothing, so that
        the files and fingerprints of older models stay as they were."""
        values = {**asdict(self), "channels": list(self.channels)}
        return {k: v for k, v in values.items() if k not in LATER or v != LATER[k]}


# %%
config = VerdiffConfig.from_settings(load_settings("demo"))
print(config)
assert VerdiffConfig.from_dict(config.to_dict()) == config

# %%
wrongs = ({"chanels": [8, 16]}, {"norm": "layer"}, {"height": -5}, {"msfm": 1},
          {"channels": [8, 16], "stem": 4})
for wrong in wrongs:
    try:
        VerdiffConfig.from_dict(wrong)
    except VerdiffError as error:
        print("-", str(error).split(" (allowed")[0])
    else:
        raise AssertionError(wrong)


# %% [markdown]
# ## The schedule
# One key is ours, `input_scale`: a large mask can be read through much noise, because averaging undoes it. Multiplying $x_0$ by
# $r < 1$ hides it better (Chen 2023), and rescaled to unit power that is only another schedule, with a signal to noise ratio
# $r^2$ times as large.

# %%
#| export
def scale_signal(
    betas: Tensor,  # (T,)
    scale: float,  # r: as if x_0 were multiplied by it
) -> Tensor:  # betas, float64, (T,)
    "The schedule whose signal to noise ratio is scale^2 times as large (Chen 2023)."
    bar = (1 - betas.double()).cumprod(0)
    power = scale**2 * bar
    return betas_from_alphas_cumprod(power / (power + 1 - bar))


def make_betas(
    config: VerdiffConfig,
) -> Tensor:  # float64, (timesteps,)
    "The schedule that a configuration asks for."
    betas = make_schedule(config.schedule, config.timesteps, config.beta_start, config.beta_end)
    return betas if config.input_scale == 1 else scale_signal(betas, config.input_scale)


# %%
def ratio(betas):
    bar = (1 - betas).cumprod(0)
    return bar / (1 - bar)


plain, scaled = (make_betas(VerdiffConfig(input_scale=r)) for r in (1, 0.1))
torch.testing.assert_close(ratio(scaled), 0.01 * ratio(plain))


# %% [markdown]
# ## The file

# %%
#| export
def read_config(path: Path) -> VerdiffConfig:
    "config.json as a `VerdiffConfig`; VerdiffError names the file and the key."
    try:
        values = read_json(path)
    except OSError as error:
        raise VerdiffError(f"{path} could not be read ({error.strerror}); "
                           "give the folder of a saved model") from error
    if not isinstance(values, dict):
        raise VerdiffError(f"{path} holds no table of keys and values; save the model again")
    return VerdiffConfig.from_dict(values, where=str(path), complete=True)


# %%
path = Path(tempfile.mkdtemp()) / "config.json"
try:
    read_config(path)
except VerdiffError as error:
    print(str(error).replace(str(path), "config.json"))

# %% [markdown]
# `stem` is newer than the first files; it is written, and asked for, only where it does something:

# %%
for stem in (1, 2):
    changed = VerdiffConfig(stem=stem)
    path.write_text(json.dumps(changed.to_dict()))
    assert read_config(path) == changed and ("stem" in changed.to_dict()) == (stem > 1)
