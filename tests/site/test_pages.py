"""Every kind of page: math, figures, dark mode, a narrow window, requests, accessibility, and pictures to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page, expect

MODES = ("light", "dark")

# What the console may say. The theme complains, once, that it has no mode to begin with; but given one, it writes
# data-theme="auto" into the pages, and then they have no colours where there is no JavaScript.
ALLOWED_MESSAGES = ("Got invalid theme mode: . Resetting to auto.",)

# Colours as the eye meets them: the luminance of a CSS colour, the contrast of two, and what lies behind an element.
COLOURS = """
const luminance = (rgb) => {
  const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const [r, g, b] = rgb.map((value) => linear(value / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const channels = (colour) => {
  const context = new OffscreenCanvas(1, 1).getContext("2d");
  context.fillStyle = colour;
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data];
};
const backdrop = (element) => {
  for (; element; element = element.parentElement) {
    const found = channels(getComputedStyle(element).backgroundColor);
    if (found[3]) return found.slice(0, 3);
  }
  return [255, 255, 255];
};
const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
"""


def evaluate(page: Page, body: str, *arguments: Any) -> Any:
    return page.evaluate(f"async (given) => {{ {COLOURS} {body} }}", list(arguments))


def load_all(page: Page) -> None:
    """Let pictures load that wait to be scrolled to."""
    page.locator("img").evaluate_all("images => images.forEach(image => image.loading = 'eager')")
    page.wait_for_function("() => [...document.images].every(image => image.complete)")


def test_math_is_drawn(page: Page, path_with_math: str):
    page.goto(path_with_math)
    found = page.locator("math").evaluate_all("""found => found.filter(math => math.checkVisibility()).map(math => {
        const {width, height} = math.getBoundingClientRect();
        return [math.namespaceURI, math.textContent, width, height];
    })""")
    for namespace, text, width, height in found:
        assert namespace == "http://www.w3.org/1998/Math/MathML"
        assert min(width, height) > 1, text


def test_figures_load(page: Page, path_with_figures: str):
    page.goto(path_with_figures)
    load_all(page)
    figures = page.locator("img").evaluate_all("images => images.map(image => [image.src, image.naturalWidth])")
    assert figures
    assert [source for source, width in figures if not width] == []


@pytest.mark.parametrize("mode", MODES)
def test_figures_stand_out(window, path_with_figures: str, mode: str):
    """Some pixels of a figure, laid on what is behind it, differ from that as much as graphics must: 3 to 1."""
    page = window(color_scheme=mode)
    page.goto(path_with_figures)
    load_all(page)
    weak = evaluate(
        page,
        """
        const weak = [];
        for (const image of document.querySelectorAll("article img")) {
          if (!image.checkVisibility()) continue;
          const context = new OffscreenCanvas(image.naturalWidth, image.naturalHeight).getContext("2d");
          context.fillStyle = `rgb(${backdrop(image)})`;
          context.fillRect(0, 0, image.naturalWidth, image.naturalHeight);
          context.drawImage(image, 0, 0);
          const { data } = context.getImageData(0, 0, image.naturalWidth, image.naturalHeight);
          const back = luminance(backdrop(image));
          let strongest = 1;
          for (let i = 0; i < data.length; i += 4)
            strongest = Math.max(strongest, contrast(back, luminance([...data.slice(i, i + 3)])));
          if (strongest < 3) weak.push([image.src, strongest]);
        }
        return weak;
        """,
    )
    assert weak == []


def test_the_switch_sets_a_mode_and_keeps_it(page: Page):
    page.goto("get-started.html")
    root, header = page.locator("html"), page.locator(".bd-header")
    for mode in (*MODES, *MODES):
        header.locator("button.theme-switch-button:visible").click()
        header.locator(f"button.theme-change-button[data-mode={mode}]:visible").click()
        expect(root).to_have_attribute("data-theme", mode)
    page.reload()
    expect(root).to_have_attribute("data-theme", "dark")


@pytest.mark.parametrize("mode", MODES)
def test_text_is_readable(window, path: str, mode: str):
    page = window(color_scheme=mode)
    page.goto(path)
    expect(page.locator("html")).to_have_attribute("data-theme", mode)
    behind, weakest = evaluate(
        page,
        """
        const text = [...document.querySelectorAll("article :is(h1, p, li, td, dd)")];
        const of = (e) => contrast(luminance(channels(getComputedStyle(e).color)), luminance(backdrop(e)));
        return [luminance(backdrop(document.body)), Math.min(...text.filter((e) => e.checkVisibility()).map(of))];
        """,
    )
    assert behind < 0.05 if mode == "dark" else behind > 0.8
    assert weakest >= 4.5


def test_nothing_is_wider_than_a_narrow_window(window, path: str):
    page = window(width=400)
    page.goto(path)
    wide = evaluate(
        page,
        """
        const boxes = [...document.querySelectorAll("html, main, .bd-content, .bd-article-container")];
        return boxes.filter((box) => box.scrollWidth > box.clientWidth)
          .map((box) => [box.tagName, box.className, box.scrollWidth, box.clientWidth]);
        """,
    )
    assert wide == []


def test_nothing_comes_from_elsewhere(page: Page, site: str, path: str):
    requests, failures, messages = [], [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("requestfailed", lambda request: failures.append(request.url))
    page.on("response", lambda response: failures.append(response.url) if response.status >= 400 else None)
    page.on("console", lambda message: messages.append(message.text) if message.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: messages.append(error.message))
    page.goto(path, wait_until="networkidle")
    load_all(page)
    assert [url for url in requests if not url.startswith((site, "data:", "blob:"))] == []
    assert failures == []
    assert [text for text in messages if not any(allowed in text for allowed in ALLOWED_MESSAGES)] == []


@pytest.mark.parametrize("mode", MODES)
def test_axe_finds_nothing_serious(window, path: str, mode: str):
    page = window(color_scheme=mode)
    page.goto(path)
    page.evaluate(AXE_SCRIPT)
    found = page.evaluate("""async () => (await axe.run({resultTypes: ["violations"]})).violations
        .filter(({impact}) => ["serious", "critical"].includes(impact))
        .map(({id, help, nodes}) => [id, help, nodes.map(({target, html, any}) =>
            [target.flat().join(" "), html.slice(0, 200), any.map(({message}) => message).join("; ")])])
    """)
    assert found == []


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("mode", MODES)
def test_pictures(window, request: pytest.FixtureRequest, path: str, mode: str, width: int):
    folder: Path = request.config.getoption("screenshots")
    page = window(width, color_scheme=mode)
    page.goto(path)
    load_all(page)
    name = path.removesuffix(".html").replace("/", "-")
    page.screenshot(path=folder / f"{name}-{mode}-{width}.png", full_page=True)
