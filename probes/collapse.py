"""Representational collapse: two different sequences whose last tokens come to be represented alike.

‖v_n - v*_{n+1}‖ over n, where v* is v with its last token once more, and the first n at which both are the same bits in
a format of 16 or 8 bits. Source: Barbero et al. 2024 (arXiv:2406.04267), "Transformers need glasses!", theorem 4.2, with its
families and its remedy: other tokens between.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse, nearest
from interp.model.model import Model, teaches
from interp.texts import token_texts
from probes import prompts

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float

FAMILIES = {
    "repeat_last": "another token, then one token over and over: 0 1 1 1 …",
    "digits": "digits drawn at random; the last one stands twice in v*",
    "copying": "one token over and over, a separator, and the copy so far: 1 1 … , 1 1 …",
    "counting": "ones and zeros drawn at random, 7 of 10 are ones, that end in a one",
    "separators": "one token over and over, a separator after every third: 1 1 1 , 1 1 1 , …",
}
REMEDY = "separators"
FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.float8_e4m3fn}
NORMS = {"l1": 1, "l2": 2, "linf": float("inf")}


@dataclass(frozen=True)
class Family:
    """Sequences of token ids: `start` (the tokenizer's own first token, if any), and what stands for 1, 0, the separator and
    the ten digits.
    """

    name: str
    start: tuple[int, ...]
    one: int
    zero: int
    separator: int
    digits: tuple[int, ...]
    seed: int = 0

    def ids(self, n: int) -> list[int]:
        """v: n token ids, of which the last is one that may stand twice."""
        room = n - len(self.start)
        if room < 2:
            raise WrongUse(
                f"a length of {n} leaves {room} tokens after the first: give lengths of {len(self.start) + 2} or more."
            )
        return [*self.start, *self._body(room)]

    def _body(self, room: int) -> list[int]:
        draw = torch.Generator().manual_seed(self.seed)
        if self.name == "repeat_last":
            return [self.zero] + [self.one] * (room - 1)
        if self.name == "digits":
            return [self.digits[i] for i in torch.randint(len(self.digits), (room,), generator=draw).tolist()]
        if self.name == "copying":
            first = room // 2
            return [self.one] * first + [self.separator] + [self.one] * (room - first - 1)
        if self.name == "counting":
            ones = torch.rand(room - 1, generator=draw) < 0.7
            return [self.one if o else self.zero for o in ones.tolist()] + [self.one]
        body = [self.separator if i % 4 == 3 else self.one for i in range(room)]
        return [*body[:-1], self.one]

    def to_dict(self) -> dict[str, Any]:
        """The ids by what they stand for."""
        roles = {n: getattr(self, n) for n in ("start", "one", "zero", "separator", "digits")}
        return {n: list(v) if isinstance(v, tuple) else v for n, v in roles.items()}


def family(model: Model, name: str, *, tokens: Sequence[int] | None = None, seed: int = 0) -> Family:
    """A family in a model's own tokens: those of "1", "0", "," and the digits where each is one token, else drawn by `seed`.

    `tokens`: ids in place of those: one, zero, separator, and any number of digits. Raises `WrongUse` for a family that is
    not there, a model that is not causal, fewer than three ids, and ids that are not there.
    """
    if name not in FAMILIES:
        raise WrongUse(f"there is no family {name!r}.{nearest(name, FAMILIES)} Families: {', '.join(FAMILIES)}.")
    prompts.check_causal(model)
    size = prompts.vocabulary(model)
    start: tuple[int, ...] = ()
    given = list(tokens) if tokens is not None else _own(model) or _drawn(model, size, seed)
    if len(given) < 3 or not all(0 <= i < size for i in given):
        raise WrongUse(
            f"{given} are no tokens of a family: give ids below {size} for one, zero, a separator, and digits."
        )
    if model.tokenizer is not None and model.tokenizer.bos_token_id is not None:
        start = tuple(model.tokens("1").ids[0, :1].tolist())
        start = start if start == (model.tokenizer.bos_token_id,) else ()
    one, zero, separator, *digits = given
    return Family(name, start, one, zero, separator, tuple(digits or (one, zero)), seed)


def _own(model: Model) -> list[int] | None:
    """The ids of 1, 0, the separator and the digits, if all of them are tokens."""
    if model.tokenizer is None:
        return None
    found = []
    for text in ("1", "0", ",", *map(str, range(10))):
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == model.tokenizer.unk_token_id:
            return None
        found += ids
    return found


def _drawn(model: Model, size: int, seed: int) -> list[int]:
    special = set(getattr(model.tokenizer, "all_special_ids", ()) or ())
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
    return [i for i in order if i not in special][:13]


# ---------------------------------------------------------------- the curve


@dataclass(frozen=True, eq=False)
class Collapse:
    """‖v_n - v*_{n+1}‖ in the norms 1, 2 and ∞ at each length n, `size` = ‖v_n‖_2 beside it.

    `equal_at`: the first of these lengths from which v_n and v*_{n+1}, rounded to a format, are the same bits; None: at none.
    """

    family: Family
    site: str
    n: tuple[int, ...]
    l1: tuple[float, ...]
    l2: tuple[float, ...]
    linf: tuple[float, ...]
    size: tuple[float, ...]
    equal_at: dict[str, int | None]
    computed_in: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; a length that was not reached says so."""
        numbers = {name: list(getattr(self, name)) for name in ("n", "l1", "l2", "linf", "size")}
        equal = {f: f"not reached by {self.n[-1]}" if at is None else at for f, at in self.equal_at.items()}
        about = {"family": self.family.name, "site": self.site, "tokens": self.family.to_dict()}
        return {**about, **numbers, "equal_at": equal, "computed_in": self.computed_in}

    def to_frame(self) -> pd.DataFrame:
        """One row a length: family, n, l1, l2, linf, size."""
        import pandas as pd

        table = {name: list(getattr(self, name)) for name in ("n", "l1", "l2", "linf", "size")}
        return pd.DataFrame({"family": self.family.name, **table})

    def plot(self, *others: Collapse) -> go.Figure:
        """The largest difference of an entry over the length, both logarithmic, beside other curves."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for curve in (self, *others):
            y = [d if d > 0 else None for d in curve.linf]
            figure.add_scatter(x=curve.n, y=y, name=curve.family.name, mode="lines+markers")
            at = curve.equal_at.get("bf16")
            if at is not None:
                figure.add_vline(
                    x=at, line={"dash": "dot", "width": 1}, annotation={"text": f"{curve.family.name}: bf16 equal"}
                )
        axes = {"xaxis": {"title": "n", "type": "log"}, "yaxis": {"title": "‖v_n − v*_{n+1}‖∞", "type": "log"}}
        title = f"Last token once more, at {self.site}"
        return figure.update_layout(title=title, template="plotly_white", showlegend=True, **axes)


@teaches
@torch.no_grad()
def collapse_curve(model: Model, family: Family, lengths: Sequence[int], site: str | None = None) -> Collapse:
    """‖v_n - v*_{n+1}‖_p for p = 1, 2, ∞ at the last token and at `site`: the stream after the last block unless given.

    Both are computed in the model's own dtype, and rounded to each format to be compared; what a format cannot hold becomes
    its largest number. Raises `WrongUse` for a model that is not causal, lengths that do not rise, lengths beyond the
    positions of a model that learned one for each.
    """
    prompts.check_causal(model)
    (site,) = model.names(site or prompts.stream(model)[-1])
    if not lengths or any(b <= a for a, b in itertools.pairwise(lengths)):
        raise WrongUse(f"lengths {list(lengths)} do not rise: give them as 16,32,64.")
    table = model.weights.get("W_pos")
    if table is not None and lengths[-1] + 1 > len(table):
        raise WrongUse(
            f"{model.id} has {len(table)} positions, and {lengths[-1]} needs one more: give lengths below that."
        )
    rows: list[list[float]] = []
    equal: dict[str, int | None] = dict.fromkeys(FORMATS)
    for n in _shown(lengths):
        ids = family.ids(n)
        a, b = (_last(model, i, site) for i in (ids, [*ids, ids[-1]]))
        gap = a.double() - b.double()
        rows.append([float(gap.norm(p=p)) for p in NORMS.values()] + [float(a.double().norm())])
        for name, dtype in FORMATS.items():
            if equal[name] is None and same_bits(a, b, dtype):
                equal[name] = n
    l1, l2, linf, size = (tuple(column) for column in zip(*rows, strict=True))
    return Collapse(family, site, tuple(lengths), l1, l2, linf, size, equal, str(model.dtype).removeprefix("torch."))


def _shown(lengths: Sequence[int]) -> Any:
    from tqdm.auto import tqdm

    return tqdm(lengths, desc="lengths", leave=False, mininterval=1)


def _last(model: Model, ids: list[int], site: str) -> Float[Tensor, " d"]:
    return model.record(torch.tensor([ids], device=model.device), site, pos="last")[site].flatten().cpu()


def same_bits(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    """Whether both round to the same bits of a format; -0 and 0 differ."""
    most = torch.finfo(dtype).max
    bits = {1: torch.uint8, 2: torch.int16}[dtype.itemsize]
    return torch.equal(*(t.double().clamp(-most, most).to(dtype).view(bits) for t in (a, b)))


def told(model: Model, ids: Sequence[int]) -> str:
    """Ids as the words they stand for."""
    return " ".join(word.strip() or repr(word) for word in token_texts(model.tokenizer)(ids))
