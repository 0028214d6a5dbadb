# %% [markdown]
# # DICOM segmentations
# > A mask that a hospital's viewer lays over its radiograph, and back

# %% [markdown]
# A viewer finds the radiograph that a mask belongs to by its identifiers (UIDs), which therefore go into the file; the patient's name, number, sex and dates do not: they are written empty. highdicom fills in what the standard asks for. Segmentations are read with pydicom alone, those of other programs too: one segment a vertebra, fractions, label maps.
#
# Open this page [![in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/verdiff/verdiff/blob/main/nbs/library/dicom_seg.ipynb).

# %%
#| hide
import sys

if "google.colab" in sys.modules:
    get_ipython().system('pip install -q "verdiff[notebooks,medical] @ git+https://github.com/verdiff/verdiff"')

# %%
#| default_exp io.dicom_seg

# %%
#| export
import hashlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from verdiff.files import DataError
from verdiff.io.dicom import (
    dataset_of,
    decode_frame,
    frame_count,
    frame_header,
    read_dicom,
    spacing_of,
)
from verdiff.io.grey import Raw, check_size, extra

# %% [markdown]
# ## Reading

# %%
#| exports
def is_segmentation(
    ds: Any,  # pydicom's Dataset
) -> bool:
    "By its class: Segmentation or Label Map Segmentation."
    return str(ds.get("SOPClassUID")) in (
        "1.2.840.10008.5.1.4.1.1.66.4",
        "1.2.840.10008.5.1.4.1.1.66.7",
    )


def inside(
    ds: Any,
    frame: int,
    *path: str,  # keywords, each a sequence or a value
) -> Any:
    "A value of a frame's functional groups, its own or those of all; None where there is none."
    own = ds.get("PerFrameFunctionalGroupsSequence") or []
    for groups in ([own[frame]] if frame < len(own) else []) + list(
        ds.get("SharedFunctionalGroupsSequence") or []
    ):
        value = groups
        for word in path:
            value = value.get(word) if hasattr(value, "get") else None
            value = value[0] if word.endswith("Sequence") and value else value
        if value is not None:
            return value
    return None


# %%
#| exports
def segment_labels(
    ds: Any,  # a segmentation
) -> np.ndarray:  # (H, W): segment numbers, or fractions
    "All segments on one plane; DataError where the frames lie on several."
    count, places = frame_count(ds), set()
    check_size(int(ds.Rows), int(ds.Columns), min(count, 16))
    kind = str(ds.get("SegmentationType", "BINARY"))
    labels = np.zeros(
        (int(ds.Rows), int(ds.Columns)), np.float32 if kind == "FRACTIONAL" else np.int64
    )
    for frame in range(count):
        source = ("DerivationImageSequence", "SourceImageSequence")
        places.add((str(inside(ds, frame, "PlanePositionSequence", "ImagePositionPatient")),
                    str(inside(ds, frame, *source, "ReferencedSOPInstanceUID")),
                    str(inside(ds, frame, *source, "ReferencedFrameNumber"))))
        if len(places) > 1:
            raise DataError(
                "a segmentation of several slices; give one slice, or the volume's own masks"
            )
        pixels = decode_frame(ds, frame)
        number = inside(ds, frame, "SegmentIdentificationSequence", "ReferencedSegmentNumber")
        if kind == "FRACTIONAL":
            labels = np.maximum(
                labels, pixels / np.float32(ds.get("MaximumFractionalValue") or 255)
            )
        elif kind == "LABELMAP" or number is None:
            labels = np.maximum(labels, pixels)
        else:
            labels[pixels > 0] = int(number)
    return labels


def read_segmentation(
    ds: Any,  # pydicom's Dataset of a segmentation
) -> Raw:
    """The labels of a segmentation of one image.

    DataError where it is damaged or of several images.
    """
    try:
        labels = segment_labels(ds)
        return Raw(labels, "dicom", None, False, labels.shape, spacing_of(frame_header(ds, 0))[0])
    except DataError:
        raise
    except Exception as error:  # a header's words are not quoted
        raise DataError(
            f"a damaged DICOM segmentation ({type(error).__name__}); export it again"
        ) from None


# %%
#| exports
def read_dicom_mask(
    data: bytes,  # a segmentation, or a grey DICOM whose stored values are labels
    frame: int | None = None,
) -> Raw:
    "The labels of a DICOM file; DataError as `read_dicom`."
    ds = dataset_of(data)
    return read_segmentation(ds) if is_segmentation(ds) else read_dicom(data, frame, stored=True)


# %% [markdown]
# ## Writing
# highdicom copies the patient from the image that it is given. So it is given a stand-in: the identifiers and the geometry, and for the patient empty fields.

# %%
#| exports
IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
FREE = "1.2.840.10008.5.1.4.1.1.1"  # CR, of which no place in the body is asked; of CT or MR it is


def stand_in(
    about: dict[str, Any],  # of a picture, as `place_of` makes it
) -> Any:  # pydicom's Dataset
    "What a segmentation refers to; DataError where the image has no identity."
    pydicom = extra("pydicom")
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    if lacks := [word for word in IDENTITY if not about.get(word)]:
        raise DataError(
            f"the image has no {lacks[0]}, so no DICOM segmentation can refer to it; write PNG"
        )
    for word in (*IDENTITY, "Modality", "Rows", "Columns"):
        setattr(ds, word, about.get(word, "OT"))
    for word in (
        "PatientID",
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "AccessionNumber",
        "StudyID",
        "StudyDate",
        "StudyTime",
    ):
        setattr(ds, word, "")
    placed = (
        "FrameOfReferenceUID",
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
    )
    if all(about.get(word) for word in placed):
        for word in placed:
            setattr(ds, word, about[word])
        ds.SliceThickness = (about.get("SliceThickness") or [1.0])[0]
    else:
        ds.SOPClassUID = FREE  # until the segmentation is made
    return ds


# %%
#| exports
def walk(
    ds: Any,  # pydicom's Dataset
) -> Iterator[Any]:
    "Every element, those inside sequences too."
    for element in ds:
        yield element
        for item in element.value if element.VR == "SQ" else ():
            yield from walk(item)


def segmentation_bytes(
    mask: np.ndarray,  # bool (H, W), on the picture's pixels
    about: dict[str, Any],  # of the picture
    version: str = "0",  # of the program, or of the network
) -> bytes:
    "A DICOM segmentation with one segment, `vertebra`, of one frame."
    seg, codes = extra("highdicom.seg"), extra("pydicom.sr.codedict").codes
    highdicom, uid = extra("highdicom"), extra("pydicom.uid").generate_uid
    source, same = stand_in(about), hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()
    how = highdicom.AlgorithmIdentificationSequence(
        "verdiff", codes.DCM.ArtificialIntelligence, version
    )
    vertebra = seg.SegmentDescription(
        1, "vertebra", codes.SCT.AnatomicalStructure, codes.SCT.Vertebra, "AUTOMATIC", how
    )
    made = seg.Segmentation(
        [source],
        mask[None].astype(np.uint8),
        "BINARY",
        [vertebra],
        series_instance_uid=uid(entropy_srcs=[source.SeriesInstanceUID, "verdiff", version]),
        series_number=1,
        sop_instance_uid=uid(entropy_srcs=[source.SOPInstanceUID, str(about["frame"]), same]),
        instance_number=about["frame"] + 1,
        manufacturer="verdiff",
        manufacturer_model_name="verdiff",
        software_versions=version,
        device_serial_number="0",
        omit_empty_frames=False,
    )
    for element in walk(made):
        if element.keyword == "ReferencedSOPClassUID":
            element.value = about["SOPClassUID"]
    if about["frames"] > 1:
        for groups in made.PerFrameFunctionalGroupsSequence:
            groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = (
                about["frame"] + 1
            )
    file = io.BytesIO()
    made.save_as(file)
    return file.getvalue()


# %% [markdown]
# There and back, and what a patient leaves in it:

# %%
place = {
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1",
    "SOPInstanceUID": "1.2.3.4",
    "StudyInstanceUID": "1.2.3",
    "SeriesInstanceUID": "1.2.3.5",
    "Modality": "CR",
    "Rows": 40,
    "Columns": 24,
    "frame": 0,
    "frames": 1,
}
drawn = np.zeros((40, 24), bool)
drawn[5:20, 3:9] = drawn[30:33, 10:22] = True
data = segmentation_bytes(drawn, place)
again = dataset_of(data)
assert is_segmentation(again) and np.array_equal(read_segmentation(again).pixels > 0, drawn)
print(
    len(data),
    "bytes; of the patient:",
    [str(again[w].value) for w in ("PatientName", "PatientID", "PatientBirthDate")],
)
