"""Limits against files made to exhaust memory. No PyTorch here: headers are read without it."""

from __future__ import annotations

__all__ = ["MAX_IMAGE_PIXELS"]

MAX_IMAGE_PIXELS = 178_956_970  # public as cdzoo.types.MAX_IMAGE_PIXELS
