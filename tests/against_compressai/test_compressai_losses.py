"""The rate-distortion loss against CompressAI's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracles.compressai_models import theirs

from cdzoo.ops import RateDistortionLoss
from cdzoo.types import CodecOutput, Latent

pytestmark = pytest.mark.compressai


@pytest.mark.parametrize("metric", ["mse", "ms-ssim"])
def test_rate_distortion_is_compressais(metric: str, make_images: Callable[..., torch.Tensor]) -> None:
    latent = Latent(torch.zeros(2, 4, 2, 4), None, (176, 192))
    likelihoods = {"y": torch.rand(2, 4, 11, 12) + 1e-3, "z": torch.full((2, 4, 3, 3), 0.125)}
    x = make_images(2, 176, 192)
    x_hat = (x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    output = CodecOutput(x_hat, latent, likelihoods)
    expected = theirs.RateDistortionLoss(lmbda=0.013, metric=metric)({"x_hat": x_hat, "likelihoods": likelihoods}, x)
    ours = RateDistortionLoss(0.013, metric)(output, x)  # type: ignore[arg-type]
    assert float(ours.loss) == pytest.approx(float(expected["loss"]), rel=1e-5)
    assert float(ours.bpp) == pytest.approx(float(expected["bpp_loss"]), rel=1e-5)
    assert float(ours.loss) == pytest.approx(0.013 * float(ours.distortion) + float(ours.bpp), rel=1e-5)
