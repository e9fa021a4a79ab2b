"""Backbone weights: files that timm loads, whatever `--weights` names, foreign checkpoints, and exports."""

from fastmim.weights.files import FILE, load_backbone, load_into, read, save, write
from fastmim.weights.opening import Opened, open_weights

__all__ = ["FILE", "Opened", "load_backbone", "load_into", "open_weights", "read", "save", "write"]
