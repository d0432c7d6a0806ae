"""Retraining: dataset, fine-tuning, evaluation, promotion gate, and the registry of versions."""
