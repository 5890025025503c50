"""The entropy coder against CompressAI's: either one reads the other's streams."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles.compressai_models import ans, entropy_models
from oracles.symbol_tables import make_symbols, make_tables, padded

from cdzoo.coding.rans import decode_batch, encode_batch
from cdzoo.coding.tables import SymbolTables

pytestmark = pytest.mark.compressai

# Its encoder writes outside its buffer for fewer than three symbols and never ends from 2**27 upwards: neither is fed.


@pytest.mark.parametrize("outliers", [0.0, 0.02, 0.5, 1.0])
def test_same_streams_as_compressai(outliers: float) -> None:
    encoder, decoder = ans.RansEncoder(), ans.RansDecoder()
    for seed in range(60):
        tables = make_tables(seed, count=1 + seed % 9, longest=(3, 12, 300)[seed % 3], shift=(0, 20, 3000)[seed % 3])
        symbols, indexes = make_symbols(seed, tables, 3, (4, 37, 400)[seed % 3], outliers=outliers)
        theirs = [
            encoder.encode_with_indexes(s.tolist(), i.tolist(), *padded(tables))
            for s, i in zip(symbols, indexes, strict=True)
        ]
        ours = encode_batch(symbols, indexes, tables)
        assert ours == theirs
        np.testing.assert_array_equal(decode_batch(theirs, indexes, tables), symbols)
        for stream, s, i in zip(ours, symbols, indexes, strict=True):
            assert decoder.decode_with_indexes(stream, i.tolist(), *padded(tables)) == s.tolist()


def test_same_streams_as_a_gaussian_conditional() -> None:
    model = entropy_models.GaussianConditional(None)
    model.update_scale_table([0.11 * (256 / 0.11) ** (i / 63) for i in range(64)])
    generator = torch.Generator().manual_seed(1)
    scales = (2 * torch.randn(3, 8, 6, 7, generator=generator)).exp()
    y = torch.randn(3, 8, 6, 7, generator=generator) * scales
    indexes = model.build_indexes(scales)
    theirs = model.compress(y, indexes)
    tables = SymbolTables.from_padded(model._quantized_cdf, model._cdf_length, model._offset)
    flat = indexes.reshape(3, -1)
    assert encode_batch(y.round().int().reshape(3, -1), flat, tables) == theirs
    y_hat = torch.from_numpy(decode_batch(theirs, flat, tables)).reshape(y.shape)
    assert torch.equal(y_hat.float(), model.decompress(theirs, indexes))


def test_same_streams_as_an_entropy_bottleneck_with_more_than_256_channels() -> None:
    torch.manual_seed(0)
    model = entropy_models.EntropyBottleneck(320)
    model.update()
    z = 4 * torch.randn(2, 320, 2, 3)
    tables = SymbolTables.from_padded(model._quantized_cdf, model._cdf_length, model._offset)
    medians = model._get_medians().detach().reshape(1, 320, 1, 1)
    symbols = (z - medians).round().to(torch.int16).reshape(2, -1)
    indexes = torch.arange(320).repeat_interleave(6)
    theirs = model.compress(z)
    assert encode_batch(symbols, indexes, tables) == theirs
    np.testing.assert_array_equal(decode_batch(theirs, indexes, tables), symbols.numpy())
