"""Frozen features: extraction, probes, embeddings."""
