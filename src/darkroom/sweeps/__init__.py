"""Grids: one request drawn with every combination of some values, and laid out on one labelled sheet."""
