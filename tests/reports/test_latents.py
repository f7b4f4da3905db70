"""Examples of latents against a search that tries everything, on a small model in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import interp
from interp.dictionaries import Dictionary, DictionaryConfig
from interp.errors import WrongUse
from interp.reports.latents import Context, Latent, LatentExamples, draw_live, latent_examples, logit_effects
from tests.model.shapes import tiny

SITE, WINDOW, VOCABULARY = "blocks.1.resid_post", 3, 31


def tiny_model(norm: bool = True) -> interp.Model:
    """A Llama-type model of random weights, with norm gains away from 1."""
    from transformers import LlamaForCausalLM

    module = tiny(LlamaForCausalLM, VOCABULARY, 16, seed=3, max_position_embeddings=64).double()
    torch.nn.init.uniform_(module.model.norm.weight, 0.5, 2.0)
    return interp.load(module)


def tiny_dictionary(site: str = SITE, latents: int = 40, k: int = 6) -> Dictionary:
    """Random weights, float64."""
    generator = torch.Generator().manual_seed(5)
    dictionary = Dictionary(DictionaryConfig((site,), (site,), 16, 16, latents, k)).double()
    with torch.no_grad():
        for p in dictionary.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return dictionary


@pytest.fixture(scope="module")
def model() -> interp.Model:
    return tiny_model()


@pytest.fixture(scope="module")
def windows() -> list[list[int]]:
    """Windows of unequal length, so that batches are padded."""
    generator = torch.Generator().manual_seed(1)
    lengths = [40, 25, 3, 33, 1, 40, 18]
    return [torch.randint(VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def everything(model: interp.Model, dictionary: Dictionary, windows: list[list[int]]) -> list[torch.Tensor]:
    """f of every token, window by window [pos, m]: no batches, no padding."""
    return [dictionary.encode(model.record(torch.tensor([w]), [SITE])[SITE][0]).dense() for w in windows]


def strongest(codes: list[torch.Tensor], latent: int, count: int) -> list[tuple[int, int]]:
    """The strongest firing, then the strongest whose context shares no token with those before, and so on."""
    left = {(d, p): f[p, latent].item() for d, f in enumerate(codes) for p in range(len(f)) if f[p, latent] > 0}
    found: list[tuple[int, int]] = []
    while left and len(found) < count:
        d, p = max(left, key=lambda place: left[place])
        found.append((d, p))
        left = {(e, q): v for (e, q), v in left.items() if e != d or abs(p - q) > 2 * WINDOW}
    return found


def shown(latent: Latent) -> list[Context]:
    return [*latent.top, *drawn(latent)]


def drawn(latent: Latent) -> list[Context]:
    return [c for stratum in latent.strata for c in stratum.contexts]


def grouped(windows: list[list[int]]) -> list[list[list[int]]]:
    return [windows[:3], windows[3:4], windows[4:]]


@pytest.fixture(scope="module")
def examples(model: interp.Model, windows: list[list[int]]) -> LatentExamples:
    return latent_examples(tiny_dictionary(), model, grouped(windows), list(range(40)), top=5, each=2, window=WINDOW)


def test_top_contexts_are_the_strongest(
    examples: LatentExamples, model: interp.Model, windows: list[list[int]]
) -> None:
    codes = everything(model, tiny_dictionary(), windows)
    for latent in examples.latents:
        assert [(c.document, c.position) for c in latent.top] == strongest(codes, latent.index, 5)


def test_numbers_are_those_of_every_token(
    examples: LatentExamples, model: interp.Model, windows: list[list[int]]
) -> None:
    codes = torch.cat(everything(model, tiny_dictionary(), windows))
    assert examples.tokens == len(codes) == sum(map(len, windows))
    for latent in examples.latents:
        fired = codes[:, latent.index] > 0
        assert latent.firings == int(fired.sum()) == sum(latent.histogram)
        assert latent.density == pytest.approx(fired.double().mean().item())
        assert latent.maximum == pytest.approx(codes[:, latent.index].max().item(), rel=1e-6)  # kept in float32


def test_activations_stand_beside_their_tokens(
    examples: LatentExamples, model: interp.Model, windows: list[list[int]]
) -> None:
    codes = everything(model, tiny_dictionary(), windows)
    for latent in examples.latents:
        for c in shown(latent):
            start = c.position - c.peak
            assert c.tokens == tuple(f"[{i}]" for i in windows[c.document][start : start + len(c.tokens)])
            there = codes[c.document][start : start + len(c.tokens), latent.index]
            assert torch.allclose(torch.tensor(c.activations, dtype=torch.float64), there, rtol=1e-6)
            assert c.activation > 0
            assert c.peak == min(WINDOW, c.position)


def test_contexts_share_no_token(examples: LatentExamples) -> None:
    for latent in examples.latents:
        taken: set[tuple[int, int]] = set()
        for c in shown(latent):
            here = {(c.document, c.position - c.peak + i) for i in range(len(c.tokens))}
            assert not here & taken
            taken |= here


def test_drawn_contexts_follow_the_seed(model: interp.Model, windows: list[list[int]]) -> None:
    def of(seed: int) -> LatentExamples:
        return latent_examples(
            tiny_dictionary(), model, grouped(windows), range(40), top=0, each=1, window=0, seed=seed
        )

    assert of(0) == of(0)
    assert of(0) != of(1)
    assert all(not latent.top for latent in of(0).latents)


def test_a_silent_latent_has_no_contexts(model: interp.Model, windows: list[list[int]]) -> None:
    dictionary = tiny_dictionary()
    with torch.no_grad():
        dictionary.b_enc[7] = -1e6
    (latent,) = latent_examples(dictionary, model, grouped(windows), [7]).latents
    assert (latent.firings, latent.density, latent.maximum, latent.top, latent.strata) == (0, 0.0, 0.0, (), ())


def test_a_start_token_is_not_counted(windows: list[list[int]]) -> None:
    class Tokenizer:
        bos_token_id, pad_token_id = 0, 1

        def convert_ids_to_tokens(self, i: int) -> str:
            return f"t{i}"

        def decode(self, ids: list[int], **_: Any) -> str:
            return f"t{ids[0]}"

    plain = tiny_model()
    model = interp.load(plain.module, tokenizer=Tokenizer())
    started = [[0, *w] for w in windows]
    found = latent_examples(tiny_dictionary(), model, [started], range(40), top=50, each=0, window=0)
    assert found.tokens == sum(map(len, windows))
    assert min(c.position for latent in found.latents for c in latent.top) == 1


def test_logit_effects_are_the_direct_path(model: interp.Model) -> None:
    dictionary = tiny_dictionary()
    module = model.module
    weight = module.lm_head.weight * module.model.norm.weight  # type: ignore[union-attr]
    logits = (dictionary.W_dec[11] @ weight.T).detach()
    raised, lowered = logit_effects(dictionary, model, [11], count=3)[0]
    assert [t for t, _ in raised] == [f"[{i}]" for i in logits.topk(3).indices.tolist()]
    assert [t for t, _ in lowered] == [f"[{i}]" for i in (-logits).topk(3).indices.tolist()]
    assert raised[0][1] == pytest.approx((logits.max() - logits.mean()).item(), rel=1e-4)  # the gain is float32


def test_no_logit_effects_outside_the_stream(model: interp.Model) -> None:
    assert logit_effects(tiny_dictionary("blocks.1.mlp.in"), model, [0, 1]) == [((), ())] * 2


def test_a_latent_that_does_not_exist(model: interp.Model, windows: list[list[int]]) -> None:
    with pytest.raises(WrongUse, match="latents 0 to 39"):
        latent_examples(tiny_dictionary(), model, grouped(windows), [40])


def test_live_latents_are_drawn_by_seed() -> None:
    live = torch.arange(100) % 3 == 0
    drawn = draw_live(live, 10, seed=4)
    assert len(set(drawn)) == 10
    assert all(i % 3 == 0 for i in drawn)
    assert drawn == draw_live(live, 10, seed=4) != draw_live(live, 10, seed=5)
    assert len(draw_live(live, 99)) == 34


def test_a_frame_has_a_row_a_context(examples: LatentExamples) -> None:
    frame = examples.to_frame()
    assert len(frame) == sum(len(shown(latent)) for latent in examples.latents)
    assert set(frame["kind"]) == {"top", "drawn"}
    assert (frame["activation"] > 0).all()
