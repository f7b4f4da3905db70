"""Dictionaries trained end to end: the loss written out with torch's hooks, its slope, resumed runs, the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner
from written_out import OWN, kind

from interp.cli.train import app
from interp.dictionaries import KINDS, L1, RowsSource, TrainConfig, evaluate_model, load_dictionary, train
from interp.dictionaries.endtoend import SEVERAL, EndToEnd, Windows
from interp.dictionaries.kinds import Now, TopK
from interp.errors import WrongUse
from interp.model import Model, load

Measure = Callable[[float], None]
SITE = "blocks.0.resid_post"
TEXTS = [f"The {i}th of {i * 7} words was late, and no one came." for i in range(40)]
RUN: dict[str, Any] = {"latents": 48, "batch": 60, "steps": 12, "lr": 3e-3, "dtype": "float64", "end_to_end": True}


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Model:
    return load(str(tiny_folder), dtype="float64")


def source(model: Model, reads: str = SITE, writes: str = SITE) -> Windows:
    """Windows of 20 tokens, three a step."""
    return Windows(model, [reads], [writes], TEXTS, tokens=500, context=20)


def trainer(model: Model, **given: Any) -> EndToEnd:
    """Before its first step."""
    made = EndToEnd(TrainConfig(given.pop("kind", TopK(k=4)), **(RUN | given)), source(model))
    made.begin()
    return made


def written_out(t: EndToEnd, ids: Tensor, β: float) -> Tensor:
    """KL and the later stream, by hooks on the layers; the text has no padding but on the right."""
    net, layers = t.model.module, t.model.module.model.layers  # type: ignore[union-attr]
    (s,), _ = t.scales
    mask, streams = ids >= 0, []
    keep = mask.clone()
    keep[:, 0] &= ids[:, 0] != t.model.tokenizer.bos_token_id
    inputs = {"input_ids": ids.clamp(min=0), "attention_mask": mask.long()}
    after = [layers[i].register_forward_hook(lambda m, a, out: streams.append(out)) for i in (0, 1)]
    with torch.no_grad():
        clean = net(**inputs).logits[keep].log_softmax(-1)
    after[0].remove()
    made = t.dictionary(streams[0] * s) / s
    first = layers[0].register_forward_hook(lambda m, a, out: torch.where(keep[..., None], made, out))
    hat = net(**inputs).logits[keep].log_softmax(-1)
    first.remove()
    after[1].remove()
    _, a, b = (x[keep] for x in streams)
    later = (a - b).square().sum() / (a - a.mean(0)).square().sum()
    return (clean.exp() * (clean - hat)).sum(-1).mean() + β * later


@pytest.mark.check(
    "dictionaries 4.1 end to end", formula="KL(p ‖ p̂) + β ‖a − â‖²/‖a − ā‖² and its gradients", tolerance=1e-9
)
@pytest.mark.parametrize("β", [0.0, 0.7])
def test_the_error_is_what_the_model_says(model: Model, β: float, measured: Measure) -> None:
    """float64; sums are made in another order. The local error is another one, and so are its gradients."""
    t = trainer(model, downstream=β)
    ids, _ = next(t.source.batches(60, 3, 0, 1))
    assert (ids < 0).any() and len(ids) == 3
    D, trained = t.dictionary, list(t.trained.values())
    wanted = written_out(t, ids, β)
    inputs, keep, clean = t._clean(ids)
    x, y = t._scaled(*t._rows(keep, clean))
    loss = t._loss(inputs, keep, clean, D, x, y, Now(torch.arange(0)))
    measured(abs(loss.error.item() / wanted.item() - 1))
    ours, theirs, local = (
        torch.autograd.grad(e, trained, retain_graph=True)
        for e in (loss.error, wanted, t.kind.loss(D, x, y, Now(torch.arange(0))).error)
    )
    for a, b, c in zip(ours, theirs, local, strict=True):
        measured(((a - b).norm() / b.norm()).item())
        assert (a - c).norm() > 0.1 * c.norm()
    assert all(p.grad is None for p in model.module.parameters())


def test_a_perfect_dictionary_has_no_error(model: Model) -> None:
    """f = ReLU(±x): ŷ = x. What is left of the loss is the penalty alone."""
    t = trainer(model, kind=L1(sparsity=0.5), latents=64, downstream=1.0)
    D, eye = t.dictionary, torch.eye(32, dtype=torch.float64)
    with torch.no_grad():
        D.W_enc.copy_(torch.cat([eye, -eye], 1))
        D.W_dec.copy_(torch.cat([eye, -eye]))
        D.b_enc.zero_()
    loss = t.update(*next(t.source.batches(60, 3, 0, 1)))
    assert loss.error.abs() < 1e-12
    assert loss.total.item() == pytest.approx((t.config.warm(0) * 0.5 * loss.sparsity).item(), rel=1e-9)


@pytest.mark.parametrize("name", [n for n in OWN if n not in SEVERAL])
def test_every_kind_makes_steps(model: Model, name: str) -> None:
    t = trainer(model, kind=kind(name), steps=3)
    losses = [t.update(*pair) for pair in t.source.batches(60, 0, 0, 3)]
    assert all(loss.total.isfinite() and loss.error > 0 for loss in losses)
    assert t.dictionary.W_dec.grad is not None and t.dictionary.W_dec.grad.any()


def test_a_transcoder_writes_where_it_does_not_read(model: Model) -> None:
    at = source(model, "blocks.0.mlp.in", "blocks.0.mlp.write")
    t = EndToEnd(TrainConfig(TopK(k=4), **RUN, skip=True, downstream=0.5), at)
    t.begin()
    assert t.later == ["blocks.0.resid_post", "blocks.1.resid_post"]
    first, *_, last = [t.update(*pair).error.item() for pair in at.batches(60, 0, 0, 12)]
    assert 0 < last < first


def test_it_loses_less_of_what_the_model_says_than_one_of_the_site(model: Model, tmp_path: Path) -> None:
    """The same kind, start, rows and steps: less KL, and, as the paper has it, a larger error at the site."""
    windows = source(model)
    t = trainer(model)
    x = torch.cat([t._rows(*t._clean(ids)[1:])[0] for ids, _ in windows.once(60)])
    run = RUN | {"steps": 60, "dtype": "float32", "log_every": 60, "save_every": 60}
    ours = train(TrainConfig(TopK(k=2), **run), windows, tmp_path / "e2e")
    local = train(
        TrainConfig(TopK(k=2), **(run | {"end_to_end": False})),
        RowsSource(x.float(), reads={SITE: 32}),
        tmp_path / "local",
    )
    kl = [evaluate_model(D, model, TEXTS, tokens=400, context=20).kl["replaced"] for D in (ours, local)]
    assert kl[0] < 0.9 * kl[1]
    assert (ours(x) - x).square().sum() > (local(x) - x).square().sum()


def test_a_run_that_is_stopped_ends_in_the_same_bytes(model: Model, tmp_path: Path) -> None:
    config = TrainConfig(TopK(k=4), **(RUN | {"dtype": "float32"}), downstream=0.5, log_every=4, save_every=4)

    class Short(Windows):
        def batches(self, size: int, seed: int, start: int, stop: int) -> Any:
            for number, pair in enumerate(super().batches(size, seed, start, stop), start):
                if number == 6:
                    raise EOFError
                yield pair

    train(config, source(model), tmp_path / "whole", command="c")
    with pytest.raises(EOFError):
        train(config, Short(model, [SITE], [SITE], TEXTS, tokens=500, context=20), tmp_path / "cut", command="c")
    train(config, source(model), tmp_path / "cut", resume=True, command="c")
    for file in ("weights.safetensors", "state.safetensors", "metrics.csv", "config.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "cut" / file).read_bytes(), file
    other = Windows(model, [SITE], [SITE], TEXTS[1:], tokens=500, context=20)
    with pytest.raises(WrongUse, match=r"was trained with source (rows|text)="):
        train(config, other, tmp_path / "cut", resume=True, command="c")


def test_what_is_refused(model: Model, tmp_path: Path) -> None:
    rows = RowsSource(torch.randn(100, 32))
    with pytest.raises(WrongUse, match="runs the model in every step: give a MODEL and text"):
        train(TrainConfig(TopK(k=4), **RUN), rows, tmp_path)
    for name in SEVERAL:
        with pytest.raises(WrongUse, match="its loss is of several reconstructions"):
            EndToEnd(TrainConfig(KINDS[name](k=4), **RUN), source(model))
    with pytest.raises(WrongUse, match=r"downstream=1\.0 goes with end_to_end"):
        TrainConfig(TopK(), downstream=1.0)
    last = "blocks.1.resid_post"
    with pytest.raises(WrongUse, match=r"no block follows blocks\.1\.resid_post"):
        EndToEnd(TrainConfig(TopK(k=4), **RUN, downstream=1.0), source(model, last, last))
    with pytest.raises(WrongUse, match="There is no text to train on"):
        Windows(model, [SITE], [SITE], [])


def test_the_command(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(TEXTS))
    given = [str(tiny_folder), "--text", str(tmp_path / "text.txt"), "--context", "20", "--json"]
    own = ["--k", "3", "--latents", "40", "--batch", "40", "--steps", "4", "--end-to-end"]

    def said(shape: str, *words: str, status: int = 0) -> Any:
        done = CliRunner().invoke(app, [shape, *given, *words])
        assert done.exit_code == status, (done.output, done.exception)
        return json.loads(done.stdout)

    out = str(tmp_path / "out")
    plan = said("sae", "--site", SITE, *own, "-o", out, "--dry-run")
    assert plan["rows"] > 400
    assert not Path(out).exists()
    assert said("sae", "--site", SITE, *own, "--downstream", "0.5", "-o", out)["steps"] == 4
    assert load_dictionary(out).config.reads == (SITE,)
    assert json.loads(Path(out, "run.json").read_text())["meta"]["model"] == str(tiny_folder)
    assert not Path(out, "activations").exists()
    stream = said("sae", "--site", SITE, *own, "--stream", "-o", out, status=2)
    assert "leave --stream and --inputs out" in stream["error"]
    several = said("crosscoder", "--site", "blocks.*.resid_post", *own, "-o", out, status=2)
    assert "a crosscoder writes several sites" in several["error"]
