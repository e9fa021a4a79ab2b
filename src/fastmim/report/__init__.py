"""Records of measurements and the tables made from them."""
