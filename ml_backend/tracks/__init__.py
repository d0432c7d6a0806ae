"""From a tracker's boxes to the tracks that a person would draw."""
