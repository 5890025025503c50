"""Codecs that CompressAI has, too: its checkpoints, and its bytes."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from cdzoo._checks import check_choice, check_images, check_range, check_size, integer
from cdzoo.coding.base import Codec
from cdzoo.coding.identity import State
from cdzoo.coding.layers import EntropyBottleneck, image_transforms
from cdzoo.coding.rans import encode_batch
from cdzoo.coding.symbols import channel_indexes, round_to_symbols
from cdzoo.coding.tables import SymbolTables
from cdzoo.ops.losses import Metric

__all__ = ["TABLE_BUFFERS", "CompressAICodec", "bottleneck_strings", "split_checkpoint", "tables_at"]

TABLE_BUFFERS = ("_offset", "_quantized_cdf", "_cdf_length", "scale_table")
"""Buffers of CompressAI's entropy models that its ``update()`` derives from parameters. Their sizes vary."""


class CompressAICodec(Codec[State]):
    """Base class of codecs that load checkpoints of CompressAI and write its bytes. Stride 16.

    Args:
        quality, metric, N, M: as in :class:`~cdzoo.codecs.hyperprior.FactorizedPrior`.

    Attributes:
        entropy_models: names of the entropy models, sorted.
        latent_multiple: rows and columns of a latent that CompressAI codes must be multiples of this.
        high_from: the lowest quality with the larger ``N`` and ``M``.

    Raises:
        ValueError: an argument that is none of these.
    """

    stride = 16
    entropy_models: ClassVar[tuple[str, ...]] = ("entropy_bottleneck",)
    latent_multiple: ClassVar[int] = 1
    high_from: ClassVar[int] = 6

    def __init__(self, *, quality: int = 4, metric: Metric = "mse", N: int | None = None, M: int | None = None) -> None:
        super().__init__()
        sizes = self.derived_arguments({"quality": quality, "metric": metric, "N": N, "M": M})
        for name, size in sizes.items():
            check_size(name, size)
        self.N, self.M = sizes["N"], sizes["M"]
        self.latent_channels, self.quality, self.metric = self.M, quality, metric
        self.g_a, self.g_s = image_transforms(self.N, self.M)

    @classmethod
    def derived_arguments(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """``N`` and ``M``, which follow from the quality where they are ``None``.

        Raises:
            ValueError: a quality that is not an integer from 1 to 8, or an unknown metric.
        """
        quality, metric = arguments["quality"], arguments["metric"]
        if integer(quality) not in range(1, 9):
            raise ValueError(f"quality must be an integer, 1 (smallest files) to 8 (best images), not {quality!r}")
        check_choice("metric", metric, get_args(Metric))
        usual = {"N": 192, "M": 320} if quality >= cls.high_from else {"N": 128, "M": 192}
        return {name: usual[name] if arguments[name] is None else arguments[name] for name in usual}

    @abstractmethod
    def with_tables(self, state: State, tables: Mapping[str, Tensor]) -> State:
        """The state with the tables of a checkpoint in place of its own."""

    @abstractmethod
    def strings(self, y: Tensor, state: State) -> list[list[bytes]]:
        """The bytes that CompressAI writes for latents ``(B, M, h, w)``."""

    def configuration(self) -> dict[str, Any]:
        """See :class:`~cdzoo.codecs.Codec`."""
        return {"N": self.N, "M": self.M}

    def analyze(self, x: Tensor) -> Tensor:
        """See :class:`~cdzoo.codecs.Codec`."""
        y: Tensor = self.g_a(x)
        return y

    def synthesize(self, y_hat: Tensor) -> Tensor:
        """See :class:`~cdzoo.codecs.Codec`."""
        x_hat: Tensor = self.g_s(y_hat)
        return x_hat

    def convolutions(self) -> tuple[nn.Module | None, nn.Module | None]:
        """See :class:`~cdzoo.codecs.Codec`."""
        return self.g_a, self.g_s

    @torch.no_grad()
    def load_compressai(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load a checkpoint of the CompressAI model of the same name and sizes, strictly.

        A checkpoint with tables (saved after ``update()``) keeps them; without, they are derived. Names of earlier
        CompressAI versions and of ``DataParallel`` are understood.

        Args:
            state_dict: ``torch.load(path)``, or ``model.state_dict()``.

        Raises:
            ValueError: names, shapes or tables do not fit, or values are not finite; nothing is loaded then.
            TypeError: not a mapping of names to tensors.
        """
        rest, tables = split_checkpoint(state_dict)
        _check_fit(f"{self.name}(N={self.N}, M={self.M})", self.state_dict(), rest)
        filled = {name.rpartition(".")[0] for name, tensor in tables.items() if tensor.numel()}  # by update()
        complete = filled == set(self.entropy_models)
        state, twin = None, copy.deepcopy(self)  # the twin is loaded first, so that a failure changes nothing here
        try:
            twin.load_state_dict(rest)
            if complete:
                state = twin.with_tables(twin.coding, tables)
        except torch.OutOfMemoryError:
            raise
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"the checkpoint's weights or tables are incomplete or invalid: {error}; take another checkpoint"
            ) from None
        self.load_state_dict(rest)
        self.adopt_state(state)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state dict of this class, as :meth:`torch.nn.Module.load_state_dict` does.

        Raises:
            RuntimeError: names or shapes differ; for a checkpoint of CompressAI the message names
                :meth:`load_compressai`.
        """
        if strict and any(isinstance(name, str) and _is_table(name) for name in state_dict):
            raise RuntimeError(
                "the state dict has probability tables, so it is a checkpoint of CompressAI; "
                "load it with codec.load_compressai(state_dict)"
            )
        return super().load_state_dict(state_dict, strict, assign)

    @torch.no_grad()
    def compressai_strings(self, x: Tensor) -> list[list[bytes]]:
        """The bytes of ``compress(x)["strings"]`` of the CompressAI model with the same weights.

        CompressAI computes scales in floating point, so only a machine with the same rounding can decode these bytes.

        Args:
            x: ``(B, 3, H, W)`` in ``[0, 1]``, of a size that CompressAI's ``compress`` takes. The factorized prior
                takes any; for the hyperpriors, rows and columns of the latent must be multiples of 4, as at multiples
                of 64 pixels (and at 50x50, but not at 33x64).

        Raises:
            TypeError, ValueError: another size, or as :meth:`encode`.
        """
        check_images(x)
        multiple = self.latent_multiple
        if any(-(-side // self.stride) % multiple for side in x.shape[-2:]):
            raise ValueError(
                f"CompressAI's {self.name} takes no image of {tuple(x.shape[-2:])} pixels: rows and columns of the "
                f"latent, a sixteenth of them, must be multiples of {multiple}; pad to multiples of 64"
            )
        state = self.coding
        check_range(x)
        with self._inference():
            return self.strings(self.analyze(x.to(self._reference())), state)


def bottleneck_strings(z: Tensor, bottleneck: EntropyBottleneck, tables: SymbolTables) -> tuple[list[bytes], Tensor]:
    """Code values ``(B, N, h, w)`` as CompressAI's entropy bottleneck does: the strings, and ``z_hat`` as floats."""
    medians = bottleneck.quantiles[:, 0, 1].view(-1, 1, 1)
    symbols = round_to_symbols(z - medians)
    indexes = channel_indexes(tables, z.shape[2], z.shape[3], torch.device("cpu"))
    flat = symbols.cpu().contiguous().numpy().reshape(len(z), -1)
    strings = encode_batch(flat, indexes.contiguous().numpy().reshape(-1), tables)
    return strings, symbols.type_as(medians) + medians


def split_checkpoint(state_dict: object) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Take a checkpoint apart: parameters and fixed buffers, and tables, under the names of CompressAI's last version.

    Args:
        state_dict: of a CompressAI model of any version; it may come from ``DataParallel`` or ``torch.compile``.

    Returns:
        weights and tables, both by name.

    Raises:
        TypeError: not a mapping of names to tensors.
    """
    if not isinstance(state_dict, Mapping):
        kind = type(state_dict).__name__
        raise TypeError(f"state_dict must be what torch.load(path) or model.state_dict() gives, not {kind}")
    for name, tensor in state_dict.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            nested = next((n for n, value in state_dict.items() if isinstance(value, Mapping)), None)
            advice = "torch.from_numpy makes tensors of arrays" if nested is None else f"pass checkpoint[{nested!r}]"
            raise TypeError(f"state_dict must map names to tensors, not {name!r} to {type(tensor).__name__}; {advice}")
    renamed = {_current_name(name): tensor for name, tensor in state_dict.items()}
    tables = {name: tensor for name, tensor in renamed.items() if _is_table(name)}
    return {name: tensor for name, tensor in renamed.items() if name not in tables}, tables


def _is_table(name: str) -> bool:
    return name.rpartition(".")[2] in TABLE_BUFFERS


def _current_name(name: str) -> str:
    """A name in a CompressAI state dict, as its last version has it."""
    name = name.removeprefix("_orig_mod.").removeprefix("module.").removeprefix("_orig_mod.")
    for kind, plural in (("matrix", "matrices"), ("bias", "biases"), ("factor", "factors")):
        for old in (f"entropy_bottleneck._{plural}.", f"entropy_bottleneck._{kind}"):
            if name.startswith(old):
                return f"entropy_bottleneck.{plural}.{name.removeprefix(old)}"
    return name


def _check_fit(codec: str, own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Check that weights have the names and shapes of a codec's ``own`` state dict, and finite values."""
    problem = f"the checkpoint does not fit {codec}"
    missing, unknown = [n for n in own if n not in weights], [n for n in weights if n not in own]
    if missing or unknown:
        parts = [f"it has no {_some(missing)}"] if missing else []
        parts += [f"it has {_some(unknown)}, which the codec has not"] if unknown else []
        raise ValueError(f"{problem}: {' and '.join(parts)}; take the codec that has the name of the model")
    wrong = [name for name in own if own[name].shape != weights[name].shape]
    if wrong:
        shapes = [weights[name].shape for name in ("g_a.0.weight", "g_a.6.weight")]
        n, m = (shape[0] if shape else 0 for shape in shapes)
        raise ValueError(
            f"{problem}: it has N={n}, M={m} (the first sizes of g_a.0.weight and g_a.6.weight) and other shapes in "
            f"{_some(wrong)}; build the codec that has the name of the model, with these sizes"
        )
    broken = [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise ValueError(
            f"the checkpoint has values that are no finite numbers in {_some(broken)}, so training has failed; "
            "take an earlier checkpoint"
        )


def _some(names: list[str]) -> str:
    """The first names of a list, and how many there are beyond them."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def tables_at(prefix: str, tables: Mapping[str, Tensor]) -> SymbolTables:
    """The tables of the entropy model of that name.

    Raises:
        KeyError, ValueError: they are incomplete or invalid.
    """
    return SymbolTables.from_padded(*(tables[f"{prefix}.{n}"] for n in ("_quantized_cdf", "_cdf_length", "_offset")))
