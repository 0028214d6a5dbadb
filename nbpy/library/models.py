# %% [markdown]
# # Finding a model
# > A folder, a run, the bundled one, or the Hub

# %% [markdown]
# A model is a folder that `verdiff train` wrote, a whole run's folder, or a name on the Hugging Face Hub, which also keeps what it fetched;
# without a word it is the one inside the package.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/models.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp segmentation.models

# %%
#| export
from pathlib import Path

import verdiff
from verdiff.files import VerdiffError


# %%
#| export
def bundled_model() -> Path | None:
    "The folder of the model that travels inside the package, None where there is none."
    folder = Path(verdiff.__file__).resolve().parent / "weights"
    found = sorted(p.parent for p in [*folder.glob("config.json"), *folder.glob("*/config.json")])
    return found[0] if found else None


# %%
#| export
def find_model(
    model: str | Path | None,  # folder of model or run, Hub id; None, "bundled": the bundled
) -> str:  # what `VerdiffNet.from_pretrained` takes
    "The model that a user means; VerdiffError where there is none."
    if model in (None, "bundled") and (model := bundled_model()) is None:
        raise VerdiffError(
            "no model travels with this installation; give one with --model, "
            "for example runs/demo after `verdiff demo`"
        )
    path = Path(model).parent if Path(model).is_file() else Path(model)
    for folder in (path, path / "model"):
        if (folder / "config.json").exists():
            return str(folder)
    hub_id = str(model).count("/") == 1 and not path.parent.exists()
    if not hub_id or path.parent.name == "runs":
        raise VerdiffError(
            f"{model}: no model there; expected a folder with config.json and "
            "model.safetensors, as `verdiff train` writes it"
        )
    return str(model)


# %% [markdown]
# ## Use

# %%
print(Path(find_model(None)).name)
try:
    find_model("runs/nowhere")
except VerdiffError as error:
    print(error)
else:
    raise AssertionError
