"""Inference engines of the detector: PyTorch anywhere, OpenVINO on x86 CPUs.

An engine maps the network's input to its raw output; :class:`ml_backend.detectors.yolo.YoloDetector` does letterboxing
and NMS for all of them. :mod:`.exports` stores OpenVINO exports and chooses the engine; :mod:`.make` makes and checks
exports in a child process.
"""
