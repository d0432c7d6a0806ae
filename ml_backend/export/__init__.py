"""What leaves the house: annotated tasks, read once, to files that other programs take."""
