"""The built documentation on a port of its own, and a headless Chromium that opens its pages.

Not collected unless named, since it needs both: `pytest tests/site`, or `nox -s site`, which builds what it looks at.
"""

from __future__ import annotations

import functools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

Window = Callable[..., Page]

# One of what the build makes many of, and every page that somebody wrote.
PAGES = (
    "index.html",
    "get-started.html",
    "guides/*.html",
    "concepts/*.html",
    "gallery/*.html",
    "papers/index.html",
    "papers/category/initialization.html",
    "papers/glorot2010understanding.html",
    "papers/hochreiter1991untersuchungen.html",
    "api/index.html",
    "api/command-line.html",
    "api/generated/jaxgrad.normalization.html",
    "api/generated/jaxgrad.losses.huber_loss.html",
    "api/generated/jaxgrad.losses.softmax_cross_entropy_with_integer_labels.html",
    "api/generated/jaxgrad.diagnosis.Report.html",
    "references.html",
    "changelog.html",
    "search.html",
    "zh-cn/index.html",
    "zh-cn/concepts/*.html",
    "zh-cn/search.html",
)
# The pages a test runs on, by the name of its argument: those with this in them.
CONTENTS = {"path": "", "path_with_math": "<math", "path_with_figures": "<img "}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("site")
    group.addoption("--site", type=Path, default=Path("docs/_build/html"), help="the built documentation")
    group.addoption("--screenshots", type=Path, help="a folder for a picture of every page, wide and narrow")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder, pictures = (metafunc.config.getoption(name) for name in ("site", "screenshots"))
    wanted = not (metafunc.function.__name__ == "test_pictures" and pictures is None)
    for name, content in CONTENTS.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, pages(folder, content) if wanted else [])


def pages(folder: Path, content: str) -> list[str]:
    """The pages to open, among those that exist and hold this."""
    found = [path for pattern in PAGES for path in sorted(folder.glob(pattern)) if content in path.read_text("utf-8")]
    return [path.relative_to(folder).as_posix() for path in found]


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def site(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of the site, with a slash."""
    folder = request.config.getoption("site")
    if not (folder / "index.html").is_file():
        pytest.skip(f"no documentation in {folder}: build it, or name another folder with --site")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium as it is installed: Playwright would fetch one of its own."""
    named = os.environ.get("CHROMIUM")
    found = shutil.which(named) if named else shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        pytest.skip(f"no Chromium: {named or 'chromium'} is not on PATH; set CHROMIUM to one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def window(browser: Browser, site: str) -> Iterator[Window]:
    """Open an empty window, whose addresses start at the site; options go to the browser's context."""
    contexts: list[BrowserContext] = []

    def window(width: int = 1280, **options: Any) -> Page:
        contexts.append(browser.new_context(base_url=site, viewport={"width": width, "height": 900}, **options))
        return contexts[-1].new_page()

    yield window
    for context in contexts:
        context.close()


@pytest.fixture
def page(window: Window) -> Page:
    """A wide window of a reader who prefers light pages."""
    return window()
