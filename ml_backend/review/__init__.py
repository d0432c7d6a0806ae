"""Suspicious moments in tracks: what is probably wrong, where, and a repair."""
