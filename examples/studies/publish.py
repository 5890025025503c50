"""Turn runs into folders for the Hub: weights of 16 bits, configuration, and a card with measured figures.

    python -m studies.publish --home runs/zoo --imagenette imagenette --kodak kodak --camvid camvid --to folder
    python -m studies.publish ... --to hub 'head-*' 'segmenter-*' --all     # runs that are not packaged as well

``cdzoo/pretrained`` is the folder of the packaged weights; ``cdzoo.push_to_hub`` uploads others. The figures of a
network are those of the rounded weights, measured from bits (``evaluate.py``), so codecs come before their networks.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from data import list_classes, thinned
from evaluate import Here, codec_metrics, measure

import cdzoo
from cdzoo.codecs import Codec
from cdzoo.weights.folder import WeightsFolder

from .plan import PLAN, Planned
from .run import is_done

WNIDS = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
CAMVID = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
IMAGENETTE_TERMS = [
    "8,547 of the 9,469 training images of Imagenette v2 (ten ImageNet classes, 224x224 JPEG at quality 75); ImageNet's"
    " terms apply: research use.",
    "Held out: files whose name's SHA-256 starts with eight hex digits divisible by ten (922 images). They chose "
    "nothing: figures are of the last step.",
]
CAMVID_TERMS = [
    "367 training images of CamVid (Brostow et al. 2009, in the form of Badrinarayanan et al.'s SegNet, 480x360 pixels,"
    " 11 classes), for research use; the 101 validation images chose nothing. It starts from a classifier of "
    "Imagenette, to which ImageNet's terms apply.",
]


class Shipped(NamedTuple):
    """The facts of a card that are not measured.

    Attributes:
        run: name in ``plan.py``.
        folder: in ``cdzoo/pretrained``, and repository on the Hub.
        member: of the weights enum.
        title, description, limits: for the card.
    """

    run: str
    folder: str
    member: str
    title: str
    description: str
    limits: tuple[str, ...] = ()


SMALL = (
    "Trained for minutes on one CPU core, at a fraction of the paper's width: a proof of the path, not of its figures."
)
QUARTER = "Trained for minutes, at a quarter of the paper's width, on 8,547 images: far from the paper's accuracy."
AT_224 = "Made for photographs whose shorter side is near 224 pixels: elsewhere objects have a scale it has not seen."
AT_128 = (
    "Made for photographs whose shorter side is near 128 pixels: bring yours to that before `codec.compress`; at other "
    "sizes objects have a scale that the network has not seen."
)
TEN = "Ten classes only: a photograph of anything else is still given one of them."
SHIPPED = [
    Shipped(
        "codec-torfason2018", "torfason2018-c16-n32-imagenette", "IMAGENETTE_C16_N32",
        "Torfason et al.'s autoencoder, 16 channels, N=32",
        "A small `torfason2018` codec at the paper's middle operating point: 16 channels of 6 levels, stride 8.",
        ("One rate only. The paper's codec is four times as wide and was trained for 600,000 steps on ImageNet.",),
    ),
    Shipped(
        "codec-choi2019", "choi2019-n48-m64-imagenette", "IMAGENETTE_N48_M64",
        "Choi et al.'s autoencoder with Wang et al.'s rate term, N=48, 64 channels",
        "A small `choi2019` codec, trained with the logarithm of the latent's variance in place of a rate.",
        ("One rate only, and a quarter of the paper's channels. It starts from the packaged scale hyperprior, whose "
         "transforms have the same form.",),
    ),
    Shipped(
        "codec-mbt2018-mean", "mbt2018-mean-n48-m64-imagenette", "IMAGENETTE_N48_M64",
        "Mean-scale hyperprior, N=48, M=64, about 0.38 bpp",
        "A small `mbt2018_mean` codec. It starts from the packaged scale hyperprior.",
        ("One rate only.",),
    ),
    Shipped(
        "codec-low", "bmshj2018-hyperprior-n48-m64-low-imagenette", "IMAGENETTE_N48_M64_LOW",
        "Scale hyperprior, N=48, M=64, about 0.14 bpp",
        "The lowest rate of three. It starts from the packaged codec of about 0.34 bits per pixel.",
    ),
    Shipped(
        "codec-high", "bmshj2018-hyperprior-n48-m64-high-imagenette", "IMAGENETTE_N48_M64_HIGH",
        "Scale hyperprior, N=48, M=64, about 0.5 bpp",
        "The highest rate of three. It starts from the packaged codec of about 0.34 bits per pixel.",
    ),
    Shipped(
        "codec-ms-ssim", "bmshj2018-hyperprior-n48-m64-ms-ssim-imagenette", "IMAGENETTE_N48_M64_MS_SSIM",
        "Scale hyperprior for MS-SSIM, N=48, M=64",
        "Trained for MS-SSIM, as the codecs of Deng and Karam are. It starts from the packaged codec, which is trained "
        "for the squared error.",
    ),
    Shipped(
        "wide-torfason2018-cresnet39", "cresnet39-w025-torfason2018-imagenette", "IMAGENETTE_W025",
        "cResNet-39, width 1/4, Imagenette, over Torfason et al.'s latents",
        "A small `cresnet39` that tells ten ImageNet classes apart from the latents of a codec of stride 8.",
        (QUARTER, TEN, AT_224),
    ),
    Shipped(
        "wide-choi2019-resnet41", "resnet41-w025-choi2019-imagenette", "IMAGENETTE_W025",
        "ResNet-41, width 1/4, Imagenette, over Choi et al.'s latents",
        "A small `resnet41` that tells ten ImageNet classes apart from the latents of a codec of stride 16.",
        (QUARTER, TEN, AT_224),
    ),
    Shipped(
        "head-hyperprior-mobilenet_v2_45", "mobilenet-v2-45-w05-imagenette", "IMAGENETTE_W05",
        "MobileNetV2-45, width 1/2, Imagenette",
        "A small `mobilenet_v2_45` that tells ten ImageNet classes apart from the latents of the packaged hyperprior.",
        (SMALL, TEN, AT_128),
    ),
    Shipped(
        "segmenter-torfason2018-latents", "cresnet39-d-w0125-torfason2018-camvid", "CAMVID_W0125",
        "cResNet-39-d, width 1/8, CamVid, over Torfason et al.'s latents",
        "A small `cresnet39_d` that labels street scenes from the latents of a codec of stride 8.",
        (SMALL, "Made for street scenes of 240x180 pixels, half the size that CamVid has in this form."),
    ),
]  # fmt: skip
"""What goes into the package, codecs first."""


def source_of(planned: Planned, home: Path) -> Path | None:
    """The folder of weights that a run wrote, where it wrote one."""
    found = [home / planned.name / name for name in ("codec", "classifier", "segmenter", "icat")]
    return next((f for f in found if (f / "config.json").exists()), None)


def default_entry(planned: Planned) -> Shipped:
    """For runs that do not ship: what there is to say without knowing them."""
    return Shipped(planned.name, f"{planned.name}-imagenette", "", planned.name, "A run of `examples/studies/plan.py`.")


def card(entry: Shipped, planned: Planned, result: dict[str, Any], inherited: dict[str, Any]) -> dict[str, Any]:
    """Everything but the metrics."""
    scenes = "{camvid}" in planned.arguments
    meta: dict[str, Any] = {"title": entry.title, "description": entry.description, "license": "other"}
    meta |= {"member": entry.member} if entry.member else {}
    meta["datasets"] = ["camvid", "imagenette"] if scenes else ["imagenette"]
    if scenes:
        meta |= {"classes": list(CAMVID), "input": {"reads": "latents", "resize": 0.5}}
    elif inherited.get("classes"):
        wnids = inherited["classes"]
        meta |= {"classes": [WNIDS.get(c, c) for c in wnids], "wnids": wnids}
        size, crop = (64, 64) if planned.script.endswith("icat2022.py") else (128, 112)
        meta["input"] = inherited.get("input") or {"reads": "latents", "size": size, "crop": crop}
    meta["data"] = CAMVID_TERMS if scenes else IMAGENETTE_TERMS
    folders = {"home": "runs/zoo", "cache": "runs/zoo/cache"} | {n: n for n in ("kodak", "camvid")}
    command = planned.arguments.format(data="imagenette", **folders)
    meta["recipe"] = f"`examples/{planned.script} {command}`: {result['steps']} steps."
    meta["time"] = f"{result['minutes']:.0f} minutes{_where(planned, result['machine'])}; seed 0."
    meta["limits"] = list(entry.limits or (SMALL,))
    return meta


def _where(planned: Planned, machine: dict[str, Any]) -> str:
    if "accelerator" in machine:
        return f" on one {machine['accelerator']} that other trainings shared"
    clock = " of one core's time" if "--cpu-clock" in planned.arguments and machine["threads"] == 1 else ""
    return f"{clock} on an x86-64 processor, no accelerator"


def publish(entry: Shipped, args: argparse.Namespace) -> dict[str, Any] | None:
    """Write one folder, measure it, and write the figures into its card."""
    planned = next(p for p in PLAN if p.name == entry.run)
    source = source_of(planned, args.home) if is_done(planned, args.home) else None
    if source is None:
        return None
    module = cdzoo.from_pretrained(source).eval()
    result = json.loads((args.home / planned.name / "result.json").read_text(encoding="utf-8"))
    meta = card(entry, planned, result, WeightsFolder.from_path(source).meta)
    folder, codec = args.to / entry.folder, None
    if not isinstance(module, Codec):
        fingerprint = getattr(module, "codec_fingerprint", None)
        codec = codec_of(fingerprint, args) if fingerprint else None
    more = {"dtype": torch.float16, "codec": codec, "repo_id": f"cdzoo/{entry.folder}"}
    cdzoo.save_pretrained(module, folder, meta=meta, **more)
    written, data = WeightsFolder.from_path(folder), vars(args)
    meta["metrics"] = measure(written, data, codec)
    if written.config["kind"] == "codec":
        files = [file for file, _ in thinned(list_classes(args.imagenette)[1]["val"], 200)]
        name = f"Imagenette validation, {len(files)} of its images"
        meta["metrics"][name] = codec_metrics(Here(), cdzoo.from_pretrained(folder), files)
    cdzoo.save_pretrained(cdzoo.from_pretrained(folder), folder, meta=meta, **more)
    return dict(meta["metrics"])


def codec_of(fingerprint: str, args: argparse.Namespace) -> Codec:
    """The codec of a network: packaged, written before, or of a run."""
    for name in cdzoo.list_codecs(pretrained=True):
        for member in cdzoo.get_model_weights(name):
            if member.source.config.get("fingerprint") == fingerprint:
                return cdzoo.get_codec(name, weights=member)
    for config in [*args.to.glob("*/config.json"), *args.home.glob("*/codec/config.json")]:
        if json.loads(config.read_text(encoding="utf-8")).get("fingerprint") == fingerprint:
            found = cdzoo.from_pretrained(config.parent)
            assert isinstance(found, Codec)
            return found
    raise SystemExit(f"no codec with fingerprint {fingerprint} ships, or is in {args.to} or {args.home}.")


def main() -> None:
    """Write folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("runs", nargs="*", default=["*"], metavar="PATTERN", help="names of runs")
    add("--home", type=Path, default=Path("runs/zoo"))
    add("--to", type=Path, required=True, help="folder of the folders")
    add("--all", action="store_true", help="runs that do not ship too")
    for data in ("imagenette", "kodak", "cifar10", "camvid"):
        add(f"--{data}", type=Path)
    args = parser.parse_args()
    entries = list(SHIPPED)
    if args.all:
        known = {entry.run for entry in entries}
        entries += [default_entry(p) for p in PLAN if p.name not in known]
    for entry in entries:
        if any(fnmatch.fnmatch(entry.run, pattern) for pattern in args.runs):
            found = publish(entry, args)
            print(f"{entry.run}: {'no weights there' if found is None else json.dumps(found)}", flush=True)


if __name__ == "__main__":
    main()
