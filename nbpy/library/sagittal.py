# %% [markdown]
# # Sagittal slices of a volume
# > Which slices, on which pixels, in which grey values

# %% [markdown]
# The paper trains on sagittal slices: pictures that divide left from right, on which the bodies of the vertebrae stand one above the other. To get one from a volume, three questions must be answered. *Which slices?* Those around the middle of the labelled vertebrae, found from the area that the labels cover in each plane; how many and how far apart is a setting. *On which pixels?* Voxels are seldom square (0.7 mm by 2.5 mm is common), so a slice is sampled again on square pixels, from its affine, sheared gantries included. *In which grey values?* CT counts in Hounsfield units, and a bone window means the same in every hospital; MR has no unit, so each volume is divided by its own slow change of brightness (the coil's) and stretched between its own percentiles. All of it runs over the stream of voxels, some planes at a time: what is held are the chosen slices, and a coarse copy of 64 voxels a side to measure the grey values on.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/sagittal.ipynb).

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks,medical] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp data.sagittal

# %%
#| export
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from verdiff.data.volume_labels import VERSE, Part, Scheme, find_scheme, named_part, whole
from verdiff.data.volume_layouts import Case, stem
from verdiff.files import DataError
from verdiff.io.dicom_series import open_series
from verdiff.io.grids import VolumeFile, check_same_grid
from verdiff.io.volume_files import open_volume


# %%
#| exports
@dataclass(frozen=True)
class SliceOptions:
    "How slices are taken from volumes."

    slices: int = 5  # how many a volume; 0: every slice with enough vertebra
    step: float = 4.0  # mm between them
    share: float = 0.3  # of the largest area of vertebra in a slice: less is left out
    spacing: float = 0.0  # mm a pixel; 0: the finest of the volume in that plane
    window: tuple[float, float] = (-500.0, 1300.0)  # CT: Hounsfield units of black and white
    bias: float = 30.0  # MR: width in mm of the brightness that is divided out; 0: leave it
    trim: float = -1.0  # mm kept above and below the labelled vertebrae; negative: keep all
    coarsest: float = 6.0  # mm between voxels in the slice; more is no picture
    modality: str = "auto"  # "ct", "mr"; auto: the layout's, else by the values
    labels: str = "auto"  # see `label_numbers`; auto: the layout's scheme, else by the values


DEFAULT = SliceOptions()


# %% [markdown]
# ## Labels, as a stream
# One map, or one file a class put together under VerSe's numbers.

# %%
#| export
@dataclass(frozen=True)
class Labels:
    "The labels of a volume."

    file: VolumeFile
    blocks: Callable[[], Iterator[np.ndarray]]  # int16 (nx, ny, n)
    classes: Scheme | None = None  # of one file a class


def open_image(path: Path) -> VolumeFile:
    "A file, or a folder of DICOM slices."
    return open_series(path) if path.is_dir() else open_volume(path)


def open_labels(case: Case) -> Labels:
    "The masks of a case as one stream; DataError where classes lie on different grids."
    files = [open_image(p) for p in case.masks]
    first = files[0]
    if case.labels != "classes":
        return Labels(first, lambda: (whole(b, first.path) for b in first.blocks()))
    number = {part.name: value for value, part in VERSE.parts.items()} | {"S1": 26}
    extra = {"intervertebral_discs": 200, "spinal_cord": 100, "spinal_canal": 100, "vertebrae": 1}
    parts = [named_part(stem(f.path)) for f in files]
    values = [number.get(p.name, extra.get(p.name)) for p in parts]
    for file in files[1:]:
        check_same_grid(first, file)
        if file.order != first.order:
            raise DataError(
                f"{file.path}: stores its axes in another order than {first.path.name}; "
                "write the classes alike"
            )

    def blocks() -> Iterator[np.ndarray]:
        for some in zip(*(f.blocks() for f in files), strict=True):
            out = np.zeros(some[0].shape, np.int16)
            for block, value, file in zip(some, values, files, strict=True):
                out[whole(block, file.path) > 0] = value
            yield out

    known = dict(zip(values, parts, strict=True)) | VERSE.parts | {
        100: Part("canal", "canal"), 200: Part("disc", "discs")}
    return Labels(first, blocks, Scheme("classes", known))


# %% [markdown]
# ## Which slices?
# For each label, how many voxels it has in each sagittal plane:

# %%
#| exports
def profiles(
    labels: Labels,
) -> dict[int, np.ndarray]:  # label -> voxels in each plane from left to right, (R,)
    "One pass over the stream."
    axis, planes = labels.file.order[0][0], labels.file.ras_shape[0]
    total, k = np.zeros(0, np.int64), 0
    for block in labels.blocks():
        where = np.nonzero(block)
        plane = where[axis] + (k if axis == 2 else 0)
        count = np.bincount(block[where].astype(np.int64) * planes + plane)
        total = np.pad(total, (0, max(0, len(count) - len(total))))
        total[:len(count)] += count
        k += block.shape[2]
    total = np.pad(total, (0, -len(total) % planes)).reshape(-1, planes)
    back = labels.file.order[1][0]
    return {int(v): total[v][::-1] if back else total[v] for v in np.flatnonzero(total.any(1))}


# %% [markdown]
# The middle is where half of the vertebrae's voxels lie to the left. It is steadier than the plane with the largest area, which may run through the joints at one side.

# %%
#| exports
def choose(
    area: np.ndarray,  # (R,) of vertebra in each plane, any unit
    apart: float,  # mm between planes
    options: SliceOptions,
) -> list[int]:  # planes, from left to right
    "The planes to take; none where there is no vertebra."
    if not area.any():
        return []
    enough = np.flatnonzero(area >= options.share * area.max())
    if not options.slices:
        return enough.tolist()
    share = (np.cumsum(area) - area / 2) / area.sum()
    middle = np.interp(0.5, share, np.arange(len(area)))
    offset = np.arange(options.slices) - (options.slices - 1) / 2
    planes = np.rint(middle + offset * max(round(options.step / apart), 1)).astype(int)
    return sorted(set(planes.tolist()) & set(enough.tolist()))


# %%
body = np.r_[np.zeros(20), np.ones(30), np.zeros(30)]
assert choose(body, 1.0, SliceOptions(slices=3, step=5)) in (
    [29, 34, 39],
    [30, 34, 40],
    [30, 35, 40],
)
assert (
    len(choose(body, 1.0, SliceOptions(slices=0))) == 30
    and choose(0 * body, 1, SliceOptions()) == []
)
assert (
    len(choose(body[18:52:8], 8.0, SliceOptions(slices=3, step=2))) == 3
)  # thick slices: no two alike


# %% [markdown]
# Then the chosen planes are picked out of the stream, turned so that their first axis runs to the front and their second upwards, and the coarse copy is made on the way.

# %%
#| exports
def gather(
    file: VolumeFile,
    blocks: Iterator[np.ndarray],  # of the image or of the labels
    planes: Sequence[int],  # from left to right
    dtype: type,
    coarse: list[np.ndarray] | None = None,  # filled with every n-th voxel, in the file's axes
) -> np.ndarray:  # (planes, anterior, superior)
    "Sagittal planes out of a stream."
    (r, a, s), back = file.order
    native = [file.shape[r] - 1 - i if back[0] else i for i in planes]
    out = np.zeros((len(planes), file.shape[a], file.shape[s]), dtype)
    stride, k = strides(file.shape), 0
    for block in blocks:
        n = block.shape[2]
        if coarse is not None:
            first = -k % stride[2]
            coarse.append(block[::stride[0], ::stride[1], first::stride[2]].astype(np.float32))
        if r == 2:
            for j, i in enumerate(native):
                if k <= i < k + n:
                    out[j] = block[:, :, i - k].T if a == 1 else block[:, :, i - k]
        else:
            part = np.moveaxis(block.take(native, axis=r), r, 0)  # plane, the other axis, axis 2
            if a == 2:
                out[:, k:k + n] = part.swapaxes(1, 2)
            else:
                out[:, :, k:k + n] = part
        k += n
    return np.flip(out, [axis for axis in (1, 2) if back[axis]])


def strides(shape: Sequence[int]) -> list[int]:
    "Every how many voxels the coarse copy takes one, along each axis: 64 or fewer in all."
    return [max(1, -(-n // 64)) for n in shape]


# %% [markdown]
# ## On which pixels?
# In the plane, a picture's rows run downwards along the body axis of the volume and its columns to the back, so that the patient looks to the left. `voxels_of_pixels` gives for each pixel the place in the slice that it shows. Where the two axes are not at right angles (a tilted gantry), the picture becomes a parallelogram with empty corners, and the vertebrae keep their angles.

# %%
#| exports
def voxels_of_pixels(
    affine: np.ndarray,  # (4, 4), axes R, A, S
    shape: tuple[int, int],  # (A, S) of the slice
    spacing: float,  # mm a pixel
) -> np.ndarray:  # (2, H, W): where along A and along S each pixel lies, in voxels
    "The isotropic picture of a slice."
    front, up = affine[:3, 1], affine[:3, 2]
    height = np.linalg.norm(up)
    lean = front @ up / height  # mm that one voxel to the front also goes up
    depth = np.sqrt(front @ front - lean**2)  # mm that it goes to the front
    rise = abs(lean) * (shape[0] - 1)
    size = (
        max(1, round((height * shape[1] + rise) / spacing)),
        max(1, round(depth * shape[0] / spacing)),
    )
    top = height * (shape[1] - 0.5) + max(lean, 0) * (shape[0] - 1)
    y = top - (np.arange(size[0])[:, None] + 0.5) * (height * shape[1] + rise) / size[0]
    x = depth * (shape[0] - 0.5) - (np.arange(size[1])[None] + 0.5) * depth * shape[0] / size[1]
    along = np.broadcast_to(x / depth, size)
    return np.stack([along, (y - lean * along) / height])


# %%
#| exports
def resample(
    plane: np.ndarray,  # (A, S)
    places: np.ndarray,  # (2, H, W) by `voxels_of_pixels`
    nearest: bool = False,  # labels
    empty: float = 0.0,  # value outside the slice
) -> np.ndarray:  # (H, W)
    "The picture; linear between voxels, smoothed first where pixels are larger than voxels."
    ends = np.array(plane.shape).reshape(2, 1, 1) - 1
    inside = ((places > -0.51) & (places < ends + 0.51)).all(0)
    places = np.clip(places, 0, ends)
    if nearest:
        near = np.rint(places).astype(int)
        return np.where(inside, plane[near[0], near[1]], plane.dtype.type(empty))
    step = [np.abs(np.diff(places[k], axis=1 - k)).max(initial=0) for k in (0, 1)]
    blur = [0.5 * np.sqrt(max(s * s - 1, 0)) for s in step]
    plane = gaussian_filter(plane, blur) if max(blur) > 0.1 else plane
    return np.where(inside, map_coordinates(plane, places, order=1), np.float32(empty))


# %%
square = np.diag([1.0, 1, 1, 1])
plane = np.arange(12.0, dtype=np.float32).reshape(3, 4)
assert np.array_equal(resample(plane, voxels_of_pixels(square, (3, 4), 1)), plane.T[::-1, ::-1])
assert resample(plane, voxels_of_pixels(np.diag([1, 0.5, 2, 1]), (3, 4), 0.5)).shape == (16, 3)
sheared = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0.5, 1, 0], [0, 0, 0, 1.0]])
assert voxels_of_pixels(sheared, (9, 20), 1).shape == (2, 24, 9)


# %% [markdown]
# ## In which grey values?
# The coil's brightness is what is left of the logarithm after a wide blur that skips the dark (air and cortical bone have no signal to measure). This is homomorphic filtering; N4 is finer and takes a hundred times as long.

# %%
#| exports
def slow_brightness(
    coarse: np.ndarray,  # (i, j, k) positive grey values
    spacing: Sequence[float],  # mm between them
    width: float,  # mm, sigma of the blur
) -> np.ndarray:  # the same shape, around 1
    "The slow change of brightness across a volume; what is tissue is judged anew each round."
    sigma, field = width / np.asarray(spacing), np.ones(coarse.shape, np.float32)
    for share in (0.03, 0.05, 0.1):
        even = coarse / field
        tissue = even > share * np.percentile(even, 99)
        if not tissue.any():
            return np.ones_like(field)
        log = np.where(tissue, np.log(np.where(tissue, coarse, 1)), 0).astype(np.float32)
        weight, mean = (gaussian_filter(x, sigma, mode="constant")
                        for x in (tissue.astype(np.float32), log))
        blurred = np.where(weight > 1e-3, mean / np.maximum(weight, 1e-3), log[tissue].mean())
        field = np.exp(blurred - blurred[tissue].mean()).astype(np.float32)
    return field


# %%
#| exports
@dataclass(frozen=True)
class Tone:
    "How a volume's values become grey."

    modality: str  # "ct" or "mr"
    low: float  # black
    high: float  # white
    field: np.ndarray | None = None  # coarse, in the file's axes: divide by it first

    def __call__(self, plane: np.ndarray, file: VolumeFile, index: int) -> np.ndarray:
        "Values (A, S) of a plane, to 0 (black) to 1 (white), not clipped."
        if self.field is not None:
            plane = plane / field_in_plane(self.field, file, index)
        return (plane - self.low) / (self.high - self.low)


def field_in_plane(field: np.ndarray, file: VolumeFile, index: int) -> np.ndarray:
    "The coarse field at the voxels of a sagittal plane, (A, S)."
    order, back = file.order
    ras = np.meshgrid([index], *(np.arange(n) for n in file.ras_shape[1:]), indexing="ij")
    places = [np.zeros(0)] * 3
    for k, (axis, flip) in enumerate(zip(order, back, strict=True)):
        native = file.shape[axis] - 1 - ras[k] if flip else ras[k]
        places[axis] = native / strides(file.shape)[axis]
    return map_coordinates(field, places, order=1, mode="nearest")[0]


def measure_tone(
    coarse: np.ndarray,  # (i, j, k) in the file's axes
    file: VolumeFile,
    options: SliceOptions,
) -> Tone:
    """CT: the window. MR: percentiles of what is left after the slow brightness is divided out.

    DataError for a volume of one grey value, or a CT that is not in Hounsfield units.
    """
    modality = options.modality
    if modality not in ("ct", "mr"):
        modality = "ct" if coarse.min() < -400 else "mr"
    if modality == "ct":
        if coarse.min() >= 0 and options.window[0] < 0:
            raise DataError(
                f"{file.path}: holds no value below 0, so these are no Hounsfield units; "
                "set the window in its own units, or modality='mr' to stretch it"
            )
        return Tone("ct", *options.window)
    coarse = np.maximum(coarse, 0)
    field = None
    if options.bias > 0:
        apart = np.linalg.norm(file.affine[:3, :3], axis=0) * strides(file.shape)
        field = slow_brightness(coarse, apart, options.bias)
        coarse = coarse / field
    low, high = np.percentile(coarse, (0.5, 99.5))
    if high <= low:
        raise DataError(
            f"{file.path}: has one grey value almost everywhere; nothing can be seen in it"
        )
    return Tone("mr", float(low), float(high), field)


# %% [markdown]
# ## All together

# %%
#| exports
@dataclass(frozen=True)
class Slice:
    "One sagittal picture."

    image: np.ndarray  # uint8 (H, W): head up, the patient looks to the left
    labels: np.ndarray  # int16 (H, W)
    plane: int  # index from left to right in the volume
    spacing: float  # mm a pixel


# %%
#| export
def check_visible(
    file: VolumeFile,
    options: SliceOptions,
) -> None:
    "DataError where a sagittal slice would be no picture."
    for axis, name in ((2, "along the body"), (1, "from front to back")):
        if file.ras_shape[axis] < 2:
            raise DataError(
                f"{file.path}: has one slice only {name}; a sagittal picture needs many"
            )
        if file.spacing[axis] > options.coarsest:
            raise DataError(
                f"{file.path}: its slices are {file.spacing[axis]:.3g} mm apart {name}, too "
                f"far for a sagittal picture (coarsest={options.coarsest:g})"
            )


def check_bone(
    count: dict[int, int],  # voxels of each vertebra
    file: VolumeFile,
) -> None:
    "DataError where the labels are points."
    voxel = abs(np.linalg.det(file.affine[:3, :3]))  # mm^3
    if count and max(count.values()) * voxel < 100:
        raise DataError(
            f"{file.path}: its labels mark points (of {max(count.values())} voxels at most); "
            "expected whole vertebrae"
        )


def trimmed(image: np.ndarray, labels: np.ndarray, vertebrae: Sequence[int],
            margin: float) -> tuple[np.ndarray, np.ndarray]:
    "Only the rows of the labelled vertebrae, and a margin of so many pixels."
    rows = np.flatnonzero(np.isin(labels, vertebrae).any(1))
    if not len(rows):
        return image, labels
    keep = slice(max(rows[0] - round(margin), 0), rows[-1] + 1 + round(margin))
    return image[keep], labels[keep]


# %%
#| exports
def sagittal_slices(
    case: Case,
    options: SliceOptions = DEFAULT,
) -> tuple[list[Slice], Scheme, str]:  # slices from left to right, what labels mean, "ct" or "mr"
    "Read a volume and its mask, cut the slices (none of an empty mask); DataError says why not."
    file, labels = open_image(case.image), open_labels(case)
    check_same_grid(file, labels.file)
    check_visible(file, options)
    count = profiles(labels)
    if labels.classes and options.labels != "auto":
        raise DataError(f"{case.image}: its mask is one file a class, so there are no labels to "
                        "choose; leave --labels out")
    wanted = case.labels if options.labels == "auto" else options.labels
    scheme = labels.classes or find_scheme(count, labels.file.path, wanted, labels.file.names)
    vertebrae = scheme.values()
    bones = {v: int(n.sum()) for v, n in count.items() if v in vertebrae}
    check_bone(bones, labels.file)
    area = sum((count[v] for v in bones), np.zeros(file.ras_shape[0]))
    planes = choose(area, file.spacing[0], options)
    coarse: list[np.ndarray] = []
    pixels = gather(file, file.blocks(), planes, np.float32, coarse)
    pixels = np.nan_to_num(pixels, nan=np.nanmin(coarse[0]) if coarse else 0)
    known = case.modality if options.modality == "auto" else options.modality
    tone = measure_tone(
        np.nan_to_num(np.concatenate(coarse, 2)), file, replace(options, modality=known)
    )
    masks = gather(labels.file, labels.blocks(), planes, np.int16) if planes else []
    spacing = options.spacing or float(file.spacing[1:].min())
    places = voxels_of_pixels(file.ras_affine, file.ras_shape[1:], spacing)
    out = []
    for index, plane, mask in zip(planes, pixels, masks, strict=True):
        grey = np.clip(resample(tone(plane, file, index), places), 0, 1)
        picture = np.rint(255 * grey).astype(np.uint8), resample(mask, places, nearest=True)
        if options.trim >= 0:
            picture = trimmed(*picture, vertebrae, options.trim / spacing)
        out.append(Slice(*picture, index, spacing))
    return out, scheme, tone.modality


# %% [markdown]
# ## Tried
# A phantom CT, stored back to front and tilted, with slices of 3 mm; three slices, and the part of the canal that is no vertebra:

# %%
import tempfile

import matplotlib.pyplot as plt

from verdiff.data.phantom_volumes import draw_phantom_volume
from verdiff.data.volume_layouts import one_case
from verdiff.io.volume_files import write_nifti

# %%
folder = Path(tempfile.mkdtemp())
drawn = draw_phantom_volume(2, "ct", (2, 1, 3), "PIR", oblique=8)
labels = np.where(drawn.labels > 28, 0, drawn.labels).astype(np.uint8)
case = one_case(write_nifti(folder / "ct.nii.gz", drawn.image, drawn.affine),
                write_nifti(folder / "mask.nii.gz", labels, drawn.affine))
slices, scheme, modality = sagittal_slices(case, SliceOptions(slices=3, step=8))
assert modality == "ct" and scheme.name == "verse" and len(slices) == 3
print(*(f"plane {s.plane}: {s.image.shape}, {s.spacing:g} mm a pixel" for s in slices), sep="\n")

# %%
#| fig-alt: "Three sagittal slices of a phantom CT, 8 mm apart, each upright on square pixels with the outlines of its vertebrae; on the outer two the processes behind the bodies change."
fig, axes = plt.subplots(1, 3, figsize=(6, 3), layout="constrained")
for axis, s in zip(axes, slices, strict=True):
    axis.imshow(s.image, cmap="gray")
    axis.contour(np.isin(s.labels, scheme.values()), [0.5], colors="orange", linewidths=0.6)
    axis.set(title=f"plane {s.plane}", xticks=[], yticks=[])
