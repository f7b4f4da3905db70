"""DecoderLens: the last layer is the model, exactly; no architecture's norm is known by name."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
import transformers as hf

import interp
from interp import WrongUse
from interp.lenses import DecoderLens
from interp.lenses.decoder import distance
from interp.model import load
from interp.model.inputs import probe_inputs
from interp.model.twin import randomise
from interp.zoo import tones
from tests.model.shapes import BOTH_WAYS, TEXT, module

BOTH = TEXT | BOTH_WAYS | dict(max_position_embeddings=64, decoder_start_token_id=2, forced_eos_token_id=None)
T5 = TEXT | dict(d_model=32, d_kv=8, num_layers=3, num_heads=4, d_ff=48, decoder_start_token_id=0)
T5 |= dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
MORE = {
    "mbart": (hf.MBartForConditionalGeneration, hf.MBartConfig, BOTH),
    "marian": (hf.MarianMTModel, hf.MarianConfig, BOTH),
    "m2m_100": (hf.M2M100ForConditionalGeneration, hf.M2M100Config, BOTH),
    "pegasus": (hf.PegasusForConditionalGeneration, hf.PegasusConfig, BOTH),
    # mT5 and ByT5: a gated MLP, a head of its own, and fewer decoder blocks than encoder blocks
    "mt5": (hf.MT5ForConditionalGeneration, hf.MT5Config, T5 | dict(num_decoder_layers=3)),
    "byt5": (hf.T5ForConditionalGeneration, hf.T5Config, T5 | dict(num_decoder_layers=1)),
    # NLLB's dense models are of the type m2m_100; this is its mixture of experts
    "nllb_moe": (
        hf.NllbMoeForConditionalGeneration,
        hf.NllbMoeConfig,
        BOTH | dict(num_experts=4, expert_capacity=16, encoder_sparse_step=2, decoder_sparse_step=2),
    ),
}
KINDS = ["t5", "bart", "whisper", *MORE]
PRE = [
    "t5",
    "mt5",
    "byt5",
    "whisper",
    "mbart",
    "m2m_100",
    "nllb_moe",
    "pegasus",
]  # encoders whose last step is a norm of their own


@cache
def net(name: str):
    if name not in MORE:
        return module(name)
    kind, config, options = MORE[name]
    torch.manual_seed(3)
    built = kind(config(**options)).eval()
    randomise(built, 3)
    return built


def inputs_of(model, seed: int = 9):
    made = probe_inputs(model.module, batch=2, length=7, seed=seed)
    return made | {"decoder_input_ids": torch.tensor([[2, 7, 9, 30], [2, 40, 5, 6]])}


def encoder_norm(name: str, module):
    encoder = module.get_encoder()
    return getattr(encoder, "final_layer_norm", None) or getattr(encoder, "layer_norm", lambda x: x)


@pytest.mark.check("lenses 2a (DecoderLens at the last layer)", formula="lens(n) = model, exactly", tolerance=0.0)
@pytest.mark.parametrize("name", KINDS)
def test_the_last_layer_is_the_model_and_others_are_the_decoder_on_the_normed_state(name, measured):
    """Each row against Hugging Face's own decoder on `encoder_outputs`: the raw state of the layer, normed by name here."""
    model = load(net(name))
    lens, inputs = DecoderLens(model), inputs_of(model)
    found = lens(inputs, tokens=range(lens.head.width))
    with torch.no_grad():
        logits = model.module(**inputs).logits.flatten(0, 1)
        whole = copy.deepcopy(model.module)(
            **inputs, output_hidden_states=True
        ).encoder_hidden_states  # it leaves hooks
        last, states = lens.states(inputs, lens.readable())
        measured(float((lens.head(states[lens.end].flatten(0, 1)) - lens.head(last.flatten(0, 1))).abs().max()))
        assert float((found.chosen_log_prob[-1] - logits.log_softmax(-1)).abs().max()) < 1e-5
        assert float(found.kl_forward[-1].abs().max()) == 0.0
        norm = encoder_norm(name, model.module) if name in PRE else lambda x: x
        raw = model.record(inputs, lens.end)[lens.end]
        assert float((norm(raw) - whole[-1]).abs().max()) < 1e-5  # what is recorded has not passed the norm yet
        feeding = {k: v for k, v in inputs.items() if k in ("attention_mask", "decoder_input_ids")}
        for layer in range(3):
            made = hf.modeling_outputs.MoEModelOutput if name == "nllb_moe" else hf.modeling_outputs.BaseModelOutput
            outputs = made(last_hidden_state=norm(whole[layer]))
            wanted = model.module(encoder_outputs=outputs, **feeding).logits.log_softmax(-1).flatten(0, 1)
            assert float((found.chosen_log_prob[layer] - wanted).abs().max()) < 2e-5
    assert found.sites == ("encoder.blocks.0.resid_pre", *(f"encoder.blocks.{i}.resid_post" for i in range(3)))
    assert len(found.pos) == 8
    assert torch.equal(found.ids, inputs["decoder_input_ids"].flatten())
    assert float(found.kl_forward[0].max()) > 1e-3


def hooks(module) -> int:
    """How many there are; Hugging Face leaves some of its own behind."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in module.modules())


@pytest.mark.parametrize("name", KINDS)
def test_free_generation_ends_with_what_the_model_writes(name):
    model = load(net(name))
    lens = DecoderLens(model)
    encoder = {k: v for k, v in inputs_of(model).items() if not k.startswith("decoder_") and k != "use_cache"}
    options = {} if name == "whisper" else {"num_beams": 2}
    before = hooks(model.module)
    said = lens.generate(encoder, max_new_tokens=6, **options)
    assert hooks(model.module) == before
    with torch.no_grad():
        own = model.module.generate(**encoder, max_new_tokens=6, do_sample=False, **options)
    assert torch.equal(said[-1].ids, own)
    assert said[-1].error_rate == 0.0
    assert len(said) == 4


def test_blocks_that_do_nothing_generate_alike():
    """With the writes of the encoder's last two blocks zero, every layer from the first on says the same."""
    quiet = copy.deepcopy(net("t5"))
    with torch.no_grad():
        for block in list(quiet.encoder.block)[1:]:
            block.layer[0].SelfAttention.o.weight.zero_()
            block.layer[1].DenseReluDense.wo.weight.zero_()
    model = load(quiet)
    lens = DecoderLens(model)
    found = lens(inputs_of(model))
    assert float(found.kl_forward[1:].abs().max()) < 1e-6
    ids = torch.tensor([[5, 9, 11, 3], [7, 7, 12, 40]])
    said = lens.generate(ids, max_new_tokens=8)
    assert torch.equal(said[1].ids, said[-1].ids)
    assert said[1].texts == said[3].texts


def test_without_a_target_the_models_own_words_are_read():
    model = load(net("t5"))
    lens = DecoderLens(model)
    ids = torch.tensor([[5, 9, 11, 3]])
    found = lens(ids)
    with torch.no_grad():
        own = model.module.generate(input_ids=ids, max_new_tokens=20, do_sample=False)
    assert torch.equal(found.ids, own[0, :-1])
    assert torch.equal(found.finals[0], own[0, 1:])
    forced = lens.forced(ids, torch.tensor([[8, 4]]))
    assert forced["decoder_input_ids"].tolist() == [[0, 8, 4]]
    assert lens(forced).cross_entropy.shape == (4, 3)


@pytest.mark.parametrize("name", KINDS)
def test_what_the_model_writes_is_read_from_its_start(name):
    """Read back, each token is the likeliest after those before it: also where `generate` leaves the start out, as Whisper's."""
    model = load(net(name))
    lens = DecoderLens(model)
    encoder = {k: v for k, v in inputs_of(model).items() if not k.startswith("decoder_")}
    with torch.no_grad():
        own = model.module.generate(**encoder, max_new_tokens=20, do_sample=False, num_beams=1)
    given = lens.inputs(encoder)
    assert bool((given["decoder_input_ids"][:, 0] == model.config.decoder_start_token_id).all())
    found = lens(encoder)
    for row in range(2):
        said = found.of(row)
        wrote = own[row] if name == "whisper" else own[row, 1:]
        count = min(len(wrote), len(said.pos))
        assert torch.equal(said.ids[1:count], wrote[: count - 1])
        assert int((said.top[-1, :count, 0] == wrote[:count]).sum()) >= count - 1  # of some, one token is forced


def test_rows_that_end_early_are_read_to_their_end():
    """The sound of four digits beside that of two: nothing is read after the second digit."""
    model = interp.load("zoo:tones")
    rng = np.random.default_rng(0)
    found = DecoderLens(model)({"input_features": tones.heard([tones.dial(t, rng) for t in ("4071", "12")])})
    assert "".join(model.tokenizer.decode(found.of(0).ids)).replace(" ", "") == "<s>4071"
    assert "".join(model.tokenizer.decode(found.of(1).ids)).replace(" ", "") == "<s>12"
    for row, text in enumerate(("4071", "12")):
        said = found.of(row)
        assert model.tokenizer.decode(said.top[-1, :, 0]).replace(" ", "") == f"{text}</s>"
        assert bool((said.rank[-1] == 1).all())


@pytest.mark.parametrize(
    ("a", "b", "edits"), [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "abc", 0), ("ab", "", 2)]
)
def test_edits_between_texts(a, b, edits):
    assert distance([ord(c) for c in a], [ord(c) for c in b]) == edits


def test_what_the_decoder_lens_cannot_read():
    lens = DecoderLens(load(net("t5")))
    with pytest.raises(WrongUse, match="cannot read 'decoder"):
        lens(torch.tensor([[5, 6]]), "decoder.blocks.0.resid_post")
    with pytest.raises(WrongUse, match=r"encoder\.blocks\.9"):
        lens(torch.tensor([[5, 6]]), "encoder.blocks.9.resid_post")
    with pytest.raises(WrongUse, match="no encoder with a decoder"):
        DecoderLens(load(module("llama")))


@pytest.mark.parametrize("name", KINDS)
def test_a_target_is_read_after_what_the_model_puts_before_labels(name):
    """Given labels, Hugging Face makes its decoder read them one to the right; so does `forced`, with the last label behind."""
    model = load(net(name))
    lens, labels = DecoderLens(model), torch.tensor([[8, 4, 30], [7, 7, 2]])
    seen = {}
    decoder = model.module.get_decoder()
    handle = decoder.register_forward_pre_hook(lambda m, a, kw: seen.update(kw), with_kwargs=True)
    encoder = {k: v for k, v in inputs_of(model).items() if not k.startswith("decoder_")}
    with torch.no_grad():
        model.module(**encoder, labels=labels)
    handle.remove()
    forced = lens.forced(encoder, labels)
    assert torch.equal(forced["decoder_input_ids"], torch.cat([seen["input_ids"], labels[:, -1:]], dim=1))
    begun = torch.cat([forced["decoder_input_ids"][:, :1], labels], dim=1)
    assert torch.equal(lens.forced(encoder, begun)["decoder_input_ids"][:, -3:], labels)
    with pytest.raises(WrongUse, match="the target is empty"):
        lens.forced(encoder, labels[:, :0])
