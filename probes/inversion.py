"""The prompt behind hidden states: exact reconstruction token by token, and how near the states of different prompts come.

F(v; prefix) is the state at a site and at the last position of prefix + v. If it differs for every v, states [T, d] give
their prompt back from left to right: at each position the one token with ‖F(v) - h_t‖ ≤ eps. Source: Nikolaou et al. 2025
(arXiv:2510.15511), "Language Models are Injective and Hence Invertible": algorithm SipIt, and the search for collisions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import Failed, WrongUse
from interp.model.edits import Replace
from interp.model.model import Model, teaches
from interp.model.onward import run_until
from interp.texts import token_texts

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float, Int

POLICIES = ("gradient", "brute")
PROJECT_EVERY = 50  # steps of the gradient after which the proxy is put onto the nearest token not yet tried
CLOSE = {torch.float64: 1e-9, torch.float32: 1e-4}  # of ‖h_t‖: the default eps
CLOSE_16 = 0.02
BLOCK = 2048  # states whose distances to all others exist at one time


@dataclass(frozen=True, eq=False)
class Recovered:
    """The prompt that was found, and at each position: how many tokens were tested, the distance of the one accepted, the
    smallest distance of one that was not, and, where all were tested, how many are within eps (2 or more: a collision).
    """

    ids: Int[Tensor, " pos"]
    tests: Int[Tensor, " pos"]
    distance: Float[Tensor, " pos"]
    rival: Float[Tensor, " pos"]
    matches: Int[Tensor, " pos"]
    eps: Float[Tensor, " pos"]
    seconds: float
    model: Model
    site: str
    policy: str

    @property
    def tokens(self) -> list[str]:
        """The tokens of the prompt."""
        return token_texts(self.model.tokenizer)(self.ids.tolist())

    @property
    def text(self) -> str:
        """The prompt as text, special tokens left out."""
        if self.model.tokenizer is None:
            return "".join(self.tokens)
        return self.model.tokenizer.decode(self.ids.tolist(), skip_special_tokens=True)

    def to_frame(self) -> pd.DataFrame:
        """One row a position: pos, id, token, tests, distance, rival, matches, eps."""
        import pandas as pd

        columns = ("tests", "distance", "rival", "matches", "eps")
        table = {"pos": range(len(self.ids)), "id": self.ids.tolist(), "token": self.tokens}
        return pd.DataFrame(table | {name: getattr(self, name).tolist() for name in columns})

    def plot(self) -> go.Figure:
        """How many tokens were tested at each position."""
        import plotly.graph_objects as go

        from interp.model.pictures import shown

        x = [f"{i} {shown(t)}" for i, t in enumerate(self.tokens)]
        axes = {"yaxis": {"title": "tokens tested", "type": "log"}, "template": "plotly_white"}
        return go.Figure(go.Bar(x=x, y=self.tests.tolist()), {"title": f"{self.policy} from {self.site}", **axes})


class _Step:
    """F(·; prefix) at one site, for tokens and for an embedding that is no token's."""

    def __init__(self, model: Model, site: str, prefix: list[int], batch: int) -> None:
        self.model, self.site, self.prefix, self.batch = model, site, prefix, batch

    @torch.no_grad()
    def states(self, tokens: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """F(v) of some tokens, in the precision of `distances`."""
        found = []
        for part in tokens.split(self.batch):
            ids = torch.tensor([[*self.prefix, v] for v in part.tolist()], device=self.model.device)
            found.append(self.model.record(ids, self.site, pos="last")[self.site][:, 0])
        return torch.cat(found)

    def slope(self, e: Float[Tensor, " d"], h: Float[Tensor, " d"]) -> tuple[float, Float[Tensor, " d"]]:
        """(‖F(e) - h‖², its gradient) with the embedding e at the last position."""
        e = e.clone().requires_grad_()
        ids = torch.tensor([[*self.prefix, 0]], device=self.model.device)
        found: list[Tensor] = []

        def put(x: Tensor) -> Tensor:
            return torch.cat([x[:, :-1], e.to(x).expand(1, 1, -1)], dim=1)

        with torch.enable_grad(), self.model.edit(Replace("embed", put)):
            run_until(self.model, ids, self.site, lambda _, t: found.append(t) or True)  # type: ignore[func-returns-value]
            far = (found[0][0, -1].double() - h).square().sum()
            return float(far.detach()), torch.autograd.grad(far, e)[0]


@teaches
def recover(
    model: Model,
    states: Float[Tensor, "pos d"],
    site: str,
    *,
    policy: str = "gradient",
    eps: float | None = None,
    prefix: Sequence[int] = (),
    batch: int = 64,
    seed: int = 0,
    every: bool = False,
) -> Recovered:
    """The token ids whose states at `site` these are, found from left to right.

    "gradient" (SipIt): an embedding e goes down ‖F(e) - h_t‖² from the mean embedding, by Polyak's step ‖F(e) - h_t‖² / ‖g‖²
    (the least value, 0, is known), and after every step the `batch` tokens nearest to it that were not tried are tested;
    "brute" tests tokens in an order drawn by `seed`. At most V tests a position, T V in all. `eps`: what counts as equal;
    default: 1e-9 of ‖h_t‖ in float64, 1e-4 in float32, 2 % in 16 bits (another batch shape already rounds differently).
    `prefix`: ids that stand before the first state.
    `every` tests all tokens at each position, which gives the true margin and finds collisions.

    Raises `WrongUse` for another policy, a site that is no stream or not there, states of another width, and models without token
    embeddings; `Failed` at the first position where no token is near enough.
    """
    from tqdm.auto import tqdm

    if policy not in POLICIES:
        raise WrongUse(f"policy={policy!r} is none of {', '.join(POLICIES)}.")
    if states.ndim != 2 or states.shape[1] != model.width(site):
        raise WrongUse(f"states are [pos, {model.width(site)}] at {site!r}; these are {tuple(states.shape)}.")
    table = model.weights["W_E"].detach()
    table = model.weights.layout("W_E").scale * table
    start, known, rows = time.perf_counter(), list(prefix), []
    draw = torch.Generator().manual_seed(seed)
    for t, h in enumerate(
        tqdm(states.double(), desc=f"inversion, {policy}", unit=" tokens", leave=False, mininterval=1)
    ):
        near = eps if eps is not None else CLOSE.get(model.dtype, CLOSE_16) * float(h.norm())
        step = _Step(model, site, known, batch)
        order = _descending(step, table, h, batch) if policy == "gradient" else _drawn(len(table), batch, draw)
        found = _tested(step, order, h.to(model.device), near, every, len(table))
        if found[1] > near:
            raise Failed(
                f"position {t}: no token gives this state at {site!r}; the nearest, {token_texts(model.tokenizer)([found[0]])[0]!r}, is "
                f"{found[1]:.2e} away (eps {near:.2e}). Are the states of this model, in this precision, from the first token on?"
            )
        known.append(found[0])
        rows.append([*found, near])
    columns = [torch.tensor(c, dtype=torch.float64) for c in zip(*rows, strict=True)] if rows else [torch.zeros(0)] * 6
    ids, distance, tests, rival, matches, limits = columns
    seconds = time.perf_counter() - start
    return Recovered(
        ids.long(), tests.long(), distance, rival, matches.long(), limits, seconds, model, site, f"SipIt, {policy}"
    )


def _tested(
    step: _Step, order: Iterator[Tensor], h: Tensor, near: float, every: bool, vocabulary: int
) -> tuple[int, float, int, float, int]:
    """(The nearest token, its distance, tokens tested, the distance of the second nearest, tokens within eps)."""
    tokens: list[Tensor] = []
    far: list[Tensor] = []
    tests = 0
    while tests < vocabulary:
        part = next(order)
        tests += len(part)
        tokens.append(part)
        far.append((step.states(part).double() - h).norm(dim=1).cpu())
        if not every and float(far[-1].min()) <= near:
            break
    all_far, best = torch.cat(far).sort(stable=True)
    rival = float(all_far[1]) if len(all_far) > 1 else float("inf")
    return int(torch.cat(tokens)[best[0]]), float(all_far[0]), tests, rival, int((all_far <= near).sum())


def _drawn(vocabulary: int, batch: int, draw: torch.Generator) -> Iterator[Tensor]:
    """All tokens in an order drawn at random."""
    yield from torch.randperm(vocabulary, generator=draw).split(batch)


def _descending(step: _Step, table: Tensor, h: Tensor, batch: int) -> Iterator[Tensor]:
    """All tokens, those nearest to an embedding that goes down the slope first."""
    left = torch.ones(len(table), dtype=torch.bool, device=table.device)
    e = table.mean(0)
    h = h.to(table.device)
    for number in range(1, len(table) + 1):
        far, gradient = step.slope(e, h)
        if number % PROJECT_EVERY:
            e = e - (far / gradient.double().square().sum().clamp(min=1e-300)).to(e) * gradient
        distances = (table - e).norm(dim=1).masked_fill(~left, torch.inf)
        count = min(batch, int(left.sum()))
        if not count:
            return
        chosen = distances.topk(count, largest=False).indices
        if number % PROJECT_EVERY == 0:
            e = table[chosen[0]]
        left[chosen] = False
        yield chosen.cpu()


# ---------------------------------------------------------------- collisions


@dataclass(frozen=True, eq=False)
class Collisions:
    """The nearest pairs of states of different prompts at each site, nearest first."""

    prompts: list[list[int]]
    pairs: dict[str, Int[Tensor, "k 2"]]
    distances: dict[str, Float[Tensor, " k"]]
    model: Model
    threshold: float = 1e-6

    def to_frame(self) -> pd.DataFrame:
        """One row a site and pair: site, distance, collides (nearer than 1e-6), a, b (the prompts' last tokens)."""
        import pandas as pd

        words = token_texts(self.model.tokenizer)
        rows = [
            [site, d, d < self.threshold, *("".join(words(self.prompts[i][-12:])) for i in pair)]
            for site, pairs in self.pairs.items()
            for pair, d in zip(pairs.tolist(), self.distances[site].tolist(), strict=True)
        ]
        return pd.DataFrame(rows, columns=["site", "distance", "collides", "a", "b"])

    def plot(self) -> go.Figure:
        """The smallest distance at each site, on a logarithmic axis, and the threshold."""
        import plotly.graph_objects as go

        least = [float(d[0]) for d in self.distances.values()]
        figure = go.Figure(go.Scatter(x=list(self.distances), y=least, mode="lines+markers"))
        figure.add_hline(y=self.threshold, line={"dash": "dot"})
        title = f"Smallest distance between last states of {len(self.prompts):,} prompts"
        return figure.update_layout(title=title, yaxis={"type": "log"}, template="plotly_white")


@teaches
@torch.no_grad()
def collisions(
    model: Model, prompts: Sequence[Sequence[int]], sites: str | Sequence[str], *, k: int = 10, batch: int = 64
) -> Collisions:
    """The k nearest pairs of last-token states among all pairs of different prompts, at each site; distances in float64.

    Raises `WrongUse` for fewer than two different prompts, and for one without tokens.
    """
    from tqdm.auto import tqdm

    given = [list(p) for p in dict.fromkeys(map(tuple, prompts))]
    if len(given) < 2 or not all(given):
        raise WrongUse(
            "give at least two different prompts, each with a token or more: one has no other to collide with."
        )
    names = model.names(sites)
    states: dict[str, list[Tensor]] = {n: [] for n in names}
    order = sorted(range(len(given)), key=lambda i: len(given[i]))  # of one length in a batch: nothing is padded
    groups = [list(g) for g in _equal_lengths([given[i] for i in order], batch)]
    for group in tqdm(groups, desc="states", leave=False, mininterval=1):
        cache = model.record(torch.tensor(group, device=model.device), names, pos="last")
        for n in names:
            states[n].append(cache[n][:, 0].flatten(1).double())
    ordered = [given[i] for i in order]
    found = {n: nearest_pairs(torch.cat(states[n]), k) for n in names}
    return Collisions(ordered, {n: p for n, (p, _) in found.items()}, {n: d for n, (_, d) in found.items()}, model)


def _equal_lengths(prompts: list[list[int]], batch: int) -> Iterator[list[list[int]]]:
    group: list[list[int]] = []
    for p in prompts:
        if group and (len(p) != len(group[0]) or len(group) == batch):
            yield group
            group = []
        group.append(p)
    yield group


def nearest_pairs(
    a: Float[Tensor, "n d"], k: int, b: Float[Tensor, "m d"] | None = None
) -> tuple[Int[Tensor, "k 2"], Float[Tensor, " k"]]:
    """(Pairs, distances) of the k nearest rows of a and b (default: of a with each other), nearest first, a block at a time.

    Blocks are searched by ‖x‖² + ‖y‖² - 2 x · y; what may be among the nearest is measured again by differences, which do
    not cancel.
    """
    own, centre = b is None, a.mean(0)  # distances stay, squares get smaller
    a, b = a - centre, (a if b is None else b) - centre
    squares, best = b.square().sum(1), (a.new_empty(0, 2, dtype=torch.long), a.new_empty(0))
    for start in range(0, len(a), BLOCK):
        part = a[start : start + BLOCK]
        far = (part.square().sum(1)[:, None] + squares - 2 * part @ b.T).clamp(min=0)
        if own:
            far = far.masked_fill(
                torch.arange(len(b), device=a.device)
                <= torch.arange(start, start + len(part), device=a.device)[:, None],
                torch.inf,
            )
        count = min(4 * k + 16, far.numel())
        near = far.flatten().topk(count, largest=False)
        at = near.indices[near.values < torch.inf]
        pairs = torch.stack([start + at // len(b), at % len(b)], dim=1)
        exact = (a[pairs[:, 0]] - b[pairs[:, 1]]).norm(dim=1)
        both = torch.cat([best[0], pairs]), torch.cat([best[1], exact])
        order = both[1].argsort(stable=True)[:k]
        best = both[0][order], both[1][order]
    return best[0].cpu(), best[1].cpu()


@torch.no_grad()
def appended(
    model: Model, a: Sequence[int], b: Sequence[int], site: str, *, k: int = 10, batch: int = 64
) -> tuple[Int[Tensor, "k 2"], Float[Tensor, " k"]]:
    """Of two prompts with every token of the vocabulary behind each: the k nearest pairs (token after a, token after b)."""
    every = torch.arange(len(model.weights["W_E"]))
    first, second = (_Step(model, site, list(p), batch).states(every).double() for p in (a, b))
    return nearest_pairs(first, k, second)


# ---------------------------------------------------------------- a sentence in one vector


@dataclass(frozen=True, eq=False)
class SentenceVector:
    """A vector that, added at `site` to every position, has the model say a sentence; and what it then says greedily."""

    z: Float[Tensor, " d"]
    site: str
    ids: Int[Tensor, " pos"]
    said: Int[Tensor, " pos"]
    losses: Float[Tensor, " step"]  # of the restart that was kept, in nats a token
    model: Model

    @property
    def accuracy(self) -> float:
        """Share of positions where the decoded token is the sentence's."""
        return float((self.ids == self.said).double().mean())

    @property
    def prefix(self) -> int:
        """Tokens up to the first that differs."""
        return int((self.ids == self.said).long().cumprod(0).sum())

    @property
    def exact(self) -> bool:
        """Whether the sentence was recovered whole."""
        return self.prefix == len(self.ids)

    def to_frame(self) -> pd.DataFrame:
        """One row a position: pos, token, said, same."""
        import pandas as pd

        words = token_texts(self.model.tokenizer)
        table = {"token": words(self.ids.tolist()), "said": words(self.said.tolist())}
        return pd.DataFrame({"pos": range(len(self.ids))} | table | {"same": (self.ids == self.said).tolist()})

    def plot(self) -> go.Figure:
        """The loss from step to step."""
        import plotly.graph_objects as go

        figure = go.Figure(go.Scatter(y=self.losses.tolist(), mode="lines"))
        axes = {"xaxis": {"title": "step"}, "yaxis": {"title": "nats a token", "type": "log"}}
        return figure.update_layout(title=f"A sentence in one vector at {self.site}", template="plotly_white", **axes)


@teaches
def sentence_vector(
    model: Model,
    text: str | Sequence[int],
    site: str,
    *,
    start: int | None = None,
    steps: int = 1000,
    lr: float = 0.1,
    restarts: int = 3,
    enough: float = 0.01,
    seed: int = 0,
) -> SentenceVector:
    """z* = argmax_z Σ_t log p(x_t | x_<t, z), z added at `site` of every position (Subramani and Suresh 2019, arXiv:1907.04944).

    Only z is trained: Adam, the rate halved where 50 steps bring no progress; it ends at `enough` nats a token, or after
    `steps`. It starts again from another z of small norm until one is decoded whole; the best is kept. Decoding is greedy from
    `start` (default: the tokenizer's start token, or else the sentence's own first token, which is then given).
    Teacher-forced success is not decoding: both are told.
    Raises `WrongUse` for a sentence of fewer than two tokens in all, or a site without a fixed width.
    """
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"] if isinstance(text, str) else list(text)
    first = start if start is not None else getattr(model.tokenizer, "bos_token_id", None)
    whole = [*([] if first is None else [first]), *ids]
    if len(whole) < 2:
        raise WrongUse("the sentence has no token to recover: give at least one after the start.")
    x = torch.tensor([whole], device=model.device)
    draw = torch.Generator().manual_seed(seed)
    best: SentenceVector | None = None
    for _ in range(restarts):
        z = 0.01 * torch.randn(model.width(site), generator=draw)
        z, losses = _fitted(model, x, site, z.to(model.device, model.dtype), steps, lr, enough)
        said = _decoded(model, x[:, :1], site, z, len(whole) - 1)
        made = SentenceVector(z, site, x[0, 1:].cpu(), said.cpu(), losses, model)
        if best is None or (made.prefix, -float(losses[-1])) > (best.prefix, -float(best.losses[-1])):
            best = made
        if made.exact:
            break
    assert best is not None
    return best


def _fitted(
    model: Model, x: Tensor, site: str, z: Tensor, steps: int, lr: float, enough: float
) -> tuple[Tensor, Float[Tensor, " step"]]:
    from interp.model.edits import Steer

    z = z.clone().requires_grad_()
    optimiser = torch.optim.Adam([z], lr)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.5, patience=50)
    losses = []
    for _ in range(steps):
        with torch.enable_grad(), model.edit(Steer(site, z)):
            logits = _logits(model(x))[0, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits, x[0, 1:])
            z.grad = torch.autograd.grad(loss, z)[0]
        losses.append(float(loss.detach()))
        if losses[-1] <= enough:
            break
        optimiser.step()
        schedule.step(losses[-1])
    return z.detach(), torch.tensor(losses)


@torch.no_grad()
def _decoded(model: Model, x: Tensor, site: str, z: Tensor, count: int) -> Int[Tensor, " pos"]:
    """The likeliest token again and again, with z added; no cache, so that every position is computed with it."""
    from interp.model.edits import Steer

    with model.edit(Steer(site, z)):
        for _ in range(count):
            x = torch.cat([x, _logits(model(x))[:, -1:].argmax(-1)], dim=1)
    return x[0, 1:]


def _logits(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits
