"`bench/frontier.py`: each budget goes on from the one before, what is done is not repeated."
import json
import sys

import numpy as np
import pytest


@pytest.fixture
def frontier(script):
    return script("frontier")


def run(frontier, monkeypatch, tmp_path, minutes, names="small,pair"):
    words = ["--data", "phantom", "--minutes", minutes, "--names", names, "--set", "eval_height=96",
             "--set", "eval_width=32", "--runs", str(tmp_path / "runs"), "--json", str(tmp_path / "f.json")]
    monkeypatch.setattr(sys, "argv", ["frontier.py", *words])
    frontier.main()
    return json.loads((tmp_path / "f.json").read_text())["candidates"]


def test_budgets_go_on_and_are_kept(frontier, monkeypatch, tmp_path, capsys):
    shape = "height=96 width=32 channels=8,16"
    monkeypatch.setattr(frontier, "CANDIDATES", {"small": ("prior", "a prior", shape),
                                                 "pair": ("verdiff", "both", shape)})
    first = run(frontier, monkeypatch, tmp_path, "0.01")
    both = run(frontier, monkeypatch, tmp_path, "0.01,0.02")
    assert len(capsys.readouterr().out.splitlines()) == 4  # the first two were not repeated
    for name in ("small", "pair"):
        start, more = both[name]["points"]
        assert start == first[name]["points"][0] and more["steps"] > start["steps"]
        assert more["cpu_minutes"] >= 0.02 and 0 <= np.mean(more["dice"]) <= 1
        assert both[name]["gflop"] > 0 and both[name]["seconds_per_film"] > 0
    assert both["pair"]["parameters"] > both["small"]["parameters"]
    assert len(both["pair"]["points"][0]["prior_dice"]) == len(both["pair"]["points"][0]["dice"])


def test_test_films_stay_closed(frontier, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(frontier, "CANDIDATES", {"small": ("prior", "a prior", "height=96 width=32 channels=8,16")})
    monkeypatch.setattr("verdiff.data.datasets.open_dataset",
                        lambda *a, _open=sys.modules["verdiff.data.datasets"].open_dataset, **k:
                        asked.append(a[1]) or _open(*a, **k))
    run(frontier, monkeypatch, tmp_path, "0.005", "small")
    assert set(asked) == {"training"}
