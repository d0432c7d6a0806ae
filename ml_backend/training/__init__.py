"""Retraining: dataset, fine-tuning, gate, and the registry of versions."""
