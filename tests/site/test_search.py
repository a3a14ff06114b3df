"""Sphinx's search, as a reader uses it."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

FOUND = {
    "Glorot": "papers/glorot2010understanding.html",
    "huber_loss": "api/generated/jaxgrad.losses.huber_loss.html",
    "dynamical isometry": "papers/pennington2017resurrecting.html",
}


@pytest.mark.parametrize("words", FOUND)
def test_search_finds_papers_and_functions(page: Page, words: str):
    page.goto(f"search.html?q={words}")
    expect(page.locator(f'#search-results a[href*="{FOUND[words]}"]').first).to_be_visible()


def test_search_is_a_key_away(page: Page):
    page.goto("get-started.html")
    page.keyboard.press("Control+k")
    page.keyboard.type("Glorot")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"search\.html\?q=Glorot"))
    expect(page.locator("#search-results li").first).to_be_visible()


def test_search_says_that_there_is_nothing(page: Page):
    page.goto("search.html?q=zyzzyva")
    expect(page.locator("#search-results")).to_contain_text("did not match any documents")
