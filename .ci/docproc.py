"""What the site does with an exported cell, after nbdev's own processors (`doc_procs` in pyproject.toml).

A cell with `#| exports` (the course) becomes a small heading that others can link to, and its source, whole. A cell with
`#| export` (the library) becomes a heading, its signature as written in the source, and its docstring. nbdev itself shows the
signature that Python reconstructs, where the page's own classes are called `__main__.Name` and an exception has `*args, **kwargs`.
A cell of nothing but imports is folded. Printed tables get a class of their own, so that the style sheet does not wrap their lines.
Links between pages become relative, so that the site works under any address.
"""
import ast
import functools
import json
import posixpath
import re
from pathlib import Path

from nbdev.config import get_config, nbpath2html
from nbdev.process import Processor

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
EXPORTED = re.compile(r"^#\|\s*(exports?)\b", re.M)
HIDDEN = re.compile(r"^#\|\s*(hide\b|include:\s*false)", re.M)
OURS = re.compile(r"^#\|\s*(exports|slow|cuda|notest)\b.*\n?", re.M)  # options that Quarto does not know
OPTIONS = re.compile(r"^#\|.*\n?", re.M)
SHOWN = re.compile(r"^show_doc\((\w[\w.]*)", re.M)
LINK = re.compile(r"\[(`[^`\]]+`)\]\(([^)\s]+)\)")
TWICE = re.compile(r"\[\[(`[^`\]]+`)\]\([^)\s]+\)\](\([^)\s]+\))")  # nbdev puts its link on a name that is one already
GAP = re.compile(r"\S {2,}(?=\S)")


def text(x):
    return x if isinstance(x, str) else "".join(x)


def definitions(source):
    """The functions and classes that a cell defines, in order."""
    try:
        return [node for node in ast.parse(source).body if isinstance(node, DEFINITIONS)]
    except SyntaxError:  # a shell line or a magic
        return []


def only_setup(source):
    """A cell of nothing but imports and drawing or thread settings, which the page folds."""
    try:
        parts = ast.parse(OPTIONS.sub("", source)).body
    except SyntaxError:
        return False
    calls = {"set_matplotlib_formats", "torch.set_num_threads"}
    return bool(parts) and all(
        isinstance(p, (ast.Import, ast.ImportFrom))
        or isinstance(p, ast.Expr) and isinstance(p.value, ast.Call) and ast.unparse(p.value.func) in calls for p in parts)


def printed_table(said):
    """Whether printed text stands in columns: three lines or more, and half of all, have two wide gaps."""
    lines = [line for line in said.splitlines() if line.strip()]
    rows = [line for line in lines if len(GAP.findall(line)) >= 2]
    return len(rows) >= 3 and 2 * len(rows) >= len(lines)


def documented(cells):
    """Lower-case names of the public functions and classes that a notebook's page has a heading for."""
    for cell in cells:
        source = text(cell["source"])
        if cell["cell_type"] != "code" or HIDDEN.search(source):
            continue
        if EXPORTED.search(source):
            yield from (d.name.lower() for d in definitions(source) if not d.name.startswith("_"))
        yield from (name.lower() for name in SHOWN.findall(source))


@functools.cache
def reference(folder):
    """Every `page.html#name` of the site that documents something."""
    found = set()
    for path in Path(folder).rglob("*.ipynb"):
        if not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts):
            page = nbpath2html(path.relative_to(folder)).as_posix()
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            found |= {f"{page}#{name}" for name in documented(cells)}
    return frozenset(found)


def relative_links(markdown, page, base, known):
    """Links that nbdev put on names: relative to `page`, to a class in place of its method, and none to what no page shows."""

    def mend(match):
        label, target = match.groups()
        if not target.startswith(base + "/"):
            return match[0]
        where, _, full = target[len(base) + 1:].partition("#")
        for anchor in (full, full.partition(".")[0]):
            if f"{where}#{anchor}" in known:
                where = "" if where == page else posixpath.relpath(where, posixpath.dirname(page) or ".")
                return f"[{label}]({where}#{anchor})"
        return label

    return LINK.sub(mend, TWICE.sub(r"[\1]\2", markdown))


def header(source, node):
    """`def name(...):` or `class Name(...):` as written, with its comments and decorators."""
    lines = source.splitlines()
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
    body = node.body[0]
    last = body.lineno - 1
    if isinstance(body, DEFINITIONS) and body.decorator_list:
        last = body.decorator_list[0].lineno - 1
    if last == node.lineno - 1 or lines[last][: body.col_offset].strip():  # the body begins on the same line
        return "\n".join([*lines[first:last], lines[last].encode()[: body.col_offset].decode().rstrip()])
    return "\n".join(lines[first:last]).rstrip()


def signature(source, node):
    """What a reader needs to call it: a function's header; a class's header, fields and public methods, each with its first line."""
    shown = header(source, node)
    if not isinstance(node, ast.ClassDef):
        return shown
    lines, inner = source.splitlines(), []
    for part in node.body:
        if isinstance(part, (ast.AnnAssign, ast.Assign)):
            inner.append("\n".join(lines[part.lineno - 1: part.end_lineno]))
        elif isinstance(part, DEFINITIONS) and (part.name in ("__init__", "__call__") or not part.name.startswith("_")):
            said = (ast.get_docstring(part) or "").splitlines()
            inner.append(header(source, part) + (f'\n{" " * part.body[0].col_offset}"{said[0]}"' if said else ""))
    return "\n".join([shown, *inner])


class Reference(Processor):
    """Headings, signatures and sources of what a page exports."""

    def __init__(self, nb):
        super().__init__(nb)
        self.sources = {}
        for cell in nb.cells:
            source = getattr(cell, "source", None)
            if source and cell.cell_type == "code":
                flags = getattr(cell, "directives_", {})
                for node in definitions(source):
                    if flags.keys() & {"export", "exports"} or node.name not in self.sources:
                        self.sources[node.name] = (source, node, "exports" in flags)

    def begin(self):
        config = get_config()
        nbs = Path(config.nbs_path)
        page = nbpath2html(Path(self.nb.path_).resolve().relative_to(nbs.resolve())).as_posix()
        base = (config.doc_host.rstrip("/") + config.doc_baseurl).rstrip("/")
        mend = functools.partial(relative_links, page=page, base=base, known=reference(nbs))
        self.nb.metadata.pop("widgets", None)  # without a kernel they show nothing
        cells, waiting = [], []
        for cell in self.nb.cells:
            if cell.cell_type == "markdown":
                cell["source"] = mend(cell.source)
            else:
                cell["source"] = OURS.sub("", cell.source)
                if cell.cell_type == "code" and only_setup(cell.source) and not re.search(r"^#\|\s*(code-fold|echo):", cell.source, re.M):
                    cell["source"] = f'#| code-fold: true\n#| code-summary: "Imports"\n{cell.source}'
                tables = [said for output in cell.get("outputs", []) if printed_table(said := text(output.get("text", "")))]
                if tables:
                    wide = " printed-wide" if max(map(len, "\n".join(tables).splitlines())) > 90 else ""
                    cell["source"] = f"#| classes: printed-table{wide}\n{cell.source}"
            name = SHOWN.search(cell.source or "") if cell.cell_type == "code" else None
            if name and self.sources.get(name[1], (0, 0, False))[2]:
                waiting.append((name[1], cell))  # its source stands right before or after it
                continue
            for output in cell.get("outputs", []):
                data = output.get("data", {})
                if name and "text/markdown" in data:
                    data["text/markdown"] = self.entry(name[1], text(data["text/markdown"]))
                    data.pop("text/plain", None)
                if "text/markdown" in data:
                    data["text/markdown"] = mend(text(data["text/markdown"]))
            cells.append(cell)
        self.nb.cells[:] = cells
        self.heads(waiting)

    def entry(self, name, markdown):
        """A library entry: nbdev's, with the signature as it is written."""
        if name in self.sources:
            source, node, _ = self.sources[name]
            block = f"```python\n{signature(source, node)}\n```"
            markdown = re.sub(r"```python\n.*?\n```", lambda m: block, markdown, count=1, flags=re.S)
        markdown = re.sub(r"^### (\S+)$", lambda m: f"### {m[1]} {{#{m[1].lower()} .api}}", markdown, count=1, flags=re.M)
        return re.sub(r"^---\n+", "", markdown).replace("__main__.", "")

    def heads(self, waiting):
        """One heading before each shown source: the names that it defines."""
        for cell in list(self.nb.cells):
            if cell.cell_type != "code" or "exports" not in getattr(cell, "directives_", {}):
                continue
            names = [d.name for d in definitions(cell.source)]
            found = [(n, c) for n in names for w, c in waiting if w == n]
            if not found:
                continue
            label = ", ".join(name for name, _ in found)
            more = "".join(f"[]{{#{name.lower()}}}" for name, _ in found[1:])
            shown = text(found[0][1].outputs[0]["data"]["text/markdown"]) if found[0][1].get("outputs") else ""
            link = re.search(r"^\[source\]\(.*$", shown, re.M)
            head = found[0][1]
            head["outputs"], head["cell_type"], head.source = [], "markdown", "\n\n".join(
                part for part in (link[0] if link else "", f"### {label} {{#{found[0][0].lower()} .api}}", more) if part)
            for key in ("outputs", "execution_count"):
                head.pop(key, None)
            at = next(i for i, other in enumerate(self.nb.cells) if other is cell)
            self.nb.cells.insert(at, head)
