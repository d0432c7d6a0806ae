"""Object detectors: YOLO and its engines, the motion detector, and where checkpoints come from."""
