"""Dataset formats, one module each, and ``annotations_json``, a file without images."""

from typing import Literal

#: Names of the dataset formats, here so that the web process knows them without loading NumPy and OpenCV.
FormatName = Literal["yolo", "yolo-track", "coco", "mot", "cvat"]
