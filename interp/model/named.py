"""(h) Sites are what their names say, beyond sums and attention: proofs on a float64 twin."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from interp.model.edits import Patch, Scale
from interp.model.inputs import first_name, probe_inputs
from interp.model.layouts import off
from interp.model.proof import Proof, value_of
from interp.model.state import CACHE
from interp.model.trace import same, trace

if TYPE_CHECKING:
    from interp.model.model import Model

GATES = "mlp.post turns round with up, and not with gate"
NORMS = "norm.scale is of the norm that the sublayer reads through"
STATES = "every prefix leaves its state in the model's own cache"


def prove_gates(twin: Model, inputs: dict[str, Any]) -> list[Proof]:
    """post(gate, -up) = -post(gate, up), also behind a norm, and post(-gate, up) is something else: which is which."""
    roles = [n.removesuffix(".up") for n in twin.binding.sites if n.endswith(".up")]
    if not roles:
        return []
    posts = [f"{r}.post" for r in roles]
    clean = twin.record(inputs, [*posts, *(f"{r}.in" for r in roles)])
    held = [Patch(f"{r}.in", clean) for r in roles]  # so that no block hears of another
    up, gate = (
        twin.record(inputs, posts, edits=[*held, *(Scale(f"{r}.{which}", -1.0) for r in roles)])
        for which in ("up", "gate")
    )
    errors = {p: off(up[p], -clean[p]) if off(gate[p], -clean[p]) > 1e-3 else math.inf for p in posts}
    worst = max(errors, key=lambda p: errors[p])
    return [Proof("h", GATES, errors[worst], 1e-10, f"{worst} does not")]


def prove_norms(twin: Model, inputs: dict[str, Any]) -> list[Proof]:
    """The norm whose divisor is named returns what the sublayer receives; norms of sums are proven with the stream."""
    run, wrong, seen = trace(twin.module, inputs), [], 0
    for block in (b for stack in twin.wiring.stacks for b in stack.blocks):
        for name in block.scales.keys() - {norm for _, _, norm in block.norms}:
            place, into = block.scales[name], name.replace("norm.scale", "in")
            made = place.rows(run.of(place.path)[place.call].outputs[place.key]).double()
            seen += 1
            wrong += [] if same(made, value_of(run, block, into)) else [f"{place.path} does not make {into}"]
    return [Proof("h", NORMS, math.inf if wrong else 0.0, 0.0, "; ".join(wrong[:3]))] if seen else []


def prove_states(twin: Model, length: int = 7) -> list[Proof]:
    """The state at every position is what the twin's own cache holds after a forward pass of that prefix alone."""
    places = {n: s.place for n, s in twin.binding.sites.items() if s.kind == "state"}
    if not places:
        return []
    main = first_name(twin.module)
    ids = probe_inputs(twin.module, batch=3, length=length, seed=2)[main][:, -length:]
    recorded, worst = twin.record({main: ids}, list(places)), 0.0
    for end in range(1, length + 1):
        try:
            with torch.no_grad():
                out = twin.module(**{main: ids[:, :end]}, use_cache=True)
        except (ValueError, RuntimeError, TypeError) as error:
            return [Proof("h", STATES, None, 1e-8, f"the model does not run with a cache of its own: {error}")]
        cache = out.get("past_key_values", out.get(CACHE))
        for name, place in places.items():
            layer: Any = twin.module.get_submodule(place.path)
            held = cache.layers[layer.layer_idx].recurrent_states[0]
            worst = max(worst, off(recorded[name][:, end - 1], held))
    return [Proof("h", STATES, worst, 1e-8, STATES)]
