"""Curves of models against the measures on what was recorded, blocks as linear maps, models compared, orders of tokens."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import interp
from interp.errors import WrongUse
from interp.model import load
from probes import measures as m
from probes.cli.geometry import SHEET
from probes.cli.geometry import geometry as command
from probes.compare import permutation_sensitivity, similarity
from probes.geometry import CURVES, geometry, linear_block
from tests.model.shapes import BUILD, module


def ids(windows=5, n=16, seed=1):
    return torch.randint(3, 61, (windows, n), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def gpt2():
    return load(module("gpt2", torch.float64))


def test_curves_are_the_measures_of_what_is_recorded(gpt2):
    x = ids()
    seen = geometry(gpt2, x, batch=2)
    cache = gpt2.record(x, ["blocks.0.resid_pre", "blocks.*.resid_post", "blocks.1.*"])
    pre, post = cache["blocks.0.resid_post"].flatten(0, 1), cache["blocks.1.resid_post"].flatten(0, 1)

    def value(name, place):
        return float(seen.curve(name)[place])

    def mean(of, site):
        return sum(of(w) for w in cache[site]) / 5

    assert value("linearity", 1) == pytest.approx(m.linearity(pre, post), abs=1e-12)
    assert value("linearity of the update", 1) == pytest.approx(m.linearity(pre, post - pre), abs=1e-12)
    assert value("cka", 1) == pytest.approx(m.cka(pre, post), abs=1e-12)
    assert value("procrustes", 1) == pytest.approx(m.procrustes(pre, post), abs=1e-12)
    assert value("anisotropy", 2) == pytest.approx(m.anisotropy(post), abs=1e-12)
    assert value("intrinsic dimension", 2) == pytest.approx(m.two_nn(post), abs=1e-12)
    assert value("rank-one residual", 2) == pytest.approx(mean(m.rank_one_residual, "blocks.1.resid_post"), abs=1e-12)
    assert value("order in the stream", 2) == pytest.approx(mean(m.adjacency, "blocks.1.resid_post"), abs=1e-12)
    assert value("order in attention", 1) == pytest.approx(mean(m.adjacency, "blocks.1.attn.out"), abs=1e-12)
    share = (cache["blocks.1.attn.write"].norm(dim=-1) / cache["blocks.1.resid_pre"].norm(dim=-1)).mean()
    assert value("attention write", 1) == pytest.approx(float(share), rel=1e-9)
    entropy = torch.stack([m.attention_entropy(p) for p in cache["blocks.1.attn.pattern"]]).mean(0)
    assert value("attention entropy", 1) == pytest.approx(float(entropy[0].mean()), rel=1e-9)
    assert torch.allclose(seen.heads[1], entropy[1])
    z = (cache["blocks.1.resid_post"] - post.mean(0)) / post.std(0, correction=0)
    each = torch.tensor([m.matrix_entropy(w) for w in z], dtype=torch.float64)
    assert value("matrix entropy", 2) == pytest.approx(float(each.mean()), abs=1e-9)
    assert seen.spread["blocks.1.resid_post"] == pytest.approx(float(each.std(correction=0)), abs=1e-9)
    assert (seen.tokens, seen.windows) == (80, 5)
    assert seen.chance == pytest.approx(32 / 79)


def test_frames_and_pictures(gpt2):
    seen = geometry(gpt2, ids())
    assert set(seen.curves) == set(CURVES)
    assert sorted(n for names in SHEET.values() for n in names) == sorted(CURVES)
    frame = seen.to_frame()
    assert list(frame.columns) == ["curve", "site", "value"]
    assert len(frame[frame["curve"] == "norm"]) == 4
    assert len(seen.plot().data) == len(CURVES)
    assert len(seen.plot("linearity", "cka").data) == 2
    with pytest.raises(WrongUse, match="Did you mean 'linearity'"):
        seen.plot("linearty")


@pytest.mark.parametrize("name", ["llama", "gemma2", "bert", "mamba", "opt"])
def test_other_architectures_have_the_curves_they_have_sites_for(name):
    seen = geometry(load(module(name)), ids())
    assert set(seen.curves) == set(CURVES) - (
        {c for c in CURVES if "attention" in c or "head" in c or "neuron" in c or c in ("mlp write", "compression")}
        if name == "mamba"
        else set()
    )
    values = torch.cat([seen.curve(c) for c in seen.curves])
    assert bool(values.isfinite().all())


def test_16_bits_and_padding_and_the_start_token(gpt2, tiny_folder):
    """bf16 is near float64; padded prompts are their real tokens; <s> is not counted."""
    x = ids()
    low = geometry(load(copy.deepcopy(gpt2.module).to(torch.bfloat16)), x)
    high = geometry(gpt2, x)
    assert torch.allclose(low.curve("linearity"), high.curve("linearity"), atol=0.02)
    padded = {"input_ids": torch.cat([x, torch.zeros(5, 4, dtype=torch.long)], 1)}
    padded["attention_mask"] = torch.cat([torch.ones_like(x), torch.zeros(5, 4, dtype=torch.long)], 1)
    found = geometry(gpt2, padded)
    assert found.tokens == 80
    for name in CURVES:
        assert torch.allclose(found.curve(name), high.curve(name), atol=1e-9), name
    model = interp.load(tiny_folder)
    seen = geometry(model, ["The class of an object. " * 60], context=32, tokens=128)
    assert (seen.windows, seen.tokens) == (4, 4 * 31)


def test_a_padding_mask_that_would_be_ignored_is_refused():
    from transformers import BertForMaskedLM

    class DeafBert(BertForMaskedLM):
        def forward(self, input_ids=None, attention_mask=None, **rest):
            return super().forward(input_ids=input_ids, **rest)

    mask = torch.ones(5, 16, dtype=torch.long)
    mask[0, :4] = 0
    with pytest.raises(WrongUse, match="would ignore the attention mask"):
        geometry(load(DeafBert(module("bert").config).eval()), {"input_ids": ids(), "attention_mask": mask})


def test_padding_on_the_left_is_left_out(gpt2):
    """GPT-2 told where its tokens stand: the same curves as without padding."""
    x = ids()
    pad = torch.zeros(5, 4, dtype=torch.long)
    padded = {"input_ids": torch.cat([pad, x], 1), "attention_mask": torch.cat([pad, torch.ones_like(x)], 1)}
    padded["position_ids"] = (padded["attention_mask"].cumsum(1) - 1).clamp(min=0)
    found, plain = geometry(gpt2, padded), geometry(gpt2, x)
    for name in CURVES:
        assert torch.allclose(found.curve(name), plain.curve(name), atol=1e-9), name


def test_several_stacks_are_named_and_one_is_chosen():
    model = load(module("t5"))
    x = {"input_ids": ids(), "decoder_input_ids": ids(seed=2)}
    with pytest.raises(WrongUse, match=r"stack='encoder\.' or stack='decoder\.'"):
        geometry(model, x)
    for stack in ("encoder", "decoder."):
        seen = geometry(model, x, stack=stack)
        assert len(seen.curve("linearity")) == 3
        assert seen.to_frame()["site"].str.startswith(stack).all()


def test_bad_input_says_so(gpt2, tiny_folder):
    model = interp.load(tiny_folder)
    with pytest.raises(WrongUse, match=r"shorter than the window: .* windows of 64"):
        geometry(model, "The class.", context=64)
    with pytest.raises(WrongUse, match="nothing to compare"):
        geometry(model, "The class.", context=1)
    with pytest.raises(WrongUse, match="give more than 33 tokens"):
        geometry(gpt2, ids(2, 16))
    with pytest.raises(WrongUse, match=r"token ids are \[window, pos\]"):
        geometry(gpt2, torch.zeros(2, 3))
    with pytest.raises(WrongUse, match="no tokenizer"):
        geometry(gpt2, "The class.")
    with pytest.raises(WrongUse, match="contxt"):
        geometry(gpt2, ids(), contxt=3)


# ---------------------------------------------------------------- a block as a linear map


@pytest.mark.check(
    "geometry 7 replacement", formula="logits where a block that is affine is replaced by least squares", tolerance=1e-5
)
def test_an_affine_block_is_replaced_without_a_trace(measured):
    """Block 1 writes a constant and a linear map of the stream; the others stay what they are."""
    net = copy.deepcopy(module("gpt2", torch.float64))
    block = net.transformer.h[1]
    A = 0.1 * torch.randn(32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        block.attn.c_proj.weight.zero_()
    block.ln_2 = torch.nn.Identity()
    block.mlp.forward = lambda h: h @ A + 0.5
    model, x = load(net), ids()
    plain = net(x).logits
    with torch.no_grad(), model.edit(*linear_block(model, 1, x)):
        measured(float((model(x).logits - plain).abs().max()))
    with torch.no_grad(), model.edit(*linear_block(model, 2, x)):
        assert float((model(x).logits - plain).abs().max()) > 1e-3
    with pytest.raises(WrongUse, match="no block 3"):
        linear_block(model, 3, x)


# ---------------------------------------------------------------- compared


def test_models_compared(gpt2):
    x = ids()
    same = similarity(gpt2, gpt2, x)
    assert torch.allclose(same.values.diagonal(), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(same.values, same.values.T)
    other = load(module("pythia"))
    found = similarity(gpt2, other, x, measure="procrustes", sites="blocks.*.resid_post")
    a = gpt2.record(x, "blocks.0.resid_post")["blocks.0.resid_post"].flatten(0, 1)
    b = other.record(x, "blocks.2.resid_post")["blocks.2.resid_post"].flatten(0, 1)
    assert float(found.values[0, 2]) == pytest.approx(m.procrustes(a, b), rel=1e-6)
    assert found.to_frame().shape == (3, 3)
    assert found.plot().data[0].z.shape == (3, 3)
    with pytest.raises(WrongUse, match="list of measures"):
        similarity(gpt2, other, x, measure="cca")


def test_other_tokens_cannot_be_paired(tiny_folder):
    text = ["The class of an object is its type. " * 40]
    a, b = interp.load(tiny_folder), interp.load("zoo:books")
    with pytest.raises(WrongUse, match="other tokens"):
        similarity(a, b, text, context=16)
    assert similarity(a, a, iter(text), context=16, tokens=160).values.shape == (2, 2)


# ---------------------------------------------------------------- order


def without_positions(name, layers):
    kind, config, options = BUILD[name]
    size = {"gpt2": "n_layer", "bert": "num_hidden_layers"}[name]
    torch.manual_seed(layers)
    net = kind(config(**options | {size: layers})).eval().double()
    from interp.model.twin import randomise

    randomise(net, layers)
    table = net.transformer.wpe if name == "gpt2" else net.bert.embeddings.position_embeddings
    with torch.no_grad():
        table.weight.zero_()
    return load(net)


@pytest.mark.check(
    "circuits 8.6 permutations",
    formula="last position under permutations: no mask, and one causal layer",
    tolerance=1e-6,
)
def test_permutations_without_position_encodings(measured):
    x = ids(3, 10)
    both_ways = permutation_sensitivity(without_positions("bert", 3), x)
    measured(float(both_ways.last.max()))
    measured(float(both_ways.others.max()))
    causal = permutation_sensitivity(without_positions("gpt2", 2), x)
    measured(float(causal.last[0]))
    assert float(causal.last[1]) > 0.01
    assert float(causal.others[0]) > 0.01
    assert len(causal.to_frame()) == 2
    assert len(causal.plot().data) == 2
    with pytest.raises(WrongUse, match="change places"):
        permutation_sensitivity(without_positions("bert", 1), x[:, :2])


def test_a_start_token_keeps_its_place(tiny_folder):
    model = interp.load(tiny_folder)
    found = permutation_sensitivity(model, ["The class of an object is its type. " * 10], context=12, draws=3)
    assert bool((found.last > 0).all())


def test_order_without_encodings_is_in_attention_first():
    """Random 4-layer GPT-2 without positions, distinct tokens: attention's outputs hold an order, the stream hardly does."""
    kind, config, options = BUILD["gpt2"]
    torch.manual_seed(0)
    net = kind(config(**options | dict(vocab_size=300, n_layer=4, n_embd=64, initializer_range=0.02))).eval()
    with torch.no_grad():
        net.transformer.wpe.weight.zero_()
    draw = torch.Generator().manual_seed(1)
    x = torch.stack([torch.randperm(297, generator=draw)[:48] + 3 for _ in range(4)])
    seen = geometry(load(net), x)
    assert float(seen.curve("order in attention").min()) > 0.85
    assert float((seen.curve("order in the stream") - 0.5).abs().max()) < 0.1


# ---------------------------------------------------------------- the command


def test_the_command_prints_one_object_and_writes_a_page(tiny_folder, tmp_path, capsys):
    page, text = tmp_path / "page.html", tmp_path / "text.txt"
    text.write_text("The class of an object is its type. " * 100)
    command(str(tiny_folder), text=str(text), context=32, tokens=256, out=page, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert set(told["curves"]) == set(CURVES)
    assert told["windows"] == 8
    html = page.read_text(encoding="utf-8")
    assert "default-src 'none'" in html
    assert html.count("<svg") == len(SHEET)
    for name in CURVES:
        assert name in html
    command(str(tiny_folder), text=str(text), context=32, tokens=256)
    assert "linearity of the update" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        command(str(tiny_folder), text=str(text), context=4096, as_json=True)
    assert stop.value.code == 2
    assert "shorter than the window" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.slow("4,096 tokens at once, in a process whose memory is measured")
def test_long_windows_stay_in_memory():
    """The width and heads of zoo:books, of its five layers two: 0.64 GB. One layer's pattern alone would take 0.5 GB.

    `ru_maxrss` would begin with what the process that forked it had.
    """
    import subprocess
    import sys

    code = (
        "import torch, probes.geometry as g\n"
        "from interp.model import load\n"
        "from interp.zoo import books\n"
        "model = load(books.build_model(books.Recipe(layers=2)).eval())\n"
        "seen = g.geometry(model, torch.randint(3, 4096, (1, 4096)))\n"
        "assert seen.tokens == 4096, seen.tokens\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1_000_000  # KiB
