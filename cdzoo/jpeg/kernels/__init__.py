"""Compiled inner loops over JPEG data. Importing a module of this package imports Numba."""
