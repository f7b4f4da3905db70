"""One dictionary over several processes: each has some of the latents, with their weights, moments and counters.

    z_r = W_enc_rᵀ (x − b_pre) + b_enc_r      on rank r, of its own latents; the whole of z exists nowhere
    f_r: those of rank r's best that are among the best of all; what is exchanged are these values
    ŷ = Σ_r f_r W_dec_r + b_dec [+ W_skip x]  one sum over ranks a step; every rank computes the same loss from it

Rows are the same on every rank. Biases of width d and the skip are on all of them and stay equal: their gradients are equal,
but for b_pre, to which every rank adds the part of its latents. A checkpoint is that of one process, whatever their number.
After Gao et al. 2024 (arXiv 2406.04093), appendix B, whose selection is local with a capacity; this one is exact.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from interp import ranks
from interp.dictionaries.config import TrainConfig
from interp.dictionaries.dictionary import Dictionary, DictionaryConfig
from interp.dictionaries.kinds import April, BatchTopK, Kind, Loss, Now, TopK, share, squared
from interp.dictionaries.run import Run
from interp.dictionaries.sources import Pair, Source
from interp.dictionaries.sparse import Code, decode_topk, encode_topk, l0
from interp.dictionaries.start import Scales
from interp.dictionaries.trainer import Trainer
from interp.errors import WrongUse
from interp.kernels import largest

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

AXES = {"W_enc": 1, "b_enc": 0, "W_dec": 0, "threshold": 0, "silent": 0}  # along which latents lie


class Shard(Dictionary):
    """The latents of one rank."""

    @property
    def b_pre(self) -> Float[Tensor, " d_in"]:
        """Shared with the latents of the other ranks."""
        return ranks.shared(super().b_pre)

    def written(self, f: Code | Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch d_out"]:
        """Σ_i f_i d_i over the latents of all ranks."""
        return ranks.summed(super().written(f))


def best(values: Float[Tensor, "batch n"], order: Int[Tensor, "batch n"], k: int) -> Bool[Tensor, "batch n"]:
    """Which of this rank's values are among the k largest of a row over all ranks.

    `order` says which comes first where values are equal, as an index does in one process. n may differ by rank.
    """
    here = values.shape[1]
    most = int(ranks.reduced(torch.tensor(here), dist.ReduceOp.MAX))
    fill = (0, most - here)
    values = torch.nn.functional.pad(values.detach(), fill)
    order = torch.nn.functional.pad(order, fill, value=torch.iinfo(torch.int64).max)
    all_values, all_order = (torch.cat(ranks.gathered(t), 1) for t in (values, order))
    places = all_order.argsort(dim=1, stable=True)
    chosen = places.gather(1, largest(all_values.gather(1, places), None, min(k, all_values.shape[1]))[1])
    kept = torch.zeros_like(all_values, dtype=torch.bool).scatter(1, chosen, True)
    return kept[:, most * ranks.rank() :][:, :here]


@dataclass(frozen=True)
class ShardedTopK(TopK):
    """TopK: a rank's k best of its own latents are candidates for the k best of all."""

    def encode(self, D: Dictionary, x: Float[Tensor, "batch d_in"]) -> Code | Tensor:
        """f = TopK_k(ReLU(z)) over all ranks, of which these are the latents of this one."""
        f = Code(*encode_topk(x, D.b_pre, D.W_enc, D.b_enc, min(self.k, D.config.latents), D.product))
        return _kept(f, self.k, D.config.latents)

    def auxk(
        self, D: Dictionary, x: Float[Tensor, "batch d_in"], e: Float[Tensor, "batch d_out"], dead: Int[Tensor, " dead"]
    ) -> Float[Tensor, ""]:
        """AuxK over the dead latents of all ranks."""
        total = int(ranks.reduced(torch.tensor(len(dead))))
        if not (self.aux and total):
            return e.new_zeros(())
        k_aux = min(self.k_aux or max(1, D.config.d_out // 2), total)
        W_enc, b_enc, W_dec = (p.index_select(0, dead) for p in (D.W_enc.T, D.b_enc, D.W_dec))
        b_pre = D.b_pre  # asked for on every rank, as its gradient is a sum of all
        if len(dead):
            f = Code(*encode_topk(x, b_pre, W_enc.T, b_enc, min(k_aux, len(dead)), D.product))
        else:
            f = Code((x - b_pre)[:, :0], torch.empty(len(x), 0, dtype=torch.int64))
        f = _kept(f, k_aux, total, dead)
        part = decode_topk(*f, W_dec) if len(dead) else f.values @ W_dec
        return share(e - ranks.summed(part), e)


def _kept(f: Code, k: int, latents: int, names: Tensor | None = None) -> Code:
    """f with zeros for what is not among the k best of a row; `names` are the latents' numbers on this rank."""
    number = f.indices if names is None else names[f.indices]
    return Code(f.values * best(f.values, number + ranks.rank() * 2**32, k), f.indices)


@dataclass(frozen=True)
class ShardedBatchTopK(ShardedTopK, BatchTopK):
    """BatchTopK: a rank's B·k best are candidates for the B·k best of all."""

    def encode(self, D: Dictionary, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch m"]:
        """The B·k largest entries of ReLU(z) over all ranks, of which these are the columns of this one."""
        f = self.z(D, x).relu()
        m, count = f.shape[1], self.k * len(x)
        values, at = largest((f.detach() * self.weight(D)).view(1, -1), None, min(count, f.numel()))
        order = at // m * (m * ranks.ranks()) + ranks.rank() * m + at % m  # where it lies in the whole of z
        kept = best(values, order, count)
        return f * torch.zeros_like(f).view(1, -1).scatter(1, at, kept.to(f)).view_as(f)

    def after(self, D: Dictionary, loss: Loss, now: Now) -> None:
        """θ from the smallest value kept on any rank."""
        assert isinstance(loss.code, Tensor)
        selected = loss.code * self.weight(D)
        here = selected[selected > 0].min() if (selected > 0).any() else selected.new_tensor(torch.inf)
        self.follow(D, ranks.reduced(here, dist.ReduceOp.MIN), now)


@dataclass(frozen=True)
class ShardedApril(April):
    """L1 with decoder norms: the penalty is a sum over ranks."""

    def loss(self, D: Dictionary, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"], now: Now) -> Loss:
        """L = ‖y − ŷ‖² + λ Σ_i f_i Σ_s ‖d_i^s‖ over the latents of all ranks."""
        f = self.z(D, x).relu()
        e = y - D.decode(f, x)
        penalty = ranks.summed((f * D.part_norms().sum(1)).sum(-1).mean())
        return Loss(squared(e), now.warm * self.sparsity * penalty, share(e, y), penalty, e.new_zeros(()), f)


SHARDED: dict[str, type[Kind]] = {k.name: k for k in (ShardedTopK, ShardedBatchTopK, ShardedApril)}


class ShardedTrainer(Trainer):
    """The trainer of one rank. What it is given and gives (`begin`, `state`, `restore`, `finished`) is the whole dictionary.

    Raises `WrongUse` for a kind that is not sharded, or latents that cannot be shared equally.
    """

    def __init__(self, config: TrainConfig, source: Source, device: str | torch.device = "cpu"):
        if config.kind.name not in SHARDED or config.cross_layer or config.end_to_end:
            what = "a cross-layer transcoder" if config.cross_layer else config.kind.name
            what = "a dictionary end to end" if config.end_to_end else what
            raise WrongUse(
                f"Under torchrun {', '.join(SHARDED)} share their latents; {what} cannot: train it in one process."
            )
        if config.latents % ranks.ranks():
            raise WrongUse(f"latents={config.latents} cannot be shared equally by {ranks.ranks()} processes.")
        super().__init__(config, source, device)
        self.kind = SHARDED[config.kind.name](**asdict(config.kind))
        ranks.same(config.to_dict() | {"reads": source.reads, "writes": source.writes, "rows": source.rows})

    def _made(self, shape: DictionaryConfig, made: type[Dictionary] = Shard) -> Dictionary:
        latents = shape.latents // ranks.ranks()
        return super()._made(replace(shape, latents=latents, k=shape.k and min(shape.k, latents)), made)

    def _alone(self) -> Trainer:
        return Trainer(self.config, self.source, self.device)

    def begin(self, sample: Pair | None = None) -> None:
        """The first weights are those of one process: they are drawn whole, and cut."""
        alone = self._alone()
        alone.begin(sample)
        self.restore(alone.state(), 0, alone.scales)

    def _clip(self) -> None:
        """By the norm of the whole gradient."""
        grads = {name: p.grad for name, p in self.trained.items() if p.grad is not None}
        squares = {name: g.square().sum() for name, g in grads.items()}
        here = sum(s for name, s in squares.items() if self._axis(name) is not None)
        everywhere = sum(s for name, s in squares.items() if self._axis(name) is None)
        norm = (ranks.reduced(torch.as_tensor(here)) + everywhere).sqrt()
        torch.nn.utils.clip_grads_with_norm_(self.trained.values(), self.config.clip, norm)

    def _axis(self, name: str) -> int | None:
        """Along which axis of a tensor of the state its latents lie; None for one that is on all ranks."""
        return AXES.get(name.rsplit(".", 1)[-1])

    def counts(self, loss: Loss) -> tuple[float, int]:
        """Over all ranks."""
        both = torch.tensor([l0(loss.code), float(self.dead.sum())], dtype=torch.float64)
        active, dead = ranks.reduced(both).tolist()
        return active, int(dead)

    def state(self) -> dict[str, Tensor]:
        """The whole state, put together on every rank: that of one process."""
        whole = {}
        for name, mine in self.tensors().items():
            axis = self._axis(name)
            whole[name] = mine if axis is None else torch.cat(ranks.gathered(mine), axis)
        return whole

    def restore(self, tensors: dict[str, Tensor], step: int, scales: Scales) -> None:
        """This rank's part of a whole state."""
        parts = dict(tensors)
        for name, whole in tensors.items():
            axis = self._axis(name)
            if axis is not None:
                parts[name] = whole.tensor_split(ranks.ranks(), axis)[ranks.rank()]
        super().restore(parts, step, scales)

    def finished(self) -> Dictionary:
        """The whole dictionary, on every rank."""
        alone = self._alone()
        alone.restore(self.state(), self.step, self.scales)
        return alone.finished()


class Follower(Run):
    """The run of a rank other than 0: it takes part in what is put together and writes nothing."""

    def restored(self, resume: bool) -> bool:
        """Rank 0 has made the folder and says what is wrong with it."""
        if resume and self.state.exists():
            self._restore()
        return self.saved is not None

    def begin(self) -> None:
        """Nothing is opened."""

    def log(self, loss: Loss) -> None:
        """Count together."""
        self.trainer.counts(loss)

    def save(self) -> None:
        """Put the state and the dictionary together."""
        self.trainer.state()
        self.saved = self.trainer.step
        self.publish()

    def publish(self) -> None:
        """Put the dictionary together."""
        self.trainer.finished()


def sharded_run(folder: Any, config: TrainConfig, source: Source, device: Any, command: str, watch: Any = ()) -> Run:
    """The run of this rank's part of a dictionary."""
    ranks.start()
    trainer = ShardedTrainer(config, source, device)
    return Follower(folder, trainer, command) if ranks.rank() else Run(folder, trainer, command, watch)
