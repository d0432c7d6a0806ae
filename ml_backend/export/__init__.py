"""Annotations on their way out: one reader of annotated tasks, one file for each format that they are written in."""
