"""Models that are no plain Hugging Face model: wrapped by another library, offloaded, or written by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from interp import Scale, Zero
from interp.errors import Failed, WrongUse
from interp.model import load
from interp.model.proof import by_letter, doctor
from interp.model.twin import randomise
from tests.model.shapes import module


def proven(model: nn.Module, **options) -> set[str]:
    """The letters of the proofs that pass; none may fail."""
    proofs = by_letter(doctor(load(model, **options)))
    assert not {letter: p["reason"] for letter, p in proofs.items() if p["status"] == "fail"}
    return {letter for letter, p in proofs.items() if p["status"] == "pass"}


def randomised(model: nn.Module) -> nn.Module:
    randomise(model.eval(), 3)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.7)
    return model


def hooked(of: nn.Module) -> nn.Module:
    """A TransformerLens model with the weights of a GPT-2."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    c = of.config
    sizes = dict(
        d_model=c.n_embd, n_ctx=c.n_positions, d_head=c.n_embd // c.n_head, n_heads=c.n_head, d_vocab=c.vocab_size
    )
    cfg = HookedTransformerConfig(
        n_layers=c.n_layer, act_fn="gelu_new", normalization_type="LN", eps=c.layer_norm_epsilon, seed=1, **sizes
    )
    with pytest.warns(DeprecationWarning, match="HookedTransformer"):
        made = HookedTransformer(cfg).eval()
    made.load_state_dict(convert_gpt2_weights(of, cfg), strict=False)
    return made


def test_hooked_transformer_proves_and_agrees_with_the_model_it_came_from():
    mine = module("gpt2")
    theirs = hooked(mine)
    assert proven(theirs) == set("abcdefgh")
    ids = torch.randint(3, 61, (2, 7), generator=torch.Generator().manual_seed(4))
    wanted = [n for n in load(theirs).sites() if n in load(mine).sites()]
    assert {"blocks.1.attn.q_raw", "blocks.1.attn.pattern", "blocks.1.mlp.post", "blocks.1.resid_mid", "logits"} <= {
        *wanted
    }
    assert len(wanted) > 60
    here, there = load(mine).record(ids, wanted), load(theirs).record(ids, wanted)
    for name in wanted:
        a, b = (
            c[name].masked_fill(c[name] < -1e4, 0.0) for c in (here, there)
        )  # masked scores: -3e38 here, -inf there
        assert (a - b).abs().max() <= 1e-5 * a.square().mean().sqrt(), name


@pytest.mark.slow("TransformerLens wraps every module of the bundled model")
def test_a_bridge_proves_and_agrees_with_the_model_inside():
    mine = load("zoo:books")
    setting = mine.config._attn_implementation
    theirs = load(mine.to_transformer_lens())
    assert mine.config._attn_implementation == setting
    wanted = [n for n in theirs.sites() if n in mine.sites()]
    assert {"blocks.1.attn.pattern", "blocks.1.attn.z", "blocks.1.mlp.post", "blocks.1.resid_mid", "logits"} <= {
        *wanted
    }
    ids = mine.tokens("It is a truth universally acknowledged").ids
    here, there = mine.record(ids, wanted), theirs.record(ids, wanted)
    for name in wanted:
        a, b = (c[name].masked_fill(c[name] < -1e4, 0.0) for c in (here, there))
        assert (a - b).abs().max() <= 1e-4 * a.square().mean().sqrt(), (
            name
        )  # its attention is eager, ours fused: float32


def test_what_no_bridge_can_be_built_for_says_why():
    with pytest.raises(WrongUse, match="tokenizer"):
        load(module("llama")).to_transformer_lens()
    with pytest.raises(Failed, match="TransformerLens cannot wrap RobertaForMaskedLM"):
        load(module("roberta"), tokenizer=load("zoo:books").tokenizer).to_transformer_lens()


def test_adapters_are_part_of_the_model():
    from peft import LoraConfig, get_peft_model

    tuned = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    assert proven(get_peft_model(copy.deepcopy(module("llama")), tuned).eval()) == set("abcdefgh")


def test_offloaded_weights_come_to_where_they_are_needed():
    from accelerate import cpu_offload

    offloaded = cpu_offload(copy.deepcopy(module("llama")), execution_device=torch.device("cpu"))
    assert all(p.is_meta for p in offloaded.parameters())
    assert proven(offloaded) == set("abcdefgh")
    ids = torch.tensor([[5, 9, 7]])
    here, there = (load(m).record(ids, "blocks.*.attn.pattern") for m in (module("llama"), offloaded))
    assert all(torch.equal(here[n], there[n]) for n in here)


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_a_device_map_changes_no_number(where, tmp_path):
    """A map over the CPU, and one that leaves a block on disk until it runs."""
    module("llama").save_pretrained(tmp_path)
    parts = ("embed_tokens", "layers.0", "layers.1", "layers.2", "norm", "rotary_emb")
    spread = {f"model.{part}": "cpu" for part in parts} | {"model.layers.1": where, "lm_head": "cpu"}
    net = type(module("llama")).from_pretrained(tmp_path, device_map=spread, offload_folder=tmp_path / "off").eval()
    assert [n for n, p in net.named_parameters() if p.is_meta] == [
        n for n, _ in net.named_parameters() if where == "disk" and "layers.1." in n
    ]
    assert proven(net) == set("abcdefgh")
    ids, edits = torch.tensor([[5, 9, 7]]), [Scale("blocks.1.attn.z", 2.0, head=1), Zero("blocks.0.mlp.write", pos=1)]
    for edit in ([], edits):
        here, there = (load(m).record(ids, "*", edits=edit) for m in (module("llama"), net))
        for n in here:  # heads are read through the matrix itself, or, where it is elsewhere, through the module
            near = 1e-6 if n.endswith("attn.result") and where == "disk" else 0.0
            torch.testing.assert_close(here[n], there[n], rtol=near, atol=near)


# ---------------------------------------------------------------- written by hand


class Attention(nn.Module):
    """Causal attention by hand: one fused matrix, heads first, a softmax of its own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        pattern = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)
        return self.out((pattern @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm, with a factor on what it writes."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.one, self.two = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width))

    def forward(self, x):
        x = x + 0.5 * self.attention(self.one(x))
        return x + self.mlp(self.two(x))


class Writer(nn.Module):
    """A language model in thirty lines, as in a tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(61, 32), nn.Embedding(64, 32)
        self.blocks = nn.ModuleList(Block(32, 4) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 61)

    def forward(self, tokens):
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Looped(nn.Module):
    """One block again and again, over rows of numbers instead of words."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.block, self.leave = nn.Linear(5, 32), Block(32, 4), nn.Linear(32, 2)

    def forward(self, rows):
        x = self.enter(rows)
        for _ in range(3):
            x = self.block(x)
        return self.leave(x)


class Gated(nn.Module):
    """Post-norm, a gated MLP, no attention."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up, self.down = nn.Linear(32, 48), nn.Linear(32, 48), nn.Linear(48, 32)
            self.norm = nn.LayerNorm(32)

        def forward(self, x):
            return self.norm(x + self.down(F.silu(self.gate(x)) * self.up(x)))

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(61, 32)
        self.layers = nn.Sequential(*(Gated.Layer() for _ in range(3)))

    def forward(self, ids):
        return self.layers(self.table(ids))


def test_a_language_model_written_by_hand():
    model = randomised(Writer())
    assert proven(model) == set("abcdefgh") - {"f"} or proven(model) == set("abcdefgh")
    sites = load(model).sites()
    assert {"blocks.2.attn.pattern", "blocks.2.attn.q_raw", "blocks.2.attn.result", "blocks.2.mlp.post"} <= {*sites}
    ids = torch.tensor([[5, 9, 7, 11]])
    cache = load(model).record(ids, ["blocks.1.attn.out", "blocks.1.attn.write", "blocks.1.attn.pattern", "logits"])
    assert torch.equal(cache.logits, model(ids))
    x = model.words(ids) + model.places(torch.arange(4))
    block = model.blocks[1]
    q, k, _ = block.attention.qkv(block.one(model.blocks[0](x))).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
    scores = (q @ k.mT / 8**0.5).masked_fill(torch.ones(4, 4).triu(1).bool(), float("-inf"))
    assert torch.allclose(cache["blocks.1.attn.pattern"], scores.softmax(-1), atol=1e-6)


def test_one_block_called_again_and_again_on_rows_of_numbers():
    model = randomised(Looped())
    example = torch.randn(2, 6, 5)
    assert proven(model, example=example) >= set("abcdegh")
    cache = load(model).record({"rows": example}, ["blocks.*.resid_post", "blocks.2.attn.pattern"])
    x = model.enter(example)
    for i in range(3):
        x = model.block(x)
        assert torch.allclose(cache[f"blocks.{i}.resid_post"], x, atol=1e-6)
    calls = ["module:block@1", "module:block@2:in", "module:block.mlp.1@2"]  # told apart by the number of the call
    called = load(model).record({"rows": example}, calls, edits=[Scale("module:block@1", 2.0)])
    assert torch.equal(called[calls[0]], 2 * cache["blocks.1.resid_post"])
    assert torch.equal(called[calls[1]], called[calls[0]])
    with pytest.raises(WrongUse, match="never reached module:block@3"):
        load(model).record({"rows": example}, "module:block@3")


def test_gated_layers_that_normalise_after_adding():
    model = randomised(Gated())
    assert proven(model) >= set("abdegh")
    assert {"blocks.1.mlp.gate", "blocks.1.mlp.up", "blocks.1.mlp.sum", "blocks.1.mlp.post"} <= {*load(model).sites()}
    ids = torch.tensor([[5, 9, 7, 11]])
    cache = load(model).record(ids, ["blocks.1.*", "logits"], edits=[Scale("blocks.1.mlp.in", 2.0)])
    x, layer = (
        cache["blocks.1.resid_pre"],
        model.layers[1],
    )  # gate and up each receive what was edited, the sum does not
    out = layer.norm(x + layer.down(F.silu(layer.gate(2 * x)) * layer.up(2 * x)))
    assert torch.allclose(cache["blocks.1.resid_post"], out, atol=1e-6)
    assert torch.equal(load(model).record(ids, "logits").logits, model(ids))  # no edit stays


def test_a_model_no_input_can_be_made_up_for_says_what_to_give():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4)

        def forward(self, a, b):
            return self.one(a) + b

    with pytest.raises(Failed, match="example="):
        load(Odd()).sites()
