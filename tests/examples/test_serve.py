"""The server of the examples: many clients at once, and clients that send what it must refuse."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest
from oracles.jpeg_files import encode, picture

import cdzoo
from cdzoo.demo import PHOTO, load_photo


@pytest.fixture(scope="module")
def example(load_example: Callable[[str], ModuleType]) -> ModuleType:
    return load_example("serve")


@pytest.fixture(scope="module")
def port(example: ModuleType) -> Iterator[int]:
    example.Handler.log_message = lambda *args: None
    with example.Server(("127.0.0.1", 0), example.Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def post(port: int, body: bytes) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/", body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_concurrent_clients_get_the_labels_of_their_own_files(port: int) -> None:
    stream = cdzoo.get_weight("FA_cResNet39_Weights.DEFAULT").build_codec().compress(load_photo(224))[0]
    bodies = [PHOTO.read_bytes(), encode(picture(64, 48)), encode(picture(40, 90, "L")), b"nothing", stream] * 4
    alone = [post(port, body) for body in bodies[:5]]
    assert [status for status, _ in alone] == [200, 200, 200, 400, 200]
    assert alone[0][1]["labels"][0]["name"] == "palace"
    assert alone[4][1]["labels"][0]["name"] == "church"
    assert alone[0][1]["labels"][0]["name"] == cdzoo.classify(PHOTO)[0].classes[0].name
    with ThreadPoolExecutor(20) as pool:
        together = list(pool.map(lambda body: post(port, body), bodies))
    for (status, answer), (expected_status, expected) in zip(together, alone * 4, strict=True):
        assert status == expected_status
        if status == 200:
            assert answer["labels"][0]["name"] == expected["labels"][0]["name"]
            assert answer["labels"][0]["probability"] == pytest.approx(expected["labels"][0]["probability"], abs=1e-4)


def test_what_it_refuses(port: int, example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = PHOTO.read_bytes()
    for body in (photo[: len(photo) // 2], b"\x89PNG\r\n", b"CDZ1" + bytes(40)):
        status, answer = post(port, body)
        assert status == 400
        assert answer["error"]
    assert post(port, b"")[0] == 413
    monkeypatch.setattr(example, "MAX_BYTES", 1000)
    status, answer = post(port, photo)
    assert status == 413
    assert "1000" in answer["error"]
    monkeypatch.undo()
    monkeypatch.setattr(example, "MAX_PIXELS", 1000)
    status, answer = post(port, photo)
    assert status == 400
    assert "1000" in answer["error"]


def test_a_header_that_lies(port: int) -> None:
    for length in ("-1", "1e9", "9" * 5000, ""):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(f"POST / HTTP/1.0\r\nContent-Length: {length}\r\n\r\n".encode())
            client.shutdown(socket.SHUT_WR)
            answer = client.makefile("rb").read()
        assert b" 413 " in answer.splitlines()[0]
        assert "error" in json.loads(answer.partition(b"\r\n\r\n")[2])


def test_silent_clients_are_cut_off_and_do_not_block_others(
    port: int, example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example.Handler, "timeout", 1)
    silent = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(example.MAX_THREADS + 5)]
    assert post(port, PHOTO.read_bytes())[0] == 200
    assert silent[0].recv(1) == b""
    for client in silent:
        client.close()
