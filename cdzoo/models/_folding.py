"""Folding of batch norms into convolutions, for inference."""

from __future__ import annotations

import itertools
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

__all__ = ["fold_batch_norms"]

N = TypeVar("N", bound=nn.Module)


def fold_batch_norms(network: N) -> N:
    """Make every batch norm part of the convolution in front of it, in place; returns the network.

    Args:
        network: in evaluation mode; in each of its modules a batch norm is registered right behind its convolution, as
            in the EfficientNets and adapters of the zoo. No two modules share a convolution.
    """
    for module in list(network.modules()):
        for (_, conv), (norm, layer) in itertools.pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(layer, nn.BatchNorm2d) and layer.track_running_stats:
                mean: Any = layer.running_mean
                var: Any = layer.running_var
                conv.weight, conv.bias = fuse_conv_bn_weights(
                    conv.weight, conv.bias, mean, var, layer.eps, layer.weight, layer.bias
                )
                setattr(module, norm, nn.Identity())
    return network
