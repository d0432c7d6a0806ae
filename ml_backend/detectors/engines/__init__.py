"""What runs a detector's network: PyTorch anywhere, OpenVINO on x86 CPUs.

An engine turns network input into raw output; letterbox and NMS are :class:`ml_backend.detectors.yolo.YoloDetector`'s,
the same for all. :mod:`.exports` keeps what OpenVINO runs and decides which engine is used; :mod:`.make` makes and
checks exports in a process of its own.
"""
