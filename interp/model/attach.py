"""A dictionary attached to a model: its latents f and its error e become sites.

    f = encode(what it reads)      ŷ = decode(f)      e = y − ŷ, y the site it writes        f', e' their edited values
    error kept:     y' = y + (f' − f) W_dec + (e' − e)         the same bits where nothing is edited
    error dropped:  y' = ŷ + (f' − f) W_dec

With the error kept, y' − y is decode(f') − decode(f) for the latents: an edit of latent i by δ adds δ d_i, and the model
goes on from there. Gradients are those of this map: ∂m/∂f_i = ⟨d_i, ∂m/∂y⟩, ∂m/∂e = ∂m/∂y, and what lies before has the
gradient it has without a dictionary. With the error dropped, gradients also go back through the encoder.

A dictionary of several sites has its latents at the first site it writes that comes after all it reads (a crosscoder: its
last site); their edits reach that site and later ones. A cross-layer transcoder has latents at every site, layer by layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.model.binding import Site
from interp.model.edits import Edit
from interp.model.positions import Positions
from interp.sites import MODULE, READ_ONLY, head_of, host, of_model, refuse

if TYPE_CHECKING:
    from jaxtyping import Float

    from interp.model.model import Model
    from interp.model.session import Session


@dataclass(frozen=True, eq=False)
class Part:
    """Latents that are known at one time: their site's name, the sites read, and the columns of ŷ for each written."""

    dictionary: Any
    name: str
    reads: tuple[str, ...]
    writes: Mapping[str, slice]


@dataclass(frozen=True, eq=False)
class Attached:
    """A dictionary in a model. Leaving it as a context takes it away, as `detach()` does."""

    model: Model
    dictionary: Any
    error: bool  # whether it is kept
    parts: tuple[Part, ...]
    late: Mapping[str, str]  # sites written that are passed before the latents are known: what is read after them
    sites: Mapping[str, Site]  # of the latents and errors

    @property
    def latents(self) -> list[str]:
        """The sites of its latents."""
        return [part.name for part in self.parts]

    @property
    def errors(self) -> list[str]:
        """The sites of its errors: one a site written."""
        return [name for name in self.sites if name not in self.latents]

    @property
    def hosts(self) -> list[str]:
        """The sites read and written."""
        return list(dict.fromkeys(s for part in self.parts for s in (*part.reads, *part.writes)))

    @property
    def fixed(self) -> dict[str, str]:
        """The errors that cannot be edited, and why."""
        late = {f"{site}.error": f"it is passed before {read!r} is read" for site, read in self.late.items()}
        return late if self.error else dict.fromkeys(self.errors, "it was dropped: attach it with error=True")

    def detach(self) -> None:
        """Take the dictionary away."""
        self.model.detach(self.dictionary)

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *error: Any) -> None:
        if self in self.model.attached:
            self.detach()

    def join(self, session: Session) -> Running | None:
        """Change the sites written if the session edits latents or errors, look at them if it reads these."""
        edited = not self.error or not self.sites.keys().isdisjoint(session.edits)
        if not edited and self.sites.keys().isdisjoint(session.reads):
            return None
        running = Running(self, session)
        for site in self.hosts:
            written = any(site in part.writes for part in self.parts)
            if edited and written and site not in self.late:
                session.edits.setdefault(site, []).append(Splice(site, running))
            else:
                session.looks.setdefault(site, []).append(running.visit)
        return running


@dataclass(frozen=True, eq=False)
class Splice(Edit):
    """y ← y', as the module says."""

    running: Running

    def apply(self, x: Tensor, positions: Positions) -> tuple[Tensor, bool]:
        """What goes on at a site written."""
        return self.running.visit(self.site, x), True


class Running:
    """An attached dictionary in the passes of one session."""

    def __init__(self, attached: Attached, session: Session) -> None:
        self.attached, self.session = attached, session
        self.asked = attached.sites.keys() & {*session.edits, *session.reads}
        self.seen: dict[str, Tensor] = {}
        self.made: dict[str, Tensor] = {}  # ŷ, by the name of the latents
        self.moved: dict[str, Tensor] = {}  # (f' − f) W_dec

    def forget(self) -> None:
        """A new pass begins, or none."""
        for values in (self.seen, self.made, self.moved):
            values.clear()

    def visit(self, site: str, x: Tensor) -> Tensor:
        """What goes on at a site read or written: x itself unless something is edited, or the error dropped."""
        self.seen[site] = x
        for part in self.attached.parts:
            if site in part.reads and self.seen.keys() >= set(part.reads):
                self._encode(part)
                for passed in part.writes.keys() & self.seen.keys() - {site}:
                    self._written(passed, self.seen[passed])
        return self._written(site, x)

    def _encode(self, part: Part) -> None:
        """f, f', and what follows from them for the sites written."""
        D, name = part.dictionary, part.name
        x = self._beside(part.reads)
        rows = x.flatten(0, 1).to(D.b_dec.device, D.b_dec.dtype)
        code = D.active(rows)
        self.made[name] = D.decode(code, rows).view(*x.shape[:2], -1)
        if name in self.asked:
            f = code.dense(D.config.latents).view(*x.shape[:2], -1)
            new = self.session.change(name, f)
            self.session.take(name, new)
            if new is not f:
                self.moved[name] = (new - f) @ D.W_dec

    def _beside(self, sites: Sequence[str]) -> Float[Tensor, "batch pos d"]:
        """What was read, side by side, with one axis for heads and their entries."""
        first, *rest = (self.seen[site].flatten(2) for site in sites)
        if any(x.shape[:2] != first.shape[:2] for x in rest):
            shapes = {site: tuple(self.seen[site].shape[:2]) for site in sites}
            raise WrongUse(f"one dictionary reads its sites at the same rows and positions, but they have {shapes}.")
        return torch.cat([first, *(x.to(first.device) for x in rest)], dim=-1)

    def _written(self, site: str, y: Tensor) -> Tensor:
        """y' of a site, once all latents that write it are known."""
        parts = [part for part in self.attached.parts if site in part.writes]
        if not parts or any(part.name not in self.made for part in parts):
            return y
        name, kept = f"{site}.error", self.attached.error
        hat = self._sum(self.made, parts, site, y)
        new = y if kept else hat
        if name in self.asked:
            e = y - hat
            e_new = self.session.change(name, e)
            self.session.take(name, e_new)
            new = new if e_new is e else y + (e_new - e)
        moved = [part for part in parts if part.name in self.moved]
        return (new + self._sum(self.moved, moved, site, y) if moved else new).to(y.dtype)

    def _sum(self, values: Mapping[str, Tensor], parts: Sequence[Part], site: str, y: Tensor) -> Tensor:
        """What several layers write to a site, in its shape."""
        first, *rest = (values[part.name][..., part.writes[site]].reshape(y.shape).to(y.device) for part in parts)
        return sum(rest, first)


# ---------------------------------------------------------------- what is checked before


def attached(model: Model, dictionary: Any, error: bool) -> Attached:
    """The dictionary and its sites in this model; `Model.attach` says what is refused."""
    if not hasattr(dictionary, "layers"):
        raise WrongUse(f"attach takes a dictionary, as interp.load_dictionary(PATH) gives, not {dictionary!r:.80}.")
    c = dictionary.config
    owners = list(dict.fromkeys(owner for _, owner in map(of_model, c.reads) if owner))
    if owners:
        raise WrongUse(
            f"this dictionary is of {' and '.join(owners)}. What it is in one of them, given what the others hold: "
            f"dictionary.given({owners[0]!r}, interp.Together({{name: model, ...}}).record(x, dictionary.config.reads))."
        )
    widths = [
        *zip(c.reads, c.widths_in or (c.d_in,), strict=True),
        *zip(c.writes, c.widths_out or (c.d_out,), strict=True),
    ]
    names = {site: _checked(model, site, width) for site, width in widths}
    writes = [names[site] for site in c.writes]
    taken = [host(name) for other in model.attached for name in other.errors if host(name) in writes]
    if taken:
        raise WrongUse(f"a dictionary that writes {taken[0]!r} is attached already: model.detach() takes it away.")
    depth = _depth(model, list(dict.fromkeys(names.values())))
    parts = tuple(_part(layer, names, depth) for layer in dictionary.layers())
    last = max(parts[0].reads, key=depth.__getitem__)
    late = {site: last for site in parts[0].writes if depth[site] < depth[last]}
    if late and not error:
        raise WrongUse(f"error=False cannot replace {next(iter(late))!r}: it is passed before {last!r} is read.")
    table = model._sites(writes)[1]
    sites = {p.name: _site(table, p.name, ("batch", "pos", p.dictionary.config.latents)) for p in parts}
    sites |= {f"{site}.error": _site(table, f"{site}.error", table[site].shape) for site in writes}
    return Attached(model, dictionary, error, parts, late, sites)


def _checked(model: Model, name: str, width: int) -> str:
    """The canonical name of a site a dictionary can be attached to."""
    names, table = model._sites(name)
    site = table[names[0]]
    refuse(names, READ_ONLY | {"state": "its mixer runs token by token"}, "takes no dictionary")
    shape = site.shape
    if shape and (shape[:2] != ("batch", "pos") or not all(isinstance(size, int) for size in shape[2:])):
        raise WrongUse(f"{names[0]!r} takes no dictionary: its shape is [{', '.join(map(str, shape))}].")
    if shape and model.width(names[0]) != width:
        raise WrongUse(
            f"this dictionary is for {width} numbers at {name!r}, where {model.id} has {model.width(names[0])}: "
            "it belongs to another model, or another site."
        )
    return names[0]


def _depth(model: Model, sites: list[str]) -> dict[str, int]:
    """Where each site stands in a pass; as they are given if one is a `module:` site, whose place is known to nobody."""
    if any(site.startswith(MODULE) for site in sites):
        return {site: i for i, site in enumerate(sites)}
    order = list(model.sites())
    return {site: order.index(head_of(site)[0]) for site in sites}


def _part(dictionary: Any, names: Mapping[str, str], depth: Mapping[str, int]) -> Part:
    """Its latents stand at the first site that it writes once all is read."""
    c = dictionary.config
    reads, writes = (tuple(names[site] for site in sites) for sites in (c.reads, c.writes))
    last = max(depth[site] for site in reads)
    after = [site for site in writes if depth[site] >= last]
    if not after:
        raise WrongUse(
            f"{', '.join(writes)} cannot be written by what {', '.join(reads)} hold: they are passed before."
        )
    ends = list(accumulate(c.widths_out or (c.d_out,)))
    columns = (slice(a, b) for a, b in zip([0, *ends], ends, strict=False))
    return Part(
        dictionary, f"{min(after, key=depth.__getitem__)}.latents", reads, dict(zip(writes, columns, strict=True))
    )


def _site(table: Mapping[str, Site], name: str, shape: tuple[int | str, ...]) -> Site:
    return Site("dictionary", table[host(name)].place, shape)
