"""Training runs of any kind: plan, loop, optimiser, checkpoints, logs, run directory."""
