"""The Chinese site: the same pages, a link from each to the other language, and a search that knows words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

FOUND = {
    "梯度消失": "concepts/exploding-and-vanishing-gradients.html",
    "扇入": "concepts/initialization.html",
    "主成分": "concepts/pca.html",
    "softmax": "concepts/loss-functions.html",
}


@pytest.mark.parametrize("page_name", ["index.html", "concepts/clipping.html", "papers/glorot2010understanding.html"])
def test_every_page_leads_to_itself_in_the_other_language(page: Page, page_name: str):
    page.goto(page_name)
    header = page.locator(".bd-header")
    header.get_by_role("link", name="中文").click()
    expect(page).to_have_url(re.compile(rf"/zh-cn/{page_name}$"))
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    header.get_by_role("link", name="English").click()
    expect(page).to_have_url(re.compile(rf"(?<!/zh-cn)/{page_name}$"))


def test_both_sites_have_the_same_pages(request: pytest.FixtureRequest, site: str):
    folder: Path = request.config.getoption("site")
    english = {path.relative_to(folder) for path in folder.rglob("*.html")}
    chinese = {path.relative_to(folder / "zh-cn") for path in (folder / "zh-cn").rglob("*.html")}
    assert {path for path in english if path.parts[0] != "zh-cn"} == chinese


def test_concepts_are_chinese(page: Page):
    page.goto("zh-cn/concepts/optimizers.html")
    expect(page.locator("article h1")).to_contain_text("优化器")
    paragraphs = [text for text in page.locator("article p").all_inner_texts() if len(text) > 40]
    assert len(paragraphs) > 20
    assert [text for text in paragraphs if not re.search(r"[\u4e00-\u9fff]", text)] == []


def test_no_markup_is_left_in_the_text(page: Page):
    for name in ("clipping", "exploding-and-vanishing-gradients", "loss-functions", "k-means", "pca"):
        page.goto(f"zh-cn/concepts/{name}.html")
        text = "\n".join(page.locator("article :is(p, li, td, h1, h2, h3)").all_inner_texts())
        assert re.findall(r".{0,20}(?:\*\*|\{func\}|\{cite|\]\().{0,20}", text) == []


@pytest.mark.parametrize("words", FOUND)
def test_search_finds_words_within_a_phrase(page: Page, words: str):
    page.goto(f"zh-cn/search.html?q={words}")
    expect(page.locator(f'#search-results a[href*="{FOUND[words]}"]').first).to_be_visible()
