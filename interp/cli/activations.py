"""Rows for training: which sites a dictionary reads and writes, and the activations of a model over text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from interp.errors import WrongUse

if TYPE_CHECKING:
    from interp.dictionaries import RowsSource, StoreSource
    from interp.model import Model
    from interp.store import Store

ONE_SITE = ("sae", "transcoder")  # shapes that read one site
Names = Callable[[str], list[str]]  # canonical names of the sites that a name or glob means


def names_in(store: Store) -> Names:
    """The sites of a store by name or glob."""
    from interp.sites import expand

    return lambda pattern: expand(pattern, store.sites, {}, post_norm=False)


def ends(names: Names, shape: str, site: str, target: str | None = None) -> tuple[list[str], list[str]]:
    """The sites that a dictionary reads and writes: a transcoder of blocks.3.mlp reads its .in and writes its .write.

    Raises `WrongUse` if it must read one site and several are meant, or the other way round.
    """
    if shape in ("sae", "crosscoder"):
        return 2 * (_counted(names(site), shape, site),)
    reads = _counted(names(_read(site) if target is None else site), shape, site)
    writes = [name.removesuffix(".in") + ".write" for name in reads]
    return reads, writes if target is None else _counted(names(target), shape, target)


def _read(site: str) -> str:
    return site if site.endswith(".in") else f"{site}.in"


def _counted(found: list[str], shape: str, site: str) -> list[str]:
    if shape in ONE_SITE and len(found) > 1:
        raise WrongUse(
            f"{site} means {len(found)} sites ({found[0]}, {found[1]}, …); a dictionary of this shape reads one. "
            "`interp train crosscoder` and `clt` read several."
        )
    if shape not in ONE_SITE and len(found) < 2:
        last = site.split(".", 2)[-1]
        raise WrongUse(f"{site} is one site; a {shape} reads several, such as blocks.*.{last}.")
    return found


def each(names: Names, shape: str, site: str) -> dict[str, tuple[list[str], list[str]]]:
    """The dictionaries that a site of a sweep means, by a name for folders: one for each site of a glob, or one for all."""
    if shape not in ONE_SITE:
        return {site.replace("*", "all"): ends(names, shape, site)}
    found = names(site if shape == "sae" else _read(site))
    return {name if shape == "sae" else name.removesuffix(".in"): ends(names, shape, name) for name in found}


@dataclass(frozen=True)
class Activations:
    """A model's activations over text: a row is a token."""

    model: Model
    text: str | None
    dataset: str | None
    tokens: int | None
    context: int

    @classmethod
    def of(
        cls, model: str, device: str, text: str | None, dataset: str | None, tokens: int | None, context: int
    ) -> Activations:
        """Those of the model of that name."""
        from interp.model import load

        return cls(load(model, device=device), text, dataset, tokens, context)

    def texts(self) -> Iterator[str]:
        """The documents."""
        from interp.texts import read_texts

        return read_texts(self.text, self.dataset)

    def recorded(self, reads: Sequence[str], writes: Sequence[str], out: Path, seed: int, resume: bool) -> StoreSource:
        """Their store, OUT/activations: recorded now, or read if a run that is resumed had finished it."""
        from interp.dictionaries import StoreSource
        from interp.files import command_line
        from interp.store.recording import record_text

        meta = {"command": command_line(out), "seed": seed, "text": self.text, "dataset": self.dataset}
        store = record_text(
            self.model, _each_once(reads, writes), self.texts(), out / "activations",
            tokens=self.tokens, seed=seed, resume=resume, context=self.context, meta=meta,
        )  # fmt: skip
        return StoreSource(store, reads, writes)

    def planned(self, reads: Sequence[str], writes: Sequence[str]) -> tuple[RowsSource, dict[str, float]]:
        """Noise of the right widths to time training on, and what recording will take."""
        import torch

        from interp.dictionaries import RowsSource
        from interp.store.recording import plan

        cost = plan(
            self.model, _each_once(reads, writes), self.texts(),
            tokens=self.tokens, dtype="bfloat16", batch=16, context=self.context,
        )  # fmt: skip
        w_in, w_out = ({site: self.model.width(site) for site in sites} for sites in (reads, writes))
        x, y = (torch.randn(4096, sum(widths.values())) for widths in (w_in, w_out))
        # the rows of the plan are those recorded: what the example holds is taken off again
        before = {"rows": cost.rows - len(x), "bytes": cost.bytes, "minutes": cost.minutes}
        return RowsSource(x, None if reads == writes else y, w_in, w_out), before


def _each_once(*sites: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(site for part in sites for site in part))
