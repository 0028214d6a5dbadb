# %% [markdown]
# # Files
# > One sentence when something is wrong, and never half a file

# %% [markdown]
# Everything that verdiff writes goes through this module: to a temporary name in the same folder, forced to the
# disk, then renamed, so that a reader finds the old file or the new one and never half of one. Everything that a
# user can put right is a `VerdiffError` whose message is one sentence: which file, what is wrong with it, what to
# do. The command line prints it and ends with exit code 2.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/files.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp files

# %%
#| export
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

# %%
import multiprocessing

# %% [markdown]
# ## Errors

# %%
#| export
class VerdiffError(ValueError):
    "Something that a user can put right; the message is one sentence that says how."

    def __str__(self) -> str:
        "The sentence; of what a hostile file makes it quote, the start and the end."
        text = super().__str__()
        return text if len(text) < 3000 else f"{text[:1400]} ... {text[-1400:]}"


class DataError(VerdiffError):
    "Something is wrong with a file or folder of data; the message names it."


# %% [markdown]
# Two things that no input explains have names of their own in each library: memory that runs short, and a GPU that is gone.

# %%
#| export
def is_memory_short(error: BaseException) -> bool:
    "Whether the memory of the machine or of a GPU ran short, as Python, numpy or torch say it."
    words = ("out of memory", "allocate memory", "not enough memory", "alloc_failed",
             "insufficient shared memory", "killed by signal: killed")  # the last: of a worker
    of_torch = isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or of_torch


def is_device_lost(error: BaseException) -> bool:
    "Whether a GPU stopped working; an assertion on it is a fault of ours, and is not meant."
    words = str(error).lower()
    told = any(w in words for w in ("cuda error", "hip error", "execution_failed", "device lost"))
    of_device = type(error).__name__ == "AcceleratorError" or told
    lost = isinstance(error, RuntimeError) and of_device and "assert" not in words
    return lost and not is_memory_short(error)


# %%
#| export
def say(text: str) -> None:
    "A line on stderr that leaves a bar whole."
    from tqdm import tqdm  # late: the command line starts without it

    tqdm.write(f"verdiff: {text}", file=sys.stderr)


@lru_cache
def tell_once(text: str) -> None:
    "The same, once a process."
    say(text)


def halved(
    rows: int,  # that were tried at once
    error: Exception,  # what came of it
) -> int:
    """How many to try next; the error again where it was not of memory.

    VerdiffError where it was a single one.
    """
    if not is_memory_short(error):
        raise error
    if rows == 1:
        raise VerdiffError("the memory does not hold even one sample; take a smaller size, or "
                           "another device") from error
    half = -(-rows // 2)
    tell_once(f"note: memory runs short, going on with {half} sample{'s' * (half > 1)} at a time")
    return half


# %%
assert is_memory_short(MemoryError()) and not is_memory_short(ValueError("out of memory"))
assert is_device_lost(RuntimeError("CUDA error: unspecified launch failure"))
assert not is_device_lost(RuntimeError("CUDA error: device-side assert triggered"))


# %% [markdown]
# ## A file, whole or not at all

# %%
#| export
def _sync_folder(folder: Path) -> None:
    "Let the rename, too, survive a power cut, where the system can."
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        with suppress(OSError):  # some network drives refuse
            os.fsync(number)
        os.close(number)


def _is_disk_trouble(error: Exception) -> bool:
    "Whether a library wrapped an error of the disk: torch's writer and safetensors do."
    words = ("no space left", "file write failed", "unexpected pos", "i/o error", "iostream error")
    return any(w in str(error).lower() for w in words)


# %%
#| export
@contextmanager
def atomic_write(
    path: str | Path,  # the file to write; its folder must exist
) -> Iterator[Path]:  # a temporary file in the same folder: write to it
    """Write a file whole or not at all: temporary name, fsync, rename.

    When the body or the disk fails, the previous file stays as it was and the temporary one is
    removed. OSError (a full disk, say) and what torch and safetensors raise in its place become a
    VerdiffError that names the file; other errors pass.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    kept = "the previous file is unchanged" if path.exists() else "nothing was written"
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise VerdiffError(f"could not save {path}: {error.strerror or error}; {kept}") from error
    except Exception as error:
        if not _is_disk_trouble(error):
            raise
        if "permission denied" in str(error).lower():
            raise VerdiffError(f"could not save {path}: Permission denied; {kept}") from error
        raise VerdiffError(f"could not save {path}: writing broke off, probably because the disk "
                           f"is full ({error}); {kept}") from error
    finally:
        temporary.unlink(missing_ok=True)


# %%
#| export
def read_json(path: Path) -> Any:
    "What a JSON file holds; VerdiffError for whatever is none, OSError where it cannot be read."
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # the second: a million opening brackets
        raise VerdiffError(f"{path} is not JSON ({error}); write it again, or remove it") from None


def write_json(path: Path, content: Any) -> None:
    "Write JSON, whole or not at all. VerdiffError where the disk fails."
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_csv(path: Path, records: list[dict[str, Any]]) -> None:
    "Write records as CSV with a header, whole or not at all. VerdiffError where the disk fails."
    with atomic_write(path) as temporary:
        with open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(records)


# %% [markdown]
# Fail after each of six parts, once with the naive way and once with this one, and look at what is on the disk:

# %%
folder = Path(tempfile.mkdtemp())


def naive_save(path, parts):
    with open(path, "w") as file:
        for part in parts:
            file.write(part)


def atomic_save(path, parts):
    with atomic_write(path) as temporary:
        naive_save(temporary, parts)


def after_failure(save, at):
    "What the file says when the disk is full after so many parts of six."
    def parts():
        for i in range(6):
            if i == at:
                raise OSError(28, "No space left on device")
            yield "new "

    path = folder / "notes.txt"
    path.write_text("old")
    with suppress(OSError, VerdiffError):
        save(path, parts())
    return path.read_text()


for save in (naive_save, atomic_save):
    print(f"{save.__name__:12s}", [after_failure(save, at) for at in (0, 3, 6)])
assert {after_failure(atomic_save, at) for at in range(6)} == {"old"}

# %% [markdown]
# ## Folders
# A folder of many files, too, appears complete or not at all.

# %%
#| export
@contextmanager
def fresh_folder(
    root: Path,  # must not exist yet, or be empty
) -> Iterator[Path]:  # a folder beside it: fill it
    "A folder that appears complete or not at all; DataError where it cannot."
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root}: already exists; remove it or name another folder")
    fresh = None
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
        yield fresh
        fresh.chmod(0o755)
        os.replace(fresh, root)
    except OSError as error:
        raise DataError(f"{root}: cannot be written ({error.strerror or error}); free some space "
                        "or name another folder") from None
    finally:
        if fresh is not None:
            shutil.rmtree(fresh, ignore_errors=True)


# %%
#| export
def output_folder(
    name: str,  # as typed
) -> Path:
    "Where results will go, before hours of work; VerdiffError if it cannot be a folder."
    if not name:
        raise VerdiffError("the name of the output folder is empty; name a folder for the results")
    folder = Path(name)
    there = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    if not there.is_dir():
        raise VerdiffError(f"{there} is a file; name a folder for the results")
    if not os.access(there, os.W_OK | os.X_OK):
        raise VerdiffError(f"{there}: no permission to write there; name another folder")
    return folder


def _refuse(error: OSError) -> NoReturn:
    "For `os.walk`, which would pass over a folder that it may not read."
    raise DataError(f"{error.filename}: {error.strerror}; let this folder be read, or move it away")


def files_below(
    source: Path,  # a folder
) -> Iterator[Path]:
    """Its files and those of its subfolders, hidden ones apart; links are followed, each real
    folder once. DataError for one that is locked.
    """
    seen: set[str] = set()
    for at, folders, names in os.walk(source, onerror=_refuse, followlinks=True):
        real = os.path.realpath(at)
        folders[:] = sorted(n for n in folders if not n.startswith(".") and real not in seen)
        if real in seen:
            continue
        seen.add(real)
        yield from (Path(at) / name for name in names if not name.startswith("."))


# %%
with suppress(RuntimeError), fresh_folder(folder / "set") as fresh:
    (fresh / "half.txt").write_text("half")
    raise RuntimeError("killed")
assert not (folder / "set").exists()
print(sorted(p.name for p in files_below(folder)))

# %% [markdown]
# ## One process a folder
# Two runs in one folder would sweep away each other's files. The lock is `filelock`'s, which works on Windows, too; its
# file stays where it is, since a lock that removes its own file can be held twice.

# %%
#| export
@contextmanager
def run_lock(
    out: Path,  # folder of the run; made if missing
) -> Iterator[None]:
    "Keep other processes out of a run, as long as this one lives; VerdiffError where one is there."
    from filelock import FileLock, Timeout  # late: it takes a fifth of a second

    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            yield
    except Timeout:
        raise VerdiffError(f"{out}: another process is at work there; wait for it, or use "
                           "another --out") from None


# %%
def try_lock(out):
    "Exit code 3 where the folder is taken."
    try:
        with run_lock(out):
            pass
    except VerdiffError:
        raise SystemExit(3) from None


def exit_code():
    other = multiprocessing.get_context("fork").Process(target=try_lock, args=(folder / "run",))
    other.start()
    other.join()
    return other.exitcode


with run_lock(folder / "run"):
    taken = exit_code()
print("while it is held:", taken, " afterwards:", exit_code())
assert (taken, exit_code()) == (3, 0)

# %% [markdown]
# ## Which code made this?

# %%
#| export
@lru_cache(1)
def git_revision() -> str | None:
    "The commit of the clone that is running, None outside of a clone."
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


# %%
#| hide
shutil.rmtree(folder)
