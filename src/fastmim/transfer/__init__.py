"""The use of pre-trained weights: fine-tuning, and frozen features."""
