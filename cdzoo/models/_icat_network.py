"""The Transformer, encoder and reconstructor of :mod:`cdzoo.models.icat`, without a hyperprior."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeGuard, overload

import torch
from torch import Tensor, nn

from cdzoo._checks import check_images
from cdzoo._torch import register_serializable
from cdzoo.coding.layers import conv, deconv
from cdzoo.coding.tiles import pad_to_multiple
from cdzoo.jpeg.nn.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from cdzoo.models._resnet import scaled_channels
from cdzoo.models._state_dict import LoadedNames, load_named
from cdzoo.models.classifier import LatentClassifier, linear_classifier, selected_stages
from cdzoo.types import Latent

__all__ = ["ICAT", "ICATOutput", "leaky"]

_DEPTH, _AGGREGATED, _HEADS, _HEAD_CHANNELS, _HIDDEN = 12, 3, 6, 64, 128
_SLOPE = 0.01  # of LeakyReLU
_GRID = (14, 14)  # of the position embeddings: 224 pixels


class ICATOutput(NamedTuple):
    """The output for images: the fields of :class:`~cdzoo.types.CodecOutput`, and logits.

    Attributes:
        x_hat: reconstruction ``(B, 3, H, W)``, RGB, nominally in ``[0, 1]`` (not clamped, so that gradients survive).
        latent: the classified latent: ``y`` without a hyperprior; with one, ``y`` with noise (in training) or rounded.
        likelihoods: probability of each symbol, ``{"y": (B, M, h, w), "z": ...}``; ``{}`` without a hyperprior.
        logits: ``(B, num_classes)``.
    """

    x_hat: Tensor
    latent: Latent
    likelihoods: dict[str, Tensor]
    logits: Tensor


register_serializable(ICATOutput)


def leaky(*layers: nn.Module) -> nn.Sequential:
    """Layers with LeakyReLU between them."""
    return nn.Sequential(*[m for layer in layers for m in (layer, nn.LeakyReLU(_SLOPE))][:-1])


class ICAT(LatentClassifier):
    """The network without its hyperprior: it classifies images or latents, and rebuilds images.

    Parts that DeiT-S has have the names of timm (``cls_token``, ``pos_embed``, ``blocks.*``, ``norm``; ``fc`` is timm's
    ``head``). Parts of the codec have the names of CompressAI.

    Args:
        in_channels: latent channels ``M``. A tensor of three channels is always taken for images; with ``M = 3``,
            latents have to come as a :class:`~cdzoo.types.Latent`.
        num_classes: logits.
        width: multiplies the six attention heads of 64 channels, and the 128 hidden channels of the convolutions;
            0.5 is DeiT-Ti, 2 is DeiT-B.
        aggregation: rebuild images from ``z_0`` to ``z_3`` (equation 9); ``False``: from ``z_0`` alone (an ablation).
        drop_path: probability of skipping the last block in training; for the others it grows linearly from 0.

    Raises:
        ValueError: ``width`` is not positive, or ``drop_path`` is no probability.
    """

    latent_stride: int = 16
    global_pool: str = "token"
    unlearned_arguments: ClassVar[tuple[str, ...]] = ("drop_path",)
    """Arguments that weights fit whatever they are."""

    def __init__(
        self,
        *,
        in_channels: int = 192,
        num_classes: int = 1000,
        width: float = 1.0,
        aggregation: bool = True,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__(in_channels=in_channels, latent_stride=16)
        from timm.models.vision_transformer import Block

        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path={drop_path} must be at least 0 and below 1; 0.1 is DeiT-S's")
        n = scaled_channels(_HIDDEN, width)
        heads = max(1, int(_HEADS * width + 0.5))
        c = heads * _HEAD_CHANNELS
        self.N, self.aggregation = n, aggregation
        self.num_features, self.num_classes = c, num_classes

        self.g_a = leaky(conv(3, n), conv(n, n), conv(n, n), conv(n, in_channels))
        self.embed = nn.Linear(in_channels, c)
        self.cls_token = nn.Parameter(torch.empty(1, 1, c))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + _GRID[0] * _GRID[1], c))
        self.blocks = nn.ModuleList(
            Block(c, heads, mlp_ratio=4, qkv_bias=True, drop_path=rate, norm_layer=_layer_norm)
            for rate in (drop_path * index / (_DEPTH - 1) for index in range(_DEPTH))
        )
        self.set_stages(*((f"blocks.{index}", c, 1) for index in range(_DEPTH)))
        self.norm: nn.Module = _layer_norm(c)
        self.fc = linear_classifier(c, num_classes)
        if aggregation:
            self.reduce = nn.ModuleList(nn.Linear(c, c // 4) for _ in range(1 + _AGGREGATED))
            self.fuse = nn.Linear(c, c)
        self.g_s = leaky(deconv(c, n), deconv(n, n), deconv(n, n), deconv(n, 3))
        self._init_weights()

    def _init_weights(self) -> None:
        """DeiT's for the Transformer; He's for g_a and g_s, whose latent would otherwise be lost in rounding."""
        for tensor in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(tensor, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                seen = float(math.prod(module.kernel_size) * module.in_channels)
                if isinstance(module, nn.ConvTranspose2d):  # each output pixel is reached by a share of the weights
                    seen /= math.prod(module.stride)
                nn.init.normal_(module.weight, std=nn.init.calculate_gain("leaky_relu", _SLOPE) / math.sqrt(seen))
                assert module.bias is not None
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    # -- images, latents -----------------------------------------------------------------------------------------

    @overload  # type: ignore[override]
    def forward(self, x: Latent, scales: None = None) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, scales: Tensor | None = None) -> ICATOutput | Tensor: ...
    def forward(self, x: Tensor | Latent, scales: Tensor | None = None) -> ICATOutput | Tensor:
        """Call :meth:`forward_images` or :meth:`forward_latents`.

        Args:
            x: images ``(B, 3, H, W)``; or latents, as a ``Latent`` or as a tensor ``(B, M, h, w)``. A tensor of three
                channels is taken for images, whatever ``M`` is.
            scales: of latents, not used.

        Returns:
            for images an :class:`ICATOutput`; for latents logits ``(B, num_classes)``. Call the two methods by name
            where the type should not depend on the input.

        Raises:
            ValueError, TypeError: neither images nor latents of this network.
        """
        return self.forward_images(x) if _is_image(x) else self.forward_latents(x, scales)

    def forward_latents(self, y_hat: Tensor | Latent, scales: Tensor | None = None) -> Tensor:
        """Classify latents.

        Args:
            y_hat: a ``Latent``, or a tensor ``(B, M, h, w)``.
            scales: not used.

        Returns:
            logits ``(B, num_classes)``.

        Raises:
            ValueError, TypeError: not latents of this network.
        """
        tokens = self._embed(self.check_input(y_hat, scales)[0])[1]
        return self.forward_head(self.norm(self.run_stages(tokens)))

    def forward_images(self, x: Tensor) -> ICATOutput:
        """Classify and rebuild images.

        Args:
            x: images ``(B, 3, H, W)``, RGB, in ``[0, 1]``, not normalized, any size from 1x1 (padded at the bottom and
                on the right by replication).

        Raises:
            ValueError, TypeError: not images.
        """
        latent, likelihoods = self._transmit(x)
        z_0, tokens = self._embed(latent.y_hat)
        early = self._run(tokens, 0, _AGGREGATED)
        logits = self.forward_head(self.norm(self._run(early[-1], _AGGREGATED, len(self.blocks))[-1]))
        height, width = latent.image_size
        x_hat = self._rebuild(z_0, early, latent.y_hat.shape)[..., :height, :width]
        return ICATOutput(x_hat, latent, likelihoods, logits)

    def forward_features(self, x: Tensor | Latent, scales: Tensor | None = None) -> Tensor:
        """Images ``(B, 3, H, W)`` or latents ``(B, M, h, w)`` -> tokens ``(B, 1 + h w, num_features)``, class first."""
        features: Tensor = self.norm(self.run_stages(self.forward_stem(x, scales)))
        return features

    def forward_stem(self, x: Tensor | Latent, scales: Tensor | None = None) -> Tensor:
        return self._embed(self._latent(x, scales))[1]

    def _latent(self, x: Tensor | Latent, scales: Tensor | None = None) -> Tensor:
        return self._transmit(x)[0].y_hat if _is_image(x) else self.check_input(x, scales)[0]

    def forward_intermediates(
        self,
        x: Tensor | Latent,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        *,
        scales: Tensor | None = None,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Outputs of the blocks, without the class token, at 1/16 of the image; the arguments are timm's.

        Args:
            x: images ``(B, 3, H, W)``, or latents ``(B, M, h, w)``.
            indices: which blocks: all twelve for ``None``, the last ``n``, or those listed.
            norm: put the maps through the final norm.
            stop_early: leave out the blocks behind the last of them; with ``intermediates_only`` they always are.
            output_fmt: ``"NCHW"``, ``(B, num_features, h, w)``, or ``"NLC"``, ``(B, h w, num_features)``.
            intermediates_only: return the maps alone.
            scales: of latents, not used.

        Returns:
            the maps in the order of the network; in front of them, unless ``intermediates_only``, the normalized tokens
            of the last block that was run, which is what ``forward_features`` returns for the last of all.

        Raises:
            ValueError, TypeError: no such block or format, or as ``forward``.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={output_fmt!r}: choose NCHW or NLC")
        taken = selected_stages(indices, len(self.feature_info))
        y_hat = self._latent(x, scales)
        end = 1 + max(taken) if stop_early or intermediates_only else len(self.feature_info)
        outputs = self._run(self._embed(y_hat)[1], 0, end)
        maps = [(self.norm(tokens) if norm else tokens)[:, 1:] for i, tokens in enumerate(outputs) if i in taken]
        if output_fmt == "NCHW":
            maps = [tokens.transpose(1, 2).unflatten(2, y_hat.shape[2:]) for tokens in maps]
        return maps if intermediates_only else (self.norm(outputs[-1]), maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks behind the last one that is wanted; the arguments are timm's.

        Args:
            indices: as in :meth:`forward_intermediates`.
            prune_norm: drop the final norm as well.
            prune_head: drop the classifier as well.

        Returns:
            the numbers of the blocks.

        Raises:
            ValueError: no such block.
        """
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_norm:
            self.norm = nn.Identity()
        return taken

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens -> logits ``(B, num_classes)``; with ``pre_logits`` the class token ``(B, num_features)``."""
        x = features[:, 0]
        return x if pre_logits else self.fc(x)

    def reconstruct(self, y_hat: Tensor | Latent) -> Tensor:
        """Latents to images, through the first three blocks where there is aggregation; differentiable.

        Args:
            y_hat: ``(B, M, h, w)``, or a ``Latent``.

        Returns:
            ``(B, 3, 16 h, 16 w)``, cropped to the ``image_size`` of a ``Latent``; RGB, nominally in ``[0, 1]``.

        Raises:
            ValueError: other channels than ``M``.
        """
        x_hat = self.synthesize(self.check_input(y_hat, None)[0])
        if isinstance(y_hat, Latent):
            height, width = y_hat.image_size
            return x_hat[..., :height, :width]
        return x_hat

    def check_input(self, y_hat: Tensor | Latent, scales: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        tensor = y_hat.y_hat if isinstance(y_hat, Latent) else y_hat
        if isinstance(tensor, Tensor) and (tensor.dim() != 4 or tensor.shape[1] != self.in_channels):
            raise ValueError(
                f"x has shape {tuple(tensor.shape)}, this network reads images (B, 3, H, W) in [0, 1] and latents "
                f"(B, {self.in_channels}, h, w): take a codec of {self.in_channels} latent channels, or build the "
                "network with in_channels of your codec's number"
            )
        return super().check_input(y_hat, scales)

    # -- parts of the forward pass -------------------------------------------------------------------------------

    def _transmit(self, x: Tensor) -> tuple[Latent, dict[str, Tensor]]:
        """Images to the latent that arrives, and likelihoods."""
        check_images(x)
        y_hat, scales, likelihoods = self._quantize(self.analyze(pad_to_multiple(x, self.latent_stride)))
        return Latent(y_hat, scales, (x.shape[-2], x.shape[-1])), likelihoods

    def _quantize(self, y: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        return y, None, {}

    def analyze(self, x: Tensor) -> Tensor:
        """Images ``(B, 3, 16 h, 16 w)`` to latents ``(B, M, h, w)``."""
        mean, std = (x.new_tensor(constants).view(3, 1, 1) for constants in (IMAGENET_MEAN, IMAGENET_STD))
        y: Tensor = self.g_a((x - mean) / std)
        return y

    def synthesize(self, y_hat: Tensor) -> Tensor:
        """Latents ``(B, M, h, w)`` to images ``(B, 3, 16 h, 16 w)``."""
        z_0, tokens = self._embed(y_hat)
        return self._rebuild(z_0, self._run(tokens, 0, _AGGREGATED) if self.aggregation else [], y_hat.shape)

    def _embed(self, y_hat: Tensor) -> tuple[Tensor, Tensor]:
        """``z_0`` as ``(B, h w, C)``, and the tokens that enter the first block."""
        z_0: Tensor = self.embed(y_hat.flatten(2).transpose(1, 2))
        tokens = torch.cat([self.cls_token.expand(z_0.shape[0], -1, -1), z_0], 1)
        return z_0, tokens + _resampled(self.pos_embed, _GRID, (y_hat.shape[2], y_hat.shape[3]))

    def _run(self, tokens: Tensor, start: int, end: int) -> list[Tensor]:
        """The outputs of blocks ``start`` to ``end - 1``, tokens ``(B, 1 + h w, C)`` each."""
        outputs = []
        for index in range(start, end):
            tokens = self.blocks[index](tokens)
            outputs.append(tokens)
        return outputs

    def _rebuild(self, z_0: Tensor, early: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        """``g_s`` of the aggregated features, from the outputs of the first blocks, for a latent of ``shape``."""
        z_f = z_0
        if self.aggregation:
            states = (z_0, *(tokens[:, 1:] for tokens in early))
            z_f = self.fuse(torch.cat([linear(z) for linear, z in zip(self.reduce, states, strict=True)], -1))
        mean, std = (z_f.new_tensor(constants).view(3, 1, 1) for constants in (IMAGENET_MEAN, IMAGENET_STD))
        grid = z_f.transpose(1, 2).reshape(shape[0], self.num_features, shape[2], shape[3])
        x_hat: Tensor = self.g_s(grid) * std + mean
        return x_hat

    # -- weights of other networks -------------------------------------------------------------------------------

    def load_timm(self, state_dict: Mapping[str, Tensor], *, classifier: bool = True) -> LoadedNames:
        """Start from a ViT or DeiT of pixels: its position embeddings, class token, blocks, norm and classifier.

        Args:
            state_dict: of timm's ``deit_small_patch16_224`` or ``vit_small_patch16_224`` (for another width: ``tiny``,
                ``base``). Its patch embedding has no counterpart; positions of another square grid are interpolated.
            classifier: copy the classifier too. With ``False`` the present one stays, for another number of classes.

        Returns:
            which tensors were filled here, which of ``state_dict`` have no place, and which here stay as they were.

        Raises:
            WeightsError: a tensor is missing or has another shape. Nothing has been copied then.
        """
        parts = ("cls_token", "pos_embed", "blocks.", "norm.", *(["fc."] if classifier else []))
        names = [(name, re.sub("^fc", "head", name)) for name in self.state_dict() if name.startswith(parts)]
        positions = state_dict.get("pos_embed")
        if positions is not None and positions.dim() == 3 and positions.shape[1] != self.pos_embed.shape[1]:
            side = math.isqrt(max(0, positions.shape[1] - 1))
            if side > 0 and side**2 == positions.shape[1] - 1:
                state_dict = {**state_dict, "pos_embed": _resampled(positions, (side, side), _GRID)}
        return load_named(
            self,
            state_dict,
            names,
            source="a ViT or DeiT of timm with 12 blocks and patches of 16 pixels",
            way_out="choose the one of this width, or pass classifier=False for another number of classes",
        )


def _is_image(x: Tensor | Latent) -> TypeGuard[Tensor]:
    return isinstance(x, Tensor) and x.dim() == 4 and x.shape[1] == 3


def _layer_norm(channels: int, **options: Any) -> nn.LayerNorm:
    return nn.LayerNorm(channels, eps=1e-6, **options)


def _resampled(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Position embeddings ``(1, 1 + h w, C)`` of one grid on another, as they are where the two are one.

    The class token keeps its own.
    """
    from timm.layers import resample_abs_pos_embed

    resampled: Tensor = resample_abs_pos_embed(positions, list(new), old_size=list(old))
    return resampled
