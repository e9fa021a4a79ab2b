"""The method (FastMIM): masking, targets, decoder, loss."""
