"""The search for every named weight: which module, which parameter, which way round, which columns. All by values.

The binding says which columns of which matrix hold each head; one small traced pass says the rest. A module whose own
`weight` does not reproduce what the module returned (quantised, or wrapped by an adapter) is read by feeding it the
identity.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from interp.model.binding import Binding, Site
from interp.model.layouts import Layout, close, fed, fits, increasing, norm_off, ratio, rows, tanh_cap
from interp.model.live import quantised
from interp.model.solver import same_values
from interp.model.trace import Call, Trace, same
from interp.model.wiring import Place, Wiring

MAKES = {"q_raw": "Q", "k_raw": "K", "v": "V", "gate": "gate", "up": "up", "pre": "in"}  # site = input @ W + b
READS = {"z": "O", "post": "out"}  # output = site @ W + b
ROUNDED = 0.05  # modules of 8 bits round what they receive, too
_ROLE = re.compile(r"^(.*blocks\.\d+\.\w+)\.(\w+)$")
_GLU, _NO_GLU = "this MLP is a GLU: its first matrices are W_gate and W_up", "this MLP has no gate: see W_in and W_out"


class Finder:
    """Layouts by name, and by name why a weight is not there, from the binding and one traced pass of a live model."""

    def __init__(self, binding: Binding, wiring: Wiring, trace: Trace) -> None:
        self.sites, self.wiring, self.trace = binding.sites, wiring, trace
        self.layouts: dict[str, Layout] = {}
        self.refused: dict[str, str] = {}
        self.matrices: dict[str, Layout | str] = {}
        self.norms = [c for c in trace.calls if _may_be_norm(c)]

    def find(self) -> tuple[dict[str, Layout], dict[str, str]]:
        """(layouts by name in the order of the sites, reasons by name of what is absent)."""
        self.tables()
        for name, site in self.sites.items():
            match = _ROLE.match(name)
            if match:
                self.part(match.group(1), match.group(2), site)
        self.outside_norms()
        self.unembedding()
        return self.layouts, self.refused

    def call(self, place: Place) -> Call:
        """The traced call of a place."""
        return self.trace.of(place.path)[place.call]

    def value(self, name: str) -> Tensor | None:
        """What the traced pass held at a module site."""
        site = self.sites.get(name)
        if site is None or site.kind not in ("module", "sum"):
            return None
        place = site.read or site.place
        call = self.call(place)
        return (call.inputs if place.side == "in" else call.outputs).get(place.key)

    def named(self, call: Call, side: str) -> str:
        """The `module:` site of a call's input or output."""
        return f"module:{call.path}" + (f"@{call.number}" if call.number else "") + (":in" if side == "in" else "")

    def source(self, call: Call, candidates: list[str]) -> tuple[str, float]:
        """The first candidate site that holds what the call received, up to a factor; else the call's own input."""
        assert call.into is not None
        for name in candidates:
            value = self.value(name)
            factor = None if value is None else ratio(call.into, value)
            if factor is not None:
                return name, factor
        return self.named(call, "in"), 1.0

    # ------------------------------------------------------------ matrices

    def matrix(self, call: Call) -> Layout | str:
        """Where the matrix of an affine module is, or why it has none."""
        if call.path not in self.matrices:
            self.matrices[call.path] = self._matrix(call)
        return self.matrices[call.path]

    def _matrix(self, call: Call) -> Layout | str:
        assert call.into is not None and call.out is not None
        packed = bool(quantised(call.module))
        if next(call.module.parameters(), None) is None and not packed:
            return f"{call.path} only hands on what a bare parameter of another module made"
        if len(call.inputs) > 1:
            return f"{call.path} receives more than one tensor"
        x, y = rows(call.into), rows(call.out)
        own = call.module._parameters
        weight, bias = own.get("weight"), own.get("bias")
        if weight is not None and weight.ndim == 2 and not weight.is_meta:
            for turned in (True, False):
                if fits(x, weight.mT if turned else weight, bias, y):
                    return Layout(call.path, "weight", turned=turned, width=x.shape[-1])
        if fits(x, *fed(call.module, x.shape[-1], x), y, ROUNDED if packed else 0.0):
            return Layout(call.path, None, width=x.shape[-1])
        return f"{call.path} ({type(call.module).__name__}) is not affine: it returns no input @ W + b"

    def part(self, role: str, what: str, site: Site) -> None:
        """The weights of one site of a sublayer: the matrix that makes it, the matrix that reads it, or its norms."""
        if what in ("in", "out"):
            return self.role_norms(role, what)
        letter = MAKES.get(what) or READS.get(what)
        if what in ("q", "k") and f"{role}.{what}_raw" not in self.sites:
            return self.refuse(role, what.upper(), "no matrix in the attention returns the queries or keys")
        if letter is None or (what == "pre" and self.refuse_glu(role)):
            return None
        if site.kind != "module":
            return self.refuse(role, letter, f"no matrix {'returns' if what in MAKES else 'reads'} {role}.{what}")
        call = self.call(site.place)
        found = self.matrix(call)
        if isinstance(found, str):
            return self.refuse(role, letter, found)
        return self.add_matrix(role, letter, what, site, call, found)

    def add_matrix(self, role: str, letter: str, what: str, site: Site, call: Call, found: Layout) -> None:
        """W and b of a module that makes a site, or reads it."""
        name, columns, heads = f"{role}.{what}", None, 0
        if site.heads is not None:
            columns, heads = site.heads.columns, site.heads.count
        elif site.place.half is not None:
            assert isinstance(site.shape[-1], int)
            columns = torch.arange(site.shape[-1]) + site.place.half * site.shape[-1]
        if what in MAKES:
            reads, scale = self.source(call, [f"{role}.in", *(n for n in self.sites if n.endswith("final_norm"))])
            whole = replace(found, reads=reads, makes=name, scale=scale, axis=1, columns=columns, heads=heads)
            bias = replace(whole, axis=0)
        else:
            value = self.value(f"{role}.out")
            makes = f"{role}.out" if value is not None and same(value, call.out) else self.named(call, "out")
            whole = replace(found, reads=name, makes=makes, columns=columns, heads=heads)
            bias = replace(whole, columns=None, heads=0)
        self.layouts[f"{role}.W_{letter}"] = whole
        self.add_bias(f"{role}.b_{letter}", bias, call)

    def add_bias(self, name: str, like: Layout, call: Call) -> None:
        """A bias beside its matrix, or why there is none."""
        if like.parameter is None and fed(call.module, like.width, rows(call.into))[1].any():  # type: ignore[arg-type]
            self.layouts[name] = replace(like, turned=False)
        elif like.parameter is not None and call.module._parameters.get("bias") is not None:
            self.layouts[name] = replace(like, parameter="bias", turned=False)
        else:
            self.refused[name] = f"{call.path} has no bias"

    def refuse(self, role: str, letter: str, why: str) -> None:
        """Say why a matrix and its bias are not there."""
        self.refused |= {f"{role}.W_{letter}": why, f"{role}.b_{letter}": why}

    def refuse_glu(self, role: str) -> bool:
        """Say which first matrices an MLP does not have; True for a GLU, whose `pre` is its `gate`."""
        gated = f"{role}.gate" in self.sites
        for letter in ("in",) if gated else ("gate", "up"):
            self.refuse(role, letter, _GLU if gated else _NO_GLU)
        return gated

    # ------------------------------------------------------------ norms

    def role_norms(self, role: str, what: str) -> None:
        """The norm a sublayer reads through (in a post-norm block: the norm of its sum), and the one behind it."""
        received = self.value(f"{role}.{what}")
        if what == "out":
            write = self.value(f"{role}.write")
            self.norm_where(role, "post_norm", lambda c: same(c.into, received) and same(c.out, write))
            return
        total = self.value(f"{role}.sum")
        if total is None:
            self.norm_where(role, "norm", lambda c: same(c.out, received))
        else:
            self.norm_where(role, "norm", lambda c: same(c.into, total))
        for letter in "qk":  # they reach their norm with heads or positions first
            made = self.raw(f"{role}.{letter}_raw")
            self.norm_where(role, f"{letter}_norm", lambda c, made=made: same_values(c.into, made))  # type: ignore[misc]

    def norm_where(self, role: str, name: str, is_it: Callable[[Call], bool]) -> None:
        """Name the first norm of the role's block for which `is_it` holds."""
        prefix, _, number = role.rsplit(".", 1)[0].rpartition("blocks.")
        block = next(s.blocks[int(number)] for s in self.wiring.stacks if s.prefix == prefix)
        inside = self.trace.inside(self.trace.span(block.path, block.call, block.until))
        call = next((c for c in inside if any(c is n for n in self.norms) and is_it(c)), None)
        if call is not None:
            self.add_norm(f"{role}.{name}", call)
        elif name == "norm":
            self.refused |= {f"{role}.norm.{p}": f"no norm with parameters returns {role}.in" for p in "wb"}

    def raw(self, name: str) -> Tensor | None:
        """The columns of a raw query or key, heads joined."""
        value, site = self.value(name), self.sites.get(name)
        if value is None or site is None or site.heads is None:
            return None
        return (value.flatten(2) if value.ndim == 4 else value)[..., site.heads.columns]

    def add_norm(self, name: str, call: Call) -> None:
        """Which of the module's own vectors is w, which is b, and what is added to w: whatever reproduces its output."""
        assert call.into is not None and call.out is not None
        best: tuple[float, str, str | None, float] | None = None
        own = _own_vectors(call.module)
        for w in own:
            for b in [None, *(b for b in own if b != w)]:
                for offset in (0.0, 1.0):
                    error = norm_off(call.into, call.out, own[w], None if b is None else own[b], offset)
                    best = min(best or (error, w, b, offset), (error, w, b, offset), key=lambda t: t[0])
        assert best is not None
        error, w, b, offset = best
        if error > close(call.out.dtype):
            self.refused |= {f"{name}.{p}": f"{call.path} is no norm with a gain: off by {error:.1e}" for p in "wb"}
            return
        layout = Layout(call.path, w, self.named(call, "in"), self.named(call, "out"), offset=offset)
        self.layouts[f"{name}.w"] = layout
        if b is None:
            self.refused[f"{name}.b"] = f"{call.path} has no bias"
        else:
            self.layouts[f"{name}.b"] = replace(layout, parameter=b)

    def outside_norms(self) -> None:
        """The norms before the head, one a stack."""
        for name in (n for n in self.sites if n.endswith("final_norm")):
            call = self.call(self.sites[name].place)
            if any(c is call for c in self.norms):
                self.add_norm(name, call)

    # ------------------------------------------------------------ tables and the unembedding

    def tables(self) -> None:
        """Tables of tokens and positions, for every stack that has one."""
        names = [n for n in self.sites if n.rsplit(".", 1)[-1] in ("embed", "pos_embed")]
        if not any(n.endswith("pos_embed") for n in names):
            self.refused["W_pos"] = "no table of positions was found (rotary, relative, or a bare parameter)"
        if not any(not n.endswith("pos_embed") for n in names):
            self.refused["W_E"] = "no table of tokens was found"
        for name in names:
            call = self.call(self.sites[name].place)
            table, out = call.module._parameters.get("weight"), call.out
            short = name.replace("pos_embed", "W_pos").replace("embed", "W_E")
            if table is None or out is None or table.is_meta or table.shape[-1] != out.shape[-1]:
                self.refused[short] = f"{call.path} keeps no table in memory"
            elif short.endswith("W_pos"):
                self.add_positions(short, name, call, table, out)
            else:
                self.add_tokens(short, name, call, table, out)

    def add_tokens(self, short: str, site: str, call: Call, table: Tensor, out: Tensor) -> None:
        """embed = scale · W_E[token]."""
        scale = ratio(out, table[next(iter(call.inputs.values()))])
        if scale is None:
            self.refused[short] = f"{call.path} returns no multiple of a row of its table"
        else:
            self.layouts[short] = Layout(call.path, "weight", self.named(call, "in"), site, scale=scale)

    def add_positions(self, short: str, site: str, call: Call, table: Tensor, out: Tensor) -> None:
        """Row p is what position p gets, wherever the table keeps it: some keep their first rows for something else."""
        given = out.reshape(-1, *out.shape[-2:])[0]
        first = int((table == given[0]).all(-1).int().argmax())
        if torch.equal(table[first : first + len(given)], given):
            columns = torch.arange(first, len(table)) if first else None
            self.layouts[short] = Layout(call.path, "weight", "positions", site, columns=columns)
        else:
            self.refused[short] = f"{call.path} returns no consecutive rows of its table"

    def unembedding(self) -> None:
        """W_U and b_U: logits = cap(multiplier · (scale · final_norm @ W_U + b_U)), cap(x) = c · tanh(x / c) or x."""
        logits = self.value("logits")
        call = None if logits is None else self.last_matrix(logits)
        found = "the logits are no function of one matrix's output" if call is None else self.matrix(call)
        if call is None or logits is None or call.out is None or isinstance(found, str):
            self.refused |= dict.fromkeys(("W_U", "b_U"), str(found) if logits is not None else "it returns no logits")
            return
        reads, scale = self.source(call, [n for n in self.sites if n.endswith("final_norm")][::-1])
        multiplier = ratio(logits, call.out)
        cap = tanh_cap(logits, call.out) if multiplier is None else None
        makes = self.named(call, "out") if multiplier is None and cap is None else "logits"
        whole = replace(found, reads=reads, makes=makes, scale=scale, multiplier=multiplier or 1.0, cap=cap)
        self.layouts["W_U"] = whole
        self.add_bias("b_U", whole, call)

    def last_matrix(self, logits: Tensor) -> Call | None:
        """The last matrix outside the stacks whose output, entry by entry, the logits grow with."""
        stacks = tuple(b.path + "." for s in self.wiring.stacks for b in s.blocks)
        for call in reversed(self.trace.calls):
            weight = getattr(call.module, "weight", None)
            if isinstance(weight, Tensor) and weight.ndim == 2 and not call.path.startswith(stacks):
                made = call.out
                if (
                    call.into is not None
                    and made is not None
                    and made.numel() == logits.numel()
                    and increasing(logits, made)
                ):
                    return call
        return None


def _own_vectors(module: nn.Module) -> dict[str, Tensor]:
    """A module's own vectors of parameters, as far as they are in memory."""
    own = {n: p for n, p in module._parameters.items() if p is not None and not p.is_meta}
    return {n: p for n, p in own.items() if p.ndim == 1 and p.is_floating_point()}


def _may_be_norm(call: Call) -> bool:
    """It keeps its input's shape and has a value for every entry of its last axis."""
    sizes = {len(p) for p in _own_vectors(call.module).values()}
    return (
        call.into is not None
        and call.out is not None
        and call.into.shape == call.out.shape
        and call.into.shape[-1] in sizes
    )
