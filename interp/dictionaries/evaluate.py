"""How faithful a dictionary is: on rows, and inside the model it was trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.dictionaries.sources import RowsSource, Source
from interp.dictionaries.sparse import Code
from interp.errors import Failed, WrongUse
from interp.sites import of_model

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Float

    from interp.dictionaries.dictionary import Dictionary
    from interp.model import Edit, Model, Together, Tokens

BATCH = 4096
CAUSAL = 1e-5  # what the logits of the first token may move by, relative to them, when the last one changes
Data = Iterable[str] | Mapping[str, Tensor]  # documents, or ready inputs


@dataclass(frozen=True)
class Reconstruction:
    """Rows y against ŷ = w + b, w = Σ_i f_i d_i, e = y − ŷ. NaN where a measure does not exist (a ratio to zero)."""

    rows: int
    fvu: float  # Σ‖y − ŷ‖² / Σ‖y − ȳ‖², ȳ the exact mean of these rows
    l0: float  # latents that fire, a row
    dead: int  # latents that fire on none of these rows
    cosine: float  # mean cos(y, ŷ), over rows that are not zero; 0 where ŷ is
    bias: float  # E‖ŷ‖² / E⟨y, ŷ⟩ (Rajamanoharan et al. 2024): 1 is unbiased, below it the reconstruction is too short
    l2_ratio: float  # mean ‖ŷ‖ / ‖y‖, over rows that are not zero
    shrinkage: (
        float  # 1 − E‖w‖² / E⟨w + e, w⟩: share by which what latents write is too short; b and the skip set aside
    )
    density: Tensor  # share of the rows on which each latent fires [m]

    @property
    def explained_variance(self) -> float:
        """1 − FVU: scikit-learn's r2_score with variance weights, not its explained_variance_score, which forgives a constant error."""
        return 1 - self.fvu

    @property
    def dead_share(self) -> float:
        """#{i: density_i = 0} / m."""
        return self.dead / len(self.density)

    def density_histogram(self) -> pd.DataFrame:
        """Latents by how often they fire: low, high, latents; two bins a power of ten, and one from 0 to 0 for those that never do."""
        import pandas as pd

        least = 1 / self.rows
        lowest = math.floor(2 * math.log10(least))
        edges = [10 ** (half / 2) for half in range(lowest, 1)]
        fires = self.density[self.density > 0]
        bin_of = (2 * fires.log10()).floor().clamp(lowest, -1).long() - lowest
        counts = torch.bincount(bin_of, minlength=-lowest).tolist()
        return pd.DataFrame({"low": [0.0, *edges[:-1]], "high": [0.0, *edges[1:]], "latents": [self.dead, *counts]})

    def to_dict(self) -> dict[str, Any]:
        """Everything but the density, for JSON; None where a measure does not exist."""
        shown = {k: v for k, v in vars(self).items() if k != "density"}
        shown |= {"explained_variance": self.explained_variance, "dead_share": self.dead_share}
        return {k: None if v != v else v for k, v in shown.items()}

    def to_frame(self) -> pd.DataFrame:
        """One row of the measures."""
        return _frame(self.to_dict())


@torch.no_grad()
def evaluate(D: Dictionary, source: Source, batch: int = BATCH) -> Reconstruction:
    """Measure a dictionary on every row of `source` once; all sums in float64.

    FVU is the textbook's: the numerator holds a constant error too, the denominator is about the mean, which a pass of
    its own finds. Raises `WrongUse` if the widths differ, `Failed` for rows that are infinite or not numbers.
    """
    if (source.d_in, source.d_out) != (D.config.d_in, D.config.d_out):
        raise WrongUse(
            f"This dictionary maps {D.config.d_in} numbers to {D.config.d_out}; "
            f"the rows given have {source.d_in}, their targets {source.d_out}."
        )
    mean = torch.stack([y.double().sum(0) for _, y in source.once(batch)]).sum(0) / source.rows
    fired = torch.zeros(D.config.latents, dtype=torch.float64, device=D.b_dec.device)
    total = torch.zeros(9, dtype=torch.float64)
    for number, (x, y) in enumerate(source.once(batch)):
        _check_finite(number * batch, {source.reads: x, source.writes: y})
        x = x.to(fired.device, D.b_dec.dtype)
        code = D.active(x)
        fired += torch.bincount(code.indices[code.values > 0], minlength=len(fired))
        total += _sums(y.double(), D.decode(code, x).cpu().double(), D.decode(_nothing(x), x).cpu().double(), mean)
    error, variance, cosine, ratio, power, product, nonzero, written, wanted = total.tolist()
    return Reconstruction(
        rows=source.rows,
        fvu=_over(error, variance),
        l0=fired.sum().item() / source.rows,
        dead=int((fired == 0).sum()),
        cosine=_over(cosine, nonzero),
        bias=_over(power, product),
        l2_ratio=_over(ratio, nonzero),
        shrinkage=1 - _over(written, wanted),
        density=fired.cpu() / source.rows,
    )


def _check_finite(before: int, rows: Mapping[tuple[str, ...], Tensor]) -> None:
    for sites, x in rows.items():
        bad = (~torch.isfinite(x).all(-1)).nonzero().flatten()
        if len(bad):
            where, row = ", ".join(sites), before + int(bad[0])
            raise Failed(f"NaN or infinite activations at {where}, row {row}: nothing can be measured on such rows.")


def _nothing(x: Tensor) -> Code:
    """The code in which no latent fires."""
    return Code(x.new_zeros(len(x), 1), torch.zeros(len(x), 1, dtype=torch.int64, device=x.device))


def _sums(y: Tensor, made: Tensor, without: Tensor, mean: Tensor) -> Float[Tensor, "9"]:
    """What the measures are made of; `without` is ŷ if no latent fires."""
    long, short, product = y.norm(dim=1), made.norm(dim=1), (y * made).sum(1)
    there = long > 0
    cosine = torch.where(there & (short > 0), product / (long * short), 0)
    ratio = torch.where(there, short / long, 0)
    error, variance = (y - made).square().sum(), (y - mean).square().sum()
    w, wanted = made - without, y - without
    sums = [error, variance, cosine.sum(), ratio.sum(), short.square().sum(), product.sum(), there.sum()]
    return torch.stack([*sums, w.square().sum(), (wanted * w).sum()])


def _over(a: float, b: float) -> float:
    return a / b if b else float("nan")


def flat(measures: Mapping[str, Any]) -> dict[str, Any]:
    """{"kl": {"zero": 1}} as {"kl.zero": 1}."""
    inner = ((k, v.items() if isinstance(v, Mapping) else [("", v)]) for k, v in measures.items())
    return {f"{k}.{name}" if name else k: value for k, values in inner for name, value in values}


def _frame(measures: Mapping[str, Any]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([flat(measures)])


@dataclass(frozen=True)
class Spliced:
    """What a language model loses with a dictionary in it, in nats a token; keys clean, zero, mean, replaced."""

    tokens: int  # predictions counted
    cross_entropy: dict[str, float]
    kl: dict[str, float]  # KL(clean ‖ edited)
    loss_recovered: dict[str, float]  # (CE_ablated − CE_replaced) / (CE_ablated − CE_clean), against zero and mean
    kl_recovered: dict[str, float]  # 1 − KL_replaced / KL_ablated, against zero and mean

    def to_dict(self) -> dict[str, Any]:
        """For JSON; None where a measure does not exist."""
        return {
            k: {n: None if x != x else x for n, x in v.items()} if isinstance(v, dict) else v
            for k, v in asdict(self).items()
        }

    def to_frame(self) -> pd.DataFrame:
        """One row of the measures, kl.zero for KL under zero ablation."""
        return _frame(self.to_dict())


@torch.no_grad()
def evaluate_model(
    D: Dictionary, model: Model, texts: Data, tokens: int | None = None, batch: int = 4, context: int = 512
) -> Spliced:
    """What the model predicts with the written sites clean, zeroed, at their means, and replaced by ŷ.

    `texts`: documents, or ready inputs by the names of the forward's arguments (pixel_values, …). Every real token is edited
    except a beginning-of-sequence token, which dictionaries are not trained on. Of a causal model over text the
    predictions made at edited tokens whose next token is real count, and there is a cross-entropy of that token; of any
    other model all at edited positions, or one an input where it has one, and there is the KL alone. A transcoder reads the
    run that it edits; a crosscoder reads all its sites in the clean run. Stops after about `tokens` edited tokens.
    Raises `WrongUse` if there is nothing to evaluate on, or if the model has no logits.
    """
    return _spliced(lambda inputs: D, D.config.writes, model, _groups(D, model, texts, tokens, batch, context))


@torch.no_grad()
def evaluate_together(
    D: Dictionary, models: Together, texts: Data, tokens: int | None = None, batch: int = 4, context: int = 512
) -> dict[str, Spliced]:
    """`evaluate_model` of a dictionary of several models, in each of them: its sites become its part of ŷ.

    The latents are those of the clean runs of all. Raises what `evaluate_model` raises.
    """
    found = list(_groups(D, models, texts, tokens, batch, context))
    reads, told = list(D.config.reads), {}

    def part(name: str, inputs: Any) -> Dictionary:
        return D.given(name, models.record(inputs, reads))

    for name, model in models.models.items():
        sites = [site for site, of in map(of_model, reads) if of == name]
        if sites:
            told[name] = _spliced(partial(part, name), sites, model, found)
    return told


def _spliced(
    dictionary: Callable[[Any], Dictionary],
    writes: Sequence[str],
    model: Model,
    groups: Iterable[tuple[Any, Bool[Tensor, "batch pos"]]],
) -> Spliced:
    """`dictionary` gives what is put in place for an input."""
    found = list(groups)
    if not found:
        raise WrongUse("There is no text to evaluate on.")
    next_token = not isinstance(found[0][0], dict) and _causal(model, found[0][0])
    means = _means(model, writes, found)
    sums = {name: torch.zeros(2, dtype=torch.float64) for name in ("clean", "zero", "mean", "replaced")}
    count = 0
    for inputs, keep in found:
        counted = torch.nn.functional.pad(keep[:, :-1] & inputs.mask[:, 1:], (0, 1)) if next_token else keep
        target = inputs.ids.roll(-1, 1)[counted][:, None] if next_token else None
        clean = _log_probs(model, inputs, counted, [])
        for name, edits in _edits(dictionary(inputs), model, inputs, means, keep).items():
            edited = _log_probs(model, inputs, counted, edits) if edits else clean
            surprise = -edited.gather(1, target).double().sum() if target is not None else torch.tensor(torch.nan)
            divergence = (clean.exp() * (clean - edited)).double().sum()
            sums[name] += torch.stack([surprise, divergence]).cpu()
        count += len(clean)
    ce, kl = ({name: (s[i] / count).item() for name, s in sums.items()} for i in (0, 1))
    recovered = {name: _over(ce[name] - ce["replaced"], ce[name] - ce["clean"]) for name in ("zero", "mean")}
    kept = {name: 1 - _over(kl["replaced"], kl[name]) for name in ("zero", "mean")}
    return Spliced(count, ce, {n: v for n, v in kl.items() if n != "clean"}, recovered, kept)


@torch.no_grad()
def rows_of(
    D: Dictionary, model: Model | Together, texts: Data, tokens: int, batch: int = 4, context: int = 512
) -> RowsSource:
    """The rows that a dictionary reads and writes over `texts`, about `tokens` of them, in memory: for `evaluate`."""
    parts: dict[str, list[Tensor]] = {site: [] for site in D.config.reads + D.config.writes}
    for inputs, keep in _groups(D, model, texts, tokens, batch, context):
        cache = model.record(inputs, list(parts))
        for site, rows in parts.items():
            rows.append(cache[site][keep].flatten(1).cpu())
    if not any(parts.values()):
        raise WrongUse("There is no text to evaluate on.")
    x, y = (torch.cat([torch.cat(parts[s]) for s in sites], -1) for sites in (D.config.reads, D.config.writes))
    return RowsSource(x, None if D.config.autoencoder else y)


def _groups(
    D: Dictionary, model: Model | Together, texts: Data, tokens: int | None, batch: int, context: int
) -> Iterator[tuple[Any, Bool[Tensor, "batch pos"]]]:
    """Windows of text or inputs as a recording makes them, and which of their positions a recording keeps."""
    from interp.store.recording import groups, kept_positions, padded

    seen, sites = 0, list(dict.fromkeys(D.config.reads + D.config.writes))
    inputs: Any
    for _, group in groups(model, texts, context, batch):
        if tokens is not None and seen >= tokens:
            return
        if isinstance(group, dict):
            inputs, keep = group, kept_positions(sites, model.record(group, sites), group).to(model.device)
        else:
            inputs, keep = padded(model, group)
        seen += int(keep.sum())
        yield inputs, keep


def _causal(model: Model, inputs: Tokens) -> bool:
    """Whether a row of logits stands for each token and does not depend on the tokens after it."""
    other = inputs.ids.clone()
    other[:, -1] = inputs.ids[:, 0]
    rows = (other[:, -1] != inputs.ids[:, -1]) & inputs.mask[:, -1]
    a, b = (_logits(model, replace(inputs, ids=ids)) for ids in (inputs.ids, other))
    if a.shape[:2] != inputs.ids.shape or a.ndim != 3:
        return False
    far = (a - b)[rows, 0].norm() / a[rows, 0].norm().clamp(min=1e-30)
    return bool(far < CAUSAL)


def _means(model: Model, sites: Sequence[str], groups: list[tuple[Any, Tensor]]) -> dict[str, Float[Tensor, " d"]]:
    total: dict[str, Any] = dict.fromkeys(sites, 0)
    for inputs, keep in groups:
        cache = model.record(inputs, list(sites))
        total = {site: t + cache[site][keep].double().sum(0) for site, t in total.items()}
    return {site: t / sum(int(keep.sum()) for _, keep in groups) for site, t in total.items()}


def _edits(D: Dictionary, model: Model, inputs: Any, means: dict[str, Tensor], keep: Tensor) -> dict[str, list[Edit]]:
    from interp.model import Mean, Zero

    return {
        "clean": [],
        "zero": [Zero(site, pos=keep) for site in means],
        "mean": [Mean(site, mean, pos=keep) for site, mean in means.items()],
        "replaced": _replaced(D, model, inputs, keep),
    }


def _replaced(D: Dictionary, model: Model, inputs: Any, keep: Tensor) -> list[Edit]:
    """Every written site becomes its part of ŷ. What a site reads later than it writes cannot reach it: it counts as zero."""
    from interp.model import Replace

    c = D.config
    seen: dict[str, Tensor] = {}
    if c.autoencoder and len(c.reads) > 1:
        cache = model.record(inputs, list(c.reads))
        seen.update({site: cache[site].flatten(2) for site in c.reads})

    def look(site: str) -> Callable[[Tensor], Tensor]:
        def keep_it(x: Tensor) -> Tensor:
            seen[site] = x.flatten(2)
            return x

        return keep_it

    def put(number: int) -> Callable[[Tensor], Tensor]:
        def made(y: Tensor) -> Tensor:
            flat = y.flatten(2)
            there = seen or {c.reads[0]: flat}  # an autoencoder of one site reads what it replaces
            widths = dict(zip(c.reads, c.widths_in or (c.d_in,), strict=True))
            parts = [there.get(site, y.new_zeros(*y.shape[:2], w)) for site, w in widths.items()]
            whole: Tensor = D(torch.cat(parts, -1).to(D.b_dec.device))
            return whole.split(c.widths_out or (c.d_out,), dim=-1)[number].reshape(y.shape).to(y)

        return made

    looks: list[Edit] = [] if c.autoencoder else [Replace(site, look(site), pos=keep) for site in c.reads]
    return looks + [Replace(site, put(number), pos=keep) for number, site in enumerate(c.writes)]


def _logits(model: Model, inputs: Any) -> Tensor:
    logits = getattr(model(inputs), "logits", None)
    if logits is None:
        raise WrongUse(
            f"{model.id} has no logits, so what it loses cannot be measured: load it with its head, "
            "or measure the rows alone (interp eval DIR --rows FILE)."
        )
    return logits


def _log_probs(model: Model, inputs: Any, counted: Tensor, edits: list[Edit]) -> Float[Tensor, "counted classes"]:
    """Of the counted positions; of all inputs, where the model makes one prediction for each."""
    with ExitStack() as stack:
        if edits:
            stack.enter_context(model.edit(*edits))
        logits = _logits(model, inputs)
    rows = logits[counted] if logits.shape[:-1] == counted.shape else logits.flatten(0, -2)
    return rows.float().log_softmax(-1)
