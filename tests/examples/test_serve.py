"""The server of the examples: many clients at once, and clients that send what it must refuse."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest
from oracles.jpeg_files import encode, picture

import cdzoo
from cdzoo.demo import PHOTO, load_photo

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")


@pytest.fixture(scope="module")
def example(load_example: Callable[[str], ModuleType]) -> ModuleType:
    return load_example("serve")


@pytest.fixture(scope="module")
def port(example: ModuleType) -> Iterator[int]:
    server = uvicorn.Server(uvicorn.Config(example.app, port=0, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def post(port: int, body: bytes) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/", body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_concurrent_clients_get_the_labels_of_their_own_files(port: int) -> None:
    stream = cdzoo.get_weight("LatentEfficientNetLite0_Weights.DEFAULT").build_codec().compress(load_photo(224))[0]
    bodies = [PHOTO.read_bytes(), encode(picture(64, 48)), encode(picture(40, 90, "L")), b"nothing", stream] * 4
    alone = [post(port, body) for body in bodies[:5]]
    assert [status for status, _ in alone] == [200, 200, 200, 400, 200]
    assert alone[0][1]["labels"][0]["name"] == "bell cote"
    assert alone[4][1]["labels"][0]["name"] == "palace"
    assert alone[0][1]["labels"][0]["name"] == cdzoo.classify(PHOTO)[0].classes[0].name
    with ThreadPoolExecutor(20) as pool:
        together = list(pool.map(lambda body: post(port, body), bodies))
    for (status, answer), (expected_status, expected) in zip(together, alone * 4, strict=True):
        assert status == expected_status
        if status == 200:
            assert answer["labels"][0]["name"] == expected["labels"][0]["name"]
            assert answer["labels"][0]["probability"] == pytest.approx(expected["labels"][0]["probability"], abs=1e-4)


def test_files_that_wait_are_one_batch_and_batches_are_bounded(
    port: int, example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, classify_bytes = [], example.classify_bytes

    def slow(contents: list[bytes], networks: Any) -> Any:
        sizes.append(len(contents))
        time.sleep(0.3)
        return classify_bytes(contents, networks)

    monkeypatch.setattr(example, "classify_bytes", slow)
    monkeypatch.setattr(example, "MAX_BATCH", 4)
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda body: post(port, body), [encode(picture(64, 48))] * 10))
    assert [status for status, _ in answers] == [200] * 10
    assert sum(sizes) == 10
    assert max(sizes) == 4
    assert not example.WAITING


def test_a_failure_of_the_network_is_told_and_the_next_request_is_answered(
    port: int, example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(contents: list[bytes], networks: Any) -> Any:
        time.sleep(0.1)
        raise RuntimeError

    def status() -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/", PHOTO.read_bytes())
        answered = connection.getresponse().status
        connection.close()
        return answered

    monkeypatch.setattr(example, "classify_bytes", fail)
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda _: status(), range(3))) == [500] * 3
    monkeypatch.undo()
    assert status() == 200


def test_what_it_refuses(port: int, example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = PHOTO.read_bytes()
    for body in (photo[: len(photo) // 2], b"\x89PNG\r\n", b"CDZ1" + bytes(40)):
        status, answer = post(port, body)
        assert status == 400
        assert answer["detail"]
    assert post(port, b"")[0] == 413
    status, answer = post(port, bytes(example.MAX_BYTES + 1))
    assert status == 413
    assert str(example.MAX_BYTES) in answer["detail"]
    monkeypatch.setattr(example, "MAX_BYTES", 1000)
    assert post(port, photo)[0] == 413
    monkeypatch.undo()
    monkeypatch.setattr(example, "NETWORKS", example.Networks(max_pixels=1000))
    status, answer = post(port, photo)
    assert status == 400
    assert "1000" in answer["detail"]


def test_a_header_that_lies(port: int) -> None:
    for length in ("-1", "1e9", "9" * 5000):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(f"POST / HTTP/1.0\r\nContent-Length: {length}\r\n\r\n".encode())
            client.shutdown(socket.SHUT_WR)
            answer = client.makefile("rb").read()
        assert answer == b"" or b" 400 " in answer.splitlines()[0]
    assert post(port, PHOTO.read_bytes())[0] == 200


def test_silent_clients_are_cut_off_and_do_not_block_others(
    port: int, example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "MAX_SECONDS", 1)
    monkeypatch.setattr(example, "PLACES", asyncio.Semaphore(4))
    silent = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(6)]
    for client in silent:
        client.sendall(b"POST / HTTP/1.1\r\nHost: me\r\nContent-Length: 1000\r\n\r\n")
    assert post(port, PHOTO.read_bytes())[0] == 200
    assert b" 408 " in silent[0].recv(1000)
    for client in silent:
        client.close()
