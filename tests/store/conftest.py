"""A small recording whose every number is known, and where it is written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.store import Store, StoreWriter, open_store

WIDTHS = {"blocks.0.resid_post": 6, "decoder/blocks.1.head[3]": 1, "embed": 5}
Source = Callable[..., tuple[dict[str, torch.Tensor], torch.Tensor]]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a power cut tells the difference; one test looks at the order of the calls, one process makes them."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="session")
def source() -> Source:
    """`source(rows)` → `(values, documents)`: normal rows; documents of 1 to 90 rows, numbered from 100."""

    def draw(rows: int, widths: dict[str, int] = WIDTHS) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        generator = torch.Generator().manual_seed(7)
        values = {site: torch.randn(rows, width, generator=generator) for site, width in widths.items()}
        lengths = torch.randint(1, 91, (rows + 1,), generator=generator)
        return values, torch.repeat_interleave(torch.arange(100, 100 + len(lengths)), lengths)[:rows]

    return draw


@pytest.fixture
def make(tmp_path: Path, source: Source) -> Callable[..., Store]:
    """`make(rows, pile_rows=…, step=…)` records `source(rows)` and opens it; piles hold about `pile_rows` rows."""

    def record(
        rows: int, pile_rows: int = 70, step: int = 64, widths: dict[str, int] = WIDTHS, **settings: Any
    ) -> Store:
        values, documents = source(rows, widths)
        settings = {"dtype": "float32", "seed": 3, "pile_bytes": pile_rows * 90, **settings}
        with StoreWriter(tmp_path / "store", widths=widths, expected_rows=rows, **settings) as writer:
            for at in range(0, rows, step):
                writer.append({s: v[at : at + step] for s, v in values.items()}, documents=documents[at : at + step])
        return open_store(tmp_path / "store")

    return record
