"Each rule for the pages complains of a notebook that breaks it, and of nothing in one that does not."
import importlib.util
import sys
from pathlib import Path

import pytest

CI = Path(__file__).resolve().parent.parent / ".ci"
for needed in ("nbdev", "yaml"):
    pytest.importorskip(needed)
if not (CI / "pages.py").exists():
    pytest.skip("not in a clone", allow_module_level=True)


def load(name):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, CI / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


docproc = load("docproc")
pages = load("pages")
PICTURE = {"output_type": "display_data", "data": {"image/png": "iVBO", "text/plain": "<Figure size 640x480>"}}
ALT = '#| fig-alt: "A spine beside its mask, in white on black."\n'
BADGE = ("It takes 20 minutes; [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
         "(https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/01_x.ipynb) runs it.")


def md(source):
    return {"cell_type": "markdown", "source": source}


def code(source, *outputs):
    return {"cell_type": "code", "source": source, "outputs": list(outputs)}


def printed(words):
    return {"output_type": "stream", "name": "stdout", "text": words}


def result(words, **more):
    return {"output_type": "execute_result", "data": {"text/plain": words} | more}


def book(*cells):
    return {"cells": [md("# One\n> a page"), md(f"The introduction. {BADGE}"), *cells]}


GOOD = book(
    code('#| hide\nimport sys\nif "google.colab" in sys.modules:\n    !pip install -q verdiff'),
    code("#| default_exp x"),
    md("## A [section](#a-section)\n\nAs in [@ddpm], `@torch.no_grad()`, somebody@example.org."),
    code("#| exports\ndef double(x):\n    return 2 * x"),
    code(ALT + "plot()", PICTURE),
    md("## Long\n\nRecorded run: one H100 GPU, 2026-11-27, commit `4030a8b`."),
    code("#| cuda\ntrain()", printed("Dice 0.85")),
    code("double(4)", result("8")),
)
LONG = md("## Long\n\nRecorded run: one H100 GPU, 2026-11-27, commit `4030a8b`.")
BAD = {
    "introduction": [
        {"cells": [md("# One\n> a page\n\nThe introduction."), md("More.")]},
        {"cells": [md("# One\n\nno line"), md("More.")]},
        {"cells": [md("# One\n> a page"), code("1")]},
        {"cells": [code("1")]},
    ],
    "badge": [
        {"cells": [md("# One\n> a page"), md("No badge."), code("1")]},
        {"cells": [md("# One\n> a page"), md("Here.\n\n" + BADGE[BADGE.index("[!"):BADGE.index(" runs")]), code("1")]},
        {"cells": [md("# One\n> a page"), md(BADGE.replace("01_x", "02_y")), code("1")]},
    ],
    "installs": [
        book(code("#| hide\n#| eval: false\n!pip install -q verdiff")),
        book(code('import sys\nif "google.colab" in sys.modules:\n    %pip install -q verdiff')),
    ],
    "source_shown": [book(code("#| export\ndef double(x):\n    return 2 * x"))],
    "alt_text": [
        book(code("plot()", PICTURE)),
        book(code('#| fig-alt: "spine"\nplot()', PICTURE)),
        book(code(ALT + "plot()", PICTURE, PICTURE)),
        book(code("#| fig-alt: spine: a radiograph beside its mask\nplot()", PICTURE)),
        book(md("![](spine.png)")),
    ],
    "bare_outputs": [
        book(code("1", result(words))) for words in (
            "[Text(0.5, 0, 'x')]", "Text(0.5, 1.0, 'x')", "interactive(children=(IntSlider(value=0)))", "<Figure size 1x1>",
            "<matplotlib.legend.Legend at 0x7f>", "array([[<Axes: >]], dtype=object)", "(<Figure size 1x1>, <Axes: >)",
            "[<matplotlib.lines.Line2D at 0x7f>]", "[[<matplotlib.axis.XTick at 0x7f>]]", "<function f at 0x7f>", "<verdiff.data.Packed object at 0x7fae>",
            "Parameter containing:\ntensor([[0.1]])")
    ] + [book(code("print(x)", printed("made <verdiff.data.Packed object at 0x7fae>")))],
    "said_to_be_recorded": [
        book(md("## Long"), code("#| cuda\ntrain()", printed("Dice 0.85"))),
        book(md("## Long"), code("#| slow\ntrain()")),
        book(md("## Long\n\nNot run yet."), code("#| cuda\ntrain()", printed("Dice 0.85"))),
        book(md("## Long\n\nRecorded run, commit `4030a8b`."), code("#| cuda\ntrain()", printed("Dice 0.85"))),
        book(LONG, md("## Another"), code("#| cuda\ntrain()", printed("Dice 0.85"))),
    ],
    "line_width": [book(code("x = 1  # " + "y" * 80))],
    "clean_outputs": [
        book(code("1", {"output_type": "error", "ename": "E", "evalue": "", "traceback": []})),
        book(code("1", printed("/home/somebody/runs/x"))),
        book(code("1", result("__main__.Spine(3)"))),
    ],
    "directives": [
        book(code("#| code-fold: true\n#| code-fold: show\n1")),
        book(code('#| fig-alt: "a spine\n1')),
        book(md("::: {.callout-note}\nnever closed")),
        book(md("<details><summary>Answer</summary> never closed")),
    ],
    "citations": [book(md("As in @nobody-2020.")), book(md("As the decorator @torch.no_grad() says."))],
}
CASES = [(rule, i) for rule, books in BAD.items() for i in range(len(books))]


@pytest.mark.parametrize("rule", [rule.__name__ for rule in pages.WRITTEN])
def test_a_good_page_passes_and_each_rule_has_a_bad_one(rule):
    assert getattr(pages, rule)(GOOD, "01_x") == []
    assert BAD[rule]


@pytest.mark.parametrize("rule, i", CASES)
def test_a_bad_page_does_not(rule, i):
    assert len(getattr(pages, rule)(BAD[rule][i], "01_x")) >= 1


def test_library_pages_may_be_wider_and_need_not_show_their_source():
    nb = book(code("#| export\nx = 1  # " + "y" * 80))
    assert pages.line_width(nb, "library/x") == pages.source_shown(nb, "library/x") == []
    assert pages.line_width(book(code("x = 1  # " + "y" * 100)), "library/x")


def test_one_line_covers_the_recorded_cells_of_its_section():
    cells = [LONG, code("#| slow\ndef f():\n    pass"), md("and"), code("#| slow\nf()", printed("0.8"))]
    assert pages.said_to_be_recorded(book(*cells), "01_x") == []
    after = [md("## Long"), code("#| slow\nf()", printed("0.8")), md("Recorded run: 2 CPU cores, 2026-11-27, commit `4030a8b`.")]
    assert pages.said_to_be_recorded(book(*after), "01_x") == []


SITE = {"01_x": {"double", "a-section"}, "index": {"top"}, "library/images": {"load"}}


@pytest.mark.parametrize("name, target", [
    ("01_x", "#a-section"), ("01_x", "library/images.ipynb#load"), ("library/images", "../01_x.ipynb#double"),
    ("library/images", "../x.html#double"), ("01_x", "https://example.org/x"), ("01_x", "https://github.com/a/b/blob/main/LICENSE"),
])
def test_links_that_lead_somewhere(name, target):
    nb = {"cells": [md("# t"), md(f"[x]({target})")]}
    assert pages.links(nb, name, SITE, "https://github.com/a/b", {"LICENSE"}.__contains__) == []


@pytest.mark.parametrize("name, target", [
    ("01_x", "#no-section"), ("01_x", "02_y.ipynb"), ("01_x", "images.ipynb"), ("library/images", "01_x.ipynb"),
    ("library/images", "../01_x.ipynb#tripled"), ("01_x", "x.html#_fetch"), ("01_x", "spine.png"),
    ("01_x", "https://github.com/a/b/blob/main/nbs/gone.ipynb"),
])
def test_links_that_lead_nowhere(name, target):
    nb = {"cells": [md("# t"), md(f"[x]({target})")]}
    assert len(pages.links(nb, name, SITE, "https://github.com/a/b", {"LICENSE"}.__contains__)) == 1


def test_links_in_code_are_no_links():
    nb = {"cells": [md("# t"), md("`[x](gone.ipynb)`\n\n```\n[x](gone.ipynb)\n```")]}
    assert pages.links(nb, "01_x", SITE) == []


@pytest.mark.parametrize("heading, anchor", [
    ("1 · How a page works", "how-a-page-works"), ("The `Eq. (3)` of *Zhang*", "the-eq.-3-of-zhang"), ("3 steps", "steps"),
    ("With [a link](x.ipynb)", "with-a-link"), ("$x_t$ and T", "x_t-and-t"), ("123", "section"),
])
def test_anchors_are_pandocs(heading, anchor):
    assert pages.slug(heading) == anchor


def test_anchors_of_a_page():
    nb = book(md("## Twice"), md("## Twice"), md("## Own {#mine}"), code("#| exports\nclass Big:\n    pass\ndef _small(): pass"))
    assert {"twice", "twice-1", "mine", "big"} <= pages.anchors(nb) and "_small" not in pages.anchors(nb)


def test_a_paragraph_and_a_line_that_the_processing_lost():
    nb = book(md("Kept."), md("Lost words."), code("#| exports\ndef double(x):\n    return 2 * x"))
    page = {"cells": [nb["cells"][1], md("Kept."), code("def double(x):")]}
    assert len(pages.survives(nb, "01_x", page)) == 1 == len(pages.subject_on_page(nb, "01_x", page))
    assert pages.survives(nb, "01_x", nb) == pages.subject_on_page(nb, "01_x", nb) == []
    badge_lost = {"cells": [md("The introduction."), *nb["cells"][2:]]}
    assert any("badge" in said for said in pages.survives(nb, "01_x", badge_lost))


def test_signatures_that_python_made_up():
    shown = result("", **{"text/markdown": "### f\n\n```python\ndef f(\n    x:__main__.Spine\n):\n```"})
    assert pages.no_main({}, "01_x", {"cells": [code("show_doc(f)", shown)]})
    assert not pages.no_main({}, "01_x", {"cells": [code("show_doc(f)", result("", **{"text/markdown": "### f"}))]})


# ---------------------------------------------------------------- what nbdev's pages become (.ci/docproc.py)

SOURCE = '''\
@register
class Spine(Base):
    "Vertebrae in a row."
    count: int  # how many
    name: str = "L"

    def __init__(self, count):  # above zero
        "Not shown."
        self.count = count

    @property
    def length(self) -> float:
        "In millimetres."
        return 30.0 * self.count

    def _secret(self):
        pass

def longest(
    *spines: Spine,  # at least one
) -> Spine:  # the first of them where several are
    "The longest."
    return max(spines)

def one(x): return x
'''


def test_signatures_are_the_ones_that_were_written():
    spine, longest, one = docproc.definitions(SOURCE)
    said = docproc.signature(SOURCE, spine)
    for line in ("@register", "class Spine(Base):", "    count: int  # how many", "    @property", '        "In millimetres."'):
        assert line in said.splitlines()
    assert "_secret" not in said and "30.0" not in said
    assert docproc.signature(SOURCE, longest) == "\n".join(SOURCE.splitlines()[18:21])
    assert docproc.signature(SOURCE, one) == "def one(x):"


def test_links_become_relative_and_none_is_dead():
    known = {"library/images.html#load", "unet.html#unet"}
    text = "[`load`](https://a.org/b/library/images.html#load) [`UNet.forward`](https://a.org/b/unet.html#unet.forward) [`_f`](https://a.org/b/unet.html#_f)"
    assert docproc.relative_links(text, "x.html", "https://a.org/b", known) == (
        "[`load`](library/images.html#load) [`UNet.forward`](unet.html#unet) `_f`")
    assert docproc.relative_links(text, "library/images.html", "https://a.org/b", known) == (
        "[`load`](#load) [`UNet.forward`](../unet.html#unet) `_f`")
    assert docproc.relative_links("[[`load`](https://a.org/b/library/images.html#load)](images.ipynb), a", "x.html", "https://a.org/b", known) == (
        "[`load`](images.ipynb), a")


@pytest.mark.parametrize("said, table", [
    ("row     Dice    IoU\nprior   0.84    0.74\nours    0.85    0.75", True),
    ("3 images, all\nprior   0.84    0.74\nours    0.85    0.75\nother   0.80    0.70", True),
    ("one sentence.\nanother one.\nand a third.", False),
    ("seed 0: Dice 0.84  0.74\nseed 1: Dice 0.85  0.75\nseed 2: Dice 0.86  0.76", False), ("", False),
])
def test_which_outputs_are_printed_tables(said, table):
    assert docproc.printed_table(said) is table


def test_what_nbdev_and_the_processor_make_of_a_page(monkeypatch):
    from fastcore.nbio import dict2nb
    from nbdev.processors import FilterDefaults

    monkeypatch.setenv("IN_TEST", "1")
    monkeypatch.chdir(CI.parent)
    monkeypatch.syspath_prepend(str(CI))
    lines = [md("# Two\n> a page"), md("The introduction."), code("#| export\nfrom typing import NamedTuple"),
             code("#| export\nclass Pair(NamedTuple):\n    one: int  # the first"),
             code("#| exports\ndef join(pair: Pair) -> str:\n    \"Both.\"\n    return f'{pair}'\n\ndef _part(): pass"),
             code("#| export\ndef make() -> Pair:  # a pair\n    \"Two.\"\n    return Pair(1)"),
             code("import math\nfrom pathlib import Path"), code("#| echo: false\nimport json"),
             code("#| fig-alt: \"nothing\"\n#| slow\njoin(make())", result("Pair(one=1)")), code("tell()", printed("a   1   2\nb   3   4\nc   5   6")),
             code("say()", printed("a   1   2\nb   3   4\n" + "c   5   6" * 20))]
    cells = [c | {"id": f"c{i}", "metadata": {}} | ({"execution_count": None} if c["cell_type"] == "code" else {}) for i, c in enumerate(lines)]
    nb = dict2nb(dict(cells=cells, metadata=dict(kernelspec=dict(name="python3", language="python", display_name="python3")),
                      nbformat=4, nbformat_minor=5))
    nb.path_ = CI.parent / "nbs" / "90_two.ipynb"
    FilterDefaults()(nb)
    shown = [(c["cell_type"], c["source"], pages.shown_text(c)) for c in nb["cells"]]
    whole = "\n".join(" ".join(parts) for parts in shown)
    assert "output-file: two.html" in whole and "The introduction." in whole and "widgets" not in nb["metadata"]
    assert "__main__" not in whole and "*args" not in whole
    assert "### Pair {#pair .api}" in whole and "    one: int  # the first" in whole and "### make {#make .api}" in whole
    assert "def make() -> Pair:  # a pair" in whole and "return Pair(1)" not in whole  # the library: its signature
    head = next(i for i, (_, source, _) in enumerate(shown) if "### join {#join .api}" in source)
    assert shown[head][0] == "markdown" and shown[head + 1][1].startswith("def join(pair: Pair)")  # the course: its source
    assert "exports" not in shown[head + 1][1] and '#| fig-alt: "nothing"' in whole and "slow" not in whole
    assert any(source == '#| code-fold: true\n#| code-summary: "Imports"\nimport math\nfrom pathlib import Path' for _, source, _ in shown)
    assert any(source == "#| classes: printed-table\ntell()" for _, source, _ in shown) and whole.count("printed-table") == 2
    assert any(source == "#| classes: printed-table printed-wide\nsay()" for _, source, _ in shown)
    assert whole.count("code-fold") == 1  # what says `echo: false` has no need of it


@pytest.mark.parametrize("source, folded", [
    ("import a\nfrom b import c", True), ("import a\nset_matplotlib_formats('jpeg', pil_kwargs={})\ntorch.set_num_threads(1)", True),
    ("import a\nx = 1", False), ("plot()", False), ("", False), ("!pip install x", False),
])
def test_what_is_folded_as_setup(source, folded):
    assert docproc.only_setup(source) is folded
