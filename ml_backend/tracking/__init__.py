"""Multi-object tracking: from detections to smooth, stitched tracks, and HOTA to measure them."""
