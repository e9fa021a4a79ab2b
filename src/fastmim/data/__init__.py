"""From `--data` to uint8 batches, and their preparation on the device."""
