"""Fixtures for every test: no network, two threads at most, and the measured errors of the checks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import pytest

MEASURED: dict[str, dict[str, object]] = {}


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[float], None]:
    """`measured(error)` asserts that the error is within the tolerance of the test's `check` mark, and keeps the largest."""
    mark = request.node.get_closest_marker("check")
    assert mark is not None, "the fixture `measured` belongs to tests marked `check`"

    def keep(error: float) -> None:
        row = MEASURED.setdefault(request.node.nodeid, {"label": mark.args[0], **mark.kwargs, "measured": 0.0})
        row["measured"] = max(float(row["measured"]), float(error))  # type: ignore[arg-type]
        assert error <= mark.kwargs["tolerance"], f"{mark.args[0]}: {error:.3g} > {mark.kwargs['tolerance']:.3g}"

    return keep


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave the measured errors where `python -m tests.checks` finds them, if asked to."""
    target = os.environ.get("INTERP_CHECKS")
    if target:
        Path(target).write_text(json.dumps(MEASURED, indent=1, default=str), encoding="utf-8")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of a random two-layer decoder with a tokenizer of its own."""
    from interp.texts import default_text
    from interp.zoo import books, training

    folder = tmp_path_factory.mktemp("tiny")
    recipe = books.Recipe(
        vocabulary=400, d_model=32, layers=2, heads=4, kv_heads=2, d_mlp=48, context=64, long_context=256, seed=5
    )
    books.train_tokenizer(default_text()[:6], recipe.vocabulary).save_pretrained(folder)
    model = books.build_model(recipe)
    from interp.model.twin import randomise

    randomise(model, 5)
    training.export(model, folder)
    return folder
