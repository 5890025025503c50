"""Layers and networks over JPEG coefficients (Ehrlich and Davis 2019)."""
