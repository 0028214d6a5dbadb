# %% [markdown]
# # Results as files
# > Five files an image (six where it is a medical one), none of them written over somebody else's

# %% [markdown]
# Each radiograph gives four PNGs (in 16 bits the probability, value / 65535, and the uncertainty, value / 131070) and a small JSON: the confidence,
# the predicted Dice with its 90 % interval (`predicted_dice`), and how the mask was made. Each file says inside that verdiff wrote it, so a hand-drawn mask or the notes of a labelling program are never
# written over; the PNGs carry the signature of the run, the JSON its words, so an interrupted folder goes on where it stopped. A DICOM, a NIfTI and
# a MHA also get their mask in their own format, on their own pixels; the JSON holds its SHA-256, by which it is known again, and millimetres
# where the file tells them.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/results.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp segmentation.results

# %%
#| export
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from verdiff.files import (
    VerdiffError, atomic_write, files_below, read_json, tell_once, write_json,
)
from verdiff.io.images import SUFFIXES, Picture, is_image_file, without_suffix
from verdiff.segmentation.segmenter import Segmentation, overlay

# %%
import shutil
import tempfile

from verdiff.data.landmarks import landmarks_to_mask
from verdiff.data.phantoms import draw_phantom

# %%
#| export
KINDS = ("mask", "probability", "uncertainty", "overlay")


def to_16_bit(
    values: np.ndarray,  # in [0, 1]
) -> Image.Image:
    "A picture of 16 bits."
    return Image.fromarray(np.rint(65535 * np.clip(values, 0, 1)).astype(np.uint16))


def signature(about: dict[str, Any]) -> str:
    "A short name for one image in one run, for its files to carry."
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def png_info(about: dict[str, Any]) -> PngInfo:
    "What a PNG of ours says of itself."
    info = PngInfo()
    info.add_text("Software", "verdiff")
    info.add_text("Run", signature(about))
    return info


MEDICAL = ("_mask.dcm", "_mask.nii.gz", "_mask.mha")


def is_recorded(
    path: Path,  # STEM_mask.dcm, .nii.gz or .mha
) -> bool:
    "Whether STEM.json tells of this mask, byte by byte."
    stem = path.name[:path.name.rindex("_mask.")]
    found = read_json(path.with_name(f"{stem}.json"))
    return found.get("mask_sha256") == hashlib.sha256(path.read_bytes()).hexdigest()


def is_ours(
    path: Path,  # of a PNG, a JSON, or a mask of `MEDICAL`
) -> bool:
    "Whether verdiff wrote this file. A file that cannot be read belongs to somebody else."
    try:
        if path.name.endswith(MEDICAL):
            return is_recorded(path)
        if path.suffix == ".json":
            found = read_json(path)
            return isinstance(found, dict) and {"share_of_bone", "mean_uncertainty"} <= set(found)
        with Image.open(path) as file:
            return file.info.get("Software") == "verdiff"
    except (OSError, ValueError, AttributeError):
        return False


# %%
#| export
def result_paths(
    folder: Path,  # where the results of an image go
    stem: str,  # start of their names
    ending: str = "",  # of a medical mask
) -> list[Path]:  # STEM_mask.png, ..., STEM.json
    "The files of one image; VerdiffError where one of these names belongs to somebody else."
    names = [
        *(f"{stem}_{kind}.png" for kind in KINDS),
        *([f"{stem}_mask{ending}"] if ending else []),
    ]
    paths = [Path(folder, name) for name in (*names, f"{stem}.json")]
    if len(os.fsencode(stem)) > 210:  # of 255; the rest is for the ending and the temporary name
        raise VerdiffError(
            f"{stem}: too long a name, its results need longer ones; rename the file"
        )
    if others := [p for p in paths if p.exists() and not is_ours(p)]:
        raise VerdiffError(
            f"{others[0]}: not a result of verdiff, so it is not written over; "
            "name another output folder"
        )
    return paths


# %%
#| export
def save_segmentation(
    segmentation: Segmentation,  # what to save
    image: Any,  # the radiograph, for the overlay
    folder: Path,  # where to; made if missing
    stem: str,  # start of the file names
    medical: tuple[str, bytes] | None = None,  # ending and content of STEM_mask in another format
    **about: Any,  # what else STEM.json should say; `spacing_mm` is reckoned with
) -> list[Path]:  # the files, STEM.json last
    """Write STEM_mask.png (0 or 255), STEM_probability.png (16 bits, value / 65535),
    STEM_uncertainty.png (16 bits, value / 131070: white is 0.5), STEM_overlay.png, STEM.json.

    VerdiffError, before anything is written, where one of these names belongs to somebody else.
    """
    pictures = (
        Image.fromarray(segmentation.mask * np.uint8(255)),
        to_16_bit(segmentation.probability),
        to_16_bit(2 * segmentation.uncertainty),
        overlay(image, segmentation),
    )
    paths = result_paths(folder, stem, medical[0] if medical else "")
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path, picture in zip(paths[:4], pictures, strict=True):
        with atomic_write(path) as temporary:
            picture.save(temporary, format="PNG", pnginfo=png_info(about))
    record = about | {"versions": versions()} | segmentation.record()
    if spacing := about.get("spacing_mm"):
        record["bone_mm2"] = round(float(segmentation.mask.sum()) * spacing[0] * spacing[1], 1)
    if medical:  # the JSON first, which tells whose the mask is
        record["mask_sha256"] = hashlib.sha256(medical[1]).hexdigest()
        paths[4].unlink(missing_ok=True)
    write_json(paths[-1], record)
    if medical:
        with atomic_write(paths[4]) as temporary:
            temporary.write_bytes(medical[1])
    return paths


# %%
#| export
def versions() -> dict[str, str]:
    "Of what decides the last digits of a mask, beside verdiff and the model."
    return {"torch": torch.__version__, "numpy": np.__version__, "Pillow": PIL.__version__}


def say_other_versions(
    path: Path,  # STEM.json of a result that is there already
) -> None:
    "A line, once a process, where other versions made it."
    made = read_json(path).get("versions")
    made = made if isinstance(made, dict) else {}
    other = [f"{name} {made[name]!s:.30} (here {here})" for name, here in versions().items()
             if made.get(name, here) != here]
    if other:
        tell_once(f"note: what is there already was made with {', '.join(other)}; results may "
                 "differ in the last digits, --fresh makes them again")


# %%
#| export
def medical_facts(
    picture: Picture,
) -> dict[str, Any]:
    "What STEM.json says of a medical file: nothing of its patient."
    facts: dict[str, Any] = {}
    if picture.spacing:
        facts["spacing_mm"] = [round(mm, 6) for mm in picture.spacing]  # between rows, columns
    if picture.about.get("frames", 1) > 1:
        facts["frame"] = picture.about["frame"]
    return facts | ({"notes": list(picture.notes)} if picture.notes else {})


# %%
#| export
def is_done(
    paths: list[Path],  # as `result_paths` gives them
    about: dict[str, Any],  # image, model, steps, samples, seed
) -> bool:
    "Whether an earlier run wrote all files, about this very image in this very way."
    try:
        for path in paths[:4]:
            with Image.open(path) as file:
                if file.info.get("Run") != signature(about):
                    return False
        whole = all(map(is_recorded, paths[4:-1]))
        return whole and read_json(paths[-1]).items() >= about.items()
    except (OSError, ValueError, AttributeError):
        return False


# %%
#| export
def is_output(
    path: Path,  # of an image
    out: Path,  # output folder
) -> bool:
    "Whether an earlier run wrote this file into the output folder: by name, place and mark."
    ends = (*(f"_{kind}.png" for kind in KINDS), *MEDICAL)
    return path.name.endswith(ends) and out.resolve() in path.resolve().parents and is_ours(path)


# %%
#| export
def refuse_another(
    path: Path,  # STEM.json
    about: dict[str, Any],  # of the image that is to be written there
    fresh: bool,  # write over it all the same
) -> None:
    "VerdiffError where results of other pixels lie under that name, whatever the file's name."
    try:
        there = read_json(path)
    except (OSError, ValueError):
        return
    if not isinstance(there, dict) or there.get("pixels", about["pixels"]) == about["pixels"]:
        return
    if not fresh:
        raise VerdiffError(
            f"{path} holds the result of other pixels, those of {there.get('file')} at that time; "
            "use another --out, or --fresh to write over it"
        )


# %% [markdown]
# ## Which images
# Subfolders are read, earlier results are not, no two images share a name, and what does not end like an image is named, not dropped in silence.

# %%
#| export
def distinct(
    paths: list[Path],  # of images
    stems: list[Path],  # what their results would be called
) -> list[Path]:  # what they are called
    "No two the same: the name, else with its suffix, else below its folder, else numbered."
    better = (lambda p, s: s.with_name(p.name), lambda p, s: Path(p.absolute().parent.name, s))
    for longer in better:
        times = Counter(stems)
        stems = [longer(p, s) if times[s] > 1 else s for p, s in zip(paths, stems, strict=True)]
    seen: Counter[Path] = Counter()
    for i, stem in enumerate(stems):
        seen[stem] += 1
        stems[i] = stem.with_name(f"{stem.name}-{seen[stem]}") if seen[stem] > 1 else stem
    return stems


# %%
#| export
def list_images(
    sources: Sequence[str | Path],  # files and folders
    out: str | Path,  # output folder, for what must not be read again
) -> list[tuple[Path, Path]]:  # (file, name of its results below the output folder)
    """Every image of files and folders, in order; two of one name keep their suffix as well.

    In a folder of pairs, with images/ and masks/, the masks are left out.

    VerdiffError for a name that is empty, and a folder without an image.
    """

    found: dict[Path, Path] = {}  # a file that is named twice is segmented once
    if "" in sources:
        raise VerdiffError("one of the names of images is empty; give files or folders")
    for source in map(Path, sources):
        if not source.is_dir():
            found.setdefault(source, Path(without_suffix(source).name))
            continue
        inside = sorted(filter(is_image_file, files_below(source)))
        pairs = {"images", "masks"} <= {p.name for p in source.iterdir() if p.is_dir()}
        inside = [p for p in inside if not is_output(p, Path(out))
                  and not (pairs and source / "masks" in p.parents)]
        if not inside:
            raise VerdiffError(f"{source}: no image in this folder ({', '.join(SUFFIXES)})")
        for path in inside:
            found.setdefault(path, without_suffix(path.relative_to(source)))
    return list(zip(found, distinct(list(found), list(found.values())), strict=True))


# %%
#| export
def passed_over(
    sources: Sequence[str | Path],  # files and folders
    out: str | Path,  # output folder, whose files are no news
) -> list[Path]:
    "The files of folders that `list_images` leaves out because of their ending; hidden ones apart."
    files = (p for s in map(Path, sources) if s.is_dir() for p in sorted(files_below(s)))
    return [
        p
        for p in files
        if not is_image_file(p) and Path(out).resolve() not in p.resolve().parents
    ]


# %% [markdown]
# ## Use

# %%
folder = Path(tempfile.mkdtemp())
image = draw_phantom(7).image
mask = landmarks_to_mask(draw_phantom(7).landmarks, *image.shape)
soft = mask.astype(np.float32)
drawn = Segmentation(mask, soft, 0 * soft, soft)
about = {"file": "spine.png", "pixels": "a digest", "steps": 1}
written = save_segmentation(drawn, image, folder / "out", "spine", **about)
print(*(p.name for p in written), sep="\n")
assert is_done(written, about) and not is_done(written, about | {"steps": 10})
assert (np.asarray(Image.open(written[0])) > 0).astype(np.uint8).tolist() == mask.tolist()


# %%
Image.new("L", (4, 4)).save(folder / "out/hand_mask.png")  # somebody else's
for problem in (
    lambda: result_paths(folder / "out", "hand"),
    lambda: refuse_another(written[-1], about | {"file": "b.png", "pixels": "x"}, False),
):
    try:
        problem()
    except VerdiffError as error:
        print("-", str(error).replace(str(folder), "..."))
    else:
        raise AssertionError


# %%
two = [Path("monday/a.png"), Path("monday/a.tif"), Path("friday/b.png")]
print(*distinct(two, [p.with_suffix("") for p in two]))
(folder / "mixed").mkdir()
for name in ("a.png", "b.txt", ".hidden"):
    (folder / "mixed" / name).touch()
assert [p.name for p, _ in list_images([folder / "mixed"], "out")] == ["a.png"]
assert [p.name for p in passed_over([folder / "mixed"], "out")] == ["b.txt"]


# %%
#| hide
shutil.rmtree(folder)
