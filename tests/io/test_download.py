"Fetching the X-ray set over servers of every kind."
import shutil
import threading
import time
import zipfile
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from verdiff.files import DataError
from verdiff.io import download
from verdiff.io.download import download_xray, fetch, manifest, note_of


class Server(ThreadingHTTPServer):
    def __init__(self, handler):
        super().__init__(("127.0.0.1", 0), handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}/x.zip"


def serving(content, ranges=True, status=200, tag='"1"', honest=True, **headers):
    "A server of one file, which keeps `asked`: from which byte on. Not honest: it ignores If-Range."
    class Handler(BaseHTTPRequestHandler):
        asked = []

        def do_GET(self):
            start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if ranges else 0
            if honest and self.headers.get("If-Range", tag) != tag:
                start = 0
            Handler.asked.append(start)
            self.send_response(206 if start else status)
            said = {"Content-Length": len(content) - start, "ETag": tag,
                    "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            said |= {name.replace("_", "-"): value for name, value in headers.items()}
            for name, value in said.items():
                if value is not None:
                    self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(content[start:])

        def log_message(self, *words):
            pass
    return Server(Handler)


def earlier(part, content, tag='"1"'):
    "What a try that broke off leaves."
    part.write_bytes(content)
    note_of(part).write_text(tag)


def test_download_tries_the_next_source_resumes_and_verifies(root, tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as file:
        for item in sorted(root.rglob("*")):
            file.write(item, item.relative_to(root))
    good, wanted = path.read_bytes(), manifest(path)
    broken, junk, right = serving(b"", status=500), serving(b"no zip"), serving(good)
    out = tmp_path / "out"
    out.mkdir()
    earlier(out / ".scoliosis-xray-single-view.zip.2.part", good[:1000])
    got = download_xray(out, [broken.url, junk.url, right.url], wanted, 5, False)
    assert right.RequestHandlerClass.asked == [1000]
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
            assert not start or self.headers["If-Range"] == "yesterday"
            rest = content[start:start + max(1000, (len(content) - start) // 3)]
            self.send_response(206 if start else 200)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Last-Modified", "yesterday")
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
    earlier(tmp_path / "part", content[:700])
    fetch(serving(content, ranges=False).url, tmp_path / "part", 5, False)
    assert (tmp_path / "part").read_bytes() == content


@pytest.mark.parametrize("server, start", [
    ({"tag": '"2"'}, [0]),  # the file has changed, and the server says so
    ({"tag": '"2"', "honest": False}, [700, 0]),  # it has changed, and the server sends its rest
    ({"Content_Range": "bytes 5-4999/5000"}, [700, 0]),  # another part than was asked for
    ({"Content_Range": None}, [700, 0]), ({"Content_Range": "nonsense"}, [700, 0]),
    ({}, [700])])
def test_a_rest_is_taken_of_the_same_file_only(tmp_path, server, start):
    content = np.random.default_rng(2).bytes(5_000)
    same = start == [700]
    earlier(tmp_path / "part", content[:700] if same else bytes(700))
    there = serving(content, **server)
    fetch(there.url, tmp_path / "part", 5, False)
    assert (tmp_path / "part").read_bytes() == content and there.RequestHandlerClass.asked == start


@pytest.mark.parametrize("tag", [None, 'W/"1"'])
def test_without_an_identity_nothing_is_resumed(tmp_path, tag):
    content = np.random.default_rng(3).bytes(5_000)
    earlier(tmp_path / "part", bytes(700), "")
    there = serving(content, tag=tag)
    for _ in range(2):
        fetch(there.url, tmp_path / "part", 5, False)
        assert (tmp_path / "part").read_bytes() == content
    assert there.RequestHandlerClass.asked == [0, 0]


@pytest.mark.parametrize("url", ["http://example.org/x.zip", "ftp://127.0.0.1/x", "file:///etc/hostname", "x.zip"])
def test_only_https(tmp_path, url):
    with pytest.raises(OSError, match="not https"):
        fetch(url, tmp_path / "part", 5, False)
    with pytest.raises(OSError, match="not https|not allowed"):
        fetch(serving(b"", status=302, Location=url if "//" in url else "http://192.0.2.1/x").url, tmp_path / "part", 5, False)
    assert not list(tmp_path.iterdir())


def test_redirects_on_this_machine_are_followed_but_not_for_ever(tmp_path):
    right = serving(b"content")
    fetch(serving(b"", status=302, Location=right.url).url, tmp_path / "part", 5, False)
    assert (tmp_path / "part").read_bytes() == b"content"
    with pytest.raises(OSError, match="redirect"):
        fetch(serving(b"", status=302, Location="/x.zip").url, tmp_path / "other", 5, False)


def test_too_much_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "AT_MOST", 1000)
    with pytest.raises(OSError, match="5,000 bytes, and 1,000 are the limit"):
        fetch(serving(bytes(5000)).url, tmp_path / "part", 5, False)
    with pytest.raises(OSError, match="more than 1,000 bytes"):
        fetch(serving(bytes(5000), Content_Length=None).url, tmp_path / "part", 5, False)
    assert not (tmp_path / "part").read_bytes()
    with pytest.raises(OSError, match="limit"):
        fetch(serving(bytes(50), Content_Length="9" * 30).url, tmp_path / "part", 5, False)


@pytest.mark.parametrize("length, words", [(4000, "not a complete zip file"), (6000, "ended after 5,000 of 6,000")])
def test_a_length_that_is_not_true(tmp_path, length, words):
    with pytest.raises(DataError, match=words):
        download_xray(tmp_path, [serving(b"PK" + bytes(4998), Content_Length=length).url], "0" * 64, 5, False)


def test_a_web_page_is_no_archive(tmp_path):
    page = serving(b"\n<!DOCTYPE html><title>Sign in</title>", Content_Type="text/html")
    with pytest.raises(DataError, match="a web page, not the archive.*browser"):
        download_xray(tmp_path, [page.url], "0" * 64, 5, False)
    assert not list(tmp_path.iterdir())


def test_a_server_that_drips_is_left(tmp_path):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            with suppress(OSError):
                for _ in range(200):
                    self.wfile.write(b"x")
                    time.sleep(0.05)

        def log_message(self, *words):
            pass
    began = time.monotonic()
    with pytest.raises(OSError, match="slower than"):
        fetch(Server(Handler).url, tmp_path / "part", 0.5, False)
    assert time.monotonic() - began < 5
