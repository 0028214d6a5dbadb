# %% [markdown]
# # A folder of images
# > One after the other, none twice, and a bad file stops nobody

# %% [markdown]
# `segment_files` is the loop behind `verdiff segment`. It holds one image in memory at a time, leaves out what an earlier run did
# with the same pixels in the same way, never writes over the result of another image, and names a bad file and goes on.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/folder.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp segmentation.folder

# %%
#| export
import hashlib
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

import verdiff
from verdiff.files import VerdiffError
from verdiff.io.images import read_image
from verdiff.segmentation.results import (
    is_done, list_images, passed_over, refuse_another, result_paths, save_segmentation,
)
from verdiff.segmentation.segmenter import Segmenter


# %%
#| export
def say(text: str) -> None:
    "A line on stderr that leaves the bar whole."
    tqdm.write(f"verdiff: {text}", file=sys.stderr)


def say_before(
    segmenter: Segmenter,
    sources: Sequence[str | Path],  # files and folders
    out: Path,  # output folder
    way: tuple[int, int],  # steps, samples
) -> None:
    "What a user should know before the first image."
    if others := passed_over(sources, out):
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        say(f"note: passed over, no image by its ending: {', '.join(map(str, others[:3]))}{more}")
    if segmenter.reference is None:
        say("note: this model was not calibrated, so no result has a confidence; see "
            "verdiff calibrate --help")
    elif way != segmenter.usual:
        steps, ensemble = segmenter.usual
        say(f"note: this model was calibrated with --steps {steps} --ensemble {ensemble}, so with "
            "others no result has a confidence")


# %%
#| export
def segment_files(
    segmenter: Segmenter,
    sources: Sequence[str | Path],  # files and folders
    out: Path,  # output folder
    steps: int | None = None,  # of the sampler; None: as calibrated, else 1
    ensemble: int | None = None,  # samples an image; None: as calibrated, else 5
    seed: int = 0,
    fresh: bool = False,  # segment again what is there already
    model: str = "bundled",  # the model's name, for the records
    progress: bool = True,  # show a bar
) -> Counter[str]:  # "images", "there already", "could not be done", "with a warning"
    """Segment every image, each into five files; see `save_segmentation`.

    A bad file is named on stderr and counted. VerdiffError where no image is found at all.
    """
    images = list_images(sources, out)
    steps, ensemble = steps or segmenter.usual[0], ensemble or segmenter.usual[1]
    say_before(segmenter, sources, out, (steps, ensemble))
    way = {"model": model, "fingerprint": segmenter.fingerprint(), "steps": steps,
           "ensemble": ensemble, "seed": seed, "verdiff": verdiff.__version__}
    count = Counter({"images": len(images)})
    for path, stem in tqdm(images, "segment", unit="image", disable=None if progress else True):
        try:
            paths, image = result_paths(out / stem.parent, stem.name), read_image(path)
            pixels = hashlib.sha256(np.asarray(image).tobytes()).hexdigest()
            about = {"file": str(path), "pixels": pixels, **way}
            if not fresh and is_done(paths, about):
                count["there already"] += 1
                continue
            refuse_another(paths[-1], about, fresh)
        except VerdiffError as error:
            count["could not be done"] += 1
            say(f"error: {error}")
            continue
        result = segmenter.predict(image, steps, ensemble, seed)
        save_segmentation(result, image, out / stem.parent, stem.name, **about)
        if result.warning:
            count["with a warning"] += 1
            say(f"warning: {path}: {result.warning}")
    return count


# %%
import os
import shutil
import tempfile
from contextlib import redirect_stderr

from IPython import get_ipython
from PIL import Image

from verdiff.data.phantoms import draw_phantom

# %%
folder = Path(tempfile.mkdtemp())
(folder / "scans").mkdir()
for k in range(2):
    Image.fromarray(draw_phantom(k).image).save(folder / f"scans/{k}.png")
(folder / "scans/letter.png").write_text("Dear colleague,")
segmenter, here = Segmenter.from_pretrained(), os.getcwd()
os.chdir(folder)
with redirect_stderr(sys.stdout):
    first = segment_files(segmenter, ["scans"], Path("out"), progress=False)
    again = segment_files(segmenter, ["scans"], Path("out"), progress=False)
os.chdir(here)
assert first["images"] == 3 and first["could not be done"] == again["could not be done"] == 1
assert first["there already"] == 0 and again["there already"] == 2

# %%
#| hide
shutil.rmtree(folder)
