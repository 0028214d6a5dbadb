# %% [markdown]
# # What a DICOM screen shows
# > Tables, slopes, windows, padding and the polarity, from stored values to 256 shades

# %% [markdown]
# The header of a DICOM file says in up to five steps how its stored values become a picture: a table or a line to real units (Hounsfield, say), a table or a window to what the screen shows, and whether the result is shown inverted. `PresentationLUTShape` repeats what MONOCHROME1 and MONOCHROME2 say, so it is not obeyed a second time. The functions here take the few tags of one frame, however they were found; DICOM PS3.3 C.11 is the source.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/dicom_display.ipynb).

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks,medical] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp io.dicom_display

# %%
#| export
from typing import Any

import numpy as np

from verdiff.files import DataError
from verdiff.io.grey import to_uint8


# %% [markdown]
# ## Units
# Tables are looked up here: pydicom's function wraps round above 255 where the table has 8 bits.

# %%
#| exports
def look_up(
    values: np.ndarray,  # numbers (H, W)
    item: Any,  # of a ModalityLUTSequence or VOILUTSequence
    little: bool,  # byte order of the file
) -> np.ndarray:
    "Each value's entry in a table; those outside take its first or last."
    count, first, bits = (int(n) for n in item.LUTDescriptor)
    count = count or 65536
    table = item.LUTData
    if isinstance(table, bytes):
        wide = len(table) >= 2 * count
        table = np.frombuffer(table, f"{'<' if little else '>'}u2" if wide else "u1")
    table = np.asarray(table, np.int64)[:count]
    first = first - 65536 if first > 32767 and values.min() < 0 else first
    return table[(np.rint(values).astype(np.int64) - first).clip(0, len(table) - 1)]


# %%
#| exports
def rescaled(
    values: np.ndarray,  # stored (H, W)
    view: Any,
    little: bool,
) -> np.ndarray:
    "In the file's units: by its table, or slope and intercept."
    if view.get("ModalityLUTSequence"):
        return look_up(values, view.ModalityLUTSequence[0], little)
    slope, intercept = (
        float(view.get("RescaleSlope") or 1),
        float(view.get("RescaleIntercept") or 0),
    )
    return values if (slope, intercept) == (1, 0) else values * slope + intercept


# %% [markdown]
# ## The window

# %%
#| exports
def through_window(
    values: np.ndarray,  # in the file's units
    centre: float,
    width: float,
    function: str = "LINEAR",  # or LINEAR_EXACT, SIGMOID
) -> np.ndarray | None:  # 0 to 1; None for a width that is none
    "DICOM PS3.3 C.11.2.1.2: the part of the values that the screen shows."
    if not np.isfinite([centre, width]).all() or width < (1 if function == "LINEAR" else 1e-9):
        return None
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -60, 60)))
    if function == "LINEAR":
        centre, width = centre - 0.5, max(width - 1, 1e-9)
    return ((values - centre) / width + 0.5).clip(0, 1)


# %%
hounsfield = np.array([-1000, -160, 39.5, 239, 3000])
assert through_window(hounsfield, 40, 400).round(2).tolist() == [0, 0, 0.5, 1, 1]
assert through_window(hounsfield, 40, 0) is None


# %%
#| exports
def numbers(
    value: Any,  # of a tag: one number, several, or none
) -> list[float]:
    "What pydicom gives for DS, which holds one or many."
    if value is None or value == "":
        return []
    return [float(v) for v in ([value] if isinstance(value, (int, float, str)) else value)]


def looks(
    values: np.ndarray,  # in the file's units
    view: Any,
    little: bool,
    window: int | tuple[float, float] | None,  # which of the file's, from 0, or (centre, width)
) -> np.ndarray | None:  # 0 to 1; None where there is no window
    """The picture through its table or window: the first, or the one that is asked for.

    DataError for a window that the file does not have, or one without width.
    """
    function = str(view.get("VOILUTFunction") or "LINEAR").strip().upper()
    if isinstance(window, (tuple, list)):
        centre, width = map(float, window)
        if (shown := through_window(values, centre, width)) is None:
            raise DataError(
                f"no window has the width {width:g}; give centre and width, such as 40 400"
            )
        return shown
    tables = list(view.get("VOILUTSequence") or [])
    windows = list(
        zip(numbers(view.get("WindowCenter")), numbers(view.get("WindowWidth")), strict=False)
    )
    if window is not None and not 0 <= window < len(tables) + len(windows):
        raise DataError(f"there is no window {window}; the file has {len(tables) + len(windows)}, "
                        "counted from 0")
    if (window or 0) < len(tables):
        item = tables[window or 0]
        return (look_up(values, item, little) / (2 ** int(item.LUTDescriptor[2]) - 1)).clip(0, 1)
    if windows:
        return through_window(values, *windows[(window or 0) - len(tables)], function)
    return None


# %% [markdown]
# A window that shows next to nothing, written for other values than the file holds, is not obeyed; without one the usual percentiles serve. Padding is left out of them and becomes black.

# %%
#| exports
def padding_of(
    stored: np.ndarray,
    view: Any,
) -> np.ndarray | None:  # bool (H, W)
    "Pixels that only fill the rectangle."
    if "PixelPaddingValue" not in view:
        return None
    bits = (1 << (8 * stored.dtype.itemsize)) - 1
    ends = [view.get(k) for k in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    low, *high = [np.array(int(v) & bits).astype(f"u{stored.dtype.itemsize}").view(stored.dtype)
                  for v in ends if isinstance(v, int)] or [None]
    if low is None:
        return None
    low, high = sorted([low, high[0] if high else low])
    return (stored >= low) & (stored <= high)


def shades(
    stored: np.ndarray,  # (H, W)
    view: Any,
    little: bool,
    window: int | tuple[float, float] | None = None,
) -> tuple[np.ndarray, tuple[str, ...]]:  # uint8 (H, W), white bright; what a user should know
    "The picture that a screen would show."
    padding, notes = padding_of(stored, view), ()
    values = rescaled(stored, view, little)
    shown = looks(values, view, little, window)
    grey = None if shown is None else np.rint(255 * shown).astype(np.uint8)
    if (
        grey is not None
        and window is None
        and grey.std() < 2 < to_uint8(values, padding=padding).std()
    ):
        grey, notes = None, ("its window shows nothing of it, so percentiles of its values serve",)
    if grey is None:
        grey = to_uint8(values, padding=padding)
    if str(view.get("PhotometricInterpretation")) == "MONOCHROME1":
        grey = 255 - grey
    if padding is not None and not padding.all():
        grey = np.where(padding, np.uint8(0), grey)
    return grey, notes


# %%
hounsfield = np.add.outer(np.arange(-1000, 1000, 40), np.arange(30)).astype(np.int16)
scan = {
    "WindowCenter": [40, 500],
    "WindowWidth": [400, 2000],
    "PhotometricInterpretation": "MONOCHROME1",
    "PixelPaddingValue": -1000,
}
soft, bone = shades(hounsfield, scan, True)[0], shades(hounsfield, scan, True, window=1)[0]
assert soft[0, 0] == 0 and soft[0, 1] == 255 and soft[-1, -1] == 0  # padding; air; bone
assert np.array_equal(
    bone, shades(hounsfield, scan, True, window=(500, 2000))[0])

# %%
import matplotlib.pyplot as plt

# %%
#| fig-alt: "Grey shade against value: a straight ramp within the window, flat outside of it; and the S of a sigmoid window."
fig, axis = plt.subplots(figsize=(4, 2.2), layout="constrained")
for name in ("LINEAR", "SIGMOID"):
    axis.plot(
        np.arange(-400, 500),
        through_window(np.arange(-400, 500), 40, 400, name),
        label=name.lower(),
    )
axis.set(xlabel="value, HU", ylabel="shade", title="window 40 ± 200")
axis.legend();
