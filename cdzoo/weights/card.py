"""The model card: what ``README.md`` says of a set of weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["model_card"]

_SECTIONS = {
    "data": "Data and terms",
    "recipe": "Recipe",
    "time": "Time spent",
    "limits": "Limits",
}
_FRONT_MATTER = ("license", "datasets", "tags")
_ELSEWHERE = ("title", "description", "metrics", "classes", "member")


def model_card(config: Mapping[str, Any], tensors: Mapping[str, Tensor], num_bytes: int) -> str:
    """Markdown with the YAML header that the Hub reads.

    Args:
        config: as it goes into ``config.json``. Of its ``meta`` these names have a place of their own, the others are
            listed at the end: ``title`` and ``description``; ``license`` (an SPDX name); ``datasets`` and ``tags``
            (lists); ``data`` (where it comes from and on what terms), ``recipe``, ``time`` (what training took) and
            ``limits``, each a text, a list or a mapping; ``metrics``, a mapping from names to values, or from datasets
            to such mappings; ``classes``, a list of names; ``member``, the name in the weights enum of what ships with
            the package.
        tensors: what goes into ``model.safetensors``; counted.
        num_bytes: the size of that file.
    """
    meta = dict(config["meta"])
    name, kind = config["builder"], config["kind"]
    title = meta.get("title") or (config["repo_id"] or name).rpartition("/")[2]
    parts = [_header(meta, name, kind), f"# {title}"]
    if meta.get("description"):
        parts.append(str(meta["description"]))
    parts.append(_facts(config, tensors, num_bytes))
    parts.append(f"## Use\n\n```python\n{_snippet(config)}\n```")
    if meta.get("metrics"):
        parts.append(f"## Metrics\n\n{_metrics(meta['metrics'])}")
    parts += [f"## {title}\n\n{_text(meta[key])}" for key, title in _SECTIONS.items() if meta.get(key)]
    rest = {k: v for k, v in meta.items() if k not in (*_SECTIONS, *_FRONT_MATTER, *_ELSEWHERE)}
    if rest:
        parts.append(f"## Further facts\n\n{_text(rest)}")
    return "\n\n".join(parts) + "\n"


def _header(meta: Mapping[str, Any], name: str, kind: str) -> str:
    # JSON is YAML: scalars and lists need no further quoting
    tags = ["compressed-domain", "image-compression" if kind == "codec" else "compressed-domain-vision", name]
    lines = {
        "license": meta.get("license") or "unknown",
        "library_name": "cdzoo",
        "tags": [*tags, *meta.get("tags", [])],
        "datasets": list(meta.get("datasets", [])),
        "metrics": sorted({m for m, _, _ in _rows(meta.get("metrics") or {})}),
    }
    body = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in lines.items() if value)
    return f"---\n{body}\n---"


def _facts(config: Mapping[str, Any], tensors: Mapping[str, Tensor], num_bytes: int) -> str:
    arguments = ", ".join(f"{k}={v!r}" for k, v in config["arguments"].items())
    count = sum(t.numel() for n, t in tensors.items() if not n.startswith("integer."))
    lines = [
        f"- built by `cdzoo.get_{config['kind']}({config['builder']!r})` with `{arguments}`",
        f"- {count:,} numbers, {num_bytes / 1e6:.1f} MB",
    ]
    if "fingerprint" in config:
        lines.append(
            f"- fingerprint `{config['fingerprint']}`: streams and networks that carry it belong to this codec"
        )
    elif config["codec"] is not None:
        codec = config["codec"]
        origin = codec["weights"] or (f"hf://{codec['repo_id']}@{codec['revision']}" if codec["repo_id"] else None)
        published = f", published as `{origin}`" if origin else ""
        lines.append(f"- reads the latents of the codec with fingerprint `{codec['fingerprint']}`{published}")
    classes = config["meta"].get("classes")
    if classes:
        lines.append(
            f"- {len(classes)} classes: {', '.join(map(str, classes[:10]))}{', ...' if len(classes) > 10 else ''}"
        )
    return "\n".join(lines)


def _snippet(config: Mapping[str, Any]) -> str:
    origin = config["repo_id"] or "path/to/this/folder"
    revision = f", revision={config['revision']!r}" if config["repo_id"] and config["revision"] != "main" else ""
    load = f"import cdzoo\n\n{config['kind']} = cdzoo.from_pretrained({origin!r}{revision})"
    if config["meta"].get("member"):
        builder, member = config["builder"], config["meta"]["member"]
        load = f"import cdzoo\n\n{config['kind']} = cdzoo.get_{config['kind']}({builder!r}, weights={member!r}).eval()"
    if config["kind"] == "codec":
        return f"{load}\nstreams = codec.compress(images)  # (B, 3, H, W) in [0, 1]\nlatent = codec.decompress(streams)"
    if "fingerprint" in config:  # a model with a codec inside
        coded = "streams = model.compress(images)  # (B, 3, H, W) in [0, 1]"
        return f"{load}\n{coded}\nlogits = model.from_streams(streams)"
    codec = config["codec"]
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


def _rows(metrics: Mapping[str, Any], dataset: str = "") -> list[tuple[str, str, Any]]:
    """Metric, dataset, value."""
    rows: list[tuple[str, str, Any]] = []
    for key, value in metrics.items():
        rows += _rows(value, str(key)) if isinstance(value, Mapping) else [(str(key), dataset, value)]
    return rows


def _metrics(metrics: Mapping[str, Any]) -> str:
    lines = [f"| {metric} | {dataset} | {value} |" for metric, dataset, value in _rows(metrics)]
    return "\n".join(["| metric | on | value |", "|---|---|---|", *lines])


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "\n".join(
            f"- {key}: {v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)}" for key, v in value.items()
        )
    if isinstance(value, list | tuple):
        return "\n".join(f"- {v}" for v in value)
    return str(value)
