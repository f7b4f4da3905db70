"""Proofs: what a wiring claims, checked on inputs the solver has not seen. `interp doctor MODEL` runs them all."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interp.model.trace import Call, Trace
from interp.model.wiring import Block, Place, Sum, Wiring

if TYPE_CHECKING:
    from interp.model.model import Model


@dataclass(frozen=True)
class Proof:
    """One proof: its letter and claim, the largest error (None: does not apply), the tolerance, and why not if not."""

    name: str
    claim: str
    error: float | None
    tolerance: float
    why: str = ""

    @property
    def passed(self) -> bool | None:
        """True, False, or None if the proof does not apply."""
        return None if self.error is None else self.error <= self.tolerance


# ---------------------------------------------------------------- sums of the stream


def _value(trace: Trace, place: Place, shape: torch.Size) -> Tensor:
    call = trace.of(place.path)[place.call]
    return (call.inputs if place.side == "in" else call.outputs)[place.key].reshape(shape)


def sum_error(trace: Trace, block: Block, root: str, claim: Sum) -> float:
    """||site - (base + Σ c · write)|| / ||site||  in float64."""
    shape = trace.of(root)[0].out.shape  # type: ignore[union-attr]
    at = {
        name: _value(trace, block.sites[name].under(root), shape).double()
        for name in [claim.site, claim.base, *dict(claim.writes)]
    }
    made = at[claim.base] + sum(c * at[w] for w, c in claim.writes)
    return float((at[claim.site] - made).norm() / at[claim.site].norm())


def norm_error(trace: Trace, block: Block, root: str, site: str, total: str) -> float:
    """||site - norm(sum)|| / ||site||, with the norm module called again on the sum."""
    place = block.sites[total].under(root)
    call: Call = trace.of(place.path)[place.call]
    with torch.no_grad():
        again = call.module(call.inputs[place.key])
    out = _value(trace, block.sites[site].under(root), again.shape)
    return float((again - out).norm() / out.norm())


def prove_sums(wiring: Wiring, trace: Trace, tolerance: float) -> Wiring:
    """The wiring without the blocks whose sums or norms do not hold in this trace; these keep their ends, and the report."""
    stacks = []
    for stack in wiring.stacks:
        blocks = []
        for number, block in enumerate(stack.blocks):
            root = f"{stack.path}.{number}"
            errors = [(s.site, sum_error(trace, block, root, s)) for s in block.sums]
            errors += [(site, norm_error(trace, block, root, site, total)) for site, total in block.norms]
            bad = [(site, e) for site, e in errors if not e <= tolerance]
            if bad:
                ends = {k: block.sites[k] for k in ("resid_pre", "resid_post")}
                block = Block(
                    ends, refused={"*": f"unproven: {bad[0][0]} is off by {bad[0][1]:.1e} (tolerance {tolerance:.0e})"}
                )
            blocks.append(block)
        stacks.append(replace(stack, blocks=tuple(blocks)))
    return replace(wiring, stacks=tuple(stacks))


# ---------------------------------------------------------------- the doctor


def doctor(model: Model) -> list[Proof]:
    """All proofs, on the float64 twin where the identity is exact, on the model itself where it is about its own numbers."""
    from interp.model.model import Model
    from interp.model.twin import Lifted, probe_inputs, twin_of

    twin = Model(twin_of(model.module), id=f"twin of {model.id}")
    inputs = probe_inputs(twin.module, batch=3, length=7, seed=2)
    own = probe_inputs(model.module, batch=3, length=7, seed=2)
    proofs = [_same_logits(model, own)]
    with Lifted():
        proofs += [_sums(twin, inputs, 1e-8, "twin")]
        proofs += [*_attention(twin, inputs), _own_value(twin, inputs), _zeroed(twin, inputs), _right_padding(twin)]
    from interp.model.model import _own_tolerance

    return [*proofs, _sums(model, own, _own_tolerance(model.dtype), "own weights")]


def _first(out: Any) -> Tensor:
    return next(
        t for t in (out.values() if isinstance(out, dict) else out) if isinstance(t, Tensor) and t.is_floating_point()
    )


def _same_logits(model: Model, inputs: dict[str, Any]) -> Proof:
    """(a) Wrapped and unwrapped outputs are the same bits, also while inner tensors are read."""
    from interp.model.session import Session

    with torch.no_grad():
        bare = _first(model.module(**inputs))
        reads = list(model.binding.sites)
        with Session(model.module, model.binding.sites, (), reads, lambda *_: None):
            wrapped = _first(model.module(**inputs))
    return Proof("a", "outputs are bit-identical while every site is read", float((bare - wrapped).abs().max()), 0.0)


def _sums(model: Model, inputs: dict[str, Any], tolerance: float, which: str) -> Proof:
    """(b) Every stream tensor is its proven sum, or the norm of it."""
    from interp.model.trace import trace

    seen, worst, missing = trace(model.module, inputs), 0.0, []
    for stack in model.wiring.stacks:
        for number, block in enumerate(stack.blocks):
            root = f"{stack.path}.{number}"
            if not block.sums:
                missing.append(f"{root}: {block.refused.get('*')}")
            worst = max([worst, *(sum_error(seen, block, root, s) for s in block.sums)])
            worst = max([worst, *(norm_error(seen, block, root, *n) for n in block.norms)])
    if not model.wiring.stacks:
        return Proof(
            "b", f"stream sums hold ({which})", None, tolerance, "no repeated block module that hands a stream on"
        )
    return Proof("b", f"stream sums hold ({which})", float("inf") if missing else worst, tolerance, "; ".join(missing))


def _attention(twin: Model, inputs: dict[str, Any]) -> list[Proof]:
    """(c) Rows of the pattern sum to one; pattern · v = z; W_O z + b = out; results + bias = out."""
    cores = [n.removesuffix(".pattern") for n in twin.binding.sites if n.endswith(".pattern")]
    if not cores:
        return [
            Proof("c", "attention identities", None, 1e-8, "the traced forward saw no softmax followed by a product")
        ]
    names = [n for c in cores for n in twin.binding.sites if n.startswith(c + ".")]
    cache = twin.record(inputs, names)
    rows = mixed = results = 0.0
    for core in cores:
        pattern, v, z = (cache[f"{core}.{n}"] for n in ("pattern", "v", "z"))
        rows = max(rows, float((pattern.sum(-1) - 1).abs().max()))
        spread = v.repeat_interleave(pattern.shape[1] // v.shape[2], dim=2)
        mixed = max(mixed, _off(torch.einsum("bhqk,bkhd->bqhd", pattern, spread), z))
        site = twin.binding.sites.get(f"{core}.result")
        if site is not None:
            bias = twin.module.get_submodule(site.place.path).forward(torch.zeros_like(z.flatten(2)[:1, :1]))
            results = max(results, _off(cache[f"{core}.result"].sum(2) + bias, cache[f"{core}.out"]))
    return [
        Proof("c1", "rows of every pattern sum to one", rows, 1e-8),
        Proof("c2", "pattern · v = z", mixed, 1e-8),
        Proof("c3", "Σ_head result + bias = attn.out", results, 1e-8),
    ]


def _off(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def _own_value(twin: Model, inputs: dict[str, Any]) -> Proof:
    """(d) Patching a site with its own recorded value changes nothing."""
    from interp.model.edits import Patch

    names = [n for n in twin.binding.sites if n != "logits" and not n.endswith("embed")]
    cache, worst, clean = twin.record(inputs, names), 0.0, _first(twin.module(**inputs))
    for alike in dict.fromkeys(re.sub(r"\d+", "*", n) for n in names):  # one site, in all blocks at once
        with twin.edit(Patch(alike, cache), strict=True), torch.no_grad():
            worst = max(worst, _off(_first(twin.module(**inputs)), clean))
    return Proof("d", "patching a site with its own value changes nothing", worst, 1e-10)


def _zeroed(twin: Model, inputs: dict[str, Any]) -> Proof:
    """(e) With all writes zeroed a pre-norm block is the identity; a post-norm block is norm(norm(x))."""
    from interp.model.edits import Zero

    worst, seen = 0.0, False
    for stack in twin.wiring.stacks:
        for number, block in enumerate(stack.blocks):
            prefix = f"{stack.prefix}blocks.{number}."
            writes = [w for s in block.sums for w, _ in s.writes]
            if not writes:
                continue
            seen = True
            ends = twin.record(
                inputs,
                [prefix + "resid_pre", prefix + "resid_post"],
                edits=[Zero(prefix + w) for w in dict.fromkeys(writes)],
            )
            expected = ends[prefix + "resid_pre"]
            for _, total in block.norms:
                expected = twin.module.get_submodule(block.sites[total].under(f"{stack.path}.{number}").path)(expected)
            worst = max(worst, _off(ends[prefix + "resid_post"], expected))
    return Proof(
        "e",
        "zeroed writes leave the identity (post-norm: the norms)",
        worst if seen else None,
        1e-10,
        "" if seen else "no solved block",
    )


def _right_padding(twin: Model) -> Proof:
    """(f) In a causal model, padding on the right gives each prompt what it has alone."""
    claim = "right padding changes nothing for a causal model"
    if not _is_causal(twin):
        return Proof("f", claim, None, 1e-8, "an early output moves when a later token does, or the input is no text")
    return Proof("f", claim, padding_error(twin, left=False), 1e-8)


def _is_causal(twin: Model) -> bool:
    from interp.model.twin import probe_inputs

    if getattr(twin.module, "main_input_name", "") != "input_ids" or getattr(twin.config, "is_encoder_decoder", False):
        return False
    inputs = probe_inputs(twin.module, batch=1, length=6)
    moved = copy.copy(inputs) | {"input_ids": inputs["input_ids"].clone()}
    moved["input_ids"][0, -1] = (moved["input_ids"][0, -1] + 1) % 3 + 3
    with torch.no_grad():
        a, b = (_first(twin.module(**i)) for i in (inputs, moved))
    return bool((a[:, :-1] - b[:, :-1]).abs().max() < 1e-10)


def padding_error(twin: Model, left: bool) -> float:
    """Largest difference between a prompt's outputs alone and in a padded batch, on a float64 twin."""
    from interp.model.model import Tokens
    from interp.model.twin import probe_inputs

    ids = probe_inputs(twin.module, batch=2, length=8, seed=3)["input_ids"]
    short = ids[1, :5]
    mask = torch.ones_like(ids, dtype=torch.bool)
    side = slice(0, 3) if left else slice(5, None)
    mask[1, side] = False
    padded = ids.clone()
    padded[1, ~mask[1]] = 0
    padded[1, mask[1]] = short
    inputs = twin.inputs(Tokens(padded, mask))
    if left:
        inputs["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
        accepted = _accepts(twin.module, "position_ids")
        inputs = inputs if accepted else {k: v for k, v in inputs.items() if k != "position_ids"}
    with torch.no_grad():
        together, alone = _first(twin.module(**inputs)), _first(twin.module(**twin.inputs(short)))
    return float((together[1][mask[1]] - alone[0]).abs().max())


def _accepts(module: nn.Module, name: str) -> bool:
    import inspect

    return name in inspect.signature(module.forward).parameters


def left_padding_error(model: Model) -> float:
    """`padding_error` on the left, on the model's float64 twin."""
    from interp.model.model import Model
    from interp.model.twin import Lifted, twin_of

    with Lifted():
        return padding_error(Model(twin_of(model.module)), left=True)
