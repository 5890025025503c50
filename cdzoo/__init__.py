"""cdzoo: networks that read what a codec stores, and never rebuild the pixels."""

from cdzoo._version import __version__

__all__ = ["__version__"]
