"""Dictionaries of two models: rows side by side, each model's part attached and spliced, commands, and what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import Tensor
from typer.testing import CliRunner

from interp.cli.dashboard import dashboard
from interp.cli.eval import evaluate
from interp.cli.train import app
from interp.dictionaries import Dictionary, DictionaryConfig, evaluate_model, evaluate_together, load_dictionary
from interp.dictionaries.given import models_of
from interp.errors import WrongUse
from interp.model import Replace, Together, Zero, load

Measure = Callable[[float], None]
SITE, M, D_MODEL = "blocks.1.resid_post", 40, 32
TEXT = ["It was late, and no one came.", "Mr. Darcy bowed."]


@pytest.fixture(scope="module")
def both(tiny_folder: Path) -> Together:
    """The tiny model, and a copy of it with other numbers in its blocks."""
    first = load(str(tiny_folder))
    second = load(copy.deepcopy(first.module), tokenizer=first.tokenizer)
    with torch.no_grad():
        for p in second.module.model.layers.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return Together({"a": first, "b": second})


def crosscoder(activation: str = "topk", sites: tuple[str, ...] = (f"{SITE} of a", f"{SITE} of b")) -> Dictionary:
    """Random, all of it away from zero."""
    k, widths = (5 if activation == "topk" else None), (D_MODEL,) * len(sites)
    D = Dictionary(DictionaryConfig(sites, sites, sum(widths), sum(widths), M, k, activation, False, widths, widths))
    with torch.no_grad():
        for n, t in enumerate(D.tensors().values()):
            t.copy_(0.3 * torch.randn(t.shape, generator=torch.Generator().manual_seed(n)) + 0.05)
    return D


def far(a: Tensor, b: Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    return ((a - b).abs().max() / b.abs().max()).item()


def test_rows_stand_beside_each_other(both: Together) -> None:
    assert both.names("blocks.*.resid_post") == [f"blocks.{i}.resid_post of {m}" for m in "ab" for i in (0, 1)]
    assert both.width(f"{SITE} of b") == D_MODEL
    cache = both.record(TEXT, [f"{SITE} of b", SITE])
    for name, model in both.models.items():
        assert torch.equal(cache[f"{SITE} of {name}"], model.record(TEXT, SITE)[SITE])
    assert list(cache) == [f"{SITE} of b", f"{SITE} of a"]
    assert (cache[f"{SITE} of a"] - cache[f"{SITE} of b"]).abs().max() > 0.1


@pytest.mark.check(
    "dictionaries 4.1 crosscoder of two models",
    formula="given the other model's rows: f of the whole, ŷ^s = f W_dec^s + b^s, site' = site + δ d_i^s",
    tolerance=1e-6,
)
@pytest.mark.parametrize("activation", ["topk", "relu", "jumprelu"])
def test_each_models_part_is_attached(both: Together, activation: str, measured: Measure) -> None:
    """Latents are the whole's; ablating one takes its decoder row of that model away, and nothing else."""
    D = crosscoder(activation)
    cache = both.record(TEXT, D.config.reads)
    x = torch.cat(list(cache.values()), -1)
    f, made = D.encode(x), D(x).split(D_MODEL, -1)
    assert models_of(D) == ["a", "b"]
    for n, (name, model) in enumerate(both.models.items()):
        part = D.given(name, cache)
        with model.attach(part):
            seen = model.record(TEXT, [f"{SITE}.latents", f"{SITE}.error", SITE])
            measured(far(seen[f"{SITE}.latents"], f.dense()))
            measured(far(seen[SITE] - seen[f"{SITE}.error"], made[n]))
            latent = int((f > 0).flatten(0, 1).sum(0).argmax())
            edited = model.record(TEXT, SITE, edits=[Zero(f"{SITE}.latents", index=latent)])[SITE]
        row, real = D.W_dec[latent].split(D_MODEL)[n], both.first.tokens(TEXT).mask  # edits are of real tokens
        measured(far(edited[real], (seen[SITE] - f.dense()[..., latent, None] * row)[real]))
        assert (edited - seen[SITE])[real].abs().max() > 0.1


def test_several_sites_of_each_model(both: Together) -> None:
    """A part is then a crosscoder itself, with its latents at its last site."""
    sites = tuple(both.names("blocks.*.resid_post"))
    D = crosscoder("topk", sites)
    cache = both.record(TEXT, sites)
    f = D.encode(torch.cat(list(cache.values()), -1))
    part = D.given("b", cache)
    assert part.config.reads == ("blocks.0.resid_post", SITE)
    with both.models["b"].attach(part):
        seen = both.models["b"].record(TEXT, f"{SITE}.latents")[f"{SITE}.latents"]
    assert torch.allclose(seen, f.dense(), atol=1e-5)


def test_what_a_model_loses_is_measured_in_each(both: Together) -> None:
    """KL written out: the site replaced by that model's part of ŷ of both clean runs."""
    D = crosscoder()
    found = evaluate_together(D, both, TEXT, context=64, batch=1)
    kl: dict[str, list[Tensor]] = {"a": [], "b": []}
    for text in TEXT:
        group = both.first.tokenizer(text + "\n\n")["input_ids"]
        cache = both.record(torch.tensor([group]), D.config.reads)
        made = D(torch.cat(list(cache.values()), -1)).split(D_MODEL, -1)
        for n, (name, model) in enumerate(both.models.items()):
            keep = torch.ones(1, len(group), dtype=torch.bool)
            keep[:, 0] = group[0] != model.tokenizer.bos_token_id
            ids = torch.tensor([group])
            with torch.no_grad():
                clean = model(ids).logits.log_softmax(-1)
                with model.edit(Replace(SITE, lambda y, part=made[n]: part, pos=keep)):
                    edited = model(ids).logits.log_softmax(-1)
            kl[name].append((clean.exp() * (clean - edited)).sum(-1)[:, :-1][keep[:, :-1]])
    for name, parts in kl.items():
        assert found[name].kl["replaced"] == pytest.approx(torch.cat(parts).mean().item(), rel=1e-4)
        assert found[name].cross_entropy["clean"] > 0
    assert found["a"].kl["replaced"] != found["b"].kl["replaced"]


def test_what_is_refused(both: Together, tiny_folder: Path) -> None:
    D, first = crosscoder(), both.first
    with pytest.raises(WrongUse, match=r"is of a and b\. What it is in one of them.*dictionary\.given\('a', interp"):
        first.attach(D)
    with pytest.raises(WrongUse, match="there is no part of c in this dictionary: it is of a, b"):
        D.given("c", {})
    with pytest.raises(WrongUse, match=r"the rows of 'blocks\.1\.resid_post of b' are needed"):
        D.given("a", {})
    with pytest.raises(WrongUse, match="of a model that is not here: there are a, b"):
        both.record(TEXT, f"{SITE} of c")
    with pytest.raises(WrongUse, match="two models or more are recorded together, not a"):
        Together({"a": first})
    with pytest.raises(WrongUse, match="other has another tokenizer than a"):
        Together({"a": first, "other": load("zoo:brackets")})
    with pytest.raises(WrongUse, match=r"interp\.Together"):
        evaluate_model(D, first, TEXT)
    with first.attach(D.given("a", both.record(TEXT, D.config.reads))), pytest.raises(WrongUse, match="no generation"):
        first.record(TEXT[:1], f"{SITE}.latents")


def test_commands_take_two_models(tiny_folder: Path, tmp_path: Path, both: Together) -> None:
    """Trained on the rows of both, measured in each, shown on one page; other shapes are refused."""
    other = tmp_path / "other"
    both.models["b"].module.save_pretrained(other)
    both.first.tokenizer.save_pretrained(other)
    (tmp_path / "text.txt").write_text("\n\n".join(f"the {i}th of {i * 7} words" for i in range(60)))
    models, text = f"{tiny_folder} + {other}", ["--text", str(tmp_path / "text.txt"), "--context", "32"]
    given = ["--site", SITE, "--tokens", "200", "--kind", "batchtopk", "--k", "3", "--latents", "40", "--batch", "32"]

    def said(command: Any, *words: str, status: int = 0) -> Any:
        alone: Any = command
        if not isinstance(command, typer.Typer):
            alone = typer.Typer()
            alone.command()(command)
        done = CliRunner().invoke(alone, [*words, "--json"])
        assert done.exit_code == status, (done.output, done.exception)
        return json.loads(done.stdout)

    out = str(tmp_path / "out")
    said(app, "crosscoder", models, *given, *text, "--steps", "5", "-o", out)
    D = load_dictionary(out)
    assert models_of(D) == [str(tiny_folder), str(other)]
    assert D.part_norms().shape == (40, 2)
    found = said(evaluate, out, *text, "--tokens", "200")
    for name in models_of(D):
        assert found[f"kl of {name}"]["replaced"] > 0
    assert found["fvu"] > 0
    page = said(dashboard, out, *text, "--tokens", "200", "--latents", "0-9")
    assert page["latents"] == 10
    sae = said(app, "sae", models, *given, *text, "-o", str(tmp_path / "no"), status=2)
    assert "a dictionary of this shape reads one" in sae["error"]
    clt = ["--site", "blocks.*.mlp", "--kind", "jumprelu_tanh", "--latents", "40"]
    assert "for `interp train crosscoder`" in said(app, "clt", models, *clt, *text, "-o", "no", status=2)["error"]
