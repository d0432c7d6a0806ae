"""Annotated tasks on their way out and in: readers, dataset formats, importers, statistics."""
