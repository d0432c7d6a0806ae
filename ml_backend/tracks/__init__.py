"""From a tracker's boxes to the tracks that a person would draw."""

from ml_backend.tracks.assembler import TrackAssembler

__all__ = ["TrackAssembler"]
