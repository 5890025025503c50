"""``cdzoo demo --serve``: the demonstration in a browser.

:class:`Demo` does the work and knows nothing of browsers; :func:`serve` is a page of Gradio over it.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch

from cdzoo._text import explain, missing_package
from cdzoo.bulk.networks import default_network
from cdzoo.codecs import JPEGWarning, read_header, read_jpeg
from cdzoo.codecs.hyperprior import RATES
from cdzoo.coding.rate_control import psnr
from cdzoo.demo import PHOTO, draw_channels, strongest_channels
from cdzoo.errors import JPEGError
from cdzoo.images import decode_image, image_size, reduced, to_pillow
from cdzoo.labels import Label, top_labels
from cdzoo.types import JPEGCoefficients

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Demo", "Result", "View", "photographs", "serve", "table_html", "view"]

MAX_BYTES = 20_000_000
MAX_PIXELS = 50_000_000
MAX_FILES = 200
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""Suffixes of photographs that the page takes; JPEG files are read as coefficients, the others by Pillow."""
_KEPT = 600  # seconds after which Gradio's copy of an upload is deleted
T = TypeVar("T")


class Result(NamedTuple):
    """The demonstration of one photograph.

    Attributes:
        from_coefficients: labels from the DCT coefficients of the file, best first.
        from_latents: labels from the latents of its stream.
        decoded: the picture that the stream decodes to.
        channels: a picture of the latent's four channels of largest variance.
        image_size: ``(H, W)`` of the upright photograph.
        coded_size: ``(H, W)`` of the picture that was compressed: at most 1,024 pixels on the longer side.
        num_bytes: size of the file.
        stream_bytes: size of the stream.
        bpp: bits per pixel of the stream.
        psnr: of the decoded picture, in dB.
        seconds: name of a step -> its time, of one run.
        damage: the first damage of a JPEG file that was read as far as possible, or ``None``.
    """

    from_coefficients: tuple[Label, ...]
    from_latents: tuple[Label, ...]
    decoded: Image.Image
    channels: Image.Image
    image_size: tuple[int, int]
    coded_size: tuple[int, int]
    num_bytes: int
    stream_bytes: int
    bpp: float
    psnr: float
    seconds: dict[str, float]
    damage: str | None = None


class Demo:
    """Packaged networks and codecs, and the demonstration of photographs with them. Threads may share it.

    Args:
        max_side: photographs are reduced to this many pixels on the longer side before the codec compresses them.
        max_pixels: photographs with more pixels are refused.

    Attributes:
        rates: name of each rate, lowest first, with its bits per pixel on Kodak's photographs.
    """

    def __init__(self, *, max_side: int = 1024, max_pixels: int = MAX_PIXELS) -> None:
        self._max_side, self._max_pixels = max_side, max_pixels
        self._jpeg: Any = default_network("jpeg").module
        self.rates = [f"{m.meta['metrics']['Kodak, 24 images']['bits per pixel']:.2f} bits per pixel" for m in RATES]
        codecs = [member.build_codec() for member in RATES]
        self._readers: list[Any] = [default_network(codec.name, codec).module for codec in codecs]

    @torch.no_grad()
    def __call__(self, data: bytes, rate: int = 1) -> Result:
        """Label, compress and decode one photograph.

        Args:
            data: the content of an image file. A JPEG file is read as coefficients, any other is decoded by Pillow.
            rate: index of :attr:`rates`.

        Raises:
            ValueError: not an image, damaged, too large, or no such rate.
        """
        if rate not in range(len(self.rates)):
            raise ValueError(f"rate={rate} must be from 0 to {len(self.rates) - 1}")
        reader = self._readers[rate]
        codec = reader.codec
        seconds: dict[str, float] = {}

        def timed(step: str, function: Callable[[], T]) -> T:
            start = time.perf_counter()
            result = function()
            seconds[step] = time.perf_counter() - start
            return result

        coefficients, damage = timed("read coefficients", lambda: self._read(data))
        logits = timed("network over coefficients", lambda: self._jpeg(coefficients))
        image = decode_image(data, max_pixels=self._max_pixels)
        small = reduced(image, self._max_side)
        [stream] = timed("compress to a stream", lambda: codec.compress(small))
        latent = timed("stream to latents", lambda: codec.decompress([stream]))
        scores = timed("network over latents", lambda: reader.from_latent(latent))
        decoded = timed("latents to pixels", lambda: codec.decode(latent))
        return Result(
            top_labels(logits[0], self._jpeg.meta, 5),
            top_labels(scores[0], reader.model.meta, 5),
            to_pillow(decoded),
            draw_channels(latent.y_hat[0], strongest_channels(latent.y_hat[0]), 400),
            (image.shape[2], image.shape[3]),
            (small.shape[2], small.shape[3]),
            len(data),
            len(stream),
            read_header(stream).bpp,
            psnr(decoded, small),
            seconds,
            damage,
        )

    @torch.no_grad()
    def table(self, paths: Sequence[str | os.PathLike[str]]) -> list[list[str]]:
        """Label many photographs from their coefficients.

        Returns:
            a row for each file: name, label, probability, size in pixels, bits per pixel. The row of a file that cannot
            be read has the reason in place of the label; the label of a damaged file has the damage behind it.
        """
        rows = []
        for path in map(Path, paths):
            try:
                data = path.read_bytes()
                height, width = image_size(data)
                coefficients, damage = self._read(data)
                best = top_labels(self._jpeg(coefficients)[0], self._jpeg.meta, 1)[0]
            except (OSError, ValueError) as error:
                rows.append([path.name, explain(error), "", "", ""])
            else:
                bpp = 8 * len(data) / (height * width)
                label = best.name if damage is None else f"{best.name} (damaged: {damage})"
                rows.append([path.name, label, f"{best.probability:.0%}", f"{width}x{height}", f"{bpp:.2f}"])
        return rows

    def _read(self, data: bytes) -> tuple[JPEGCoefficients, str | None]:
        """The file's coefficients, and its damage if they are not all there."""
        read = partial(read_jpeg, data, transform=self._jpeg.transforms, max_pixels=self._max_pixels, fallback="decode")
        try:
            return read(), None
        except JPEGError as damage:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", JPEGWarning)
                return read(strict=False), str(damage.named(None))


# -- the page --------------------------------------------------------------------------------------------------------


class View(NamedTuple):
    """The contents of the page's parts, in their order on the page.

    Attributes:
        message: Markdown: what went wrong or could not be shown.
        from_coefficients: name of a class -> probability.
        from_latents: likewise.
        decoded: the picture that the stream decodes to, or ``None``.
        channels: the picture of four latent channels, or ``None``.
        figures: rows of a name and a value.
        table: rows of :meth:`Demo.table` where there are several files.
    """

    message: str = ""
    from_coefficients: dict[str, float] | None = None
    from_latents: dict[str, float] | None = None
    decoded: Image.Image | None = None
    channels: Image.Image | None = None
    figures: list[list[str]] | None = None
    table: list[list[str]] | None = None


def photographs(paths: Sequence[str] | None) -> list[str]:
    """The files of a folder that the page takes, in the order of their names."""
    return sorted(path for path in paths or () if path.lower().endswith(SUFFIXES))


def view(demo: Demo, paths: Sequence[str] | None, rate: int) -> View:
    """The page for some files: the first one that can be read in full, and a table if there are several."""
    if not paths:
        return View()
    if len(paths) > MAX_FILES:
        return View(f"{len(paths)} files are more than {MAX_FILES}; use `cdzoo classify FOLDER` for larger folders")
    table = demo.table(paths) if len(paths) > 1 else None
    problems = []
    for path in paths:
        try:
            result = demo(Path(path).read_bytes(), int(rate))
        except (OSError, ValueError) as error:
            problems.append(f"**{os.path.basename(path)} cannot be read**: {explain(error)}")
            continue
        if result.damage is not None:
            problems.append(f"**{os.path.basename(path)} is damaged** and was read as far as possible: {result.damage}")
        return View(
            "\n\n".join(problems),
            {label.name: label.probability for label in result.from_coefficients},
            {label.name: label.probability for label in result.from_latents},
            result.decoded,
            result.channels,
            _figures(os.path.basename(path), result),
            table,
        )
    return View("\n\n".join(problems), table=table)


def _figures(name: str, result: Result) -> list[list[str]]:
    (height, width), (rows, columns) = result.image_size, result.coded_size
    file_bpp = 8 * result.num_bytes / (height * width)
    coded = "" if result.coded_size == result.image_size else f" of {columns}x{rows} pixels"
    return [
        [name, f"{width}x{height} pixels, {result.num_bytes:,} bytes, {file_bpp:.2f} bits per pixel"],
        [".cdz stream", f"{result.stream_bytes:,} bytes{coded}, {result.bpp:.2f} bits per pixel"],
        ["decoded picture", f"PSNR {result.psnr:.1f} dB"],
        *[[f"time: {step}", f"{1000 * seconds:.1f} ms"] for step, seconds in result.seconds.items()],
    ]


def serve(host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serve the demonstration as a page for browsers, until the process is interrupted.

    Uploads of more than 20 MB are refused. Files are deleted ten minutes after their upload, and when the server ends.

    Args:
        host: address to listen on. ``"0.0.0.0"`` lets other machines in; there is no password.
        port: port to listen on.

    Raises:
        ImportError: Gradio is not installed.
        OSError: the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="cdzoo-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # read when Gradio is imported
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        try:
            import gradio as gr
        except ModuleNotFoundError as error:
            raise missing_package(error, "app") from error
        demo = Demo()
        for rate in range(len(demo.rates)):
            demo(PHOTO.read_bytes(), rate)  # loads compiled loops: the first visitor does not wait for them
        page = _page(gr, demo).queue(max_size=32, default_concurrency_limit=2)
        page.launch(
            server_name=host,
            server_port=port,
            max_file_size=MAX_BYTES,
            show_error=True,
            ssr_mode=False,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            css=_CSS,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        )
        print(f"{page.local_url}  (Ctrl+C ends the server)", file=sys.stderr, flush=True)
        page.block_thread()


_CSS = """
.prose table.cdzoo { width: 100%; margin: 0; border: 0; font-size: 0.9rem; }
.prose table.cdzoo :is(td, th) { border: 0; padding: 0.25rem 0.5rem 0.25rem 0; text-align: left; vertical-align: top; }
.prose table.cdzoo tr { border: solid var(--border-color-primary); border-width: 0 0 1px; }
.prose table.cdzoo :is(td, th):nth-child(-n+2) { overflow-wrap: anywhere; }
.prose table.cdzoo td:nth-child(n+3) { white-space: nowrap; }
@media (max-width: 40rem) {
  .prose table.cdzoo { font-size: 0.8rem; }
  .prose table.cdzoo :is(td, th):nth-child(n+4) { display: none; }
}
"""


def table_html(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """A table in HTML; names of files are text, whatever characters they hold."""
    lines = [("th", head)] if head else []
    lines += [("td", row) for row in rows]
    text = "".join(f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in row)}</tr>" for tag, row in lines)
    return f'<table class="cdzoo">{text}</table>'


def _page(gr: Any, demo: Demo) -> Any:
    """The parts of the page, which a :class:`View` fills."""
    with gr.Blocks(title="cdzoo", analytics_enabled=False, delete_cache=(60, _KEPT)) as page:
        gr.Markdown(
            "# cdzoo\nDrop a photograph. It is labeled from the coefficients of its file, then compressed by a learned "
            "codec and labeled from the latents of the stream. The picture is decoded only for you to see. "
            "Several files, or a folder, give a table."
        )
        with gr.Row():
            with gr.Column():
                files = gr.File(label="Photographs", file_count="multiple", file_types=list(SUFFIXES), height=160)
                folder = gr.UploadButton("Open a folder", file_count="directory", size="sm", elem_id="folder")
            rates = ", ".join(f"{i}: {rate.split()[0]}" for i, rate in enumerate(demo.rates))
            info = f"{rates} bits per pixel"
            rate = gr.Slider(0, len(demo.rates) - 1, value=1, step=1, label="Rate of the codec", info=info)
        message = gr.Markdown(elem_id="message")
        table = gr.HTML(visible=False, elem_id="table", max_height=400, padding=False)
        with gr.Column(visible=False) as results:  # no empty boxes before the first photograph
            with gr.Row():
                coefficients = gr.Label(label="Labels from coefficients (1,000 classes)", elem_id="from-coefficients")
                latents = gr.Label(label="Labels from latents", elem_id="from-latents")
            with gr.Row():
                shown = {"format": "png", "buttons": ["fullscreen"]}
                decoded = gr.Image(label="Decoded from the stream", elem_id="decoded", **shown)
                channels = gr.Image(label="Four latent channels", elem_id="channels", **shown)
            figures = gr.HTML(elem_id="figures", padding=False)

        def respond(paths: list[str] | None, rate: float) -> list[Any]:
            found = view(demo, paths, int(rate))
            rows = table_html(found.table or [], ("file", "label", "probability", "pixels", "bits per pixel"))
            return [
                *found[:5],
                table_html(found.figures or []),
                gr.update(value=rows, visible=found.table is not None),
                gr.update(visible=found.decoded is not None),
            ]

        folder.upload(photographs, folder, files, api_name=False)
        outputs = [message, coefficients, latents, decoded, channels, figures, table, results]
        for event in (files.change, rate.change):
            event(respond, [files, rate], outputs, trigger_mode="always_last", api_name="demo")
    return page
