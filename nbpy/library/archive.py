# %% [markdown]
# # The published layout
# > One reader for folder and zip

# %% [markdown]
# The public X-ray set (SpineWeb 16, AASCE 2019) lies in one layout: images in `data/SPLIT`, and in `labels/SPLIT` three tables with a row
# an image. `Store` reads it from a folder or straight from the zip; where the layout begins differs from copy to copy, so a file that
# must be there is looked for. The tables are checked first, since a missing row would silently shift every label by one image.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/archive.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp io.archive

# %%
#| export
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from verdiff.files import DataError, files_below

# %%
import shutil
import tempfile


# %%
#| export
def layout_top(
    paths: Iterable[str],  # of files, anywhere
) -> str | None:  # "" or a folder with its slash at the end; None where the layout is not
    "What stands before labels/SPLIT/filenames.csv."
    found = (re.match(r"(.*?)labels/[^/]+/filenames\.csv$", path) for path in paths)
    return next((m[1] for m in found if m), None)


# %%
assert layout_top(["labels/test/filenames.csv"]) == ""
assert layout_top(["holiday.jpg"]) is None
print(layout_top(["copy/readme.txt", "copy/boostnet_labeldata/labels/test/filenames.csv"]))


# %%
#| export
ZIP_TROUBLE = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError,
               RuntimeError)


def open_zip(
    path: Path,
) -> zipfile.ZipFile:
    "An open archive; DataError where it is none or is cut off."
    try:
        return zipfile.ZipFile(path)
    except ZIP_TROUBLE as error:
        raise DataError(f"{path}: not a complete zip file ({error}); if the download broke off, "
                        "run `verdiff data xray` again") from None


def locate(
    root: str | Path,  # folder or zip
) -> Path:
    """The folder itself, or the zip that was downloaded into it.

    DataError where there is neither.
    """
    root = Path(root)
    if not root.exists():
        raise DataError(f"{root}: no such file or folder; `verdiff data xray` fetches the X-ray "
                        "set, `verdiff data phantom` draws phantoms")
    if root.is_dir() and layout_top(p.as_posix() for p in files_below(root)) is None:
        return next(iter(sorted(root.glob("*.zip"))), root)
    return root


# %% [markdown]
# A zip is opened anew in every process, since a file handle must not travel to the workers of a `DataLoader`.

# %%
#| export
class Store:
    "The files of a folder or a zip in the published layout, by their path below its top."

    def __init__(self, root: str | Path):
        self.root = locate(root)
        self.is_zip = self.root.is_file()
        self._zip: tuple[int, zipfile.ZipFile] | None = None
        paths = self.archive().namelist() if self.is_zip else (
            p.as_posix() for p in files_below(self.root))
        self.top = layout_top(paths)

    def archive(self) -> zipfile.ZipFile:
        "The zip, open in this process."
        if self._zip is None or self._zip[0] != os.getpid():
            self._zip = os.getpid(), open_zip(self.root)
        return self._zip[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_zip": None}

    def stamp(self, name: str) -> str | None:
        "Changes when the file changes; None where there is none."
        if self.is_zip:
            info = self.archive().NameToInfo.get(f"{self.top}{name}")
            return info and f"{info.CRC:08x}-{info.file_size}"
        try:
            path = Path(f"{self.top}{name}")
            inside = path.is_file() and ".." not in Path(name).parts
            return f"{path.stat().st_mtime_ns:x}-{path.stat().st_size}" if inside else None
        except (OSError, ValueError):  # a name that no system takes
            return None


# %%
#| export
FILE_AT_MOST, TABLE_AT_MOST = 1 << 28, 1 << 26  # bytes of an image and of a table, unpacked


def read_bytes(
    store: Store,
    name: str,  # below the top
) -> bytes:
    "One file; DataError where it is missing or damaged."
    if store.stamp(name) is None:
        raise DataError(f"{store.root}: {name} is missing; the set is not complete")
    size = int(store.stamp(name).rpartition("-")[2])
    most = FILE_AT_MOST if name.startswith("data/") else TABLE_AT_MOST
    if size > most:
        raise DataError(f"{store.root}: {name} has {size >> 20} MiB, {most >> 20} are the limit; "
                        "fetch the set again")
    try:
        if store.is_zip:
            return store.archive().read(f"{store.top}{name}")
        return Path(f"{store.top}{name}").read_bytes()
    except ZIP_TROUBLE as error:
        raise DataError(f"{store.root}: {name} cannot be read ({error}); "
                        "fetch the set again") from None


# %% [markdown]
# ## Tables

# %%
#| export
def numbers(
    words: Sequence[str],
    low: float,  # smallest and largest value that can be right
    high: float,
    where: str,  # to name in errors
) -> list[float]:
    "Words as numbers; DataError for what is none, NaN, or out of range."
    values = []
    for word in words:
        try:
            values.append(float(word))
        except ValueError:
            values.append(np.nan)
        if not low <= values[-1] <= high:  # NaN fails too
            raise DataError(f"{where} holds {word.strip()!r}, which is no number between {low:g} "
                            f"and {high:g}; correct it or take the image out of all three tables")
    return values


# %%
#| export
def read_lines(store: Store, name: str) -> list[str]:
    "The lines of a text file that are not blank."
    text = read_bytes(store, name).decode("utf-8-sig", "replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_table(
    store: Store,
    name: str,  # below the top, for example labels/test/angles.csv
    rows: int,  # how many are expected
    columns: int,
    low: float,  # smallest and largest value that can be right
    high: float,
) -> np.ndarray:  # float64, (rows, columns)
    "A table of numbers; DataError says which row of which file is wrong."
    lines = read_lines(store, name)
    if len(lines) != rows:
        raise DataError(f"{store.root}: {name} has {len(lines)} rows but filenames.csv has {rows}; "
                        "every image needs exactly one")
    table = np.empty((rows, columns))
    for i, line in enumerate(lines):
        words, where = line.split(","), f"{store.root}: row {i + 1} of {name}"
        if len(words) != columns:
            raise DataError(f"{where} has {len(words)} values, not {columns}; correct the row")
        table[i] = numbers(words, low, high, where)
    return table


# %%
#| export
class Labels(NamedTuple):
    "The tables of one split."

    names: list[str]  # file names
    shares: np.ndarray  # landmarks as shares of width and height, (N, 68, 2)
    angles: np.ndarray  # degrees, (N, 3)


def read_labels(
    store: Store,
    split: str,  # "training" or "test"
) -> Labels:
    "Names, landmarks and angles; DataError where they do not go together."
    tables = f"labels/{split}"
    names = read_lines(store, f"{tables}/filenames.csv")
    if not names:
        raise DataError(f"{store.root}: {tables}/filenames.csv names no image; fetch the set again")
    if lost := [name for name in names if store.stamp(f"data/{split}/{name}") is None]:
        raise DataError(
            f"{store.root}: {tables}/filenames.csv names {lost[0]}, but data/{split} has "
            f"no such file ({len(lost)} missing); add it or take its row out of all "
            "three tables"
        )
    flat = read_table(store, f"{tables}/landmarks.csv", len(names), 136, -0.1, 1.1)
    shares = flat.reshape(-1, 2, 68).transpose(0, 2, 1)  # n (2 68) -> n 68 2
    return Labels(names, shares, read_table(store, f"{tables}/angles.csv", len(names), 3, 0, 180))


# %% [markdown]
# ## Use
# A set of one image in a zip, and three ways in which its tables can be wrong:

# %%
folder = Path(tempfile.mkdtemp())
row = ",".join(["0.5"] * 136)


def set_with(**tables):
    "A zip in the published layout, with these tables in place of the right ones."
    tables = {"filenames": "a.jpg", "landmarks": row, "angles": "12.5,3,7"} | tables
    with zipfile.ZipFile(folder / "tiny.zip", "w") as file:
        file.writestr("copy/data/test/a.jpg", b"")
        for name, text in tables.items():
            file.writestr(f"copy/labels/test/{name}.csv", text + "\n")
    return Store(folder)


# %%
found = read_labels(set_with(), "test")
print(found.names, found.shares.shape, found.angles)
for wrong in ({"angles": "12.5,3,7\n1,2,3"}, {"landmarks": row.replace("0.5", "nan", 1)},
              {"filenames": "b.jpg"}):
    try:
        read_labels(set_with(**wrong), "test")
    except DataError as error:
        print("-", str(error).replace(str(folder), "..."))
    else:
        raise AssertionError(wrong)


# %%
#| hide
shutil.rmtree(folder)
