"""int8 rows: what is stored and served, what the index says it lost, and what is refused."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from typer.testing import CliRunner

from interp.cli.record import record
from interp.cli.store import app
from interp.dictionaries import RowsSource, StoreSource, TrainConfig, evaluate, load_dictionary, train
from interp.dictionaries.planted import superposed
from interp.errors import Failed, WrongUse
from interp.kernels.record_rows import GROUP, record_rows
from interp.store import Store, StoreWriter, open_store, row_bytes
from interp.store.int8 import Coding, begun, decode
from interp.texts import default_text


@pytest.fixture(autouse=True)
def the_same_rows_every_time() -> None:
    """Bounds on sampled rows hold for these."""
    torch.manual_seed(0)


WIDTHS = [1, 5, 127, 128, 129, 300]


def _writer(path: Path, width: int = 3, **settings: Any) -> StoreWriter:
    return StoreWriter(path, **{"widths": {"a": width}, "dtype": "int8", "expected_rows": 100, **settings})


def _append(writer: StoreWriter, x: torch.Tensor, document: int = 0) -> None:
    writer.append({"a": x}, documents=torch.full((len(x),), document))


def _stored(path: Path, *appends: torch.Tensor, **settings: Any) -> Store:
    with _writer(path, appends[0].shape[1], **settings) as writer:
        for x in appends:
            _append(writer, x)
    return open_store(path)


def _served(store: Store) -> torch.Tensor:
    """All rows of site a, in the order they were appended."""
    rows, ids = next(store.batches(10**6, with_ids=True))
    return rows["a"][ids.argsort()]


def _encoded(x: torch.Tensor, coding: Coding | None = None) -> tuple[torch.Tensor, torch.Tensor, Coding]:
    """Into memory that holds anything."""
    coding = (coding or begun(x)).copy()
    codes = torch.full(x.shape, 99, dtype=torch.int8)
    scales = torch.full((len(x), -(-x.shape[1] // GROUP)), torch.nan).bfloat16()
    record_rows(x, None, torch.arange(len(x)), codes, scales, coding.pivot, coding.sums)
    return codes, scales, coding


def _fvu(x: torch.Tensor, served: torch.Tensor) -> float:
    x = x.double()
    return float((x - served.double()).square().sum() / (x - x.mean(0)).square().sum())


def _sums(path: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}


# -- what is stored ------------------------------------------------------------------------------------------------


def _by_hand(row: np.ndarray, pivot: np.ndarray) -> tuple[list[float], list[float]]:
    """Codes and scales of one row, number by number."""
    codes, scales = [], []
    for first in range(0, len(row), 128):
        y = row[first : first + 128] - pivot[first : first + 128]
        scale = torch.tensor(max(np.abs(y).max() / np.float32(127), 2.0**-126)).bfloat16().float().numpy()
        codes += [float(np.rint(v * (np.float32(1) / scale))) for v in y]
        scales.append(float(scale))
    return codes, scales


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", WIDTHS)
def test_codes_are_the_documented_ones(width: int, dtype: torch.dtype) -> None:
    x = (torch.randn(23, width) * 3 + torch.randn(width) * 9).to(dtype)
    codes, scales, coding = _encoded(x)
    assert torch.equal(coding.pivot, x.double().mean(0).float())
    hand = [_by_hand(row, coding.pivot.numpy()) for row in x.float().numpy()]
    assert codes.tolist() == [c for c, _ in hand]
    assert scales.tolist() == [s for _, s in hand]
    assert int(codes.abs().max()) == 127


@pytest.mark.parametrize("width", WIDTHS)
def test_the_files_hold_what_is_served(tmp_path: Path, width: int) -> None:
    """docs/formats.md read by numpy: pivot + scale · code, bit for bit."""
    x = torch.randn(50, width) * 3 + torch.randn(width) * 9
    store = _stored(tmp_path, x, pile_bytes=20 * width + 600)
    index = json.loads((tmp_path / "index.json").read_text())
    pivot = np.frombuffer(base64.b64decode(index["int8"]["a"]["pivot"]), "<f4")
    read: dict[int, np.ndarray] = {}
    for pile, rows in enumerate(index["piles"]):
        ids, codes, scales = (
            np.frombuffer((tmp_path / f"{pile:05d}.{name}").read_bytes() if rows else b"", kind)
            for name, kind in (("ids", "<i8"), ("a.rows", "i1"), ("a.scales", "<u2"))
        )
        scale = (scales.astype("<u4") << 16).view("<f4").reshape(rows, -1)  # bfloat16
        wide = np.repeat(scale, 128, axis=1)[:, :width] * codes.reshape(rows, width).astype("f4")
        read |= dict(zip(ids[::2].tolist(), pivot + wide, strict=True))
    assert len(index["piles"]) > 2
    assert torch.equal(_served(store), torch.from_numpy(np.stack([read[i] for i in range(50)])))
    assert store.index.bytes == 50 * row_bytes({"a": width}, "int8") == 50 * (width + 2 * -(-width // 128) + 16)


def test_any_cut_of_the_rows_gives_the_same_codes() -> None:
    """One row at a time or all at once, and in memory of any layout: the vector and the scalar path of every kernel."""
    x = torch.randn(300, 70).T
    first = begun(x)
    codes, scales, _ = _encoded(x, first)
    parts = [_encoded(row[None], first)[:2] for row in x]
    assert torch.equal(codes, torch.cat([c for c, _ in parts]))
    assert torch.equal(scales, torch.cat([s for _, s in parts]))
    served = torch.cat([decode(c, s, first.pivot) for c, s in parts])
    assert torch.equal(decode(codes, scales, first.pivot), served)


def test_a_coding_comes_back_from_json_bit_for_bit() -> None:
    x = torch.randn(40, 130) * 1e-3 + 5
    coding = _encoded(x, begun(x[:3]))[2]
    back = Coding.from_json(json.loads(json.dumps(coding.as_json(40))))
    assert torch.equal(back.pivot, coding.pivot)
    assert torch.equal(back.sums, coding.sums)


# -- what it loses -------------------------------------------------------------------------------------------------


@pytest.mark.check("store Q1", formula="|FVU in the index / FVU of the served rows in float64 − 1|", tolerance=2e-6)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_index_tells_the_fvu_of_what_is_served(
    tmp_path: Path, width: int, measured: Callable[[float], None]
) -> None:
    """Float32 sums over blocks of rows: 1e-6 at most for features of unequal size whose mean wanders off the pivot."""
    x = torch.randn(5000, width) * torch.logspace(-2, 1, width) + torch.linspace(0, 4, 5000)[:, None]
    store = _stored(tmp_path, *x.split(701), max_fvu=1)
    told = store.index.int8["a"]
    measured(abs(told["fvu"] / _fvu(x, _served(store)) - 1))
    errors = (x.double() - _served(store).double()).square().sum(0)
    own = errors / (x.double() - x.double().mean(0)).square().sum(0)
    assert told["lost"] == int((own > 0.1).sum())


@pytest.mark.check("store Q2", formula="|FVU · 12 · 127² / E max² of 128 normal numbers − 1|", tolerance=0.02)
def test_normal_rows_lose_what_theory_says(tmp_path: Path, measured: Callable[[float], None]) -> None:
    """Error uniform within a step of max/127; E max² by integration. 2 %: sampling, and the step of the largest code."""
    most = integrate.quad(lambda m: 2 * m * (1 - (2 * stats.norm.cdf(m) - 1) ** 128), 0, 10)[0]
    store = _stored(tmp_path, torch.randn(20_000, 256))
    assert store.index.int8["a"]["lost"] == 0
    measured(abs(store.index.int8["a"]["fvu"] * 12 * 127**2 / most - 1))


def _with_scales_of(x: torch.Tensor, dtype: torch.dtype) -> float:
    """FVU of x if its scales had another dtype."""
    y = (x - x.mean(0)).unflatten(1, (-1, 128))
    scale = (y.abs().amax(-1, keepdim=True) / 127).to(dtype).float()
    return _fvu(x, x.mean(0) + ((y / scale).round().clamp(-127, 127) * scale).flatten(1).nan_to_num())


@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_why_scales_are_bfloat16(size: float) -> None:
    """No worse than float32 scales of twice the bytes; float16 loses everything in small activations."""
    x = torch.randn(4000, 256) * size
    codes, scales, coding = _encoded(x)
    ours = _fvu(x, decode(codes, scales, coding.pivot))
    assert ours < 1.005 * _with_scales_of(x, torch.float32)
    assert (_with_scales_of(x, torch.float16) > 100 * ours) == (size < 1)


def test_a_large_constant_feature_costs_nothing(tmp_path: Path) -> None:
    x = torch.randn(2000, 256)
    plain = _stored(tmp_path / "plain", x).index.int8["a"]["fvu"]
    x[:, 7] += 1000
    told = _stored(tmp_path / "large", x).index.int8["a"]
    assert told["fvu"] == pytest.approx(plain, rel=1e-3)
    assert told["lost"] == 0


def test_a_massive_feature_drowns_its_group_and_that_is_told(tmp_path: Path) -> None:
    """1000 times the others: 127 features of its group are gone, though the FVU of the site stays under 1e-3."""
    x = torch.randn(2000, 256)
    x[:, 7] *= 1000
    with pytest.warns(UserWarning, match="variance of 127 of the 256 features of a, though only 0.0001 of all"):
        store = _stored(tmp_path, x)
    told = store.index.int8["a"]
    assert 0.9e-4 < told["fvu"] < 1.1e-4  # 127 of 1,000,255, less the rows in which the massive feature is small
    assert told["lost"] == 127
    shown = json.loads(CliRunner().invoke(app, ["info", str(tmp_path), "--json"]).stdout)
    assert shown["fvu"] == {"a": told["fvu"]}
    assert shown["lost"] == {"a": 127}
    beside = (x - _served(store))[:, 128:].square().sum() / x[:, 128:].square().sum()
    assert beside < 5e-5  # the other group does not notice


@pytest.mark.parametrize("value", [0.0, 5.3, -1e-40, 1e-30, 3e38])
def test_constant_rows_come_back_exactly(tmp_path: Path, value: float) -> None:
    x = torch.full((400, 130), value)
    store = _stored(tmp_path, x[:10], x)
    assert store.index.int8["a"]["fvu"] == store.index.int8["a"]["lost"] == 0
    assert torch.equal(_served(store), torch.full((410, 130), value))


@pytest.mark.parametrize("size", [1e-36, 1e-30, 1e30, 1e36])
def test_sizes_from_the_smallest_to_the_largest(tmp_path: Path, size: float) -> None:
    x = torch.randn(500, 130) * size
    scaled = _served(_stored(tmp_path, x)).double() / size
    assert _fvu(x.double() / size, scaled) < 6e-5


# -- what is served ------------------------------------------------------------------------------------------------


def test_batches_resume_and_samples_are_rows(make: Callable[..., Store], source: Any) -> None:
    store = make(901, dtype="int8", max_fvu=1)
    values, _ = source(901)
    whole = list(store.batches(100, seed=2, with_ids=True, epochs=2))
    assert sorted(torch.cat([ids for _, ids in whole]).tolist()) == sorted([*range(901)] * 2)
    for rows, ids in whole:
        for site, x in rows.items():
            assert x.dtype == store.dtype == torch.float32
            assert (x - values[site][ids]).abs().max() < 0.03  # steps of max/127
    again = list(open_store(store.path).batches(100, seed=2, with_ids=True, epochs=2, start=7))
    for (rows, ids), (rows_again, ids_again) in zip(whole[7:], again, strict=True):
        assert torch.equal(ids, ids_again)
        assert all(torch.equal(rows[site], rows_again[site]) for site in rows)
    one = next(store.batches(100, seed=2, sites=["embed"], start=3))
    assert torch.equal(one["embed"], whole[3][0]["embed"])
    known = {tuple(row) for rows, _ in whole for row in rows["embed"].tolist()}
    assert {tuple(row) for row in store.sample(50, seed=1)["embed"].tolist()} <= known
    assert store.check()["bad"] == []


# -- the same bytes ------------------------------------------------------------------------------------------------


def test_files_do_not_depend_on_commits(tmp_path: Path) -> None:
    x = torch.randn(900, 200)

    def record(name: str, commits: int, resumes: int) -> dict[str, str]:
        writer = _writer(tmp_path / name, 200, pile_bytes=50_000)
        for batch in range(0, 900, 45):
            if resumes and writer.rows and batch % resumes == 0:
                writer._release()
                writer = _writer(tmp_path / name, 200, pile_bytes=50_000, resume=True)
            _append(writer, x[batch : batch + 45], document=batch)
            if batch % commits == 0:
                writer.commit({"at": batch})
        writer.commit({"at": 900})
        writer.close()
        return _sums(tmp_path / name)

    assert record("a", 10**6, 0) == record("b", 45, 0) == record("c", 45, 90)


def test_shards_do_not_depend_on_the_cuts_behind_the_first_append(tmp_path: Path) -> None:
    x = torch.randn(300, 20)
    one, two = _stored(tmp_path / "one", x[:40], x[40:]), _stored(tmp_path / "two", x[:40], *x[40:].split(7))
    assert one.index.shards == two.index.shards
    assert one.index.int8["a"]["fvu"] == pytest.approx(two.index.int8["a"]["fvu"], rel=1e-6)


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("append", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_are_named_and_leave_no_trace(tmp_path: Path, append: int, value: float) -> None:
    good = torch.randn(20, 130)
    bad = good.clone()
    bad[7, 129] = bad[9, 0] = bad[9, 1] = value
    writer = _writer(tmp_path / "a", 130)
    for _ in range(append):
        _append(writer, good)
    with pytest.raises(Failed, match=rf"NaN or inf at a, in 2 of 20 rows, first in row {20 * append + 7}\."):
        _append(writer, bad)
    assert writer.rows == 20 * append
    _append(writer, good * 2)
    writer.close()
    _stored(tmp_path / "b", *[good] * append, good * 2)
    assert _sums(tmp_path / "a") == _sums(tmp_path / "b")


def test_a_number_too_far_from_the_pivot(tmp_path: Path) -> None:
    writer = _writer(tmp_path)
    _append(writer, torch.full((2, 3), -3e38))
    with pytest.raises(Failed, match="a number too large for int8 at a, in 1 of 4 rows, first in row 3"):
        _append(writer, torch.tensor([[-3e38] * 3, [3e38] * 3, [-3e38] * 3, [0.0] * 3]))


def test_rows_that_lose_too_much_are_refused_at_once(tmp_path: Path) -> None:
    """One large number in each group, and all others just under half a step: the worst that a group can hold."""
    signs = torch.randint(2, (400, 128)) * 2 - 1.0
    x = signs * 0.49 / 127
    x[:, 5] = signs[:, 5]
    with (
        pytest.warns(UserWarning, match="127 of the 128 features"),
        _writer(tmp_path / "asked", 128, max_fvu=1) as writer,
    ):
        _append(writer, x)
    fvu = open_store(tmp_path / "asked").index.int8["a"]["fvu"]
    assert 1.7e-3 < fvu < 2e-3
    writer = _writer(tmp_path / "refused", 128)
    with pytest.raises(Failed, match=rf"lose {fvu:.2g} of the variance of a .*may lose 0.001.*--max-fvu 0.004\)"):
        _append(writer, x)
    assert writer.rows == 0
    assert not list((tmp_path / "refused").glob("0*"))


def test_rows_far_from_the_first_are_refused_when_they_come(tmp_path: Path) -> None:
    near, far = torch.randn(10, 128), torch.randn(200, 128) + 60
    writer = _writer(tmp_path / "a", 128)
    _append(writer, near)
    writer.commit({"batch": 1})
    kept = 0
    while kept < writer.rows < 4000:  # as long as the near ones count, the offset is variance too
        kept = writer.rows
        with contextlib.suppress(Failed):
            _append(writer, far)
    with pytest.raises(
        Failed, match=r"lose 0\.001\d* of the variance of a \(FVU\), and may lose 0.001. None of this append"
    ):
        _append(writer, far)
    assert 1000 < kept < 3000  # (63/127)²/12 of the rows' 1 + 60² · 10/kept
    writer.commit({"batch": kept // 200})
    writer._release()
    with _writer(tmp_path / "a", 128, resume=True, max_fvu=1) as writer:
        assert writer.rows == kept
        _append(writer, far)
    with _writer(tmp_path / "b", 128, max_fvu=1) as writer:
        for x in [near] + [far] * (kept // 200 + 1):
            _append(writer, x)
    told = open_store(tmp_path / "a").index.int8["a"]
    assert told == open_store(tmp_path / "b").index.int8["a"]
    assert told["fvu"] > 1e-3


@pytest.mark.parametrize(("settings", "told"), [({"dtype": "bfloat16"}, "is for int8 rows"), ({}, "must be 0 or more")])
def test_a_limit_that_makes_no_sense(tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(WrongUse, match=told):
        _writer(tmp_path, max_fvu=float("nan"), **settings)


def test_good_rows_warn_of_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _stored(tmp_path, torch.randn(300, 128), torch.randn(300, 128))


# -- recorded from a model, and trained on -------------------------------------------------------------------------


def test_record_and_check_on_the_command_line(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(default_text())[:20_000])

    def recorded(name: str, dtype: str) -> dict[str, Any]:
        site = ["blocks.*.resid_post"]
        record(str(tiny_folder), site, tmp_path / name, str(text), tokens=3000, context=32, dtype=dtype, as_json=True)
        return json.loads(capsys.readouterr().out)

    told, plain = recorded("int8", "int8"), recorded("float32", "float32")
    assert (told["rows"], told["dtype"]) == (3000, "int8")
    assert set(told["fvu"]) == set(told["lost"]) == {"blocks.0.resid_post", "blocks.1.resid_post"}
    assert "fvu" not in plain
    x, y = (next(open_store(tmp_path / name).batches(3000)) for name in ("float32", "int8"))
    for site, fvu in told["fvu"].items():
        assert fvu == pytest.approx(_fvu(x[site], y[site]), rel=1e-5)
        assert fvu < 1e-4
    assert json.loads(CliRunner().invoke(app, ["check", str(tmp_path / "int8"), "--json"]).stdout)["bad"] == []
    site = ["blocks.0.resid_post"]
    with pytest.raises(SystemExit):
        record(str(tiny_folder), site, tmp_path / "no", str(text), dtype="int8", max_fvu=1e-9, context=32)
    assert "of the variance of blocks.0.resid_post (FVU), and may lose 1e-09" in capsys.readouterr().err


def test_an_autoencoder_learns_the_same_from_int8_rows(tmp_path: Path) -> None:
    """FVU on the true rows, of one trained on each store: less than a fiftieth apart; two seeds differ by a twentieth."""
    x = superposed(12_000, seed=3, d=48, features=96).x + torch.linspace(-3, 3, 48)
    config = TrainConfig.from_dict({"k": 4, "latents": 128, "batch": 512, "steps": 150, "lr": 3e-3, "seed": 1})
    fvu = {}
    for dtype in ("float32", "int8"):
        store = _stored(tmp_path / dtype, *x.split(4000), dtype=dtype, expected_rows=12_000)
        train(config, StoreSource(store, "a"), tmp_path / f"{dtype}-run")
        fvu[dtype] = evaluate(load_dictionary(tmp_path / f"{dtype}-run"), RowsSource(x)).fvu
    assert fvu["float32"] < 0.4  # it has learnt something
    assert fvu["int8"] == pytest.approx(fvu["float32"], rel=0.02)
