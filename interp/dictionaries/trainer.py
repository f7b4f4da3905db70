"""One step of training, for every kind of dictionary: Adam, schedules, unit decoder rows, averages.

Everything random is a function of (seed, number of the pass), so the state of a run is its weights, Adam's moments,
the counters of silent latents, what its kind keeps, and the step: no generator has a state of its own to save.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from interp.dictionaries.config import DTYPES, TrainConfig
from interp.dictionaries.dictionary import Dictionary, DictionaryConfig
from interp.dictionaries.kinds import COUNTED, Loss, Now
from interp.dictionaries.sources import Pair, Source
from interp.dictionaries.sparse import fired, l0
from interp.dictionaries.start import Scales, initialise, scales, spread

SAMPLE_ROWS, SAMPLE_NUMBERS = 16_384, 2**25  # the rows that scales and centres are estimated on, and a bound on memory


class Trainer:
    """A dictionary in training units (see `scales`), its optimiser and its counters."""

    def __init__(self, config: TrainConfig, source: Source, device: str | torch.device = "cpu"):
        self.config, self.kind, self.source, self.device = config, config.kind, source, torch.device(device)
        self.dtype = torch.float64 if config.dtype == "float64" else torch.float32
        self.dictionary = self._made(self._shape()).to(self.device, self.dtype)
        self.lr = config.lr or self.kind.learning_rate(config.latents)
        self.window = min(config.dead_after, source.rows)
        self.optimiser = torch.optim.Adam(
            self.trained.values(), lr=self.lr, betas=self.kind.betas, eps=6.25e-10, fused=True
        )
        latents = self.dictionary.config.latents
        self.silent = torch.zeros(latents, dtype=torch.int64, device=self.device)  # rows since each latent fired
        self.averages = {name: torch.zeros_like(p) for name, p in self.trained.items() if config.average}
        self.scales: Scales = ((1.0,), (1.0,))
        self.step = 0

    def _shape(self) -> DictionaryConfig:
        c, source, kind = self.config, self.source, self.kind
        k = getattr(kind, "k", None) if kind.activation in COUNTED else None
        w_in, w_out = ((w if len(w) > 1 else ()) for w in (source.widths_in, source.widths_out))
        sites = (source.reads, source.writes, source.d_in, source.d_out)
        return DictionaryConfig(
            *sites, c.latents, k, kind.activation, c.skip, w_in, w_out, c.cross_layer, getattr(kind, "heads", 1)
        )

    def _made(self, shape: DictionaryConfig, made: type[Dictionary] = Dictionary) -> Dictionary:
        """A dictionary of this shape, with what its kind adds, and what is not trained marked as such."""
        D = made(shape, DTYPES[self.config.dtype])
        self.kind.prepare(D)
        D.W_dec.requires_grad_(not self.config.frozen_decoder)
        if not D.config.autoencoder:
            D.b_in.requires_grad_(self.kind.centred)
        return D

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that the optimiser moves, by name."""
        return {name: p for name, p in self.dictionary.named_parameters() if p.requires_grad}

    @property
    def sample_rows(self) -> int:
        """How many rows of the stream, the first ones, `begin` asks for."""
        source = self.source
        return min(source.rows, SAMPLE_ROWS, max(2, SAMPLE_NUMBERS // max(source.d_in, source.d_out)))

    @torch.no_grad()
    def begin(self, sample: Pair | None = None) -> None:
        """Scales, centres and directions of step 0, from the first rows of the stream: `sample`, if they were read already."""
        x, y = sample or next(self.source.batches(self.sample_rows, self.config.order, 0, 1))
        whole = torch.isfinite(x).all(1) & torch.isfinite(y).all(1)  # a damaged row is named at the step that meets it
        x, y = x[whole], y[whole]
        D = self.dictionary
        self.scales = scales(D, x, y, self.kind.sizes(D.config))
        s_x, s_y = self._spread(x)
        initialise(D, x * s_x, y * s_y, self.config.seed)
        if not (D.config.autoencoder or self.kind.centred):
            D.b_in.zero_()
        self.kind.begin(D, x * s_x, y * s_y)

    def update(self, x: Tensor, y: Tensor) -> Loss:
        """One step on the raw rows (x [batch, d_in], y [batch, d_out]); returns the loss before it."""
        return self._stepped(*self._scaled(x, y), self.kind.loss)

    def _scaled(self, x: Tensor, y: Tensor) -> Pair:
        """Raw rows in the units of training."""
        autoencoder = y is x
        s_x, s_y = self._spread(self.dictionary.b_dec)
        x = x.to(self.device, self.dtype) * s_x
        return x, x if autoencoder else y.to(self.device, self.dtype) * s_y

    def _stepped(self, x: Tensor, y: Tensor, loss_of: Callable[[Dictionary, Tensor, Tensor, Now], Loss]) -> Loss:
        c, D = self.config, self.dictionary
        now = Now(self.dead.nonzero().flatten(), self.step, c.steps, c.warm(self.step))
        loss = loss_of(D, x, y, now)
        self.optimiser.zero_grad()
        loss.total.backward(inputs=list(self.trained.values()))
        self._move()
        with torch.no_grad():
            self.silent += len(x)
            self.silent[fired(loss.code)] = 0
            self.kind.after(D, loss, now)
            self._forget(self.kind.revived(D, x, y, self.silent, now))
        return loss

    def _spread(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The scales, dimension by dimension."""
        c = self.dictionary.config
        return spread(self.scales[0], c.widths_in, like), spread(self.scales[1], c.widths_out, like)

    def _forget(self, latents: Tensor) -> None:
        """Latents that start anew have no momentum, and have not been silent."""
        self.silent[latents] = 0
        self.dictionary.confine()
        for name in {"W_enc", "b_enc", "W_dec", *self.kind.tensors} & self.trained.keys():
            for key in ("exp_avg", "exp_avg_sq"):
                moments = self.optimiser.state[self.trained[name]][key]
                (moments.T if name == "W_enc" else moments)[latents] = 0

    @property
    def dead(self) -> Tensor:
        """Which latents have not fired in the last `window` rows [m]."""
        return self.silent >= self.window

    @torch.no_grad()
    def _move(self) -> None:
        W = self.dictionary.W_dec
        unit = self.kind.unit and W.requires_grad
        if unit:
            project_out(W)
        self._clip()
        self.optimiser.param_groups[0]["lr"] = self.lr * self.config.schedule(self.step)
        self.optimiser.step()
        if unit:
            W.div_(W.norm(dim=1, keepdim=True))
        for name, average in self.averages.items():
            average.lerp_(self.trained[name], 1 - self.config.average)
        self.step += 1

    def _clip(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.trained.values(), self.config.clip)

    def counts(self, loss: Loss) -> tuple[float, int]:
        """Latents that fire on a row, of the last batch; and dead latents."""
        return l0(loss.code), int(self.dead.sum())

    @torch.no_grad()
    def finished(self) -> Dictionary:
        """The dictionary for raw rows: scales and all that only training needs folded into the weights."""
        s = self._spread(torch.empty(0, dtype=torch.float64, device=self.device))
        if not self.averages or not self.step:
            return self.kind.folded(self.dictionary).rescaled(*s)
        D = copy.deepcopy(self.dictionary)
        for name, average in self.averages.items():
            D.get_parameter(name).copy_(average / (1 - self.config.average**self.step))
        return self.kind.folded(D).unit_rows().rescaled(*s)

    def state(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on, of the whole dictionary."""
        return self.tensors()

    def tensors(self) -> dict[str, Tensor]:
        """Those that are here, themselves."""
        D = self.dictionary
        tensors: dict[str, Tensor] = {f"weights.{name}": p for name, p in D.named_parameters()}
        tensors |= {f"kept.{name}": t for name, t in D.named_buffers()}
        tensors |= {f"average.{name}": t for name, t in self.averages.items()}
        for name, p in self.trained.items():
            moments = self.optimiser.state[p]
            tensors |= {
                f"adam.{key}.{name}": moments.get(key, torch.zeros_like(p)) for key in ("exp_avg", "exp_avg_sq")
            }
        return tensors | {"silent": self.silent}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], step: int, scales: Scales) -> None:
        """Put back what `state` gave."""
        self.step, self.scales = step, scales
        for name, mine in self.tensors().items():
            if not name.startswith("adam."):
                mine.copy_(tensors[name])
        for name, p in self.trained.items():
            moments = {
                key: torch.empty_like(p).copy_(tensors[f"adam.{key}.{name}"]) for key in ("exp_avg", "exp_avg_sq")
            }
            self.optimiser.state[p] = {"step": torch.tensor(float(step), device=self.device), **moments}


def project_out(W: Tensor) -> None:
    """g_i ← g_i − ⟨g_i, d_i⟩ d_i: W.grad loses what would only change the length of the decoder's unit rows."""
    assert W.grad is not None
    W.grad.addcmul_(W, (W.grad * W).sum(1, keepdim=True), value=-1)
