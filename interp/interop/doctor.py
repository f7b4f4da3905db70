"""Why a dictionary's numbers differ on a model: each usual cause is put right alone, and measured.

| cause | what is read otherwise |
| bias | the encoder reads x for x − b_dec, or x − 2 b_dec: W_encᵀ b_dec is added to b_enc, or taken off |
| norm factor | rows times s: ŷ(s x) / s, with the s that fits best; usual ones are named (√d / mean norm, …) |
| centred | rows without their mean over features: a model whose writes were centred |
| folded | rows of the model with its norms folded (`interp.folded`) |
| start token | windows without one, or with one; or counted, where a recording leaves it out |
| dtype | numbers of the model and the dictionary in another dtype |
| site | the neighbours: before and after a sublayer, its norm, its output and its write; one layer up or down |

FVU and L0 are those of `evaluate`, on the rows of each reading. Loss recovered is (CE_zero − CE_replaced) / (CE_zero − CE_clean)
of the next token, ŷ of the clean run written in its place. One cause at a time: where two meet, the larger one is named
first, and what is left after it shows the other.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.evaluate import evaluate
from interp.dictionaries.sources import RowsSource
from interp.errors import Failed, WrongUse
from interp.model import Model, Patch, Tokens, Zero, folded
from interp.store.recording import batches, padded

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    Groups = list[tuple[Tokens, Bool[Tensor, "batch pos"]]]

FITS = 0.9  # a reading explains the numbers if it leaves less than this share of the FVU
CLOSE = 1.02  # readings this near to the best are as good: the first of them is named
SCANNED = 512  # rows that a factor is looked for on
SIBLINGS = (
    ("resid_pre", "resid_mid", "resid_post"),
    ("attn.in", "resid_pre"),
    ("mlp.in", "resid_mid"),
    ("attn.out", "attn.write"),
    ("mlp.out", "mlp.write"),
)


@dataclass(frozen=True)
class Reading:
    """A dictionary read in one way, and what it is then worth. None where a measure does not exist."""

    cause: str
    said: str
    fvu: float | None
    l0: float | None
    loss_recovered: float | None
    telling: bool = True  # whether a lower FVU would explain the numbers


@dataclass(frozen=True)
class Diagnosis:
    """`readings`, the least FVU first (among equals the lesser change); `fits`: the one that explains the numbers, or as it is read."""

    readings: list[Reading]
    fits: Reading

    @property
    def now(self) -> Reading:
        """The dictionary as it is read now."""
        return next(r for r in self.readings if r.cause == "none")


@dataclass(frozen=True, eq=False)
class Seat:
    """Where rows come from: a model over some text, the sites read and written."""

    model: Model
    groups: Groups
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    centred: bool = False  # rows without their mean over features

    @cached_property
    def rows(self) -> list[tuple[Float[Tensor, "batch pos d_in"], Float[Tensor, "batch pos d_out"]]]:
        """What is read and what should be written, group by group."""
        told = []
        for tokens, _ in self.groups:
            cache = self.model.record(tokens, list(dict.fromkeys(self.reads + self.writes)))
            pair = [torch.cat([cache[s].flatten(2) for s in sites], -1) for sites in (self.reads, self.writes)]
            x, y = (r - r.mean(-1, keepdim=True) if self.centred else r for r in pair)
            told.append((x, y))
        return told

    @cached_property
    def kept(self) -> tuple[Float[Tensor, "rows d_in"], Float[Tensor, "rows d_out"]]:
        """The rows that count."""
        pairs = [(x[keep], y[keep]) for (x, y), (_, keep) in zip(self.rows, self.groups, strict=True)]
        return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """Cross-entropy of the next token: clean, and with the sites written zeroed."""
        clean = [self._loss(i, []) for i in range(len(self.groups))]
        zero = [self._loss(i, [Zero(s, pos=keep) for s in self.writes]) for i, (_, keep) in enumerate(self.groups)]
        return _mean(clean), _mean(zero)

    def recovered(self, D: Dictionary) -> float | None:
        """(CE_zero − CE_replaced) / (CE_zero − CE_clean)."""
        clean, zero = self.bounds
        replaced = _mean([self._loss(i, self._written(D, i)) for i in range(len(self.groups))])
        return _known((zero - replaced) / (zero - clean)) if zero != clean else None

    def _written(self, D: Dictionary, i: int) -> list[Patch]:
        keep, made = self.groups[i][1], D(self.rows[i][0].to(D.b_dec.device))
        parts = made.split(D.config.widths_out or (D.config.d_out,), dim=-1)
        known = self.model.sites()
        return [
            Patch(
                site,
                part.reshape(*part.shape[:2], *known.get(site, part.shape)[2:]).to(keep.device, self.model.dtype),
                pos=keep,
            )
            for site, part in zip(self.writes, parts, strict=True)
        ]

    def _loss(self, i: int, edits: Sequence[Patch | Zero]) -> tuple[float, int]:
        """(Sum, number) of the losses at tokens that count."""
        tokens, keep = self.groups[i]
        if edits:
            with self.model.edit(*edits):
                logits = self.model(tokens).logits
        else:
            logits = self.model(tokens).logits
        counted = keep[:, :-1] & tokens.mask[:, 1:]
        surprise = torch.nn.functional.cross_entropy(
            logits[:, :-1][counted].double(), tokens.ids[:, 1:][counted], reduction="sum"
        )
        return surprise.item(), int(counted.sum())


class Way(NamedTuple):
    """A reading before it is measured."""

    cause: str
    said: str
    dictionary: Dictionary
    seat: Seat
    telling: bool = True


@torch.no_grad()
def examine(
    D: Dictionary, model: Model, texts: Iterable[str], tokens: int = 2000, batch: int = 4, context: int = 256
) -> Diagnosis:
    """Measure a dictionary on a model under each cause, over about `tokens` tokens of `texts`; see the module.

    Raises `WrongUse` if there is no text, or the model has no site of the dictionary.
    """
    groups: Groups = []
    for _, group in batches(model, texts, context, batch):
        groups.append(padded(model, group))
        if sum(int(keep.sum()) for _, keep in groups) >= tokens:
            break
    if not groups:
        raise WrongUse("There is no text to examine the dictionary on.")
    seat = Seat(model, groups, D.config.reads, D.config.writes)
    readings = [_measured(way) for way in _ways(D, seat)]
    return Diagnosis(sorted(readings, key=lambda r: round(_by_fvu(r), 6)), _fitting(readings))


def _measured(way: Way) -> Reading:
    x, y = way.seat.kept
    told = evaluate(way.dictionary, RowsSource(x.cpu(), y.cpu()))
    recovered = way.seat.recovered(way.dictionary)
    return Reading(way.cause, way.said, _known(told.fvu), _known(told.l0), recovered, way.telling)


def _fitting(readings: list[Reading]) -> Reading:
    now = readings[0]
    able = [r for r in readings if r.telling and r.fvu is not None]
    best = min(able, key=_by_fvu, default=now)
    if best.fvu is None or (now.fvu is not None and best.fvu >= FITS * now.fvu):
        return now
    return next(r for r in able if _by_fvu(r) <= CLOSE * best.fvu)


def _by_fvu(r: Reading) -> float:
    return math.inf if r.fvu is None else r.fvu


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean(parts: list[tuple[float, int]]) -> float:
    return sum(s for s, _ in parts) / max(1, sum(n for _, n in parts))


# ---------------------------------------------------------------- causes


def _ways(D: Dictionary, seat: Seat) -> Iterator[Way]:
    """How it is read now, then every other way; those that change least come first."""
    yield Way("none", "as it is read now", D, seat)
    yield from _biases(D, seat)
    yield from _factor(D, seat)
    yield from _normed(D, seat)
    yield from _start(D, seat)
    yield from _dtype(D, seat)
    yield from _sites(D, seat)


def _biases(D: Dictionary, seat: Seat) -> Iterator[Way]:
    """Where the encoder and b_dec meet."""
    if D.config.d_in != D.config.d_out or "W_enc" not in D.tensors():
        return
    shift = D.b_dec.double() @ D.W_enc.double()
    for sign, said in (
        (1, "b_dec is not subtracted before the encoder"),
        (-1, "b_dec is subtracted before the encoder"),
    ):
        new = D.plain()
        new.b_enc.add_(sign * shift.to(new.b_enc))
        yield Way("bias", f"{said} (b_enc {'+' if sign > 0 else '−'} W_encᵀ b_dec)", new, seat)


def _factor(D: Dictionary, seat: Seat) -> Iterator[Way]:
    """ŷ(s x) / s with the s that leaves the least error, by two scans of powers."""
    x, y = (r[:SCANNED].to(D.b_dec) for r in seat.kept)
    s, step = 1.0, 10**0.25
    for steps in (8, 6):
        s = min((s * step**i for i in range(-steps, steps + 1)), key=lambda s: _error(D, x, y, s))
        step **= 1 / steps
    whole = seat.kept[0].double().norm(dim=1)
    usual = {"√d / mean norm": math.sqrt(D.config.d_in) / float(whole.mean())}
    usual["1 / root mean square norm"] = 1 / float(whole.square().mean().sqrt())
    usual |= {f"{name}, the wrong way": 1 / value for name, value in usual.items()}
    name = min(usual, key=lambda n: abs(math.log(usual[n] / s)))
    near = abs(math.log(usual[name] / s)) < 0.05
    s = usual[name] if near else s
    telling = near or not 0.5 < s < 2  # shrunken latents are mended a little by any small factor
    yield Way("norm factor", f"rows times {s:.4g}" + f" ({name})" * near, D.rescaled(s, s), seat, telling)


def _error(D: Dictionary, x: Tensor, y: Tensor, s: float) -> float:
    error = float((y - D(s * x) / s).double().square().sum())
    return error if math.isfinite(error) else math.inf


def _normed(D: Dictionary, seat: Seat) -> Iterator[Way]:
    """Weights of the model that were processed before the dictionary was trained."""
    norms = [site.norm for site in seat.model.binding.sites.values() if site.norm is not None]
    if norms and all(norm.centred for norm in norms) and not seat.model.wiring.post_norm:
        yield Way("centred", "rows without their mean over features", D, replace(seat, centred=True))
    try:
        other = folded(seat.model)
    except (WrongUse, Failed):  # nothing to fold in this model
        return
    yield Way("folded", "the model with its norms folded", D, replace(seat, model=other))


def _start(D: Dictionary, seat: Seat) -> Iterator[Way]:
    """With and without a token before the text."""
    if any(bool((tokens.mask & ~keep).any()) for tokens, keep in seat.groups):
        without: Groups = [(Tokens(t.ids[:, 1:], t.mask[:, 1:]), keep[:, 1:]) for t, keep in seat.groups]
        yield Way("start token", "windows without a start token", D, replace(seat, groups=without))
        counted: Groups = [(t, t.mask) for t, _ in seat.groups]
        yield Way("start token", "the start token counted", D, replace(seat, groups=counted), telling=False)
        return
    bos = getattr(seat.model.tokenizer, "bos_token_id", None)
    if bos is not None:
        yield Way("start token", "a start token before each window", D, replace(seat, groups=_begun(seat.groups, bos)))


def _begun(groups: Groups, bos: int) -> Groups:
    def put(t: Tensor, value: int | bool) -> Tensor:
        return torch.cat([torch.full_like(t[:, :1], value), t], 1)

    return [(Tokens(put(t.ids, bos), put(t.mask, True)), put(keep, False)) for t, keep in groups]


def _dtype(D: Dictionary, seat: Seat) -> Iterator[Way]:
    """In bfloat16, or in float32 if something is not in it now."""
    now = {D.b_dec.dtype, seat.model.dtype}
    wanted = torch.bfloat16 if now <= {torch.float32, torch.float64} else torch.float32
    module = copy.deepcopy(seat.model.module).to(wanted)
    other = Model(module, seat.model.tokenizer, id=seat.model.id)
    said = f"model and dictionary in {str(wanted).removeprefix('torch.')}"
    yield Way("dtype", said, D.plain().to(wanted), replace(seat, model=other))


def _sites(D: Dictionary, seat: Seat) -> Iterator[Way]:
    """The neighbours of what is read, of what is written, or of both."""
    for reads, writes in dict.fromkeys(_moves(seat, D.config.autoencoder)):
        said = ", ".join(reads) if reads == writes else f"{', '.join(reads)} → {', '.join(writes)}"
        yield Way("site", said, D, replace(seat, reads=reads, writes=writes))


def _moves(seat: Seat, autoencoder: bool) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    known = seat.model.sites()

    def there(sites: tuple[str, ...], like: tuple[str, ...]) -> bool:
        return all(s in known and known[s][2:] == known[old][2:] for s, old in zip(sites, like, strict=True))

    for by in (-1, 1):
        moved = tuple(_layer(s, by) for s in seat.reads), tuple(_layer(s, by) for s in seat.writes)
        if there(moved[0], seat.reads) and there(moved[1], seat.writes):
            yield moved
    if len(seat.reads) == 1 and autoencoder:
        yield from (((s,), (s,)) for s in _siblings(seat.reads[0]) if there((s,), seat.reads))
    elif len(seat.reads) == len(seat.writes) == 1:
        yield from (((s,), seat.writes) for s in _siblings(seat.reads[0]) if there((s,), seat.reads))
        yield from ((seat.reads, (s,)) for s in _siblings(seat.writes[0]) if there((s,), seat.writes))


def _layer(site: str, by: int) -> str:
    return re.sub(r"blocks\.(\d+)\.", lambda m: f"blocks.{int(m[1]) + by}.", site, count=1)


def _siblings(site: str) -> list[str]:
    """Other names at about the same place; a block's resid_pre is the resid_post before it."""
    match = re.match(r"(.*blocks\.\d+\.)(.+)", site)
    if match is None:
        return []
    near = [match[1] + name for group in SIBLINGS if match[2] in group for name in group if name != match[2]]
    return list(dict.fromkeys(near))
