"""The networks of table 3 of Deng & Karam (arXiv:2305.08000, section 5.7), by the names that the recipe takes.

Each name is ``experiment=setting``; the setting that the paper chose is that of :func:`cdzoo.models.fa_cresnet39`.
:mod:`cdzoo.models.fa_ablations` builds the others and says how it fills in the details that the table leaves open.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from cdzoo.models import fa_cresnet39_ablation, fa_resnet50

ABLATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "input": {"y_hat": {"use_scales": False}},
    "effect": {"fa_resnet": {}},
    "module": {"cau": {"parts": "attention"}, "feu": {"parts": "enhancement"}},
    "position": {"post": {"fa_position": "post"}},
    "pooling": {
        "max": {"pooling": "max"},
        "avg": {"pooling": "avg"},
        "max&avg": {"pooling": "max+avg"},
        "1att": {"pooling": "shared"},
    },
    "cau_position": {name: {"position": name} for name in ("skip", "inner", "post")},
    "cau": {name: {"transform": name} for name in ("scale", "bias")},
    "bottleneck": {"1fc": {"reduction": "1fc"}, **{f"r{r}": {"reduction": r} for r in (1, 2, 4, 8, 32, 64)}},
    "feu": {
        name: {"num_convs": tuple(map(int, name.split("/")))}
        for name in ("2/2/2", "1/2/3", "3/3/3", "2/3/4", "4/4/4", "3/4/5", "5/5/5", "4/5/6")
    },
}
NAMES = [f"{experiment}={setting}" for experiment, settings in ABLATIONS.items() for setting in settings]


def build_ablation(name: str, *, num_convs: tuple[int, int, int], **sizes: Any) -> nn.Module:
    """A network of table 3; ``effect=fa_resnet`` reads images, all others latents.

    Args:
        name: one of :data:`NAMES`.
        num_convs: of the enhancement units in layers 2, 3 and 4, unless the name says it; layer 1 of the pixel network
            has one less than layer 2.
        sizes: ``in_channels``, ``num_classes``, ``width``, ``latent_stride``.
    """
    experiment, _, setting = name.partition("=")
    if setting not in ABLATIONS.get(experiment, {}):
        raise ValueError(f"no ablation {name!r} in table 3; known are {', '.join(NAMES)}.")
    if experiment == "effect":
        pixel = {key: sizes[key] for key in ("num_classes", "width") if key in sizes}
        return fa_resnet50(num_convs=(num_convs[0] - 1, *num_convs), **pixel)
    return fa_cresnet39_ablation(**{"num_convs": num_convs, **sizes, **ABLATIONS[experiment][setting]})
