"The ablation: rows, pairs, intervals; a sweep that survives Ctrl-C and kill -9; sentences for bad input."
import argparse
import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from verdiff.cli import ablate_options, main, run_ablate, seed_list
from verdiff.data.datasets import training_data
from verdiff.data.packed import pack
from verdiff.data.phantom_set import write_phantoms
from verdiff.data.xray import XRaySet
from verdiff.files import VerdiffError
from verdiff.lab.ablation import (
    NOT_COMPARED,
    ROWS,
    TABLE_2_ROWS,
    AblationRun,
    JoinedSet,
    choose,
    load_run,
    main_ways,
    open_sweep_data,
    parse_row,
    row_settings,
    run_key,
    sweep,
    sweep_data,
)
from verdiff.lab.tables import (
    crossed_interval,
    effects,
    forest_plot,
    format_table,
    image_interval,
    save_tables,
    scores_of,
)
from verdiff.metrics import bootstrap_interval
from verdiff.settings import LATER
from verdiff.training.loss import training_loss

matplotlib.use("Agg")
TINY = ["height=32", "width=16", "eval_height=64", "eval_width=32", "channels=4,8", "max_steps=4",
        "warmup_steps=1", "batch_size=2", "checkpoint_every=1", "sample_steps=2", "ensemble=2"]
SETS = [word for key in TINY for word in ("--set", key)]
WAYS = ["prior alone", "diffusion, 1 step, 1 sample", "diffusion, 1 step, mean of 2",
        "diffusion, 2 steps, 1 sample", "diffusion, 2 steps, mean of 2"]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "phantom"
    return write_phantoms(root, n_training=6, n_test=3, seed=0, image_size=(96, 40))


def small(phantoms, **changes):
    return dict(data=phantoms, rows=choose(["both", "neither"]), seeds=(35, 36), overrides=TINY,
                progress=False) | changes


@pytest.fixture(scope="module")
def done(phantoms, tmp_path_factory):
    "An undisturbed sweep."
    out = tmp_path_factory.mktemp("sweep") / "out"
    return out, sweep(out=out, **small(phantoms))


def words(phantoms, out, *more):
    return ["--data", str(phantoms), "--rows", "both,neither", "--seeds", "35,36", "--out", str(out),
            *SETS, *more]


def command(argv):
    parser = argparse.ArgumentParser()
    ablate_options(parser)
    return run_ablate(parser.parse_args(argv))


def made(table, seeds=(1, 2, 3), films=5):
    "Runs with given scores: row -> function of seed and film."
    names = [f"{i}.png" for i in range(films)]
    return [AblationRun(row, s, "", {}, names, {w: [f(s, i) for i in range(films)] for w in WAYS}, 10)
            for row, f in table.items() for s in seeds]


def test_only_runs_of_the_same_seeds_and_films_are_compared():
    runs = made({"both": lambda s, i: 0.5, "nsa": lambda s, i: 0.6})
    assert effects(runs, WAYS[0])[0].mean == pytest.approx(0.1)
    for odd in (runs[1:], made({"both": lambda s, i: 0.5}, (1, 2)) + made(
            {"nsa": lambda s, i: 0.6}, (2, 3))):
        with pytest.raises(VerdiffError, match="not the same seeds and images"):
            effects(odd, WAYS[0])


# ---------------------------------------------------------------- rows


def test_rows_change_what_they_say_and_nothing_else():
    base = row_settings(ROWS["both"], 35).to_dict()
    differ = {name: {k for k, v in row_settings(row, 35).to_dict().items() if v != base[k]}
              for name, row in ROWS.items()}
    assert differ == {
        "neither": {"msfm", "nsa"}, "msfm": {"nsa"}, "nsa": {"msfm"}, "both": set(),
        "no-shift": {"shift"}, "joint-prior": {"detach_prior"}, "epsilon": {"prediction_type"},
        "v-prediction": {"prediction_type"}, "squash": {"fit"}, "again": {"seed"}}
    assert set(TABLE_2_ROWS) <= set(ROWS)


def test_the_words_of_a_row_win_over_those_for_all():
    got = row_settings(ROWS["msfm"], 7, overrides=["nsa=on", "max_steps=9"])
    assert (got.nsa, got.max_steps, got.seed) == (False, 9, 7)
    assert row_settings(ROWS["again"], 7).seed == 17


@pytest.mark.parametrize("name", ["bothh", "", "shift"])
def test_an_unknown_row_is_refused_with_all_names(name):
    with pytest.raises(VerdiffError, match="no-shift"):
        choose([name])


def test_a_row_from_the_command_line():
    assert parse_row("wide : channels=4,8  nsa=off") == ("wide", ("channels=4,8", "nsa=off"))
    for bad in ("wide", "wide:", ": nsa=off", "a b: nsa=off", "../up: nsa=off", "wide: nsa"):
        with pytest.raises(VerdiffError, match="NAME"):
            parse_row(bad)


def test_seeds_are_whole_numbers_from_zero():
    assert seed_list("0,35") == [0, 35]
    for bad in ("", "a", "-1", "3,-4", "1.5"):
        with pytest.raises(argparse.ArgumentTypeError, match="is no whole number from 0 on"):
            seed_list(bad)


# ---------------------------------------------------------------- films


def test_phantoms_come_in_three_shapes():
    films = open_sweep_data("phantom", "test", (96, 32), "letterbox", 3, 4)
    shapes = [films.arrays(i)[2] for i in range(len(films))]
    assert isinstance(films, JoinedSet) and len(films) == len(set(films.names)) == 4
    assert {(p.height, p.width) for p in shapes} == {(576, 160), (576, 192), (576, 256)}
    assert all(p.content == p.size for p in map(
        lambda i: open_sweep_data("phantom", "test", (96, 32), "squash", 3, 4).arrays(i)[2], range(4)))


def test_too_few_phantoms_are_refused():
    with pytest.raises(VerdiffError, match="2 to test on: too few"):
        open_sweep_data("phantom", "test", (96, 32), "letterbox", 9, 2)


def test_films_with_a_twin_in_training_are_left_out(phantoms, tmp_path, monkeypatch):
    twin = XRaySet(phantoms, "test", (64, 32)).names[1]
    monkeypatch.setattr("verdiff.data.splits.CROSS_SPLIT_DUPLICATES", (("somewhere.jpg", twin),))
    known, unseen = sweep_data(row_settings((), 35, overrides=TINY), phantoms, tmp_path)
    assert len(known) == 6 and len(unseen) == 2 and twin not in unseen.names
    assert known.images.shape[-2:] == (32, 16) and unseen.images.shape[-2:] == (64, 32)


def test_choosing_leaves_the_test_split_alone(phantoms, tmp_path, monkeypatch):
    opened, original = [], open_sweep_data

    def noted(data, split, *rest):
        opened.append(split)
        return original(data, split, *rest)

    monkeypatch.setattr("verdiff.lab.ablation.open_sweep_data", noted)
    parts = [sweep_data(row_settings((), seed, overrides=TINY), phantoms, tmp_path, on="validation")
             for seed in (35, 36)]
    assert set(opened) == {"training"}
    (known, held), (again, same) = parts
    assert held.names == same.names and known.names == again.names  # whatever the seed of the run
    assert len(known) + len(held) == 6 and len(held) and not set(known.names) & set(held.names)
    assert known.images.shape[-2:] == (32, 16) and held.images.shape[-2:] == (64, 32)


def test_the_validation_films_are_those_of_training(phantoms, tmp_path):
    s = row_settings((), 35, overrides=TINY)
    known, held = sweep_data(s, phantoms, tmp_path, on="validation")
    theirs = training_data(phantoms, s)
    assert [part.names for part in theirs] == [known.names, held.names]


def test_nothing_to_choose_by_is_said(phantoms, tmp_path):
    s = row_settings((), 35, overrides=[*TINY, "val_fraction=0"])
    with pytest.raises(VerdiffError, match="nothing to validate on"):
        sweep_data(s, phantoms, tmp_path, on="validation")


def test_a_sweep_on_validation_films(phantoms, tmp_path):
    one = small(phantoms, rows=choose(["both"]), seeds=(35,))
    run, = sweep(out=tmp_path, **one, on="validation")
    assert run.names and not set(run.names) & set(XRaySet(phantoms, "test", (64, 32)).names)
    with pytest.raises(VerdiffError, match="other images"):
        sweep(out=tmp_path, **one)


def test_a_part_more_is_another_fingerprint(phantoms):
    a, b = (XRaySet(phantoms, part, (64, 32)) for part in ("training", "test"))
    assert JoinedSet({"a": a}).fingerprint() != JoinedSet({"a": a, "b": b}).fingerprint()
    both = pack(JoinedSet({"a": a, "b": b}), progress=False)
    assert len(both) == 9 and (both.images[6:] == pack(b, progress=False).images).all()


# ---------------------------------------------------------------- intervals


def test_without_films_to_differ_the_interval_is_student_t():
    means = np.array([0.01, 0.03, -0.01, 0.02])
    want = ttest_1samp(means, 0).confidence_interval(0.95)
    np.testing.assert_allclose(crossed_interval(np.tile(means[:, None], (1, 30))), want, rtol=1e-9)
    np.testing.assert_allclose(crossed_interval(np.tile(means, (30, 1))), want, rtol=1e-9)


@given(st.integers(2, 5), st.integers(2, 12), st.floats(-1, 1), st.floats(0.1, 5),
       st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_intervals_move_and_stretch_with_the_scores(s, n, shift, factor, seed):
    d = np.random.default_rng(seed).normal(0, 1, (s, n))
    low, high = crossed_interval(d)
    assert low < d.mean() < high
    np.testing.assert_allclose(crossed_interval(factor * d + shift),
                               (factor * low + shift, factor * high + shift), atol=1e-9)
    np.testing.assert_allclose(crossed_interval(d[::-1, ::-1]), (low, high), atol=1e-12)
    wide = crossed_interval(d, level=0.99)
    assert wide[0] < low and high < wide[1]


def test_one_seed_says_nothing_and_no_spread_says_all():
    assert crossed_interval(np.ones((1, 9))) == (-np.inf, np.inf)
    assert crossed_interval(np.full((3, 4), 0.25)) == (0.25, 0.25)


def test_the_interval_keeps_its_promise_where_the_usual_one_does_not():
    rng, hits = np.random.default_rng(1), []
    for _ in range(400):
        d = rng.normal(0, 0.01, (3, 1)) + rng.normal(0, 0.02, 24) + rng.normal(0, 0.02, (3, 24))
        pairs = crossed_interval(d), bootstrap_interval(d[0], n=400)
        hits.append([low <= 0 <= high for low, high in pairs])
    honest, usual = np.mean(hits, 0)
    assert honest > 0.93 and usual < 0.75


def test_the_image_interval_is_the_bootstrap_of_the_mean_over_seeds():
    d = np.random.default_rng(0).normal(0, 1, (3, 20))
    assert image_interval(d) == bootstrap_interval(d.mean(0))


# ---------------------------------------------------------------- differences


def test_differences_are_paired_by_seed_and_film():
    hard = {1: 0.3, 2: 0.1, 3: 0.2}
    runs = made({"both": lambda s, i: 0.5 + hard[s] + 0.02 * i,
                 "nsa": lambda s, i: 0.5 + hard[s] + 0.02 * i - 0.01})
    effect, = effects(runs[::-1], WAYS[0])  # in any order
    np.testing.assert_allclose([effect.mean, *effect.both, *effect.images], -0.01, atol=1e-12)
    np.testing.assert_allclose(effect.by_seed, -0.01, atol=1e-12)
    assert effect.row == "nsa" and effect.verdict == "worse" and effect.n == 5
    back, = effects(runs, WAYS[0], reference="nsa")
    assert back.verdict == "better" and np.isclose(back.mean, 0.01)
    assert [e.row for e in effects(runs, WAYS[0], reference=None)] == ["both", "nsa"]


def test_seeds_that_contradict_each_other_leave_it_open():
    runs = made({"both": lambda s, i: 0.5, "nsa": lambda s, i: 0.5 + 0.1 * (s - 1.8)})
    effect, = effects(runs, WAYS[0])
    assert effect.verdict == "open" and effect.mean > 0 < effect.images[0]  # films alone would say better


def test_an_unknown_reference_is_refused():
    with pytest.raises(VerdiffError, match="no row 'nsa'"):
        effects(made({"both": lambda s, i: 0.5}), WAYS[0], reference="nsa")


def test_one_seed_becomes_empty_in_the_files_and_no_row_is_missing(tmp_path):
    runs = made({row: lambda s, i: 0.1 * i for row in ROWS}, seeds=(4,))
    paths = save_tables(runs, tmp_path)
    content = json.loads(paths[1].read_text(), parse_constant=pytest.fail)  # no Infinity, no NaN
    assert {r["row"] for r in content["table"]} == set(ROWS) and content["table"][0]["low"] is None
    assert all(f"\n{row} " in format_table(runs) for row in ROWS)
    with open(paths[2], newline="") as file:
        assert len(list(csv.DictReader(file))) == len(ROWS) * len(WAYS) * 5


def test_the_forest_shows_every_row_and_an_arrow_beyond_the_limit():
    runs = made({"both": lambda s, i: 0.9, "nsa": lambda s, i: 0.2 + 0.01 * s, "msfm": lambda s, i: 0.88 + 0.001 * s * i})
    figure = forest_plot(runs, limit=0.1, published={"nsa": -0.03})
    figure.canvas.draw()
    first = figure.axes[0]
    assert len(figure.axes) == len(main_ways(runs[0])) == 3
    assert [t.get_text() for t in first.get_yticklabels()] == ["nsa", "msfm"]
    assert [t.get_text() for t in first.texts] == ["-0.68"] and first.get_xlim() == (-0.1, 0.1)


# ---------------------------------------------------------------- the sweep


def test_a_sweep_leaves_one_result_a_run_and_reads_it_again(done, phantoms, monkeypatch, capsys):
    out, runs = done
    assert sorted(p.parent.name for p in out.glob("*/result.json")) == [
        "both-35", "both-36", "neither-35", "neither-36"]
    assert list(runs[0].dice) == WAYS and len(runs[0].dice[WAYS[0]]) == 3
    assert scores_of(runs, "both", WAYS[0]).shape == (2, 3)
    monkeypatch.setattr("verdiff.training.loss.training_loss", lambda *a, **k: pytest.fail("trained again"))
    assert [r.dice for r in sweep(out=out, **small(phantoms))] == [r.dice for r in runs]
    assert capsys.readouterr().out.count("(was there)") == 4


def test_interrupted_in_the_third_run_and_resumed(done, phantoms, tmp_path, monkeypatch):
    loss, calls = training_loss, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 11:
            raise KeyboardInterrupt
        return loss(*args, **kwargs)

    monkeypatch.setattr("verdiff.training.loss.training_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(out=tmp_path, **small(phantoms))
    assert len(list(tmp_path.glob("*/result.json"))) == 2
    again = sweep(out=tmp_path, **small(phantoms))
    assert [r.dice for r in again] == [r.dice for r in done[1]]
    assert len(calls) in (17, 18)  # 16 steps in all, and the one or two that the interruption cost


def test_killed_and_resumed(done, phantoms, tmp_path):
    code = "import sys; from verdiff.cli import main; main(['ablate', *sys.argv[1:]])"
    process = subprocess.Popen([sys.executable, "-c", code, *words(phantoms, tmp_path)],
                               cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})
    until = time.monotonic() + 120
    while not list(tmp_path.glob("*/result.json")) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    for path in tmp_path.glob("*/result.json"):
        load_run(path)  # whole
    assert command(words(phantoms, tmp_path)) == 0
    with open(tmp_path / "ablation.csv", newline="") as file:
        table = list(csv.DictReader(file))
    want = [e for way in WAYS for e in effects(done[1], way)]
    got = [float(r["mean"]) for r in table if r["against"] == "both"]
    np.testing.assert_allclose(got, [e.mean for e in want], atol=1e-12)


def test_a_setting_that_came_later_does_not_change_the_key(done, phantoms, tmp_path):
    s = row_settings(ROWS["both"], 35, overrides=TINY)
    data = sweep_data(s, phantoms, tmp_path)
    assert run_key(s, *data) == done[1][0].key
    with_later = replace(s, stem=2)
    assert run_key(with_later, *data) != run_key(s, *data)
    facts = {k: v for k, v in s.to_dict().items() if k not in NOT_COMPARED and k not in LATER}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for pixels in (x for part in data for x in (part.images, part.masks)):
        digest.update(pixels.numpy().tobytes())
    assert digest.hexdigest() == run_key(s, *data)  # as before those settings


def test_fresh_starts_over(done, phantoms, tmp_path):
    one = small(phantoms, rows=choose(["both"]), seeds=(35,))
    first, = sweep(out=tmp_path, **one)
    path = tmp_path / "both-35" / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dice": {w: [0, 0, 0] for w in WAYS}}))
    assert sweep(out=tmp_path, **one)[0].dice != first.dice
    assert sweep(out=tmp_path, **one, fresh=True)[0].dice == first.dice == done[1][0].dice


# ---------------------------------------------------------------- what is refused


def files(folder):
    return {p: p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


@pytest.mark.parametrize("more, sentence", [
    (["--rows", "both,neihter"], "did you mean 'neither'"),
    (["--add", "wide"], "NAME: key=value"),
    (["--add", "wide: chanels=4"], "channels"),
    (["--reference", "nsa"], "no row 'nsa'"),
    (["--profile", "nowhere"], "there is no profile"),
    (["--data", "nowhere.zip"], "nowhere.zip"),
    (["--set", "max_steps=5"], "max_steps \\(there 4, here 5\\)"),
])
def test_bad_words_get_a_sentence_and_change_nothing(done, phantoms, more, sentence):
    before = files(done[0])
    with pytest.raises(VerdiffError, match=sentence) as error:
        command(words(phantoms, done[0], *more))
    assert "\n" not in str(error.value) and files(done[0]) == before


def test_rows_that_share_no_column_are_refused(phantoms, tmp_path):
    with pytest.raises(VerdiffError, match="rows differ in sample_steps or ensemble"):
        sweep(phantoms, {"a": (), "b": ("sample_steps=1",)}, (35,), tmp_path / "out", "smoke", progress=False)
    assert not (tmp_path / "out").exists()
    with pytest.raises(VerdiffError, match="channels"):
        row_settings(("channels={a}",), 35, "smoke", ())


def test_data_that_do_not_exist_leave_no_folder(tmp_path):
    with pytest.raises(VerdiffError, match="nowhere"):
        sweep("nowhere.zip", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"row": "both"}', '{"settings": 3}'])
def test_a_damaged_result_is_named(text, tmp_path):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(VerdiffError, match="result.json: damaged; remove it"):
        load_run(path)


def test_results_of_other_films_are_refused(done, tmp_path):
    other = write_phantoms(tmp_path / "other", 6, 3, seed=5, image_size=(96, 40))
    with pytest.raises(VerdiffError, match="other images"):
        sweep(out=done[0], **small(other))


def test_the_command_is_one_of_verdiff(done, phantoms, capsys):
    assert main(["ablate", *words(phantoms, done[0])]) == 0
    out = capsys.readouterr().out
    assert "difference to 'both'" in out and str(done[0] / "ablation.csv") in out
    assert main(["ablate", *words(phantoms, done[0], "--reference", "nsa")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("verdiff: error: there is no row 'nsa'") and err.count("\n") == 1


@pytest.mark.parametrize("more, said", [
    (["--add", "soft: nsa_choic=soft"], "--add soft: nsa_choic=soft: unknown key"),
    (["--add", "deep: blocks=0"], "--add deep: blocks=0: blocks = 0 must lie"),
    (["--add", "deep: blocks=2", "--set", "block=2"], "--set block=2: unknown key"),
    (["--out", __file__], "test_ablation.py is a file; name a folder"),
])
def test_bad_words_are_one_sentence(phantoms, tmp_path, capsys, more, said):
    assert main(["ablate", *words(phantoms, tmp_path / "out", *more)]) == 2
    err = capsys.readouterr().err
    assert f"verdiff: error: {said}" in err.replace(str(Path(__file__).parent) + "/", "")
    assert err.count("\n") == 1 and not (tmp_path / "out").exists()
