"""Lenses that map a state before the head reads it, by one affine map a row; they are trained, saved and loaded.

logits = U(norm_f(h + W h + b)), W and b zero where nothing was trained: then the lens is the logit lens, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from interp.errors import Failed, WrongUse, check_keys
from interp.files import load_tensors, save_tensors, write_json
from interp.lenses.lens import Lens
from interp.lenses.readout import Readout
from interp.model.model import Model
from interp.sites import head_of

if TYPE_CHECKING:
    from jaxtyping import Float

FORMAT = 1


class AffineLens(Lens):
    """A map h + W h + b for each of `rows`, by default the stream before the first block and after each but the last.

    Maps are kept and applied in float32 (float64 for such a model). Raises `WrongUse` for a site that takes no map.
    """

    kind = "affine"

    def __init__(self, model: Model, sites: Sequence[str] | None = None) -> None:
        super().__init__(model)
        self.sites = self.rows(sites)
        d, wide = model.width(self.head.last), torch.promote_types(self.head.dtype, torch.float32)
        inner = [self.width(row) for row in self.sites]
        self.W = [torch.zeros(d, n, dtype=wide, device=model.device) for n in inner]
        self.b = [torch.zeros(d, dtype=wide, device=model.device) for _ in inner]

    def rows(self, sites: Sequence[str] | None) -> list[str]:
        """The rows that have a map of their own: all that are asked for, but the last block's output."""
        found = [s for s in super().readable(sites) if s != self.head.last]
        if any(head_of(s)[1] >= 0 for s in found):
            raise WrongUse(f"the {self.kind} lens reads no single heads: the attention lens does (--kind attention).")
        return found

    @property
    def end(self) -> str:
        """The row that is the model itself, and has no map."""
        return self.head.last

    def width(self, row: str) -> int:
        """How many numbers the row's map reads."""
        return self.model.width(self.head.last)

    def split(self, row: str, x: Float[Tensor, "n m"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n width"]]:
        """(h, what the map reads), both h itself unless a kind of lens says otherwise: h + W u + b."""
        return x, x

    def mapped(self, row: str, x: Float[Tensor, "n m"]) -> Float[Tensor, "n d"]:
        """h + W h + b; the last block's output stands as it is."""
        return x if row == self.end else self.translated(self.sites.index(row), x)

    def translated(self, layer: int, x: Float[Tensor, "n m"]) -> Float[Tensor, "n d"]:
        """h + W h + b by the `layer`-th map, whatever layer h is of."""
        h, u = self.split(self.sites[layer], x.to(self.b[layer]))
        return h + u @ self.W[layer].T + self.b[layer]

    def readable(self, sites: str | Sequence[str] | None = None) -> list[str]:
        """As any lens, and there must be a map."""
        if sites is None:
            return [*self.sites, self.end]
        return self.having(super().readable(sites))

    def having(self, rows: list[str]) -> list[str]:
        """The rows, if there is a map for each. Raises `WrongUse` otherwise."""
        for row in rows:
            if row not in self.sites and row != self.end:
                known = ", ".join(self.sites[:6]) + (", …" if len(self.sites) > 6 else "")
                raise WrongUse(f"this {self.kind} lens cannot read {row!r}: it has maps for {known}.")
        return rows

    # ------------------------------------------------------------ on disk

    def save(self, folder: str | Path) -> None:
        """config.json and weights.safetensors, with the hash of the unembedding that the lens belongs to."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{n}.{row}": t for n, ts in (("W", self.W), ("b", self.b)) for row, t in zip(self.sites, ts, strict=True)
        }
        save_tensors(folder / "weights.safetensors", tensors)
        about = {"format": FORMAT, "kind": self.kind, "model": self.model.id, "sites": self.sites}
        write_json(folder / "config.json", about | {"unembedding": fingerprint(self.head)})

    @classmethod
    def load(cls, folder: str | Path, model: Model) -> Self:
        """The lens that `save` wrote. Raises `WrongUse` for a lens of another model, `Failed` for files that are damaged."""
        folder = Path(folder)
        config, tensors = _read(folder, cls.kind)
        if config["unembedding"] != fingerprint(Readout(model)):
            raise WrongUse(
                f"the lens in {folder} was trained for another model ({config['model']}): the unembedding of {model.id} has "
                "another hash, so what the lens says through it means nothing. Train one: interp train lens."
            )
        lens = cls(model, config["sites"])
        try:
            lens.W = [tensors[f"W.{s}"].to(w) for s, w in zip(lens.sites, lens.W, strict=True)]
            lens.b = [tensors[f"b.{s}"].to(b) for s, b in zip(lens.sites, lens.b, strict=True)]
        except KeyError as error:
            raise Failed(f"the lens in {folder} is not whole: its weights have no {error}.") from error
        return lens


def _read(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(Config, tensors) of a saved lens of a kind."""
    if not (folder / "config.json").is_file():
        raise WrongUse(
            f"{folder} holds no lens: there is no config.json. `interp train lens MODEL --kind {kind} -o {folder}` makes one."
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors, _ = load_tensors(folder / "weights.safetensors")
    except (ValueError, OSError) as error:
        raise Failed(f"the lens in {folder} cannot be read: {error}") from error
    check_keys(config, ("format", "kind", "model", "sites", "unembedding"), f"{folder}/config.json")
    if config.get("format") != FORMAT or config.get("kind") != kind:
        raise WrongUse(f"{folder} holds no {kind} lens of format {FORMAT}: its config.json says {config}.")
    return config, tensors


def fingerprint(head: Readout) -> str:
    """SHA-256 of the unembedding in float32, or of all parameters outside the blocks where no matrix is all of it."""
    module, digest = head.model.module, hashlib.sha256()
    inside = tuple(b.path + "." for s in head.model.wiring.stacks for b in s.blocks)
    parts: list[Tensor] = [p for n, p in module.named_parameters() if not n.startswith(inside)]
    if head.layout is not None:
        parts = [head.model.weights["W_U"]]
    for part in parts:
        digest.update(part.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
