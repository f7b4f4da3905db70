"""Latents as a result: sparse inside, a tensor outside; tables, pictures, and searches against brute force."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer import Typer
from typer.testing import CliRunner

import interp
from interp import WrongUse
from interp.cli import latents as command
from interp.dictionaries import (
    Dictionary,
    DictionaryConfig,
    Latents,
    load_dictionary,
    search_direction,
    search_token,
)
from interp.files import save_tensors
from interp.model import Cache

Make = Callable[..., Dictionary]
SITE = "blocks.1.resid_post"
TEXTS = ['"Well," said he. "Well, well," said she again and again.', "He said it; they said nothing, and nothing more."]

# ------------------------------------------------------------ a tensor that holds only what fires


@pytest.mark.parametrize("activation", ["topk", "pursuit", "codebook", "relu", "jumprelu"])
def test_encode_is_sparse_inside_and_a_tensor_outside(make: Make, rows: Tensor, activation: str) -> None:
    D = make(k=5 if activation in ("topk", "pursuit", "codebook") else None, activation=activation)
    f, code = D.encode(rows.view(8, 50, 9)), D.active(rows)
    dense = code.dense(120).view(8, 50, 120)
    assert isinstance(f, Latents)
    assert (f.shape, f.dtype, f.code.values.shape) == (dense.shape, torch.float64, (8, 50, code.values.shape[1]))
    for made, wanted in (
        (f.dense(), dense),
        (f[..., 3], dense[..., 3]),
        (f > 0, dense > 0),
        (2 * f - f, dense),
        (f @ D.W_dec, dense @ D.W_dec),
        (torch.cat([f, f]), torch.cat([dense, dense])),
    ):
        assert type(made) is Tensor
        assert torch.equal(made, wanted)
    assert torch.allclose(D.decode(f), D.decode(dense), atol=1e-12)
    assert torch.equal(Latents.of(f.dense()).dense(), dense)


def test_gradients_go_through_what_fires(make: Make, rows: Tensor) -> None:
    D, x = make(), rows.clone().requires_grad_()
    slopes = [
        torch.autograd.grad(loss(D.encode(x)), x)[0]
        for loss in (lambda f: (f**2).sum(), lambda f: (f.dense() ** 2).sum())
    ]
    assert torch.equal(*slopes)
    assert slopes[0].any()


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.__setitem__((0, 3), 0.0),
        lambda f: f.zero_(),
        lambda f: f.__iadd__(1.0),
        lambda f: f.requires_grad_(),
        lambda f: setattr(f, "data", torch.zeros(3)),
        lambda f: torch.relu_(f),
    ],
)
def test_a_change_nobody_would_see_is_refused(make: Make, rows: Tensor, change: Callable[[Any], Any]) -> None:
    with pytest.raises(WrongUse, match=r"take f = dictionary.encode\(x\).dense\(\) first"):
        change(make().encode(rows))
    target = torch.zeros(400, 120, dtype=torch.float64)
    target[:] = make().encode(rows)  # what changes is another tensor
    assert target.any()


# ------------------------------------------------------------ tables and pictures


@pytest.fixture
def small() -> Latents:
    """Two prompts of three tokens, six latents."""
    f = torch.zeros(2, 3, 6)
    f[0, 0, 4], f[0, 2, 1], f[0, 2, 5], f[1, 1, 5], f[1, 2, 0] = 0.5, 1.0, 2.0, 3.0, 9.0
    return Latents.of(f)


def test_the_table_has_one_row_a_token_and_latent(small: Latents) -> None:
    frame = small.to_frame()
    assert list(frame.columns) == ["prompt", "position", "token", "latent", "activation"]
    wanted = [[0, 0, 4, 0.5], [0, 2, 5, 2.0], [0, 2, 1, 1.0], [1, 1, 5, 3.0], [1, 2, 0, 9.0]]
    assert frame.drop(columns="token").to_numpy().tolist() == wanted
    assert frame["token"].isna().all()


def test_with_a_cache_padding_is_left_out_and_tokens_are_named(small: Latents) -> None:
    """Padded on the right, and on the left: positions count real tokens."""
    ids = torch.tensor([[7, 8, 9], [5, 6, 0]])
    cache = Cache({}, ids, torch.tensor([[1, 1, 1], [1, 1, 0]]).bool(), decode=lambda i: f"<{i[0]}>")
    frame = small.to_frame(cache)
    assert frame["token"].tolist() == ["<7>", "<9>", "<9>", "<6>"]
    left = Cache({}, ids.flip(1), torch.tensor([[1, 1, 1], [0, 1, 1]]).bool(), decode=lambda i: f"<{i[0]}>")
    frame = small.to_frame(left)
    assert frame[frame["prompt"] == 1].drop(columns="prompt").to_numpy().tolist() == [
        [0, "<6>", 5, 3.0],
        [1, "<5>", 0, 9.0],
    ]
    with pytest.raises(WrongUse, match=r"latents are of \(2, 3\) tokens, the cache is of \(1, 3\)"):
        small.to_frame(Cache({}, ids[:1], torch.ones(1, 3).bool()))


def test_the_picture_shows_the_strongest_latents_where_they_fire(small: Latents) -> None:
    heat = small.plot(row=0, top=2).data[0]
    assert list(heat.y) == ["5", "1"]
    assert heat.z.tolist() == [[0.0, 2.0], [0.0, 1.0]]
    assert small.plot(row=0).data[0].z.sum() == 3.5
    with pytest.raises(WrongUse, match="no latent fires in prompt 2"):
        small.plot(row=2)


# ------------------------------------------------------------ search


@pytest.fixture(scope="module")
def model() -> interp.Model:
    return interp.load("zoo:books")


@pytest.fixture(scope="module")
def sae(model: interp.Model) -> Dictionary:
    """Random rows, but latent 7 is what sets " said" apart at this site."""
    D = Dictionary(DictionaryConfig((SITE,), (SITE,), 256, 256, 50, 6))
    generator = torch.Generator().manual_seed(0)
    cache = model.record(TEXTS, SITE)
    said = torch.tensor(
        [[w == " said" for w in row] + [False] * (cache.mask.shape[1] - len(row)) for row in cache.words]
    )
    x, rest = cache[SITE][said], cache[SITE][~said & cache.mask]
    with torch.no_grad():
        D.W_enc.copy_(0.02 * torch.randn(50, 256, generator=generator).T)
        D.W_enc[:, 7] = x.mean(0) - rest.mean(0)
        D.b_enc[7] = -0.5 * ((x @ D.W_enc[:, 7]).min() + (rest @ D.W_enc[:, 7]).max())
        D.W_dec.copy_(torch.randn(50, 256, generator=generator))
    return D


def test_search_by_token_counts_what_brute_force_counts(model: interp.Model, sae: Dictionary) -> None:
    frame = search_token(sae, model, TEXTS, " said")
    assert frame["latent"][0] == 7
    fires, here, values = [], [], []
    for text in TEXTS:  # alone, in windows as recordings make them
        ids = [model.tokenizer.bos_token_id, *model.tokenizer(text + "\n\n", add_special_tokens=False)["input_ids"]]
        f = sae.encode(model.record(torch.tensor([ids]), SITE)[SITE][0, 1:]).dense().detach()
        fires.append(f > 0)
        values.append(f)
        here.append(torch.tensor([model.tokenizer.decode([i]) == " said" for i in ids[1:]]))
    on, f, values_ = torch.cat(here), torch.cat(fires).double(), torch.cat(values)
    assert on.sum() == 4
    for row in frame.to_dict("records"):
        i = row["latent"]
        both = f[on, i].sum()
        assert row["recall"] == pytest.approx(float(both / on.sum()))
        assert row["precision"] == pytest.approx(float(both / f[:, i].sum()))
        assert row["f1"] == pytest.approx(float(2 * both / (on.sum() + f[:, i].sum())))
        assert row["mean"] == pytest.approx(float(values_[on, i].mean()), rel=1e-4)
        assert row["firings"] == int(f[:, i].sum())
    assert set(frame["latent"]) == set(f[on].any(0).nonzero().flatten().tolist())
    assert frame["f1"].is_monotonic_decreasing


def test_a_string_of_several_tokens_stands_at_its_last(model: interp.Model, sae: Dictionary) -> None:
    both = search_token(sae, model, TEXTS, " said she")
    assert both["mean"].notna().all()
    assert float(both["recall"].max()) == 1.0
    with pytest.raises(WrongUse, match=r"' whale', tokens .* does not occur among \d+ tokens"):
        search_token(sae, model, TEXTS, " whale")


def test_search_by_direction(sae: Dictionary) -> None:
    found = search_direction(sae, -3 * sae.W_dec[12])
    assert (found["latent"][0], found["cosine"][0]) == (12, pytest.approx(-1.0))
    assert found["cosine"].abs().is_monotonic_decreasing
    column = search_direction(sae, sae.W_enc[:, 30], of="encoder")
    assert (column["latent"][0], column["cosine"][0]) == (30, pytest.approx(1.0))
    i = int(found["latent"][5])
    wanted = torch.nn.functional.cosine_similarity(sae.W_dec[i], -sae.W_dec[12], dim=0).item()
    assert found["cosine"][5] == pytest.approx(wanted, abs=1e-6)


def test_a_direction_of_one_of_several_sites() -> None:
    D = Dictionary(DictionaryConfig(("a", "b"), ("a", "b"), 10, 10, 8, 2, widths_in=(4, 6), widths_out=(4, 6)))
    torch.nn.init.normal_(D.W_dec)
    found = search_direction(D, D.W_dec[5, 4:], site="b")
    assert (found["latent"][0], found["cosine"][0]) == (5, pytest.approx(1.0))
    with pytest.raises(WrongUse, match=r"the direction has 6 numbers.*rows of 10 \(or \{'a': 4, 'b': 6\} with site=\)"):
        search_direction(D, D.W_dec[5, 4:])
    with pytest.raises(WrongUse, match="has no 'c': it has a, b"):
        search_direction(D, D.W_dec[5], site="c")


def test_bad_directions(make: Make) -> None:
    with pytest.raises(WrongUse, match="9 numbers, not all zero"):
        search_direction(make(), torch.zeros(9))
    with pytest.raises(WrongUse, match="of='encoder': give 'decoder', of which codebook has rows"):
        search_direction(make(activation="codebook"), torch.ones(9), of="encoder")


# ------------------------------------------------------------ command line


def run(*words: str, status: int = 0) -> Any:
    app = Typer()
    app.command()(command.latents)
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == status, (done.output, done.exception)
    return json.loads(done.stdout)


def test_the_command_searches_by_token_and_by_direction(sae: Dictionary, tmp_path: Path) -> None:
    sae.save(tmp_path / "D")
    (tmp_path / "t.txt").write_text("\n".join(TEXTS))
    folder = str(tmp_path / "D")
    told = run(folder, "--token", " said", "--model", "zoo:books", "--text", str(tmp_path / "t.txt"), "--top", "3")
    assert told["latents"][0]["latent"] == 7
    assert len(told["latents"]) <= 3
    save_tensors(tmp_path / "v.safetensors", {"v": sae.W_dec[12]})
    told = run(folder, "--direction", str(tmp_path / "v.safetensors"))
    assert told["latents"][0] == {"latent": 12, "cosine": pytest.approx(1.0)}
    assert len(told["latents"]) == 20
    assert "one of the two" in run(folder, status=2)["error"]
    assert "one of the two" in run(folder, "--token", "a", status=2)["error"]
    assert "does not exist" in run(folder, "--direction", "nowhere", status=2)["error"]
    assert load_dictionary(folder).config == sae.config
