"""What runs a detector's network: PyTorch anywhere, OpenVINO on x86 CPUs, TensorRT and CoreML where they are asked for.

An engine turns network input into raw output; letterbox and NMS are :class:`ml_backend.models.detector.YoloDetector`'s,
the same for all. :mod:`.choice` decides which, :mod:`.export` makes what it needs, :mod:`.cache` keeps that.
"""
