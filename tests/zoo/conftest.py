"""A recipe small enough to train in a test, and a text made of a few words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp.zoo import books
from interp.zoo.corpus import Split

WORDS = "the of war Peace she said 1805 Moscow it's never -- again; naïve café «да» _they_ they're, 17 and 4"

RECIPE = books.Recipe(
    vocabulary=300,
    d_model=32,
    layers=2,
    heads=4,
    kv_heads=2,
    d_mlp=48,
    context=32,
    long_context=64,
    batch=4,
    phases=(
        books.Phase(0, long_every=4, random=1),
        books.Phase(4, long_every=4, random=1, passages=1, words=1, shortest=2, longest=9, pieces=2),
    ),
    steps=8,
    rates=((-1, 0.0), (1, 1.0)),
    decay=3,
    seed=3,
)


def story(words: int, seed: int) -> str:
    """Paragraphs of words drawn at random."""
    rng = np.random.default_rng(seed)
    lines = [" ".join(rng.choice(WORDS.split(), 40)) for _ in range(words // 40)]
    return "\n\n".join(lines) + "\n"


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def recipe() -> books.Recipe:
    """Every number away from its default."""
    return RECIPE


@pytest.fixture(scope="session")
def novels_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short novels."""
    folder = tmp_path_factory.mktemp("novels")
    for seed, name in enumerate(("first", "second")):
        (folder / f"{name}.txt").write_text(story(8000, seed), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def help_texts() -> Split:
    """What stands for Python's help texts in these tests, which are too long for them."""
    return Split("topics", story(2000, 5), story(1000, 6))


@pytest.fixture
def short_topics(monkeypatch: pytest.MonkeyPatch, help_texts: Split) -> None:
    """Train and check on short help texts."""
    monkeypatch.setattr(books, "topics", lambda: help_texts)
    monkeypatch.setattr("interp.zoo.check.topics", lambda: help_texts)


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, novels_folder: Path, help_texts: Split, recipe: books.Recipe
) -> Path:
    """A finished run of `recipe`, saved every fourth step; not to be written to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(books, "topics", lambda: help_texts)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        out = books.train(novels_folder, tmp_path_factory.mktemp("trained"), recipe, save_every=4)
        torch.set_num_threads(threads)
    return out
