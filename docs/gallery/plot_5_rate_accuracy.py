"""
Rate and accuracy
=================

The plot shows accuracy against bits per pixel for networks over latents and over decoded images.
All networks were trained in the same way at an eighth of their width. The points come from the raw files in
``examples/studies/results``; :doc:`the page of results </results>` describes the trainings.
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt

RESULTS = Path("../../examples/studies/results")  # from this script's folder in a checkout

# %%
# Each file is one training, with its command.
runs = []
for path in sorted(RESULTS.glob("*.json")):
    found = json.loads(path.read_text(encoding="utf-8"))
    # one recipe on one core; trainings on an accelerator had other sizes and cannot be compared
    if path.stem.startswith("head-") and "-seed" not in path.stem and "ms-ssim" not in path.stem:
        runs.append({**found["metrics"], "run": found.get("run", path.stem), "name": path.stem})
print(f"{len(runs)} results with a top-1 accuracy")


# %%
# The names in the results give the network; bits per pixel are of whole files, headers included.
def network(run):
    """The value of ``--model`` in a run's command, and the options that matter."""
    words = run["run"].split()
    name = words[words.index("--model") + 1] if "--model" in words else run["name"]
    few = f", {words[words.index('--channels') + 1]} channels" if "--channels" in words else ""
    said = {"--start": ", from a ResNet-50", "--no-mirror": ", unmirrored"}
    return name + few + "".join(text for option, text in said.items() if option in words)


def percent(run):
    """Top-1 in percent, whichever of the two the file has."""
    return 100 * run["top1"] if run["top1"] <= 1 else run["top1"]


# %%
# One panel for each codec. A network that was measured at two rates or more is a curve, all others are gray points.
CODECS = sorted({run["codec"] for run in runs if run.get("bpp") and run.get("codec")})
figure, panels = plt.subplots(max(1, len(CODECS)), 1, figsize=(6.4, 3.2 * len(CODECS)), sharex=True, sharey=True,
                              layout="constrained", squeeze=False)  # fmt: skip
for axes, codec in zip(panels[:, 0], CODECS, strict=True):
    own = [run for run in runs if run.get("codec") == codec and run.get("bpp")]
    single = []
    for name, reads in sorted({(network(run), run["reads"]) for run in own}):
        points = sorted((run["bpp"], percent(run)) for run in own if (network(run), run["reads"]) == (name, reads))
        if len(points) == 1:
            single += points
            continue
        style = {"marker": "s", "linestyle": "--"} if reads == "decoded" else {"marker": "o"}
        axes.plot(*zip(*points, strict=True), markersize=5, label=f"{name}, on {reads}", **style)
    if single:
        axes.plot(*zip(*single, strict=True), ".", color="gray", label="networks at one rate")
    axes.set(title=codec, ylabel="top-1 (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
panels[-1, 0].set_xlabel("bits per pixel")

# %%
# The cost of the networks in multiply-adds. A network on pixels needs a decoder as well, which is not counted.
figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
for kind, marker in {"latents": "o", "decoded": "s", "original": "^"}.items():
    chosen = [run for run in runs if run.get("reads") == kind and run.get("mmacs")]
    axes.scatter([run["mmacs"] for run in chosen], [percent(run) for run in chosen], marker=marker, s=22, label=kind)
if not any(run.get("mmacs") for run in runs):
    axes.text(0.5, 0.5, "no costs in examples/studies/results yet", ha="center", transform=axes.transAxes)
else:
    axes.legend(fontsize=8, title="the network reads", title_fontsize=8)
axes.set(xlabel="million multiply-adds of the network", ylabel="top-1 (%)", title="accuracy over cost")
axes.grid(alpha=0.3)
