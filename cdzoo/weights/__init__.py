"""Weights: folders, enums, model cards, saving and loading."""
