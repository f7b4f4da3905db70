"""The page shows everything as text, and refers to nothing but itself."""

from __future__ import annotations

import re
from html import escape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from interp.reports.charts import Curve, LineChart, Scale
from interp.reports.latents import Context, Latent, LatentExamples, Partner, Stratum, TokenShare
from interp.reports.page import Table, number, write_report
from interp.reports.words import parts, visible
from interp.texts import token_texts

HOSTILE = [
    "<script>",
    "alert(1)",
    "</script>",
    "</style><b>",
    "\"'><img src=x onerror=alert(1)>",
    "-->",
    "&lt;",
    "&#60;",
    "\u202eevil",
    "\u2066",
    "\u2069",
    "\u200f",
    "\u061c",
    "\u200b",
    "\ufeff",
    "\x00",
    "\x1b[31m",
    "\ud800",
    "\U000e0041",
    "שלום",
    "مرحبا",
    "\u0301",
    "\n",
    "\t",
    "    ",
    " ",
    "",
    "�",
]

TAGS = "html head meta title style body main header section article h1 h2 h3 h4 p div b i small bdi a dl dt dd"
TAGS += " table caption thead tbody tr th td ol li span svg text line polyline circle rect"


def latent(tokens: list[str], name: int = 3) -> Latent:
    activations = tuple(i / len(tokens) for i in range(len(tokens)))
    context = Context(0, 5, tuple(tokens), activations, len(tokens) - 1)
    effects = tuple((t, 0.5) for t in tokens)
    return of_contexts(name, (context,), (context,), effects)


def of_contexts(
    name: int, top: tuple[Context, ...], drawn: tuple[Context, ...] = (), effects: tuple[tuple[str, float], ...] = ()
) -> Latent:
    shares = tuple(TokenShare(t, 0.25, 3, 12) for t, _ in effects)
    return Latent(
        index=name,
        firings=6,
        density=0.01,
        maximum=max(c.activation for c in top),
        mean=0.5,
        edges=(0.5, 0.6, 0.7, 0.8),
        histogram=(3, 2, 1),
        top=top,
        strata=(Stratum(0.5, 1.0, 6, drawn),) if drawn else (),
        tokens=shares,
        partners=(Partner(name + 1, 5, 0.5),),
        neighbours=((name + 1, 0.75),),
        promoted=effects,
        suppressed=effects,
    )


def page(tmp_path: Path, tokens: list[str] = HOSTILE, title: str = "A page") -> str:
    curve = Curve("SAE <1>", [10, 20, 30], [0.9, 0.4, 0.1])
    write_report(
        tmp_path / "report.html",
        title,
        lead=title,
        facts={title: title},
        highlights=[(title, title, title)],
        tables=[Table(title, [title, "b"], [[title, 0.25], ["c", None]], title)],
        charts=[LineChart(title, title, [curve], {title: 0.3}), Scale(title, title, {title: {title: 1.0, "b": 2.0}})],
        latents=LatentExamples((latent(tokens),), 1000),
        about_latents=title,
    )
    return (tmp_path / "report.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Tags, attributes and text as a browser would take them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.meta: dict[str, str | None] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        given = dict(attrs)
        if tag == "meta" and given.get("http-equiv"):
            self.meta[str(given["http-equiv"])] = given.get("content")

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader


@pytest.mark.parametrize("title", ["A page", "<script>alert(1)</script>", "\"'><img src=x>", "</title></style>"])
def test_hostile_text_stays_text(tmp_path: Path, title: str) -> None:
    found = read(page(tmp_path, title=title))
    assert found.tags <= set(TAGS.split())
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    for shown in ("<script>", "</script>", "<img src=x onerror=alert(1)>", "&lt;", "&#60;", "-->", title):
        assert shown in found.text


def test_nothing_hidden_is_left_in_the_page(tmp_path: Path) -> None:
    html = page(tmp_path)
    hidden = re.compile("[\u202a-\u202e\u2066-\u2069\u200b-\u200f\u061c\ufeff\x00-\x09\x0b-\x1f\ud800-\udfff]")
    assert not hidden.search(html)
    for code in ("202E", "2066", "200F", "061C", "FEFF", "0000", "D800", "E0041"):
        assert f"⟨U+{code}⟩" in html
    assert "↵" in html
    assert "⇥" in html


def test_every_token_is_isolated(tmp_path: Path) -> None:
    html = page(tmp_path)
    assert "bdi { unicode-bidi: isolate; }" in html
    contexts = re.findall(r'<p dir="ltr">(.*?)</p>', html)
    assert len(contexts) == 2
    for context in contexts:
        assert context.count("<bdi") == context.count("</bdi>") == len(HOSTILE)
        assert re.fullmatch(r"(<bdi[^>]*>.*?</bdi>)*", context)


def test_the_page_refers_to_nothing_outside(tmp_path: Path) -> None:
    html = page(tmp_path, tokens=["a", "b"])
    found = read(html)
    places = [
        value or "" for name, value in found.attributes if name in ("src", "href", "srcset", "data", "action", "poster")
    ]
    assert places
    assert all(place.startswith("#") for place in places)
    assert not re.search(
        r"https?:|//[a-z]|url\(|@import|<script|<link|<iframe|<object|<embed|javascript:", html, re.IGNORECASE
    )


def test_the_policy_forbids_fetching_and_scripts(tmp_path: Path) -> None:
    policy = read(page(tmp_path)).meta["Content-Security-Policy"] or ""
    assert "default-src 'none'; style-src 'unsafe-inline'" in policy
    assert policy.count("src") == 2


def test_a_page_of_ten_latents_is_small(tmp_path: Path) -> None:
    words = ["word"] * 33
    contexts = tuple(Context(0, 50 * i, tuple(words), tuple([0.5] * 33), 16) for i in range(12))
    ten = tuple(of_contexts(i, contexts[:8], contexts[8:]) for i in range(10))
    write_report(tmp_path / "r.html", "t", latents=LatentExamples(ten, 1000))
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert len(html) < 1_000_000
    assert html.count("<article") == 10


def test_the_highlight_is_the_share_of_the_strongest(tmp_path: Path) -> None:
    context = Context(0, 2, ("no", "half", "most"), (0.0, 2.0, 4.0), 2)
    write_report(tmp_path / "r.html", "t", latents=LatentExamples((of_contexts(0, (context,)),), 3))
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert '<bdi>no</bdi><bdi class="a5" title="2.000">half</bdi><bdi class="a10 peak" title="4.000">most</bdi>' in html


def test_an_old_page_survives_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = page(tmp_path)

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        write_report(tmp_path / "report.html", "new")
    monkeypatch.undo()
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_charts_that_are_nearly_empty() -> None:
    one = LineChart("t", "step", [Curve("c", [50], [0.5])]).svg()
    assert "nan" not in one
    assert Scale("t", "nats", {"a": {"clean": 1.0, "zero": 1.0}}).svg().count("<circle") == 2


def test_labels_of_a_scale_do_not_touch() -> None:
    svg = Scale("t", "nats", {"a": {"clean": 1.0, "b": 1.01, "mean": 1.02, "zero": 9.0}}).svg()
    above = re.findall(r'<text class="name s[02]" x="([\d.]+)" y="[\d.]+" text-anchor="middle">([^<]*)<', svg)
    (x1, first), (x2, second) = above
    assert float(x2) - float(x1) > 3.5 * (len(first) + len(second))


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "–"), (3, "3"), (18234.4, "18,234"), (0.25, "0.250"), (32.04, "32.0")]
)
def test_numbers_are_rounded_to_be_read(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_spaces_show_where_they_would_not_be_seen() -> None:
    assert visible(" word") == " word"
    assert visible("    ").count("·") == 4
    assert visible(" ").count("·") == 1
    assert visible("\u0301x").startswith("◌")
    assert visible("") == '<i class="w">∅</i>'


def test_the_parts_of_a_text_are_its_html_without_tags() -> None:
    for text in HOSTILE:
        joined = "".join(f'<i class="w">{escape(s)}</i>' if mark else escape(s) for s, mark in parts(text))
        assert joined == visible(text)
        assert all(a != b for (_, a), (_, b) in pairwise(parts(text)))
    assert parts("a\n\n<b>") == [("a", False), ("↵↵", True), ("<b>", False)]


def test_texts_of_tokens() -> None:
    pieces = {0: "▁the", 1: "Ġa", 2: "<s>"}
    tokenizer = SimpleNamespace(
        convert_ids_to_tokens=pieces.get,
        decode=lambda ids, **_: {1: " a", 2: "<s>"}[ids[0]],
    )
    assert token_texts(tokenizer)([0, 1, 2, 0]) == [" the", " a", "<s>", " the"]
    assert token_texts(None)([5]) == ["[5]"]
