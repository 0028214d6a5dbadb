"Nothing imports upwards, late imports inside of functions included."
import ast
import re
import sys
from pathlib import Path

import pytest

import verdiff

LAYERS = (("settings",), ("data", "augment", "metrics"), ("forward", "posterior"), ("unet", "msfm", "nsa"),
          ("model",), ("training", "sampling"), ("inference",), ("ablation", "comparison"))
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
COMMANDS = {("inference", "ablation"), ("inference", "comparison")}  # the command line looks them up
ROOT = Path(verdiff.__file__).parent


def imported(name):
    "Modules of verdiff that this one imports anywhere."
    for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            path = f"verdiff.{node.module}" if node.level and node.module else node.module or "verdiff"
            names = [path, *(f"{path}.{a.name}" for a in node.names)] if path == "verdiff" else [path]
        else:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        yield from (n.split(".")[1] for n in names if n.startswith("verdiff.") and n.split(".")[1] in RANK)


def test_every_module_has_a_layer():
    assert {p.stem for p in ROOT.glob("[!_]*.py")} == set(RANK)


@pytest.mark.parametrize("name", RANK)
def test_nothing_imports_upwards(name):
    found = {other for other in imported(name) if (name, other) not in COMMANDS}
    assert [other for other in found if RANK[other] > RANK[name]] == []


def test_the_imports_are_seen():
    assert {"data", "settings"} <= set(imported("training")) and "data" in set(imported("inference"))


# ---------------------------------------------------------------- what `pip install "verdiff[notebooks]"` must bring

BROUGHT_ALONG = {"IPython", "matplotlib_inline", "pytest"}  # by jupyterlab; the last on no page
INSTALLED_AS = {"PIL": "pillow", "cv2": "opencv-python-headless"}


def outside(text):
    "Top-level names of other packages that a text of Python imports anywhere."
    for node in ast.walk(ast.parse(text)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else (
            [node.module] if isinstance(node, ast.ImportFrom) and not node.level else [])
        yield from ({n.split(".")[0] for n in names} - set(sys.stdlib_module_names) - {"verdiff"})


@pytest.mark.parametrize("folder, extras", [("verdiff", ()), ("nbpy", ("notebooks",))])
def test_what_is_imported_is_a_dependency(folder, extras):
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    wanted = [w for words in (project["dependencies"], *(project["optional-dependencies"][e] for e in extras))
              for w in words]
    known = {re.match(r"[\w-]+", w)[0].lower().replace("_", "-") for w in wanted}
    used = {name for path in (ROOT.parent / folder).glob("*.py") for name in outside(path.read_text(encoding="utf-8"))}
    optional = {"cv2"} if folder == "verdiff" else set()  # only `find_duplicates` needs it
    lacking = {n for n in used - BROUGHT_ALONG - optional
               if INSTALLED_AS.get(n, n).lower().replace("_", "-") not in known}
    assert lacking == set()
