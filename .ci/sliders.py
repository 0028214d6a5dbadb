"""Move every slider of the pages in a real browser, and see whether its picture follows.

usage: sliders.py [NAME ...]       e.g. sliders.py 06_forward        (default: every page that calls `interact`)

JupyterLab serves copies of the pages from a folder that is thrown away. Chromium (headless; Debian: `apt-get install chromium`),
driven over its DevTools protocol, opens each, runs all cells, presses the right and then the left arrow key on each
slider's handle. The picture must change, be the same as before when the slider is back, and remain one picture. A copy ends with
the cell of its last slider and lacks the recorded cells (`#| slow`, `#| cuda`). Needs nothing but what `make dev` installs.
"""
import base64
import contextlib
import hashlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parent))
from outside import NBS, RECORDED, ROOT  # noqa: E402
from preview import Browser  # noqa: E402

INTERACT = re.compile(r"^(?!\s*#).*\binteract\(", re.M)
ARROWS = {"ArrowRight": 39, "ArrowLeft": 37}
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # else cells out of sight are not in the page
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
READY = """(() => {
    const app = window.jupyterapp, page = app && [...app.shell.widgets('main')][0], to = page && page.sessionContext;
    if (page && app.shell.currentWidget !== page) { app.shell.activateById(page.id); return false; }
    return Boolean(document.querySelector('.jp-Notebook .jp-Cell') && to && to.isReady && to.session && to.session.kernel);
})()"""
STATE = """(() => {
    const all = selector => [...document.querySelectorAll(selector)];
    const boxes = all('.jp-Cell .widget-interact');
    return {
        idle: jupyterapp.shell.currentWidget.sessionContext.kernelDisplayStatus,
        errors: all('[data-mime-type="application/vnd.jupyter.error"]').map(e => e.innerText),
        running: all('.jp-InputPrompt').filter(e => e.innerText.includes('*')).length,
        sliders: boxes.map(box => ({
            handles: box.querySelectorAll('.noUi-handle').length,
            value: (box.querySelector('.widget-readout') || {}).innerText,
            pictures: [...box.querySelectorAll('.jp-OutputArea img')].map(e => e.src)})),
    };
})()"""


def press(browser, key):
    for kind in ("rawKeyDown", "keyUp"):
        browser("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=ARROWS[key])


def wait(what, seconds, name):
    """Ask until there is an answer."""
    end = time.time() + seconds
    while not (answer := what()):
        if time.time() > end:
            raise TimeoutError(f"waited {seconds} s for {name}")
        time.sleep(0.3)
    return answer


def copy(name, folder):
    """A page as far as its last slider, without outputs; how many sliders it has."""
    nb = nbformat.read(NBS / f"{name}.ipynb", as_version=4)
    code = [c for c in nb.cells if c.cell_type == "code" and not RECORDED.search(c.source)]
    calls = [len(INTERACT.findall(c.source)) for c in code]
    nb.cells = code[:max((n + 1 for n, k in enumerate(calls) if k), default=0)]
    for cell in nb.cells:
        cell.outputs, cell.execution_count = [], None
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nb, folder / f"{Path(name).name}.ipynb")
    return sum(calls)


@contextlib.contextmanager
def lab(folder, settings):
    """JupyterLab over a folder; the address of a page in it."""
    for name, said in SETTINGS.items():
        file = settings / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(said))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, bins = secrets.token_hex(16), str(Path(sys.executable).parent)
    env = os.environ | {"PATH": f"{bins}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1",
                        "OMP_NUM_THREADS": "1", "JUPYTERLAB_SETTINGS_DIR": str(settings), "JUPYTER_TOKEN": token}
    log = open(settings / "lab.log", "w")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--LabApp.expose_app_in_browser=True",
         f"--ServerApp.root_dir={folder}", f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1"],
        env=env, cwd=folder, stdout=log, stderr=log)
    try:
        def up():
            if server.poll() is not None:
                sys.exit(f"JupyterLab did not start:\n{(settings / 'lab.log').read_text()[-2000:]}")
            with contextlib.suppress(OSError):
                return urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=5).status == 200
        wait(up, 120, "JupyterLab to start")
        yield lambda name: f"http://127.0.0.1:{port}/doc/tree/{Path(name).name}.ipynb?token={token}"
    finally:
        server.terminate()  # it ends its kernels
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
        log.close()


def digest(pictures):
    """The pictures' bytes, in short."""
    return [hashlib.sha256(base64.b64decode(p.partition(",")[2])).hexdigest()[:12] for p in pictures]


def settled(browser, count):
    """The page's state, when all cells are done and each slider has its picture; None while they are not."""
    state = browser.value(STATE)
    if state["errors"]:
        raise RuntimeError(f"a cell failed: {state['errors'][0][-1500:]}")
    there = len(state["sliders"]) >= count and all(s["handles"] and s["pictures"] for s in state["sliders"])
    return state if state["idle"] == "idle" and not state["running"] and there else None


def move(browser, number, count, key):
    """Press an arrow key on a slider's handle: (value, pictures) as soon as the value is another and the kernel has drawn."""
    before = browser.value(STATE)["sliders"][number]
    browser.value(f"(() => {{ const h = document.querySelectorAll('.jp-Cell .widget-interact')[{number}].querySelector('.noUi-handle');"
                "h.scrollIntoView({block: 'center'}); h.focus(); })()")
    press(browser, key)

    def other():
        state = settled(browser, count)
        now = state and state["sliders"][number]
        return now if now and now["value"] != before["value"] and now["pictures"] != before["pictures"] else None

    now = wait(other, 60, f"the picture to follow {key} (value {before['value']})")
    return now["value"], digest(now["pictures"])


def page(browser, address, count):
    """Run a page and move its sliders; one line a slider."""
    browser("Emulation.setFocusEmulationEnabled", enabled=True)  # JupyterLab runs the page that has the focus
    browser("Emulation.setDeviceMetricsOverride", width=1280, height=1000, deviceScaleFactor=1, mobile=False)
    browser("Page.navigate", url=address)
    wait(lambda: browser.value(READY), 180, "the page and its kernel")
    browser.value("void jupyterapp.commands.execute('notebook:run-all-cells')")
    state = wait(lambda: settled(browser, count), 1800, f"{count} sliders with pictures")
    if len(state["sliders"]) != count:
        raise RuntimeError(f"{len(state['sliders'])} sliders in the page, {count} calls of interact")
    lines = []
    for number, slider in enumerate(state["sliders"]):
        first = digest(slider["pictures"])
        there, moved = move(browser, number, count, "ArrowRight")
        back, again = move(browser, number, count, "ArrowLeft")
        if not len(first) == len(moved) == len(again):
            raise RuntimeError(f"slider {number + 1}: {len(first)}, {len(moved)}, {len(again)} pictures, one after another")
        if set(first) & set(moved):
            raise RuntimeError(f"slider {number + 1}: a picture is the same at {slider['value']} and at {there}")
        if (back, again) != (slider["value"], first):
            raise RuntimeError(f"slider {number + 1}: back at {back}, the picture is not that of {slider['value']}")
        lines.append(f"slider {number + 1}: {slider['value']} -> {there} -> {back}, picture {first[0]} -> {moved[0]} -> {again[0]}")
    return lines


def main():
    names = sys.argv[1:]
    if bad := [n for n in names if not (NBS / f"{n}.ipynb").exists()]:
        sys.exit(f"no such page: {', '.join(bad)}")
    names = names or sorted(p.relative_to(NBS).with_suffix("").as_posix() for p in NBS.rglob("*.ipynb")
                            if not any(q.startswith((".", "_")) for q in p.parts[len(NBS.parts):]))
    wrong = sliders = pages = 0
    with tempfile.TemporaryDirectory(prefix="sliders-", ignore_cleanup_errors=True) as tmp:
        folder, settings = Path(tmp) / "pages", Path(tmp) / "settings"
        for made in (folder, settings):
            made.mkdir()
        counts = {name: count for name in names if (count := copy(name, folder))}
        if not counts:
            sys.exit("no page with a slider")
        with lab(folder, settings) as address:
            for name, count in counts.items():
                start, browser = time.time(), Browser()
                try:
                    lines = page(browser, address(name), count)
                    pages, sliders = pages + 1, sliders + count
                except (RuntimeError, TimeoutError) as why:
                    lines, wrong = [f"FAILED: {why}"], wrong + 1
                finally:
                    browser.close()
                print(f"  {name:20s}{time.time() - start:6.0f} s   ", "\n      ".join(lines), flush=True)
    print(f"  {sliders} sliders moved on {pages} pages" + (f", {wrong} pages FAILED" if wrong else ""))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
