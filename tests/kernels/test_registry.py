"""The contract: which form runs where, what is forced, what is refused, and what a torch op must answer."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from interp.cli.kernels import kernels
from interp.errors import WrongUse
from interp.kernels import OPS, Op, counted, registry


@pytest.fixture
def scaled():
    """y = a x, with a CPU form for more than two numbers, and a Triton form that is not to be imported."""

    def setup(ctx, inputs, output):
        ctx.a = inputs[1]

    def few(x, a):
        """up to two numbers"""
        return x.numel() <= 2

    op = Op(
        "scaled_for_a_test(Tensor x, float a) -> Tensor",
        lambda x, a: x * a,
        fake=lambda x, a: torch.empty_like(x),
        cpu=lambda x, a: x.mul(a),
        triton="nowhere:at_all",
        gradient=(lambda ctx, g: (g * ctx.a, None), setup),
        plain=few,
    )
    yield op
    del OPS[op.name]


@pytest.fixture
def put():
    """x into the first places of a ring, in place; one form only."""

    def reference(ring, x):
        ring[: len(x)] = x

    op = Op("put_for_a_test(Tensor(a!) ring, Tensor x) -> ()", reference, fake=lambda ring, x: None)
    yield op
    del OPS[op.name]


def test_the_cpu_form_runs_above_the_crossover_and_the_reference_below(scaled):
    with counted() as calls:
        assert torch.equal(scaled(torch.arange(3.0), 2.5), torch.tensor([0.0, 2.5, 5.0]))
        scaled(torch.arange(2.0), 2.5)
        scaled(torch.arange(2.0), 2.5)
    assert calls == {("scaled_for_a_test", "cpu"): 1, ("scaled_for_a_test", "reference"): 2}
    with counted() as calls:
        pass
    assert not calls


@pytest.mark.parametrize("form", ["reference", "cpu"])
def test_a_form_is_forced_at_every_size(form, scaled, monkeypatch):
    monkeypatch.setenv("INTERP_KERNELS", form)
    with counted() as calls:
        scaled(torch.arange(2.0), 0.5)
        scaled(torch.arange(9.0), 0.5)
    assert calls == {("scaled_for_a_test", form): 2}


def test_an_op_without_the_forced_form_keeps_to_the_reference(put, monkeypatch):
    monkeypatch.setenv("INTERP_KERNELS", "cpu")
    ring = torch.zeros(4)
    with counted() as calls:
        put(ring, torch.tensor([3.0, 4.0]))
    assert calls == {("put_for_a_test", "reference"): 1}
    assert ring.tolist() == [3, 4, 0, 0]


def test_what_cannot_run_is_refused(scaled, put, monkeypatch):
    x = torch.arange(3.0)
    monkeypatch.setenv("INTERP_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(WrongUse, match=r"tensors are on cpu.*Leave INTERP_KERNELS out"):
        scaled(x, 2.0)
    with pytest.raises(WrongUse, match="tensors are on cpu"):
        put(x, x)
    monkeypatch.setenv("INTERP_KERNELS", "cpu")
    with pytest.raises(WrongUse, match=r"tensors are on cuda.*'reference'"):
        scaled.chosen("cuda", x, 2.0)
    monkeypatch.setenv("INTERP_KERNELS", "cuda")
    with pytest.raises(WrongUse, match="tensors are on cpu: it takes an NVIDIA GPU"):
        scaled(x, 2.0)
    monkeypatch.setattr(registry.shutil, "which", lambda name: None)
    with pytest.raises(WrongUse, match="no nvcc on the PATH"):
        scaled.chosen("cuda", x, 2.0)
    monkeypatch.setenv("INTERP_KERNELS", "trito")
    with pytest.raises(WrongUse, match=r"INTERP_KERNELS=trito is no form. Did you mean 'triton'"):
        scaled(x, 2.0)
    monkeypatch.setenv("INTERP_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(WrongUse, match=r"pip install 'interp-kit\[triton\]'"):
        scaled(x, 2.0)


@pytest.mark.parametrize(("device", "hip"), [("mps", None), ("cuda", "6.4")])
def test_other_devices_fall_back_with_one_notice(device, hip, scaled, monkeypatch):
    registry._notice.cache_clear()
    monkeypatch.setattr(torch.version, "hip", hip)
    with pytest.warns(UserWarning, match=f"plain torch form runs on {device}") as told:
        assert [scaled.chosen(device, torch.arange(3.0), 2.0) for _ in range(3)] == ["reference"] * 3
    assert len(told) == 1


def test_triton_is_the_default_on_cuda_where_it_is_installed(scaled, put, monkeypatch):
    monkeypatch.setattr(registry, "find_spec", lambda name: object())
    assert scaled.chosen("cuda", torch.arange(3.0), 2.0) == "triton"
    assert put.chosen("cuda", torch.arange(3.0), torch.arange(3.0)) == "reference"
    registry._notice.cache_clear()
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="Triton is not installed"):
        assert scaled.chosen("cuda", torch.arange(3.0), 2.0) == "reference"


def test_it_is_a_torch_op(scaled, put):
    x = torch.arange(3.0, requires_grad=True)
    torch.library.opcheck(torch.ops.interp.scaled_for_a_test.default, (x, 1.5))
    torch.library.opcheck(torch.ops.interp.put_for_a_test.default, (torch.zeros(4), torch.ones(2)))
    scaled(x, 1.5).sum().backward()
    assert x.grad.tolist() == [1.5] * 3
    assert scaled(torch.empty(5, device="meta"), 1.5).device.type == "meta"


class Seen(TorchDispatchMode):
    """What torch calls."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.last = func
        return func(*args, **(kwargs or {}))


class Asked(TorchFunctionMode):
    """What is asked of torch."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.last = func
        return func(*args, **(kwargs or {}))


class Own(torch.Tensor):
    """A tensor of somebody's own."""


def test_a_call_is_its_form_where_nothing_looks_on(scaled, put, monkeypatch):
    """The torch op is not called; what is written to counts as changed all the same, as saved tensors are watched by that."""
    monkeypatch.setattr(scaled, "_op", None)
    monkeypatch.setattr(put, "_op", None)
    assert scaled(torch.arange(3.0), 2.0).tolist() == [0, 2, 4]
    with torch.no_grad():
        assert not scaled(torch.nn.Parameter(torch.arange(3.0)), 2.0).requires_grad
    ring, monkeyed = torch.zeros(4), {"reference": lambda ring, x: ring.numpy().__setitem__(slice(len(x)), x.numpy())}
    monkeypatch.setattr(put, "forms", monkeyed)
    saved, before = ring.clone().requires_grad_(), ring._version
    lost = (saved * ring).sum()
    put(ring, torch.tensor([3.0]))
    assert ring._version == before + 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        lost.backward()
    with torch.inference_mode():
        put(torch.zeros(4), torch.ones(2))


def test_who_looks_on_sees_the_op(scaled):
    """Gradients, modes, tracers, tensors without numbers and of somebody's own."""
    x, op, told = torch.arange(3.0), torch.ops.interp.scaled_for_a_test.default, []
    for mode in (Seen(), Asked()):
        with mode:
            scaled(x, 2.0)
        assert mode.last == op
    with FakeTensorMode():
        assert scaled(torch.empty(5), 2.0).shape == (5,)
    traced = make_fx(lambda x: scaled(x, 2.0))(x)
    assert [n.target for n in traced.graph.nodes if n.op == "call_function"] == [op]
    assert "interp::scaled_for_a_test" in str(torch.jit.trace(lambda x: scaled(x, 2.0), x).graph)
    torch.func.vmap(lambda x: told.append(registry.unwatched((x, 2.0))) or x)(x)
    assert scaled(x.clone().requires_grad_(), 2.0).grad_fn is not None
    own = x.as_subclass(Own)
    told += [registry.unwatched((t, 2.0)) for t in (own, x.to("meta"), x.clone().requires_grad_(), np.float32(1))]
    assert told == [None] * 5
    assert registry.unwatched((None, x, 2.0, 3, True)) == "cpu"


def test_interp_kernels_lists_them(scaled, put, capsys):
    kernels(as_json=True)
    found = {op["op"]: op for op in json.loads(capsys.readouterr().out)}
    assert set(found) == set(OPS)
    assert found["scaled_for_a_test"] == {
        "op": "scaled_for_a_test",
        "implementations": ["reference", "cpu", "triton"],
        "default": {"cpu": "cpu", "cuda": "triton", "mps": "reference"},
        "crossover": "up to two numbers",
    }
    assert found["put_for_a_test"]["default"] == dict.fromkeys(("cpu", "cuda", "mps"), "reference")
    kernels(as_json=False)
    assert "up to two numbers" in capsys.readouterr().out
