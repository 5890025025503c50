"""CompressAI's models with the weights of cdzoo's codecs; test files that import this are skipped without it."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from cdzoo.codecs import Codec

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it compiles functions with torch.jit.script, which is deprecated
    ans = pytest.importorskip("compressai.ans", reason="the oracle is CompressAI, an extra")
    entropy_models = pytest.importorskip("compressai.entropy_models")
    models = pytest.importorskip("compressai.models")
    from compressai._CXX import pmf_to_quantized_cdf as pmf_to_quantized_cdf
    from compressai.layers import GDN
    from compressai.losses import RateDistortionLoss
    from compressai.models.google import get_scale_table
    from compressai.models.utils import conv, deconv

theirs = SimpleNamespace(
    GDN=GDN, RateDistortionLoss=RateDistortionLoss, conv=conv, deconv=deconv, get_scale_table=get_scale_table
)

CLASSES = {
    "bmshj2018_factorized": models.FactorizedPrior,
    "bmshj2018_hyperprior": models.ScaleHyperprior,
    "mbt2018_mean": models.MeanScaleHyperprior,
}


def compressai_model(name: str, codec: Codec) -> Any:
    """The model of a codec's name with its weights, after ``update()``, in evaluation mode."""
    model = CLASSES[name](codec.N, codec.M)
    model.load_state_dict({**model.state_dict(), **codec.state_dict()})
    model.update(force=True)
    return model.eval()
