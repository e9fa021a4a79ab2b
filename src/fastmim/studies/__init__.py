"""Studies: sweeps over pre-training settings, each pre-trained, fine-tuned and probed with several seeds."""
