"A zip or its folder, whole or broken."
import io
import tempfile
import zipfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verdiff.data.datasets import open_dataset
from verdiff.files import DataError
from verdiff.io.archive import Store, read_bytes
from verdiff.io.download import manifest


def test_a_zip_reads_like_its_folder(root, tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as file:
        for item in sorted(root.rglob("*")):
            file.write(item, item.relative_to(root))
    a, b = (open_dataset(p, "training", (96, 32)) for p in (root, path))
    assert torch.equal(a[2].image, b[2].image) and torch.equal(a[2].mask, b[2].mask)
    assert len(open_dataset(tmp_path, "test", (96, 32))) == 3  # a folder that holds the zip
    assert len(manifest(path)) == 64


@given(st.floats(0, 1), st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_a_zip_with_a_wrong_byte_is_read_or_refused(where, change):
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("labels/test/filenames.csv", "a.jpg\n" * 20)
        file.writestr("labels/test/angles.csv", "1,2,3\n" * 20)
    data = bytearray(memory.getvalue())
    data[int(where * (len(data) - 1))] ^= change
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set.zip"
        path.write_bytes(data)
        try:
            store = Store(path)
            if store.top is not None:
                read_bytes(store, "labels/test/angles.csv")
                manifest(path)
        except DataError as error:
            assert "set.zip" in str(error)
