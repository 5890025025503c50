"""Measure weights again from bits, and compare the figures with their cards.

    evaluate.py --imagenette imagenette --kodak kodak --cifar10 cifar10_jpeg --camvid camvid --imagenet photographs
    evaluate.py --imagenette imagenette Torfason2018_Weights.DEFAULT path/to/a/folder            # some

Networks that read latents are measured from bits: images are compressed into ``.cdz`` streams, which go through
``decompress`` and the network. Nothing is downloaded. A figure is marked if it differs from its card by more than half
a point (top-1, top-5, mean intersection over union), 0.05 dB, or one percent of a rate; the exit status is then 1.
Weights whose data set was not given are skipped, and a line says so.

Figures are of the held-out part of each data set, see ``data.py``. Of ImageNet, all JPEG files below the folder count;
the WordNet number of their class begins their name or that of their folder, such as ``n01440764``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from classification import MEAN, STD
from data import JPEG, Images, Masks, batches, crop_and_flip, images_below, list_classes, list_masks, whole
from evaluation import ConfusionMatrix, accuracy, count_correct, measure_codec
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm
from training import Run

import cdzoo
from cdzoo.codecs import Codec, read_header, read_jpeg, read_jpeg_header
from cdzoo.transforms import CoefficientTransform, LatentTransform
from cdzoo.weights.building import build_codec
from cdzoo.weights.folder import WeightsFolder

Metrics = dict[str, dict[str, float]]
TOLERANCES = {"top-1 (%)": 0.5, "top-5 (%)": 0.5, "mIoU (%)": 0.5, "pixel accuracy (%)": 0.5, "PSNR (dB)": 0.05}
RELATIVE = {"bits per pixel": 0.01}
Folders = Mapping[str, Path | None]


def measure(source: WeightsFolder, folders: Folders, codec: Codec | None = None) -> Metrics:
    """Measure a set of weights: metrics by data set.

    Args:
        source: the folder of the weights.
        folders: of ``imagenette``, ``kodak``, ``cifar10``, ``camvid`` and ``imagenet``; ``None`` where there is none.
        codec: the codec of a network, if its weights do not say where to get it.
    """
    config, run = source.config, Here()
    module = (cdzoo.get_codec if config["kind"] == "codec" else cdzoo.get_model)(config["builder"], weights=source)
    module = module.eval()
    found: Metrics = {}
    kodak = folders.get("kodak")
    if isinstance(module, Codec) and kodak is not None:
        files = images_below(kodak)
        name = f"Kodak, {len(files)} images" if len(files) == 24 else f"{kodak.name}, {len(files)} images"
        found[name] = codec_metrics(run, module, files)
    for data, measured in DATA.items():
        root = folders.get(data.partition("-")[0])
        # others are what it started from
        if config["kind"] == "model" and root is not None and data in source.meta.get("datasets", ())[:1]:
            belongs = module if isinstance(module, Codec) else codec or _codec_of(source)
            found |= measured(run, module, belongs, source.meta, root)
    return found


def codec_metrics(run: Run, codec: Codec, files: list[Path]) -> dict[str, float]:
    """Rate in whole files and distortions, as cards name them."""
    figures = measure_codec(run, codec, files)
    names = {"bpp_real": "bits per pixel", "psnr": "PSNR (dB)", "ssim": "SSIM", "ms_ssim": "MS-SSIM"}
    return {name: figures[key] for key, name in names.items() if key in figures}


def imagenette(run: Run, model: nn.Module, codec: Codec | None, meta: Mapping[str, Any], root: Path) -> Metrics:
    """Top-1 and top-5 on the held-out part of a folder of classes, from bits or from files."""
    files = list_classes(root, needed=["val"])[1]["val"]
    if isinstance(getattr(model, "transforms", None), CoefficientTransform):
        return {f"Imagenette validation, {len(files)} images": from_files(run, model, files)}
    how = meta.get("input", {})
    size, crop = how.get("size", 224), how.get("crop", how.get("size", 224))
    at = "" if size == 224 else f" at {size} pixels" + (f", {crop} at the centre" if crop != size else "")
    images = Images(files, whole(size))
    figures = from_pixels(run, model, images, crop) if codec is None else from_bits(run, model, codec, images, crop)
    return {f"Imagenette validation, {len(files)} images{at}": figures}


def from_bits(run: Run, model: nn.Module, codec: Codec, images: Images, crop: int) -> dict[str, float]:
    """Compress, decompress and classify; the network reads the center of the latent."""
    transform = getattr(model, "transforms", None) or LatentTransform()
    counts, rates = [], []
    for x, labels in tqdm(batches(images, 16), leave=False):
        streams = codec.compress(x)
        rates += [read_header(stream).bpp for stream in streams]
        if model is codec:
            counts.append(count_correct(codec.from_streams(streams), labels))
            continue
        latent = codec.decompress(streams)
        y_hat, scales = crop_and_flip(latent[:2], crop // codec.stride, train=False)
        counts.append(count_correct(model(transform(latent._replace(y_hat=y_hat, scales=scales))), labels))
    return {**_named(accuracy(run, counts)), "bits per pixel": round(sum(rates) / len(rates), 4)}


def from_pixels(run: Run, model: nn.Module, images: Images, crop: int) -> dict[str, float]:
    """Classify original images with a network of the pixel domain."""
    counts = [
        count_correct(model(TF.normalize(TF.center_crop(x, [crop, crop]), MEAN, STD)), labels)
        for x, labels in batches(images, 32)
    ]
    return _named(accuracy(run, counts))


def from_files(run: Run, model: nn.Module, files: list[tuple[Path, int]]) -> dict[str, float]:
    """Classify JPEG files from their coefficients; each batch has files of one size and sampling."""
    counts, groups = [], dict[Any, list[tuple[Path, int]]]()
    for file, label in files:
        header = read_jpeg_header(file)
        groups.setdefault((header.image_size, header.sampling), []).append((file, label))
    rows = [group[start : start + 64] for group in groups.values() for start in range(0, len(group), 64)]
    for pairs in tqdm(rows, leave=False):
        batch = read_jpeg([file for file, _ in pairs])
        labels = torch.tensor([label for _, label in pairs])
        counts.append(count_correct(model(model.transforms(batch)), labels))
    return _named(accuracy(run, counts))


def cifar10(run: Run, model: nn.Module, codec: Codec | None, meta: Mapping[str, Any], root: Path) -> Metrics:
    """Top-1 and top-5 on the held-out part of CIFAR-10 as JPEG files."""
    files = list_classes(root, suffixes=JPEG, by_path=True, needed=["val"])[1]["val"]
    return {f"CIFAR-10 as JPEG, own validation split, {len(files):,} files": from_files(run, model, files)}


def camvid(run: Run, model: nn.Module, codec: Codec | None, meta: Mapping[str, Any], root: Path) -> Metrics:
    """Mean intersection over union on CamVid's validation images, from bits."""
    classes, void, pairs = list_masks(root)
    assert codec is not None
    factor = meta.get("input", {}).get("resize", 1.0)
    transform = getattr(model, "transforms", None) or LatentTransform()
    confusion = ConfusionMatrix(classes)
    for x, mask in tqdm(batches(Masks(pairs["val"], crop=None, void=void, resize=factor), 1), leave=False):
        confusion.add(model(transform(codec.decompress(codec.compress(x)))).argmax(1), mask)
    figures = confusion.metrics(run)
    at = "" if factor == 1 else f" at {factor:g} of their size"
    name = f"CamVid validation, {len(pairs['val'])} images{at}"
    return {name: {"mIoU (%)": figures["miou"], "pixel accuracy (%)": figures["pixel_accuracy"]}}


def imagenet(run: Run, model: nn.Module, codec: Codec | None, meta: Mapping[str, Any], root: Path) -> Metrics:
    """Top-1 and top-5 on photographs of ImageNet, from their files, or from streams of the sizes on the card."""
    files = imagenet_files(root)
    if codec is None:
        counts = []
        for start in tqdm(range(0, len(files), 16), leave=False):
            paths, labels = zip(*files[start : start + 16], strict=True)
            x = read_jpeg(paths, transform=model.transforms, strict=False)
            counts.append(count_correct(model(x), torch.tensor(labels)))
        name = f"{len(files)} photographs, from JPEG files through `weights.transforms()`"
        return {name: _named(accuracy(run, counts))}
    found: Metrics = {}
    for name in meta.get("metrics") or {}:
        if stated := re.fullmatch(r"(\d+) photographs, streams of (\d+) pixels", name):
            chosen = files[:: max(1, round(len(files) / int(stated[1])))]
            name = f"{len(chosen)} photographs, streams of {stated[2]} pixels"
            found[name] = from_streams(run, cdzoo.compose(codec, model), chosen, int(stated[2]))
    return found


def imagenet_files(root: Path) -> list[tuple[Path, int]]:
    """JPEG files with the numbers of their classes, which follow the order of WordNet's."""
    from timm.data import ImageNetInfo

    numbers = {name: number for number, name in enumerate(ImageNetInfo().label_names())}
    found = []
    for path in images_below(root):
        named = re.match(r"n\d{8}", path.name) or re.match(r"n\d{8}", path.parent.name)
        if named and named[0] in numbers and path.suffix.lower() in JPEG:
            found.append((path, numbers[named[0]]))
    if not found:
        raise SystemExit(
            f"{root}: no JPEG file has a name, or a folder, that begins with a class of ImageNet (n01440764)"
        )
    return found


def photograph(path: Path, shorter_side: int) -> Tensor:
    """An upright photograph ``(1, 3, H, W)`` in [0, 1], resized by Pillow's bicubic filter."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    scale = shorter_side / min(image.size)
    width, height = (max(shorter_side, round(n * scale)) for n in image.size)
    return TF.to_dtype(TF.pil_to_tensor(image.resize((width, height), Image.Resampling.BICUBIC)), scale=True)[None]


def from_streams(run: Run, model: Any, files: list[tuple[Path, int]], size: int) -> dict[str, float]:
    """Compress whole photographs, and classify them from their streams."""
    counts, rates = [], []
    for path, label in tqdm(files, leave=False):
        streams = model.codec.compress(photograph(path, size))
        counts.append(count_correct(model.from_streams(streams), torch.tensor([label])))
        rates += [read_header(stream).bpp for stream in streams]
    return {**_named(accuracy(run, counts)), "bits per pixel": round(sum(rates) / len(rates), 4)}


DATA: dict[str, Callable[..., Metrics]] = {
    "imagenette": imagenette,
    "cifar10": cifar10,
    "camvid": camvid,
    "imagenet-1k": imagenet,
}


def _codec_of(source: WeightsFolder) -> Codec | None:
    return build_codec(source) if source.config.get("codec") else None


class Here(Run):
    """A run of one process on the CPU that writes nothing."""

    def __init__(self) -> None:
        self.rank, self.world, self.device = 0, 1, torch.device("cpu")

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes; there is one."""
        return values


def _named(figures: Mapping[str, float]) -> dict[str, float]:
    return {"top-1 (%)": figures["top1"], "top-5 (%)": figures["top5"]}


def sources(names: list[str]) -> Iterator[WeightsFolder]:
    """Yield the weights of the given names and folders, or else all that ship."""
    shipped = [
        str(w) for n in cdzoo.list_codecs(pretrained=True) + cdzoo.list_models(pretrained=True)
        for w in cdzoo.get_model_weights(n)
    ]  # fmt: skip
    for name in names or shipped:
        if Path(name).is_dir():
            yield WeightsFolder.from_path(name)
        else:
            yield cdzoo.get_weight(name).source


def compare(card: Mapping[str, Any], found: Metrics) -> Iterator[tuple[str, str, float, float, bool]]:
    """Yield data set, metric, the card's figure, the measured one, and whether they agree."""
    for data, figures in found.items():
        for metric, value in figures.items():
            stated = (card.get(data) or {}).get(metric)
            if stated is not None and metric in (*TOLERANCES, *RELATIVE):
                allowed = TOLERANCES.get(metric, RELATIVE.get(metric, 0.0) * stated)
                yield data, metric, stated, value, abs(value - stated) <= allowed


@torch.no_grad()
def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="WEIGHTS", help="Enum.MEMBER, or a folder; all that ship if none")
    for data in ("imagenette", "kodak", "cifar10", "camvid", "imagenet"):
        parser.add_argument(f"--{data}", type=Path, help="its folder")
    args = parser.parse_args()
    wrong = 0
    for source in sources(args.names):
        rows = list(compare(source.meta.get("metrics") or {}, measure(source, vars(args))))
        if not rows:
            print(f"{source}: not measured; the data of its card was not given")
        for data, metric, stated, value, near in rows:
            wrong += not near
            print(
                f"{source}: {metric} on {data}: {value} (card: {stated}){'' if near else '  <-- differs'}", flush=True
            )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
