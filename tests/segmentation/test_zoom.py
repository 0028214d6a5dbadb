"The part of a radiograph that is segmented: found, cut, put back; and no change for a usual one."
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from verdiff.cli import main
from verdiff.data.canvas import fit_image, place
from verdiff.data.landmarks import landmarks_to_mask
from verdiff.data.phantoms import draw_phantom
from verdiff.networks.model import VerdiffNet
from verdiff.segmentation.segmenter import Segmenter, segment_image
from verdiff.segmentation.zoom import Box, Look, find_spine, weigh, windows

SIZE = 384, 128


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.from_pretrained(device="cpu")


def test_usual_shape_is_segmented_as_ever_bit_for_bit(segmenter):
    for seed in (3, 9):
        film = Image.fromarray(draw_phantom(seed, (768, 256)).image)
        assert find_spine(segmenter.model, film) is None
        near, as_ever = segmenter.predict(film), segment_image(segmenter.model, film, 1, 5, 0)
        for name in ("mask", "probability", "uncertainty", "prior"):
            assert getattr(near, name).tobytes() == getattr(as_ever, name).tobytes()


@pytest.mark.parametrize(("shape", "at"), [((768, 768), (0, 400)), ((768, 1024), (0, 40)), ((1536, 512), (700, 130))])
def test_padded_as_good_as_it_is(segmenter, shape, at):
    "Where the phantom lies elsewhere in a larger image, its mask is as good as alone, and far better than unzoomed."
    phantom = draw_phantom(3, (768, 256))
    truth = landmarks_to_mask(phantom.landmarks, 768, 256) > 0
    film = np.zeros(shape, np.uint8)
    part = np.s_[at[0]:at[0] + 768, at[1]:at[1] + 256]
    film[part] = phantom.image

    def dice(mask):
        return 2 * (mask & truth).sum() / (mask.sum() + truth.sum())

    alone = dice(segmenter.predict(phantom.image).mask > 0)
    near, far = (segmenter.predict(film, zoom=zoom) for zoom in (True, False))
    assert near.mask.shape == shape and far.zoomed_to is None
    assert dice(near.mask[part] > 0) > alone - 0.03
    assert dice(near.mask[part] > 0) > dice(far.mask[part] > 0) + 0.02
    outside = np.ones(shape, bool)
    top, left, height, width = near.zoomed_to
    outside[top:top + height, left:left + width] = False
    assert not near.probability[outside].any() and outside.any()


def test_blank_and_tiny_images_are_taken_whole(segmenter):
    for shape in ((1, 1), (2, 300), (300, 2)):
        film = Image.fromarray(np.full(shape, 90, np.uint8))
        assert segmenter.predict(film, 1, 1).mask.shape == shape


def test_squashing_networks_never_zoom():
    model = VerdiffNet(channels=(8,), height=48, width=16, fit="squash").eval()
    assert find_spine(model, Image.fromarray(np.full((50, 400), 99, np.uint8))) is None


@given(st.integers(1, 900), st.integers(1, 3000))
def test_windows_cover_the_width(height, width):
    boxes = windows((height, width), SIZE)
    assert len(boxes) <= 16 and all(b.top == 0 and b.height == height and b.width > 0 for b in boxes)
    assert boxes[0].left == 0 and boxes[-1].left + boxes[-1].width == width
    if len(boxes) < 16:
        assert all(b.left <= a.left + a.width for a, b in zip(boxes, boxes[1:], strict=False))


@given(st.integers(40, 2000), st.integers(40, 2000), st.data())
def test_the_part_lies_inside_and_holds_what_was_found(height, width, data):
    "However the spine lies, the next part is inside of the radiograph and as large as the zoom says."
    where = place(height, width, SIZE)
    r0 = data.draw(st.integers(where.top, where.top + where.content[0] - 1))
    c0 = data.draw(st.integers(where.left, where.left + where.content[1] - 1))
    zoom = data.draw(st.floats(0.5, 8))
    box = Look(Box(0, 0, height, width), where, (r0, r0 + 1, c0, c0 + 1), zoom).around((height, width))
    assert 0 <= box.top and box.top + box.height <= height and box.height >= 1
    assert 0 <= box.left and box.left + box.width <= width and box.width >= 1
    y, x = (r0 + 0.5 - where.top) / where.scale[0], (c0 + 0.5 - where.left) / where.scale[1]
    assert box.top - 1 <= y <= box.top + box.height + 1 and box.left - 1 <= x <= box.left + box.width + 1
    assert abs(box.height - min(height, SIZE[0] / zoom / where.scale[0])) <= 1


def test_a_spine_of_usual_size_asks_for_no_zoom_and_one_of_half_for_two():
    prior = np.full(SIZE, -1, np.float32)
    prior[36:347, 54:75] = 1  # 311 rows, 21 columns
    usual = weigh(Look(Box(0, 0, *SIZE), place(*SIZE, SIZE)), prior)
    assert usual.zoom == pytest.approx(1, abs=0.03) and usual.score == pytest.approx(1)
    half = np.full(SIZE, -1, np.float32)
    half[100:255, 54:64] = 1
    assert weigh(Look(Box(0, 0, *SIZE), place(*SIZE, SIZE)), half).zoom == pytest.approx(2, abs=0.15)
    assert weigh(Look(Box(0, 0, *SIZE), place(*SIZE, SIZE)), np.full(SIZE, -1, np.float32)).found is None


def test_cut_and_put_back_are_inverse():
    film = np.arange(60 * 40, dtype=np.float32).reshape(60, 40)
    box = Box(7, 5, 30, 20)
    part = np.asarray(box.cut(Image.fromarray(film)))
    whole = box.put_back(part, film.shape)
    assert (whole[7:37, 5:25] == film[7:37, 5:25]).all() and whole.sum() == part.sum()
    assert box.scale(SIZE) == fit_image(Image.new("L", (20, 30)), SIZE)[1].scale[0]


def test_the_command_line_zooms_says_so_and_can_be_told_not_to(tmp_path):
    square = np.zeros((768, 768), np.uint8)
    square[:, 256:512] = draw_phantom(3, (768, 256)).image
    Image.fromarray(square).save(tmp_path / "square.png")
    words = ["segment", str(tmp_path / "square.png"), "--ensemble", "1", "-q", "-o"]
    records = []
    for more in ([], ["--no-zoom"]):
        assert main([*words, str(tmp_path / "out"), *more]) == 0  # the other way is not "there already"
        records.append(json.loads((tmp_path / "out/square.json").read_text()))
    assert records[0]["zoom"] is True and records[0]["zoomed_to"]["width"] < 500
    assert records[1]["zoom"] is False and records[1]["zoomed_to"] is None
