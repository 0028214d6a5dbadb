# %% [markdown]
# # The demo
# > Everything once, on phantoms: train, segment, score, draw

# %% [markdown]
# `verdiff demo` (and `make demo`) is for whoever wants to see the whole method work before reading a line: it trains a small network on phantom spines, segments others that it has never seen, prints their Dice and leaves a picture. Its numbers are the profile `demo` in `settings.ini`; it takes under ten minutes on two cores. This page shows the same in seconds, with a network far too small and far too short in training ([![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/lab/demo.ipynb)).

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().run_line_magic(  # noqa: F821
        "pip", "install -q 'verdiff[notebooks] @ git+https://github.com/verdiff/verdiff'")

# %%
#| default_exp lab.demo

# %%
#| code-fold: true
import shutil
import tempfile
from pathlib import Path

import torch
from IPython.display import Image as Picture

from verdiff.lab.demo import demo
from verdiff.settings import load_settings

# %%
#| code-fold: true
torch.set_num_threads(1)
folder = Path(tempfile.mkdtemp())
tiny = load_settings("demo", ["max_steps=120", "height=96", "width=32", "eval_height=96",
                              "eval_width=32", "channels=8,16,32", "warmup_steps=5"])

# %% [markdown]
# ## What it prints and draws
#
# 120 steps on 24 phantoms:

# %%
result, seconds = demo(tiny, folder, n_training=24, n_test=4)
print(result)

# %%
#| code-fold: true
#| fig-alt: "Three phantoms, one a row. The prior is one smooth tube along the spine; each of three samples breaks it into blobs, not always where the vertebrae are; their mean is blurred, their spread strong all along; the truth is a column of separate blocks."
assert (folder / "metrics.json").exists()
Picture(folder / "result.png", width=700)

# %% [markdown]
# A row a phantom: the image, the prior, samples of the diffusion, their mean, their spread, the true mask. The folder holds the run, which `verdiff segment --model` reads, the tables and the picture:

# %%
#| code-fold: true
files = (p.relative_to(folder).as_posix() for p in folder.rglob("[!.]*.*"))
print(*sorted(files), sep="\n")

# %% [markdown]
# ## The code

# %%
#| exports
#| code-fold: true
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
#| exports
#| code-fold: true
def demo(
    settings: Settings,  # profile "demo"
    out: Path,  # folder: the run, result.png, metrics.json, evaluation.csv, ...
    n_training: int = 96,  # phantoms to train on
    n_test: int = 24,  # phantoms to test on
    fresh: bool = False,  # start over instead of resuming
) -> tuple[Evaluation, float]:  # scores on the test phantoms, and seconds in all
    """Train on phantoms, score on others, draw three of them.

    Goes on where an interrupted demo left off. VerdiffError where `out` holds another run or sizes
    do not fit; KeyboardInterrupt after a save.
    """
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

# %%
#| hide
shutil.rmtree(folder)
