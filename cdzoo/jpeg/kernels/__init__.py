"""Compiled inner loops over JPEG data. Importing any module except ``layout`` and ``plan`` imports Numba."""
