"""The dashboard: what it holds, for every kind and shape; that text stays text; and what a browser makes of it."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import interp
from interp.dictionaries import Dictionary, DictionaryConfig
from interp.dictionaries.kinds import ACTIVATIONS, COUNTED
from interp.reports.dashboard import EACH, LEVELS, TOP, word, write_dashboard
from interp.reports.latents import latent_examples, logit_effects
from interp.reports.words import parts
from tests import browser
from tests.reports.test_latents import VOCABULARY, grouped, tiny_dictionary, tiny_model
from tests.reports.test_page import HOSTILE

WINDOW, LATENTS = 4, range(40)


@pytest.fixture(scope="module")
def model() -> interp.Model:
    return tiny_model()


@pytest.fixture(scope="module")
def windows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCABULARY, (n,), generator=generator).tolist() for n in (40, 25, 3, *[60] * 30)]


class Reader(HTMLParser):
    """Tags, attributes, and what each script holds."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script" and data.strip():
            self.scripts.append(data)


def read(path: Path) -> tuple[Reader, dict[str, Any], list[dict[str, Any]]]:
    """What is in the page: its elements, its index, and the details of every latent."""
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    index, *blocks = (json.loads(zlib.decompress(base64.b64decode(s), -15)) for s in reader.scripts[:-1])
    return reader, index, [d for block in blocks for d in block]


def written(path: Path, model: interp.Model, windows: list[list[int]], dictionary: Dictionary, **more: Any) -> Path:
    latents = range(dictionary.config.latents)
    write_dashboard(path, dictionary, model, grouped(windows), latents, window=WINDOW, **more)
    return path


@pytest.fixture(scope="module")
def page(model: interp.Model, windows: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    given = {"title": "A dictionary", "facts": {"Seed": "0"}, "labels": {3: "third", 17: 'say "x", <b>'}}
    return written(folder / "d.html", model, windows, tiny_dictionary(), **given)


def test_the_page_holds_what_was_seen(page: Path, model: interp.Model, windows: list[list[int]]) -> None:
    _, index, details = read(page)
    told = latent_examples(tiny_dictionary(), model, grouped(windows), LATENTS, top=TOP, each=EACH, window=WINDOW)
    assert index["tokens"] == told.tokens
    assert len(index["latents"]) == len(details) == 40
    words = index["words"]
    for latent, row, detail in zip(told.latents, index["latents"], details, strict=True):
        number, firings, maximum, mean, label, tokens, promoted, suppressed = row
        assert (number, firings) == (latent.index, latent.firings)
        assert [maximum, mean] == pytest.approx([latent.maximum, latent.mean], rel=1e-3)
        assert label == {3: "third", 17: 'say "x", <b>'}.get(number, "")
        assert [(words[w], n, there) for w, _, n, there in tokens] == [
            (t.token, t.firings, t.occurrences) for t in latent.tokens
        ]
        for shown, meant in ((promoted, latent.promoted), (suppressed, latent.suppressed)):
            assert [words[w] for w, _ in shown] == [t for t, _ in meant]
            assert [v for _, v in shown] == pytest.approx([v for _, v in meant], rel=1e-3)
        assert sum(detail["histogram"]) == firings
        assert [p[0] for p in detail["partners"]] == [p.index for p in latent.partners]
        assert [n for n, _ in detail["neighbours"]] == [n for n, _ in latent.neighbours]
        assert [s[2] for s in detail["strata"]] == [s.firings for s in latent.strata]
        shown = [*detail["top"], *(c for s in detail["strata"] for c in s[3])]
        meant = [*latent.top, *(c for s in latent.strata for c in s.contexts)]
        for (document, position, peak, ids, levels), context in zip(shown, meant, strict=True):
            assert (document, position, peak) == (context.document, context.position, context.peak)
            assert [words[w] for w in ids] == list(context.tokens)
            back = [v / LEVELS * latent.maximum for v in levels]
            assert back == pytest.approx(list(context.activations), abs=latent.maximum / LEVELS)
            assert [v > 0 for v in levels] == [a > 0 for a in context.activations]


def test_the_page_runs_its_own_script_alone_and_fetches_nothing(page: Path) -> None:
    import hashlib

    reader, _, _ = read(page)
    html = page.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(reader.scripts[-1].encode()).digest()).decode()
    assert f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'" in html
    names = {name for name, _ in reader.attributes}
    assert not names & {"src", "href", "action", "srcset"}
    assert not [n for n in names if n.startswith("on")]
    assert not re.search(r"@import|url\(|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|fetch\(", html)


def test_equal_arguments_give_equal_bytes(
    page: Path, model: interp.Model, windows: list[list[int]], tmp_path: Path
) -> None:
    given = {"title": "A dictionary", "facts": {"Seed": "0"}, "labels": {3: "third", 17: 'say "x", <b>'}}
    again = written(tmp_path / "again.html", model, windows, tiny_dictionary(), **given)
    assert again.read_bytes() == page.read_bytes()
    other = written(tmp_path / "other.html", model, windows, tiny_dictionary(), seed=1, **given)
    assert other.read_bytes() != page.read_bytes()


def test_a_word_is_its_parts_by_turns() -> None:
    for text in HOSTILE:
        shown = word(text)
        runs = [shown] if isinstance(shown, str) else shown
        assert [(run, i % 2 == 1) for i, run in enumerate(runs) if run] == parts(text)


def hostile_tokenizer() -> SimpleNamespace:
    texts = [*HOSTILE, "\u2028", "'", '"'][:VOCABULARY]
    return SimpleNamespace(
        bos_token_id=None,
        pad_token_id=0,
        convert_ids_to_tokens=lambda i: texts[i],
        decode=lambda ids, **_: texts[ids[0]],
    )


@pytest.fixture(scope="module")
def hostile(windows: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = interp.load(tiny_model().module, tokenizer=hostile_tokenizer())
    evil = "</title><script>window.hacked = 1</script>"
    path = tmp_path_factory.mktemp("hostile") / "d.html"
    kept = [[i % 31 for i in w] for w in windows]
    return written(path, model, kept, tiny_dictionary(), title=evil, facts={evil: evil}, labels={0: evil, 1: "\u2028"})


def test_hostile_tokens_stay_data(hostile: Path) -> None:
    reader, index, _ = read(hostile)
    assert set(reader.tags) == {"html", "head", "meta", "title", "style", "body", "noscript", "script"}
    html = hostile.read_text(encoding="utf-8")
    assert "\u2028" not in html
    assert "alert(1)" not in html
    assert {"<script>", "</script>", "\"'><img src=x onerror=alert(1)>"} <= {
        w for w in index["words"] if isinstance(w, str)
    }


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_activation_has_a_dashboard(
    activation: str, model: interp.Model, windows: list[list[int]], tmp_path: Path
) -> None:
    site = ("blocks.1.resid_post",)
    config = DictionaryConfig(site, site, 16, 16, 24, 4 if activation in COUNTED else None, activation)
    _, index, details = read(written(tmp_path / "d.html", model, windows, drawn(config)))
    assert sum(row[1] for row in index["latents"]) > 0
    assert all(d["top"] for row, d in zip(index["latents"], details, strict=True) if row[1])


TWO = {"widths_in": (16, 16), "widths_out": (16, 16)}
STREAMS = tuple(f"blocks.{i}.resid_post" for i in (0, 1))
INS, WRITES = (tuple(f"blocks.{i}.mlp.{name}" for i in (0, 1)) for name in ("in", "write"))
SHAPES = {
    "transcoder": DictionaryConfig(INS[1:], WRITES[1:], 16, 16, 24, 4, skip=True),
    "crosscoder": DictionaryConfig(STREAMS, STREAMS, 32, 32, 24, 4, **TWO),
    "clt": DictionaryConfig(INS, WRITES, 32, 32, 24, 4, cross_layer=True, **TWO),
    "inner": DictionaryConfig(("blocks.1.attn.z",), ("blocks.1.attn.z",), 16, 16, 24, 4),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_a_dashboard(shape: str, model: interp.Model, windows: list[list[int]], tmp_path: Path) -> None:
    dictionary = drawn(SHAPES[shape])
    _, index, _ = read(written(tmp_path / "d.html", model, windows, dictionary))
    W, module = dictionary.W_dec.detach(), model.module
    first, last = W[:, :16], W[:, -16:]
    direction = {"transcoder": W, "crosscoder": last, "clt": first + last}.get(shape)
    if direction is None:
        assert logit_effects(dictionary, model, [5]) == [((), ())]
        assert index["latents"][5][6:] == [[], []]
    else:
        logits = (direction[5] @ (module.lm_head.weight * module.model.norm.weight).T).detach()  # type: ignore[union-attr]
        words = [index["words"][w] for w, _ in index["latents"][5][6]]
        assert words == [f"[{i}]" for i in logits.topk(10).indices.tolist()]


def drawn(config: DictionaryConfig) -> Dictionary:
    generator = torch.Generator().manual_seed(7)
    dictionary = Dictionary(config).double()
    with torch.no_grad():
        for p in dictionary.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
        dictionary.confine()
    return dictionary


def test_no_latent_fires(model: interp.Model, windows: list[list[int]], tmp_path: Path) -> None:
    dictionary = tiny_dictionary()
    with torch.no_grad():
        dictionary.b_enc.fill_(-1e6)
    _, index, details = read(written(tmp_path / "d.html", model, windows, dictionary))
    assert index["fired"] == [[40]]
    assert all(not d["top"] and not d["strata"] and not d["histogram"] for d in details)


# ------------------------------------------------------------ in a browser

in_a_browser = pytest.mark.skipif(browser.FOUND is None, reason=f"needs one of {', '.join(browser.NAMES)}")


@pytest.fixture(scope="module")
def tab() -> Iterator[browser.Browser]:
    opened = browser.Browser()
    yield opened
    opened.close()


def shown(tab: browser.Browser) -> int:
    """Which latent is in sight."""
    return int(tab.run("document.querySelector('main h2').textContent").removeprefix("Latent "))


def go(tab: browser.Browser, key: str, number: int) -> None:
    tab.press(key)
    tab.wait(f"document.querySelector('main h2')?.textContent === 'Latent {number}'")


@in_a_browser
@pytest.mark.slow("starts a browser")
def test_a_browser_shows_latents(page: Path, tab: browser.Browser) -> None:
    _, index, details = read(page)
    most = max(range(40), key=lambda i: index["latents"][i][1])
    tab.open(page, f"#latent-{most}")
    assert shown(tab) == most
    rows = tab.run("[...document.querySelectorAll('.contexts li')].map(li => li.querySelector('p').textContent)")
    contexts = [*details[most]["top"], *(c for s in details[most]["strata"] for c in s[3])]
    assert rows == ["".join(index["words"][w] for w in c[3]) for c in contexts]
    peaks = tab.run("[...document.querySelectorAll('.contexts .peak')].map(t => t.textContent)")
    assert peaks == [index["words"][c[3][c[2]]] for c in contexts]
    shades = "[...document.querySelectorAll('.contexts li:first-child bdi')].map(t => t.style.getPropertyValue('--a'))"
    assert [float(s or 0) for s in tab.run(shades)[: len(contexts[0][4])]] == pytest.approx(
        [level / LEVELS for level in contexts[0][4]]
    )
    assert tab.run("document.querySelectorAll('.bars rect:not(.air)').length") == len(details[most]["histogram"])
    assert tab.trouble() == []


@in_a_browser
@pytest.mark.slow("starts a browser")
def test_keys_search_and_order(page: Path, tab: browser.Browser) -> None:
    _, index, _ = read(page)
    tab.open(page, "#latent-12")
    go(tab, "j", 13)
    go(tab, "ArrowRight", 14)
    go(tab, "k", 13)
    go(tab, "ArrowLeft", 12)
    listed = "[...document.querySelectorAll('.row .name')].map(n => +n.textContent)"
    # by what it fires on, in the order of the token's share
    tab.press("/")
    tab.run("document.querySelector('[aria-label=\"search in\"]').value = 'on'")
    tab.run("document.querySelector('[aria-label=\"search in\"]').dispatchEvent(new Event('change'))")
    token = Counter(t[0] for row in index["latents"] for t in row[5]).most_common(1)[0][0]
    tab.type(index["words"][token])
    on = {row[0]: next((t[1] for t in row[5] if t[0] == token), 0) for row in index["latents"]}
    assert 1 < len(tab.run(listed)) < 40
    assert tab.run(listed) == [n for n in sorted(on, key=lambda n: (-on[n], n)) if on[n]]
    go(tab, "Enter", tab.run(listed)[0])
    assert tab.run("document.querySelector('.go small').textContent") == f"1 of {len(tab.run(listed))}"
    tab.press("Escape")
    # by number, by label, by promoted token
    for field, query, wanted in (("any", "#31", 31), ("label", "THIRD", 3), ("label", 'x", <b', 17)):
        choose(tab, field, query)
        assert tab.run(listed)[0] == wanted
    choose(tab, "up", "[9]")
    promoted = {row[0] for row in index["latents"] if "[9]" in [index["words"][w] for w, _ in row[6]]}
    assert set(tab.run(listed)) == promoted
    choose(tab, "any", "")
    for name, key in (("density", 1), ("max", 2), ("mean", 3)):
        tab.run(f"document.querySelector('[aria-label=\"sort by\"]').value = '{name}'")
        tab.run("document.querySelector('[aria-label=\"sort by\"]').dispatchEvent(new Event('change'))")
        wanted = sorted(index["latents"], key=lambda row: (-row[key], row[0]))
        assert tab.run(listed) == [row[0] for row in wanted][: len(tab.run(listed))]
    assert tab.trouble() == []


def choose(tab: browser.Browser, field: str, query: str) -> None:
    tab.run(
        f"""(() => {{ const f = document.querySelector('[aria-label="search in"]'), s = document.querySelector('#search');
        f.value = {json.dumps(field)}; f.dispatchEvent(new Event('change'));
        s.value = {json.dumps(query)}; s.dispatchEvent(new Event('input')); }})()"""
    )


@in_a_browser
@pytest.mark.slow("starts a browser")
def test_labels_are_kept_and_saved(page: Path, tab: browser.Browser, tmp_path: Path) -> None:
    from interp.cli.dashboard import read_labels

    tab.open(page, "#latent-5")
    tab.run("document.querySelector('.label').focus()")
    tab.type('commas, and "quotes"')
    tab.run("URL.createObjectURL = (blob) => { window.saved = blob; return '#latent-5'; }")
    wanted = {3: "third", 5: 'commas, and "quotes"', 17: 'say "x", <b>'}
    for button, file in (("save labels", "labels.csv"), ("as JSON", "labels.json")):
        tab.run(f"[...document.querySelectorAll('button')].find(b => b.textContent === '{button}').click()")
        (tmp_path / file).write_text(tab.run("saved.text()"), encoding="utf-8")
        assert read_labels(tmp_path / file, 40) == wanted
    tab.open(page, "#latent-5")
    assert tab.run("document.querySelector('.label').value") == 'commas, and "quotes"'
    tab.run("localStorage.clear()")


@in_a_browser
@pytest.mark.slow("starts a browser")
def test_hostile_tokens_are_shown_as_text(hostile: Path, tab: browser.Browser) -> None:
    for anchor in ("#overview", "#latent-0", "#latent-1", "#latent-20", "#latent-<script>", "#latent-99"):
        tab.open(hostile, anchor)
        assert tab.run("typeof window.hacked") == "undefined"
        assert tab.run("document.querySelectorAll('img, iframe, object').length") == 0
    tab.open(hostile, "#latent-0")
    assert tab.run("document.querySelector('.label').value") == "</title><script>window.hacked = 1</script>"
    everything = tab.run("document.querySelector('main').textContent")
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b-\u200f\u061c\ufeff\x00-\x09\x0b-\x1f\u2028]", everything)
    assert "⟨U+202E⟩" in everything or "<script>" in everything
    assert tab.trouble() == []


@in_a_browser
@pytest.mark.slow("starts a browser")
def test_light_dark_and_narrow(page: Path) -> None:
    for scheme, width in (("light", 1280), ("dark", 390)):
        opened = browser.Browser(width, 800, scheme)
        try:
            opened.open(page, "#latent-12")
            paper = opened.run("getComputedStyle(document.body).backgroundColor")
            assert paper == {"light": "rgb(247, 246, 243)", "dark": "rgb(21, 23, 26)"}[scheme]
            assert opened.run("document.documentElement.scrollWidth") <= width
            assert (
                opened.run("getComputedStyle(document.querySelector('aside')).display")
                == {1280: "flex", 390: "none"}[width]
            )
            opened.press("d")
            assert opened.run("getComputedStyle(document.body).backgroundColor") != paper
        finally:
            opened.close()
