"What the site, the release and the addresses must have, as far as one can see it without building anything."
import importlib.util
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import verdiff

ROOT = Path(__file__).resolve().parent.parent
yaml = pytest.importorskip("yaml")
if not (ROOT / "_quarto.yml").exists():
    pytest.skip("not in a clone", allow_module_level=True)
spec = importlib.util.spec_from_file_location("verdiff_ci_repo", ROOT / ".ci" / "repo.py")
repo = sys.modules["verdiff_ci_repo"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(repo)


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def luminance(colour):
    "Relative luminance of `#rrggbb` (WCAG 2)."
    parts = [int(colour[i: i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_every_colour_can_be_read(mode):
    colours = dict(re.findall(r"^\$vd-([\w-]+): (#\w{6});", read(f"nbs/styles-{mode}.scss"), re.M))
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert len(colours) > 15 and contrast(colours["bar-ink"], colours["bar"]) >= 4.5
    words = colours.keys() - {"ground", "panel", "line", "bar", "bar-ink", "picture"}
    assert {w: contrast(colours[w], colours[g]) for w in words for g in ("ground", "panel") if contrast(colours[w], colours[g]) < 4.5} == {}


def test_both_modes_name_the_same_colours_and_the_rules_use_no_other():
    light, dark = ({m for m in re.findall(r"^\$(vd-[\w-]+):", read(f"nbs/styles-{mode}.scss"), re.M)} for mode in ("light", "dark"))
    assert light == dark == light | set(re.findall(r"\$(vd-[\w-]+)", read("nbs/styles.scss")))


def test_the_version_is_the_same_everywhere():
    assert f"verdiff {verdiff.__version__} " in yaml.safe_load(read("_quarto.yml"))["website"]["page-footer"]["left"]
    assert yaml.safe_load(read("CITATION.cff"))["version"] == verdiff.__version__
    assert f"{verdiff.__version__}" in re.search(r"^## (.+)$", read("CHANGELOG.md"), re.M)[1]


def test_what_quarto_needs_to_build_the_site():
    assert read("nbs/_quarto.yml") == read("_quarto.yml")  # a link: nbdev and Quarto read the one in nbs/
    site = yaml.safe_load(read("_quarto.yml"))
    assert site["format"]["html"]["keep-md"] is True
    steps = yaml.safe_load(read(".github/workflows/docs.yml"))["jobs"]["build"]["steps"]
    assert any(re.fullmatch(r"\d+\.\d+\.\d+", str(s.get("with", {}).get("version"))) for s in steps if "quarto" in s.get("uses", ""))
    for name in (site["bibliography"], site["website"]["favicon"], site["website"]["image"], *site["project"]["resources"]):
        assert (ROOT / "nbs" / name).exists()
    for sheets in site["format"]["html"]["theme"].values():
        for name in sheets:
            assert "/*-- scss:defaults --*/" in read(f"nbs/{name}")


def test_the_pictures_of_the_site():
    ElementTree.parse(ROOT / "nbs/favicon.svg")
    card = (ROOT / "nbs/social-card.png").read_bytes()
    assert card[:4] == b"\x89PNG" and len(card) <= 100_000
    assert (int.from_bytes(card[16:20], "big"), int.from_bytes(card[20:24], "big")) == (1200, 630)


def test_the_bibliography():
    keys = re.findall(r"^@\w+\{([\w-]+),", read("nbs/references.bib"), re.M)
    assert len(keys) == len(set(keys)) and {"verdiffnet", "ddpm", "ddim", "card", "nnunet"} <= set(keys)
    assert "10.3390/bioengineering11101031" in read("nbs/references.bib") and "10.3390/bioengineering11101031" in read("CITATION.cff")


@pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda p: p.stem)
def test_workflows_pin_their_actions_and_ask_for_little(path):
    flow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert flow["permissions"] == {"contents": "read"}
    used = [step["uses"] for job in flow["jobs"].values() for step in job["steps"] if "uses" in step]
    assert used and all(re.search(r"@v\d", u) for u in used)


def test_all_addresses_are_the_ones_of_pyproject():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git clone")
    assert list(repo.strays()) == []


def test_a_new_home_is_written_everywhere():
    old, new = ("verdiff", "verdiff"), ("somebody", "spines")
    text = ("https://github.com/verdiff/verdiff/blob/main/x git+https://github.com/verdiff/verdiff\" https://verdiff.github.io/verdiff/ "
            "https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/x.ipynb from verdiff.data import x; github.com/verdiff/verdiff-extra")
    moved = repo.rewrite(text, old, new)
    assert moved == ("https://github.com/somebody/spines/blob/main/x git+https://github.com/somebody/spines\" https://somebody.github.io/spines/ "
                     "https://colab.research.google.com/github/somebody/spines/blob/main/nbs/x.ipynb from verdiff.data import x; github.com/verdiff/verdiff-extra")
    assert repo.rewrite(moved, new, old) == text


def test_the_glossary_names_what_the_code_has():
    code = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "verdiff").rglob("*.py") if p.name != "_modidx.py")
    rows = re.findall(r"^# \| .+? \| (`.+?`) \| .+ \| \[", read("nbpy/glossary.py"), re.M)
    names = {word for row in rows for cell in re.findall(r"`([^`]+)`", row) for word in re.findall(r"[A-Za-z_]\w+", cell)}
    assert len(rows) > 25 and {"betas", "x_t", "fit_image"} <= names
    assert {name for name in names if not re.search(rf"\b{name}\b", code)} == set()
