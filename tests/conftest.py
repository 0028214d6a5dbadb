"What several tests need."
import importlib
import sys
from pathlib import Path

import pytest

from verdiff.cli import main
from verdiff.data.phantom_set import write_phantoms


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    "Six phantoms to train on and three to test on, in the published layout; not to be changed."
    return write_phantoms(tmp_path_factory.mktemp("data") / "phantoms", 6, 3, 0, (192, 64))


@pytest.fixture(scope="module")
def script():
    "Import a script of bench/ by its name."
    bench = Path(__file__).resolve().parent.parent / "bench"

    def load(name):
        if not bench.exists():
            pytest.skip("not in a clone")
        sys.path.insert(0, str(bench))
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(str(bench))
    return load


@pytest.fixture
def fails(capsys):
    "Run the command; it must end with 2 and one sentence that holds the given words."
    def check(*argv, words=()):
        capsys.readouterr()
        assert main([str(a) for a in argv]) == 2
        err = capsys.readouterr().err
        lines = [line for line in err.splitlines() if line.startswith("verdiff: error: ")]
        assert len(lines) == 1 and "Traceback" not in err, err
        for word in words:
            assert str(word) in lines[0], (word, lines[0])
        return lines[0]
    return check
