"""Draw nbs/social-card.png, the picture that a link to the site shows: a mask dissolves into noise around a first guess."""
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

OUT = Path(__file__).resolve().parent.parent / "nbs" / "social-card.png"
INK, PAPER, TEAL, AMBER = "#12242e", "#eef4f5", "#74cbdb", "#eab464"


def spine(shift=0.0, wide=1.0, missing=()):
    """A drawn mask in [-1, 1], (180, 70): vertebrae along a curve."""
    y, x = np.mgrid[0:180, 0:70]
    mask = np.zeros((180, 70), bool)
    for k in range(9):
        if k not in missing:
            cy, cx = 16 + 18.5 * k, 35 + 8 * np.sin(k / 2.4) + shift
            mask |= (abs(y - cy) < 6.2 * wide) & (abs(x - cx - 0.25 * (y - cy)) < (9 + 0.7 * k) * wide)
    return 2.0 * mask - 1


def main():
    rng, x_0, guess = np.random.default_rng(0), spine(), spine(1.5, 1.15, missing=(3,))
    figure = plt.figure(figsize=(12, 6.3), dpi=100, facecolor=INK)
    figure.text(0.055, 0.80, "verdiff", color=PAPER, fontsize=58, family="serif", weight="bold")
    figure.text(0.057, 0.725, "vertebrae by diffusion: a course that is a package", color=TEAL, fontsize=21)
    noise = rng.normal(size=x_0.shape)
    for i, kept in enumerate([1.0, 0.9, 0.6, 0.25, 0.0, 0.25, 0.6, 0.9, 1.0]):
        x_t = np.sqrt(kept) * x_0 + np.sqrt(1 - kept) * (guess + noise)
        axis = figure.add_axes([0.055 + i * 0.1, 0.14, 0.09, 0.5])
        axis.imshow(np.round(x_t * 6) / 6, cmap="bone", vmin=-2.6, vmax=2.2, interpolation="nearest", aspect="auto")
        axis.set_axis_off()
    figure.text(0.057, 0.065, "mask", color=AMBER, fontsize=17)
    figure.text(0.5, 0.065, "noise around a first guess", color=AMBER, fontsize=17, ha="center")
    figure.text(0.945, 0.065, "mask", color=AMBER, fontsize=17, ha="right")
    figure.savefig(OUT, facecolor=INK, pil_kwargs={"optimize": True})
    from PIL import Image

    Image.open(OUT).convert("RGB").quantize(32).save(OUT, optimize=True)
    print(OUT.name, OUT.stat().st_size, "bytes")
    return 0 if OUT.stat().st_size < 100_000 else 1


if __name__ == "__main__":
    sys.exit(main())
