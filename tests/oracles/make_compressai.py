"""Records what CompressAI makes of small random models, into ``tests/expected/compressai.safetensors``.

In ``tests/``:

python -m oracles.make_compressai
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import cdzoo
from cdzoo.coding.tables import SymbolTables

EXPECTED = Path(__file__).parents[1] / "expected" / "compressai.safetensors"
NAMES = ("bmshj2018_factorized", "bmshj2018_hyperprior", "mbt2018_mean")


def random_codec(name: str) -> Any:
    """A codec of 4 and 6 channels, whose latents are spread over many symbols and whose tables are irregular."""
    torch.manual_seed(NAMES.index(name))
    codec = cdzoo.get_codec(name, N=4, M=6)
    with torch.no_grad():
        codec.g_a[-1].weight.mul_(3000)
        for module in [m for part in ("h_a", "h_s") for m in getattr(codec, part, []) if hasattr(m, "weight")]:
            module.weight.mul_(2.5)
            module.bias.add_(0.3)
        for parameter in codec.entropy_bottleneck.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return codec.eval()


def tables(quantized_cdf: Tensor, cdf_length: Tensor, offset: Tensor) -> dict[str, Tensor]:
    """Tables without padding."""
    state = SymbolTables.from_padded(quantized_cdf, cdf_length, offset).state()
    return {name: torch.from_numpy(state[name]) for name in ("cdfs", "lengths", "offsets")}


def outputs_and_gradients(module: Any, x: Tensor, *, training: bool) -> dict[str, Tensor]:
    """A grid of the reconstruction, likelihoods, and gradients of a loss that all of them are part of."""
    module.train(training).zero_grad()
    torch.manual_seed(7)
    found = module(x)
    x_hat, likelihoods = (found["x_hat"], found["likelihoods"]) if isinstance(found, dict) else (found[0], found[2])
    loss = x_hat.square().mean() + sum(-v.log().mean() for v in likelihoods.values()) + module.aux_loss()
    loss.backward()
    module.eval()
    kept = {"x_hat": x_hat[..., ::5, ::5], **{f"likelihoods.{name}": v for name, v in likelihoods.items()}}
    gradients = {f"gradients.{name}": p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {name: tensor.detach() for name, tensor in {**kept, **gradients}.items()}


def record(name: str, codec: Any) -> dict[str, Tensor]:
    """Outputs, bytes and gradients of CompressAI's model of that name with a codec's weights."""
    from oracles.compressai_models import compressai_model

    model = compressai_model(name, codec)
    x = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with torch.no_grad():
        strings = model.compress(x / 255)["strings"]
    parts = {"weights": codec.state_dict(), "images": {"x": x}}
    parts["strings"] = {str(i): torch.frombuffer(bytearray(s[0]), dtype=torch.uint8) for i, s in enumerate(strings)}
    bottleneck = model.entropy_bottleneck
    parts["bottleneck"] = tables(bottleneck._quantized_cdf, bottleneck._cdf_length, bottleneck._offset)
    for mode in ("train", "eval"):
        parts[mode] = outputs_and_gradients(model, x / 255, training=mode == "train")
    if name == "mbt2018_mean":
        gaussian = model.gaussian_conditional
        parts["gaussian"] = tables(gaussian._quantized_cdf, gaussian._cdf_length, gaussian._offset)
    return {f"{name}/{part}/{key}": tensor for part, tensors in parts.items() for key, tensor in tensors.items()}


if __name__ == "__main__":
    found = {key: tensor for name in NAMES for key, tensor in record(name, random_codec(name)).items()}
    save_file({key: tensor.contiguous().clone() for key, tensor in found.items()}, EXPECTED)
    EXPECTED.chmod(0o644)
