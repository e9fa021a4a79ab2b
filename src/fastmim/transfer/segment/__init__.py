"""Semantic segmentation: a class for each pixel, by UPerNet or a linear head."""
