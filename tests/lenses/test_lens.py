"""The logit lens: its last row is the model, every row the head of the normed state, whatever the architecture."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import interp
from interp import WrongUse, Zero
from interp.kernels import counted
from interp.lenses import Lens, direct_logit_attribution
from interp.model import load
from interp.model.inputs import probe_inputs
from interp.model.model import Tokens
from interp.model.twin import Lifted
from tests.model.shapes import BUILD, CAUSAL, MORE, module

IDS = torch.tensor([[5, 9, 11, 3, 8, 20], [7, 7, 12, 40, 6, 13]])
HEADLESS = ["clip"]
POOLED = {
    "vit": 0,
    "deit": 0,
    "swin": "mean",
    "beit": None,
}  # the position a classifier reads; None: it pools, then norms
ROWS = [n for n in [*BUILD, *MORE] if n not in [*HEADLESS, *POOLED]]


@pytest.mark.check("lenses 1a (lens at the last layer)", formula="U(norm(h_L)) = logits, one norm", tolerance=1e-5)
@pytest.mark.parametrize("name", ROWS)
def test_the_last_row_is_the_model(name, measured):
    """log p of all tokens is had by asking about all of them."""
    model = load(module(name))
    lens, inputs = Lens(model), probe_inputs(model.module, batch=2, length=5, seed=9)
    found = lens(inputs, lens.head.last, tokens=range(lens.head.width))
    with torch.no_grad():
        logits = model(inputs).logits.log_softmax(-1).flatten(0, 1)
    measured(float((found.chosen_log_prob[0] - logits).abs().max()))
    assert float(found.kl_forward.abs().max()) == 0.0
    assert bool(found.agreement.all())
    assert bool((found.rank == 1).all())


SHIFTED = [
    "mamba",
    "falcon_mamba",
    "mamba2",
]  # they add to the stream in place, so their hidden_states[l] shows block l + 1
# The final norm and the head, where they are modules called one after the other; for all others it is the plain pair.
TAIL = {
    "gpt2": "transformer.ln_f lm_head",
    "gptj": "transformer.ln_f lm_head",
    "gpt_neo": "transformer.ln_f lm_head",
    "bloom": "transformer.ln_f lm_head",
    "falcon one key head": "transformer.ln_f lm_head",
    "falcon grouped": "transformer.ln_f lm_head",
    "falcon alibi": "transformer.ln_f lm_head",
    "pythia": "gpt_neox.final_layer_norm lm_head",
    "opt": "model.decoder.final_layer_norm lm_head",
    "opt after norm": "lm_head",
    "jamba": "model.final_layernorm lm_head",
    "bert": "cls",
    "deberta": "cls",
    "roberta": "lm_head",
    "albert": "predictions",
    "modernbert": "model.final_norm head decoder",
}


def by_hand(net, name: str, h):
    """Logits of a hidden state, by the modules of Hugging Face."""
    for path in TAIL.get(name, "model.norm lm_head").split():
        h = net.get_submodule(path)(h)
    cap = getattr(net.config, "final_logit_softcapping", None)
    h = h / getattr(net.config, "logits_scaling", 1.0)
    return h if cap is None else cap * torch.tanh(h / cap)


@pytest.mark.parametrize("name", [n for n in ROWS if n not in ("llava", "t5", "bart", "whisper", *SHIFTED)])
def test_every_row_is_the_head_of_the_normed_state(name):
    """hidden_states[l] of Hugging Face through its own norm and head. The last of them is normed already."""
    model = load(module(name))
    lens, inputs = Lens(model), probe_inputs(model.module, batch=2, length=5, seed=9)
    found = lens(inputs, tokens=range(lens.head.width))
    with torch.no_grad():
        hidden = copy.deepcopy(model.module)(**inputs, output_hidden_states=True).hidden_states  # leaves hooks behind
        assert len(found.sites) == len(hidden) == 4
        for row in range(3):
            wanted = by_hand(model.module, name, hidden[row]).log_softmax(-1).flatten(0, 1)
            assert float((found.chosen_log_prob[row] - wanted).abs().max()) < 2e-5


BOTH_WAYS = {
    "t5": lambda net, h: net.lm_head(net.decoder.final_layer_norm(h) * net.config.d_model**-0.5),
    "bart": lambda net, h: net.lm_head(h) + net.final_logits_bias,
    "whisper": lambda net, h: net.proj_out(net.model.decoder.layer_norm(h)),
}


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_every_row_of_a_decoder_beside_an_encoder(name):
    """decoder_hidden_states[l] of Hugging Face through its own norm, scale, head and bias."""
    model = load(module(name))
    lens, inputs = Lens(model), probe_inputs(model.module, batch=2, length=5, seed=9)
    found = lens(inputs, tokens=range(lens.head.width))
    with torch.no_grad():
        hidden = copy.deepcopy(model.module)(**inputs, output_hidden_states=True).decoder_hidden_states
        assert len(found.sites) == len(hidden) == 4
        for row in range(3):
            wanted = BOTH_WAYS[name](model.module, hidden[row]).log_softmax(-1).flatten(0, 1)
            assert float((found.chosen_log_prob[row] - wanted).abs().max()) < 2e-5


@pytest.mark.parametrize("name", POOLED)
def test_classifiers_are_read_at_every_position(name):
    """Where the head reads the class token, that token's last row is the model; where it averages normed tokens, their mean."""
    model = load(module(name))
    lens = Lens(model)
    inputs = probe_inputs(model.module, batch=3, seed=9)
    logits, place = model(inputs).logits, POOLED[name]
    found = lens(inputs, lens.head.last, tokens=range(lens.head.width))
    assert found.ids is None
    assert bool(found.cross_entropy.isnan().all())
    last = model.record(inputs, lens.head.last)[lens.head.last]
    each = lens.head(last.flatten(0, 1)).unflatten(0, last.shape[:2])
    assert float((found.chosen_log_prob[0] - each.flatten(0, 1).log_softmax(-1)).abs().max()) < 1e-5
    if place == "mean":
        assert float((each.mean(1) - logits).abs().max()) < 1e-5
    elif place is not None:
        assert float((each[:, place] - logits).abs().max()) < 1e-5
        at = found.pos == place
        assert torch.equal(found.top[0, at, 0], logits.argmax(-1))
        assert found.to_frame()["top"].iloc[0] == model.config.id2label[int(logits[0].argmax())]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "bert", "t5"])
def test_statistics_are_those_of_the_full_distributions(name):
    """Against log-softmax over everything in float64, from scores that the head gives one site at a time."""
    model = load(module(name))
    lens = Lens(model)
    inputs = probe_inputs(model.module, batch=2, length=6, seed=4)
    found = lens(inputs, tokens=[4, 9], k=3)
    cache = model.record(inputs, [*found.sites])
    q = lens.head(cache[lens.head.last].flatten(0, 1)).double().log_softmax(-1)
    text = inputs.get("decoder_input_ids", inputs["input_ids"])
    for row, site in enumerate(found.sites):
        p = lens.head(cache[site].flatten(0, 1)).double().log_softmax(-1)
        assert torch.allclose(found.entropy[row].double(), -(p.exp() * p).sum(1), atol=1e-5)
        assert torch.allclose(found.kl_forward[row].double(), (q.exp() * (q - p)).sum(1), atol=1e-5)
        assert torch.allclose(found.kl_backward[row].double(), (p.exp() * (p - q)).sum(1), atol=1e-5)
        assert torch.allclose(found.chosen_log_prob[row].double(), p[:, [4, 9]], atol=1e-5)
        assert torch.equal(found.agreement[row], p.argmax(1) == q.argmax(1))
        after = p.unflatten(0, text.shape)[:, :-1].gather(2, text[:, 1:, None])
        if name == "bert":  # it sees the token, so the token itself is meant
            after = p.unflatten(0, text.shape).gather(2, text[..., None])
        seen = found.cross_entropy[row].unflatten(0, text.shape)
        assert torch.allclose(seen[:, : after.shape[1]].double(), -after[..., 0], atol=1e-5)
        assert bool(seen[:, after.shape[1] :].isnan().all())


def test_a_few_tokens_at_a_time_are_the_same(monkeypatch):
    """The memory allowed decides how many tokens' states are held, and nothing else."""
    from interp.lenses import statistics

    lens = Lens(load(module("llama")))
    with counted() as calls:
        whole = lens(IDS)
    assert calls == {("lens_statistics", "cpu"): 1}
    held = []
    plain = lens.head.normed
    monkeypatch.setattr(lens.head, "normed", lambda x: (held.append(len(x)), plain(x))[1])
    monkeypatch.setitem(statistics.BYTES, "cpu", 5 * 4 * len(whole.sites) * lens.head.linear[0].shape[1])
    with counted() as calls:
        parts = lens(IDS)
    assert calls == {("lens_statistics", "cpu"): 3}
    assert held == [n for n in (5, 5, 2) for _ in range(len(whole.sites) + 1)]
    assert torch.equal(whole.top, parts.top)
    assert torch.allclose(whole.kl_forward, parts.kl_forward, atol=1e-6)


def test_a_head_that_is_no_plain_layer_is_called(monkeypatch):
    """An adapter in its place, say: its own forward makes the scores, and they say the same."""
    model = load(module("llama"))
    lens = Lens(model)
    plain, layer = lens(IDS), lens.head.unembedding
    seen = []
    monkeypatch.setattr(
        layer, "forward", lambda h: (seen.append(h.shape), torch.nn.functional.linear(h, layer.weight))[1]
    )
    assert lens.head.linear is None
    called = lens(IDS)
    assert len(seen) == len(plain.sites) + 1
    assert torch.equal(called.top, plain.top)
    assert torch.allclose(called.kl_backward, plain.kl_backward, atol=1e-6)


@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_nothing(left):
    """Llama's positions are relative, so on either side; the pads are in no row."""
    model = load(module("llama"))
    lens = Lens(model)
    padded = model.pad([IDS[0, :4].tolist(), IDS[1].tolist()], left=left)
    both, alone = lens(padded), lens(IDS[:1, :4])
    assert both.prompt.tolist() == [0] * 4 + [1] * 6
    assert both.pos.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5]
    short = both.of(0)
    assert torch.equal(short.ids, IDS[0, :4])
    assert torch.allclose(short.entropy, alone.entropy, atol=1e-5)
    assert torch.allclose(short.cross_entropy, alone.cross_entropy, atol=1e-5, equal_nan=True)


def test_one_token():
    found = Lens(load(module("gpt2")))(torch.tensor([[7]]))
    assert found.entropy.shape == (4, 1)
    assert bool(found.cross_entropy.isnan().all())
    assert found.to_frame().shape[0] == 4


def test_writes_and_single_heads_are_read():
    """A head's row is the head of what the head alone writes; its attribution is exact elsewhere, see test_direct."""
    model = load(module("llama"))
    lens = Lens(model)
    found = lens(IDS, ["blocks.1.attn.write", "blocks.1.attn.result", "blocks.0.resid_mid", "blocks.2.mlp.write"])
    assert [s for s in found.sites if "result" in s] == [f"blocks.1.attn.result.{h}" for h in range(4)]
    result = model.record(IDS, "blocks.1.attn.result")["blocks.1.attn.result"]
    p = lens.head(result[:, :, 2].flatten(0, 1)).log_softmax(-1)
    row = found.sites.index("blocks.1.attn.result.2")
    assert torch.allclose(found.entropy[row], -(p.exp() * p).sum(-1), atol=1e-5)
    attributed = direct_logit_attribution(model, IDS, 4)
    assert attributed.heads.shape == (2, 3, 4)


def test_vectors_are_read():
    """Decoder rows of a dictionary, say: the likeliest tokens of each."""
    lens = Lens(load(module("llama")))
    rows = torch.randn(300, 32)
    ids, log_prob = lens.read(rows, k=4)
    wanted = lens.head(rows).log_softmax(-1).topk(4)
    assert torch.equal(ids, wanted.indices)
    assert torch.allclose(log_prob, wanted.values, atol=1e-6)


def test_blocks_that_do_nothing():
    """With every write zero the prediction stands from the start: KL 0, rank 1, everywhere."""
    net = copy.deepcopy(module("llama"))
    with torch.no_grad():
        for block in net.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    found = Lens(load(net))(IDS)
    assert float(found.kl_forward.abs().max()) < 1e-6
    assert bool((found.rank == 1).all())


def test_the_bundled_model_reads_text():
    model = interp.load("zoo:books")
    found = Lens(model)("Mr. Darcy bowed to Elizabeth", tokens=[" the"])
    frame = found.to_frame()
    assert list(frame.columns[:5]) == ["site", "prompt", "pos", "token", "top"]
    assert "log p( the)" in frame
    assert set(frame["site"]) == set(found.sites)
    assert "".join(found.tokens).replace("<|endoftext|>", "").endswith("Mr. Darcy bowed to Elizabeth")
    rank = found.next_rank[:, 1:-1].float().log().mean(1)
    assert float(rank[-1]) < float(rank[3]) < float(rank[0])


def test_pictures():
    found = Lens(load(module("llama")))(IDS, k=2)
    grid = found.plot("kl_forward", prompt=1)
    (heat,) = grid.data
    assert np.allclose(np.asarray(heat.z), found.of(1).kl_forward.numpy())
    assert np.asarray(heat.text).shape == (4, 6)
    assert heat.customdata[0][0].count("<br>") == 2
    lines = found.plot("rank", view="lines")
    assert len(lines.data) == 6
    with pytest.raises(WrongUse, match="Did you mean 'entropy'"):
        found.plot("entropi")
    with pytest.raises(WrongUse, match="'grid' nor 'lines'"):
        found.plot(view="table")
    with pytest.raises(WrongUse, match="no prompt 7"):
        found.plot(prompt=7)


def test_a_token_cannot_pose_as_markup():
    class Hostile:
        bos_token_id = pad_token_id = None

        def convert_ids_to_tokens(self, i):
            return "<b>"

        def decode(self, ids, **_):
            return "<b>bold</b>"

    model = load(module("llama"), tokenizer=Hostile())
    figure = Lens(model)(IDS[:1]).plot()
    assert "<b>" not in figure.to_json()


@pytest.mark.parametrize(
    ("name", "sites", "words"),
    [
        ("llama", "blocks.0.mlp.post", r"cannot read 'blocks.0.mlp.post': it holds \[batch, pos, 48\].*resid_post"),
        ("llama", "blocks.0.attn.pattern", "cannot read"),
        ("llama", "blocks.7.resid_post", "blocks.7.resid_post"),
        ("llama", [], "no site was named"),
        ("t5", "encoder.blocks.0.resid_post", "cannot read.*decoder.blocks"),
        ("llama", "module:model.norm", "cannot read"),
    ],
)
def test_what_cannot_be_read_is_refused(name, sites, words):
    lens = Lens(load(module(name)))
    with pytest.raises(WrongUse, match=words):
        lens(IDS, sites)


def test_models_without_a_head_are_refused():
    with pytest.raises(WrongUse, match="has no head"):
        Lens(load(module("clip")))
    with pytest.raises(WrongUse, match="has no head"):
        Lens(load(module("gpt2").transformer))


def test_wrong_words_are_refused(tiny_folder):
    lens = Lens(interp.load(tiny_folder))
    for empty in ("", "  ", ["The class", ""]):
        with pytest.raises(WrongUse, match="empty"):
            lens(empty)
    with pytest.raises(WrongUse, match="name one"):
        lens("The class", tokens=[" Netherfield"])
    with pytest.raises(WrongUse, match="ids run from"):
        lens("The class", tokens=[10**6])
    with pytest.raises(WrongUse, match="site"):
        lens("The class", site="x")


@pytest.mark.parametrize("name", [*CAUSAL, "bert", "modernbert", "t5"])
def test_who_looks_ahead_is_found(name):
    assert Lens(load(module(name))).head.causal == (name not in ("bert", "modernbert"))


def test_tokens_object_with_a_mask():
    lens = Lens(load(module("bert")))
    short = Tokens(IDS, torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool())
    both, alone = lens(short), lens(IDS[:1, :4])
    assert torch.allclose(both.of(0).entropy, alone.entropy, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "albert", "vit", "bart"])
def test_states_are_carried_past_the_blocks_and_nothing_is_left_behind(name):
    """The tail alone is what the model itself makes of its last block's output; an edit in force does not reach it."""
    model = load(module(name))
    lens, inputs = Lens(model), probe_inputs(model.module, batch=2, length=5, seed=9)
    onward = lens.head._carrier[0]
    cache = model.record(inputs, [onward.start, onward.until])
    before = lens.head(cache[onward.start].flatten(0, 1))
    calls = []
    handle = model.module.get_submodule(model.wiring.stacks[-1].blocks[0].path).register_forward_hook(
        lambda m, a, out: calls.append(any(t is a[0] for t in (out if isinstance(out, tuple) else (out,))))
    )
    with torch.no_grad(), model.edit(Zero(onward.start)):
        got = onward(cache[onward.start], inputs)
        model(inputs)  # the edit is still in force
    handle.remove()
    assert torch.equal(got, cache[onward.until])
    assert calls[0]  # the block handed on the very tensor that it received
    assert torch.equal(lens.head(cache[onward.start].flatten(0, 1)), before)
    assert not [n for n, m in model.module.named_modules() if "forward" in vars(m) or m._forward_hooks]


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_the_way_to_the_logits_has_gradients(name):
    """A step of a thousandth along the gradient changes the scores as it says."""
    with Lifted():
        model = load(module(name, torch.float64))
        head = Lens(model).head
        x = torch.randn(3, 32, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(head(x)[:, 7].sum(), x)
        with torch.no_grad():
            step = 1e-5 * slope
            change = (head(x + step)[:, 7] - head(x - step)[:, 7]).sum() / 2
    assert float(change) == pytest.approx(float((slope * step).sum()), rel=1e-6)
