"""Training straight from a model: the rows of a store, in blocks, and exact resumes without one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from interp.cli.dashboard import recorded
from interp.cli.eval import _asked as asked
from interp.cli.train import app
from interp.dictionaries import StoreSource, TopK, TrainConfig, train, train_many
from interp.errors import WrongUse
from interp.model import Model, load
from interp.store import Stream
from interp.store.recording import record_text
from interp.store.streaming import BLOCK_BYTES

SITES = ["blocks.0.mlp.in", "blocks.1.resid_post"]
TEXTS = [
    "\n\n".join(f"{n}: the {i}th of {i * 7} words, and so on {i % 13}" for i in range(6 + n % 5)) for n in range(25)
]
OPTIONS: dict[str, Any] = {"batch": 3, "context": 32}
CONFIG = TrainConfig(TopK(3), latents=48, batch=50, steps=30, lr=1e-3, log_every=5, save_every=7)


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Model:
    """Two random layers."""
    return load(str(tiny_folder))


def stream(model: Model, texts: list[str] = TEXTS, rows_of: int = 170, **change: Any) -> Stream:
    """In blocks of `rows_of` rows."""
    return Stream(model, SITES, lambda: texts, block_bytes=rows_of * 4 * 64, **OPTIONS | change)


def in_order(rows: dict[str, Tensor]) -> Tensor:
    """All sites of every row side by side, sorted: equal for equal rows in whatever order."""
    x = torch.cat([rows[site] for site in SITES], 1)
    return x[sorted(range(len(x)), key=lambda i: x[i].tolist())]


def whole(batches: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
    parts = list(batches)
    return {site: torch.cat([p[site] for p in parts]) for site in SITES}


@pytest.mark.parametrize("tokens", [None, 1000])
def test_the_rows_are_those_of_a_store(model: Model, tmp_path: Path, tokens: int | None) -> None:
    """Every row of a float32 store once in each epoch, bit for bit, in another order each time."""
    store = record_text(model, SITES, TEXTS, tmp_path, tokens=tokens, dtype="float32", **OPTIONS)
    made = stream(model, tokens=tokens)
    assert (made.rows, made.widths) == (store.rows, store.widths)
    assert made.rows > 5 * made.block == 5 * 170
    wanted = in_order(whole(store.batches(64)))
    each = -(-made.rows // 64)
    first, second, other = (
        whole(made.batches(64, seed=s, start=e * each, epochs=e + 1)) for s, e in ((1, 0), (1, 1), (2, 0))
    )
    for rows in (first, second, other):
        assert torch.equal(in_order(rows), wanted)
    assert not torch.equal(first[SITES[0]], second[SITES[0]])
    assert not torch.equal(first[SITES[0]], other[SITES[0]])
    # a block is the text's own rows, a permutation of them
    ids = whole(made.batches(170, seed=1))[SITES[1]][170:340]
    straight = torch.cat([rows[SITES[1]] for rows in made._from(SITES, 170)])[:170]
    assert sorted(ids.tolist()) == sorted(straight.tolist())
    assert not torch.equal(ids, straight)


@pytest.mark.parametrize("drop_last", [True, False])
def test_any_batch_can_be_had_by_itself(model: Model, drop_last: bool) -> None:
    """Started at every batch of two epochs: the same batches, whatever the blocks; those after the last are none."""
    made = stream(model, TEXTS[:6], rows_of=70)
    batches = list(made.batches(48, seed=5, epochs=2, drop_last=drop_last))
    assert made.rows // 48 < len(batches) / 2 + 0.5
    for start in (*range(0, len(batches), 3), len(batches)):
        rest = list(
            stream(model, TEXTS[:6], rows_of=70).batches(48, seed=5, epochs=2, start=start, drop_last=drop_last)
        )
        assert len(rest) == len(batches) - start
        assert all(torch.equal(a[s], b[s]) for a, b in zip(rest, batches[start:], strict=True) for s in SITES)
    one = [b[SITES[1]] for b in made.batches(48, seed=5, sites=SITES[1:], epochs=2, drop_last=drop_last)]
    assert all(torch.equal(a, b[SITES[1]]) for a, b in zip(one, batches, strict=True))


def test_nothing_before_the_block_is_computed_and_no_block_twice(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    made, passes = stream(model), []
    record = Model.record
    monkeypatch.setattr(Model, "record", lambda *a, **k: (passes.append(1), record(*a, **k))[1])
    every = whole(made.batches(50))
    groups = len(passes)
    assert groups == len(made._ends)
    passes.clear()
    last = (made.rows - 1) // 50
    assert torch.equal(next(iter(made.batches(50, start=last)))[SITES[0]], every[SITES[0]][last * 50 :])
    assert not passes  # it was the last block that was computed
    next(iter(made.batches(50, start=8)))  # rows 400 to 449, of the block from 340 on
    assert 0 < len(passes) < groups / 2


def test_a_run_ends_in_the_same_bytes_wherever_it_was_stopped(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, with others, and after a stop in any batch; over the end of a pass."""
    source = lambda: StoreSource(stream(model, TEXTS[:14], tokens=700), SITES[1])  # noqa: E731
    train(CONFIG, source(), tmp_path / "whole", command="t")
    names = ("weights.safetensors", "state.safetensors", "metrics.csv")
    wanted = [(tmp_path / "whole" / name).read_bytes() for name in names]
    sites = {"a": SITES[1], "b": SITES[0]}
    one = stream(model, TEXTS[:14], tokens=700)
    train_many(dict.fromkeys(sites, CONFIG), {n: StoreSource(one, s) for n, s in sites.items()}, tmp_path, command="t")
    assert [(tmp_path / "a" / name).read_bytes() for name in names] == wanted

    record, left = Model.record, [0]

    def stops(*args: Any, **keywords: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise MemoryError
        return record(*args, **keywords)

    for at in (3, 9, 14, 25):
        monkeypatch.setattr(Model, "record", stops)
        left[0] = at
        with pytest.raises(MemoryError):
            train(CONFIG, source(), tmp_path / f"stopped{at}", command="t", resume=True)
        monkeypatch.setattr(Model, "record", record)
        train(CONFIG, source(), tmp_path / f"stopped{at}", command="t", resume=True)
        assert [(tmp_path / f"stopped{at}" / name).read_bytes() for name in names] == wanted


def test_another_text_is_refused(model: Model, tmp_path: Path) -> None:
    """As long as the first, and not the same."""
    train(CONFIG, StoreSource(stream(model, tokens=900), SITES[0]), tmp_path)
    with pytest.raises(WrongUse, match="trained with source text="):
        train(CONFIG, StoreSource(stream(model, TEXTS[::-1], tokens=900), SITES[0]), tmp_path, resume=True)
    with pytest.raises(WrongUse, match="There is no text to stream"):
        stream(model, [])
    with pytest.raises(WrongUse, match=r"Did you mean 'blocks.0.mlp.in'"):
        next(stream(model).batches(5, sites=["blocks.0.mlp.on"]))
    assert BLOCK_BYTES == 2**28  # what docs/dictionaries.md says


@pytest.mark.slow("loads a model four times")
def test_the_command(tiny_folder: Path, tmp_path: Path) -> None:
    """--stream leaves no store, alone and in a sweep; the two agree."""
    (tmp_path / "text.txt").write_text("\n\n".join(TEXTS))
    common = {"latents": 48, "batch": 32, "steps": 20, "k": 3}
    words = [str(tiny_folder), "--text", str(tmp_path / "text.txt"), "--tokens", "500", "--context", "32", "--stream"]
    words += [w for key, value in common.items() for w in (f"--{key}", str(value))]
    given = ["sae", *words, "--site", SITES[1], "-o", str(tmp_path / "one"), "--json"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert CliRunner().invoke(app, [*given, "--resume"]).exit_code == 0
    lines = [f"{key}: {value}" for key, value in common.items()] + ["stream: true", "tokens: 500", "context: 32"]
    lines += [
        f"model: {tiny_folder}",
        f"text: {tmp_path}/text.txt",
        f"sites: [{SITES[1]}]",
        "kinds: [topk]",
        "eval_tokens: 50",
    ]
    (tmp_path / "s.yaml").write_text("\n".join(lines))
    swept = CliRunner().invoke(app, ["sweep", str(tmp_path / "s.yaml"), "-o", str(tmp_path / "many"), "--json"])
    assert swept.exit_code == 0, swept.output
    (row,) = json.loads(swept.stdout)["dictionaries"]
    assert not (tmp_path / "one" / "activations").exists() and not (tmp_path / "many" / "activations").exists()
    metrics = [(p / "metrics.csv").read_bytes() for p in (tmp_path / "one", tmp_path / "many" / row["name"])]
    assert metrics[0] == metrics[1]
    assert told["dead_window"] == 500
    for folder in (tmp_path / "one", tmp_path / "many" / row["name"]):
        meta = {"model": str(tiny_folder), "text": f"{tmp_path}/text.txt", "dataset": None}
        assert meta.items() <= recorded(folder).items()
        assert asked([str(folder)], None) == ([str(folder)], str(tiny_folder))
    recorded_too = [w for w in given if w != "--stream"]
    refused = CliRunner().invoke(app, recorded_too)
    assert "already holds a training run" in json.loads(refused.stdout)["error"]
    assert not (tmp_path / "one" / "activations").exists()  # it was refused before anything was recorded
    refused = CliRunner().invoke(app, ["sae", "--rows", "X", "--stream", "-o", str(tmp_path / "no"), "--json"])
    assert "--stream needs a MODEL" in json.loads(refused.stdout)["error"]
