"""Every check that a change must pass, in the order of what fails fastest.

usage: check.py [STEP ...] | --list | --write-readme        (default: all steps)
"""
import atexit
import difflib
import functools
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
NBS, NBPY, PACKAGE = ROOT / "nbs", ROOT / "nbpy", ROOT / "verdiff"
ENV = dict(
    os.environ, PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}", PYTHONPATH=str(ROOT),
    OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1", PYTHONWARNINGS="ignore",
)
os.environ.update(HF_HUB_OFFLINE="1")


class Failed(Exception):
    """A check that did not pass; its text says why."""


def run(*command, cwd=ROOT, env=ENV, **kw):
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, **kw)
    if done.returncode:
        tail = (done.stderr or "")[-2000:] if kw.get("capture_output") else ""
        raise Failed(f"`{' '.join(map(str, command))}` ended with {done.returncode}\n{tail}")
    return done


def source(cell):
    return cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])


def find(folder, ending):
    """The files below a folder, at any depth, without what an editor or a build left there."""
    files = (p for p in folder.rglob(f"*{ending}") if p.is_file())
    return sorted(p for p in files if not any(q.startswith(("_", ".")) for q in p.relative_to(folder).parts[:-1]))


def names(folder, ending):
    """The same as names such as `06_forward` and `library/settings`."""
    return [p.relative_to(folder).with_suffix("").as_posix() for p in find(folder, ending)]


def sidebar(entry):
    """The pages that a part of _quarto.yml's sidebar lists, at any depth."""
    if isinstance(entry, str):
        return [entry]
    if isinstance(entry, list):
        return [page for part in entry for page in sidebar(part)]
    return [page for key in ("href", "file", "contents") if key in entry for page in sidebar(entry[key])]


NOTEBOOKS = find(NBS, ".ipynb")


# ---------------------------------------------------------------- the steps


def style():
    """ruff over the texts, the exported code, the tests and the scripts"""
    run(BIN / "ruff", "check", "-q", "nbpy", "verdiff", "tests", "bench", ".ci")


def pairs():
    """each notebook is clean, paired with its text in nbpy/, and carries outputs without an error"""
    import jupytext

    run(sys.executable, ".ci/tidy.py", "--check", *NOTEBOOKS)
    texts, notebooks = set(names(NBPY, ".py")), set(names(NBS, ".ipynb"))
    if texts != notebooks:
        raise Failed(f"without a partner in nbs/ or nbpy/: {sorted(texts ^ notebooks)}")
    for name in sorted(notebooks):
        nb = json.loads((NBS / f"{name}.ipynb").read_text(encoding="utf-8"))
        text = jupytext.read(NBPY / f"{name}.py")
        ours = [(c["cell_type"], source(c).rstrip()) for c in nb["cells"]]
        theirs = [(c["cell_type"], source(c).rstrip()) for c in text.cells]
        if ours != theirs:
            at = next((i for i, ab in enumerate(zip(ours, theirs, strict=False)) if ab[0] != ab[1]), "the end")
            raise Failed(f"{name} and its text differ at cell {at}; run .ci/nb {name}")
        code = [c for c in nb["cells"] if c["cell_type"] == "code"]
        outputs = [o for c in code for o in c["outputs"]]
        if code and not outputs:
            raise Failed(f"{name} holds no outputs: it was not executed")
        if any(o["output_type"] == "error" for o in outputs):
            raise Failed(f"{name} holds an error output")


def exports():
    """verdiff/ is what nbdev exports from nbs/"""
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        for name in ("pyproject.toml", "README.md", "settings.ini"):
            shutil.copy(ROOT / name, tmp)
        for path in NOTEBOOKS:
            (tmp / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp / path.relative_to(ROOT))
        written = [p for p in PACKAGE.rglob("*.py") if p.name in ("__init__.py", "__main__.py")]  # by hand
        for path in written:
            (tmp / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp / path.relative_to(ROOT))
        run(BIN / "nbdev-export", cwd=tmp, env=ENV | {"PYTHONPATH": str(tmp)})
        for path in sorted({p.relative_to(d) for d in (tmp, ROOT) for p in (d / "verdiff").rglob("*.py")}):
            ours, wanted = (d / path for d in (ROOT, tmp))
            if not (ours.exists() and wanted.exists()):
                raise Failed(f"{path}: exists on one side only; run nbdev-export, or remove what no notebook exports")
            texts = (f.read_text(encoding="utf-8").splitlines() for f in (wanted, ours))
            if diff := list(difflib.unified_diff(*texts, lineterm="")):
                why = f"{path} is not what nbs/ exports; run nbdev-export"
                raise Failed("\n".join([why, *diff[:20]]))


def pytest():
    """the tests"""
    run(BIN / "pytest", "-n", "2", "--durations", "12", "--durations-min", "3")


def notebooks():
    """every page runs as a reader runs it: all cells but the recorded ones, the package from its wheel, in an empty folder"""
    run(sys.executable, ".ci/outside.py", "--wheel", built_wheel())


def read_page(path):
    """The formulas of a processed page, once it has gone to HTML."""
    from nbconvert import HTMLExporter

    nb = page(path)
    html, _ = HTMLExporter(template_name="classic").from_notebook_node(nb)
    if len(html) < 2000:
        raise Failed(f"{path.name} gives an empty page")
    formulas = []
    for cell in nb.cells:
        shown = [o.get("data", {}).get("text/markdown", "") for o in cell.get("outputs", [])]
        texts = [cell.source] if cell.cell_type == "markdown" else map("".join, shown)
        formulas += [dict(page=path.name, **f) for t in texts for f in find_formulas(t)]
    return formulas


def docs():
    """every page goes through nbdev's processing and to HTML, and every formula parses"""
    import check  # this file, by a name under which another process finds its functions
    import yaml

    pages = processed()
    try:
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            formulas = [f for several in pool.map(check.read_page, pages) for f in several]
    except check.Failed as why:
        raise Failed(str(why)) from why
    if len(pages) != len(NOTEBOOKS) or not formulas:
        raise Failed(f"{len(pages)} pages from {len(NOTEBOOKS)} notebooks, {len(formulas)} formulas")
    site = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["website"]
    listed = {p for p in sidebar(site["sidebar"]) if p.endswith(".ipynb")}
    if missing := {p.relative_to(NBS).as_posix() for p in NOTEBOOKS} ^ listed:
        raise Failed(f"_quarto.yml's sidebar and nbs/ differ: {sorted(missing)}")
    check_formulas(formulas)
    print(f"  {len(pages)} pages, {len(formulas)} formulas")


def pages():
    """what a reader of the site gets: the rules of .ci/pages.py"""
    from pages import complaints

    processed()
    found = complaints((), lambda path: json.loads((ROOT / "_proc" / path.relative_to(NBS)).read_text(encoding="utf-8")))
    if said := [f"{name}: {one}" for name, several in found.items() for one in several]:
        raise Failed("\n".join([f"{len(said)} complaints (.ci/pages.py NAME lists those of a page)", *said[:20]]))


def readme():
    """README.md is what index.ipynb gives, nbs/llms.txt what the titles give"""
    if not (NBS / "llms.txt").exists() or (NBS / "llms.txt").read_text(encoding="utf-8") != render_llms():
        raise Failed("nbs/llms.txt is not what the notebooks' titles give; run `make readme`")
    text, pictures = render_readme()
    path = ROOT / "README.md"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        raise Failed("README.md is not what nbs/index.ipynb gives; run `make readme`")
    for name, data in pictures.items():
        if not (ROOT / name).exists() or (ROOT / name).read_bytes() != data:
            raise Failed(f"{name} is not the picture in nbs/index.ipynb; run `make readme`")


def wheel():
    """the wheel, in an empty environment without the tools: imports, --help, a two-step training run"""
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        clean = {k: v for k, v in ENV.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        pip = (tmp / "venv/bin/python", "-m", "pip", "install", "-q", "-c", ROOT / ".ci/constraints.txt")
        run(sys.executable, "-m", "venv", tmp / "venv", env=clean)
        run(*pip, "torch", env=clean)
        run(*pip, built_wheel(), env=clean)
        files = [p.relative_to(ROOT).with_suffix("") for p in PACKAGE.rglob("*.py")]
        ours = {".".join(p.parts).removesuffix(".__init__") for p in files} - {"verdiff", "verdiff.__main__"}
        code = "import importlib, pkgutil, verdiff; print(verdiff.__file__)\n"
        code += "found = {m.name for m in pkgutil.walk_packages(verdiff.__path__, 'verdiff.')} - {'verdiff.__main__'}\n"
        code += f"assert found == set({sorted(ours)!r}), found ^ set({sorted(ours)!r})\n"
        code += "for m in sorted(found): importlib.import_module(m)\n"
        code += "from pathlib import Path; home = Path(verdiff.__file__).parent\n"
        code += "assert (home / 'settings.ini').exists() and (home / 'py.typed').exists() and any(home.glob('weights/*/*'))"
        done = run(tmp / "venv/bin/python", "-c", code, cwd=tmp, env=clean, capture_output=True, text=True)
        if "site-packages" not in done.stdout:
            raise Failed(f"imported from {done.stdout.strip()}, not from the wheel")
        verdiff = tmp / "venv/bin/verdiff"
        run(verdiff, "--help", cwd=tmp, env=clean, capture_output=True, text=True)
        run(verdiff, "train", "--data", "phantom", "--profile", "smoke", "--set", "max_steps=2",
            "--out", tmp / "run", cwd=tmp, env=clean, capture_output=True, text=True)
        if not list((tmp / "run").rglob("*.safetensors")):
            raise Failed("the two-step run left no weights")


# ---------------------------------------------------------------- what they use


@functools.cache
def built_wheel():
    """The package's wheel, built once for the steps that use it."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder.name, ROOT)
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    return next(Path(folder.name).glob("verdiff-*.whl"))


@functools.cache
def processed():
    """Run nbdev's documentation processing on all notebooks; the processed notebooks."""
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs

    os.chdir(ROOT)
    refresh_quarto_yml()
    try:
        cache = proc_nbs(n_workers=0, force=True)
    except Exception as why:  # a page's import that fails, say
        raise Failed(f"nbdev cannot process the pages: {str(why)[-1500:]}") from why
    return find(Path(cache), ".ipynb")


def page(path):
    """A processed notebook as a reader sees it: directives obeyed and gone, unknown keys dropped."""
    import nbformat
    import yaml

    raw = json.loads(Path(path).read_text(encoding="utf-8"))
    known = {"cell_type", "id", "metadata", "source"}
    cells = []
    for cell in raw["cells"]:
        text = cell["source"] = source(cell)
        if cell["cell_type"] == "raw" and text.startswith("---"):  # nbdev turns the H1 into front matter
            front = yaml.safe_load(text.strip().strip("-"))
            title, subtitle = front["title"], front.get("description", "")
            cell |= dict(cell_type="markdown", source=f"# {title}\n\n> {subtitle}")
        if "AUTOGENERATED" in text:
            continue
        echo = not re.search(r"^#\|\s*echo:\s*false|^show_doc\(", text, re.M)
        if cell["cell_type"] == "code":
            text = "\n".join(line for line in text.splitlines() if not line.startswith("#|")).strip()
            cell["source"] = text if echo else ""
            cell.setdefault("execution_count", None)
        more = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        cells.append({k: v for k, v in cell.items() if k in known | more} | {"metadata": {}})
    raw["cells"] = [c for c in cells if source(c) or c.get("outputs")]
    return nbformat.reads(json.dumps(raw), as_version=4)  # joins the lines of texts and pictures


def find_formulas(text):
    """The LaTeX of a Markdown text, code left out."""
    text = re.sub(r"```.*?```|~~~.*?~~~", "", text, flags=re.S)
    text = re.sub(r"`[^`\n]*`", "", text)
    found = [dict(tex=m, display=True) for m in re.findall(r"\$\$(.+?)\$\$", text, flags=re.S)]
    text = re.sub(r"\$\$.+?\$\$", "", text, flags=re.S)
    inline = re.findall(r"(?<![\\$])\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\d)", text)
    return found + [dict(tex=m, display=False) for m in inline]


def check_formulas(formulas):
    """Parse each with KaTeX, as the site does."""
    if not shutil.which("npm"):
        raise Failed("npm is needed to check the formulas with KaTeX; install Node.js")
    home = ROOT / ".venv" / "katex"
    if not (home / "node_modules" / "katex").exists():
        home.mkdir(parents=True, exist_ok=True)
        npm = ("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", home)
        run(*npm, "katex@0.16", capture_output=True, text=True)
    script = """
      const katex = require('katex'); const bad = [];
      for (const f of JSON.parse(require('fs').readFileSync(0, 'utf8')))
        try { katex.renderToString(f.tex, {displayMode: f.display, throwOnError: true, strict: 'ignore'}) }
        catch (e) { bad.push(f.page + ': ' + e.message) }
      if (bad.length) { console.error(bad.join('\\n')); process.exit(1) }"""
    run("node", "-e", script, cwd=home, input=json.dumps(formulas), capture_output=True, text=True)


def render_readme():
    """README.md's text and its pictures {path: bytes}, from the processed index."""
    from nbconvert import MarkdownExporter

    nb = page(next(p for p in processed() if p.parent.name == "_proc" and p.name == "index.ipynb"))
    text, resources = MarkdownExporter().from_notebook_node(nb)
    folder = "nbs/README_files"
    pictures = {f"{folder}/{name}": data for name, data in resources.get("outputs", {}).items()}
    for name in resources.get("outputs", {}):
        text = text.replace(f"({name})", f"({folder}/{name})")
    text = re.sub(r"```\w*\n\s*```\n", "", text)  # cells whose code is hidden
    site = re.search(r'^Documentation = "(.+?)/?"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]
    text = re.sub(r"\]\(((?:\w+/)?\w+)\.ipynb(#[^)\s]*)?\)", r"](nbs/\1.ipynb\2)", text)
    text = re.sub(r"\]\(((?:\w+/)?\w+\.html(?:#[^)\s]*)?)\)", rf"]({site}/\1)", text)
    text = re.sub(r"^:{3,}.*\n", "", text, flags=re.M)  # Quarto's boxes, and attributes that GitHub would print
    text = re.sub(r"^(#+ .*?)[ \t]*\{[#.][^}\n]*\}[ \t]*$", r"\1", text, flags=re.M)
    text = re.sub(r"(\]\([^)\n]*\))\{[^}\n]*\}", r"\1", text)
    head = "<!-- made from nbs/index.ipynb by `make readme`: edit that notebook -->\n\n"
    return head + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", pictures


def render_llms():
    """The site's contents for readers that are programs (llmstxt.org): each page with its one line, as Markdown."""
    import yaml

    site = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["website"]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    address, said = (re.search(rf'^{key} = "(.+?)/?"$', project, re.M)[1] for key in ("Documentation", "description"))
    text = [f"# verdiff\n\n> {said}\n"]
    for part in site["sidebar"]:
        text.append(f"\n## {part['title']}\n")
        for path in (NBS / entry for entry in sidebar(part["contents"]) if entry.endswith(".ipynb")):
            if path.exists():
                first = source(json.loads(path.read_text(encoding="utf-8"))["cells"][0])
                title, line = (re.search(rf"^{mark} (.+)$", first, re.M) for mark in ("#", ">"))
                where = path.relative_to(NBS).with_name(re.sub(r"^\d+[a-zA-Z0-9]*_", "", path.stem) + ".html.md").as_posix()
                text.append(f"- [{title[1] if title else path.stem}]({address}/{where}): {line[1] if line else ''}")
    return "\n".join(text) + "\n"


def write_readme():
    (NBS / "llms.txt").write_text(render_llms(), encoding="utf-8")
    text, pictures = render_readme()
    shutil.rmtree(ROOT / "nbs/README_files", ignore_errors=True)
    for name, data in pictures.items():
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_bytes(data)
    (ROOT / "README.md").write_text(text, encoding="utf-8")


STEPS = [style, pairs, exports, readme, docs, pages, pytest, notebooks, wheel]


def main():
    words = sys.argv[1:]
    if words == ["--write-readme"]:
        return write_readme()
    if words == ["--list"]:
        return print(*(f"{s.__name__:10s} {s.__doc__}" for s in STEPS), sep="\n")
    begin, failed, steps = time.time(), [], [s for s in STEPS if not words or s.__name__ in words]
    beside, waiting = ThreadPoolExecutor(1), {}
    for step in steps:
        print(f"== {step.__name__}: {step.__doc__}", flush=True)
        start = time.time()
        try:
            if wheel in steps and not waiting:  # it mostly waits for the network and the disk
                built_wheel()
                waiting[wheel] = beside.submit(wheel)
            waiting[step].result() if step in waiting else step()
            print(f"   passed in {time.time() - start:.0f} s", flush=True)
        except Failed as why:
            failed.append(step.__name__)
            print(f"   FAILED in {time.time() - start:.0f} s: {why}", flush=True)
    verdict = "FAILED: " + ", ".join(failed) if failed else "all passed"
    print(f"== {verdict} ({time.time() - begin:.0f} s)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
