"""What a model is fed is decided by its forward and its config alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from interp.errors import Failed
from interp.model import inputs
from interp.model.inputs import _known, _size, _tokens, _value, fitting, parts, probe_inputs
from interp.model.tiny import tiny

CONFIG = SimpleNamespace(
    model_type="made up",
    vocab_size=20,
    image_token_id=7,
    eye=SimpleNamespace(model_type="eye", image_size=[24, 36], patch=None, grid={"h": 3, "w": 5}),
)


def test_sizes_are_looked_up_in_the_config_and_its_parts():
    assert [c.model_type for c in parts(CONFIG)] == ["made up", "eye"]
    assert _size(CONFIG, "vocab_size") == 20
    assert (_size(CONFIG, "image_size"), _size(CONFIG, "image_size#1")) == (24, 36)
    assert _size(CONFIG, "grid#1") == 5
    assert _size(CONFIG, "patch|missing|8") == 8
    assert _size(CONFIG, "2*image_size") == 48
    assert _size(CONFIG, "2+3*vocab_size") == 62
    assert _size(CONFIG, "4*batch", {"batch": 3}) == 12
    with pytest.raises(LookupError):
        _size(CONFIG, "missing")
    assert not _known(CONFIG, "float batch missing")


def test_values_are_what_the_row_says():
    generator = torch.Generator().manual_seed(0)
    made = {kind: _value(CONFIG, f"{kind} batch pos 2", 3, 5, generator) for kind in ("float", "ones", "zeros")}
    assert all(t.shape == (3, 5, 2) for t in made.values())
    assert made["float"].is_floating_point()
    assert bool((made["ones"] == 1).all()) and bool((made["zeros"] == 0).all())
    whole = _value(CONFIG, "whole 4 100", 3, 5, generator)
    assert set(whole.tolist()) == {0, 1, 2, 3}
    assert _value(CONFIG, "rows 1 4 image_size", 2, 5, generator).tolist() == [[1, 4, 24]] * 2
    assert _value(CONFIG, "number 16", 2, 5, generator) == 16


def test_tokens_leave_out_special_ones_and_those_that_stand_for_pictures():
    ids = _tokens(CONFIG, (50, 40), torch.Generator().manual_seed(0))
    assert set(ids.unique().tolist()) == set(range(3, 20)) - {7}


def test_the_richest_row_that_runs_is_used():
    assert list(fitting(tiny("llama"))) == ["input_ids"]
    assert list(fitting(tiny("clip"))) == ["input_ids", "pixel_values"]
    made = probe_inputs(tiny("paligemma"), batch=3, length=9)
    assert made["pixel_values"].shape[0] == made["input_ids"].shape[0] == 3


def test_pictures_get_as_many_places_in_the_text_as_the_model_makes_of_them():
    model = tiny("llava")
    made = probe_inputs(model, batch=2, length=7)
    places = (made["input_ids"] == model.config.image_token_id).sum(1)
    with torch.no_grad():
        features = model.get_image_features(made["pixel_values"]).pooler_output
    assert places.tolist() == [f.shape[0] for f in features]
    assert made["input_ids"].shape[1] == int(places[0]) + 7


def test_equal_seeds_make_equal_inputs():
    model = tiny("clip")
    first, again, other = (probe_inputs(model, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in ("input_ids", "pixel_values"))
    assert not torch.equal(first["pixel_values"], other["pixel_values"])


class Needy(nn.Module):
    """Needs an argument that no row names."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(2, 2)
        self.config = SimpleNamespace(model_type="needy")

    def forward(self, nobody_knows_this):
        return self.lin(nobody_knows_this)


def test_what_cannot_be_fed_says_what_it_needs_and_what_to_type():
    with pytest.raises(Failed, match=r"nobody_knows_this.*example="):
        probe_inputs(Needy())


def test_a_row_that_fails_is_passed_over(monkeypatch):
    class Flat(Needy):
        def forward(self, pixel_values):
            assert pixel_values.ndim == 2
            return self.lin(pixel_values[:, :2])

    monkeypatch.setattr(
        inputs, "rows", lambda: [{"pixel_values": "float batch 3 8"} | {}, {"pixel_values": "float batch 8"}]
    )
    monkeypatch.setattr(inputs, "_runs", lambda model, row: "batch 8" in row["pixel_values"])
    assert fitting(Flat()) == {"pixel_values": "float batch 8"}
