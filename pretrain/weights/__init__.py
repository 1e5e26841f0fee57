"""Weights in and out: our own folder, Hugging Face's, Meta's .pt, a run's checkpoint."""
