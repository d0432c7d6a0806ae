"""Probing, decoding, encoding and normalising video files."""
