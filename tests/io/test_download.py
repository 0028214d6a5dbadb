"Fetching the X-ray set over servers of every kind."
import shutil
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from verdiff.files import DataError
from verdiff.io.download import download_xray, fetch, manifest


class Server(ThreadingHTTPServer):
    def __init__(self, handler):
        super().__init__(("127.0.0.1", 0), handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}/x.zip"


def serving(content, ranges=True, status=200):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if ranges else 0
            self.send_response(206 if start else status)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:])

        def log_message(self, *words):
            pass
    return Server(Handler)


def test_download_tries_the_next_source_resumes_and_verifies(root, tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as file:
        for item in sorted(root.rglob("*")):
            file.write(item, item.relative_to(root))
    good, wanted = path.read_bytes(), manifest(path)
    broken, junk, right = serving(b"", status=500), serving(b"no zip"), serving(good)
    out = tmp_path / "out"
    out.mkdir()
    (out / ".scoliosis-xray-single-view.zip.2.part").write_bytes(good[:1000])  # an earlier try
    got = download_xray(out, [broken.url, junk.url, right.url], wanted, 5, False)
    assert got.read_bytes() == good and [p.name for p in out.iterdir()] == [got.name]
    right.shutdown()
    assert download_xray(out, [right.url], wanted, 5, False) == got  # nothing to fetch any more


def test_download_says_what_to_do_by_hand(root, tmp_path):
    junk = serving(b"no zip")
    with pytest.raises(DataError, match="browser") as error:
        download_xray(tmp_path / "out", [junk.url], "0" * 64, 5, False)
    assert junk.url in str(error.value) and not list((tmp_path / "out").iterdir())


def other_set(root, tmp_path):
    "The same files but for one letter of one table."
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    path = next(copy.rglob("angles.csv"))
    path.write_text(path.read_text()[:-2] + "9\n")
    return Path(shutil.make_archive(str(tmp_path / "copy"), "zip", copy)).read_bytes()


def test_a_set_with_another_checksum_is_not_taken(root, tmp_path):
    good = Path(shutil.make_archive(str(tmp_path / "set"), "zip", root))
    changed, right = serving(other_set(root, tmp_path)), serving(good.read_bytes())
    out = tmp_path / "out"
    with pytest.raises(DataError, match="not those of the published set.*browser"):
        download_xray(out, [changed.url], manifest(good), 5, False)
    assert not list(out.iterdir())
    assert download_xray(out, [changed.url, right.url], manifest(good), 5, False).read_bytes() == good.read_bytes()


def test_a_damaged_set_that_lies_there_is_fetched_again(root, tmp_path):
    good = Path(shutil.make_archive(str(tmp_path / "set"), "zip", root))
    wanted, out = manifest(good), tmp_path / "out"
    right = serving(good.read_bytes())
    target = download_xray(out, [right.url], wanted, 5, False)
    target.write_bytes(target.read_bytes()[:-500])
    assert download_xray(out, [right.url], wanted, 5, False).read_bytes() == good.read_bytes()


def breaking(content, chunked):
    "A server whose connection breaks after a third of what is left, in the way of either kind of answer."
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1" if chunked else "HTTP/1.0"

        def do_GET(self):
            start = int(self.headers.get("Range", "bytes=0-")[6:-1])
            if start >= len(content):
                return self.send_error(416)
            rest = content[start:start + max(1000, (len(content) - start) // 3)]
            self.send_response(206 if start else 200)
            if chunked:
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(f"{len(content) - start:x}\r\n".encode() + rest)
            else:
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                self.wfile.write(rest)
            self.close_connection = True

        def log_message(self, *words):
            pass
    return Server(Handler)


def test_a_connection_that_breaks_again_and_again(tmp_path):
    content = np.random.default_rng(0).bytes(50_000)
    server, part = breaking(content, chunked=False), tmp_path / "part"
    for _ in range(30):
        try:
            fetch(server.url, part, 5, False)
            break
        except OSError as error:
            assert "ended after" in str(error)
    assert part.read_bytes() == content
    with pytest.raises(OSError, match="broke off"):
        fetch(breaking(content, chunked=True).url, tmp_path / "other", 5, False)
    with pytest.raises(OSError, match="refused|Connection"):
        fetch("http://127.0.0.1:9/x.zip", tmp_path / "none", 2, False)


def test_a_server_that_knows_no_ranges_starts_afresh(tmp_path):
    content = np.random.default_rng(1).bytes(5_000)
    (tmp_path / "part").write_bytes(content[:700])
    fetch(serving(content, ranges=False).url, tmp_path / "part", 5, False)
    assert (tmp_path / "part").read_bytes() == content
