# %% [markdown]
# # nnU-Net by its own trainer
# > Its preprocessing, its loop, its prediction, in the comparison's table

# %% [markdown]
# nnU-Net is a method *and* a way to train it. **Given as many steps of as many images as all others, its own trainer ended below its own network in our loop**: two rows of [the comparison's table](comparison.ipynb#the-table), recorded there on 2026-11-26. That is no verdict on nnU-Net: its learning rate is planned for 250,000 steps and falls to nothing within whatever number it is given, and 1,000 were given. The full budget needs a GPU and has not run yet. Here is how it joins, in seconds on a laptop ([![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/lab/nnunet.ipynb)).

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().run_line_magic(  # noqa: F821
        "pip", "install -q 'verdiff[notebooks,compare] @ git+https://github.com/verdiff/verdiff'")

# %%
#| default_exp lab.nnunet

# %%
#| code-fold: true
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from verdiff.data.packed import pack
from verdiff.data.phantom_set import PhantomSet
from verdiff.lab.comparison import masks_result
from verdiff.lab.methods import Missing
from verdiff.settings import load_settings

# %%
#| code-fold: true
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The folder that it reads

# %%
#| exports
#| code-fold: true
import io
import json
import os
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from verdiff.data.packed import Packed
from verdiff.files import VerdiffError, read_json, run_lock, write_json
from verdiff.lab.comparison import Result, describe, measure
from verdiff.lab.methods import need
from verdiff.settings import Settings


# %%
#| exports
#| code-fold: true
def write_nnunet_raw(
    train_data: Packed,
    test_data: Packed,
    folder: str | Path,  # what the variable nnUNet_raw names
) -> Path:  # Dataset501_Spine, with imagesTr, labelsTr, imagesTs and dataset.json
    "The images in the layout that nnU-Net v2 reads; test image i is test_000i_0000.png."
    home = Path(folder) / "Dataset501_Spine"
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (home / part).mkdir(parents=True, exist_ok=True)
    for i, (image, mask) in enumerate(zip(train_data.images, train_data.masks, strict=True)):
        Image.fromarray(image[0].numpy()).save(home / "imagesTr" / f"train_{i:04d}_0000.png")
        Image.fromarray(mask[0].numpy()).save(home / "labelsTr" / f"train_{i:04d}.png")
    for i, image in enumerate(test_data.images):
        Image.fromarray(image[0].numpy()).save(home / "imagesTs" / f"test_{i:04d}_0000.png")
    write_json(home / "dataset.json", {
        "channel_names": {"0": "xray"}, "labels": {"background": 0, "vertebra": 1},
        "numTraining": len(train_data), "file_ending": ".png"})
    return home


# %% [markdown]
# Six phantoms to learn from, three to predict. A program that gave back the true masks, one PNG an image, would score a Dice of 1:

# %%
#| code-fold: true
known, unseen = (pack(PhantomSet(size=(96, 32), split=part, n_training=6, n_test=3),
                      progress=False) for part in ("training", "test"))
home = write_nnunet_raw(known, unseen, folder / "nnUNet_raw")
perfect = folder / "perfect"
perfect.mkdir()
for i, truth in enumerate(unseen.masks):
    Image.fromarray(truth[0].numpy() * 255).save(perfect / f"test_{i:04d}.png")
print({p.name: len(list(p.iterdir())) for p in sorted(home.iterdir()) if p.is_dir()})
assert set(masks_result("the truth itself", perfect, unseen).scores["dice"]) == {1.0}


# %% [markdown]
# ## Plan, train, predict
#
# nnU-Net's own trainer, `nnUNetTrainer`, needs no command line: below it plans, trains with its own augmentation, loss and optimiser, and predicts by the mean of four mirrored views. It goes on at its last epoch after an interruption. On a CPU it works in this process alone.

# %%
#| exports
#| code-fold: true
def nnunet_prepare(
    home: Path,  # Dataset501_Spine among the raw data
    batch_size: int | None = None,  # None: as planned
) -> None:
    "nnU-Net's fingerprint, plan, preprocessing, unless they are there. Missing without nnunetv2."
    plans = Path(os.environ["nnUNet_preprocessed"]) / home.name / "nnUNetPlans.json"
    if (ready := plans.with_name("ready.json")).exists():
        return
    api = need("nnunetv2.experiment_planning.plan_and_preprocess_api")
    with patch.dict(os.environ, nnUNet_n_proc_DA="1"):
        api.extract_fingerprints([501], num_processes=1, verbose=False)
        api.plan_experiments([501])
        plan = json.loads(plans.read_text(encoding="utf-8"))
        if batch_size:
            plan["configurations"]["2d"]["batch_size"] = batch_size
            write_json(plans, plan)
        api.preprocess([501], configurations=("2d",), num_processes=(1,))
    write_json(ready, plan["configurations"]["2d"])


# %%
#| exports
#| code-fold: true
def nnunet_train(
    device: torch.device,
    epochs: int = 1000,  # nnU-Net's own number
    iterations: int = 250,  # steps of an epoch; its own number
    progress: bool = True,
) -> Any:  # its trainer, trained
    """Train nnU-Net on all images of the training part; goes on after the last whole epoch.

    Missing without nnunetv2.
    """
    trainer = need("nnunetv2.run.run_training").get_trainer_from_args("501", "2d", "all",
                                                                      device=device)
    trainer.num_epochs, trainer.num_iterations_per_epoch = epochs, iterations
    trainer.num_val_iterations_per_epoch = trainer.save_every = 1  # it looks at training images
    trainer.initialize()
    done = [p for name in ("final", "latest")
            if (p := Path(trainer.output_folder) / f"checkpoint_{name}.pth").exists()]
    if done:
        trainer.load_checkpoint(str(done[0]))
    bar = tqdm(total=epochs, initial=trainer.current_epoch, desc="nnU-Net", unit="epoch",
               disable=None if progress else True)
    end = trainer.on_epoch_end
    trainer.on_epoch_end = lambda: (end(), bar.update())
    with bar:
        if not done or done[0].stem != "checkpoint_final":
            trainer.run_training()
    return trainer


# %%
#| exports
#| code-fold: true
def nnunet_probability(
    trainer: Any,  # of `nnunet_train`
    home: Path,  # Dataset501_Spine among the raw data
) -> tuple[Tensor, float]:  # (N, 1, H, W) in [0, 1] of the test images, and seconds an image
    "nnU-Net's own prediction: sliding window, mean of four mirrored views."
    predictor = need("nnunetv2.inference.predict_from_raw_data").nnUNetPredictor(
        device=trainer.device, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(Path(trainer.output_folder).parent),
                                                   ("all",), "checkpoint_final.pth")
    images = [[str(p)] for p in sorted((home / "imagesTs").glob("*.png"))]
    start = time.perf_counter()
    found = predictor.predict_from_files_sequential(images, None, save_probabilities=True)
    took = (time.perf_counter() - start) / len(images)
    return torch.stack([torch.as_tensor(p[1]).float() for _, p in found]), took


# %% [markdown]
# ## The row
#
# One call does all of it, image by image like every other method, and leaves what it did in a file.

# %%
#| exports
#| code-fold: true
def nnunet_environment(
    home: Path,  # folder of this run
    device: torch.device,
) -> dict[str, str]:  # variables that nnU-Net reads
    "Where nnU-Net keeps its files; on a CPU it augments in this process."
    own = {f"nnUNet_{n}": str((home / n).resolve()) for n in ("raw", "preprocessed", "results")}
    return own | ({"nnUNet_n_proc_DA": "0"} if device.type == "cpu" else {})


# %%
#| exports
#| code-fold: true
def nnunet_result(
    trainer: Any,  # of `nnunet_train`
    probability: Tensor,  # (N, 1, h, w) in [0, 1]
    data: Packed,  # at the size at which to score
    seconds: float,  # an image
    about: dict[str, Any],
) -> Result:
    "The row of the table: the probability enlarged, the four measures, nnU-Net's own clock."
    p = F.interpolate(probability, data.images.shape[-2:], mode="bilinear", align_corners=False)
    scores = measure(p > 0.5, data.masks > 0)
    log = trainer.logger.get_value
    spent = np.subtract(log("epoch_end_timestamps", None), log("epoch_start_timestamps", None))
    return Result("nnunet_trainer", "nnU-Net v2 (its own trainer)",
                  "own augmentation, loss, optimiser, mirrored views", "", list(data.names),
                  {k: v.tolist() for k, v in scores.items()},
                  sum(q.numel() for q in trainer.network.parameters()), float(sum(spent)),
                  seconds, about | {"losses": [float(v) for v in log("train_losses", None)]})


# %%
#| exports
#| code-fold: true
def run_nnunet(
    settings: Settings,  # of the comparison
    train_data: Packed,  # at the network's size
    small: Packed,  # the test images at the network's size
    test_data: Packed,  # the test images at the size at which to score
    out: str | Path,  # folder of the comparison; nnU-Net's files go to nnunet_trainer in it
    device: torch.device | str = "cpu",
    epochs: int = 1000,  # nnU-Net's own number
    iterations: int = 250,  # steps of an epoch; its own number
    batch_size: int | None = None,  # None: as it plans
    progress: bool = True,
) -> Result:
    """nnU-Net with its own trainer, image by image; read from `out` if it is there.

    Missing without nnunetv2 or torchvision; VerdiffError where `out` holds another run, or another
    process is at work there.
    """
    home, device = Path(out) / "nnunet_trainer", torch.device(device)
    about = describe(settings, train_data, test_data, device) | {
        "epochs": epochs, "iterations": iterations, "batch_size": batch_size}
    same = {k: about[k] for k in ("pixels", "size", "epochs", "iterations", "batch_size")}
    if (mark := home / "run.json").exists() and read_json(mark) != same:
        raise VerdiffError(f"{home} belongs to another run; use another folder, or remove it")
    if found := Result.load(home, about):
        return found
    need("torchvision", "nnunetv2")
    home.mkdir(parents=True, exist_ok=True)
    write_json(mark, same)
    own = nnunet_environment(home, device)
    with run_lock(home), patch.dict(os.environ, own), redirect_stdout(io.StringIO()):
        raw = write_nnunet_raw(train_data, small, own["nnUNet_raw"])
        nnunet_prepare(raw, batch_size)
        trainer = nnunet_train(device, epochs, iterations, progress)
        p, seconds = nnunet_probability(trainer, raw)
        result = nnunet_result(trainer, p, test_data, seconds, about)
    result.save(home)
    return result


# %% [markdown]
# Two epochs of two steps, where nnU-Net is installed:

# %%
#| code-fold: true
tiny = load_settings("smoke", ["height=96", "width=32", "eval_height=96", "eval_width=32"])
try:
    row = run_nnunet(tiny, known, unseen, unseen, folder / "out", epochs=2, iterations=2,
                     batch_size=2, progress=False)
    print(row.label, row.note, [round(v, 3) for v in row.scores["dice"]])
    assert len(row.about["losses"]) == 2
except Missing as error:
    print("not run here:", error)

# %%
#| hide
shutil.rmtree(folder)
