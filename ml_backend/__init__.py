"""Label Studio ML backend that pre-annotates video and learns a project's own labels."""

__version__ = "0.1.0"
