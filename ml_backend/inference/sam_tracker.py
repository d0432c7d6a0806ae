"""Follow objects with a video model of the SAM family: SAM 2 (Ravi et al., 2024), EdgeTAM, or SAM 3.

Its memory of the last frames finds an object again after an occlusion, which a correlation tracker cannot. On a CPU a
frame takes about a second, so there it is used only where nobody waits.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ml_backend.core.boxes import iou_pairs
from ml_backend.core.errors import WeightsError
from ml_backend.core.memory import free_gpu_memory, model_memory, select_device
from ml_backend.core.types import Float64Array, Image
from ml_backend.embeddings.hub import SAM_CLASSES, resolve_interactive
from ml_backend.embeddings.loading import use_model
from ml_backend.inference.follow import CorrelationTracker, Position, StartTracker, VisualTracker

if TYPE_CHECKING:
    import torch

    from ml_backend.core.settings import Settings
    from ml_backend.embeddings.hub import ResolvedModel

log = logging.getLogger(__name__)

#: Frames without the object after which it is lost: it is found again after longer occlusions than by a correlation
#: tracker, but each frame takes time.
PATIENCE = 90
#: IoU from which the model's own box on the drawn frame is of the same object, so that margins can be kept.
SAME_OBJECT = 0.3


class SamVideoModel:
    """A loaded video model.

    Raises:
        WeightsError: its folder is damaged, or the device does not exist.
    """

    def __init__(self, resolved: ResolvedModel, settings: Settings) -> None:
        from ml_backend.embeddings.pretrained import load_pretrained, load_processor

        model_class, processor_class = SAM_CLASSES[resolved.name]
        self.device = select_device(settings.device)
        self._processor = load_processor(resolved, processor_class)
        self._model = load_pretrained(resolved, model_class).to(self.device).eval()
        config = self._model.config
        #: Frames of which the model remembers something.
        self._memory = max(config.num_maskmem, config.max_object_pointers_in_encoder)

    @property
    def memory_bytes(self) -> Mapping[str, int]:
        """Bytes of the network by device."""
        return model_memory(self._model)

    def start(self, image: Image, scale: float, xyxy: Float64Array) -> VisualTracker:
        """Begin to follow an object.

        Args:
            image: BGR frame, reduced.
            scale: its size over that of the displayed video.
            xyxy: ``(4,)`` the drawn box, in pixels of the displayed video.
        """
        return _SamTracker(self, image, scale, xyxy)

    def new_session(self) -> Any:
        return self._processor.init_video_session(inference_device=self.device, dtype=self._model.dtype)

    def segment(
        self, session: Any, number: int, image: Image, drawn: Float64Array | None = None
    ) -> tuple[Float64Array | None, float]:
        """Return the box ``(4,)`` of the object's mask in a frame, in its pixels, and the logit of its presence.

        Args:
            session: of one object and direction.
            number: of the frame in the session, from 0.
            drawn: ``(4,)`` the box in the first frame.
        """
        import torch

        size = image.shape[:2]
        if drawn is not None:
            self._processor.add_inputs_to_inference_session(
                session, frame_idx=0, obj_ids=1, input_boxes=[[drawn.tolist()]], original_size=size
            )
        with torch.inference_mode():
            encoded = self._processor(images=image[..., ::-1].copy(), return_tensors="pt")
            pixels = encoded.pixel_values.to(self.device)
            out = self._model(inference_session=session, frame=pixels, frame_idx=number)
            self._forget(session, number)
            masks = self._processor.post_process_masks([out.pred_masks], original_sizes=[list(size)], binarize=True)
            return _bounding_box(masks[0][0, 0]), float(out.object_score_logits.reshape(-1)[0])

    def _forget(self, session: Any, number: int) -> None:
        """Drop what the model no longer looks at: memory must not grow with the length of a video."""
        del session.processed_frames[number]
        for outputs in session.output_dict_per_obj.values():
            outputs["non_cond_frame_outputs"].pop(number - self._memory, None)


def _bounding_box(mask: torch.Tensor) -> Float64Array | None:
    """Return the box ``(4,)`` around a mask ``(height, width)``; ``None`` if it is empty."""
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    if not len(rows):
        return None
    ends = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    return np.array([float(end) for end in ends])


class _SamTracker:
    """One object, followed in one direction."""

    patience = PATIENCE

    def __init__(self, model: SamVideoModel, image: Image, scale: float, xyxy: Float64Array) -> None:
        self._model, self._scale, self._frames = model, scale, 0
        self._session = model.new_session()
        box, _ = model.segment(self._session, 0, image, xyxy * scale)
        own = xyxy if box is None else box / scale
        if iou_pairs(own[None], xyxy[None])[0] < SAME_OBJECT:
            own = xyxy  # the model took a part of it, or more
        size = np.maximum(own[2:] - own[:2], 1.0)
        self._margins = (xyxy - own) / np.tile(size, 2)

    def update(self, image: Image) -> Position:
        self._frames += 1
        box, presence = self._model.segment(self._session, self._frames, image)
        if box is None or presence <= 0:
            return None, 0.0
        own = box / self._scale
        return own + self._margins * np.tile(np.maximum(own[2:] - own[:2], 1.0), 2), np.inf


@dataclass(slots=True)
class ChosenTracker:
    """What follows a drawn object where no track tells.

    Attributes:
        name: for people.
        start: begins to follow an object.
        colour: whether it needs frames in colour.
        note: why it is not the configured model, or not any longer; else empty.
    """

    name: str
    start: StartTracker
    colour: bool = False
    note: str = ""

    def give_up(self, error: Exception) -> None:
        """Note that the model has failed; objects that are begun from now on have the correlation tracker."""
        log.warning("%s failed while following; the correlation tracker goes on.", self.name, exc_info=error)
        if not self.note:
            self.note = f"{self.name} failed while following ({type(error).__name__}: {str(error)[:200]})."
            self.name += f"+{CORRELATION.name}"


class _RecoveringTracker:
    """Follows an object with a model; if that fails, a correlation tracker goes on from where it was seen last."""

    def __init__(
        self, chosen: ChosenTracker, start: StartTracker, image: Image, scale: float, xyxy: Float64Array
    ) -> None:
        self._chosen, self._scale, self._seen = chosen, scale, (image, xyxy)
        self._model: VisualTracker | None = None
        self._correlation: CorrelationTracker | None = None
        if not chosen.note:
            try:
                self._model = start(image, scale, xyxy)
            except Exception as error:  # noqa: BLE001 - networks raise anything, such as out of memory; it is logged
                chosen.give_up(error)
        self.patience = self._model.patience if self._model else CorrelationTracker.patience

    def update(self, image: Image) -> Position:
        if self._model:
            try:
                box, certainty = self._model.update(image)
            except Exception as error:  # noqa: BLE001 - as above
                self._chosen.give_up(error)
            else:
                if box is not None:
                    self._seen = image, box
                return box, certainty
            self._model = None  # outside the except block, because the error keeps its tensors alive
            free_gpu_memory()
        if self._correlation is None:
            seen, xyxy = self._seen
            self._correlation = CorrelationTracker(_grey(seen), self._scale, xyxy)
            self.patience = CorrelationTracker.patience
        return self._correlation.update(_grey(image))


def _grey(image: Image) -> Image:
    import cv2

    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)


CORRELATION = ChosenTracker("correlation", CorrelationTracker)


@contextmanager
def use_tracker(settings: Settings, *, on_cpu: bool = False, download: bool = False) -> Iterator[ChosenTracker]:
    """Load ``INTERACTIVE_MODEL``, or take it from the model cache; without it yield the correlation tracker.

    Args:
        on_cpu: use the model also without a GPU.
        download: whether to download it where it is missing.
    """
    with ExitStack() as stack:
        try:
            chosen = _choose(settings, stack, on_cpu, download)
        except WeightsError as error:
            chosen = replace(CORRELATION, note=str(error))
        except (RuntimeError, MemoryError) as error:  # such as out of memory
            chosen = replace(CORRELATION, note=f"INTERACTIVE_MODEL cannot be loaded ({str(error)[:200]}).")
        if chosen.note:
            log.warning("Drawn boxes are followed by the correlation tracker: %s", chosen.note)
        yield chosen


def _choose(settings: Settings, stack: ExitStack, on_cpu: bool, download: bool) -> ChosenTracker:
    if not settings.interactive_model:
        return CORRELATION
    if not on_cpu and select_device(settings.device) == "cpu":
        return replace(CORRELATION, note="Without a GPU, INTERACTIVE_MODEL takes about a second a frame.")
    resolved = resolve_interactive(settings, download=download)
    if isinstance(resolved, str):
        return replace(CORRELATION, note=resolved)
    model = stack.enter_context(use_model(resolved, settings, SamVideoModel))
    chosen = ChosenTracker(resolved.name, model.start, colour=True)
    chosen.start = partial(_RecoveringTracker, chosen, model.start)
    return chosen
