"""The table of papers: search, filters and order, by keyboard too, against the rows read without JavaScript."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

TABLE = "papers/index.html"


class Row(NamedTuple):
    """The text of a row, with what is hidden from the eye."""

    title: str
    authors: str
    year: str
    venue: str
    category: str
    tags: str
    implemented: str
    claims: str


def read(page: Page) -> list[Row]:
    """The rows shown."""
    cells = (
        "rows => rows.filter(row => row.checkVisibility()).map(row => [...row.cells].map(c => c.textContent.trim()))"
    )
    return [Row(*row) for row in page.locator("table.papers-table tbody tr").evaluate_all(cells)]


@pytest.fixture(scope="module")
def rows(browser: Browser, site: str) -> list[Row]:
    """Every row, from a browser without JavaScript."""
    context = browser.new_context(base_url=site, java_script_enabled=False)
    page = context.new_page()
    page.goto(TABLE)
    found = read(page)
    context.close()
    return found


@pytest.fixture
def table(page: Page) -> Page:
    page.goto(TABLE)
    return page


def field(page: Page, role: str, name: str) -> Locator:
    return page.get_by_role("search", name="Papers").get_by_role(role, name=name, exact=True)


def shows(page: Page, rows: list[Row], fits: Callable[[Row], object]) -> None:
    """The table shows the rows that fit, some but not all, and the live region counts them."""
    expected = [row for row in rows if fits(row)]
    assert 0 < len(expected) < len(rows)
    expect(page.get_by_role("status")).to_have_text(f"{len(expected)} of {len(rows)} papers")
    assert read(page) == expected


def test_without_javascript_every_paper_is_there(rows: list[Row], window):
    scripted = window()
    scripted.goto(TABLE)
    assert read(scripted) == rows
    assert len(rows) > 100
    assert all(row.title and row.authors and re.fullmatch(r"\d{4}", row.year) and row.category for row in rows)


def test_without_javascript_there_is_no_form(window):
    page = window(java_script_enabled=False)
    page.goto(TABLE)
    expect(page.get_by_role("search", name="Papers")).to_have_count(0)
    expect(page.locator("table.papers-table button")).to_have_count(0)


@pytest.mark.parametrize("text", ["Ribière", "ribiere", "RIBIERE", "Ribie\N{COMBINING GRAVE ACCENT}re"])
def test_search_knows_no_accents_nor_case(table: Page, rows: list[Row], text: str):
    field(table, "searchbox", "Search").fill(text)
    shows(table, rows, lambda row: "Ribière" in row.authors)


def test_search_takes_words_in_any_order(table: Page, rows: list[Row]):
    field(table, "searchbox", "Search").press_sequentially("2010 glorot")
    shows(table, rows, lambda row: "Glorot" in row.authors and row.year == "2010")


def test_search_that_finds_nothing_says_so(table: Page, rows: list[Row]):
    field(table, "searchbox", "Search").fill("zyzzyva")
    expect(table.get_by_role("status")).to_have_text(f"0 of {len(rows)} papers")
    assert read(table) == []


def test_filter_by_category(table: Page, rows: list[Row]):
    field(table, "combobox", "Category").select_option("Initialization")
    shows(table, rows, lambda row: row.category == "Initialization")


def test_filter_by_tag(table: Page, rows: list[Row]):
    tag = rows[0].tags.split(", ")[0]
    field(table, "combobox", "Tag").select_option(tag)
    shows(table, rows, lambda row: tag in row.tags.split(", "))


def test_filter_by_year(table: Page, rows: list[Row]):
    field(table, "spinbutton", "From year").fill("2010")
    shows(table, rows, lambda row: row.year >= "2010")
    field(table, "spinbutton", "To year").fill("2015")
    shows(table, rows, lambda row: "2010" <= row.year <= "2015")


@pytest.mark.parametrize(("label", "column"), [("implemented here", "implemented"), ("with checked claims", "claims")])
def test_filter_by_what_is_here(table: Page, rows: list[Row], label: str, column: str):
    field(table, "checkbox", label).check()
    shows(table, rows, lambda row: getattr(row, column))


def test_filters_hold_together_and_reset_lifts_them(table: Page, rows: list[Row]):
    field(table, "searchbox", "Search").fill("deep")
    field(table, "combobox", "Category").select_option("Initialization")
    field(table, "checkbox", "with checked claims").check()
    shows(table, rows, lambda row: "deep" in plain(row) and row.category == "Initialization" and row.claims)
    table.get_by_role("button", name="Reset").click()
    expect(table.get_by_role("status")).to_have_text(f"{len(rows)} of {len(rows)} papers")
    expect(table).to_have_url(re.compile(r"index\.html$"))


def plain(row: Row) -> str:
    """What the search looks at: all but the counts, without accents and case."""
    text = unicodedata.normalize("NFKD", " ".join(row[:-2]))
    return "".join(letter for letter in text if not unicodedata.combining(letter)).lower()


@pytest.mark.parametrize("column", ["Year", "Claims"])
def test_headers_sort_by_keyboard(table: Page, rows: list[Row], column: str):
    header = table.get_by_role("columnheader", name=column)
    button = header.get_by_role("button")
    index = Row._fields.index(column.lower())
    button.focus()
    for order, key in ("ascending", "Enter"), ("descending", "Space"):
        table.keyboard.press(key)
        expect(header).to_have_attribute("aria-sort", order)
        expect(button).to_be_focused()
        expected = sorted(rows, key=lambda row: int(row[index] or 0), reverse=order == "descending")
        assert read(table) == expected  # ties stay in the order of the page
    expect(table.locator("[aria-sort]")).to_have_count(1)


def test_headers_sort_titles(table: Page, rows: list[Row]):
    table.get_by_role("columnheader", name="Paper").get_by_role("button").press("Enter")
    titles = [row.title for row in read(table)]
    assert titles != [row.title for row in rows]
    assert [title[0].lower() for title in titles] == sorted(title[0].lower() for title in titles)


def test_an_address_keeps_what_is_shown(table: Page, rows: list[Row]):
    field(table, "searchbox", "Search").fill("network")
    field(table, "combobox", "Category").select_option("Initialization")
    field(table, "spinbutton", "From year").fill("2013")
    field(table, "checkbox", "implemented here").check()
    year = table.get_by_role("columnheader", name="Year")
    for _ in range(2):
        year.get_by_role("button").press("Enter")
    before, address = read(table), table.url
    assert 1 < len(before) < len(rows)
    table.reload()
    assert table.url == address
    assert read(table) == before
    expect(year).to_have_attribute("aria-sort", "descending")
    expect(field(table, "searchbox", "Search")).to_have_value("network")
    expect(field(table, "checkbox", "implemented here")).to_be_checked()


def test_a_tag_leads_to_its_papers(table: Page, rows: list[Row]):
    table.goto("papers/glorot2010understanding.html")
    link = table.locator("a.paper-tag").first
    tag = link.inner_text()
    link.click()
    shows(table, rows, lambda row: tag in row.tags.split(", "))
