"Nothing imports upwards, late imports inside of functions included; what is imported is a dependency."
import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

import verdiff

ROOT = Path(verdiff.__file__).parent
# low to high; a module may import from its own layer (never in a circle, see below) and from those before it
LAYERS = (
    ("files", "settings", "metrics", "words"),
    ("io",),
    ("data",),
    ("diffusion.forward", "diffusion.posterior", "networks.unet", "networks.msfm", "networks.nsa"),
    ("networks.config", "networks.pretrained", "networks.model", "diffusion.sampling"),
    ("training",),
    ("segmentation",),
    ("lab",),
    ("cli", "__main__"),
)
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in sorted(ROOT.rglob("*.py"))
           if p.name == "__main__.py" or not p.name.startswith("_")}


def rank(module):
    "The layer of a module."
    found = [k for k, names in enumerate(LAYERS) for n in names if module == n or module.startswith(f"{n}.")]
    return found[0] if len(found) == 1 else None


def imported(module, late=True):
    "Modules of verdiff that this one imports, also inside functions."
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree) if late else tree.body:
        if isinstance(node, ast.ImportFrom):
            base = module.split(".")[:-node.level] if node.level else []
            path = ".".join([*base, *([node.module] if node.module else [])])
            if not node.level:
                path = path.removeprefix("verdiff").removeprefix(".") if path.split(".")[0] == "verdiff" else "?"
            names = [path, *(f"{path}.{a.name}".lstrip(".") for a in node.names)]
        elif isinstance(node, ast.Import):
            names = [a.name.removeprefix("verdiff.") for a in node.names if a.name.startswith("verdiff.")]
        else:
            continue
        yield from (n for n in names if n in MODULES)


def test_every_module_has_a_layer():
    assert [m for m in MODULES if rank(m) is None] == []


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_upwards(module):
    assert [other for other in imported(module) if rank(other) > rank(module)] == []


def test_there_is_no_circle():
    above, done = [], set()

    def visit(module):
        assert module not in above, f"a circle: {' -> '.join([*above, module])}"
        if module in done:
            return
        above.append(module)
        for other in set(imported(module)):
            visit(other)
        done.add(above.pop())

    for module in MODULES:
        visit(module)


def test_only_the_command_line_imports_late():
    late = {m: set(imported(m)) - set(imported(m, late=False)) for m in MODULES}
    assert {m: others for m, others in late.items() if others and m != "cli"} == {}


def test_the_imports_are_seen():
    assert {"files", "data.packed", "training.loop"} <= set(imported("training.run"))
    assert "training.run" in set(imported("cli")) and "training.run" not in set(imported("cli", late=False))


# ---------------------------------------------------------------- sizes to be proud of

SUBJECT = ("diffusion", "networks.unet", "networks.msfm", "networks.nsa", "networks.model", "training.loss", "training.loop")


def test_modules_stay_short():
    lines = {m: len(p.read_text(encoding="utf-8").splitlines()) for m, p in MODULES.items()}
    assert {m: n for m, n in lines.items() if n > 450} == {}
    subject = {m: n for m, n in lines.items() if m.startswith(SUBJECT)}
    assert max(subject.values()) <= 300 and sum(subject.values()) <= 1400


def windows(path, size=6):
    "Every run of six lines that say something; imports, tables and closing brackets say nothing."
    lines = [(n, line.strip()) for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)]
    lines = [(n, s) for n, s in lines if len(s) > 3 and not s.startswith(("from ", "import ", "#", "'", "__all__"))]
    for k in range(len(lines) - size + 1):
        yield lines[k][0], "\n".join(s for _, s in lines[k:k + size])


def test_no_six_lines_stand_in_two_modules():
    seen, twice = {}, []
    for module, path in MODULES.items():
        for line, text in windows(path):
            other = seen.setdefault(text, (module, line))
            if other[0] != module:
                twice.append(f"{module}:{line} as {other[0]}:{other[1]}")
    assert twice == []


# ---------------------------------------------------------------- what a public docstring names

SAYS = re.compile(r"rais|refus|error|fail|must|otherwise|missing|interrupt|ends?\b", re.I)


def raising(module):
    "The public functions and methods of a module that raise, with their docstrings."
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    public = {e.value for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"
              for e in n.value.elts if isinstance(e, ast.Constant)}
    for owner in [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name in public)]:
        for f in owner.body:
            seen = f.name in public if owner is tree and isinstance(f, ast.FunctionDef) else not getattr(f, "name", "_").startswith("_")
            if isinstance(f, ast.FunctionDef) and seen and any(isinstance(n, ast.Raise) for n in ast.walk(f)):
                yield f.name, ast.get_docstring(f) or ""


@pytest.mark.parametrize("module", MODULES)
def test_public_docstrings_name_their_errors(module):
    assert [name for name, text in raising(module) if not SAYS.search(text)] == []


# ---------------------------------------------------------------- what `pip install "verdiff[notebooks]"` must bring

BROUGHT_ALONG = {"IPython", "matplotlib_inline", "pytest"}  # by jupyterlab; the last on no page
INSTALLED_AS = {"PIL": "pillow", "cv2": "opencv-python-headless", "skimage": "scikit-image"}
OPTIONAL = {"cv2", "monai", "torchvision", "transformers", "nnunetv2", "med_seg_diff_pytorch", "diffusers"}  # of the laboratory


def outside(text):
    "Top-level names of other packages that a text of Python imports anywhere."
    for node in ast.walk(ast.parse(text)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else (
            [node.module] if isinstance(node, ast.ImportFrom) and not node.level else [])
        yield from ({n.split(".")[0] for n in names} - set(sys.stdlib_module_names) - {"verdiff"})


@pytest.mark.parametrize("folder, extras", [("verdiff", ()), ("nbpy", ("notebooks", "medical"))])
def test_what_is_imported_is_a_dependency(folder, extras):
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    wanted = [w for words in (project["dependencies"], *(project["optional-dependencies"][e] for e in extras))
              for w in words]
    known = {re.match(r"[\w-]+", w)[0].lower().replace("_", "-") for w in wanted}
    used = {name for path in (ROOT.parent / folder).rglob("*.py") for name in outside(path.read_text(encoding="utf-8"))}
    optional = OPTIONAL if folder == "verdiff" else OPTIONAL - {"cv2", "monai", "diffusers"}
    lacking = {n for n in used - BROUGHT_ALONG - optional
               if INSTALLED_AS.get(n, n).lower().replace("_", "-") not in known}
    assert lacking == set()


@pytest.mark.parametrize("path", sorted((ROOT.parent / "bench").glob("*.py")), ids=lambda p: p.name)
def test_scripts_import_what_is_there(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "verdiff":
            module = importlib.import_module(node.module)
            assert [a.name for a in node.names if not hasattr(module, a.name)] == []
