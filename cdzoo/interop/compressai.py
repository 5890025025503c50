"""Models of CompressAI as codecs.

    from compressai.zoo import bmshj2018_hyperprior
    from cdzoo.interop.compressai import from_compressai

    codec = from_compressai(bmshj2018_hyperprior(quality=4, pretrained=True))
    streams = codec.compress(images)

A checkpoint needs no CompressAI: see ``load_compressai`` of the codecs.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from cdzoo._torch import inner_module
from cdzoo.codecs.hyperprior import HyperpriorOptions, bmshj2018_factorized, bmshj2018_hyperprior, mbt2018_mean
from cdzoo.coding.compressai_codec import CompressAICodec
from cdzoo.ops.losses import Metric

__all__ = ["from_compressai"]

_BUILDERS: dict[str, Callable[..., CompressAICodec]] = {
    "FactorizedPrior": bmshj2018_factorized,
    "ScaleHyperprior": bmshj2018_hyperprior,
    "MeanScaleHyperprior": mbt2018_mean,
}


def from_compressai(model: nn.Module, *, quality: int | None = None, metric: Metric | None = None) -> CompressAICodec:
    """Build the codec of a CompressAI model, with its weights and, after ``update()``, its tables.

    Args:
        model: a ``FactorizedPrior``, ``ScaleHyperprior`` or ``MeanScaleHyperprior`` of CompressAI, also inside
            ``DataParallel`` or ``torch.compile``. It stays as it is.
        quality: 1 to 8, to be recorded; CompressAI's models do not know theirs. It does not change the sizes.
        metric: what the model was trained for, to be recorded.

    Returns:
        the codec, in float32, on the model's device and in its training or evaluation mode.

    Raises:
        TypeError: a model that has no counterpart.
        ValueError: the model's weights or tables are damaged.
    """
    while (inner := inner_module(model)) is not None:
        model = inner
    kind = type(model)
    builder = _BUILDERS.get(kind.__name__) if kind.__module__.startswith("compressai.") else None
    if builder is None:
        known = ", ".join(f"{name} ({builder.__name__})" for name, builder in _BUILDERS.items())
        raise TypeError(
            f"{kind.__name__} has no counterpart among the codecs; these models of CompressAI have: {known}"
        )
    state_dict = model.state_dict()
    n, m = (state_dict[name].shape[0] for name in ("g_a.0.weight", "g_a.6.weight"))
    options: HyperpriorOptions = {"N": n, "M": m}
    if quality is not None:
        options["quality"] = quality
    if metric is not None:
        options["metric"] = metric
    codec = builder(**options)
    codec.load_compressai(state_dict)
    return codec.to(next(model.parameters()).device).train(model.training)
