"""Verdiff-Net: a conditional diffusion model that segments vertebrae, as a course and a library.

The few names that people type stand here and are imported when they are used, so that
`import verdiff` and `verdiff --help` stay fast.
"""
from importlib import import_module

__version__ = "0.1.0"

_PLACES = {
    "Segmenter": "segmentation.segmenter",
    "VerdiffNet": "networks.model",
    "draw_phantom": "data.phantoms",
    "load_settings": "settings",
    "sample": "diffusion.sampling",
    "train": "training.run",
}
__all__ = [*_PLACES, "__version__"]


def __getattr__(name):
    if name not in _PLACES:
        raise AttributeError(f"module 'verdiff' has no attribute {name!r}")
    return getattr(import_module(f"verdiff.{_PLACES[name]}"), name)


def __dir__():
    return sorted({*globals(), *_PLACES})
