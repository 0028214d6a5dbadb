"Nothing imports upwards, late imports inside of functions included."
import ast
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
