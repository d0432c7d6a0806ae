"""Make masks of boxes: by a model of the SAM family, which the boxes prompt, or by YOLO's instance masks.

The checkpoint tells which: a folder of transformers, or a file of ultralytics (SAM, SAM 2 and MobileSAM by their names,
as ultralytics itself tells them; else a YOLO model for segmentation).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import lap
import numpy as np

from ml_backend.core.boxes import iou_matrix
from ml_backend.core.errors import BackendError, WeightsError
from ml_backend.core.memory import OutOfMemoryFallback, is_out_of_memory, select_device
from ml_backend.core.types import BoolArray, Float64Array, Image
from ml_backend.detectors.setup import setup_ultralytics
from ml_backend.embeddings.hub import SEGMENTER_CLASSES, resolve_segmenter
from ml_backend.embeddings.loading import use_model

if TYPE_CHECKING:
    from ml_backend.core.settings import Settings
    from ml_backend.embeddings.hub import ResolvedModel

#: Boxes per call: each needs the memory of a mask of the frame's size in floating point.
BATCH = 16
#: Least IoU of an instance that YOLO finds with the box whose mask it gives.
SAME_OBJECT = 0.5
#: Confidence from which YOLO's instances count. It is low, as the boxes tell which are right.
YOLO_CONF = 0.05


class Segmenter(Protocol):
    """Makes masks of boxes.

    Attributes:
        name: for people.
        model_id: name and weights; masks are the same only if it is equal.
    """

    name: str
    model_id: str

    def segment(self, image: Image, xyxy: Float64Array) -> BoolArray:
        """Return the mask of each box, which does not reach beyond its box; empty where the model finds nothing.

        Args:
            image: ``(height, width, 3)`` uint8 BGR.
            xyxy: ``(n, 4)`` pixels.

        Returns:
            ``(n, height, width)``.

        Raises:
            WeightsError: the model failed.
        """
        ...


class _TorchSegmenter(OutOfMemoryFallback):
    """Base of segmenters in torch; implements :class:`Segmenter`."""

    item_name = "boxes"
    batch = BATCH

    def __init__(self, resolved: ResolvedModel, settings: Settings) -> None:
        self.name, self.model_id = resolved.name, resolved.model_id
        self._model: Any = self._load(resolved)
        self.move_to(select_device(settings.device))

    def segment(self, image: Image, xyxy: Float64Array) -> BoolArray:
        """See :meth:`Segmenter.segment`."""
        masks = np.zeros((len(xyxy), *image.shape[:2]), bool)
        if not len(xyxy):
            return masks
        try:
            self.run_with_fallback(partial(self._fill, masks, image, xyxy))
        except BackendError:
            raise
        except Exception as error:  # networks raise anything
            raise WeightsError(
                f"{self.name} failed to make masks ({type(error).__name__}: {str(error)[:200]}).",
                "Set SEGMENTER to another model, or DEVICE=cpu if memory is short.",
            ) from error
        for mask, (x1, y1), (x2, y2) in zip(masks, *_whole_pixels(xyxy), strict=True):
            mask[:y1] = mask[y2:] = False
            mask[:, :x1] = mask[:, x2:] = False
        return masks

    def _load(self, resolved: ResolvedModel) -> Any:
        """Load the network on the CPU; raise WeightsError if that cannot be done."""
        raise NotImplementedError

    def _fill(self, masks: BoolArray, image: Image, xyxy: Float64Array, limit: int) -> None:
        """Write the masks of boxes, ``limit`` at a time, to ``masks``."""
        raise NotImplementedError


def _whole_pixels(xyxy: Float64Array) -> tuple[list[list[int]], list[list[int]]]:
    """Return the corners of boxes, at least one pixel, as slices: left, top; right, bottom."""
    first = np.maximum(np.floor(xyxy[:, :2]), 0).astype(int)
    return first.tolist(), np.maximum(np.ceil(xyxy[:, 2:]).astype(int), first + 1).tolist()


def box_mask(shape: Sequence[int], xyxy: Float64Array) -> BoolArray:
    """Return a mask ``(height, width)`` of all pixels in a box ``(4,)``."""
    mask = np.zeros(shape[:2], bool)
    ((x1, y1),), ((x2, y2),) = _whole_pixels(xyxy[None])
    mask[y1:y2, x1:x2] = True
    return mask


class _SamSegmenter(_TorchSegmenter):
    """A model of transformers."""

    def _load(self, resolved: ResolvedModel) -> Any:
        from ml_backend.embeddings.pretrained import load_pretrained, load_processor

        model_class, processor_class = SEGMENTER_CLASSES[resolved.name]
        self._processor = load_processor(resolved, processor_class)
        return load_pretrained(resolved, model_class).eval()

    def _fill(self, masks: BoolArray, image: Image, xyxy: Float64Array, limit: int) -> None:
        import torch

        with torch.inference_mode():
            inputs = self._processor(
                images=image[..., ::-1].copy(), input_boxes=[xyxy.tolist()], return_tensors="pt"
            ).to(self._model.device, self._model.dtype)
            embeddings = self._model.get_image_embeddings(inputs.pixel_values)
            # SAM's first version pads the image.
            sizes = [inputs[name] for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
            for start in range(0, len(xyxy), limit):
                boxes = inputs.input_boxes[:, start : start + limit]
                out = self._model(image_embeddings=embeddings, input_boxes=boxes, multimask_output=False)
                (found,) = self._processor.post_process_masks(out.pred_masks, *sizes)
                masks[start : start + limit] = found[:, 0].cpu().numpy()


class _UltralyticsSegmenter(_TorchSegmenter):
    """A model that ultralytics loads."""

    def _predict(self, image: Image, **options: Any) -> Any:
        (result,) = self._model.predict(image, verbose=False, save=False, device=self._device, **options)
        return result


class _UltralyticsSam(_UltralyticsSegmenter):
    def _load(self, resolved: ResolvedModel) -> Any:
        from ultralytics import SAM

        return _from_checkpoint(SAM, resolved)

    def _fill(self, masks: BoolArray, image: Image, xyxy: Float64Array, limit: int) -> None:
        for start in range(0, len(xyxy), limit):
            result = self._predict(image, bboxes=xyxy[start : start + limit], conf=0.0)
            if result.masks is not None:  # it leaves out those of no confidence; their class is their box's number
                rows = start + result.boxes.cls.cpu().numpy().astype(int)
                masks[rows] = result.masks.data.cpu().numpy() > 0


class _YoloSegmenter(_UltralyticsSegmenter):
    def __init__(self, resolved: ResolvedModel, settings: Settings) -> None:
        self._imgsz = settings.imgsz
        super().__init__(resolved, settings)

    def _load(self, resolved: ResolvedModel) -> Any:
        from ultralytics import YOLO

        model = _from_checkpoint(YOLO, resolved)
        if model.task != "segment":
            raise WeightsError(
                f"{resolved.path} is a YOLO model for {model.task or 'an unknown task'}, which has no masks.",
                "Set SEGMENTER to one for segmentation, such as yolo11n-seg.pt.",
            )
        return model

    def _fill(self, masks: BoolArray, image: Image, xyxy: Float64Array, limit: int) -> None:
        most = max(300, len(xyxy))
        found = self._predict(image, imgsz=self._imgsz, conf=YOLO_CONF, max_det=most, retina_masks=True)
        if not found.masks:  # None, or empty where all of them are; lap writes outside of empty arrays
            return
        iou = iou_matrix(xyxy, found.boxes.xyxy.cpu().numpy())
        _, columns, _ = lap.lapjv(1 - iou, extend_cost=True)
        for row, column in enumerate(columns.tolist()):
            if column >= 0 and iou[row, column] >= SAME_OBJECT:
                masks[row] = found.masks.data[column].cpu().numpy() > 0


def _from_checkpoint(model_class: Any, resolved: ResolvedModel) -> Any:
    """Load a checkpoint of ultralytics. It is code: trusted paths only."""
    try:
        return model_class(str(resolved.path))
    except Exception as error:  # unpickling foreign files raises anything
        if is_out_of_memory(error):
            raise
        raise WeightsError(
            f"{resolved.path} cannot be loaded by ultralytics ({type(error).__name__}: {str(error)[:200]}).",
            "Download it again, and keep its name: ultralytics tells SAM's files by it.",
        ) from error


def load_segmenter(resolved: ResolvedModel, settings: Settings) -> Segmenter:
    """Load a segmenter resolved by :mod:`ml_backend.embeddings.hub`, and try it.

    Raises:
        WeightsError: it cannot be loaded, or does not run.
    """
    segmenter = _segmenter_class(resolved)(resolved, settings)
    segmenter.segment(np.zeros((64, 64, 3), np.uint8), np.array([[16.0, 16, 48, 48]]))
    return segmenter


def _segmenter_class(resolved: ResolvedModel) -> type[_TorchSegmenter]:
    path = Path(resolved.path or "")
    if path.is_dir():
        return _SamSegmenter
    setup_ultralytics()
    from ultralytics.models.sam.build import sam_model_map

    return _UltralyticsSam if path.name.endswith(tuple(sam_model_map)) else _YoloSegmenter


def use_segmenter(settings: Settings) -> AbstractContextManager[Segmenter]:
    """Load ``SEGMENTER``, which is downloaded where it is missing, or take it from the model cache.

    Raises:
        ConfigError: none is configured.
        WeightsError: it is not available, cannot be loaded, or does not run.
    """
    resolved = resolve_segmenter(settings, download=True)
    if isinstance(resolved, str):
        raise WeightsError(f"Masks cannot be made: {resolved}")
    return use_model(resolved, settings, load_segmenter, settings.imgsz)
