"""Images with classes, images with masks, and inputs that a frozen codec has prepared once.

Classes: one sub-folder of images for each; ``train`` and ``val`` folders of such, or else an image is held out when the
first eight hexadecimal digits of the SHA-256 of its file name, modulo 10, are 0. MINC-2500's ``images`` and ``labels``
are recognized, and split as its ``train1.txt`` and ``test1.txt`` say.

Masks: ``train``, ``trainannot``, ``val`` and ``valannot``, as CamVid is distributed; or PASCAL VOC's ``JPEGImages``,
``SegmentationClass`` (or ``SegmentationClassAug``) and ``ImageSets/Segmentation``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm
from training import Run, SeededDataset, start_method

from cdzoo.codecs import Codec

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

JPEG = (".jpg", ".jpeg")
SUFFIXES = (*JPEG, ".png")
"""Endings of the files that count as images, in lower case; any case is found."""
Transform = Callable[[Tensor], Tensor]


def held_out(name: str) -> bool:
    """Tell whether the file of this name belongs to the tenth that validates."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 10 == 0


def images_in(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """List the images of a folder, in the order of their names."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in suffixes)


def images_below(root: Path) -> list[Path]:
    """List the images of a folder and of its sub-folders, in the order of their paths."""
    folders = [Path(folder) for folder, _, _ in os.walk(root, followlinks=True)]
    files = sorted(file for folder in folders for file in images_in(folder))
    if not files:
        raise SystemExit(f"{root} has no {', '.join(SUFFIXES)} files; give a folder of images")
    return files


def list_classes(
    root: Path,
    limit: int | None = None,
    *,
    suffixes: Sequence[str] = SUFFIXES,
    by_path: bool = False,
    needed: Sequence[str] = ("train", "val"),
) -> tuple[list[str], dict[str, list[tuple[Path, int]]]]:
    """List the classes of a folder and, for ``"train"`` and ``"val"``, its pairs of file and class number.

    Args:
        root: the folder, see above for its layout.
        limit: thin each split out to this many files.
        suffixes: endings of the files that count, in lower case.
        by_path: hold files out by their path ``class/name.jpg`` in place of their name.
        needed: splits that must have images.

    Raises:
        SystemExit: there are no classes, or a needed split has no images.
    """
    classes, splits = _list_classes(root, suffixes, by_path)
    for split in needed:
        if not splits[split]:
            rule = "about every tenth file is held out by its name, so more images are needed"
            raise SystemExit(f"{root} has no images for the split {split}; {rule}, or folders train and val")
    return classes, {split: thinned(pairs, limit) for split, pairs in splits.items()}


def _list_classes(
    root: Path, suffixes: Sequence[str], by_path: bool
) -> tuple[list[str], dict[str, list[tuple[Path, int]]]]:
    if (root / "labels" / "train1.txt").exists():
        lists = {"train": root / "labels" / "train1.txt", "val": root / "labels" / "test1.txt"}
        found = {split: [root / name for name in file.read_text().split()] for split, file in lists.items()}
        classes = sorted({file.parent.name for file in found["train"]})
        return classes, {split: [(f, classes.index(f.parent.name)) for f in files] for split, files in found.items()}
    folders = {split: root / split for split in ("train", "val")}
    split_already = all(folder.is_dir() for folder in folders.values())
    home = folders["train"] if split_already else root
    classes = sorted(d.name for d in home.iterdir() if d.is_dir() and any(images_in(d, suffixes)))
    if not classes:
        raise SystemExit(f"{home} has no sub-folders with {', '.join(suffixes)} files, one for each class")
    splits: dict[str, list[tuple[Path, int]]] = {"train": [], "val": []}
    for split, pairs in splits.items():
        for label, name in enumerate(classes):
            for file in images_in((folders[split] if split_already else root) / name, suffixes):
                key = f"{name}/{file.name}" if by_path else file.name
                if split_already or held_out(key) == (split == "val"):
                    pairs.append((file, label))
    return classes, splits


def list_masks(root: Path, limit: int | None = None) -> tuple[int, int, dict[str, list[tuple[Path, Path]]]]:
    """Number of classes, the value of what counts for none, and pairs of image and mask for either split."""
    if (root / "SegmentationClass").is_dir():
        masks = root / ("SegmentationClassAug" if (root / "SegmentationClassAug").is_dir() else "SegmentationClass")
        splits = {}
        for split in ("train", "val"):
            names = (root / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()
            splits[split] = [(root / "JPEGImages" / f"{n}.jpg", masks / f"{n}.png") for n in names]
        return 21, 255, {split: thinned(pairs, limit) for split, pairs in splits.items()}
    splits = {}
    for split in ("train", "val"):
        images = images_in(root / split)
        splits[split] = [(file, root / f"{split}annot" / f"{file.stem}.png") for file in images]
    return 11, 11, {split: thinned(pairs, limit) for split, pairs in splits.items()}


def thinned(items: list[Any], limit: int | None) -> list[Any]:
    """Evenly chosen items, ``limit`` of them."""
    return items if limit is None or len(items) <= limit else [items[i * len(items) // limit] for i in range(limit)]


def read(file: Path) -> Tensor:
    """``(3, H, W)`` uint8."""
    with Image.open(file) as image:
        return TF.pil_to_tensor(image.convert("RGB"))


class Images(Dataset[Any]):
    """Files and their classes as ``(3, H, W)`` float in ``[0, 1]``, or uint8 if that is asked for, and the class."""

    def __init__(
        self, files: Sequence[tuple[Path, int]], transform: Transform, dtype: torch.dtype = torch.float32
    ) -> None:
        self.files, self.transform, self.dtype = files, transform, dtype

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        file, label = self.files[index]
        return TF.to_dtype(self.transform(read(file)), self.dtype, scale=True), label


def whole(size: int) -> Transform:
    """The center square ``(3, size, size)`` of the image, whose shorter side is resized to ``size``."""
    return v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])


def random_view(size: int, *, least: float = 0.35) -> Transform:
    """A random crop of at least that share of the image, at random proportions, mirrored half the time."""
    crop = v2.RandomResizedCrop(size, scale=(least, 1.0), antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip()])


def random_crop(size: int) -> Transform:
    """A square of the image's own pixels, or of the whole image where that is smaller; mirrored half the time."""

    def crop(image: Tensor) -> Tensor:
        if min(image.shape[-2:]) < size:
            image = TF.resize(image, [size], antialias=True)
        return v2.RandomCrop(size)(image)

    return v2.Compose([crop, v2.RandomHorizontalFlip()])


class Masks(Dataset[Any]):
    """Pairs of image and mask; in training scaled, cropped and mirrored alike, as DeepLab is trained.

    Args:
        pairs: of files.
        crop: side of a random square; ``None`` for whole images.
        void: value of the mask where there is no image.
        resize: factor for all images, before anything else.
    """

    def __init__(self, pairs: Sequence[tuple[Path, Path]], *, crop: int | None, void: int, resize: float = 1.0) -> None:
        self.pairs, self.crop, self.void, self.resize = pairs, crop, void, resize

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = TF.to_dtype(read(self.pairs[index][0]), torch.float32, scale=True)
        with Image.open(self.pairs[index][1]) as file:
            mask = torch.from_numpy(np.array(file)).long()[None]
        factor = self.resize * (1.0 if self.crop is None else float(torch.empty(()).uniform_(0.5, 1.5)))
        if factor != 1:
            size = [max(1, round(side * factor)) for side in image.shape[-2:]]
            image = TF.resize(image, size, antialias=True)
            mask = TF.resize(mask, size, interpolation=v2.InterpolationMode.NEAREST)
        if self.crop is None:
            return image, mask[0]
        below, right = (max(0, self.crop - side) for side in image.shape[-2:])
        image = TF.pad(image, [0, 0, right, below], fill=0.5)
        mask = TF.pad(mask, [0, 0, right, below], fill=self.void)
        top, left = (int(torch.randint(side - self.crop + 1, ())) for side in image.shape[-2:])
        image, mask = (t[:, top : top + self.crop, left : left + self.crop] for t in (image, mask))
        if torch.rand(()) < 0.5:
            image, mask = image.flip(-1), mask.flip(-1)
        return image.contiguous(), mask[0].contiguous()


# -- latents and decoded images that are kept --------------------------------------------------------------------


class Cached(Dataset[Any]):
    """One of several views of each image, as a codec left it: latents (with scales) or decoded images.

    A sample is ``(y_hat, scales, label)``, float16 ``(C, h, w)`` each and scales of size 0 where there are none, or
    ``(image, label)``, uint8 ``(3, size, size)``; :func:`widened` makes float32 of either.

    Args:
        folders: one for each view.
        device: if given, all samples are held there; a sample is then ``(view, index)``, and :meth:`look_up` reads a
            whole batch.
    """

    def __init__(self, folders: Sequence[Path], device: torch.device | None = None) -> None:
        self.views = [{file.stem: np.load(file, mmap_mode="r") for file in f.glob("*.npy")} for f in folders]
        self.names = ("images",) if "images" in self.views[0] else ("y_hat", "scales")
        self.held = None if device is None else {name: self._stacked(name, device) for name in self.views[0]}

    def _stacked(self, name: str, device: torch.device) -> Tensor:
        """Stack arrays one after the other, since two copies would not fit into memory."""
        count, first = len(self), torch.from_numpy(self.views[0][name][:1].copy())
        rows = torch.empty((len(self.views) * count, *first.shape[1:]), dtype=first.dtype, device=device)
        for number, view in enumerate(self.views):
            rows[number * count : (number + 1) * count] = torch.from_numpy(np.array(view[name]))
        return rows

    def __len__(self) -> int:
        return len(self.views[0]["labels"])

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        number = int(torch.randint(len(self.views), ())) if len(self.views) > 1 else 0
        if self.held is not None:
            return number, index
        view = self.views[number]
        tensors = [torch.from_numpy(view[n][index].copy()) if n in view else torch.empty(0) for n in self.names]
        return (*tensors, int(view["labels"][index]))

    def look_up(self, batch: Any) -> Any:
        """The samples that ``(view, index)``, two tensors, stand for; other batches as they are."""
        if self.held is None:
            return batch
        number, index = batch
        rows = (number * len(self) + index).to(self.held["labels"].device)
        tensors = [self.held[n][rows] if n in self.held else torch.empty(0) for n in self.names]
        return (*tensors, self.held["labels"][rows])


def widened(tensor: Tensor) -> Tensor:
    """Values of 8 or 16 bits, of any shape, as float32; bytes become ``[0, 1]``."""
    return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[bool]:
    """True for the one process that has to fill a folder (it has no ``labels.npy`` yet); the other processes wait.

    Without ``fcntl``, as on Windows, nobody waits: fill a cache with one process there.
    """
    if (folder / "labels.npy").exists():
        yield False
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)  # goes with the process, however that ends
        yield not (folder / "labels.npy").exists()


def keep(run: Run, files: Sequence[tuple[Path, int]], transform: Transform, folder: Path) -> Cached:
    """Read every image once, and keep its square: ``images.npy``, ``(N, 3, size, size)`` uint8, and ``labels.npy``.

    Args:
        transform: to squares of one size; its randomness follows from the folder's name and the place among ``files``,
            so that runs of all seeds share their views.
        folder: the cache; existing files are kept.
    """
    dataset = SeededDataset(Images(files, transform, torch.uint8), 0)
    with only_one(folder) as empty:
        if empty:
            samples = torch.utils.data.DataLoader(
                dataset,
                16,
                sampler=[(folder.name, i) for i in range(len(files))],
                num_workers=run.args.workers,
                multiprocessing_context=start_method(run.args.workers),
            )
            _fill(folder, ({"images": x} for x, _ in samples), [label for _, label in files])
    return Cached([folder])


def cache(
    run: Run, codec: Codec | None, files: Sequence[tuple[Path, int]], transform: Transform, folder: Path, *,
    decoded: bool,
) -> Path:  # fmt: skip
    """Encode every image once, and keep the latents (float16), or the decoded images (uint8); returns the folder.

    The squares that codecs read are kept in ``*-squares``, three bytes a pixel; delete them if they are not needed.

    Args:
        codec: none for the squares themselves.
        transform: see :func:`keep`; all codecs are given the same squares.
        folder: the cache; existing files are kept.
    """
    names = hashlib.sha256("\n".join(str(file) for file, _ in files).encode()).hexdigest()[:8]
    kind = "decoded" if decoded else "latents"
    squares = folder.with_name(f"{folder.name}-{names}-squares")
    if codec is None:
        keep(run, files, transform, squares)
        return squares
    folder = folder.with_name(f"{folder.name}-{names}-{kind}-{codec.fingerprint}")
    with only_one(folder) as empty:
        if empty:
            _fill(folder, _encoded(run, codec, keep(run, files, transform, squares), decoded), [n for _, n in files])
    return folder


def _encoded(run: Run, codec: Codec, squares: Cached, decoded: bool) -> Iterator[dict[str, Tensor]]:
    for images, _ in batches(squares, 32):
        latent = codec.encode(widened(images.to(run.device)))
        if decoded:
            yield {"images": codec.decode(latent).mul(255).round().byte()}
        else:
            scales = {} if latent.scales is None else {"scales": latent.scales.half()}
            yield {"y_hat": latent.y_hat.half(), **scales}


def _fill(folder: Path, rows: Iterable[dict[str, Tensor]], labels: Sequence[int]) -> None:
    arrays, start = dict[str, Any](), 0
    for batch in tqdm(rows, desc=folder.name, mininterval=5, leave=False):
        for name, tensor in batch.items():
            values = tensor.cpu().numpy()
            if name not in arrays:
                shape = (len(labels), *values.shape[1:])
                arrays[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", values.dtype, shape)
            arrays[name][start : start + len(values)] = values
        start += len(values)
    for array in arrays.values():
        array.flush()
    with (folder / "labels.tmp").open("wb") as file:
        np.save(file, np.array(labels))
    os.replace(folder / "labels.tmp", folder / "labels.npy")  # last: the sign that all is there


# -- random crops of what a network reads ------------------------------------------------------------------------


def crop_and_flip(
    tensors: Sequence[Tensor | None], side: int, *, train: bool, mirror: bool = True
) -> list[Tensor | None]:
    """The same square of each tensor ``(B, C, h, w)``: at random and mirrored half the time, or at the center.

    In training each sample has a place of its own.

    Args:
        mirror: mirror half of the samples; a mirrored latent is not the latent of the mirrored image.
    """
    first = next(t for t in tensors if t is not None)
    height, width = first.shape[-2:]
    side = min(side, height, width)
    if not train:
        top, left = (height - side) // 2, (width - side) // 2
        return [None if t is None else t[..., top : top + side, left : left + side] for t in tensors]
    tops, lefts = (torch.randint(n - side + 1, (len(first),)).tolist() for n in (height, width))
    flips = (torch.rand(len(first)) < 0.5).tolist() if mirror else [False] * len(first)
    results: list[Tensor | None] = []
    for tensor in tensors:
        if tensor is None:
            results.append(None)
            continue
        rows = [t[:, i : i + side, j : j + side] for t, i, j in zip(tensor, tops, lefts, strict=True)]
        results.append(torch.stack([row.flip(-1) if f else row for row, f in zip(rows, flips, strict=True)]))
    return results


# -- generated data, for trying a recipe out ---------------------------------------------------------------------


def generate_classes(root: Path, *, classes: int = 3, images: int = 10, side: int = 64, suffix: str = ".png") -> Path:
    """Write noisy stripes whose direction is the class: of each class ``images`` for training, and 2 held out or more.

    Files that exist already stay as they are, since another process may be reading them.
    """
    for label in range(classes):
        folder = root / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        need, number = {False: images, True: 2}, 0
        while any(need.values()):
            name, number = f"{label}_{number}{suffix}", number + 1
            # both ways to hold files out agree on these
            if need[held_out(name)] and held_out(name) == held_out(f"{folder.name}/{name}"):
                need[held_out(name)] -= 1
                _write(folder / name, _stripes(side, side, label * 180 / classes, number))
    return root


def generate_masks(root: Path, *, images: int = 8, size: tuple[int, int] = (64, 80)) -> Path:
    """Two kinds of stripes side by side, and their masks; a row of void below."""
    for split, count in (("train", images), ("val", 2)):
        for folder in (root / split, root / f"{split}annot"):
            folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            border = 20 + 5 * (number % 8)
            left, right = _stripes(*size, 0, number), _stripes(*size, 90, number)
            left[:, border:] = right[:, border:]
            mask = np.zeros(size, np.uint8)
            mask[:, border:], mask[-1] = 1, 11
            _write(root / split / f"{number}.png", left)
            _write(root / f"{split}annot" / f"{number}.png", mask)
    return root


def _write(file: Path, pixels: np.ndarray) -> None:
    if not file.exists():
        Image.fromarray(pixels).save(file)


def _stripes(height: int, width: int, degrees: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    wave = np.sin((x * np.cos(np.radians(degrees)) + y * np.sin(np.radians(degrees))) / 3 + rng.uniform(0, 6))
    color, noise = rng.uniform(40, 215, (1, 1, 3)), rng.normal(0, 8, (height, width, 3))
    return (color + 35 * wave[..., None] + noise).clip(0, 255).astype(np.uint8)


def batches(dataset: Dataset[Any], size: int, *, rank: int = 0, world: int = 1) -> Iterator[Any]:
    """The samples of a dataset in order, this process's share of them, for evaluations."""
    subset = torch.utils.data.Subset(dataset, range(rank, len(dataset), world))  # type: ignore[arg-type]
    yield from torch.utils.data.DataLoader(subset, batch_size=size)
