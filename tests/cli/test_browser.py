"""The demonstration in Chromium: ``pytest -m browser``, in an environment with ``cdzoo[app]`` and Playwright."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from oracles.jpeg_files import encode, picture

import cdzoo
from cdzoo.demo import PHOTO

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium"),
]
WAIT = 120_000  # milliseconds; machines that run tests are busy


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The page's address, and the folder in which the server keeps its files."""
    pytest.importorskip("gradio")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("kept")
    environment = {**os.environ, "PYTHONPATH": str(Path(cdzoo.__file__).parent.parent), "TMPDIR": str(folder)}
    command = [sys.executable, "-m", "cdzoo", "demo", "--serve", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1000):
            try:
                urlopen(url, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.5)
        yield url, folder
    finally:
        process.terminate()
        process.wait(60)
    assert not list(folder.glob("cdzoo-demo-*"))  # nothing is kept


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def open_page(browser: Any, url: str) -> Any:
    page = browser.new_context().new_page()
    page.set_default_timeout(WAIT)
    page.goto(url)
    return page


def upload(page: Any, *files: tuple[str, bytes]) -> None:
    payload = [{"name": name, "mimeType": "image/jpeg", "buffer": data} for name, data in files]
    page.locator("input[type=file]").first.set_input_files(payload)


def see(page: Any, part: str, text: str) -> None:
    found = page.locator(f"#{part}", has_text=text)
    found.wait_for()
    assert text in found.inner_text()


def test_a_photograph_is_labeled_and_decoded(server: tuple[str, Path], browser: Any) -> None:
    page = open_page(browser, server[0])
    upload(page, ("palace.jpg", PHOTO.read_bytes()))
    see(page, "from-coefficients", "palace")
    see(page, "from-latents", "%")
    see(page, "figures", "bits per pixel")
    page.locator("#decoded img").wait_for()
    assert page.locator("#decoded img").evaluate("image => image.naturalWidth") == 640
    page.locator("#channels img").wait_for()
    page.locator("input[type=range]").fill("0")
    see(page, "message", "No packaged network reads latents at this rate")


def test_a_broken_file_has_a_message(server: tuple[str, Path], browser: Any) -> None:
    page = open_page(browser, server[0])
    upload(page, ("broken.jpg", b"nothing"))
    see(page, "message", "broken.jpg cannot be read")


def test_several_files_give_a_table(server: tuple[str, Path], browser: Any) -> None:
    page = open_page(browser, server[0])
    upload(page, ("palace.jpg", PHOTO.read_bytes()), ("broken.jpg", b"nothing"), ("other.jpg", encode(picture(64, 48))))
    for text in ("palace.jpg", "broken.jpg", "64x48"):
        see(page, "table", text)


def test_two_users_see_their_own_photographs(server: tuple[str, Path], browser: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.jpg"
    other.write_bytes(encode(picture(64, 48)))
    (expected,) = cdzoo.classify(other)
    pages = [open_page(browser, server[0]) for _ in range(2)]
    upload(pages[0], ("palace.jpg", PHOTO.read_bytes()))
    upload(pages[1], ("other.jpg", other.read_bytes()))
    see(pages[1], "from-coefficients", expected.classes[0].name)
    see(pages[0], "from-coefficients", "palace")
    see(pages[0], "figures", "palace.jpg")
    see(pages[1], "figures", "other.jpg")


def test_a_file_that_is_too_large_is_refused(server: tuple[str, Path]) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
    for size, status in ((1000, 200), (21_000_000, 413)):
        request = Request(f"{server[0]}/gradio_api/upload", head + bytes(size) + b"\r\n--x--\r\n")
        request.add_header("Content-Type", "multipart/form-data; boundary=x")
        try:
            with urlopen(request, timeout=120) as response:
                found = response.status
        except HTTPError as error:
            found = error.code
        assert found == status
