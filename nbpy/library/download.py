# %% [markdown]
# # Fetching the X-ray set
# > Resumed where it broke off, verified to the last byte

# %% [markdown]
# Two public places hold the X-ray set: the address in the paper's data statement (one letter of it mended) and a repository on GitHub, pinned
# to a commit, both by https. A broken download goes on where it stopped; what arrives is checked by names, sizes and checksums of what is *in* the
# archive. The set may be used for research; no file of it is in this repository.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/download.ipynb).

# %%
#| hide
import sys
if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp io.download

# %%
#| export
import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from verdiff.files import DataError
from verdiff.io.archive import Store, ZIP_TROUBLE

# %%
import shutil
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from verdiff.data.phantom_set import write_phantoms


# %%
#| export
XRAY_NAME = "scoliosis-xray-single-view.zip"


def find_xray() -> Path | None:
    "The X-ray set where VERDIFF_XRAY names it, or in the current folder or its data/; else None."
    if (named := os.environ.get("VERDIFF_XRAY")) and Path(named).exists():
        return Path(named)
    places = (Path(XRAY_NAME), Path("data", XRAY_NAME), Path("data/xray", XRAY_NAME))
    return next((place for place in places if place.exists()), None)


# %%
#| export
XRAY_SOURCES = (
    "https://www.dropbox.com/scl/fi/80hduycgyrbse281sdtdj/scoliosis-xray-Single-View.zip"
    "?rlkey=opye7f5de0avh3isc1br5gwj&dl=1",
    "https://codeload.github.com/zlinzju/ke30_u7_AASCE2019/zip/e5ba86f4a2271b10848d05aa13a2a4e39d3adfd8",
)
XRAY_MANIFEST = "90004c1822c5a1a64773c244f647681d1cfb8208bf380eb266084af393ad4a2d"


def manifest(
    archive: str | Path,  # a zip that holds the published layout somewhere
) -> str:  # hex digest
    """SHA-256 of the names, sizes and CRCs of all images and tables; reads every byte.

    DataError for a zip of another layout, or a damaged one.
    """
    store = Store(archive)
    if not store.is_zip or store.top is None:
        raise DataError(f"{archive}: no published layout inside (data/ and labels/)")
    try:
        bad = store.archive().testzip()
    except ZIP_TROUBLE as error:
        bad = error
    if bad is not None:
        raise DataError(f"{archive}: damaged ({bad}); download it again")
    inside = re.compile(re.escape(store.top) + r"((data|labels)/.+\.(jpg|csv|mat))$")
    facts = sorted(
        (found[1], info.file_size, info.CRC)
        for info in store.archive().infolist()
        if (found := inside.match(info.filename))
    )
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


# %%
if XRAY := find_xray():
    assert manifest(XRAY) == XRAY_MANIFEST
print("the X-ray set is", "here, and whole" if XRAY else "not here")


# %% [markdown]
# ## One file, in pieces
# A rest is asked for only where the server still serves the file that the first part came from: its ETag or Last-Modified is kept beside the
# part and sent along (`If-Range`), and an answer that names another one is not appended.

# %%
#| export
AT_MOST = 1 << 30  # bytes of a download; the set has 75 MiB
SLOWEST = 1024  # bytes a second


def is_secure(
    url: str,
) -> bool:
    "Whether nobody on the way can change what comes: https, or this machine itself."
    parts = urllib.parse.urlsplit(url)
    at_home = parts.hostname in ("127.0.0.1", "::1", "localhost")
    return parts.scheme == "https" or (parts.scheme == "http" and at_home)


class SecureRedirects(urllib.request.HTTPRedirectHandler):
    "Follows a server elsewhere, but never to an address without https."

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any,
                         newurl: str) -> urllib.request.Request | None:
        "OSError where the new address is not secure."
        if not is_secure(newurl):
            raise OSError(f"the server sends on to {newurl[:80]}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def identity(
    answer: http.client.HTTPResponse,
) -> str:  # "" where there is none that proves sameness byte by byte
    "What tells this file of the server from another one under the same address."
    tag = answer.headers.get("ETag", "")
    return tag if tag.startswith('"') else answer.headers.get("Last-Modified", "")


# %%
#| export
def ask(
    url: str,
    have: int,  # bytes of it that are here already
    known: str,  # identity of the file that they are of
    timeout: float,  # seconds without a byte
) -> http.client.HTTPResponse | None:  # None: there is nothing left to fetch
    "Open an address, from a byte on (HTTP Range). Errors are OSError."
    if not is_secure(url):
        raise OSError(f"{url[:80]} is not https")
    request = urllib.request.Request(url, headers={"User-Agent": "verdiff"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", known)
    try:
        return urllib.request.build_opener(SecureRedirects).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have and identity(error) in ("", known):
            return None
        raise


# %%
#| export
def blocks(
    answer: http.client.HTTPResponse,
    timeout: float,  # seconds in which `SLOWEST` bytes each must come
) -> Iterator[bytes]:
    "What comes; OSError where it hardly comes."
    began, count = time.monotonic(), 0
    while block := answer.read1(1 << 18):
        count += len(block)
        yield block
        if (seconds := time.monotonic() - began) > timeout:
            if count < SLOWEST * seconds:
                raise OSError(f"slower than {SLOWEST:,} bytes a second")
            began, count = time.monotonic(), 0


def receive(
    answer: http.client.HTTPResponse,
    part: Path,  # file to write, or to continue if the server answers with a range
    have: int,  # bytes in it
    timeout: float,
    progress: bool = True,
) -> None:
    "Write what comes; OSError where it ends too early or is too much."
    resumed = answer.status == 206
    have = have if resumed else 0
    length = answer.headers.get("Content-Length", "")
    total = have + int(length) if length.isdecimal() else None
    if (total or 0) > AT_MOST:
        raise OSError(f"the file has {total:,} bytes, and {AT_MOST:,} are the limit")
    with open(part, "ab" if resumed else "wb") as file, tqdm(
            total=total, initial=have, unit="B", unit_scale=True, desc=part.stem.lstrip("."),
            disable=None if progress else True) as bar:
        note_of(part).write_text(identity(answer), encoding="utf-8")
        for block in blocks(answer, timeout):
            if file.tell() + len(block) > AT_MOST:
                file.truncate(0)
                raise OSError(f"the file has more than {AT_MOST:,} bytes, which are the limit")
            file.write(block)
            bar.update(len(block))
        if total is not None and file.tell() < total:
            raise OSError(f"the connection ended after {file.tell():,} of {total:,} bytes")


# %%
#| export
def note_of(
    part: Path,
) -> Path:
    "Where the identity of a part is kept."
    return part.with_name(f"{part.name}.of")


def fetch(
    url: str,
    part: Path,  # file to write; what is there already is continued if the server still has it
    timeout: float = 30,  # seconds without a byte
    progress: bool = True,
) -> None:
    "Download one file, going on where an earlier try stopped. Errors are OSError."
    note = note_of(part)
    known = note.read_text(encoding="utf-8") if note.exists() else ""
    have = part.stat().st_size if part.exists() and known else 0
    try:
        answer = ask(url, have, known, timeout)
        if answer is not None and answer.status == 206:
            start = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
            if not (start and int(start[1]) == have and identity(answer) in ("", known)):
                answer.close()  # of another file, or from another place: all of it, then
                answer = ask(url, 0, "", timeout)
        if answer is not None:
            with answer:
                receive(answer, part, have, timeout, progress)
    except http.client.HTTPException as error:  # a broken chunk, a garbled first line
        raise OSError(f"the connection broke off ({error!r})") from error


# %% [markdown]
# ## The set

# %%
#| export
def verify(
    archive: Path,
    wanted: str | None,  # its manifest; None: do not check
) -> None:
    "DataError where an archive is damaged or holds other files."
    with open(archive, "rb") as file:
        if file.read(1 << 10).lstrip()[:1] == b"<":
            raise DataError("it is a web page, not the archive")
    if wanted is not None and manifest(archive) != wanted:
        raise DataError("the files are not those of the published set")


def refusal(
    action: Callable[[], Any],
) -> str | None:  # None: it did not fail
    "Why an action failed."
    try:
        action()
    except (DataError, OSError) as error:
        return str(getattr(error, "reason", None) or error)
    return None


# %%
#| export
def download_xray(
    out: str | Path = "data/xray",  # folder
    sources: Sequence[str] = XRAY_SOURCES,  # tried in turn
    wanted: str | None = XRAY_MANIFEST,  # None: do not check
    timeout: float = 30,
    progress: bool = True,
) -> Path:  # the zip file
    "Fetch the public X-ray set, resume, verify; DataError names the manual way."
    target, reasons = Path(out) / XRAY_NAME, []
    if target.exists() and refusal(lambda: verify(target, wanted)) is None:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error.strerror}); name another folder"
        ) from None
    for number, url in enumerate(sources):
        part = target.with_name(f".{XRAY_NAME}.{number}.part")
        reason = refusal(lambda: fetch(url, part, timeout, progress))  # noqa: B023 (called at once)
        if reason is None:
            reason = refusal(lambda: verify(part, wanted))  # noqa: B023
            if reason is None:
                os.replace(part, target)
                for left in target.parent.glob(f".{XRAY_NAME}.*.part*"):
                    left.unlink(missing_ok=True)
                return target
            part.unlink()  # complete, and wrong: the next try starts afresh
            note_of(part).unlink(missing_ok=True)
        reasons.append(f"{url.split('/')[2]}: {reason}")
    raise DataError(
        f"the X-ray set could not be fetched ({'; '.join(reasons)}); run the command "
        f"again to go on, or download {sources[0]} in a browser and save it as {target}"
    )


# %% [markdown]
# ## Use
# A server that breaks off half-way the first time, and offers a wrong archive before the right one. The wrong one is asked for again from its start, the broken one only for its rest:

# %%
folder = Path(tempfile.mkdtemp())
for name, count in (("set", 3), ("other", 1)):
    write_phantoms(folder / name, count, count, image_size=(96, 32))
    shutil.make_archive(str(folder / name), "zip", folder / name)


# %%
class Flaky(BaseHTTPRequestHandler):
    asked = []

    def do_GET(self):
        served = (folder / self.path[1:]).read_bytes()
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        Flaky.asked.append((self.path, start))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(served) - start))
        self.send_header("Content-Range", f"bytes {start}-{len(served) - 1}/{len(served)}")
        self.send_header("ETag", f'"{hash(served)}"')
        self.end_headers()
        whole = start or "other" in self.path
        self.wfile.write(served[start:] if whole else served[:len(served) // 2])

    def log_message(self, *words):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Flaky)
threading.Thread(target=server.serve_forever, daemon=True).start()
sources = [f"http://127.0.0.1:{server.server_port}/{name}.zip" for name in ("other", "set")]


# %%
wanted = manifest(folder / "set.zip")
try:
    download_xray(folder / "fetched", sources, wanted, timeout=5, progress=False)
except DataError as error:
    print(str(error).replace(str(server.server_port), "PORT").replace(str(folder), "..."))
got = download_xray(folder / "fetched", sources, wanted, timeout=5, progress=False)
server.shutdown()
print(*Flaky.asked, sep="\n")
assert got.read_bytes() == (folder / "set.zip").read_bytes()
assert Flaky.asked[3] == ("/set.zip", got.stat().st_size // 2)


# %%
#| hide
shutil.rmtree(folder)
