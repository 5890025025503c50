"""Shared fixtures: small codecs with random weights, and images that need no download."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings
from oracles.fresh_process import FreshProcesses
from oracles.small_modules import CALIBRATED

import cdzoo
from cdzoo.codecs import Codec

if "PYTEST_XDIST_WORKER" in os.environ:
    # one core each, for child processes, too; tests that are about threads ask for them
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


# a machine that is busy with other work fails no test of a property
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def smooth_images(batch: int, height: int, width: int, *, seed: int = 0) -> torch.Tensor:
    """Smooth, noisy images ``(B, 3, H, W)`` in ``[0, 1]``."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, max(1, height // 16), max(1, width // 16), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return (smooth + 0.1 * torch.randn(batch, 3, height, width, generator=generator)).clamp(0, 1)


@pytest.fixture(scope="session")
def make_codec() -> Callable[..., Codec]:
    """A small codec with weights that spread its latents over many symbols, as training would."""

    def make(name: str, *, seed: int = 0, N: int = 16, M: int = 24, gain: float = 1.0) -> Codec:
        torch.manual_seed(seed)
        channels = "latent_channels" if name in CALIBRATED else "M"
        codec = cdzoo.get_codec(name, **{"N": N, channels: M})
        assert isinstance(codec, Codec)
        norms = [m for m in codec.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        with torch.no_grad():
            if norms:
                for norm in norms:
                    norm.momentum = 1.0
                codec.train()(smooth_images(4, 64, 64))
                for norm in norms:
                    norm.momentum = 0.1
            codec.g_a[-1].weight.mul_(gain if norms else 100 * gain)
            for part in ("h_a", "h_s"):
                if hasattr(codec, part):
                    for module in getattr(codec, part):
                        if hasattr(module, "weight"):
                            module.weight.mul_(2.5)
                            module.bias.add_(0.3)
        return codec.eval()

    return make


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FreshProcesses]:
    """A function that runs a program where PyTorch has been imported, and nothing of cdzoo."""
    processes = FreshProcesses(tmp_path_factory.mktemp("fresh"))
    yield processes
    processes.close()


@pytest.fixture(scope="session")
def make_images() -> Callable[..., torch.Tensor]:
    """See :func:`smooth_images`."""
    return smooth_images
