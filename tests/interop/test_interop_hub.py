"""Dictionaries by name, through the real hub client with the network off: a snapshot laid out as its cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from interp.dictionaries import load_dictionary
from interp.errors import Failed, WrongUse
from tests.interop import layouts
from tests.interop.conftest import MLP, close, rows

X = rows(layouts.D)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of google/gemma-scope-2b-pt-transcoders in an otherwise empty cache."""
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--google--gemma-scope-2b-pt-transcoders"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    return repository / "snapshots" / ("a" * 40)


def test_a_folder_of_a_repository(cache: Path) -> None:
    _, y = layouts.gemma_scope(cache / "layer_2" / "width_40", X)
    D = load_dictionary("hub:google/gemma-scope-2b-pt-transcoders/layer_2/width_40")
    close(y, D(X), 2e-6)
    assert (D.config.reads[0], D.config.writes[0]) == MLP
    layouts.saelens(cache / "whole", X, "standard")
    for name in ("layer_2/width_40/params.npz", "whole"):
        assert load_dictionary(f"hub:google/gemma-scope-2b-pt-transcoders/{name}").config.latents == layouts.M


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("hub:google", WrongUse, "hub:google names no repository"),
        ("hub:a//b", WrongUse, "names no repository"),
        ("hub:some one/else", WrongUse, "hub:some one/else: "),
        ("hub:someone/else", Failed, "neither in the local cache nor could it be fetched"),
        (
            "hub:google/gemma-scope-2b-pt-transcoders/layer_9",
            WrongUse,
            "has no layer_9, or it is not in the local cache",
        ),
        ("saelens:gpt2/a", WrongUse, "needs SAELens' table of releases: pip install sae-lens"),
    ],
)
def test_what_is_not_there_is_said(
    cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: type[Exception], said: str
) -> None:
    layouts.gemma_scope(cache / "layer_2", X)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(error, match=said):
        load_dictionary(name)


def test_saelens_releases(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SAELens' own table, read without importing it; its norm factor is folded, as its own loader does."""
    s = 0.4
    package = tmp_path / "site" / "sae_lens"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    repository = "google/gemma-scope-2b-pt-transcoders"
    table = {
        "scoped": {
            "repo_id": repository,
            "conversion_func": "gemma_2_transcoder",
            "saes": [{"id": "a/b", "path": "npz"}],
        },
        "own": {"repo_id": repository, "conversion_func": "goodfire", "saes": [{"id": "a", "path": 0}]},
        "rows": {
            "repo_id": repository,
            "config_overrides": {"normalize_activations": "constant_norm_rescale"},
            "saes": [{"id": "one", "path": "sae"}],
        },
        "plain": {"repo_id": repository, "saes": [{"id": "one", "path": "sae", "norm_scaling_factor": s}]},
    }
    (package / "pretrained_saes.yaml").write_text(yaml.safe_dump(table))
    monkeypatch.syspath_prepend(tmp_path / "site")
    _, first = layouts.gemma_scope(cache / "npz", X)
    f, second = layouts.saelens(cache / "sae", s * X, "standard", normalize_activations="expected_average_only_in")
    close(first, load_dictionary("saelens:scoped/a/b")(X), 2e-6)
    D = load_dictionary("saelens:plain/one")
    close(second / s, D(X), 2e-6)
    close(f, D.encode(X), 2e-6)
    with pytest.raises(WrongUse, match=r"layout of its own \('goodfire'\), which is not read here"):
        load_dictionary("saelens:own/a")
    with pytest.raises(WrongUse, match="normalises each row by itself"):  # said by the table alone
        load_dictionary("saelens:rows/one")
    with pytest.raises(WrongUse, match=r"no release 'scope'\. Did you mean 'scoped'"):
        load_dictionary("saelens:scope/a")
    with pytest.raises(WrongUse, match=r"The release plain has no 'two'.*It has 1: one"):
        load_dictionary("saelens:plain/two")
