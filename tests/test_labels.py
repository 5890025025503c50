"""Logits to named classes."""

from __future__ import annotations

import pytest
import torch

from cdzoo.labels import class_names, top_labels


def test_names_and_identifiers() -> None:
    assert class_names({}, 2) == [("class 0", None), ("class 1", None)]
    assert class_names({"classes": ["a", "b"]}, 2) == [("a", None), ("b", None)]
    assert class_names({"classes": ["a", "b"]}, 3)[2] == ("class 2", None)
    both = [("x", "a"), ("y", "b")]
    assert class_names({"classes": ["a", "b"], "class_names": ["x", "y"]}, 2) == both
    assert class_names({"classes": ["a", "b"], "class_names": {"b": "y", "a": "x"}}, 2) == both


def test_the_most_probable_come_first() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0])
    probabilities = logits.double().softmax(0).tolist()
    labels = top_labels(logits, {"classes": ["n1", "n2", "n3"], "class_names": ["ant", "bee", "cat"]}, 2)
    assert labels == (("bee", probabilities[1], 1, "n2"), ("cat", probabilities[2], 2, "n3"))
    assert [label.number for label in top_labels(logits, {}, 9)] == [1, 2, 0]
    with pytest.raises(ValueError, match="not finite"):
        top_labels(torch.tensor([1.0, float("inf")]), {}, 1)
