"""Limits against files made to exhaust memory. No PyTorch here: headers are read without it."""

from __future__ import annotations

__all__ = ["MAX_IMAGE_PIXELS"]

MAX_IMAGE_PIXELS = 178_956_970
"""Images with more pixels are refused unless ``max_pixels`` says otherwise. Pillow raises an error at the same size."""
