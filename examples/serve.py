"""A server that labels JPEG files and .cdz streams: `python examples/serve.py 8000`; POST a file's bytes, get JSON."""

import asyncio
import sys

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from starlette.requests import ClientDisconnect

from cdzoo.bulk.classify import Classified, Networks, classify_bytes

MAX_BYTES, MAX_PIXELS, MAX_BATCH, MAX_CLIENTS, MAX_SECONDS = 20_000_000, 50_000_000, 32, 64, 20
NETWORKS = Networks(top=5, strict=True, batch_size=MAX_BATCH, max_pixels=MAX_PIXELS)
FREE = asyncio.Lock()  # of the networks, which take one batch at a time
PLACES = asyncio.Semaphore(MAX_CLIENTS)  # clients whose files are in memory; other clients wait
WAITING: dict[asyncio.Future, bytes] = {}  # the files of the next batch, oldest first
app = FastAPI()


async def label(body: bytes) -> Classified:
    """Label a file, in a batch with the files that arrived while the networks were busy."""
    WAITING[own := asyncio.get_running_loop().create_future()] = body
    try:
        async with FREE:
            if not own.done():  # it is the oldest; otherwise, it was in the batch of another client
                batch = list(WAITING)[:MAX_BATCH]
                results = await asyncio.to_thread(classify_bytes, [WAITING[one] for one in batch], NETWORKS)
                for one, result in zip(batch, results, strict=True):
                    one.set_result(result)
                    WAITING.pop(one, None)
    finally:
        WAITING.pop(own, None)
    return own.result()


@app.post("/")
async def post(request: Request) -> dict[str, list[dict[str, float | str]]]:
    """Answer with labels, or with the reason why there are none."""
    async with PLACES:
        body, size = bytearray(), 0
        try:
            async with asyncio.timeout(MAX_SECONDS):
                async for part in request.stream():
                    size += len(part)
                    body += part if size <= MAX_BYTES else b""  # read on: a client that still sends sees no answer
        except (TimeoutError, ClientDisconnect):
            raise HTTPException(408, f"the file did not arrive within {MAX_SECONDS} seconds") from None
        if not 0 < size <= MAX_BYTES:
            raise HTTPException(413, f"the file has {size} bytes; it must have from 1 to {MAX_BYTES}")
        result = await label(bytes(body))
    if result.error is not None:
        raise HTTPException(400, str(result.error))
    return {"labels": [{"name": one.name, "probability": one.probability} for one in result.classes]}


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), limit_concurrency=1000)
