"""Logits to named classes with probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Label", "class_names", "top_labels"]


class Label(NamedTuple):
    """One class of a network and its probability.

    Attributes:
        name: the class's name for people, ``"class 7"`` where the weights name none.
        probability: in ``[0, 1]``.
        number: the class's number, an index of the logits.
        id: its identifier where the weights have one beside the name, such as a WordNet ID; otherwise ``None``.
    """

    name: str
    probability: float
    number: int
    id: str | None = None


def class_names(meta: Mapping[str, Any], num_classes: int) -> list[tuple[str, str | None]]:
    """Each class's name and, where there is one beside the name, its identifier.

    Args:
        meta: the metadata of weights. ``meta["classes"]`` lists names or identifiers; ``meta["class_names"]`` lists
            names in the same order, or maps identifiers to names. A list of another length is ignored.
        num_classes: number of logits.
    """
    classes, names = meta.get("classes"), meta.get("class_names")
    if not isinstance(classes, list | tuple) or len(classes) != num_classes:
        classes = None
    if isinstance(names, Mapping):
        names = None if classes is None else [names.get(c, c) for c in classes]
    if not isinstance(names, list | tuple) or len(names) != num_classes:
        names = classes
    if names is None:
        return [(f"class {i}", None) for i in range(num_classes)]
    if classes is None or classes is names:
        return [(str(name), None) for name in names]
    return [(str(name), str(own)) for name, own in zip(names, classes, strict=True)]


def top_labels(logits: Tensor, meta: Mapping[str, Any], count: int) -> tuple[Label, ...]:
    """The most probable classes, best first.

    Args:
        logits: ``(num_classes,)``, of one image.
        meta: as for :func:`class_names`.
        count: number of classes; a network with fewer gives fewer.

    Raises:
        ValueError: logits that are not finite.
    """
    if not logits.isfinite().all():
        raise ValueError("the network's logits are not finite; check its weights and dtype")
    names = class_names(meta, len(logits))
    best = logits.double().softmax(0).topk(min(count, len(logits)))
    return tuple(
        Label(names[i][0], p, i, names[i][1]) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    )
