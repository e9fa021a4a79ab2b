"""A public model adapted to one's own images, with a verdict: `fastmim adapt`."""
