"""What a recording will take: predicted, against what it then holds."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import pytest
import torch
import transformers as hf

from interp import Failed, WrongUse, Zero
from interp.model import load, memory
from interp.model.memory import check_plan, held, in_bytes, told
from interp.model.model import Tokens
from tests.model.shapes import TEXT
from tests.model.wrapped import wrapped


def inputs_for(name, batch=3, length=11):
    ids = torch.randint(3, 60, (batch, length), generator=torch.Generator().manual_seed(2))
    if name == "vit":
        return torch.randn(batch, 3, 16, 16)
    return {"input_ids": ids, "decoder_input_ids": ids[:, :6]} if name == "t5" else ids


@pytest.mark.parametrize("name", ["gpt2", "llama", "pythia", "gemma2", "bert", "t5", "vit", "mamba", "opt"])
def test_a_plan_is_the_bytes_of_the_storages_then_held(name):
    """Within a tenth, for everything at once, for single sites, positions, and dtypes; shared storages counted once."""
    model, x = wrapped(name), inputs_for(name)
    sites = list(model.sites())
    choices = [dict(sites="*"), dict(sites=sites[len(sites) // 2]), dict(sites="*", dtype=torch.float16)]
    if name not in ("vit", "t5"):
        choices += [
            dict(sites="*resid_*", pos=[1, 3, 4]),
            dict(sites="*resid_*", pos="last"),
            dict(sites="*", pos=slice(2, 9)),
        ]
    for choice in choices:
        planned = model.plan(x, **choice)
        real = held(model.record(x, **choice).values_by_site)
        assert abs(planned.bytes - sum(real.values())) <= 0.1 * sum(real.values()), (choice, planned.bytes)
        assert planned.by_site.keys() == real.keys()


def test_module_sites_and_padded_batches_are_planned_too():
    model = wrapped("gpt2")
    x = Tokens(inputs_for("gpt2"), torch.ones(3, 11, dtype=torch.bool).tril(6))
    sites = ["module:transformer.h.1.mlp.act", "module:transformer.h.1.attn.c_attn", "blocks.0.attn.pattern"]
    assert model.plan(x, sites).by_site == held(model.record(x, sites).values_by_site)
    with pytest.raises(WrongUse, match="dtype"):
        model.plan(x, sites, dtpye=torch.float16)


def resident() -> int:
    """Bytes of this process in memory, after the allocator has given back what it had free."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to see the resident size")
def test_the_process_grows_by_what_was_planned():
    """Some 140 MB, within a tenth; one recording before, so that buffers the pass itself needs are there."""
    config = hf.GPT2Config(**TEXT | dict(n_embd=128, n_layer=6, n_head=4, n_positions=512))
    model, x = load(hf.GPT2LMHeadModel(config).eval()), torch.randint(3, 60, (4, 512))
    sites = ["blocks.*.resid_*", "blocks.*.mlp.post", "blocks.*.attn.pattern"]
    planned = model.plan(x, sites).bytes
    assert planned > 100e6
    first = model.record(x, sites)
    before = resident()
    second = model.record(x, sites)
    grown = resident() - before
    assert abs(grown - planned) <= 0.1 * planned, (grown, planned)
    assert len(first) == len(second)


def alive() -> int:
    """Numbers in all tensors that something still holds."""
    gc.collect()
    return sum(t.numel() for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter))


def test_loading_and_using_a_model_again_and_again_leaves_nothing_behind():
    """A wrapper, its twin, its hooks and what it recorded go when it goes; what is cached for good is there after two."""
    net, x = hf.GPT2LMHeadModel(hf.GPT2Config(**TEXT | dict(n_embd=32, n_layer=3, n_head=4))).eval(), inputs_for("gpt2")

    def use() -> None:
        model = load(net)
        model.record(x, "*", grad=lambda logits: logits[:, -1].sum())
        with model.edit(Zero("blocks.1.attn.pattern", head=1)):
            model.generate(x, 3, record="blocks.2.resid_post")
        model.sweep([Zero("embed", pos=p) for p in range(3)], x[:1], lambda logits: logits[:, -1, 3])
        with pytest.raises(ZeroDivisionError), model.edit(Zero("blocks.0.mlp.write")):
            1 / 0  # noqa: B018
        assert model.weights["blocks.0.attn.W_Q"].shape == (4, 32, 8)

    held = []
    for _ in range(5):
        use()
        held.append(alive())
    assert len(set(held[1:])) == 1, held
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def allocated(work):
    """(Bytes of torch's allocator still held after `work` while its result lives, the result): its own count, exact."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = work()
        gc.collect()
    return sum(e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"), result


@pytest.mark.parametrize("name", ["gpt2", "llama", "pythia", "gemma2"])
def test_a_recording_holds_the_bytes_asked_for_and_nothing_else(name):
    """To the byte: the recorded tensors, each once, and the mask of real tokens; all of it goes with the cache."""
    model, x = wrapped(name), inputs_for(name)
    for sites in ("blocks.*.resid_post", ["blocks.*.resid_post", "blocks.*.attn.out", "blocks.*.mlp.out"]):
        model.record(x, sites)
        held, cache = allocated(lambda sites=sites: model.record(x, sites))
        asked = {t.data_ptr(): t.nbytes for t in cache.values()}
        assert held == sum(asked.values()) + cache.mask.nbytes, sites
        del cache
        assert allocated(lambda sites=sites: model.record(x, sites) and None)[0] == 0


def test_tables_and_sizes():
    plan = memory.Plan({"a": 300, "b": 100})
    assert plan.bytes == 400
    assert plan.to_frame()["share"].tolist() == [0.75, 0.25]
    sizes = ("1MB", "1.5 GiB", "512", "20kb", "3B")
    assert [in_bytes(s) for s in sizes] == [10**6, 3 * 2**29, 512, 20_000, 3]
    assert [told(s) for s in (5, 2048, 3 * 2**20, 2**33)] == ["5 bytes", "2.00 KiB", "3.00 MiB", "8.00 GiB"]
    for bad in ("much", "1XB", "-3MB", "1.2.3MB", ""):
        with pytest.raises(WrongUse, match=r"2\.5GiB"):
            in_bytes(bad)


def test_what_does_not_fit_is_refused_with_the_three_costliest(monkeypatch):
    with pytest.raises(
        Failed, match=r"only 1\.00 KiB may be used.*c \(3\.00 KiB\), b \(2\.00 KiB\), a \(1\.00 KiB\)\."
    ):
        check_plan({"a": 1024, "b": 2048, "c": 3072, "d": 1}, 1024, share=1)
    assert check_plan({"a": 1000}, 1024, share=1) == 1000
    model, x = wrapped("llama"), inputs_for("llama", batch=64)
    exact = model.plan(x, "*").bytes
    monkeypatch.setattr(memory, "SMALL", exact // 2)
    monkeypatch.setattr(memory, "available", lambda device: int(exact / 0.9) + 100)
    model.record(x, "*")  # what is shared is not counted twice
    monkeypatch.setattr(memory, "available", lambda device: int(exact * 0.9))
    with pytest.raises(Failed, match="costliest: "):
        model.record(x, "*")
    with pytest.raises(Failed, match="costliest: "):
        model.generate(x, 400, record="*")
