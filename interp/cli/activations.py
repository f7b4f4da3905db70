"""Rows for training: which sites a dictionary reads and writes, and the activations of a model over text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import WrongUse
from interp.sites import OF

if TYPE_CHECKING:
    from interp.dictionaries import RowsSource, TrainConfig
    from interp.dictionaries.endtoend import Windows
    from interp.model import Model, Together
    from interp.store import Store, Stream
    from interp.store.recording import Data

ONE_SITE = ("sae", "transcoder")  # shapes that read one site
SHAPES = (*ONE_SITE, "crosscoder", "clt")
Ends = tuple[list[str], list[str]]  # the sites that are read, and those that are written
Names = Callable[[str], list[str]]  # canonical names of the sites that a name or glob means


def check_shape(shape: str, config: TrainConfig, target: object = None) -> None:
    """Raise `WrongUse` for a config or a target that this shape of dictionary cannot have."""
    from interp.dictionaries.kinds import TIED

    if shape in ("sae", "crosscoder") and (target or config.skip):
        raise WrongUse(
            "An autoencoder's target is its input: --targets, --target and --skip are for `interp train transcoder`."
        )
    if shape == "clt" and (target or config.skip):
        raise WrongUse("A cross-layer transcoder writes to the .write beside each .in; it takes no target and no skip.")
    if shape not in ONE_SITE and config.end_to_end:
        raise WrongUse(f"--end-to-end is for sae and transcoder: a {shape} writes several sites.")
    if shape != "sae" and config.kind.activation in TIED:
        raise WrongUse(f"{config.kind.name} takes one site: {TIED[config.kind.activation]}.")


def names_in(store: Store) -> Names:
    """The sites of a store by name or glob."""
    from interp.sites import expand

    return lambda pattern: expand(pattern, store.sites, {}, post_norm=False)


def ends(names: Names, shape: str, site: str, target: str | None = None) -> Ends:
    """The sites that a dictionary reads and writes: a transcoder of blocks.3.mlp reads its .in and writes its .write.

    Raises `WrongUse` if it must read one site and several are meant, or the other way round.
    """
    if shape == "clt" and any(OF in name for name in names(_read(site))):
        raise WrongUse(
            "Several models are for `interp train crosscoder`: layers of one write to layers of the same model."
        )
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


def each(names: Names, shape: str, site: str) -> dict[str, Ends]:
    """The dictionaries that a site of a sweep means, by a name for folders: one for each site of a glob, or one for all."""
    if shape not in ONE_SITE:
        return {site.replace("*", "all"): ends(names, shape, site)}
    found = names(site if shape == "sae" else _read(site))
    return {name if shape == "sae" else name.removesuffix(".in"): ends(names, shape, name) for name in found}


@dataclass(frozen=True)
class Activations:
    """A model's activations over text, a row a token, or over ready inputs."""

    model: Model | Together
    text: str | None
    dataset: str | None
    tokens: int | None
    context: int
    inputs: Path | None = None

    @classmethod
    def of(cls, model: str, device: str, *data: Any) -> Activations:
        """Those of the model of that name, or models, "NAME + NAME"; `data` as the fields have it."""
        from interp import ranks
        from interp.model.together import load_together

        ranks.start()  # first: "cuda" then means the GPU of this process
        return cls(load_together(model, device), *data)

    def texts(self) -> Data:
        """The documents, or the inputs."""
        from interp.store.recording import read_data

        return read_data(self.model, self.text, self.dataset, self.inputs)

    def rows(self, sites: list[str], stream: bool, out: Path, seed: int, resume: bool) -> Store | Stream:
        """Streamed, or recorded. Raises `WrongUse` before that if a training run is in the way in `out`."""
        from interp.dictionaries.run import check_free

        check_free(out, resume)
        return self.streamed(sites) if stream else self.recorded(sites, out, seed, resume)

    def streamed(self, sites: Iterable[str]) -> Stream:
        """They are computed while they are trained on, and nothing is written."""
        from interp.store import Stream

        if self.inputs is not None:
            raise WrongUse("--stream reads text: rows of ready --inputs are recorded first.")
        every = list(dict.fromkeys(sites))
        return Stream(self.model, every, self.texts, tokens=self.tokens, context=self.context, meta=self._text)

    def windows(self, reads: list[str], writes: list[str], stream: bool) -> Windows:
        """The text itself, for training end to end."""
        from interp.dictionaries.endtoend import Windows
        from interp.model import Model

        if stream or self.inputs is not None or not isinstance(self.model, Model):
            raise WrongUse("--end-to-end runs one MODEL over text in every step: leave --stream and --inputs out.")
        texts: Any = self.texts()
        return Windows(self.model, reads, writes, texts, self.tokens, self.context, self._text)

    @property
    def _text(self) -> dict[str, Any]:
        return {"text": self.text, "dataset": self.dataset}

    def recorded(self, sites: Iterable[str], out: Path, seed: int, resume: bool) -> Store:
        """Their store, OUT/activations: recorded now, or opened if a run that is resumed had finished it."""
        from interp.files import command_line
        from interp.store.recording import record_text

        meta = {"command": command_line(out), "seed": seed, **self._text}
        return record_text(
            self.model, list(dict.fromkeys(sites)), self.texts(), out / "activations",
            tokens=self.tokens, seed=seed, resume=resume, context=self.context, meta=meta,
        )  # fmt: skip

    def planned(self, sites: Iterable[str]) -> dict[str, float]:
        """What recording will take."""
        from interp.store.recording import plan

        cost = plan(
            self.model, list(dict.fromkeys(sites)), self.texts(),
            tokens=self.tokens, dtype="bfloat16", batch=16, context=self.context,
        )  # fmt: skip
        return {"rows": cost.rows, "bytes": cost.bytes, "minutes": cost.minutes}

    def like(self, reads: Sequence[str], writes: Sequence[str]) -> RowsSource:
        """Noise of the right widths to time training on."""
        import torch

        from interp.dictionaries import RowsSource

        w_in, w_out = ({site: self.model.width(site) for site in sites} for sites in (reads, writes))
        x, y = (torch.randn(4096, sum(widths.values())) for widths in (w_in, w_out))
        return RowsSource(x, None if reads == writes else y, w_in, w_out)
