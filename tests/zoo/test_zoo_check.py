from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp import zoo
from interp.errors import Failed, WrongUse
from interp.files import load_tensors, write_json
from interp.zoo import books, check
from interp.zoo.corpus import Split, novels


@pytest.fixture(scope="module")
def loaded(trained: Path) -> tuple[Any, Any]:
    return check.load(trained)


@pytest.fixture(scope="module")
def uniform(recipe: books.Recipe) -> Any:
    """A model whose logits are all zero: every token costs log2(vocabulary) bits."""
    model = books.build_model(recipe).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    return model


def test_bytes_of_tokens_sum_to_the_bytes_of_the_text(loaded: tuple[Any, Any], novels_folder: Path) -> None:
    _, tokenizer = loaded
    sizes = check.token_bytes(tokenizer)
    for text in [novels(novels_folder)[0].held_out, "戦争と平和 🙂 <s> \x00\n\n\n  é", ""]:
        assert sizes[books.encode(tokenizer, text)].sum() == len(text.encode())


@pytest.mark.parametrize("length", [7, 32, 4096])
def test_uniform_model_costs_its_closed_form(length: int, uniform: Any, recipe: books.Recipe) -> None:
    rng = np.random.default_rng(0)
    documents = [rng.integers(3, 300, n).astype(np.uint16) for n in (70, 32, 5, 0)]
    bits = check.token_bits(uniform, documents, length, books.BOS)
    assert [len(b) for b in bits] == [70, 32, 5, 0]  # each token once
    sizes = rng.integers(1, 9, recipe.vocabulary)
    size = sum(sizes[ids].sum() for ids in documents)
    expected = 107 * np.log2(recipe.vocabulary) / size
    assert check.bits_per_byte(bits, documents, sizes) == pytest.approx(expected, rel=1e-6)  # float32 logits


def test_bits_are_those_of_each_window_alone(loaded: tuple[Any, Any], recipe: books.Recipe) -> None:
    model, _ = loaded
    ids = np.random.default_rng(1).integers(3, recipe.vocabulary, 50)
    (found,) = check.token_bits(model, [ids], 20, books.BOS)
    for start in (0, 20, 40):
        window = torch.tensor([books.BOS, *ids[start : start + 20]])
        with torch.no_grad():
            logp = model(window[None, :-1]).logits[0].log_softmax(-1) / np.log(2)
        expected = -logp.gather(1, window[1:, None])[:, 0].numpy()
        np.testing.assert_allclose(found[start : start + 20], expected, rtol=1e-5)  # float32, other batch shapes


def test_every_range_of_positions_is_measured_on_the_same_tokens(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    rng, sizes, bos = np.random.default_rng(0), check.token_bytes(tokenizer), tokenizer.bos_token_id
    documents = [rng.integers(3, len(tokenizer), n) for n in (29, 8, 40)]  # the second has no token with 8 before it
    found = check.by_position(model, documents, sizes, bos, (0, 3, 8))
    assert list(found) == ["0-3", "3-8"]
    for a, b in ((0, 3), (3, 8)):
        spent = 0.0
        for ids in (documents[0], documents[2]):
            for i in range(8, len(ids)):
                position = a + (i - 8) % (b - a)
                window = torch.tensor([[bos, *ids[i - position : i + 1]]])
                with torch.no_grad():
                    logits = model(input_ids=window[:, :-1]).logits[0, -1].double()
                spent -= float(logits.log_softmax(-1)[ids[i]]) / np.log(2)
        size = sum(sizes[ids[8:]].sum() for ids in (documents[0], documents[2]))
        assert found[f"{a}-{b}"] == pytest.approx(spent / size, rel=1e-4)  # float32, other batch shapes
    assert check.by_position(model, documents[1:2], sizes, bos, (0, 3, 8)) == {}


def test_planted_induction_head_scores_one() -> None:
    span = 6
    pattern = torch.zeros(3, 4, 2 * span + 1, 2 * span + 1)
    for query in range(2 * span + 1):
        pattern[:, 2, query, max(query - span + 1, 0)] = 1  # looks at what followed
        pattern[:, 1, query, max(query - span, 0)] = 1  # looks at the same token: off by one
        pattern[:, 0, query, : query + 1] = 1 / (query + 1)
    scores = check.induction_scores(pattern, span)
    assert scores[2] == 1
    assert scores[1] == scores[3] == 0
    assert scores[0] == pytest.approx(np.mean([1 / (q + 1) for q in range(span + 1, 2 * span + 1)]), rel=1e-6)


def test_induction_looks_at_the_attention_the_model_computes(trained: Path, loaded: tuple[Any, Any]) -> None:
    model, tokenizer = check.load(trained, attention="eager")[0], loaded[1]
    found = check.induction(model, tokenizer, span=9, seeds=4, seed=5)
    assert found == check.induction(model, tokenizer, span=9, seeds=4, seed=5)
    assert found != check.induction(model, tokenizer, span=9, seeds=4, seed=6)
    assert 0 < found["score"] < 1
    assert (found["layer"], found["head"]) in [(i, j) for i in range(2) for j in range(4)]
    assert abs(found["second_copy_gain"]) < 1  # trained for eight steps


def test_second_copy_gain_is_in_bits(recipe: books.Recipe, loaded: tuple[Any, Any]) -> None:
    class Copier:
        """Certain of the token that came one span earlier; before that, of nothing."""

        device = torch.device("cpu")

        def __call__(self, input_ids: torch.Tensor, output_attentions: bool = False, use_cache: bool = False) -> Any:
            from types import SimpleNamespace

            batch, length = input_ids.shape
            logits = torch.zeros(batch, length, recipe.vocabulary)
            for position in range(8, length):
                logits[torch.arange(batch), position, input_ids[:, position - 7]] = 100.0
            patterns = torch.zeros(batch, 1, length, length)
            return SimpleNamespace(logits=logits, attentions=[patterns] * 2)

    found = check.induction(Copier(), loaded[1], span=8, seeds=3)
    # the whole second copy is certain, and nothing is known of the first
    assert found["second_copy_gain"] == pytest.approx(np.log2(recipe.vocabulary), rel=1e-5)


def test_samples_are_seeded_and_hold_no_special_token(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    first = check.samples(model, tokenizer, 3, 12, seed=1)
    assert first == check.samples(model, tokenizer, 3, 12, seed=1)
    assert first != check.samples(model, tokenizer, 3, 12, seed=2)
    assert len(first) == 3
    assert not any("<" in text and "s>" in text for text in first)


def test_samples_follow_the_model_s_distribution(uniform: Any, loaded: tuple[Any, Any], recipe: books.Recipe) -> None:
    texts = check.samples(uniform, loaded[1], 20, 60, seed=0)
    sizes = check.token_bytes(loaded[1])[3:]
    expected, spread = 60 * sizes.mean(), 60**0.5 * sizes.std()
    # A byte that is no character decodes to a replacement mark: characters are at most the bytes drawn.
    assert all(0 < len(text) < expected + 5 * spread for text in texts)
    assert len(set(texts)) == 20


def test_words_are_letters_and_inner_apostrophes() -> None:
    text = "_Never_ said Ann's mother--it’s 1805, \"'tis\" naïve dogs'."
    assert check.words(text) == ["never", "said", "ann's", "mother", "it's", "tis", "naïve", "dogs"]


def test_a_word_that_may_be_cut_off_is_not_counted() -> None:
    known = {"the", "war"}
    assert check.words_known(["The war pea", "war, the", "the don'", "the caf\ufffd"], known) == 1.0
    assert check.words_known(["the peace."], known) == 0.5
    assert check.words_known(["", "…"], known) == 0.0


def test_distinct_ngrams_by_hand() -> None:
    # a b c d e -> 2; a b c d . -> 1 of them again; three words make none
    assert check.distinct_ngrams(["a b c d e.", "A, b c d.", "x y z."], 4) == pytest.approx(2 / 3)
    assert check.distinct_ngrams(["x y z."], 4) == 0.0


@pytest.mark.usefixtures("short_topics")
def test_check_prints_every_number_twice_the_same(trained: Path, novels_folder: Path, help_texts: Split) -> None:
    found = check.check(trained, novels_folder, seed=3)
    assert list(found) == [
        "bits_per_byte",
        "kn",
        "kn_default_text",
        "induction",
        "words_known",
        "distinct_4grams",
    ]
    assert list(found["kn"]) == list(found["kn_default_text"]) == ["3", "4", "5"]
    assert list(found["bits_per_byte"]) == ["held_out", "default_text", "by_position"]
    assert set(found["induction"]) == {"layer", "head", "score", "second_copy_gain"}
    # after eight steps the model is no better than chance; the n-grams have learnt the twenty words
    assert max(found["kn"].values()) < 2 < found["bits_per_byte"]["held_out"] < 8
    assert found == check.check(trained, novels_folder, seed=3)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_folder_that_is_no_checkpoint_is_refused(name: str, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "model")
    (tmp_path / "model" / name).unlink()
    with pytest.raises(WrongUse, match=f"no model folder: it has no {name}"):
        check.load(tmp_path / "model")


@pytest.mark.parametrize("kind", ["missing", "unexpected"])
def test_tensors_that_do_not_fit_are_named(kind: str, trained: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = shutil.copytree(trained, tmp_path / "model")
    tensors, _ = load_tensors(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if kind == "missing":
        del tensors[name]
    else:
        name = "model.layers.1.extra.weight"
        tensors[name] = torch.ones(2)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(Failed, match=name):
        check.load(folder)


def test_names_and_paths_of_what_is_bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    with pytest.raises(WrongUse, match="It has: nothing"):
        zoo.path("books")
    (tmp_path / "books").mkdir()
    assert zoo.names() == []
    write_json(tmp_path / "books" / "config.json", {})
    assert zoo.names() == ["books"]
    assert zoo.path("books") == tmp_path / "books"
    with pytest.raises(WrongUse, match=r"no 'boks'\. Did you mean 'books'"):
        zoo.path("boks")


def test_importing_the_zoo_needs_the_standard_library_alone() -> None:
    import subprocess
    import sys

    code = "import sys, interp.zoo; print([m for m in ('numpy', 'torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
