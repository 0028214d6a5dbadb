"""Run pages as a reader has them who installed the package: every cell, a fresh kernel, an empty folder, no clone.

usage: outside.py [--wheel WHEEL] [--data] [NAME ...]    e.g. outside.py 16_segment library/cli    (default: all pages)

Jupyter's own executor runs them, so `#| eval: false` stops nothing; only cells flagged `#| slow` or `#| cuda`, the
recorded runs, are left out. The package is unpacked from its wheel. Without --data no variable VERDIFF_… reaches the
pages: the X-ray set is absent, as for most readers.
"""
import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from queue import Empty

import nbformat
from jupyter_client import AsyncKernelClient, AsyncKernelManager
from jupyter_client.channels import AsyncZMQSocketChannel
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from traitlets import Type, default

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
RECORDED = re.compile(r"^#\|\s*(slow|cuda)\b", re.M)
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


class Channel(AsyncZMQSocketChannel):
    """A channel that looks again every few seconds.

    Now and then a kernel's reply lies in the socket and zmq does not wake who waits for it (as in zeromq/pyzmq#2173);
    the page would stand still until its cell's time is up.
    """

    EVERY = 5  # seconds

    async def get_msg(self, timeout=None):
        end = float("inf") if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return await super().get_msg(max(0, min(self.EVERY, end - time.monotonic())))
            except Empty:
                if time.monotonic() >= end:
                    raise


class Client(AsyncKernelClient):
    shell_channel_class = iopub_channel_class = control_channel_class = Type(Channel)


class Manager(AsyncKernelManager):
    @default("client_factory")
    def _client_factory_default(self):
        return Client


def build(folder):
    """The package's wheel, built into a folder."""
    subprocess.run([*PIP, "wheel", "-q", "--no-deps", "-w", folder, ROOT], check=True)
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    return next(Path(folder).glob("verdiff-*.whl"))


def unpack(wheel, folder, data):
    """Install the wheel into a folder of its own; the environment in which Python finds it there."""
    subprocess.run([*PIP, "install", "-q", "--no-deps", "--target", folder, wheel], check=True)
    env = {k: v for k, v in os.environ.items() if data or not k.startswith("VERDIFF_")}
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), env["PATH"]])
    return env | dict(PATH=path, PYTHONPATH=str(folder), OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1")


def execute(path, package, env):
    """Run one page: its seconds by the clock and of the processor, and what went wrong or None."""

    def spent():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    start, cpu = time.time(), spent()
    nb = nbformat.read(path, as_version=4)
    nb.cells = [c for c in nb.cells if c.cell_type == "code" and not RECORDED.search(c.source)]
    where = f"import verdiff; assert verdiff.__file__.startswith({str(package)!r}), verdiff.__file__"
    nb.cells.insert(0, nbformat.v4.new_code_cell(where))
    with tempfile.TemporaryDirectory(prefix="page-", ignore_cleanup_errors=True) as empty:
        quiet = ["--IPKernelApp.log_level=40"]  # it warns of its own sockets
        client = NotebookClient(nb, timeout=600, kernel_name="python3", extra_arguments=quiet, kernel_manager_class=Manager,
                                resources={"metadata": {"path": empty}})
        try:
            client.execute(env=env)
        except (CellControlSignal, DeadKernelError) as why:  # an error in a cell, too long a cell, a kernel that died
            return time.time() - start, spent() - cpu, re.sub(r"\x1b\[[\d;]*m", "", str(why))[-3000:]
    return time.time() - start, spent() - cpu, None


def run_all(paths, package, env, workers=2):
    """Run pages side by side; {name: what went wrong}."""
    wrong = {}
    with ProcessPoolExecutor(workers) as pool:
        jobs = {pool.submit(execute, p, package, env): p.relative_to(NBS).with_suffix("").as_posix() for p in paths}
        for job in as_completed(jobs):
            seconds, cpu, why = job.result()
            print(f"  {jobs[job]:30s}{seconds:6.1f} s, processor {cpu:5.1f} s{'' if why is None else '   FAILED'}", flush=True)
            if why is not None:
                wrong[jobs[job]] = why
    return wrong


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("names", nargs="*")
    ask.add_argument("--wheel", type=Path, help="else it is built")
    ask.add_argument("--data", action="store_true", help="let VERDIFF_XRAY and its like through")
    said = ask.parse_args()
    paths = [NBS / f"{name}.ipynb" for name in said.names]
    paths = paths or sorted(p for p in NBS.rglob("*.ipynb") if not any(q.startswith((".", "_")) for q in p.parts[len(NBS.parts):]))
    if missing := [str(p) for p in paths if not p.exists()]:
        ask.error(f"no such page: {', '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="verdiff-") as tmp:
        package = Path(tmp).resolve() / "package"
        env = unpack(said.wheel or build(tmp), package, said.data)
        wrong = run_all(paths, package, env)
    for name, why in wrong.items():
        print(f"\n== {name}\n{why}", file=sys.stderr)
    print(f"  {len(paths) - len(wrong)} of {len(paths)} pages ran from the wheel, in empty folders")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
