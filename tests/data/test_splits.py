"Studies, twins and splits."
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from verdiff.data.splits import (
    CROSS_SPLIT_DUPLICATES,
    MORE_CROSS_SPLIT_DUPLICATES,
    drawn_split,
    grouped_split,
    study,
)


@given(st.lists(st.tuples(st.integers(1, 30), st.sampled_from("ABCD")), min_size=2, max_size=80, unique=True),
       st.floats(0.05, 0.5), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_no_study_on_both_sides(films, fraction, seed):
    names = [f"x-1th-10-Jan-2017-{n} {letter} AP.jpg" for n, letter in films]
    train, val = grouped_split(names, fraction, seed)
    assert sorted(train + val) == list(range(len(names))) and train
    assert not {study(names[i]) for i in train} & {study(names[i]) for i in val}


def test_known_twins():
    test = {b for _, b in CROSS_SPLIT_DUPLICATES}
    more = {b for _, b in MORE_CROSS_SPLIT_DUPLICATES}
    assert len(CROSS_SPLIT_DUPLICATES) == 12 and len(test) == len(more) == 8 and not test & more
    assert study("sunhl-1th-10-Jan-2017-239 A AP.jpg") == study("sunhl-1th-10-Jan-2017-238 A AP.jpg")


def test_the_split_does_not_depend_on_how_a_system_writes_umlauts():
    for i in range(50):
        a, b = (unicodedata.normalize(form, f"Rücken {i}") for form in ("NFC", "NFD"))
        assert a != b and drawn_split(a) == drawn_split(b)


def test_nothing_to_validate_on():
    for names, fraction in ((["x-5 A AP.jpg", "x-5 B AP.jpg"], 0.5), (["a.png", "b.png"], 0), ([], 0.5)):
        assert grouped_split(names, fraction) == (list(range(len(names))), [])


def test_the_split_of_a_name_is_for_ever():
    "A name that changes sides between versions would leak what was trained on into the test."
    assert [i for i in range(20) if drawn_split(f"spine{i}") == "test"] == [11, 16]
    assert drawn_split("r\udcf6ntgen") in ("training", "test")
