"settings.ini: every profile loads; every wrong word is refused by name; files are whole or not there."
import os

import pytest

from verdiff.files import VerdiffError, atomic_write
from verdiff.settings import Settings, load_settings, profiles, settings_path


@pytest.mark.parametrize("name", profiles())
def test_every_profile_loads_and_survives_a_round_trip(name):
    s = load_settings(name)
    assert s.profile == name and Settings.from_dict(s.to_dict()) == s
    assert s.size == (s.height, s.width) and s.batch_size > 0


def test_overrides_win_and_are_typed():
    s = load_settings("laptop", ["channels=8,24", "shift=false", "learning_rate=1e-5"])
    assert s.channels == (8, 24) and s.shift is False and s.learning_rate == 1e-5


@pytest.mark.parametrize("override, word", [
    ("chanels=8", "channels"), ("max_steps", "max_steps"), ("norm=layer", "group"),
    ("beta_end=2", "beta_end"), ("beta_end=1e-6", "beta_start"), ("shift=perhaps", "shift"),
    ("channels=8;16", "channels"), ("seed=x", "seed"), ("learning_rate=nan", "learning_rate")])
def test_wrong_words_are_refused_in_one_sentence(override, word):
    with pytest.raises(VerdiffError, match=word) as error:
        load_settings("smoke", [override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("override", ["max_steps=-1", "seed=-1", "learning_rate=nan", "fit=crop",
                                      "channels=1", "channels=8,99999999", "timesteps=999999999"])
def test_a_wrong_value_is_blamed_on_the_set_that_gave_it(override):
    with pytest.raises(VerdiffError, match=f"^--set {override}: "):
        load_settings("smoke", [override])


def test_limits_are_printed_as_they_are():
    with pytest.raises(VerdiffError, match="beta_end = 1.0 must lie between 1e-09 and 0.999999999$"):
        load_settings("smoke", ["beta_end=1"])
    with pytest.raises(VerdiffError, match="between 0 and 2147483647$"):
        load_settings("smoke", ["seed=-1"])


@pytest.mark.parametrize("channels", [5, None, "8,16", [], ["8"]])
def test_channels_that_are_none(channels):
    with pytest.raises(VerdiffError, match="channels = .* must be whole numbers"):
        Settings.from_dict(load_settings("smoke").to_dict() | {"channels": channels})


def test_the_package_has_its_own_copy():
    assert settings_path().name == "settings.ini" and settings_path().exists()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(KeyError), atomic_write(path) as temporary:
        temporary.write_text("new")
        raise KeyError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x"]


def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VerdiffError, match="No space left"), atomic_write(tmp_path / "x") as temporary:
        temporary.write_text("new")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("words", ["basic_ios::clear: iostream error", "unexpected pos 9 vs 8",
                                   "I/O error: No space left on device (os error 28)"])
def test_what_torch_and_safetensors_say_of_a_full_disk(tmp_path, words):
    path = tmp_path / "a.pt"
    path.write_text("old")
    with pytest.raises(VerdiffError, match="could not save .*a.pt.*disk is full.*unchanged"):
        with atomic_write(path) as temporary:
            temporary.write_text("ne")
            raise RuntimeError(words)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.pt"]
