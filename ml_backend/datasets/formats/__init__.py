"""Dataset formats, one module each, and ``annotations_json``, a file without images."""

from typing import Literal, get_args

# Here so that the web process knows the names without loading NumPy and OpenCV.
MaskFormatName = Literal["yolo-seg", "coco-seg", "mots", "mask-png"]
#: Names of the dataset formats.
FormatName = Literal["yolo", "yolo-track", "coco", "mot", "cvat", MaskFormatName]
#: Names of those that can hold global ids.
GLOBAL_ID_FORMATS = ("coco", "coco-seg", "mot")
#: Names of those that need a segmenter.
MASK_FORMATS = frozenset(get_args(MaskFormatName))
