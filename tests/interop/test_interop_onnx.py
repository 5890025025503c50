"""Every classifier as an ONNX model: ONNX Runtime gives the logits of PyTorch, from the same inputs.

The inputs of a network over coefficients are the planes and tables of one geometry; sizes, sampling and color space
are constants of the exported model.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import onnxruntime
import pytest
import torch
import torchvision
from oracles.small_modules import small
from test_interop_features import CLASSIFIERS, inputs
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cdzoo.codecs import encode_jpeg
from cdzoo.models._resnet import BasicBlock, Bottleneck
from cdzoo.models.icat import ICAT
from cdzoo.ops import to_jpeg_domain

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # PyTorch's exporter and onnxscript warn of their own and each other's deprecations, which change by version
        warnings.simplefilter("ignore")
        yield


def shortened(model: Any) -> Any:
    """Without blocks that repeat the one before: to export them takes minutes, and adds no operation."""
    if isinstance(model, ICAT):
        model.prune_intermediate_layers([2], prune_head=False)
    for stage in [module for module in model.modules() if isinstance(module, nn.Sequential)]:
        for (_, before), (name, block) in pairwise(list(stage.named_children())):
            if isinstance(block, Bottleneck | BasicBlock) and str(block) == str(before):
                delattr(stage, name)
    return model


def session(model: nn.Module, x: Any) -> onnxruntime.InferenceSession:
    """The model in ONNX Runtime, through the bytes of a file."""
    program: Any = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    file = io.BytesIO()
    program.save(file)
    return onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])


def run(exported: onnxruntime.InferenceSession, x: Any) -> Tensor:
    arrays = [leaf.numpy() for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor)]
    names = [value.name for value in exported.get_inputs()]
    return torch.from_numpy(exported.run(None, dict(zip(names, arrays, strict=True)))[0])


def assert_equal_logits(model: nn.Module, x: Any) -> None:
    with torch.no_grad():
        expected = model(x)
    found = run(session(model, x), x)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))
    assert not torch.allclose(expected[0], expected[1])


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_onnx_runtime_gives_the_same_logits(name: str) -> None:
    model = shortened(small(name)).eval()
    assert_equal_logits(model, inputs(model))


def test_converted_networks() -> None:
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=3).eval()
    model = to_jpeg_domain(network, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert model.folded == "conv1"
    assert_equal_logits(model, encode_jpeg(torch.rand(2, 3, 40, 72), subsampling="4:4:4"))


def test_inputs_are_the_integers_of_the_files() -> None:
    model: Any = small("jpeg_resnet_small").eval()
    x = inputs(model)
    exported = session(model, x)
    assert [(value.type, tuple(value.shape)) for value in exported.get_inputs()] == [
        *(("tensor(int16)", tuple(plane.shape)) for plane in x.planes),
        ("tensor(int32)", tuple(x.qtables.shape)),
    ]
    other = encode_jpeg(torch.rand(2, 3, *x.image_size), quality=30)  # of the same geometry, with other tables
    with torch.no_grad():
        torch.testing.assert_close(run(exported, other), model(other), rtol=0, atol=1e-4)
