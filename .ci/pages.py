"""What a reader of the rendered site would miss: complaints page by page, without Quarto.

usage: pages.py [--written] [NAME ...]       e.g. pages.py 06_forward library/settings        (default: every page)

--written looks at the notebooks only, which takes a second; without it each page also goes through nbdev's processing, as for
the site. A rule takes a notebook (the parsed JSON) and its name such as `06_forward` or `library/settings`; it returns complaints.
"""
import html
import json
import os
import posixpath
import re
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
from docproc import documented  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ("slow", "cuda", "notest")  # flags whose cells the checks do not run (`tst_flags` in pyproject.toml)
BARE = re.compile(
    r"\s*(\[*(Text|Line2D|BarContainer|PathCollection)\(|interactive\(children|[HV]Box\(children|\w+Slider\(|Output\(\)|"
    r"\[*<(matplotlib|Figure|Axes|IPython|function|bound|generator|module|torch\.\w+\.\w+ object)|\(?array\(\[+<|\((array|<)|"
    r"<[\w.]+ (object )?at 0x|Parameter containing)")
HOME = re.compile(r"/(?:root|home|work|tmp|Users)/[\w./-]+")
URL = re.compile(r"https?://\S{30,}")
CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.S)
FENCE = re.compile(r"^(?P<f>```+|~~~+).*?^(?P=f)[ \t]*$", re.M | re.S)
TARGET = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)|<(?:a|img)\s[^>]*?(?:href|src)=\"([^\"]+)\"")


# ---------------------------------------------------------------- reading a notebook


def text(x):
    return x if isinstance(x, str) else "".join(x)


def flags(cell):
    """The directives of a code cell: {name: value}."""
    found = re.findall(r"^#\|\s*([\w-]+)[ \t]*:?[ \t]*(.*)$", text(cell["source"]), re.M)
    return dict(found) if cell["cell_type"] == "code" else {}


def body(cell):
    """A cell's lines without directives and blank lines."""
    return [s for s in text(cell["source"]).splitlines() if s.strip() and not s.lstrip().startswith("#|")]


def hidden(cell):
    """Neither source nor output reach the page."""
    found = flags(cell)
    return bool(found.keys() & {"hide", "default_exp"}) or found.get("include") == "false"


def coded(nb):
    """Number and cell of each code cell that the page shows something of."""
    return [(n, c) for n, c in enumerate(nb["cells"]) if c["cell_type"] == "code" and not hidden(c)]


def course(name):
    return "/" not in name


def lesson(name):
    return bool(re.match(r"\d\d_", name))


def where(n, cell):
    """How a complaint names a cell: its number and how it begins."""
    first = (body(cell) or ["(empty)"])[0].strip()
    return f"cell {n} `{first[:40]}`"


def pictures(cell):
    return sum(any(k.startswith("image/") for k in o.get("data", {})) for o in cell.get("outputs", []))


def shown_text(cell):
    """What a cell's outputs say in words."""
    parts = [text(o.get("text", "")) for o in cell.get("outputs", [])]
    parts += [text(o["data"].get(k, "")) for o in cell.get("outputs", []) if "data" in o
              for k in ("text/markdown", "text/html", "text/plain")]
    return "\n".join(parts)


def prose(cell):
    """A markdown text without its code."""
    return CODE.sub("", FENCE.sub("", text(cell["source"])))


# ---------------------------------------------------------------- rules on a notebook as it is written


def introduction(nb, name):
    """nbdev makes front matter of the first cell: title and `>` line stay, the rest is lost"""
    first = nb["cells"][0] if nb["cells"] else {"cell_type": "", "source": ""}
    lines = [s for s in text(first["source"]).splitlines() if s.strip()]
    if first["cell_type"] != "markdown" or not lines or not lines[0].startswith("# "):
        return ["the first cell is not `# title`"]
    found = [] if any(s.startswith("> ") for s in lines[1:]) else ["the first cell has no `> description` line"]
    lost = [s for s in lines[1:] if not s.startswith(("> ", "- "))]
    if lost:
        found.append(f"{len(' '.join(lost).split())} words of the first cell are lost on the site: move them to a second cell")
    if len(nb["cells"]) < 2 or nb["cells"][1]["cell_type"] != "markdown":
        found.append("the second cell is not the introduction (markdown)")
    return found


def badge(nb, name):
    """a page with code opens on Colab, by a badge that stands in a sentence"""
    if not any(c["cell_type"] == "code" for c in nb["cells"]):
        return []
    texts = [text(c["source"]) for c in nb["cells"][1:] if c["cell_type"] == "markdown"]
    links = [t for t in texts if "colab.research.google.com/github/" in t]
    if not links:
        return ["no link to Colab after the first cell"]
    found = []
    if not any(f"/nbs/{name}.ipynb" in t for t in links):
        found.append(f"the link to Colab does not open nbs/{name}.ipynb")
    if any(re.search(r"^\s*\[!\[[^\]]*\]\([^)]*\)\]\([^)]*\)\s*$", part) for t in links for part in t.split("\n\n")):
        found.append("the badge stands alone in its paragraph (Quarto makes a captioned figure of it): put it into a sentence")
    return found


def installs(nb, name):
    """the install line runs only on Colab, and no reader of the site sees it"""
    found = []
    for n, cell in enumerate(nb["cells"]):
        if cell["cell_type"] == "code" and re.search(r"^\s*[!%]\s*pip install", text(cell["source"]), re.M):
            if "google.colab" not in text(cell["source"]):
                found.append(f'{where(n, cell)}: guard it with `if "google.colab" in sys.modules:` (`#| eval: false` does not stop Jupyter)')
            if not hidden(cell):
                found.append(f"{where(n, cell)}: hide it (`#| hide`)")
    return found


def source_shown(nb, name):
    """a lesson shows what it exports: `#| exports`, not `#| export`"""
    if not course(name):
        return []
    return [f"{where(n, c)}: {len(body(c))} exported lines are not shown: use `#| exports`"
            for n, c in enumerate(nb["cells"]) if flags(c).keys() & {"export", "exporti"} and body(c)]


def alt_text(nb, name):
    """each picture says in words what it shows: `#| fig-alt: "…"`"""
    found = []
    for n, cell in coded(nb):
        count = pictures(cell)
        if not count:
            continue
        value = flags(cell).get("fig-alt", "").strip()
        try:
            alts = yaml.safe_load(value)
        except yaml.YAMLError:
            alts = {}
        if isinstance(alts, dict):
            found.append(f"{where(n, cell)}: fig-alt is no YAML text; put it into double quotes")
            continue
        alts = alts if isinstance(alts, list) else [alts] if alts else []
        if not alts:
            found.append(f"{where(n, cell)}: {count} pictures without `#| fig-alt`" if count > 1
                         else f"{where(n, cell)}: a picture without `#| fig-alt`")
        elif len(alts) != count:
            found.append(f"{where(n, cell)}: {count} pictures, {len(alts)} texts in fig-alt (a list: [\"…\", \"…\"])")
        elif any(len(str(a)) < 20 for a in alts):
            found.append(f"{where(n, cell)}: fig-alt says too little: what would one see?")
    for n, cell in enumerate(nb["cells"]):
        if cell["cell_type"] == "markdown" and re.search(r"!\[\s*\]\(", prose(cell)):
            found.append(f"cell {n}: a Markdown picture without alternative text")
    return found


def bare_outputs(nb, name):
    """no output is a bare repr or what a widget leaves behind: end the line with `;` or print what counts"""
    found = []
    for n, cell in coded(nb):
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if any(k.startswith(("image/", "text/html", "text/markdown")) for k in data):
                continue
            said = text(data.get("text/plain", ""))
            if BARE.match(said):
                found.append(f"{where(n, cell)}: the output is a bare `{said.strip()[:30]}`")
            elif re.search(r"<[\w.]+ object at 0x[0-9a-f]+>", text(output.get("text", said))):
                found.append(f"{where(n, cell)}: the output shows an object's address")
            if "application/vnd.jupyter.widget-view+json" in data and not said.strip():
                found.append(f"{where(n, cell)}: the output is a widget, which shows nothing on the site")
    return found


def section(cells, n):
    """What is written around cell n: from the heading of its section down to it, and the text right after it."""
    first = n
    while first > 0 and not (cells[first]["cell_type"] == "markdown" and re.search(r"^#{1,4} ", prose(cells[first]), re.M)):
        first -= 1
    last = n
    while last + 1 < len(cells) and cells[last + 1]["cell_type"] == "code" and flags(cells[last + 1]).keys() & set(RECORDED):
        last += 1
    words = [text(c["source"]) for c in cells[first: last + 2] if c["cell_type"] == "markdown"]
    return "\n".join([*words, *(shown_text(c) for c in cells[n: last + 1] if c["cell_type"] == "code")])


def said_to_be_recorded(nb, name):
    """a section whose cells the checks do not run says what its outputs are: "Recorded run" (device, date, commit) or "Not run yet" """
    found = []
    for n, cell in coded(nb):
        if not flags(cell).keys() & set(RECORDED):
            continue
        words = section(nb["cells"], n)
        if "Recorded run" not in words:
            if cell.get("outputs"):
                found.append(f'{where(n, cell)}: neither its section before it nor the text after it says "Recorded run"')
            elif "Not run yet" not in words:
                found.append(f'{where(n, cell)}: neither its section before it nor the text after it says "Not run yet"')
            continue
        needed = {"date (2026-11-27)": r"\b20\d\d-\d\d-\d\d\b", "commit": r"\b(?=[0-9a-f]*\d)[0-9a-f]{7,40}\b",
                  "device": r"\b(CPU|GPU|cuda|cores?|threads?|[A-Z]\d{2,4}\w*)\b"}
        missing = [what for what, pattern in needed.items() if not re.search(pattern, words)]
        if missing and cell.get("outputs"):
            found.append(f"{where(n, cell)}: a recorded run without {', '.join(missing)}")
    return found


def line_width(nb, name):
    """code fits its column: 80 columns in the course, 100 elsewhere"""
    limit, found = 80 if course(name) else 100, []
    for n, cell in coded(nb):
        wide = [s for s in body(cell) if len(s) > limit and not URL.search(s)]
        if wide:
            found.append(f"{where(n, cell)}: {len(wide)} lines over {limit} columns, the longest {max(map(len, wide))}")
    return found


def clean_outputs(nb, name):
    """no error, no folder of somebody's machine, no `__main__.` in what a page shows"""
    found = []
    for n, cell in coded(nb):
        said = shown_text(cell)
        if any(o["output_type"] == "error" for o in cell.get("outputs", [])):
            found.append(f"{where(n, cell)}: the output is an error")
        if m := HOME.search(said):
            found.append(f"{where(n, cell)}: the output names a folder of one machine, {m[0]}")
        if "__main__." in said:
            found.append(f"{where(n, cell)}: `__main__.` in the output")
    return found


def directives(nb, name):
    """Quarto can read each cell's options, and fences (`:::`, `<details>`) close"""
    found = []
    for n, cell in enumerate(nb["cells"]):
        if cell["cell_type"] == "code":
            options = re.findall(r"^#\|\s*([a-z][\w-]*:.*)$", text(cell["source"]), re.M)
            keys = [o.partition(":")[0] for o in options]
            if len(set(keys)) < len(keys):
                found.append(f"{where(n, cell)}: an option stands twice")
            try:
                yaml.safe_load("\n".join(options))
            except yaml.YAMLError as why:
                found.append(f"{where(n, cell)}: options that YAML cannot read ({str(why).splitlines()[0]})")
    words = [FENCE.sub("", text(c["source"])) for c in nb["cells"] if c["cell_type"] == "markdown"]
    depth = 0
    for line in "\n".join(words).splitlines():
        if re.match(r"\s*:{3,}\s*\S", line):
            depth += 1
        elif re.match(r"\s*:{3,}\s*$", line):
            depth -= 1
        if depth < 0:
            break
    if depth:
        found.append("the `:::` fences do not close")
    joined = CODE.sub("", "\n".join(words))
    if len(re.findall(r"<details\b", joined)) != len(re.findall(r"</details>", joined)):
        found.append("a <details> does not close")
    return found


def citations(nb, name, known=None):
    """what looks like a citation to Pandoc (`@name` in prose) is one of nbs/references.bib"""
    if known is None:
        known = set(re.findall(r"^@\w+\{([\w-]+),", (ROOT / "nbs/references.bib").read_text(encoding="utf-8"), re.M))
    words = [(n, re.sub(r"\$[^$\n]+\$|https?://\S+", "", prose(c))) for n, c in enumerate(nb["cells"]) if c["cell_type"] == "markdown"]
    return [f"cell {n}: @{key} is not in references.bib" for n, said in words
            for key in re.findall(r"(?<![\w.@/])@([A-Za-z][\w-]*)", said) if key not in known]


# ---------------------------------------------------------------- links and anchors


def slug(heading):
    """The anchor that Pandoc gives a heading."""
    heading = re.sub(r"\s*\{[^}]*\}\s*$", "", heading)
    heading = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    heading = html.unescape(re.sub(r"<[^>]+>", "", heading))
    heading = re.sub(r"(?<!\\)[*`$]|\\(?=\W)", "", heading)
    heading = re.sub(r"[^\w\s.-]", "", heading).strip().lower()
    heading = re.sub(r"\s+", "-", heading)
    return re.sub(r"^[^a-z]+", "", heading) or "section"


def anchors(nb):
    """What a link to this page may end with."""
    found, seen = set(documented(nb["cells"])), {}
    for cell in nb["cells"][1:]:
        words = [text(cell["source"])] if cell["cell_type"] == "markdown" else [
            text(o["data"].get("text/markdown", "")) for o in cell.get("outputs", []) if "data" in o and not hidden(cell)]
        for one in words:
            one = FENCE.sub("", one)
            for heading in re.findall(r"^#{1,6}[ \t]+(.+)$", one, re.M):
                own = re.search(r"\{[^}]*#([\w.-]+)", heading)
                name = own[1] if own else slug(heading)
                seen[name] = seen.get(name, 0) + 1
                found.add(name if seen[name] == 1 or own else f"{name}-{seen[name] - 1}")
            found |= set(re.findall(r"\bid=\"([^\"]+)\"", one)) | set(re.findall(r"\]\{#([\w.-]+)", one))
    return found


def targets(nb):
    """Number of the cell and target of each link and picture."""
    for n, cell in enumerate(nb["cells"]):
        outputs = [text(o["data"].get("text/markdown", "")) for o in cell.get("outputs", []) if "data" in o]
        words = [prose(cell)] if cell["cell_type"] == "markdown" else outputs if not hidden(cell) else []
        for one in words:
            for m in TARGET.finditer(CODE.sub("", one)):
                yield n, html.unescape(m[1] or m[2])


def html_name(name):
    """nbdev's name of a page: `library/01_settings` becomes library/settings.html."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, re.sub(r"^\d+[a-zA-Z0-9]*_", "", base.lower()) + ".html")


def links(nb, name, site, ours="https://github.com/verdiff/verdiff", exists=lambda path: (ROOT / path).exists()):
    """links between pages, into the repository and to pictures lead somewhere; `site` is {name: anchors}"""
    pages = {html_name(other): other for other in site}
    found, here = [], posixpath.dirname(name)
    for n, target in targets(nb):
        if target.startswith(("mailto:", "data:", "attachment:")):
            continue
        path, _, anchor = target.partition("#")
        repository = re.match(rf"{re.escape(ours)}/(?:blob|tree)/\w+/(.+)|https://colab\.research\.google\.com/github/[^/]+/[^/]+/blob/\w+/(.+)", path)
        if repository:
            if not exists(repository[1] or repository[2]):
                found.append(f"cell {n}: {target} is not in the repository")
        elif re.match(r"[a-z]+://", path):
            continue
        elif not path or path.endswith((".ipynb", ".html")):
            place = posixpath.normpath(posixpath.join(here, path)) if path else name + ".ipynb"
            other = place.removesuffix(".ipynb") if place.endswith(".ipynb") else pages.get(place)
            if other not in site:
                found.append(f"cell {n}: {target}: there is no such page")
            elif anchor and anchor not in site[other]:
                found.append(f"cell {n}: {target}: the page has no `#{anchor}`")
        elif not exists(posixpath.normpath(posixpath.join("nbs", here, path))):
            found.append(f"cell {n}: {target} is missing")
    return list(dict.fromkeys(found))


# ---------------------------------------------------------------- rules on a page after nbdev's processing


def survives(nb, name, page):
    """every paragraph that was written is on the processed page, the badge among them"""
    def plain(s):
        return re.sub(r"[`\[\]]|\([^)\s]*\)|\s+", "", s)

    there = plain("\n".join(text(c["source"]) for c in page["cells"] if c["cell_type"] == "markdown"))
    found = []
    for n, cell in enumerate(nb["cells"][1:], 1):
        words = plain(text(cell["source"])) if cell["cell_type"] == "markdown" else ""
        if words and words[:80] not in there and not text(cell["source"]).rstrip().endswith(" -"):
            found.append(f"cell {n}: the text `{text(cell['source'])[:40].strip()}…` is not on the page")
    if any("colab-badge" in text(c["source"]) for c in nb["cells"]) and not any("colab-badge" in text(c["source"]) for c in page["cells"]):
        found.append("the Colab badge is not on the page")
    return found


def subject_on_page(nb, name, page):
    """every exported line of a lesson stands on its processed page"""
    if not course(name):
        return []
    there = {line for c in page["cells"] if c["cell_type"] == "code" for line in body(c)
             if "echo: false" not in text(c["source"])}
    found = []
    for n, cell in enumerate(nb["cells"]):
        if flags(cell).keys() & {"export", "exports", "exporti"}:
            missing = [s for s in body(cell) if s not in there]
            if missing:
                found.append(f"{where(n, cell)}: {len(missing)} exported lines are not on the page")
    return found


def no_main(nb, name, page):
    """no `__main__.` and no `*args, **kwargs` in a signature that nbdev wrote"""
    found = []
    for cell in page["cells"]:
        said = shown_text(cell) if cell["cell_type"] == "code" and "show_doc(" in text(cell["source"]) else ""
        for bad in ("__main__.", "(\n    *args, **kwargs\n)"):
            if bad in said:
                found.append(f"{(body(cell) or ['?'])[0]}: `{' '.join(bad.split())}` in the signature")
    return found


WRITTEN = [introduction, badge, installs, source_shown, alt_text, bare_outputs, said_to_be_recorded, line_width, clean_outputs, directives,
           citations]
PROCESSED = [survives, subject_on_page, no_main]


# ---------------------------------------------------------------- all of it


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def notebooks():
    """{name: path} of every page."""
    nbs = ROOT / "nbs"
    paths = [p for p in nbs.rglob("*.ipynb") if not any(q.startswith((".", "_")) for q in p.relative_to(nbs).parts)]
    return {p.relative_to(nbs).with_suffix("").as_posix(): p for p in sorted(paths)}


def process(path):
    """A notebook after nbdev's processing for the site."""
    from fastcore.nbio import read_nb
    from nbdev.processors import FilterDefaults

    os.environ["IN_TEST"] = "1"
    try:
        nb = read_nb(path)
        FilterDefaults()(nb)
        return nb
    finally:
        del os.environ["IN_TEST"]


def repository():
    """The address of the repository, from pyproject.toml."""
    return re.search(r'^Repository = "([^"]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]


def complaints(chosen, processed=None):
    """{name: complaints} of the chosen pages; `processed` gives a path's processed notebook, None leaves those rules out."""
    paths = notebooks()
    parsed = {name: read(path) for name, path in paths.items()}
    site = {name: anchors(nb) for name, nb in parsed.items()}
    found = {}
    for name in chosen or paths:
        nb = parsed[name]
        found[name] = [f"{rule.__name__}: {said}" for rule in WRITTEN for said in rule(nb, name)]
        found[name] += [f"links: {said}" for said in links(nb, name, site, repository())]
        if processed:
            try:
                page = processed(paths[name])
            except Exception as why:  # what a page's imports raise, anything
                found[name].append(f"process: nbdev cannot process the page: {str(why).splitlines()[-1]}")
                continue
            found[name] += [f"{rule.__name__}: {said}" for rule in PROCESSED for said in rule(nb, name, page)]
            found[name] += [f"links: {said}" for said in links(page, name, site, repository())
                            if f"links: {said}" not in found[name] and not said.startswith("cell 0")]
    return found


def main():
    words = [re.sub(r"^nb(s|py)/|\.(ipynb|py)$", "", w) for w in sys.argv[1:] if not w.startswith("--")]
    if unknown := set(words) - notebooks().keys():
        print("no such page:", *sorted(unknown))
        return 2
    os.chdir(ROOT)
    found = complaints(words, None if "--written" in sys.argv else process)
    for name, said in found.items():
        print(f"{name}: {len(said) or 'no'} complaints")
        for one in said:
            print("   ", one)
    total = sum(map(len, found.values()))
    rules = sorted({one.partition(":")[0] for said in found.values() for one in said})
    counts = {r: sum(one.startswith(r + ":") for said in found.values() for one in said) for r in rules}
    print(f"{len(found)} pages, {total} complaints", *(f"{n} {r}" for r, n in counts.items()), sep="\n    ")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
