"""Embedding space: the identities are exact, pairs equal brute force, and a model in disguise is recognised."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch

import interp
import interp.lenses.embedding
from interp import WrongUse
from interp.lenses import EmbeddingSpace, align, kernel, stitch_table, stitched
from interp.model import load
from interp.model.fold import folded
from interp.model.model import Model
from interp.model.twin import Lifted
from tests.model.shapes import BUILD, module

NAMES = ["gpt2", "llama", "pythia", "bloom", "falcon grouped", "opt", "granite", "gemma2"]


@cache
def space(name: str, inverse: str = "pinv") -> EmbeddingSpace:
    return EmbeddingSpace(load(module(name, torch.float64)), inverse)


# ---------------------------------------------------------------- identities


@pytest.mark.parametrize("name", NAMES)
def test_the_identities_hold(name):
    """Keys, values, OV and QK of every head: fused, Conv1D, grouped; embeddings tied (gpt2, bloom) or not."""
    with Lifted():
        S = space(name)
        E, W = S.embed.T, S.model.weights
        h = torch.randn(4, S.embed.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        first = "blocks.1.mlp.W_gate" if "blocks.1.mlp.W_gate" in W else "blocks.1.mlp.W_in"
        errors = [_off(h @ E @ S.read_by(W[first].T).T, h @ W[first])]
        errors.append(_off(S.written_by(W["blocks.1.mlp.W_out"]), W["blocks.1.mlp.W_out"] @ S.unembed))
        q, k, v, o = (W[f"blocks.2.attn.W_{x}"] for x in "QKVO")
        for head in range(len(q)):
            shared = head * len(k) // len(q)
            L, R = S.factors("blocks.2.attn.OV", head)
            errors.append(_off(h @ E @ L @ R, h @ v[shared] @ o[head] @ S.unembed))
            L, R = S.factors("blocks.2.attn.QK", head)
            errors.append(_off(h @ E @ L @ R @ (h @ E).T, h @ q[head] @ k[shared].T @ h.T))
    assert max(errors) < 1e-9


def _off(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", ["gpt2", "llama", "pythia", "falcon grouped"])
def test_circuits_of_all_heads_sum_to_the_attention(name):
    """Σ_h A^h (XE) E' W_VO^h E is what the attention returns but for its biases, in the vocabulary; keys and values shared or not."""
    with Lifted():
        S, at = space(name), "blocks.1.attn"
        W = S.model.weights
        cache = S.model.record(torch.tensor([[5, 9, 11, 3, 8]]), [f"{at}.{s}" for s in ("in", "pattern", "out")])
        x, pattern, out = (cache[f"{at}.{s}"][0] for s in ("in", "pattern", "out"))
        total = torch.zeros(len(x), S.unembed.shape[1], dtype=x.dtype)
        for head, A in enumerate(pattern):
            L, R = S.factors(f"{at}.OV", head)
            total += A @ x @ S.embed.T @ L @ R
            if f"{at}.b_V" in W:
                out = out - W[f"{at}.b_V"][head] @ W[f"{at}.W_O"][head]  # a pattern's rows sum to 1
        assert _off(total, (out - W.get(f"{at}.b_O", torch.zeros(1))) @ S.unembed) < 1e-9


def test_the_transpose_is_the_embedding_itself_and_no_inverse():
    """E' = Eᵀ: a key is scored by its product with each token's embedding; h · k is then another number."""
    S = space("llama", "transpose")
    W, h = S.model.weights, torch.randn(3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    keys = W["blocks.0.mlp.W_gate"].T
    assert torch.allclose(S.read_by(keys), keys @ W["W_E"].T, atol=1e-12)
    assert _off(h @ S.embed.T @ S.read_by(keys).T, h @ keys.T) > 0.1
    other = EmbeddingSpace(S.model)  # what is measured of a model may differ in its last bit from load to load
    assert torch.equal(S.unembed, other.unembed)
    assert torch.allclose(S.written_by(keys), other.written_by(keys), atol=1e-12)


def test_multipliers_of_embedding_and_head_are_part_of_them():
    """Gemma's embedding multiplies by the root of its width, Granite's head divides by 3."""
    S = space("granite")
    W = S.model.weights
    assert torch.allclose(S.unembed, W["W_U"] / 3)
    S = space("gemma2")
    assert torch.allclose(S.embed, 32**0.5 * S.model.weights["W_E"], rtol=1e-6)


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("sign", [1, -1])
def test_tops_are_those_of_all_scores(sign):
    S = space("llama")
    for weight, scores in (
        ("blocks.0.mlp.W_up", S.read_by(S.weights["blocks.0.mlp.W_up"].T)),
        ("blocks.1.mlp.W_out", S.written_by(S.weights["blocks.1.mlp.W_out"])),
        ("blocks.2.attn.W_V", torch.stack([S.read_by(v.T) for v in S.weights["blocks.2.attn.W_V"]])),
        ("blocks.2.attn.W_O", torch.stack([S.written_by(o) for o in S.weights["blocks.2.attn.W_O"]])),
    ):
        found, wanted = S.read(weight, 4, sign), (sign * scores).topk(4)
        assert torch.equal(found.ids, wanted.indices)
        assert torch.allclose(found.scores, wanted.values)
        frame = found.to_frame()
        assert len(frame) == found.ids[..., 0].numel()
        assert frame["tokens"][5] == [f"[{i}]" for i in found.ids.flatten(0, -2)[5].tolist()]
        heads = 2 if weight.endswith("W_V") else 4 if weight.endswith("W_O") else 1
        assert frame["head"].nunique() == heads
        assert frame["vector"].max() == len(frame) // heads - 1
    assert len(found.plot([0, 3]).data[0].z) == 2


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [1, 7, 100])
def test_pairs_equal_brute_force(sign, size, monkeypatch):
    """Rows one, seven or all at a time; the bound may end the search, and never changes the answer."""
    monkeypatch.setattr("interp.lenses.embedding.BYTES", size * 61 * 8)
    S = space("llama")
    for circuit in ("blocks.0.attn.OV", "blocks.2.attn.QK"):
        for head in (0, 3):
            L, R = S.factors(circuit, head)
            whole = L @ R
            found, wanted = S.pairs(circuit, head, 25, sign), (sign * whole).flatten().topk(25)
            assert torch.allclose(found.values, sign * wanted.values)
            assert torch.equal(found.rows * 61 + found.columns, wanted.indices)
    frame = found.to_frame()
    assert list(frame.columns) == ["query", "key", "value"]
    assert frame["query"][0] == f"[{found.rows[0]}]"
    assert list(S.pairs("blocks.0.attn.OV", 1, 3).to_frame().columns) == ["reads", "writes", "value"]
    assert len(S.pairs("blocks.0.attn.OV", 1, 10**6).values) == 61 * 61
    assert len(found.plot(4).data[0].x) == 4


def test_equal_entries_come_in_order(monkeypatch):
    """A matrix of ones: the first rows and columns, whatever the blocks."""
    monkeypatch.setattr("interp.lenses.embedding.BYTES", 3 * 61 * 8)
    S = copy.copy(space("llama"))
    S.factors = lambda circuit, head: (torch.ones(61, 1).double(), torch.ones(1, 61).double())  # type: ignore[method-assign]
    found = S.pairs("blocks.0.attn.OV", 0, 70)
    assert (found.rows * 61 + found.columns).tolist() == list(range(70))


def test_pairs_stop_early_where_the_bound_allows(monkeypatch):
    """Two rows are much longer than the others, so the others are never multiplied."""
    looked: list[int] = []
    plain = interp.lenses.embedding._merged
    monkeypatch.setattr("interp.lenses.embedding.BYTES", 2 * 61 * 8)
    monkeypatch.setattr(
        "interp.lenses.embedding._merged", lambda b, rows, *rest: looked.extend(rows.tolist()) or plain(b, rows, *rest)
    )
    left, right = torch.rand(61, 4).double() * 1e-3, torch.rand(4, 61).double()
    left[[5, 20]] += 10
    S = copy.copy(space("llama"))
    S.factors = lambda circuit, head: (left, right)  # type: ignore[method-assign]
    found = S.pairs("blocks.0.attn.OV", 0, 20)
    assert sorted(looked) == [5, 20]
    assert torch.allclose(found.values, (left @ right).flatten().topk(20).values)


# ---------------------------------------------------------------- two models


def disguised(model: Model, order: list[int], seed: int = 5) -> tuple[Model, torch.Tensor]:
    """(A copy with its stream rotated by Q and its blocks in another order, Q): W_E Q, Qᵀ W for readers, W Q for writers."""
    other = Model(copy.deepcopy(model.module), model.tokenizer, id="disguised")
    W, V = model.weights, other.weights
    Q = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).Q
    for name in V:
        if name.rsplit(".", 1)[-1].startswith("W_"):
            block = int(name.split(".")[1]) if name.startswith("blocks.") else None
            source = name if block is None else name.replace(f"blocks.{block}.", f"blocks.{order[block]}.")
            t, last = W[source], name.rsplit(".", 1)[-1]
            V.set(name, t @ Q if last in ("W_E", "W_O", "W_out") else Q.T @ t)
    return other, Q


@pytest.fixture(scope="module")
def plain():
    """Llama with its norms folded, so that a rotation of the stream changes nothing."""
    return folded(load(module("llama", torch.float64)))


@pytest.mark.parametrize("weight", ["blocks.*.mlp.W_out", "blocks.*.mlp.W_up", "blocks.*.attn.W_V"])
@pytest.mark.parametrize("inverse", ["pinv", "transpose"])
def test_kernels_give_the_correlations_of_explicit_scores(plain, weight, inverse):
    """Against numpy's corrcoef of all scores over the vocabulary."""
    a = EmbeddingSpace(plain, inverse)
    b = EmbeddingSpace(load(module("llama", torch.float64, seed=8)), inverse)
    found = align(a, b, weight)
    project = "written_by" if weight.endswith("W_out") else "read_by"
    for i, j in ((0, 0), (1, 2)):
        x, y = (
            getattr(s, project)(s.vectors(weight.replace("*", str(n))).flatten(0, -2)).numpy()
            for s, n in ((a, i), (b, j))
        )
        wanted = np.abs(np.corrcoef(x, y)[: len(x), len(x) :]).mean()
        assert float(found.scores[i, j]) == pytest.approx(wanted, rel=1e-9)
    assert found.names[0] == tuple(weight.replace("*", str(i)) for i in range(3))


def test_layers_of_a_disguised_model_are_recognised(plain):
    """Each layer's values are few and in one direction, so layers are told apart; the vectors themselves tell nothing."""
    base = Model(copy.deepcopy(plain.module), id="base")
    draw = torch.Generator().manual_seed(3)
    for i in range(3):
        way = torch.randn(1, 32, dtype=torch.float64, generator=draw)
        out = base.weights[f"blocks.{i}.mlp.W_out"]
        base.weights.set(
            f"blocks.{i}.mlp.W_out", 0.1 * out + torch.rand(48, 1, dtype=torch.float64, generator=draw) * way
        )
    order = [2, 0, 1]
    other, _ = disguised(base, order)
    a, b = EmbeddingSpace(other), EmbeddingSpace(base)
    found = align(a, b, "blocks.*.mlp.W_out")
    assert found.pairs.tolist() == [[0, 2], [1, 0], [2, 1]]
    assert found.diagonal == 0.0
    assert align(b, b, "blocks.*.mlp.W_out").diagonal == 1.0
    frame = found.to_frame()
    assert frame[frame["assigned"]]["b"].tolist() == [f"blocks.{i}.mlp.W_out" for i in order]
    right = float(found.scores[[0, 1, 2], order].mean())
    raw = align(a, b, "blocks.*.mlp.W_out", raw=True).scores
    assert right > 0.5 > float(raw[[0, 1, 2], order].mean())
    assert len(found.plot().data) == 2


def test_a_rotated_model_is_stitched_exactly(plain):
    """E_b = Qᵀ E_a, so S = Qᵀ, and b's first blocks with a's last are a, wherever they are cut."""
    other, Q = disguised(plain, [0, 1, 2])
    a, b = EmbeddingSpace(plain), EmbeddingSpace(other)
    assert float((kernel(b, a) - Q.T).abs().max()) < 1e-9
    ids = torch.tensor([[5, 9, 11, 3, 8, 20], [7, 7, 12, 40, 6, 13]])
    own = plain.record(ids, "logits")["logits"]
    for i in range(3):
        made = stitched(b, a, ids, f"blocks.{i}.resid_post", f"blocks.{i}.resid_post")["logits"]
        assert float((made - own).abs().max()) < 1e-6  # the model's own norms are in float32
    table = stitch_table(b, a, ids, [(0, 0), (0, 2), (2, 2)])
    log_p = own[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])
    assert table["agreement"][[0, 2]].tolist() == [1.0, 1.0]
    assert table["cross_entropy"][0] == pytest.approx(-float(log_p.mean()), abs=1e-6)
    assert table["cross_entropy"][1] != pytest.approx(-float(log_p.mean()), abs=1e-3)


# ---------------------------------------------------------------- bad input


def test_bad_requests_are_refused(plain):
    S = EmbeddingSpace(plain)
    with pytest.raises(WrongUse, match="none of pinv, transpose"):
        EmbeddingSpace(plain, "inverse")
    with pytest.raises(WrongUse, match=r"no weight is called 'blocks\.9\.mlp\.W_out'"):
        S.read("blocks.9.mlp.W_out")
    with pytest.raises(WrongUse, match="neither reads the stream"):
        S.read("final_norm.w")
    with pytest.raises(WrongUse, match="is no circuit"):
        S.pairs("blocks.0.attn.VO", 0)
    with pytest.raises(WrongUse, match="is no circuit"):
        S.pairs("blocks.9.attn.OV", 0)
    with pytest.raises(WrongUse, match="head 4 is outside 0 to 3"):
        S.pairs("blocks.0.attn.OV", 4)
    other = interp.load("zoo:books")
    with pytest.raises(WrongUse, match="other vocabularies"):
        align(S, EmbeddingSpace(other), "blocks.*.mlp.W_out")
    with pytest.raises(WrongUse, match="is no stream"):
        stitched(S, S, torch.tensor([[1, 2]]), "blocks.0.mlp.post", "blocks.0.resid_post")
    with pytest.raises(WrongUse, match=r"align\(\) has no 'raww'"):
        align(S, S, "blocks.*.mlp.W_out", raww=True)
    with pytest.raises(WrongUse, match="other widths"):
        align(S, EmbeddingSpace(_narrow(16, 61)), "blocks.*.mlp.W_out", raw=True)
    with pytest.raises(WrongUse, match="has no weight 'W_E'"):
        EmbeddingSpace(load(module("vit")))
    with pytest.raises(WrongUse, match="no two views of one vocabulary"):
        EmbeddingSpace(_narrow(32, 40))


def _narrow(width: int, vocabulary: int) -> Model:
    """Another width, and a head of a vocabulary of its own."""
    kind, config, options = BUILD["llama"]
    net = kind(config(**options | {"hidden_size": width}))
    net.lm_head = torch.nn.Linear(width, vocabulary, bias=False)
    return load(net.double())
