"""Pictures: they show the numbers that were recorded, at the tokens they belong to, and take no token for markup."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from interp import WrongUse
from interp.model import Cache, load
from interp.model.model import Tokens
from interp.model.pictures import shown
from interp.model.sweep import Attribution
from tests.model.shapes import module

IDS = torch.tensor([[5, 9, 11, 3, 8, 20], [7, 7, 12, 40, 6, 13]])
SHORT = Tokens(IDS, torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool())
STREAM = ["blocks.0.resid_pre", "blocks.*.resid_post"]
HOSTILE = ("<script>alert(1)</script>", "\u202eab", "\n", "$x$ $y$", "<b>&lt;", "  ")


def maps(figure):
    return [t for t in figure.data if t.type == "heatmap"]


def test_a_map_a_head_holds_the_recorded_weights():
    cache = load(module("llama")).record(IDS, "blocks.*.attn.pattern")
    figure = cache.plot_attention(1, row=1)
    assert len(maps(figure)) == 4
    for head, heat in enumerate(maps(figure)):
        assert np.array_equal(np.asarray(heat.z), cache["blocks.1.attn.pattern"][1, head].numpy())
        assert list(heat.x) == list(heat.y) == ["0 [7]", "1 [7]", "2 [12]", "3 [40]", "4 [6]", "5 [13]"]
    assert {a.text for a in figure.layout.annotations} == {f"head {h}" for h in range(4)}
    assert figure.layout.xaxis.title.text == "key token"
    assert figure.layout.yaxis.title.text == "query token"


def test_a_pattern_is_named_by_its_site_or_its_transformerlens_name():
    cache = load(module("gpt2")).record(IDS, "blocks.2.attn.pattern")
    for name in (2, "blocks.2.attn.pattern", "blocks.2.attn.hook_pattern"):
        assert cache.plot_attention(name).layout.title.text == "blocks.2.attn.pattern"


def test_padding_is_not_drawn():
    model = load(module("llama"))
    cache = model.record(SHORT, ["blocks.0.attn.pattern", *STREAM])
    assert np.asarray(maps(cache.plot_attention(0))[0].z).shape == (4, 4)
    assert np.asarray(maps(cache.plot_attention(0, row=1))[0].z).shape == (6, 6)
    assert np.asarray(maps(cache.plot_stream())[0].z).shape == (4, 4)
    left = {"input_ids": IDS.flip(1), "attention_mask": SHORT.mask.flip(1).long()}
    cache = model.record(left, "blocks.0.attn.pattern")
    heat = maps(cache.plot_attention(0))[0]
    assert list(heat.x) == ["0 [3]", "1 [11]", "2 [9]", "3 [5]"]
    assert np.array_equal(np.asarray(heat.z), cache["blocks.0.attn.pattern"][0, 0, 2:, 2:].numpy())


def test_cross_attention_has_the_encoders_tokens_on_the_key_side_only():
    cache = load(module("t5")).record(
        {"input_ids": IDS, "decoder_input_ids": IDS[:, :6]}, ["decoder.blocks.1.*.pattern", "encoder.blocks.0.*"]
    )
    heat = maps(cache.plot_attention("decoder.blocks.1.cross_attn.pattern"))[0]
    assert list(heat.x)[:2] == ["0 [5]", "1 [9]"]
    assert list(heat.y)[:2] == ["0", "1"]  # the decoder's tokens are not what was recorded as tokens
    assert list(maps(cache.plot_attention("decoder.blocks.1.attn.pattern"))[0].x)[:2] == ["0", "1"]
    assert list(maps(cache.plot_attention("encoder.blocks.0.attn.pattern"))[0].y)[:2] == ["0 [5]", "1 [9]"]
    figure = cache.plot_attention("decoder.blocks.1.cross_attn.pattern", view="tokens")
    assert figure.layout.annotations[0].text == "<b>query token</b>"


def test_lines_run_from_query_to_key_and_are_as_strong_as_the_weight():
    cache = load(module("llama")).record(IDS, "blocks.0.attn.pattern")
    figure = cache.plot_attention(0, view="tokens")
    buttons = figure.layout.updatemenus[0].buttons
    for head, button in enumerate(buttons):
        drawn = {}
        for trace in np.array(figure.data, dtype=object)[list(button.args[0]["visible"])]:
            if trace.mode == "lines":
                strength = float(re.search(r", ([\d.]+)\)$", trace.line.color).group(1))
                for q, k in zip(trace.y[::3], trace.y[1::3], strict=True):
                    drawn[q, k] = strength
        weights = cache["blocks.0.attn.pattern"][0, head]
        expected = {(q, k): float(weights[q, k]) for q in range(6) for k in range(6) if weights[q, k] >= 0.02}
        assert drawn.keys() == expected.keys()
        assert all(w - 1e-6 <= drawn[pair] <= w + 0.1 for pair, w in expected.items())
    assert [t.visible for t in figure.data] == list(buttons[0].args[0]["visible"])


def test_hovering_a_token_says_where_it_looks():
    cache = load(module("llama")).record(IDS, "blocks.0.attn.pattern")
    ends = [t for t in cache.plot_attention(0, view="tokens").data if t.mode != "lines"][:2]
    weights = cache["blocks.0.attn.pattern"][0, 0]
    best = int(weights[5].argmax())
    assert ends[0].hovertext[5].startswith(f"<b>5 [20]</b> looks at<br>{weights[5, best]:.3f}  {best} [{IDS[0, best]}]")
    assert "is looked at by" in ends[1].hovertext[0]


def test_tokens_are_never_taken_for_markup(tmp_path):
    cache = load(module("llama")).record(IDS[:1], ["blocks.0.attn.pattern", *STREAM])
    cache = replace(cache, tokens=torch.arange(len(HOSTILE))[None], decode=lambda ids: HOSTILE[ids[0]])
    for figure in (cache.plot_attention(0), cache.plot_attention(0, view="tokens"), cache.plot_stream()):
        data = figure.to_json()
        assert "<script" not in data
        assert "\\u003cscript" not in data
        assert "\u202e" not in data
        assert "\\u202e" not in data
        assert "$x$" not in data
        assert "&lt;script&gt;" in data
        figure.write_html(tmp_path / "x.html")
        page = (tmp_path / "x.html").read_text(encoding="utf-8")
        assert not re.search(r"<(script|link)[^>]+(src|href)=", page)  # nothing is fetched


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (" the", " the"),
        (" ", "·"),
        ("\n\n", "↵↵"),
        ("\u0301", "◌\u0301"),
        ("a\u200bb", "a⟨U+200B⟩b"),
        ("&<>$", "&amp;&lt;&gt;&#36;"),
        ("", ""),
    ],
)
def test_every_character_shows(token, expected):
    assert shown(token) == expected


def synthetic(length: int, heads: int = 2) -> Cache:
    pattern = torch.full((1, heads, length, length), 1 / length)
    tokens = torch.arange(length)[None]
    return Cache({"blocks.0.attn.pattern": pattern}, tokens, torch.ones_like(tokens, dtype=torch.bool))


def test_labels_of_long_prompts_are_thinned():
    figure = synthetic(300).plot_attention(0)
    assert len(figure.layout.xaxis.tickvals) <= 18
    assert len(maps(figure)[0].x) == 300  # hovering still names every token
    ends = synthetic(300).plot_attention(0, view="tokens").data[-1]
    assert sum(bool(t) for t in ends.text) < 200
    assert all(ends.hovertext)


def test_the_stream_shows_norms_and_cosines():
    cache = load(module("gpt2")).record(IDS, STREAM)
    norms, cosines = maps(cache.plot_stream(row=1))
    states = torch.stack([cache["blocks.0.resid_pre"], *(cache[f"blocks.{i}.resid_post"] for i in range(3))])[:, 1]
    states = states.double()
    assert np.allclose(np.asarray(norms.customdata), states.norm(dim=-1).numpy(), rtol=1e-12)
    assert np.allclose(np.asarray(norms.z), states.norm(dim=-1).log10().numpy(), rtol=1e-12)
    unit = states / states.norm(dim=-1, keepdim=True)
    assert np.allclose(np.asarray(cosines.z), (unit[:-1] * unit[1:]).sum(-1).numpy(), atol=1e-12)
    assert list(norms.y) == ["pre 0", "post 0", "post 1", "post 2"]
    assert cosines.y[0] == "pre 0 → post 0"


def test_one_of_several_stacks():
    cache = load(module("t5")).record({"input_ids": IDS, "decoder_input_ids": IDS[:, :4]}, "*.resid_post")
    with pytest.raises(WrongUse, match="stack='encoder' or stack='decoder'"):
        cache.plot_stream()
    assert np.asarray(maps(cache.plot_stream(stack="decoder"))[0].z).shape == (3, 4)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda c: c.plot_attention(2), r"blocks.2.attn.pattern' was not recorded.*record\(x, sites="),
        (lambda c: c.plot_attention("blocks.1.attn.z"), "is no pattern"),
        (lambda c: c.plot_attention(1, row=2), "numbered 0 to 1"),
        (lambda c: c.plot_attention(1, view="token"), "'tokens'"),
        (lambda c: c.plot_stream(), r'record\(x, \["blocks.0.resid_pre", "blocks.\*.resid_post"\]\)'),
        (lambda c: synthetic(2000).plot_attention(0), "too many for a page"),
    ],
)
def test_what_is_not_there_is_named(ask, words):
    cache = load(module("llama")).record(IDS, ["blocks.1.attn.pattern", "blocks.1.attn.z"])
    with pytest.raises(WrongUse, match=words):
        ask(cache)


def test_plain_plots_take_no_token_for_markup():
    words = (("<b>x</b>", "$y$", "\u202e"),)
    tokens, real = torch.arange(3)[None], torch.ones(1, 3, dtype=torch.bool)
    cache = Cache({"blocks.0.attn.pattern": torch.rand(1, 2, 3, 3)}, tokens, real, decode=lambda ids: words[0][ids[0]])
    labels = cache.plot("blocks.0.attn.pattern").data[0].y
    assert list(labels) == [f"{i} {shown(word)}" for i, word in enumerate(words[0])]
    effects = Attribution({"blocks.0.resid_pre": torch.rand(1, 3)}, words).plot().data[0].x
    assert list(effects) == list(labels)
    assert not any(mark in label for label in labels for mark in ("<", "$", "\u202e"))
