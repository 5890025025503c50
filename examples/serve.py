"""A server that labels JPEG files and .cdz streams: `python examples/serve.py 8000`; POST a file's bytes, get JSON."""

import json
import queue
import sys
import threading
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

import cdzoo
from cdzoo.data import collate_coefficients, collate_latents
from cdzoo.labels import top_labels

MAX_BYTES, MAX_PIXELS, MAX_BATCH, MAX_THREADS = 20_000_000, 50_000_000, 32, 64
WEIGHTS = cdzoo.get_weight("FA_cResNet39_Weights.DEFAULT")
CODEC, LATENT = WEIGHTS.build_codec(), cdzoo.get_model("fa_cresnet39", weights=WEIGHTS).eval()
JPEG = cdzoo.get_model("jpeg_efficientnet_lite0", weights="DEFAULT").eval()
WAITING = {JPEG: queue.Queue(), LATENT: queue.Queue()}  # of (input, future), at most one from each thread


def label(body: bytes) -> list[dict]:
    """Decode a file in this thread, and let the network's thread label it."""
    model = JPEG if body.startswith(b"\xff\xd8") else LATENT
    if model is JPEG:
        x = cdzoo.codecs.read_jpeg(body, transform=JPEG.transforms, max_pixels=MAX_PIXELS)
    else:
        x = LATENT.transforms(CODEC.decompress([body], max_pixels=MAX_PIXELS))
    WAITING[model].put((x, future := Future()))
    return [{"name": one.name, "probability": one.probability} for one in top_labels(future.result(), model.meta, 5)]


@torch.no_grad()
def run(model, collate) -> None:
    """Run a network on what waits for it, for ever; what arrives meanwhile makes the next batch."""
    while batch := [WAITING[model].get()]:
        batch += [WAITING[model].get() for _ in range(min(WAITING[model].qsize(), MAX_BATCH - 1))]
        try:
            for logits, (_, future) in zip(model(collate([x for x, _ in batch])), batch, strict=True):
                future.set_result(logits)
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)


class Handler(BaseHTTPRequestHandler):
    """One client."""

    timeout = 10  # seconds that a client may be silent
    error_content_type, error_message_format = "application/json", '{"error": "%(message)s"}'

    def do_POST(self) -> None:
        """Answer with labels, or with the reason why there are none."""
        length = self.headers.get("Content-Length", "")[:12]
        size = int(length) if length.isdecimal() else 0
        if 0 < size <= MAX_BYTES:
            try:
                self.reply(200, {"labels": label(self.rfile.read(size))})
            except (ValueError, cdzoo.errors.CdzooError) as error:
                self.reply(400, {"error": str(error)})
        else:
            self.reply(413, {"error": f"Content-Length is '{length}'; it must be from 1 to {MAX_BYTES}"})
            left = min(size, 10 * MAX_BYTES)  # a client that is cut off does not see the answer
            while left > 0 and (part := self.rfile.read(min(left, 1 << 16))):
                left -= len(part)

    def reply(self, status: int, answer: dict) -> None:
        """Send JSON."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())


class Server(ThreadingHTTPServer):
    """A thread per connection, and a bound on their number."""

    request_queue_size = 128  # connections that wait for a free thread
    slots = threading.BoundedSemaphore(MAX_THREADS)

    def process_request(self, *connection) -> None:
        """Wait for a free thread."""
        self.slots.acquire()
        super().process_request(*connection)

    def process_request_thread(self, *connection) -> None:
        """Serve one client, and free the thread."""
        try:
            super().process_request_thread(*connection)
        finally:
            self.slots.release()


for each in ((JPEG, collate_coefficients), (LATENT, collate_latents)):
    threading.Thread(target=run, args=each, daemon=True).start()
if __name__ == "__main__":
    Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
