"""The pattern bank: what a project's labels look like, learned from a handful of annotated objects."""
