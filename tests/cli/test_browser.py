"""The demonstration, and the site's sortable tables, in Chromium.

Run ``pytest -m browser`` in an environment with ``cdzoo[app]``, ``cdzoo[docs]`` and Playwright.
"""

from __future__ import annotations

import importlib
import os
import re
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
from cdzoo.codecs import read_header
from cdzoo.codecs.hyperprior import RATES
from cdzoo.demo import PHOTO

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium"),
]
DOCS = Path(__file__).parents[2] / "docs"
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
    [stream] = RATES[0].build_codec().compress(cdzoo.load_images(PHOTO))
    see(page, "figures", f"{len(stream):,} bytes, {read_header(stream).bpp:.2f} bits per pixel")
    see(page, "from-latents", "%")


def test_a_broken_file_has_a_message(server: tuple[str, Path], browser: Any) -> None:
    page = open_page(browser, server[0])
    upload(page, ("broken.jpg", b"nothing"))
    see(page, "message", "broken.jpg cannot be read")


def test_several_files_give_a_table(server: tuple[str, Path], browser: Any) -> None:
    page = open_page(browser, server[0])
    upload(page, ("palace.jpg", PHOTO.read_bytes()), ("broken.jpg", b"nothing"), ("other.jpg", encode(picture(64, 48))))
    for text in ("palace.jpg", "broken.jpg", "64x48"):
        see(page, "table", text)


def test_a_folder_gives_a_table(server: tuple[str, Path], browser: Any, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "notes.txt").write_text("no photograph")
    (tmp_path / "palace.jpg").write_bytes(PHOTO.read_bytes())
    (tmp_path / "below" / "cut.jpg").write_bytes(PHOTO.read_bytes()[:20_000])
    page = open_page(browser, server[0])
    page.locator("input[type=file][webkitdirectory]").set_input_files(tmp_path)
    for text in ("palace.jpg", "cut.jpg", "damaged"):
        see(page, "table", text)
    assert page.locator("#table tr").count() == 3


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


COLUMN = """column => [...document.querySelectorAll("tbody tr")].map(row => row.cells[column].textContent.trim())"""


def sorted_columns(browser: Any, file: Path, header: list[str], rows: list[list[str]]) -> list[list[list[str]]]:
    """Each column of a sortable table after one click and after two clicks on its head."""
    cells = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows).replace("`", "")
    heads = "".join(f"<th>{text}</th>" for text in header)
    script = (DOCS / "_static" / "sortable.js").read_text(encoding="utf-8")
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{cells}</tbody></table>"
    file.write_text(f'<meta charset="utf-8"><script>{script}</script><div class="sortable">{table}</div>', "utf-8")
    page = open_page(browser, file.as_uri())
    found = []
    for column in range(len(header)):
        orders = []
        for order in ("ascending", "descending"):
            page.locator("th").nth(column).click()
            assert page.locator("th").nth(column).get_attribute("aria-sort") == order
            assert page.locator("th[aria-sort]").count() == 1
            orders.append(page.evaluate(COLUMN, column))
        found.append(orders)
    return found


def test_a_column_of_numbers_is_sorted_as_numbers(browser: Any, tmp_path: Path) -> None:
    values = ["10.0", "", "0.9", "1,024", "0.14", "", "9.5", "-3"]
    [[up, down]] = sorted_columns(browser, tmp_path / "page.html", ["number"], [[value] for value in values])
    assert up == ["-3", "0.14", "0.9", "9.5", "10.0", "1,024", "", ""]
    assert down == ["1,024", "10.0", "9.5", "0.9", "0.14", "-3", "", ""]


def test_every_column_of_the_weights_table_is_sorted(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(DOCS / "_ext")
    header, rows, numbers = importlib.import_module("tables").TABLES["weights-table"]
    for column, (up, down) in enumerate(sorted_columns(browser, tmp_path / "page.html", header, list(rows()))):
        present = [value for value in up if value]
        assert up == present + [""] * (len(up) - len(present))
        assert sorted(up) == sorted(down)
        assert [value for value in down if value] == down[: len(present)]
        if column in numbers:
            assert [float(value) for value in present] == sorted(map(float, present))
            assert [float(value) for value in down[: len(present)]] == sorted(map(float, present), reverse=True)
        else:
            assert [key(value) for value in present] == sorted(map(key, present))
            assert down[: len(present)] == sorted(present, key=key, reverse=True)


def key(text: str) -> list[tuple[int, int, str]]:
    """Numbers by value, and before words."""
    parts = re.findall(r"\d+|[^\W\d]+", text)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part.lower()) for part in parts]
