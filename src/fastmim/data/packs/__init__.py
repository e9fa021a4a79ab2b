"""Packs: images shrunk once, for fast loading."""
