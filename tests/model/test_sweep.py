"""Sweeps: one edit a row, equal to one run each."""

from __future__ import annotations

import pytest
import torch

from interp import Mean, Noise, Patch, Project, Replace, Resample, Scale, Steer, WrongUse, Zero
from interp.model.twin import Lifted
from tests.model.wrapped import wrapped

IDS = torch.tensor([[5, 9, 11, 3, 8, 20]])
OTHER = torch.tensor([[5, 9, 33, 3, 8, 20]])


def metric(logits):
    return logits[:, -1, 7] - logits[:, -1, 3]


def alone(model, group, x):
    with model.edit(*group), torch.no_grad():
        return metric(model(x).logits)[0]


def every_kind(model, prefix=""):
    site, d = f"{prefix}blocks.1.resid_post", torch.linspace(-1, 1, 32)
    sites = [site, f"{prefix}blocks.*.attn.z", f"{prefix}blocks.0.resid_post"]
    other = model.record(OTHER, sites)
    many = model.record(torch.cat([OTHER, IDS, OTHER.flip(1)]), sites)
    return [
        Zero(f"{prefix}blocks.1.attn.pattern", head=2, pos=4),
        Zero(f"{prefix}blocks.0.attn.k", head=1),
        Mean(site, d, pos=slice(1, 4)),
        Scale(f"{prefix}blocks.2.mlp.write", 3.0, index=[3, 4]),
        Steer(site, d, 2.0, pos="last"),
        Project(site, torch.stack([d, d**2]), pos=-2),
        Patch(site, other, pos=2),
        Patch(site, other, from_pos=[1, 2], to_pos=[3, -1]),
        Replace(f"{prefix}blocks.1.mlp.post", lambda x: x.clamp(max=0.1)),
        Resample(site, many, seed=2),
        Noise(site, 0.3, seed=2),
        Zero(f"{prefix}embed", rows=[0], pos=1),
        [Zero(site, pos=1), Scale(site, 2.0), Steer(f"{prefix}blocks.0.attn.z", torch.ones(8), head=1)],
        Patch(f"{prefix}blocks.*.attn.z", other, head=3),
    ]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "pythia", "bert", "opt", "mamba"])
def test_a_sweep_equals_one_run_each(name):
    """float64 to 1e-10: only the order of sums inside batched products differs."""
    model = wrapped(name, torch.float64)
    with Lifted():
        if name == "mamba":
            edits = [Zero("blocks.1.mixer.write", pos=2), Scale("blocks.0.resid_post", 2.0), Noise("embed", 0.1)]
        else:
            edits = every_kind(model)
        table = model.sweep(edits, IDS, metric, batch=5)
        expected = torch.stack([alone(model, e if isinstance(e, list) else [e], IDS) for e in edits])
        clean = float(alone(model, [], IDS))
    assert (table.values - expected).abs().max() < 1e-10
    assert abs(table.clean - clean) < 1e-10
    assert (table.values - clean).abs().min() > 1e-9  # each edit did something
    assert len(table.to_frame()) == len(edits)


def test_position_embeddings_have_one_row_for_all_and_can_still_be_swept():
    model = wrapped("gpt2", torch.float64)
    edits = [Zero("pos_embed", pos=p) for p in range(3)]
    table = model.sweep(edits, IDS, metric)
    expected = torch.stack([alone(model, [e], IDS) for e in edits])
    assert (table.values - expected).abs().max() < 1e-10


def test_a_sweep_inside_an_edit_adds_to_it():
    model, site = wrapped("llama", torch.float64), "blocks.1.resid_post"
    outer = Scale("blocks.0.mlp.write", 2.0)
    with model.edit(outer):
        table = model.sweep([Zero(site, pos=p) for p in range(6)], IDS, metric)
        with torch.no_grad():
            after = metric(model(IDS).logits)
    expected = torch.stack([alone(model, [outer, Zero(site, pos=p)], IDS) for p in range(6)])
    assert (table.values - expected).abs().max() < 1e-10
    assert abs(float(after) - table.clean) < 1e-10
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())


def test_table_and_pictures():
    model = wrapped("llama")
    clean = model.record(OTHER, "blocks.*.resid_pre")
    sites = [f"blocks.{i}.resid_pre" for i in range(3)]
    table = model.sweep([Patch(s, clean, pos=p) for s in sites for p in (2, 4, 5)], IDS, metric)
    frame = table.to_frame()
    assert list(frame.columns) == ["edit", "site", "pos", "head", "index", "value", "difference"]
    assert frame["difference"].iloc[4] == pytest.approx(float(table.values[4]) - table.clean)
    heat = table.plot().data[0]
    assert heat.type == "heatmap" and list(heat.y) == sites and list(heat.x) == ["2", "4", "5"]
    assert heat.z[1][1] == pytest.approx(frame["difference"].iloc[4])
    heads = model.sweep([Zero("blocks.1.attn.z", head=h) for h in range(4)], IDS, metric).plot().data[0]
    assert heads.type == "heatmap" and heads.z.shape == (1, 4)
    both = model.sweep([[Zero("embed", pos=0), Zero("embed", pos=slice(1, 3))], Zero("embed", pos=1)], IDS, metric)
    assert both.plot().data[0].type == "bar"
    assert both.to_frame()["site"].tolist() == ["embed + embed", "embed"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.sweep([], IDS, metric), "no edits"),
        (lambda m: m.sweep([Zero("embed")], torch.cat([IDS, OTHER]), metric), "one prompt"),
        (lambda m: m.sweep([Zero("embed", pos=9)], IDS, metric), "cannot fire"),
        (lambda m: m.sweep([Zero("embed", rows=[1])], IDS, metric), "row 1 is outside 0 to 0"),
        (lambda m: m.sweep([Resample("embed")], IDS, metric), "another row"),
        (lambda m: m.sweep([Zero("embed")], IDS, lambda x: x.sum()), "one number a row"),
        (lambda m: m.sweep([Zero("embed")], IDS, metric, bach=3), "batch"),
        (lambda m: m.sweep(["embed"], IDS, metric), "is no edit"),
    ],
)
def test_errors_teach(call, words):
    with pytest.raises(WrongUse, match=words):
        call(wrapped("llama"))
