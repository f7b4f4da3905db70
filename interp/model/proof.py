"""Proofs: what a wiring claims, checked on inputs the solver has not seen. `interp doctor MODEL` runs them all."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interp.model.inputs import first_name
from interp.model.live import main_inputs
from interp.model.stacks import repeated
from interp.model.sweep import Metric, output_tensor
from interp.model.trace import Trace, rerun, trace
from interp.model.wiring import Block, Coefficient, Sum, Wiring, vector
from interp.sites import NO_GRADIENT

if TYPE_CHECKING:
    from interp.model.model import Model


@dataclass(frozen=True)
class Proof:
    """One claim under a proof's letter, its largest error (None: it does not apply), the tolerance, and why if it fails."""

    name: str
    claim: str
    error: float | None
    tolerance: float
    why: str = ""

    @property
    def status(self) -> str:
        """ "pass", "fail", or "na" if the claim does not apply."""
        return "na" if self.error is None else "pass" if self.error <= self.tolerance else "fail"


def by_letter(proofs: Sequence[Proof]) -> dict[str, dict[str, Any]]:
    """{letter: {status, error, tolerance, reason, claims}}: a letter passes if a claim of it applies and none fails.

    error and tolerance are those of the claim that is closest to failing.
    """
    result: dict[str, dict[str, Any]] = {}
    for letter in dict.fromkeys(p.name for p in proofs):
        claims = [p for p in proofs if p.name == letter]
        stated = [p.status for p in claims]
        status = "fail" if "fail" in stated else "pass" if "pass" in stated else "na"
        worst = max(claims, key=lambda p: -1.0 if p.error is None else p.error / max(p.tolerance, 1e-300))
        reason = "; ".join(p.why for p in claims if p.why and p.status != "pass")
        result[letter] = {"status": status, "error": worst.error, "tolerance": worst.tolerance, "reason": reason}
        result[letter]["claims"] = [asdict(p) | {"status": p.status} for p in claims]
    return result


# ---------------------------------------------------------------- sums of the stream


def value_of(trace: Trace, block: Block, name: str) -> Tensor:
    """A site of a block in float64, its positions on one axis and its channels last."""
    place = block.sites[name]
    call = trace.of(place.path)[place.call]
    return place.rows((call.inputs if place.side == "in" else call.outputs)[place.key]).double()


def _times(trace: Trace, block: Block, coefficient: Coefficient, t: Tensor) -> Tensor:
    """coefficient · t, for a number, a value per channel, or a site with a value for every position (and pair of streams)."""
    if not isinstance(coefficient, str):
        return coefficient * t
    if coefficient not in block.sites:
        return vector(trace.root, coefficient, t.to(next(trace.root.parameters()).dtype)).double() * t
    weight = value_of(trace, block, coefficient)
    if weight.ndim == 4:
        return torch.einsum("bpmn,bpmd->bpnd", weight, t)
    return weight.unsqueeze(-1) * t.unsqueeze(2)


@torch.no_grad()
def sum_error(trace: Trace, block: Block, claim: Sum, writes: bool = True) -> float:
    """||site - (scale · base + Σ c · write + constant)|| / ||site|| in float64; without `writes` these are held to be zero."""
    site = value_of(trace, block, claim.site)
    terms = [(claim.base, claim.scale), *(claim.writes if writes else ())]
    made = sum(_times(trace, block, c, value_of(trace, block, name)).reshape(site.shape) for name, c in terms)
    if claim.constant and writes:
        made = made + _times(trace, block, claim.constant, torch.ones_like(site))
    return float((site - made).norm() / site.norm())


def norm_error(trace: Trace, block: Block, site: str, total: str, scale: str) -> float:
    """||site - norm(sum)|| / ||site||, with the norm module called again on the sum."""
    place, at = block.scales[scale], block.sites[total]
    norm, read = trace.of(place.path)[place.call], trace.of(at.path)[at.call]
    given = at.rows((read.inputs if at.side == "in" else read.outputs)[at.key])
    with torch.no_grad():
        again = place.rows(rerun(norm, place.unrows(given.reshape(place.rows(norm.into).shape), norm.into)))  # type: ignore[arg-type]
    out = value_of(trace, block, site)
    return float((again.reshape(out.shape) - out).norm() / out.norm())


def block_errors(trace: Trace, block: Block) -> list[tuple[str, float]]:
    """The relative error of every sum and norm that a block claims; infinite for a place that the run did not reach."""
    claims = [(s.site, lambda s=s: sum_error(trace, block, s)) for s in block.sums]
    claims += [(n[0], lambda n=n: norm_error(trace, block, *n)) for n in block.norms]
    errors = []
    for site, measure in claims:
        try:
            errors.append((site, measure()))
        except (LookupError, RuntimeError, AttributeError):  # no such call, no such tensor, not the stream's shape
            errors.append((site, math.inf))
    return errors


def prove_sums(wiring: Wiring, trace: Trace, tolerance: float) -> Wiring:
    """The wiring without the blocks whose sums or norms do not hold in this trace; these keep their ends, and the report."""
    stacks = []
    for stack in wiring.stacks:
        blocks = []
        for block in stack.blocks:
            bad = [(site, e) for site, e in block_errors(trace, block) if not e <= tolerance]
            if bad:
                block = block.ends(f"unproven: {bad[0][0]} is off by {bad[0][1]:.1e} (tolerance {tolerance:.0e})")
            blocks.append(block)
        stacks.append(replace(stack, blocks=tuple(blocks)))
    return replace(wiring, stacks=tuple(stacks))


# ---------------------------------------------------------------- the doctor


def doctor(model: Model, wiring: Wiring | None = None, gradients: int | None = None) -> list[Proof]:
    """All proofs, on the float64 twin where the identity is exact, on the model itself where it is about its own numbers.

    `wiring` puts another wiring than the solved one to the proof, as it is. `gradients`: proof (g) on so many sites, evenly
    spaced in depth; None: on one of every kind.
    """
    from interp.model.inputs import probe_inputs
    from interp.model.model import Model, _own_tolerance
    from interp.model.named import prove_gates, prove_norms, prove_states
    from interp.model.twin import Lifted, twin_of
    from interp.model.weights import prove_weights

    twin = Model(twin_of(model.module), id=f"twin of {model.id}")
    inputs = probe_inputs(twin.module, batch=3, length=7, seed=2)
    own = probe_inputs(model.module, batch=3, length=7, seed=2)
    if wiring is not None:
        for each in (twin, model):
            each.take_wiring(wiring)
    proofs = _tried("a", lambda: [_same_logits(model, own)])
    proofs += _tried("b", lambda: [_sums(model, own, _own_tolerance(model.dtype), "own weights")])
    on_twin: dict[str, Callable[[], list[Proof]]] = {
        "b": lambda: [_sums(twin, inputs, 1e-8, "twin")],
        "c": lambda: _attention(twin, inputs) + _remainder(twin, inputs),
        "d": lambda: [_own_value(twin, inputs)],
        "e": lambda: [_zeroed(twin, inputs)],
        "f": lambda: _padding(twin),
        "g": lambda: [_gradients(twin, inputs, gradients)],
        "h": lambda: [
            prove_weights(twin, inputs),
            *prove_gates(twin, inputs),
            *prove_norms(twin, inputs),
            *prove_states(twin),
        ],
    }
    with Lifted():
        return proofs + [proof for letter, prove in on_twin.items() for proof in _tried(letter, prove)]


def _tried(letter: str, prove: Callable[[], list[Proof]]) -> list[Proof]:
    """A proof that cannot be carried out has failed: the wiring names what is not there, or has not its shape."""
    try:
        return prove()
    except (LookupError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        return [Proof(letter, "can be carried out", math.inf, 0.0, f"{type(error).__name__}: {error}")]


def _same_logits(model: Model, inputs: dict[str, Any]) -> Proof:
    """(a) Wrapped and unwrapped outputs are the same bits, also while inner tensors are read."""
    from interp.model.session import Session

    with torch.no_grad():
        bare = output_tensor(model.module(**inputs))
        reads = list(model.binding.sites)
        with Session(model.module, model.binding.sites, (), reads, lambda *_: None):
            wrapped = output_tensor(model.module(**inputs))
    return Proof("a", "outputs are bit-identical while every site is read", float((bare - wrapped).abs().max()), 0.0)


def _sums(model: Model, inputs: dict[str, Any], tolerance: float, which: str) -> Proof:
    """(b) Every stream tensor is its proven sum, or the norm of it."""
    seen, worst, missing = trace(model.module, inputs), 0.0, []
    for stack in model.wiring.stacks:
        for block in stack.blocks:
            if not block.sums:
                missing.append(f"{block.path}: {block.refused.get('*')}")
            for site, error in block_errors(seen, block):
                worst = max(worst, error)
                if error > tolerance:
                    missing.append(f"{block.path}: {site} is off by {error:.1e}")
    claim = f"stream sums hold ({which})"
    if not model.wiring.stacks:
        lists = ", ".join(f"{path} ({n})" for path, n in repeated(model.module, seen).items())
        why = f"modules are repeated, and hand no stream on: {lists}" if lists else "no module is repeated"
        return Proof("b", claim, math.inf if lists else None, tolerance, why)
    unsolved = any(not block.sums for stack in model.wiring.stacks for block in stack.blocks)
    return Proof("b", claim, math.inf if unsolved else worst, tolerance, "; ".join(missing))


def _attention(twin: Model, inputs: dict[str, Any]) -> list[Proof]:
    """(c) Pattern rows and sinks sum to one; pattern · v = z; Σ result + bias = out."""
    cores = [n.removesuffix(".pattern") for n in twin.binding.sites if n.endswith(".pattern")]
    seen, run = [], trace(twin.module, inputs)
    for block in (b for stack in twin.wiring.stacks for b in stack.blocks):
        claimed = {(c.path, c.call) for c in block.cores.values()}
        found = [c for c, _ in run.cores(run.span(block.path, block.call, block.until))]
        seen += [c.path for c in found if (c.path, c.number) not in claimed]
    if seen:
        why = f"a softmax and a product run in {', '.join(seen[:3])}, and the wiring names no attention there"
        return [Proof("c", "every attention is named", math.inf, 0.0, why)]
    if not cores:
        outside = ", ".join(dict.fromkeys(c.path for c, _ in run.attentions)) or "nowhere"
        why = f"{run.softmaxes} calls of softmax or fused attention, those followed by a product outside every block: {outside}"
        none = "the traced forward saw no softmax and no fused attention"
        return [
            Proof(
                "c", "attention identities", math.inf if run.softmaxes else None, 1e-8, why if run.softmaxes else none
            )
        ]
    cache = twin.record(inputs, [n for c in cores for n in twin.binding.sites if n.startswith(c + ".")])
    errors: dict[str, float] = {}

    def worst(claim: str, error: float) -> None:
        errors[claim] = max(errors.get(claim, 0.0), error)

    for core in cores:
        pattern, v, z = (cache[f"{core}.{n}"] for n in ("pattern", "v", "z"))
        total = pattern.sum(-1) + (
            cache[f"{core}.sink"].transpose(1, 2) if f"{core}.sink" in twin.binding.sites else 0.0
        )
        worst("rows of every pattern, with the sink's share, sum to one", float((total - 1).abs().max()))
        spread = v.repeat_interleave(pattern.shape[1] // v.shape[2], dim=2)
        worst("pattern · v = z", _off(torch.einsum("bhqk,bkhd->bqhd", pattern, spread), z))
        site = twin.binding.sites.get(f"{core}.result")
        if site is not None:
            bias = twin.module.get_submodule(site.place.path).forward(torch.zeros_like(z.flatten(2)[:1, :1]))
            worst("Σ_head result + bias = attn.out", _off(cache[f"{core}.result"].sum(2) + bias, cache[f"{core}.out"]))
    return [Proof("c", claim, error, 1e-8, claim) for claim, error in errors.items()]


def _remainder(twin: Model, inputs: dict[str, Any]) -> list[Proof]:
    """(c) The rest of the module makes attn.out of z: with the z of the row before, it returns what that row returned.

    Where z is read by more than a matrix (a gate of each token, say), what else enters may differ between the rows.
    """
    from interp.model.edits import Patch

    cores = [n.removesuffix(".z") for n in twin.binding.sites if n.endswith(".z")]
    cores = [c for c in cores if f"{c}.out" in twin.binding.sites]
    if not cores:
        return []
    clean = twin.record(inputs, [f"{c}.{n}" for c in cores for n in ("z", "out")])
    edits = [Patch(f"{c}.z", clean[f"{c}.z"].roll(1, 0)) for c in cores]
    moved = twin.record(inputs, [f"{c}.out" for c in cores], edits=edits, strict=True)
    errors = {c: _off(moved[f"{c}.out"], clean[f"{c}.out"].roll(1, 0)) for c in cores}
    claim, beside = "the rest of the module makes attn.out of z", [c for c, e in errors.items() if e > 1e-8]
    if beside and not any(f"{c}.result" in twin.binding.sites for c in beside):
        why = f"more than z enters {beside[0]}.out: with another row's z it is off by {errors[beside[0]]:.1e}"
        return [Proof("c", claim, None, 1e-8, why)]
    worst = max(errors, key=lambda c: errors[c])
    return [Proof("c", claim, errors[worst], 1e-8, f"{worst}.out is not what z makes")]


def _off(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def _own_value(twin: Model, inputs: dict[str, Any]) -> Proof:
    """(d) Patching a site with its own recorded value changes nothing."""
    from interp.model.edits import Patch

    names = [n for n in twin.binding.sites if n != "logits" and editable(n)]
    cache, clean, errors = twin.record(inputs, names), output_tensor(twin.module(**inputs)), {"no site": 0.0}
    for alike in dict.fromkeys(re.sub(r"\d+", "*", n) for n in names):  # one site, in all blocks at once
        with twin.edit(Patch(alike, cache), strict=True), torch.no_grad():
            errors[alike] = _off(output_tensor(twin.module(**inputs)), clean)
    worst = max(errors, key=lambda n: errors[n])
    claim = "patching a site with its own value changes nothing"
    return Proof("d", claim, errors[worst], 1e-10, f"{worst} moves the output by {errors[worst]:.1e}")


def _zeroed(twin: Model, inputs: dict[str, Any]) -> Proof:
    """(e) With all writes zeroed every sum is what it is added to, so that a block is the identity, or its norms."""
    from interp.model.edits import Zero

    blocks = {f"{s.prefix}blocks.{n}.": b for s in twin.wiring.stacks for n, b in enumerate(s.blocks)}
    writes = [p + w for p, block in blocks.items() for total in block.sums for w, _ in total.writes]
    with twin.edit(*(Zero(w) for w in dict.fromkeys(writes))):
        run = trace(twin.module, inputs)
    errors = [sum_error(run, block, total, writes=False) for block in blocks.values() for total in block.sums]
    errors += [norm_error(run, block, *norm) for block in blocks.values() for norm in block.norms]
    worst, seen = max(errors, default=0.0), bool(writes)
    return Proof(
        "e",
        "zeroed writes leave the identity (post-norm: the norms)",
        worst if seen else None,
        1e-10,
        "" if seen else "no solved block",
    )


COORDINATES = 3
GRADIENT = 1e-4  # of a slope


def _gradients(twin: Model, inputs: dict[str, Any], most: int | None) -> Proof:
    """(g) d m / d x_j = (m(x + h e_j) - m(x - h e_j)) / 2h, one coordinate at a time, for a site of each kind.

    The three coordinates of a site with the largest |slope|: there a central difference is far from rounding, and a
    gradient that is wrong where it matters is wrong there. h is 1e-5 of the site's root mean square, or a hundredth of that where
    the function bends within it (sharp softmaxes: the error is h²/6 of the slope). A slope below 1e-10 of Σ |w · output| / h
    counts as that large: less cannot be told from rounding.
    """

    def weighted(out: Tensor) -> Tensor:
        return out * torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)

    claim = "gradients at recorded sites match central differences"
    sites = [n for n in twin.binding.sites if editable(n) and n != "logits" and n.rsplit(".", 1)[-1] not in NO_GRADIENT]
    names = list({re.sub(r"\d+", "*", n): n for n in sites}.values())
    if not names:
        return Proof("g", claim, None, GRADIENT, "no site to change")
    if most is not None and most < len(names):
        names = [names[(2 * i + 1) * len(names) // (2 * most)] for i in range(most)]
    with torch.no_grad():
        size = float(weighted(output_tensor(twin.module(**inputs))).abs().sum())
    cache, errors = twin.record(inputs, names, grad=lambda out: weighted(out).sum()), dict[str, float]()

    def error(name: str, place: int, step: float) -> float:
        exact = float(cache.grad[name].flatten()[place])
        off = abs(_difference(twin, inputs, weighted, name, cache[name], place, step) - exact)
        return off / max(abs(exact), 1e-10 * size / step, 1e-300)

    for name in names:
        slope, value = cache.grad[name].flatten(), cache[name]
        seen = value[value.abs() < 1e9]  # not the mask of the scores
        step = 1e-5 * float(seen.square().mean().sqrt().clamp(min=1e-3))
        for place in slope.abs().topk(min(COORDINATES, slope.numel())).indices.tolist():
            off = error(name, place, step)
            off = off if off <= GRADIENT else min(off, error(name, place, step / 100))
            errors[name] = max(errors.get(name, 0.0), off)
    worst = max(errors, key=lambda n: errors[n])
    return Proof("g", claim, errors[worst], GRADIENT, f"{worst} is off")


def _difference(
    twin: Model, inputs: dict[str, Any], metric: Metric, name: str, value: Tensor, place: int, step: float
) -> float:
    """(m(x + h e) - m(x - h e)) / 2h, m the sum of `metric`, e the unit vector of one coordinate of a site."""
    from interp.model.edits import Replace

    ends = []
    for h in (step, -step):
        change = value.new_zeros(value.numel())
        change[place] = h
        with twin.edit(Replace(name, change.view(value.shape).add)), torch.no_grad():
            ends.append(float(metric(output_tensor(twin.module(**inputs))).sum()))
    return (ends[0] - ends[1]) / (2 * step)


def editable(name: str) -> bool:
    """Whether a site's value can be replaced: all but what is only ever read."""
    return not name.endswith((".sink", "embed"))


def _padding(twin: Model) -> list[Proof]:
    """(f) In a causal model a padded batch gives each prompt what it has alone."""
    right, left = (
        "a causal model gives a prompt the same when it is padded on the " + side for side in ("right", "left")
    )
    if not _is_causal(twin):
        return [Proof("f", right, None, 1e-8, "an early output moves when a later token does, or the input is no text")]
    proofs = [Proof("f", right, padding_error(twin, left=False), 1e-8)]
    error = padding_error(twin, left=True)
    if error <= 1e-8:
        return [*proofs, Proof("f", left, error, 1e-8)]
    why = f"left padding moves the output by {error:.1e}: batches of unequal prompts are refused in generation"
    return [*proofs, Proof("f", left, None, 1e-8, why)]


def _ids(twin: Model, batch: int, length: int, seed: int) -> Tensor | None:
    """Random values of the main input (token ids without the places of pictures that some models want before them)."""
    from interp.model.inputs import probe_inputs

    made = probe_inputs(twin.module, batch, length, seed).get(first_name(twin.module))
    return None if made is None else made[:, -length:]


def _is_causal(twin: Model) -> bool:
    if getattr(twin.config, "is_encoder_decoder", False):
        return False
    ids = _ids(twin, batch=1, length=6, seed=0)
    if ids is None or ids.is_floating_point() or ids.ndim != 2:
        return False
    other = ids.clone()
    other[0, -1] = other[0, 0] if other[0, 0] != other[0, -1] else other[0, 1]
    try:
        with torch.no_grad():
            a, b = (output_tensor(twin.module(**main_inputs(twin.module, twin.inputs(i)))) for i in (ids, other))
    except (TypeError, ValueError, AttributeError):  # it wants more than text
        return False
    return a.ndim == 3 and a.shape[1] == 6 and bool((a[:, :-1] - b[:, :-1]).abs().max() < 1e-10)


def padding_error(twin: Model, left: bool) -> float:
    """Largest difference between a prompt's outputs alone and in a padded batch, on a float64 twin."""
    from interp.model.model import Tokens

    ids = _ids(twin, batch=2, length=8, seed=3)
    assert ids is not None
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
    named = inspect.signature(twin.module.forward).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in named.values()):
        inputs = {name: value for name, value in inputs.items() if name in named}
    with torch.no_grad():
        together, alone = (
            output_tensor(twin.module(**main_inputs(twin.module, x))) for x in (inputs, twin.inputs(short))
        )
    pooled = together.shape[1:] == alone.shape[1:]  # a classifier answers once a prompt, whatever its length
    its = together[1] if pooled else together[1][mask[1]]
    return float((its - alone[0]).abs().max())


def _accepts(module: nn.Module, name: str) -> bool:
    return name in inspect.signature(module.forward).parameters


def left_padding_error(model: Model) -> float:
    """`padding_error` on the left, on the model's float64 twin."""
    from interp.model.model import Model
    from interp.model.twin import Lifted, twin_of

    with Lifted():
        return padding_error(Model(twin_of(model.module)), left=True)
