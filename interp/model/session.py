"""The hooks of one run or one `with model.edit(...)`: put in place, counted, and taken away again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interp.errors import Failed, WrongUse
from interp.model import parts
from interp.model.binding import Site, output_matrix
from interp.model.edits import Edit
from interp.model.experts import Scores, effect, hidden, routing
from interp.model.hooks import Hooks, submodule
from interp.model.live import signature
from interp.model.positions import Positions, Where, of_call
from interp.model.state import CACHE, beside, stepped
from interp.model.tap import Tap
from interp.model.trace import Key, replace_in, tensors_in
from interp.model.wiring import Coefficient, Place, vector
from interp.sites import head_of, host, position_axis

if TYPE_CHECKING:
    from interp.model.attach import Attached

Change = Callable[[Tensor], Tensor | None]
Keep = Callable[[str, Tensor, Where], None]
Visit = Callable[..., Any]  # of a module's (args, kwargs) or of its output; None: it goes on as it is


class Stop(BaseException):
    """Ends a forward pass once everything asked for is recorded. No model code catches it: it is no Exception."""


class Session:
    """Hooks that apply `edits` and hand what `reads` name to `keep(site, tensor, positions)`.

    Reads see edited values. Without edits, nothing the model computes changes. With `stop`, the pass ends after the
    last read. `tally` counts how often each edit changed a tensor. What is visited where is worked out once; entering
    the context puts the hooks in place, leaving it removes every one, also after an exception.
    """

    def __init__(
        self,
        module: nn.Module,
        sites: dict[str, Site],
        edits: Iterable[Edit] = (),
        reads: Iterable[str] = (),
        keep: Keep | None = None,
        stop: bool = False,
        prompt: Callable[[], Tensor | None] = lambda: None,
        tally: MutableMapping[Edit, int] | None = None,
        attached: Iterable[Attached] = (),
    ) -> None:
        self.module, self.sites, self.keep, self.stop, self.prompt = module, sites, keep, stop, prompt
        self.tally = {} if tally is None else tally
        self.edits: dict[str, list[Edit]] = {}
        for edit in edits:
            self.edits.setdefault(edit.site, []).append(edit)
        self.reads = list(reads)
        self.fired: set[int] = set()
        self.visits: dict[tuple[str, str], dict[int, list[Visit]]] = {}  # (path, side) -> number of the call -> visits
        self.taps: dict[str, dict[int, dict[str, str]]] = {}  # path -> number of the call -> inner name -> site
        self.undo: list[Callable[[], None]] = []
        self.counts: dict[tuple[str, str], int] = {}
        self.left: set[str] = set(self.reads)
        self.arguments: Mapping[str, Any] = {}  # of the pass that runs
        self.before: Positions | None = None
        self.generating: Tensor | None = None
        self.aside = False  # a module runs once more beside the pass: its hooks sleep
        self.inside: list[str] = []  # sites for which a module's forward is replaced
        self.looks: dict[str, list[Callable[[str, Tensor], Any]]] = {}  # who else reads a site
        self.running = [r for a in attached if (r := a.join(self)) is not None]
        parts.join(self)
        self._arrange()

    # ------------------------------------------------------------ in and out

    def __enter__(self) -> Session:
        try:
            self.undo.append(self.hooks.remove)
            self.hooks.put()
            for name in self.inside:
                site = self.sites[name]
                (self._install_state if site.kind == "state" else self._install_router)(name, site)
            for path, names in self.taps.items():
                self._install_tap(path, names)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()
        self.keep = None
        self._at({})
        for running in self.running:
            running.forget()

    def close(self) -> None:
        """Take every hook away."""
        while self.undo:
            self.undo.pop()()

    def _arrange(self) -> None:
        """Work out what is visited where: edits before reads, so that reads see edited values."""
        for name in dict.fromkeys([*self.edits, *self.reads, *self.looks]):
            site = self.sites[name]
            if site.kind in ("dictionary", "part"):  # happens at the sites that they are parts of
                continue
            if site.kind == "tap":
                self.taps.setdefault(site.place.path, {}).setdefault(site.place.call, {})[site.inner] = name
            elif site.kind == "state" or (site.kind == "router" and name in self.edits):
                self.inside.append(name)
            elif name in self.edits:
                self._install_edit(name, site)
        for name in dict.fromkeys([*self.reads, *self.looks]):
            self._install_read(name, self.sites[name])
        listeners = ((*key, self._listener(key, visits)) for key, visits in self.visits.items())
        self.hooks = Hooks(self.module, [("", "in", self._begin), *listeners])

    def unfired(self) -> list[Edit]:
        """Edits that have changed nothing so far."""
        return [e for edits in self.edits.values() for e in edits if id(e) not in self.fired]

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before every forward pass: where its columns stand."""
        prompt = self.prompt()
        again = prompt is not None and prompt is self.generating  # a later pass of one generation
        self.before, self.generating = self.main if again else None, prompt
        self._at(_by_name(type(module), args, kwargs) if args else kwargs)
        if prompt is not None or self.arguments.get("past_key_values") is not None:
            _ = self.main, self.decoder  # now: the pass makes its cache longer
        self.fresh()

    def _at(self, arguments: Mapping[str, Any]) -> None:
        """A pass with these arguments runs."""
        self.arguments = arguments
        for positions in ("main", "decoder"):
            self.__dict__.pop(positions, None)

    @cached_property
    def main(self) -> Positions | None:
        """Where the columns of the pass stand, if its arguments say."""
        return of_call(self.arguments, prompt=self.generating, before=self.before)

    @cached_property
    def decoder(self) -> Positions | None:
        """The same of a decoder's columns; generating, it is given its start token alone."""
        started = None if self.generating is None else torch.ones_like(self.generating)
        return of_call(self.arguments, "decoder_", prompt=started)

    def fresh(self) -> None:
        """All counters back to zero: a pass begins, or a generation, whose encoder runs before the model's own call."""
        self.counts.clear()
        self.left = set(self.reads)
        for running in self.running:
            running.forget()

    def positions(self, name: str, x: Tensor) -> Positions:
        """The positions of a tensor at a site; counted from 0 where the call's tokens do not say."""
        axis, name = position_axis(name), head_of(host(name))[0]
        batch, length = x.shape[0], x.shape[axis] if x.ndim > axis else 1
        source = (
            self.decoder if name.startswith("decoder.") and name.rsplit(".", 2)[-2:] not in _SOURCE_SIDE else self.main
        )
        if source is not None and source.index.shape == (batch, length):
            return source
        index, prompt = torch.arange(length).expand(batch, -1), self.prompt()
        if prompt is not None and name.startswith("encoder.") and len(prompt) == batch:  # before the model's own call
            index = index.masked_fill(index >= prompt[:, None].cpu(), -1)
        return Positions(index)

    # ------------------------------------------------------------ what happens at a site

    def change(self, name: str, x: Tensor) -> Tensor:
        """All edits of a site applied to x, in its canonical shape."""
        if name not in self.edits:
            return x
        positions = self.positions(name, x).to(x.device)
        for edit in self.edits[name]:
            x, fired = edit.apply(x, positions)
            if fired:
                self._count(edit)
        return x

    def _count(self, edit: Edit) -> None:
        self.fired.add(id(edit))
        self.tally[edit.origin] = self.tally.get(edit.origin, 0) + 1

    def take(self, name: str, x: Tensor) -> None:
        """Show a tensor to who looks at its site; if it is recorded, hand it over, and end the pass if it was the last."""
        for look in self.looks.get(name, ()):
            look(name, x)
        if name not in self.left:
            return
        assert self.keep is not None
        self.keep(name, x, self.positions)
        self.left.discard(name)
        if self.stop and not self.left:
            raise Stop

    def at(self, place: Place, visit: Change) -> None:
        """Call `visit(tensor)` at a module's input or output; a tensor it returns goes on in place of the old one."""
        self._visit(place, partial(_at_input if place.side == "in" else _at_output, visit, place.key))

    def _visit(self, place: Place, visit: Visit) -> None:
        self.visits.setdefault((place.path, place.side), {}).setdefault(place.call, []).append(visit)

    def _listener(self, key: tuple[str, str], visits: dict[int, list[Visit]]) -> Callable[..., Any]:
        """One hook for all that is visited at a module's input, or at its output."""
        counts = self.counts

        def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self.aside:
                return None
            number = counts[key] = counts.get(key, -1) + 1
            changed = None
            for visit in visits.get(number, ()):
                changed = visit(*(changed or (args, kwargs))) or changed
            return changed

        def on_output(module: nn.Module, args: Any, output: Any) -> Any:
            if self.aside:
                return None
            number = counts[key] = counts.get(key, -1) + 1
            for visit in visits.get(number, ()):
                changed = visit(output)
                output = output if changed is None else changed
            return output

        return on_input if key[1] == "in" else on_output

    def _module(self, path: str) -> nn.Module:
        return submodule(self.module, path)

    # ------------------------------------------------------------ kinds of sites

    def _canonical(self, site: Site, t: Tensor) -> Tensor:
        """A module's tensor in the site's shape: batch and positions apart, the right half, heads apart."""
        t = (site.read or site.place).rows(t)
        if t.ndim == 2 < len(site.shape) and self.main is not None and t.shape[0] == self.main.index.numel():
            t = t.reshape(*self.main.index.shape, -1)
        if site.place.half is not None:
            t = t.chunk(2, dim=-1)[site.place.half]
        if site.factor != 1.0:
            t = self._value(site.factor, t) * t
        if site.offset and site.kind == "module":
            t = t + self._value(site.offset, t)
        if site.heads is None:
            return t
        return site.heads.split(t.flatten(2) if t.ndim == 4 else t)

    def _back(self, site: Site, t: Tensor, new: Tensor) -> Tensor:
        """The inverse of `_canonical`: `t` with the site's part replaced by `new`."""
        new = new - self._value(site.offset, t) if site.offset else new
        new = new if site.factor == 1.0 else new / self._value(site.factor, new)
        if site.heads is None and site.place.half is None:
            new = site.place.unrows(new, t)
            return new.reshape(t.shape) if new.numel() == t.numel() else new  # a sweep turns one row for all into many
        shape, t = t.shape, t.reshape(*new.shape[:2], -1)
        if site.heads is not None:
            return site.heads.join(t, new).reshape(shape)
        parts = list(t.chunk(2, dim=-1))
        parts[site.place.half] = new  # type: ignore[index]
        return torch.cat(parts, dim=-1).reshape(shape)

    def _value(self, coefficient: Coefficient, like: Tensor) -> Tensor | float:
        """A number, or the value per channel that a name means."""
        return vector(self.module, coefficient, like) if isinstance(coefficient, str) else coefficient

    def _install_edit(self, name: str, site: Site) -> None:
        edits = {
            "sum": self._edit_sum,
            "result": self._edit_result,
            "scale": self._edit_scale,
            "experts": self._edit_experts,
        }
        edits.get(site.kind, self._edit_module)(name, site)

    def _edit_module(self, name: str, site: Site) -> None:
        """Exchange the tensor where it is received or returned."""
        made: list[Tensor | None] = []

        def visit(t: Tensor) -> Tensor | None:
            old = self._canonical(site, t)
            new = self.change(name, old)
            back = None if new is old else self._back(site, t, new)
            made[:] = [back] * len(site.place.also)
            return back

        self.at(site.place, visit)
        for place in site.place.also:
            self.at(place, lambda t: made.pop())

    def _edit_sum(self, name: str, site: Site) -> None:
        """resid_mid' reaches the stream through the write before it: write' = write + (resid_mid' - resid_mid) / c."""
        seen: list[Tensor] = []
        *before, (last, coefficient) = site.base

        def add(t: Tensor, place: Place, weight: Coefficient) -> None:
            if place is before[0][0]:
                seen.clear()
            rows = place.rows(t)
            seen.append(self._value(weight, rows) * rows)

        for place, weight in before:
            self.at(place, partial(add, place=place, weight=weight))

        def finish(t: Tensor) -> Tensor | None:
            rows = last.rows(t)
            mid = sum(seen[1:], seen[0]) + self._value(coefficient, rows) * rows
            mid = mid + self._value(site.offset, mid) if site.offset else mid
            new = self.change(name, mid)
            return None if new is mid else t + last.unrows((new - mid) / self._value(coefficient, rows), t)

        self.at(last, finish)

    def _edit_result(self, name: str, site: Site) -> None:
        """out' = out + Σ_head (result' - result)."""
        change: list[Tensor] = []

        def start(t: Tensor) -> None:
            old = self._result(site, t)
            new = self.change(name, old)
            self.take(name, new)
            change[:] = [] if new is old else [(new - old).sum(dim=2)]

        self.at(site.place, start)
        out = replace(site.place, side="out", key=None)
        self.at(out, lambda t: t + change[0].reshape(t.shape) if change else None)

    def _edit_scale(self, name: str, site: Site) -> None:
        """out' = b + (out - b) · s / s', b the norm's answer to zeros."""
        found: list[tuple[Tensor, Tensor]] = []
        module = self._module(site.place.path)

        def start(t: Tensor) -> None:
            old = self._scale(site, t)
            new = self.change(name, old)
            self.take(name, new)
            found[:] = [(old, new)]

        def finish(t: Tensor) -> Tensor | None:
            old, new = found[0]
            if new is old:
                return None
            rows, zeros = (site.place.rows(x) for x in (t, _first(module.forward(torch.zeros_like(t)))))
            bias = zeros.flatten(0, -2)[0]
            return site.place.unrows(bias + (rows - bias) * (old / new).to(t).reshape(*rows.shape[:-1], 1), t)

        self.at(replace(site.place, side="in", key=None), start)
        self.at(site.place, finish)

    def _edit_experts(self, name: str, site: Site) -> None:
        """out' = out + Σ_k weight_k · (post' - post)_k W_down[expert_k]."""
        found: list[Tensor] = []
        module = self._module(site.place.path)

        def start(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            old = self._experts(site, args, kwargs)
            new = self.change(name, old)
            self.take(name, new)
            _, index, weights = routing(args, kwargs)
            found[:] = [] if new is old else [effect(module, index, weights, (new - old).flatten(0, 1))]

        self._visit(replace(site.place, side="in"), start)
        self.at(site.place, lambda t: t + found[0].to(t).reshape(t.shape) if found else None)

    def _scale(self, site: Site, t: Tensor) -> Tensor:
        assert site.norm is not None
        t = site.place.rows(t)
        if t.ndim == 2 and self.main is not None and t.shape[0] == self.main.index.numel():
            t = t.reshape(*self.main.index.shape, -1)
        return site.norm.scale(t)

    def _experts(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        post = hidden(self._module(site.place.path), args, kwargs)
        assert post is not None
        shape = self.main.index.shape if self.main is not None else (1, -1)
        return post.reshape(*shape, *post.shape[1:])

    def _result(self, site: Site, t: Tensor) -> Tensor:
        """result[head] = z[head] W_O[head]  [batch, pos, head, d_model]."""
        assert site.heads is not None
        matrix = output_matrix(self._module(site.place.path), t.shape[-1], t)
        with torch._C.DisableTorchFunction():  # these products are not the model's
            z, W_O = self._canonical(site, t), site.heads.split(matrix.T).permute(1, 2, 0)
            return torch.einsum("bphe,hed->bphd", z, W_O)

    def _install_read(self, name: str, site: Site) -> None:
        if site.kind in ("tap", "state", "dictionary", "part"):
            return None
        if name in self.edits and site.kind in ("result", "scale", "experts"):  # computed, not there: taken when edited
            return None
        if site.kind == "experts":
            into = replace(site.place, side="in")
            return self._visit(into, lambda a, k: self.take(name, self._experts(site, a, k)))
        if site.kind == "result":
            return self.at(site.place, lambda t: self.take(name, self._result(site, t)))
        place, convert = site.read or site.place, self._canonical
        if site.kind == "scale":
            place, convert = replace(site.place, side="in", key=None), self._scale

        self._visit(place, self._reader(name, site, place, convert))
        return None

    def _reader(self, name: str, site: Site, place: Place, convert: Callable[[Site, Tensor], Tensor]) -> Visit:
        """Hands the tensor of a site over. Few calls: between two sites a model runs, and what it ran fills the caches."""
        take, key, whole = self.take, place.key, convert == self._canonical and site.untouched

        def read(output: Any, kwargs: dict[str, Any] | None = None) -> None:
            with torch._C.DisableTorchFunction():  # a tap around this module need not see it
                t = output if isinstance(output, Tensor) else _given(key, output, kwargs or {})
                if t is not None:
                    take(name, t if whole and t.ndim > 2 else convert(site, t))

        return read

    def _install_tap(self, path: str, names: dict[int, dict[str, str]]) -> None:
        """Run one module under a `Tap` that shows it the sites in `names` (number of the call -> inner name -> site)."""
        module, key = self._module(path), (path, "tap")
        original = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            call = self.counts[key] = self.counts.get(key, -1) + 1
            if call not in names:
                return original(*args, **kwargs)
            axis = self.sites[next(iter(names[call].values()))].place.batch or 0
            batch = next(t.shape[axis] for t in [*args, *kwargs.values()] if isinstance(t, Tensor))
            with self._tap(names[call], batch):
                return original(*args, **kwargs)

        self._put(module, forward)

    def _put(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Another forward for a module, until the hooks are taken away."""
        own = module.__dict__.get("forward")

        def restore() -> None:
            if own is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = own

        module.__dict__["forward"] = forward  # some wrappers hand attributes on to what they wrap
        self.undo.append(restore)

    def _install_router(self, name: str, site: Site) -> None:
        """Run a router that picks experts with other scores than it computed."""
        module, key = self._module(site.place.path), (site.place.path, "router")
        original = module.forward

        def visit(number: int, t: Tensor) -> Tensor:
            if number != site.product:
                return t
            old = self._canonical(site, t)
            new = self.change(name, old)
            return t if new is old else self._back(site, t, new)

        def forward(*args: Any, **kwargs: Any) -> Any:
            call = self.counts[key] = self.counts.get(key, -1) + 1
            with Scores(int(site.shape[-1]), visit) if call == site.place.call else nullcontext():
                return original(*args, **kwargs)

        self._put(module, forward)

    def _install_state(self, name: str, site: Site) -> None:
        """Step through a mixer beside its own call, which alone makes the output; in its place if its state is edited."""
        module: Any = self._module(site.place.path)
        original, key = module.forward, (site.place.path, "state")

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.aside:
                return original(*args, **kwargs)
            call = self.counts[key] = self.counts.get(key, -1) + 1
            if call != site.place.call:
                return original(*args, **kwargs)
            given, edited = kwargs.get(CACHE), name in self.edits
            cache = given if edited and given is not None else beside(given, self.module.config, module.layer_idx)
            change = self._change_of_state(name) if edited else None
            self.aside = True
            try:
                with nullcontext() if edited else torch.no_grad():
                    out, states = stepped(module, site.place.key, args, kwargs, cache, change)
            finally:
                self.aside = False
            self.take(name, states)
            return out if edited else original(*args, **kwargs)

        self._put(module, forward)

    def _change_of_state(self, name: str) -> Callable[[int, Tensor], Tensor]:
        """What stands in place of the state after token t: the edits of all positions so far, of which only t's is used."""
        fired: set[Edit] = set()

        def change(t: int, states: Tensor) -> Tensor:
            positions = self.positions(name, states).to(states.device)
            for edit in self.edits[name]:
                if bool(edit.selected(states, positions)[:, t].any()):
                    states, changed = edit.apply(states, positions)
                    if changed and edit not in fired:  # one tensor, however many of its positions
                        fired.add(edit)
                        self._count(edit)
            return states[:, t]

        return change

    def _tap(self, names: dict[str, str], batch: int) -> Tap:
        """A tap for the sites in `names` (inner name -> site)."""
        site = self.sites[next(iter(names.values()))]
        edited = frozenset(inner for inner, name in names.items() if name in self.edits)

        def visit(inner: str, t: Tensor) -> Tensor:
            name = names[inner]
            x = _from_heads(t, self.sites[name])
            new = self.change(name, x)
            self.take(name, new)
            return t if new is x else _to_heads(new, t, self.sites[name])

        return Tap(visit, None, frozenset(names), edited, site.product, site.count, batch)


_SOURCE_SIDE = (["cross_attn", "k"], ["cross_attn", "v"], ["cross_attn", "k_raw"])


def _by_name(kind: type[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a module's forward by name."""
    known = signature(kind.forward)
    arguments = known.bind_partial(None, *args, **kwargs).arguments
    rest = next((n for n, p in known.parameters.items() if p.kind is p.VAR_KEYWORD), "")
    return arguments | arguments.pop(rest, {})


def _given(key: Key, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    """The tensor at `key` (None: the first) of a call's arguments, or of what a module returned; None if it was not given."""
    key = _first_key(args, kwargs) if key is None else key
    if not isinstance(args, tuple):
        return args[key]
    if isinstance(key, str):
        return kwargs.get(key)
    return args[key] if key < len(args) else None


def _at_input(visit: Change, key: Key, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Visit the tensor at `key` (None: the first) of a call's arguments, if it was given."""
    key = _first_key(args, kwargs) if key is None else key
    t = _given(key, args, kwargs)
    changed = None if t is None else visit(t)
    if changed is None:
        return None
    return (replace_in(args, key, changed), kwargs) if isinstance(key, int) else (args, kwargs | {key: changed})


def _at_output(visit: Change, key: Key, output: Any) -> Any:
    """Visit the tensor at `key` (None: the first) of what a module returned."""
    if isinstance(output, Tensor):
        return visit(output)
    key = _first_key(output, {}) if key is None else key
    changed = visit(output[key])
    return None if changed is None else replace_in(output, key, changed)


def _first(output: Any) -> Tensor:
    return next(t for _, t in tensors_in(output))


def _first_key(args: Any, kwargs: dict[str, Any]) -> int | str:
    holders = [(enumerate(args) if isinstance(args, (tuple, list)) else args.items()), kwargs.items()]
    for holder in holders:
        for key, value in holder:
            if isinstance(value, Tensor) and value.is_floating_point():
                return key
    raise WrongUse("this module neither takes nor returns a floating-point tensor: name another.")


def _from_heads(t: Tensor, site: Site) -> Tensor:
    """[batch, head, pos, d] to [batch, pos, head, d], one of every group of equal heads; patterns as they are."""
    if site.inner in ("scores", "pattern", "statistics"):
        return t
    if site.inner == "sink":
        return t.squeeze(-1).transpose(1, 2)
    heads = site.shape[2]
    return (t if t.shape[1] == heads else t[:, :: t.shape[1] // int(heads)]).transpose(1, 2)


def _to_heads(x: Tensor, like: Tensor, site: Site) -> Tensor:
    if site.inner in ("scores", "pattern"):
        return x
    t = x.transpose(1, 2)
    return t if t.shape[1] == like.shape[1] else t.repeat_interleave(like.shape[1] // t.shape[1], dim=1)


def report_unfired(idle: list[Edit], strict: bool) -> None:
    """Warn of edits that changed nothing in a finished run; raise `Failed` under `strict`."""
    if not idle:
        return
    named = ", ".join(f"{type(e).__name__}({e.site!r}, pos={e.pos!r})" for e in idle)
    text = f"these edits changed nothing: {named}. Their positions did not occur, or the run ended before their site"
    if strict:
        raise Failed(text + ".")
    warnings.warn(text + " (strict=True makes this an error).", stacklevel=4)
