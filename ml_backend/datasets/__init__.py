"""Read annotated tasks, export and import datasets, count annotations."""
