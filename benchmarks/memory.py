"""Memory of a process that reads one image: the peak of its resident set, per path, each in a process of its own.

Every path reads a small image first, which loads what it needs. *Peak* is the whole process, PyTorch included; *above
that* is by how much the image itself raises the peak. One thread.

    python memory.py PATH FOLDER        a child: prints both in MiB
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from measuring import Options, Row, SkippedError, row

GROUP = "memory"
PATHS = {
    "JPEG to tensors": ("read_jpeg", "torchvision", "Pillow"),
    "JPEG to labels": ("jpeg_resnet18", "torchvision + resnet18", "Pillow + resnet18"),
    ".cdz to tensors": ("decompress", "CompressAI"),
    ".cdz to labels": ("fa_cresnet39", "CompressAI + resnet50"),
}
SIZES = {"JPEG to tensors": 4096, "JPEG to labels": 1024, ".cdz to tensors": 1024, ".cdz to labels": 1024}
SMALL = 64


def path(name: str, folder: Path) -> Callable[[str], object]:
    """The function that a child process runs on a file, by name; it imports nothing that only others need."""
    import numpy as np
    import torch

    def decoder() -> Callable[[str], torch.Tensor]:
        if name.startswith("torchvision"):
            from torchvision.io import ImageReadMode, decode_jpeg, read_file

            return lambda file: decode_jpeg(read_file(file), ImageReadMode.RGB)
        from PIL import Image

        return lambda file: torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)

    def scaled(image: torch.Tensor) -> torch.Tensor:
        return image[None].contiguous(memory_format=torch.channels_last).float().div_(255).sub_(0.45).div_(0.22)

    if name == "read_jpeg":
        from cdzoo.codecs import read_jpeg

        return read_jpeg
    if name == "jpeg_resnet18":
        from cdzoo.codecs import read_jpeg
        from cdzoo.models import jpeg_resnet18

        model: Any = jpeg_resnet18().eval().to(memory_format=torch.channels_last)
        return lambda file: model(read_jpeg(file))
    if name in ("torchvision", "Pillow"):
        return decoder()
    if name.endswith("resnet18"):
        from torchvision.models import resnet18

        decode, model = decoder(), resnet18().eval().to(memory_format=torch.channels_last)
        return lambda file: model(scaled(decode(file)))
    if name in ("decompress", "fa_cresnet39"):
        import cdzoo

        codec: Any = cdzoo.codecs.bmshj2018_hyperprior(weights="DEFAULT").eval()
        if name == "decompress":
            return lambda file: codec.decompress([Path(file).read_bytes()])
        network = cdzoo.models.fa_cresnet39(in_channels=codec.latent_channels).eval()
        network.transforms = cdzoo.transforms.LatentTransform(size=(28, 28))
        composed = cdzoo.compose(codec, network)
        return lambda file: composed.from_streams([Path(file).read_bytes()])
    from compressai.models import ScaleHyperprior

    state = torch.load(folder / "compressai.pt", weights_only=True)
    theirs = ScaleHyperprior(state["g_a.0.weight"].shape[0], state["g_a.6.weight"].shape[0]).eval()
    theirs.load_state_dict(state)

    def pixels(file: str) -> torch.Tensor:
        return theirs.decompress(**torch.load(file, weights_only=True))["x_hat"]

    if name == "CompressAI":
        return pixels
    from torchvision.models import resnet50

    model = resnet50().eval()
    return lambda file: model(torch.nn.functional.interpolate(pixels(file), size=(224, 224)))


def child(name: str, folder: Path) -> tuple[float, float]:
    """Peak of this process in MiB, and what the image adds to it."""
    import torch

    torch.set_num_threads(1)
    suffix = ".pt" if name.startswith("CompressAI") else ".cdz" if name in ("decompress", "fa_cresnet39") else ".jpg"
    with torch.no_grad():
        run = path(name, folder)
        run(str(folder / f"small{suffix}"))
        before = resident("VmRSS")
        kept = run(str(folder / f"image{suffix}"))
    peak = resident("VmHWM")
    del kept
    return peak, max(peak - before, 0.1)


def resident(field: str) -> float:
    """``VmRSS``, what this process has in memory, or ``VmHWM``, the most that it ever had, in MiB.

    Not ``getrusage``, whose maximum a child inherits from its parent.
    """
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"no {field} in /proc/self/status")


def prepare(what: str, size: int, folder: Path, photo: Path | None) -> None:
    """The files that the children read, small and large."""
    import torch
    from learned_codecs import coded, pair
    from pictures import images, jpeg_files

    codecs = pair()
    for name, side in (("small", SMALL), ("image", size)):
        if what.startswith("JPEG"):
            (data,) = jpeg_files((side, side), 1, photo)
            (folder / f"{name}.jpg").write_bytes(data)
        else:
            bits = coded(codecs, images((side, side), 1, photo))
            (folder / f"{name}.cdz").write_bytes(bits.streams[0])
            torch.save({**bits.packed, "shape": tuple(bits.packed["shape"])}, folder / f"{name}.pt")
    torch.save(codecs.theirs.state_dict(), folder / "compressai.pt")


def rows(options: Options) -> Iterator[Row]:
    """All of this group."""
    if not Path("/proc/self/status").exists():
        raise SkippedError("the peak of a process is read from /proc, which this system has not got")
    for what, names in PATHS.items():
        size = 128 if options.quick else SIZES[what]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            prepare(what, size, folder, options.photo)
            runs = [way for _ in range(2) for way in names]
            with ThreadPoolExecutor(2) as pool:  # memory does not depend on who runs beside
                found = list(pool.map(_measured, runs, [folder] * len(runs)))
        for index, measure in enumerate(("peak", "above that")):
            case = {"path": what, "memory": measure, "size": size, "batch": 1, "threads": 1}
            values = {way: [f[index] for w, f in zip(runs, found, strict=True) if w == way] for way in names}
            # columns are decoders; the network behind them is that of the path
            yield row(GROUP, case, {way.split(" + ")[0]: numbers for way, numbers in values.items()}, unit="MiB")


def _measured(way: str, folder: Path) -> tuple[float, float]:
    command = [sys.executable, "-W", "ignore", __file__, way, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{way}: {done.stderr}")
    peak, above = done.stdout.split()[-2:]
    return float(peak), float(above)


if __name__ == "__main__":
    print(*child(sys.argv[1], Path(sys.argv[2])))
