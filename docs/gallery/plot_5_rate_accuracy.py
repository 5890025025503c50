"""
Rate and accuracy
=================

The plot shows accuracy against bits per pixel for networks over latents, over decoded images, and over original images.
All networks were trained in the same way at an eighth of their width. The points come from the raw files in
``examples/studies/results``; :doc:`the page of results </results>` describes the trainings.
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt

RESULTS = Path("../../examples/studies/results")  # from this script's folder in a checkout

# %%
# Each file is one training, with its command. Runs of one network on latents of codecs at several rates make a curve.
runs = []
for path in sorted(RESULTS.glob("*.json")):
    found = json.loads(path.read_text(encoding="utf-8"))
    # one recipe on one core; what an accelerator trained, at other sizes, is not to be compared with it
    if path.stem.startswith("head-") and "-seed" not in path.stem:
        runs.append({**found["metrics"], "run": found.get("run", path.stem), "name": path.stem})
print(f"{len(runs)} results with a top-1 accuracy")


# %%
# The names in the results give the network; bits per pixel are of whole files, headers included.
def network(run):
    """The value of ``--model`` in a run's command, with what else sets it apart."""
    words = run["run"].split()
    name = words[words.index("--model") + 1] if "--model" in words else run["name"]
    few = f", {words[words.index('--channels') + 1]} channels" if "--channels" in words else ""
    said = {"--start": ", from a ResNet-50", "--no-mirror": ", unmirrored"}
    return name + few + "".join(text for option, text in said.items() if option in words)


def percent(run):
    """Top-1 in percent, whichever of the two the file has."""
    return 100 * run["top1"] if run["top1"] <= 1 else run["top1"]


MARKERS = {"latents": "o", "decoded": "s", "original": "^"}
figure, axes = plt.subplots(figsize=(8, 4.4), layout="constrained")
for name in sorted({network(run) for run in runs}):
    for kind, marker in MARKERS.items():
        chosen = [run for run in runs if network(run) == name and run.get("reads") == kind]
        if kind == "original":
            for run in chosen:
                axes.axhline(percent(run), linestyle=":", linewidth=1, color="gray")
                axes.annotate(f"{name}, originals", (1, percent(run)), xycoords=("axes fraction", "data"),
                              ha="right", va="bottom", fontsize=7, color="gray")  # fmt: skip
            continue
        for codec in sorted({run.get("codec") for run in chosen if run.get("bpp")}, key=str):
            own = sorted((run["bpp"], percent(run)) for run in chosen if run.get("codec") == codec and run.get("bpp"))
            style = "-" if len(own) > 1 else ""
            axes.plot(*zip(*own, strict=True), style, marker=marker, markersize=5, linewidth=1,
                      label=f"{name} on {kind} of {codec}")  # fmt: skip
if not runs:
    axes.text(0.5, 0.5, "no results in examples/studies/results yet", ha="center", transform=axes.transAxes)
axes.set(xlabel="bits per pixel", ylabel="top-1 (%)", title="accuracy over rate")
axes.grid(alpha=0.3)
if axes.get_legend_handles_labels()[0]:
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))

# %%
# And what the networks themselves cost, as far as the results say it: multiply-adds behind the decoder, or the
# latent. A network on pixels needs the decoder's besides.
figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
for kind, marker in MARKERS.items():
    chosen = [run for run in runs if run.get("reads") == kind and run.get("mmacs")]
    axes.scatter([run["mmacs"] for run in chosen], [percent(run) for run in chosen], marker=marker, s=22, label=kind)
if not any(run.get("mmacs") for run in runs):
    axes.text(0.5, 0.5, "no costs in examples/studies/results yet", ha="center", transform=axes.transAxes)
else:
    axes.legend(fontsize=8, title="the network reads", title_fontsize=8)
axes.set(xlabel="million multiply-adds of the network", ylabel="top-1 (%)", title="accuracy over cost")
axes.grid(alpha=0.3)
