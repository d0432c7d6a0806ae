"""The commands behind `scripts/` and `label-studio-video`, one module each."""
