"""Studies: sweeps over pre-training settings, each trained and evaluated with several seeds; a survey of backbones."""
