"Whatever a folder holds, opened or refused."
import zipfile

import pytest

from verdiff.data.datasets import open_dataset
from verdiff.files import DataError


def test_a_folder_or_file_that_is_something_else(tmp_path, fails):
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"x")
    (tmp_path / "text.zip").write_text("no zip")
    (tmp_path / "only" / "images").mkdir(parents=True)
    (tmp_path / "none" / "images").mkdir(parents=True)
    (tmp_path / "none" / "masks").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("holiday.jpg", "")
    for name, word in (("empty", "empty"), ("photos", "images/ and masks/"), ("text.zip", "not a complete zip"),
                       ("only", "images/ and masks/"), ("none", "no image here"), ("other.zip", "published layout"),
                       ("nowhere", "verdiff data xray")):
        fails("train", "--data", tmp_path / name, "--profile", "smoke", "--out", tmp_path / "run", words=[name, word])


def test_all_does_not_join_what_is_kept_apart(tmp_path):
    for half in ("training", "test"):
        for part in ("images", "masks"):
            (tmp_path / half / part).mkdir(parents=True)
    with pytest.raises(DataError, match="kept apart"):
        open_dataset(tmp_path, "all")
