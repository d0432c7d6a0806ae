"""Chunks of a video, without a queue: cutting, keeping, and putting together."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.core.types import Detections, FrameFeatures, VideoInfo
from ml_backend.inference.chunks import VideoChunk, dump_frame_features, load_frame_features, plan_chunks


def video(frames: int, fps: float) -> VideoInfo:
    return VideoInfo("v.mp4", 640, 360, fps, frames, frames / fps, "h264", "yuv420p")


@given(st.integers(1, 5000), st.floats(1, 240), st.integers(1, 30), st.floats(0, 100))
def test_every_frame_is_in_one_chunk(frames: int, fps: float, stride: int, seconds: float) -> None:
    chunks = plan_chunks(video(frames, fps), stride, seconds)
    covered = []
    for chunk in chunks:
        assert chunk.start % stride == 0
        end = frames - 1 if chunk.end is None else chunk.end
        covered += range(chunk.start + (chunk.number > 0), end + 1)
    assert covered == list(range(frames))
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))


def test_what_is_left_over_makes_no_chunk_of_its_own() -> None:
    assert plan_chunks(video(1000, 30), 4, 10) == (
        VideoChunk(0, 0, 300),
        VideoChunk(1, 300, 600),
        VideoChunk(2, 600, None),
    )
    assert plan_chunks(video(1000, 30), 4, 0) == (VideoChunk(0, 0, None),)


def test_chunks_are_worth_it() -> None:
    assert len(plan_chunks(video(1000, 1 / 60), 1, 60)) == 1000 // 64  # a picture a minute
    assert len(plan_chunks(video(1000, 30), 4, 10, seek_cost=250)) == 3
    for cost in (301, float("inf")):  # each would begin far before its first frame
        assert plan_chunks(video(1000, 30), 4, 10, seek_cost=cost) == (VideoChunk(0, 0, None),)


def observation(index: int, boxes: int, *, camera: bool = True, colours: bool = True) -> FrameFeatures:
    random = np.random.default_rng(index)
    detections = Detections(
        random.random((boxes, 4), np.float32),
        random.random(boxes, np.float32),
        random.integers(0, 80, boxes),
        random.random((boxes, 9), np.float32) if colours else None,
    )
    return FrameFeatures(index, detections, random.random((2, 3)) if camera else None)


@pytest.mark.parametrize("colours", [True, False])
@pytest.mark.parametrize("boxes", [[], [0], [3, 0, 5], [0, 0]])
def test_nothing_is_rounded(boxes: list[int], colours: bool) -> None:
    seen = [observation(10 + 2 * n, count, camera=n != 1, colours=colours) for n, count in enumerate(boxes)]
    again = load_frame_features(dump_frame_features(seen))
    assert len(again) == len(seen)
    for before, after in zip(seen, again, strict=True):
        assert before.index == after.index
        for name in ("xyxy", "conf", "class_id", "colours"):
            one, other = getattr(before.detections, name), getattr(after.detections, name)
            assert (one is None) == (other is None)
            if one is not None:
                assert one.dtype == other.dtype
                np.testing.assert_array_equal(one, other)
        np.testing.assert_equal(before.camera, after.camera)


def test_damaged_ones_are_told() -> None:
    whole = dump_frame_features([observation(n, 5) for n in range(20)])
    for data in (b"", b"nonsense", whole[: len(whole) // 2], whole.replace(b"count", b"caunt")):
        with pytest.raises(ValueError, match="invalid frame features"):
            load_frame_features(data)


def test_code_is_never_run() -> None:
    out = io.BytesIO()
    np.savez(out, index=np.array([VideoChunk(0, 0, 1)], object))
    with pytest.raises(ValueError, match=r"invalid frame features.*allow_pickle"):
        load_frame_features(out.getvalue())
    with pytest.raises(ValueError, match="invalid frame features"):
        load_frame_features(pickle.dumps([1, 2]))
