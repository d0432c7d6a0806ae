"""Labels for tracks: the detector's classes, the few-shot pattern bank, CLIP zero-shot."""
