"""The pattern bank: few-shot classification of tracks from a handful of annotated objects."""
