"""Parts of a site as sites of their own: one head, SITE.{h} = SITE[:, :, h], and directions that were given a name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp.errors import WrongUse, nearest
from interp.model.binding import Site
from interp.model.edits import Edit, in_range
from interp.model.positions import Positions
from interp.sites import head_of

if TYPE_CHECKING:
    from interp.model.session import Session


def head_site(name: str, whole: Site) -> Site:
    """The site of one head of `whole`. Raises `WrongUse` if it has no such head."""
    site, head = head_of(name)
    if len(whole.shape) != 4 or not isinstance(whole.shape[2], int):
        raise WrongUse(f"{name!r} is no head: {site!r} has the shape [{', '.join(map(str, whole.shape))}].")
    in_range(whole.shape[2], [head], "head", name)
    return Site(
        "part", whole.place, (*whole.shape[:2], whole.shape[3]), whole=site, index=(slice(None), slice(None), head)
    )


def named_sites(parts: Mapping[str, tuple[str, Sequence[int]]], known: Mapping[str, Site]) -> dict[str, Site]:
    """Sites [batch, pos, direction] of named directions. Raises `WrongUse` for an unknown site, a direction it has not, a name in use."""
    return {name: _named(name, site, directions, known) for name, (site, directions) in parts.items()}


def _named(name: str, site: str, directions: Sequence[int], known: Mapping[str, Site]) -> Site:
    if name in known:
        raise WrongUse(f"{name!r} is a site already: give its part another name.")
    if site not in known:
        raise WrongUse(f"{name!r} cannot be a part of {site!r}, which is no site of this model.{nearest(site, known)}")
    whole = known[site]
    if len(whole.shape) != 3 or not isinstance(whole.shape[2], int):
        raise WrongUse(
            f"{site!r} has the shape [{', '.join(map(str, whole.shape))}]: named are directions of [batch, pos, d]."
        )
    in_range(whole.shape[2], list(directions), "direction", site)
    return Site("part", whole.place, (*whole.shape[:2], len(directions)), whole=site, index=(..., list(directions)))


@dataclass(frozen=True, eq=False)
class Part(Edit):
    """x[where] ← what edits of the part make of it; who reads the part is shown it."""

    name: str
    where: Any
    session: Session

    def apply(self, x: Tensor, positions: Positions) -> tuple[Tensor, bool]:
        """x itself, if no edit changes the part."""
        old = x[self.where]
        new = self.session.change(self.name, old)
        self.session.take(self.name, new)
        if new is old:
            return x, False
        x = x.clone()
        x[self.where] = new
        return x, True


def join(session: Session) -> None:
    """Let sites pass on those of their parts that are edited, read or looked at."""
    for name in dict.fromkeys([*session.edits, *session.reads, *session.looks]):
        site = session.sites[name]
        if site.kind != "part":
            continue
        one = Part(site.whole, name, site.index, session)
        if name in session.edits:
            session.edits.setdefault(site.whole, []).append(one)
        else:
            session.looks.setdefault(site.whole, []).append(lambda _, x, one=one: one.apply(x, None))  # type: ignore[misc]
