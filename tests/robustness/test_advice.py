"What messages and help texts tell people to type is there: commands, options, settings, extras."
import ast
import contextlib
import io
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from formats import phantom
from PIL import Image
from robustness.inputs import TINY

import verdiff
from verdiff import cli
from verdiff.cli import COMMANDS, main, make_parser
from verdiff.networks.model import VerdiffNet
from verdiff.settings import Settings, profiles
from verdiff.training import loss

ROOT = Path(verdiff.__file__).parent
PARSERS = next(a for a in make_parser()._actions if a.choices).choices
OPTIONS = {name: {o for a in parser._actions for o in a.option_strings} for name, parser in PARSERS.items()}
OTHERS = {"-m", "-v", "--force-reinstall"}  # of python, of a test's own command and of pip
NO_COMMAND = {"wrote", "and", "knows", "reads", "needs"}  # "verdiff knows"


def texts():
    "(where, text) of each string of the package; in place of what is filled in stands {}."
    for path in sorted(ROOT.rglob("*.py")):
        if path.name != "_modidx.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            parts = {id(p) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for p in ast.walk(n) if p is not n}
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    text = "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
                    text = node.value
                else:
                    continue
                yield f"{path.relative_to(ROOT)}:{node.lineno}", text


def found(pattern):
    return [(where, *(m if isinstance(m, tuple) else (m,))) for where, text in texts() for m in re.findall(pattern, text)]


def test_commands_exist():
    named = found(r"\bverdiff ([a-z]\w*)")
    assert {word for _, word in named} >= set(PARSERS) and len(named) > 30
    assert [n for n in named if n[1] not in PARSERS and n[1] not in NO_COMMAND] == []


def test_options_exist():
    named = found(r"(?<![\w/-])(--?[a-z][a-z-]*)")
    assert len({option for _, option in named}) > 30
    assert [n for n in named if n[1] not in OTHERS | {"--version"} | set().union(*OPTIONS.values())] == []


@pytest.mark.parametrize("folder, commands", [
    ("segmentation", ["segment", "evaluate", "calibrate"]), ("training", ["train"]), ("lab", ["demo", "ablate", "compare"])])
def test_options_belong_to_a_command_that_says_so(folder, commands):
    known = OTHERS.union(*(OPTIONS[c] for c in commands))
    named = [n for n in found(r"(?<![\w/-])(--[a-z][a-z-]*)") if n[0].startswith(folder)]
    assert named and [n for n in named if n[1] not in known] == []


@pytest.mark.parametrize("command", PARSERS)
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA error: unspecified launch failure")])
def test_what_a_fault_proposes_is_an_option_of_the_command(command, error, monkeypatch, capsys):
    def fail(args):
        raise error
    monkeypatch.setattr(cli, "COMMANDS", [c._replace(run=fail) for c in COMMANDS if c.name == command])
    words = {"segment": ["x", "-o", "y"], "data": ["phantom"], "calibrate": ["--data", "x"]}
    assert main([command, *words.get(command, ["--data", "x"] if "--data" in OPTIONS[command] else [])]) == 2
    said = capsys.readouterr().err
    assert said.startswith("verdiff: error: ") and said.count("\n") == 1
    assert set(re.findall(r"--[a-z-]+", said)) <= OPTIONS[command], said


WORDS = r"(?:[^`;,(\n]|,(?=\S))*"  # to the end of the line or of a part of the sentence
LINES = found(rf"\bverdiff ((?:{'|'.join(PARSERS)}) {WORDS}(?<![\w-])--?[a-z]{WORDS})")


def test_lines_were_found():
    assert len(LINES) >= 10


@pytest.mark.parametrize("where, line", LINES)
def test_a_whole_line_can_be_typed(where, line):
    words = shlex.split(re.sub(r"(?<=\S)\{\}", "", line).replace("{}", "x").replace("IMAGE", "x").replace("DIR", "x"))
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            make_parser().parse_args(words)
        except SystemExit as error:
            assert error.code == 0, (line, said.getvalue())


def test_examples_are_among_them():
    assert {c.example.removeprefix("verdiff ") for c in COMMANDS if "--" in c.example} <= {line for _, line in LINES}


def test_settings_exist():
    known = {f.name for f in fields(Settings)}
    named = found(r"--set (\w+)=") + [(w, key) for w, text in texts() for key in re.findall(r"(?<![\w.])(\w+)=\S+ --set ", text)]
    assert len(named) >= 4 and [n for n in named if n[1] not in known] == []
    chosen = found(r"--profile ([a-z]\w*)")
    assert chosen and [n for n in chosen if n[1] not in profiles()] == []


def test_extras_exist():
    tomllib, project = pytest.importorskip("tomllib"), ROOT.parent / "pyproject.toml"
    if not project.exists():
        pytest.skip("not in a clone")
    known = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = found(r"verdiff\[(\w+)\]")
    filled = [m for path in ROOT.rglob("*.py") for m in re.findall(r'extra(?:: str )?\s?=\s?"(\w+)"', path.read_text(encoding="utf-8"))]
    assert named and len(filled) >= 3 and [n for n in [*named, *((None, e) for e in filled)] if n[1] not in known] == []


@pytest.fixture
def own(tmp_path):
    "So many pairs of one's own, and the words that train on them."
    def make(count):
        for i in range(count):
            for kind, pixels in zip(("images", "masks"), phantom(i), strict=True):
                path = tmp_path / "own pairs" / kind / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels * (255 if kind == "masks" else 1)).save(path)
        more = [w for t in (*TINY, "val_fraction=0.25") for w in ("--set", t)]
        return ["train", "--data", str(tmp_path / "own pairs"), "--profile", "smoke", *more, "--out", str(tmp_path / "a run")]
    return make


def proposed(said):
    "Lines that a command prints to be typed next."
    return [re.sub(r"\(.*\)", "", line).strip() for line in said.splitlines() if line.startswith("  verdiff ")]


@pytest.mark.parametrize("count, commands", [(3, ["segment", "calibrate"]), (6, ["segment", "calibrate"]), (48, ["evaluate", "segment", "calibrate"])])
def test_what_train_proposes_next_works(own, tmp_path, capsys, count, commands):
    assert main(own(count)) == 0
    lines = proposed(capsys.readouterr().out)
    assert [line.split()[1] for line in lines] == commands and ("--data" in lines[-1]) == (count == 48)
    net = VerdiffNet.from_pretrained(tmp_path / "a run/model")
    torch.nn.init.normal_(net.diffusion.out[-1].weight, std=0.3)  # one that finds something
    net.save_pretrained(tmp_path / "a run/model")
    for line in lines:
        words = [{"IMAGE": str(tmp_path / "own pairs/images/0.png"), "DIR": str(tmp_path / "out")}.get(w, w) for w in shlex.split(line)[1:]]
        if "--images" in words:  # of which there must be eight
            words[words.index("--images") + 1] = str(own(9)[2])
        assert main(words) == 0, capsys.readouterr().err


def test_more_steps_than_a_finished_run_has(own, capsys, tmp_path):
    words = own(4)
    assert main(words) == 0
    assert main([*words, "--set", "max_steps=2"]) == 2
    advice = re.search(r"add (--start-from '.*') and another --out", capsys.readouterr().err)
    assert main([*words[:-1], str(tmp_path / "longer"), "--set", "max_steps=2", *shlex.split(advice[1])]) == 0
    assert main([*words, "--set", "seed=9", "--set", "max_steps=2"]) == 2  # another run, not a longer one
    assert "--start-from" not in capsys.readouterr().err


def test_the_smaller_batch_that_is_proposed_is_another_run_and_works(own, capsys, monkeypatch):
    words, real = own(4), loss.training_loss

    def greedy(net, image, *args, **how):
        if len(image) > 1:
            raise MemoryError
        return real(net, image, *args, **how)
    monkeypatch.setattr(loss, "training_loss", greedy)
    assert main(words) == 2
    advice = re.search(r"start over with (.*)", capsys.readouterr().err)[1]
    assert main([*words, *shlex.split(advice)]) == 0
