# %% [markdown]
# # The demo
# > Everything once, on phantoms: train, segment, score, draw

# %% [markdown]
# `verdiff demo` (and `make demo`) is for whoever wants to see the whole method work before reading a line. It trains a small network
# on phantom spines, scores it on others, and leaves a picture. Profile `demo` in `settings.ini` holds its numbers.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/lab/demo.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp lab.demo

# %%
#| export
import time
from pathlib import Path

import torch.nn.functional as F

from verdiff.data.datasets import open_dataset, training_data
from verdiff.data.packed import pack
from verdiff.diffusion.sampling import sample
from verdiff.files import write_json
from verdiff.segmentation.evaluation import (
    Evaluation, check_shape, draw_samples, evaluate, save_figure,
)
from verdiff.segmentation.segmenter import Segmenter
from verdiff.settings import Settings
from verdiff.training.run import train


# %%
#| export
def demo(
    settings: Settings,  # profile "demo"
    out: Path,  # folder: the run, result.png, metrics.json, evaluation.csv, ...
    n_training: int = 96,  # phantoms to train on
    n_test: int = 24,  # phantoms to test on
    fresh: bool = False,  # start over instead of resuming
) -> tuple[Evaluation, float]:  # scores on the test phantoms, and seconds in all
    "Train on phantoms, score on others, draw three of them."
    start, s = time.perf_counter(), settings
    check_shape(s.size, s.eval_size, s.fit)
    counts = {"n_training": n_training, "n_test": n_test}
    train_data, val_data = training_data("phantom", s, **counts)
    test = pack(open_dataset("phantom", "test", s.eval_size, s.fit, **counts))
    model = Segmenter(train(s, train_data, val_data, out, resume=not fresh)).model
    steps = sorted({1, s.sample_steps})
    result = evaluate(model, test, steps, s.ensemble, s.seed, sampler=s.sampler)
    some = test.subset(range(min(3, len(test))))
    image = F.interpolate(some.images.float() / 255, model.size, mode="area").to(model.device)
    got = sample(model, image, s.sample_steps, s.ensemble, s.seed, s.sampler)
    save_figure(draw_samples(image, got, some.masks), out / "result.png")
    seconds = round(time.perf_counter() - start, 1)
    about = {"data": "phantom", "seed": s.seed, "seconds": seconds}
    result.save(out, **about)
    write_json(out / "metrics.json", about | {"rows": [row.to_dict() for row in result.rows()]})
    return result, seconds


# %% [markdown]
# In a few steps, with a network far too small, so that this page takes seconds:

# %%
import shutil
import tempfile

from IPython.display import Image as Picture

from verdiff.settings import load_settings

# %%
#| fig-alt: "Two phantoms with the prior, samples, their mean, their spread and the truth, from an almost untrained network."
folder = Path(tempfile.mkdtemp())
tiny = load_settings("demo", ["max_steps=30", "height=96", "width=32", "eval_height=96",
                              "eval_width=32", "channels=8,16,32", "warmup_steps=5"])
result, seconds = demo(tiny, folder, n_training=12, n_test=4)
print(result)
assert (folder / "metrics.json").exists()
Picture(folder / "result.png", width=700)

# %%
#| hide
shutil.rmtree(folder)
