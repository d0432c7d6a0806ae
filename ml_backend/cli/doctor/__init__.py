"""The doctor: checks an installation, and reports results with hints."""
