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
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

import verdiff
from verdiff.files import DataError, VerdiffError, say
from verdiff.io.images import Picture, open_images, window_of
from verdiff.io.masks import mask_bytes, medical_ending
from verdiff.segmentation.results import (
    is_done, list_images, medical_facts, passed_over, refuse_another, result_paths,
    save_segmentation, say_other_versions,
)
from verdiff.segmentation.segmenter import Segmentation, Segmenter


# %%
#| export
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


# %% [markdown]
# A multi-frame DICOM holds several pictures; each gets results of its own, called after its frame.

# %%
#| export
def pictures_of(
    path: Path,
    place: Path,  # where the results go, and how their names start
    window: int | tuple[float, float] | None = None,
) -> Iterator[tuple[Picture, Path]]:  # each with its own place
    "The pictures of a file, one at a time; DataError as `open_images`."
    for picture in open_images(path, window):
        many = picture.about.get("frames", 1) > 1
        name = f"{place.name}_frame{picture.about['frame']:03d}" if many else place.name
        yield picture, place.with_name(name)


def facts_to_do(
    picture: Picture,
    place: Path,
    way: dict[str, Any],  # file, model, steps, ensemble, seed, ...
    fresh: bool = False,  # segment again what is there already
) -> dict[str, Any] | None:  # what its files are to say; None: they are there already
    "VerdiffError where they would lie over somebody else's."
    pixels = hashlib.sha256(picture.pixels.tobytes()).hexdigest()
    about = {"file": way["file"], "pixels": pixels, **way, **medical_facts(picture)}
    ending = medical_ending(picture, about["nifti"])
    paths = result_paths(place.parent, place.name, ending)
    if not fresh and is_done(paths, about):
        say_other_versions(paths[-1])
        return None
    refuse_another(paths[-1], about, fresh)
    return about


def segment_picture(
    segmenter: Segmenter,
    picture: Picture,
    place: Path,
    about: dict[str, Any],  # by `facts_to_do`
) -> Segmentation:
    "Segment one picture into its files."
    image, medical = Image.fromarray(picture.pixels), None
    ending = medical_ending(picture, about["nifti"])
    result = segmenter.predict(image, about["steps"], about["ensemble"], about["seed"],
                               about["zoom"])
    if ending:
        try:
            medical = ending, mask_bytes(result.mask > 0, picture, ending, about["verdiff"])
        except DataError as error:
            say(f"note: {about['file']}: no mask as {ending}: {error}")
    save_segmentation(result, image, place.parent, place.name, medical, **about)
    return result


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
    window: Any = None,  # of DICOM: which, from 0, or (centre, width); or in words, see `window_of`
    zoom: bool = True,  # to a spine that is small, see `find_spine`
    nifti: bool = False,  # the mask of a DICOM as NIfTI, not as DICOM segmentation
) -> Counter[str]:  # "images", "there already", "could not be done", "with a warning"
    """Segment every image, each into five files or six; see `save_segmentation`.

    A bad file is named on stderr and counted. VerdiffError where no image is found at all.
    """
    images, window, count = list_images(sources, out), window_of(window), Counter({"images": 0})
    steps, ensemble = steps or segmenter.usual[0], ensemble or segmenter.usual[1]
    say_before(segmenter, sources, out, (steps, ensemble))
    way = {"model": model, "fingerprint": segmenter.fingerprint(), "steps": steps,
           "ensemble": ensemble, "seed": seed, "zoom": zoom, "nifti": nifti,
           "verdiff": verdiff.__version__}
    for path, stem in tqdm(images, "segment", unit="image", disable=None if progress else True):
        pictures, notes = pictures_of(path, out / stem, window), ()
        while True:
            try:
                if (found := next(pictures, None)) is None:
                    break
                about = facts_to_do(*found, {"file": str(path), **way}, fresh)
            except VerdiffError as error:
                count.update(["images", "could not be done"])
                say(f"error: {error}")
                continue
            count["images"] += 1
            if about is None:
                count["there already"] += 1
                continue
            if found[0].notes != notes:
                notes = found[0].notes
                say(f"note: {path}: {'; '.join(notes)}")
            try:
                result = segment_picture(segmenter, *found, about)
            except MemoryError:  # for pixels of its own; for one sample of any is a VerdiffError
                count["could not be done"] += 1
                say(f"error: {path}: not enough memory; give a smaller copy")
                continue
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
