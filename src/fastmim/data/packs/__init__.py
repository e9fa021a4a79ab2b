"""Packs: images shrunk once and stored for fast loading."""
