"Images that are refused in a sentence."
import io

import numpy as np
import pytest
from PIL import Image

from verdiff.files import DataError
from verdiff.io.images import read_image, read_smaller


def test_a_png_of_16_bits_a_colour_is_refused(tmp_path):
    import struct
    import zlib
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    rows = b"".join(b"\0" + np.full((5, 3), 4000, ">u2").tobytes() for _ in range(6))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 6, 16, 2, 0, 0, 0))
                                     + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    with pytest.raises(DataError, match="a.png: a PNG with 16 bits a colour"):
        read_image(tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "bmp"])
def test_an_image_with_wrong_bytes_is_read_or_refused(kind):
    rng, memory = np.random.default_rng(0), io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (30, 20), dtype=np.uint8)).save(memory, kind)
    good = memory.getvalue()
    for _ in range(150):
        data = bytearray(good[:rng.integers(1, len(good) + 1)] if rng.random() < 0.3 else good)
        for at in rng.integers(0, min(len(data), 200), 3):
            data[at] = rng.integers(256)
        try:
            image, size = read_smaller(bytes(data), None, "film")
            assert image.mode == "L" and len(size) == 2
        except DataError as error:
            assert str(error).startswith("film: ")
