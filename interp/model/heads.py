"""One head of a site with heads, as a site of its own: SITE.{h} is SITE[:, :, h] [batch, pos, d]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from interp.errors import WrongUse
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
    return Site("head", whole.place, (*whole.shape[:2], whole.shape[3]))


@dataclass(frozen=True, eq=False)
class OneHead(Edit):
    """x[:, :, h] ← what edits of SITE.{h} make of it; who reads SITE.{h} is shown it."""

    name: str
    session: Session

    def apply(self, x: Tensor, positions: Positions) -> tuple[Tensor, bool]:
        """x itself, if no edit changes the head."""
        head = head_of(self.name)[1]
        old = x[:, :, head]
        new = self.session.change(self.name, old)
        self.session.take(self.name, new)
        if new is old:
            return x, False
        x = x.clone()
        x[:, :, head] = new
        return x, True


def join(session: Session) -> None:
    """Let the sites with heads pass on those of their heads that are edited, read or looked at."""
    for name in dict.fromkeys([*session.edits, *session.reads, *session.looks]):
        if session.sites[name].kind != "head":
            continue
        whole = head_of(name)[0]
        one = OneHead(whole, name, session)
        if name in session.edits:
            session.edits.setdefault(whole, []).append(one)
        else:
            session.looks.setdefault(whole, []).append(lambda site, x, one=one: one.apply(x, None))  # type: ignore[misc]
