"""Weights by name: `model.weights["blocks.3.attn.W_Q"]` whatever the model calls it, packs it or turns it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse, nearest
from interp.model.compose import Composition, Singular, composition, singular
from interp.model.finder import Finder
from interp.model.inputs import probe_inputs
from interp.model.layouts import Layout, fed, norm_off, off, rows
from interp.model.proof import Proof
from interp.model.trace import Trace, trace
from interp.model.twin import Lifted

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float

    from interp.model.cache import Cache
    from interp.model.model import Model


class Weights(Mapping[str, Tensor]):
    """The weights of a model by canonical name, read from its parameters at every access.

    y = x @ W + b. `blocks.i.attn.` W_Q, W_K, W_V [head, d_model, d_head] (W_K and W_V: key heads), W_O [head, d_head,
    d_model], b_Q, b_K, b_V [head, d_head], b_O [d_model]; `blocks.i.mlp.` W_in, or W_gate and W_up of a GLU [d_model,
    d_mlp], W_out [d_mlp, d_model], b_*; W_E [vocab, d_model], W_pos [pos, d_model], W_U [d_model, vocab], b_U;
    `blocks.i.attn.norm.w`, `.b`, `final_norm.w`, also `post_norm`, `q_norm`, `k_norm` where the block has them. With the
    prefixes and `cross_attn` of the sites. In post-norm blocks `attn.norm` is the norm of `attn.sum`.

    A weight is the parameter's own memory where its layout allows a view (detached: writing into it changes the model,
    gradients do not flow), else a copy; `to_frame()` says which. `set()` writes through any layout. Where a module's
    parameter is not the matrix it applies (quantised, adapter beside it) the weight is a read-only copy. Raises `WrongUse`
    for a model without sites to start from.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        if not model.binding.sites:
            why = next(iter(model.binding.refused.values()), "no site was found")
            raise WrongUse(f"the weights of {model.id} have no names: {why}.")
        modes = {m: m.training for m in model.module.modules()}
        model.module.eval()
        try:
            with model._bare(), torch.no_grad():
                seen = trace(model.module, probe_inputs(model.module, batch=2, length=5, seed=4))
                self.layouts, self.refused = Finder(model.binding, model.wiring, seen).find()
        finally:
            for m, mode in modes.items():
                m.training = mode

    # ------------------------------------------------------------ one weight

    def layout(self, name: str) -> Layout:
        """Where a weight lives and what it does. Raises `WrongUse` that says why it is absent, or names the nearest."""
        if name in self.layouts:
            return self.layouts[name]
        refused = self.refused | self.model.binding.refused
        why = refused.get(name) or next(
            (why for key, why in refused.items() if fnmatchcase(key, name) or ("*" in key and fnmatchcase(name, key))),
            "",
        )
        if why:
            raise WrongUse(f"this model has no weight {name!r}: {why}.")
        raise WrongUse(
            f"no weight is called {name!r}.{nearest(name, self.layouts)} `list(model.weights)` names all {len(self)}; "
            "`model.weights.to_frame()` says where each lives."
        )

    def __getitem__(self, name: str) -> Tensor:
        layout = self.layout(name)
        stored = self._stored(layout)
        if stored is not None:
            return layout.read(stored)
        module = self.model.module.get_submodule(layout.path)
        like = torch.zeros(1, 1, dtype=self.model.dtype, device=self.model.device)
        with torch.no_grad():
            matrix, bias = fed(module, layout.width, like)
        return layout.read(bias if name.rsplit(".", 1)[-1].startswith("b_") else matrix)

    def _stored(self, layout: Layout) -> Tensor | None:
        if layout.parameter is None:
            return None
        return getattr(self.model.module.get_submodule(layout.path), layout.parameter).detach()

    def __contains__(self, name: object) -> bool:
        return name in self.layouts

    def get(self, name: str, default: Any = None) -> Any:
        """The weight, or `default` if the model has none of that name."""
        return self[name] if name in self.layouts else default

    def __iter__(self) -> Iterator[str]:
        return iter(self.layouts)

    def __len__(self) -> int:
        return len(self.layouts)

    def set(self, name: str, value: Tensor) -> None:
        """Write a weight back, whatever its layout; the columns of other weights in the same parameter are left as they are.

        W_E and W_U move together where they are tied, as do all names of a shared module. Raises `WrongUse` for a shape
        other than the weight's, and for a weight that is read-only (quantised, or an adapter beside it).
        """
        layout, stored = self.layout(name), self._stored(self.layout(name))
        if stored is None:
            raise WrongUse(
                f"{name!r} is read-only: {layout.path} applies another matrix than the one it stores (quantised, or an "
                "adapter beside it). Merge or dequantise it first, or edit the site it makes."
            )
        shape = layout.read(stored).shape
        if value.shape != shape:
            raise WrongUse(f"{name!r} is {tuple(shape)}, and the value given is {tuple(value.shape)}.")
        layout.write(stored, value)

    # ------------------------------------------------------------ many weights

    def names(self, pattern: str) -> list[str]:
        """All names that match a glob, in the model's order. Raises `WrongUse` if none does."""
        found = [n for n in self.layouts if fnmatchcase(n, pattern)]
        if not found:
            self.layout(pattern)
        return found

    def stack(self, pattern: str) -> Float[Tensor, "name ..."]:
        """A copy of all weights that match a glob, stacked in order: `stack("blocks.*.attn.W_Q")` [layer, head, d_model, d_head].

        Raises `WrongUse` if nothing matches or the shapes differ.
        """
        found = {n: self[n] for n in self.names(pattern)}
        shapes = {tuple(t.shape): n for n, t in found.items()}
        if len(shapes) > 1:
            told = ", ".join(f"{n!r} {s}" for s, n in shapes.items())
            raise WrongUse(f"{pattern!r} matches weights of different shapes, which cannot be stacked: {told}.")
        return torch.stack(list(found.values()))

    def to_frame(self) -> pd.DataFrame:
        """One row a weight: name, shape, dtype, the parameter it lives in, "view", "copy" or "read-only", and what it does."""
        import pandas as pd

        table, places = [], dict[tuple[int, int], str]()
        for name, layout in self.layouts.items():
            t = self[name]
            first = places.setdefault((t.data_ptr(), t.numel()), name) if layout.is_view else name
            note = ", ".join(filter(None, [layout.note, f"tied to {first}" * (first != name)]))
            kind = "view" if layout.is_view else "copy" if layout.parameter else "read-only"
            parameter = f"{layout.path}.{layout.parameter}" if layout.parameter else layout.path
            row = [name, tuple(t.shape), str(t.dtype).removeprefix("torch."), parameter, kind]
            table.append([*row, layout.reads, layout.makes, note])
        columns = ["name", "shape", "dtype", "parameter", "kind", "reads", "makes", "note"]
        return pd.DataFrame(table, columns=columns)

    # ------------------------------------------------------------ circuits

    def composition(self, kind: str, attention: str = "blocks.*.attn") -> Composition:
        """How much a head reads of what an earlier head writes, through its queries "Q", keys "K" or values "V".

        Q: ||W_OV¹ W_QK²||, K: ||W_OV¹ W_QK²ᵀ||, V: ||W_OV¹ W_OV²||, each over the product of the two Frobenius norms,
        with W_QK = W_Q W_Kᵀ and W_OV = W_V W_O. Scores [layer, head, layer, head], sender first, 0 unless the sender is
        earlier. Raw weights: norms, rotary embeddings and biases are left out. Elhage et al. 2021, "A Mathematical
        Framework for Transformer Circuits", section "Composition of attention heads". Raises `WrongUse` for another kind.
        """
        return composition(self, kind, attention)

    def singular(self, what: str | tuple[str, str]) -> Singular:
        """Singular values and directions, product = U diag(S) Vᵀ, from the factors (no [d_model, d_model] matrix is made).

        `what`: "blocks.3.attn.OV" (W_V W_O), "blocks.3.attn.QK" (W_Q W_Kᵀ), one matrix by name, or a pair of names whose
        product is meant. Raises `WrongUse` for shapes that do not multiply.
        """
        return singular(self, what)


# ---------------------------------------------------------------- proof


@torch.no_grad()
def weight_errors(model: Model, inputs: dict[str, Any]) -> dict[str, float]:
    """How far each weight is from reproducing the recorded sites: ||made - site|| / ||site||, by name.

    q_raw = in @ W_Q + b_Q (k_raw, v alike), result = z @ W_O, out = Σ result + b_O, gate, up, pre = in @ W + b,
    mlp.out = post @ W_out + b_out, embed = scale · W_E[token], pos_embed = W_pos[position], logits = cap(multiplier ·
    (final_norm @ W_U + b_U)); norms: (out - b) / (offset + w) is parallel to x, or to x - mean(x).
    """
    weights, wanted = model.weights, set(model.binding.sites)
    named = [s for w in weights.layouts.values() for s in (w.reads, w.makes) if s in wanted or s.startswith("module:")]
    results = [n.removesuffix("W_O") + "result" for n in weights if n.endswith(".W_O")]
    tables = {w.reads for n, w in weights.layouts.items() if n.endswith("W_E")}  # ids, which are no activations
    cache = model.record(inputs, [n for n in dict.fromkeys(named + results) if n not in tables])
    seen = trace(model.module, inputs)
    errors: dict[str, float] = {}
    for name, layout in weights.layouts.items():
        last = name.rsplit(".", 1)[-1]
        if last in ("W_E", "W_pos"):
            errors[name] = _table_error(weights[name], layout, cache, seen)
        elif last == "w":
            errors |= _norm_errors(weights, name, layout, cache)
        elif last.startswith("W_"):
            errors |= _matrix_errors(weights, name, layout, cache)
    return errors


def _table_error(table: Tensor, layout: Layout, cache: Cache, seen: Trace) -> float:
    out = cache[layout.makes]
    if layout.reads == "positions":
        return off(table[: out.shape[-2]].expand_as(out), out)
    path, _, call = layout.reads.removeprefix("module:").removesuffix(":in").partition("@")
    ids = next(iter(seen.of(path)[int(call or 0)].inputs.values()))
    return off(layout.scale * table[ids], out)


def _norm_errors(weights: Weights, name: str, layout: Layout, cache: Cache) -> dict[str, float]:
    bias = name.removesuffix("w") + "b"
    b = weights.get(bias)
    error = norm_off(cache[layout.reads], cache[layout.makes], weights[name], b, layout.offset)
    return {name: error} | ({} if b is None else {bias: error})


def _matrix_errors(weights: Weights, name: str, layout: Layout, cache: Cache) -> dict[str, float]:
    """The error of a matrix and its bias: of what they make together, and for W_O of each head's result too."""
    bias = name.replace("W_", "b_")
    matrix, b = weights[name], weights.get(bias, 0.0)
    x, target, error = layout.scale * cache[layout.reads], cache[layout.makes], 0.0
    if not layout.heads:
        made = rows(x) @ matrix + b
    elif layout.axis == 1:
        made, target = torch.einsum("nd,hde->nhe", rows(x), matrix) + b, target.flatten(0, 1)
    else:
        each = torch.einsum("nhe,hed->nhd", x.flatten(0, 1), matrix)
        error = off(each, cache[name.removesuffix("W_O") + "result"].flatten(0, 1))
        made = each.sum(1) + b
    made = layout.multiplier * made
    made = layout.cap * torch.tanh(made / layout.cap) if layout.cap else made
    error = max(error, off(made.flatten(), target.flatten()))
    return {name: error} | ({bias: error} if bias in weights else {})


def prove_weights(twin: Model, inputs: dict[str, Any]) -> Proof:
    """(h) Weights by name reproduce the recorded sites of a float64 twin; see `weight_errors`."""
    claim = "weights by name reproduce the recorded sites"
    if not twin.binding.sites:
        return Proof("h", claim, None, 1e-10, next(iter(twin.binding.refused.values()), "no site was found"))
    with Lifted():
        errors = weight_errors(twin, inputs)
    if not errors:
        return Proof("h", claim, None, 1e-10, "; ".join(sorted(set(twin.weights.refused.values()))))
    worst = max(errors, key=lambda n: errors[n])
    return Proof("h", claim, errors[worst], 1e-10, f"{len(errors)} weights; the worst is {worst}")
