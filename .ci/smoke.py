"""What an installed package must do, anywhere: import every module, show its help, draw a phantom, segment it.

usage: smoke.py                             in a folder outside of a clone, with the wheel installed
       smoke.py --size WHEEL [--tag v0.1.0] the wheel is small enough, and its version is that of the tag
"""
import importlib
import pkgutil
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

LIMIT = 12_000_000


def size(wheel, tag=None):
    wheel = Path(wheel)
    version = wheel.name.split("-")[1]
    print(wheel.name, wheel.stat().st_size, "bytes")
    if wheel.stat().st_size > LIMIT:
        return f"{wheel.name} is larger than {LIMIT:,} bytes"
    if tag and tag != f"v{version}":
        return f"the tag is {tag}, the version {version}"
    return None


def use():
    import verdiff

    names = [m.name for m in pkgutil.walk_packages(verdiff.__path__, "verdiff.") if not m.name.endswith("__main__")]
    for name in names:
        importlib.import_module(name)
    if not (Path(verdiff.__file__).parent / "py.typed").exists():
        return "py.typed is missing"
    from PIL import Image

    from verdiff.data.phantoms import draw_phantom

    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        Image.fromarray(draw_phantom(seed=2024, image_size=(576, 192)).image).save(tmp / "spine.png")
        command = shutil.which("verdiff", path=sysconfig.get_path("scripts")) or "verdiff"
        for words in (["--help"], ["segment", "spine.png", "-o", "results"]):
            done = subprocess.run([command, *words], cwd=tmp, capture_output=True, text=True)
            if done.returncode:
                return f"verdiff {' '.join(words)} ended with {done.returncode}: {done.stdout[-1000:]}{done.stderr[-1000:]}"
        found = sorted(p.name for p in (tmp / "results").rglob("*") if p.is_file())
        missing = {f"spine{end}" for end in ("_mask.png", "_probability.png", "_uncertainty.png", "_overlay.png", ".json")} - set(found)
        if missing:
            return f"segment did not write {sorted(missing)}, only {found}"
    print(f"verdiff {verdiff.__version__}: {len(names)} modules, one phantom segmented")
    return None


def main():
    words = sys.argv[1:]
    if words[:1] == ["--size"]:
        wrong = size(words[1], words[3] if words[2:3] == ["--tag"] else None)
    else:
        wrong = use()
    if wrong:
        print(wrong, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
