"Folders of own images and masks, for the tests that need some."
import numpy as np
import tifffile
from PIL import Image

FILM = np.random.default_rng(0).integers(0, 250, (40, 20)).astype(np.uint8)
BONE = np.pad(np.ones((20, 10), np.uint8), ((15, 5), (2, 8)))


def pairs(root, image, mask, save_image=None, save_mask=None, suffix=".png", count=3):
    "A folder of own pairs, all alike."
    for part, pixels, save in (("images", image, save_image), ("masks", mask, save_mask)):
        (root / part).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            end = suffix if part == "images" else ".png"
            (save or (lambda p, x: Image.fromarray(x).save(p)))(root / part / f"{i}{end}", pixels)
    return root


def tiff(**how):
    return lambda path, pixels: tifffile.imwrite(path, how["change"](pixels), **how.get("tags", {}))


def turned(orientation, turn):
    def save(path, pixels):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(turn(pixels).copy()).save(path, exif=exif)
    return save
