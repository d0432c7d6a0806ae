"""Detectors, trackers and the weights they need."""
