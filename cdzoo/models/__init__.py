"""Placeholder docstring, replaced by the subpackage table of contents."""
