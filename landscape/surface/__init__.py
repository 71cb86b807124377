"""Slices through the loss surface: directions, and the grid that is evaluated along them."""
