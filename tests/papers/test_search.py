"""Search in the papers index: what is found, in which order, and what is said of bad input."""

from __future__ import annotations

import re

import pytest

from jaxgrad import papers


def keys(*words, **options):
    return [paper.key for paper in papers.search(*words, **options)]


@pytest.fixture
def small(monkeypatch):
    """An index of three papers that say what a test wants them to say."""
    base = papers.get("lloyd1982least")._replace(implements=(), tags=("clustering",), summary={"en": "", "zh": ""})
    index = {}

    def install(**papers_by_key):
        index.update({key: base._replace(key=key, **fields) for key, fields in papers_by_key.items()})

    monkeypatch.setattr("jaxgrad.papers._search.records", lambda: index)
    return install


class TestWords:
    def test_all_have_to_occur(self):
        found = set(keys("orthogonal"))
        assert {"saxe2014exact", "mezzadri2007generate"} <= found
        assert "saxe2014exact" in keys("orthogonal saxe")
        assert set(keys("orthogonal linear")) == found & set(keys("linear"))
        assert not keys("orthogonal zebra")

    def test_beginning_of_a_word_and_not_its_inside(self, small):
        small(a2000x={"title": "Overfitting"}, b2000x={"title": "Fitting curves"}, c2000x={"title": "How to fit"})
        assert keys("fit") == ["b2000x", "c2000x"]

    @pytest.mark.parametrize("words", ["HUBER", "huber", "  Huber  "])
    def test_case_and_spaces(self, words):
        assert keys(words)[0] == "huber1964robust"

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("Gülçehre, Çağlar", "gulcehre caglar"),
            ("Yıldız, Işık", "yildiz isik"),
            ("Łukasiewicz, Ørjan", "lukasiewicz orjan"),
            ("Strauß, Æmilia", "strauss aemilia"),
            ("Gulcehre, Caglar", "GÜLÇEHRE"),
            ("Gu\u0308l, Ada", "gül"),
        ],
    )
    def test_accents(self, small, name, words):
        small(a2000x={"authors": (name,)}, b2000x={"authors": ("Other, Name",)})
        assert keys(words) == ["a2000x"]

    @pytest.mark.parametrize(
        ("words", "found"),
        [
            ("k-means", ["a2000x"]),
            ("means", ["a2000x", "b2000x"]),
            ("k means", ["a2000x", "b2000x"]),  # two words, which need not stand side by side
            ("(k-means++)", ["a2000x"]),
            ("k_means, seeding", ["a2000x"]),
        ],
    )
    def test_punctuation(self, small, words, found):
        small(a2000x={"title": "K-means: seeding"}, b2000x={"title": "Known means"})
        assert keys(words) == found

    @pytest.mark.parametrize(
        ("words", "key"),
        [
            ("saxe2014exact", "saxe2014exact"),
            ("saxe 2014", "saxe2014exact"),
            ("1312.6120", "saxe2014exact"),
            ("10.1109/TIT.1982.1056489", "lloyd1982least"),
            ("jaxgrad.losses.kl_divergence", "kullback1951information"),
            ("kl_divergence", "kullback1951information"),
        ],
    )
    def test_other_places(self, words, key):
        assert keys(words)[0] == key

    def test_chinese_anywhere(self, small):
        small(
            a2000x={"summary": {"en": "", "zh": "权重的正交初始化，使梯度不消失。"}},
            b2000x={"summary": {"en": "", "zh": "正则化。"}},
        )
        assert keys("正交") == keys("初始化") == keys("梯度，正交") == ["a2000x"]
        assert keys("正") == ["a2000x", "b2000x"]
        assert not keys("交正")

    def test_chinese_of_the_index(self):
        assert set(keys("梯度")) > {"pascanu2013difficulty"}

    @pytest.mark.parametrize("words", ["", "   ", "- , !"])
    def test_without_words_all_by_key(self, words):
        found = keys(words)
        assert len(found) > 150
        assert found == sorted(found)

    def test_ranking(self, small):
        small(
            a2000x={"summary": {"en": "On orthogonal weights.", "zh": ""}},
            b2000x={"tags": ("orthogonal",)},
            c2000x={"title": "Orthogonal weights"},
            d2000x={"title": "Orthogonal nets"},
        )
        assert keys("orthogonal") == ["c2000x", "d2000x", "b2000x", "a2000x"]
        assert keys("weights orthogonal") == ["c2000x", "a2000x"]


class TestOptions:
    def test_author(self):
        found = set(keys(author="Hinton"))
        assert {"srivastava2014dropout", "nair2010rectified"} <= found
        assert all(any("Hinton" in name for name in papers.get(key).authors) for key in found)

    @pytest.mark.parametrize("author", ["Kaiming He", "He, Kaiming", "kaiming", "he kai"])
    def test_author_in_any_order(self, author):
        assert "he2015delving" in keys(author=author)

    def test_author_is_one_person(self, small):
        small(a2000x={"authors": ("Smith, Ada", "Jones, Bob")})
        assert keys(author="Ada Smith") == ["a2000x"]
        assert not keys(author="Bob Smith")

    def test_year(self):
        assert {papers.get(key).year for key in keys(year=2015)} == {2015}
        assert {papers.get(key).year for key in keys(year=(2014, 2016))} == {2014, 2015, 2016}
        assert keys(year=(2015, 2015)) == keys(year=2015)
        assert not keys(year=1801)

    def test_tag(self, small):
        small(a2000x={"tags": ("depth",)}, b2000x={"tags": ("width", "depth")}, c2000x={"tags": ("width",)})
        assert keys(tag="depth") == ["a2000x", "b2000x"]

    def test_category(self):
        assert {papers.get(key).category for key in keys(category="clustering")} == {"clustering"}
        assert {key for name in papers.CATEGORIES for key in keys(category=name)} == set(keys())

    def test_together(self):
        found = keys("initialization", author="Glorot", year=(2005, 2012))
        assert found == ["glorot2010understanding"]
        assert not keys("initialization", author="Glorot", year=2011)


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"category": "initialisation"}, "got 'initialisation'.\nTo fix it: take 'initialization', or another of"),
            ({"category": "zzz"}, "got 'zzz'.\nTo fix it: take one of image-classification, modules"),
            ({"year": (2015, 2014)}, "year as (first, last); got (2015, 2014).\nTo fix it: swap the two"),
        ],
    )
    def test_refused(self, options, words):
        with pytest.raises(ValueError, match=rf"^papers.search: expected .*{re.escape(words)}"):
            papers.search(**options)

    def test_tag(self, small):
        small(a2000x={"tags": ("depth", "width")})
        with pytest.raises(ValueError, match=r"a tag of the index; got 'deph'.\nTo fix it: take 'depth', or another"):
            papers.search(tag="deph")

    @pytest.mark.parametrize("year", ["2014", 2014.0, True, (2014,), (2014, 2015, 2016), [2014, 2015], (2014, "2015")])
    def test_year(self, unchecked, year):
        with pytest.raises(ValueError, match=r"expected year, or \(first, last\); got .*\nTo fix it: pass 2015"):
            papers.search(year=year)


class TestGet:
    def test_nearest_key(self):
        with pytest.raises(ValueError, match=r"papers.get: .*got 'he2015delvin'.\nTo fix it: take 'he2015delving', or"):
            papers.get("he2015delvin")

    def test_nothing_near(self):
        with pytest.raises(ValueError, match=r"got '!'.\nTo fix it: look with papers.search"):
            papers.get("!")
