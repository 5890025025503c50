"""The model card: ``README.md`` of a set of weights, with the metadata that the Hub reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cdzoo.weights.folder import INTEGER_PREFIX

__all__ = ["model_card"]

_SECTIONS = {"data": "Data and terms", "recipe": "Recipe", "time": "Time spent", "limits": "Limits"}
_IN_METADATA = ("license", "datasets", "tags", "base_model")
_ELSEWHERE = ("title", "description", "metrics", "classes", "member")


def model_card(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], num_bytes: int, *, pipeline_tag: str | None = None
) -> str:
    """The card as Markdown behind a YAML header.

    Args:
        config: ``config.json``. Of its ``meta`` these names have a place of their own, the others are listed at the
            end: ``title`` and ``description``; ``license`` (an SPDX name); ``datasets`` and ``tags`` (lists);
            ``base_model``, by default the repository of the codec; ``data`` (where it comes from and on what terms),
            ``recipe``, ``time`` (of training) and ``limits``, each a text, a list or a mapping; ``metrics``, a mapping
            from names to values, or from data sets to such mappings; ``classes``, a list of names; ``member``, the
            name in the weights enum of weights that ship with the package.
        tensors: the content of ``model.safetensors``; counted.
        num_bytes: the size of that file.
        pipeline_tag: the task, in the Hub's words.
    """
    meta = dict(config["meta"])
    title = meta.get("title") or (config["repo_id"] or config["builder"]).rpartition("/")[2]
    metrics = list(_rows(meta.get("metrics") or {}))
    parts = [f"---\n{_metadata(config, meta, title, metrics, pipeline_tag)}\n---", f"# {title}"]
    if meta.get("description"):
        parts.append(str(meta["description"]))
    parts += [_facts(config, tensors, num_bytes), f"## Use\n\n```python\n{_snippet(config)}\n```"]
    if metrics:
        lines = [f"| {metric} | {dataset} | {value} |" for metric, dataset, value in metrics]
        parts.append("\n".join(["## Metrics\n\n| metric | on | value |\n|---|---|---|", *lines]))
    parts += [f"## {heading}\n\n{_text(meta[key])}" for key, heading in _SECTIONS.items() if meta.get(key)]
    rest = {k: v for k, v in meta.items() if k not in (*_SECTIONS, *_IN_METADATA, *_ELSEWHERE)}
    if rest:
        parts.append(f"## Further facts\n\n{_text(rest)}")
    return "\n\n".join(parts) + "\n"


def _metadata(
    config: Mapping[str, Any],
    meta: Mapping[str, Any],
    title: str,
    metrics: list[tuple[str, str, Any]],
    pipeline_tag: str | None,
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    datasets, codec = list(meta.get("datasets") or []), config.get("codec") or {}
    results = [
        EvalResult(
            task_type=pipeline_tag or "other",
            dataset_type=_dataset_id(dataset, datasets),
            dataset_name=dataset or "unknown",
            metric_type=metric,
            metric_value=value,
        )
        for metric, dataset, value in metrics
    ]
    data = ModelCardData(
        license=meta.get("license") or "unknown",
        library_name="cdzoo",
        pipeline_tag=pipeline_tag,
        tags=["compressed-domain", config["builder"], *(meta.get("tags") or [])],
        datasets=datasets or None,
        metrics=sorted({metric for metric, _, _ in metrics}) or None,
        base_model=meta.get("base_model") or codec.get("repo_id"),
        model_name=title if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml()).rstrip()


def _facts(config: Mapping[str, Any], tensors: Mapping[str, Tensor], num_bytes: int) -> str:
    arguments = ", ".join(f"{k}={v!r}" for k, v in config["arguments"].items())
    count = sum(t.numel() for n, t in tensors.items() if not n.startswith(INTEGER_PREFIX))
    lines = [
        f"- built by `cdzoo.get_{config['kind']}({config['builder']!r})` with `{arguments}`",
        f"- {count:,} numbers, {num_bytes / 1e6:.1f} MB",
    ]
    codec, classes = config.get("codec"), config["meta"].get("classes")
    if "fingerprint" in config:
        lines.append(
            f"- fingerprint `{config['fingerprint']}`: streams and networks that carry it belong to this codec"
        )
    elif codec is not None:
        origin = codec["weights"] or (f"hf://{codec['repo_id']}@{codec['revision']}" if codec["repo_id"] else None)
        published = f", published as `{origin}`" if origin else ""
        lines.append(f"- reads the latents of the codec with fingerprint `{codec['fingerprint']}`{published}")
    if classes:
        lines.append(
            f"- {len(classes)} classes: {', '.join(map(str, classes[:10]))}{', ...' if len(classes) > 10 else ''}"
        )
    return "\n".join(lines)


def _snippet(config: Mapping[str, Any]) -> str:
    kind, codec = config["kind"], config.get("codec")
    origin = config["repo_id"] or "path/to/this/folder"
    revision = f", revision={config['revision']!r}" if config["repo_id"] and config["revision"] != "main" else ""
    load = f"import cdzoo\n\n{kind} = cdzoo.from_pretrained({origin!r}{revision})"
    if config["meta"].get("member"):
        builder, member = config["builder"], config["meta"]["member"]
        load = f"import cdzoo\n\n{kind} = cdzoo.get_{kind}({builder!r}, weights={member!r}).eval()"
    if kind == "codec":
        return f"{load}\nstreams = codec.compress(images)  # (B, 3, H, W) in [0, 1]\nlatent = codec.decompress(streams)"
    if "fingerprint" in config:  # a model with a codec inside
        coded = "streams = model.compress(images)  # (B, 3, H, W) in [0, 1]"
        return f"{load}\n{coded}\nlogits = model.from_streams(streams)"
    if codec is None:
        reads_files = (config["transforms"] or {}).get("type") == "CoefficientTransform"
        use = '\ncoefficients = model.transforms(cdzoo.codecs.read_jpeg("photo.jpg"))\nlogits = model(coefficients)'
        return load + use if reads_files else load
    if codec["weights"]:
        codec_line = f"codec = cdzoo.get_weight({codec['weights']!r}).build_codec()"
    elif codec["repo_id"]:
        codec_line = f"codec = cdzoo.from_pretrained({codec['repo_id']!r}, revision={codec['revision']!r})"
    else:
        codec_line = f"codec = ...  # the codec with fingerprint {codec['fingerprint']}"
    return f"{load}\n{codec_line}\nlogits = cdzoo.compose(codec, model).from_streams(streams)"


def _dataset_id(dataset: str, known: list[str]) -> str:
    """The identifier of a data set that is described in words: one of ``meta["datasets"]``, or made of the words."""
    words = dataset.lower()
    made = re.sub("[^a-z0-9]+", "-", words).strip("-")
    return next((name for name in known if name.lower() in words), made or "unknown")


def _rows(metrics: Mapping[str, Any], dataset: str = "") -> list[tuple[str, str, Any]]:
    """Metric, data set, value."""
    rows: list[tuple[str, str, Any]] = []
    for key, value in metrics.items():
        rows += _rows(value, str(key)) if isinstance(value, Mapping) else [(str(key), dataset, value)]
    return rows


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "\n".join(
            f"- {key}: {v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)}" for key, v in value.items()
        )
    if isinstance(value, list | tuple):
        return "\n".join(f"- {v}" for v in value)
    return str(value)
