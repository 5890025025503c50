"""The exceptions of cdzoo: one family, so that a program can catch all of them or just one kind.

Every message names the value that was refused, the rule that it breaks and what to do about it.
"""

__all__ = ["BitstreamError", "CdzooError", "JPEGError", "PairingError", "WeightsError"]


class CdzooError(Exception):
    """Base of every error that cdzoo raises on its own account."""


class BitstreamError(CdzooError, ValueError):
    """A ``.cdz`` stream is empty, truncated, damaged, of an unknown version, or larger than the limits allow."""


class JPEGError(CdzooError, ValueError):
    """A JPEG file is damaged, inconsistent, or of a kind that is not supported."""


class WeightsError(CdzooError):
    """Weights could not be found, verified, or loaded in full."""


class PairingError(CdzooError):
    """Two things that belong to different codecs met: a stream and a codec, or a codec and a network."""
