"""Draws the figures of ``results/``: ``python -m studies.jpeg_domain.plot`` (needs matplotlib)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from . import RESULTS

COLORS = {"asm": "tab:blue", "apx": "tab:orange"}


def draw_relu_rmse(found: dict[str, Any], path: Path) -> None:
    """Figure 4a."""
    figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
    for kind, color in COLORS.items():
        axes.plot(range(1, 16), found[kind], "o-", color=color, label=kind.upper(), markersize=4)
    axes.set(xlabel="spatial frequencies", ylabel="RMSE", title=f"Error of one ReLU, {found['blocks']:,} blocks")
    axes.legend()
    save(figure, path)


def line(rows: list[dict[str, Any]], how: str, kind: str) -> tuple[list[int], list[float], list[float], list[float]]:
    """Numbers of frequencies, and the mean, least and greatest accuracy over the networks."""
    points: dict[int, list[float]] = {}
    for row in rows:
        if row["how"] == how and row["relu"] in (kind, "exact"):
            points.setdefault(row["frequencies"], []).append(row["top1"])
    counts = sorted(points)
    low, high = ([f(points[n]) for n in counts] for f in (min, max))
    return counts, [mean(points[n]) for n in counts], low, high


def draw_accuracy(found: dict[str, Any], path: Path) -> None:
    """Figures 4b and 4c, side by side."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    steps = found["steps"]
    plans = (
        ("After conversion", {"converted": ("-", ""), "recalibrated": ("--", ", batch norm recalibrated")}),
        (
            "After training with the approximation",
            {
                "adapted": ("-", f", {steps['adapted']} more steps"),
                "scratch": (":", f", {steps['scratch']} steps from scratch"),
            },
        ),
    )
    for axes, (title, styles) in zip(panels, plans, strict=True):
        for how, (style, suffix) in styles.items():
            for kind, color in COLORS.items():
                counts, middle, low, high = line(found["accuracy"], how, kind)
                axes.plot(counts, middle, style, marker=".", color=color, label=kind.upper() + suffix)
                axes.fill_between(counts, low, high, color=color, alpha=0.2, linewidth=0)
        axes.set(xlabel="spatial frequencies", title=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    panels[0].set_ylabel(f"top-1 (%), {found['files']} validation files")
    save(figure, path)


def draw_throughput(found: dict[str, Any], path: Path) -> None:
    """Figure 5."""
    figure, panels = plt.subplots(1, 2, figsize=(9.5, 3.2), sharey=True, layout="constrained")
    for axes, kind in zip(panels, ("inference", "training"), strict=True):
        times = found["milliseconds"][kind]
        speeds = [1000 * found["batch"] / value for value in times.values()]
        bars = axes.barh(list(times), speeds, color=["tab:gray" if "pixels" in name else "tab:blue" for name in times])
        axes.bar_label(bars, labels=[f" {speed:,.0f}" for speed in speeds], fontsize=8)
        axes.set(title=kind.capitalize(), xlabel="images per second, one core")
        axes.margins(x=0.15)
    panels[0].invert_yaxis()
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Writes a small PNG that two runs write alike."""
    figure.savefig(path, dpi=75, metadata={"Software": None})
    plt.close(figure)
    print(f"written to {path}")


def main(arguments: list[str] | None = None) -> None:
    """Draw what there are results of."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files; gets the figures")
    args = parser.parse_args(arguments)
    drawings = {"relu_rmse": draw_relu_rmse, "accuracy": draw_accuracy, "throughput": draw_throughput}
    for name, draw in drawings.items():
        source = args.results / f"{name}.json"
        if source.exists():
            draw(json.loads(source.read_text(encoding="utf-8")), source.with_suffix(".png"))


if __name__ == "__main__":
    main()
