"""What the benchmarks share: seconds, peak memory and a word on the machine."""
import contextlib
import ctypes
import gc
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch


class Cost(NamedTuple):
    "What one call took."

    seconds: float  # the shortest of the repeats
    megabytes: float | None  # memory on top of what was held before; None where it is not told


def machine(threads: int) -> dict[str, str | int]:
    "Where the numbers come from."
    about: dict[str, str | int] = {"torch": torch.__version__, "cpu": platform.machine(),
                                   "threads": threads}
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    return about


def cost(call: Callable[[], object], device: str = "cpu", repeats: int = 3,
         patience: float = 10.0) -> Cost:
    "Time a call after a warm-up; one that takes longer than `patience` seconds is not repeated."
    times, peaks = [], []
    for _ in range(repeats + 1):
        before = start_watching(device)
        start = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        peaks.append(peak(device, before))
        if times[-1] > patience:
            break
    known = [p for p in peaks if p is not None]
    return Cost(min(times[1:] or times), max(known) if known else None)


def start_watching(device: str) -> int | None:
    "Forget the highest memory so far; the bytes that are held now."
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # what was freed goes back to the system:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # else the next peak hides in it
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets VmHWM
    except OSError:
        return None
    return kilobytes("VmRSS") * 1024


def peak(device: str, before: int | None) -> float | None:
    "Megabytes at the highest, above `before`."
    if before is None:
        return None
    now = torch.cuda.max_memory_allocated() if device != "cpu" else kilobytes("VmHWM") * 1024
    return (now - before) / 1e6


def kilobytes(name: str) -> int:
    "A line of /proc/self/status."
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))
