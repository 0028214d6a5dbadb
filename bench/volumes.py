"""Volumes as training data: slices a second, and memory for ten times the volumes, in one run.

usage: python bench/volumes.py [--volumes 3] [--times 10] [--out bench/results]

Writes phantom CT volumes in CTSpine1K's layout, then cuts their sagittal slices as training does:
cold (every volume is read, the cache is filled), warm (the cache is opened) and the slices
themselves (decoded from the cache onto the canvas). Then the same for `--times` as many volumes,
and for one volume of `--times` as many voxels. Memory is what a step took on top of what was held
before it (Linux; else not told). Prints a table and writes volumes.json.
"""
import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

from common import machine, peak, start_watching

from verdiff.data.phantom_layouts import write_volume_set
from verdiff.data.volumes import VolumeSlices


def measure(call) -> tuple[object, float, float | None]:
    "Result, seconds, megabytes."
    before, start = start_watching("cpu"), time.perf_counter()
    result = call()
    return result, time.perf_counter() - start, peak("cpu", before)


def run(name: str, root: Path, cache: Path) -> dict:
    "Cold, warm, slices."
    def opened() -> VolumeSlices:
        return VolumeSlices(root, "all", (384, 384), cache=cache, progress=False)

    data, cold, cold_memory = measure(opened)
    _, warm, _ = measure(opened)
    _, read, read_memory = measure(lambda: [data.arrays(i)[0].shape for i in range(len(data))])
    voxels = sum(p.stat().st_size for p in root.rglob("*.nii.gz"))
    return {"what": name, "volumes": len(set(data.groups)), "slices": len(data),
            "megabytes_on_disk": voxels / 1e6, "cache_megabytes": sum(
                p.stat().st_size for p in cache.iterdir()) / 1e6,
            "cold_seconds": cold, "cold_slices_per_second": len(data) / cold,
            "warm_seconds": warm, "read_slices_per_second": len(data) / read,
            "cold_peak_megabytes": cold_memory, "read_peak_megabytes": read_memory}


def copies(drawn: Path, out: Path, times: int) -> Path:
    "Each volume `times` times, under other names: other files, the same work."
    for path in sorted(drawn.rglob("*.nii.gz")):
        for k in range(times):
            target = out / path.relative_to(drawn).parent / f"{k}{path.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return out


def main() -> None:
    "Print the table, write the JSON."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--volumes", type=int, default=3)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        top, finer = Path(folder), o.times ** (1 / 3)
        write_volume_set(top / "one", "ctspine1k", o.volumes, 0, spacing=(1.5, 1.5, 2.5))
        write_volume_set(top / "large", "ctspine1k", 1, 0,
                         spacing=(1.5 / finer, 1.5 / finer, 2.5 / finer))
        sets = {"the set": copies(top / "one", top / "set", 1),
                f"{o.times} times the volumes": copies(top / "one", top / "many", o.times),
                f"one volume of {o.times} times the voxels": top / "large"}
        run("warm-up", sets["the set"], top / "cache-warm-up")
        rows = [run(name, root, top / f"cache-{k}") for k, (name, root) in enumerate(sets.items())]
    one, many, large = rows
    ratios = {"seconds, times the volumes": many["cold_seconds"] / one["cold_seconds"],
              "peak, times the volumes": None, "peak, times the voxels": None}
    if one["cold_peak_megabytes"]:
        ratios["peak, times the volumes"] = many["cold_peak_megabytes"] / one["cold_peak_megabytes"]
        ratios["peak, times the voxels"] = large["cold_peak_megabytes"] / one["cold_peak_megabytes"]
    for row in rows:
        memory = row["cold_peak_megabytes"]
        print(f"{row['what']:36s} {row['volumes']:3d} volumes {row['slices']:4d} slices, "
              f"cold {row['cold_seconds']:6.2f} s "
              f"({row['cold_slices_per_second']:5.1f} slices/s), "
              f"cache {row['cache_megabytes']:5.1f} MB, again {row['warm_seconds']:5.2f} s, "
              f"{row['read_slices_per_second']:5.0f} slices/s from it, peak "
              f"{'not told' if memory is None else f'{memory:.0f} MB'}")
    print(*(f"{k}: {v:.2f}" for k, v in ratios.items() if v is not None), sep="\n")
    o.out.mkdir(parents=True, exist_ok=True)
    (o.out / "volumes.json").write_text(json.dumps(
        {"machine": machine(1), "rows": rows, "ratios": ratios}, indent=1) + "\n")


if __name__ == "__main__":
    main()
