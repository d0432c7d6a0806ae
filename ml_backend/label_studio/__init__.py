"""Label Studio: its API, label configs, regions, timeline and media."""
