"""What a project's own labels look like, learned from a handful of annotated objects."""
