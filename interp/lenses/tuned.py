"""The tuned lens: one affine map a layer, trained so that the head reads from it what the model will say.

t_l(h) = h + W_l h + b_l,  logits_l = U(norm_f(t_l(h))),  loss_l = KL(p_model ‖ softmax(logits_l)), W_l and b_l zero at first.
Source: Belrose et al. 2023 (arXiv:2303.08112); the recipe is that of the authors' code.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interp.errors import Failed, WrongUse, check_keys
from interp.files import load_tensors, save_tensors, write_json
from interp.lenses.lens import Lens
from interp.lenses.readout import Readout
from interp.lenses.statistics import chunks, statistics
from interp.model.model import Model, Tokens
from interp.store.recording import windows

if TYPE_CHECKING:
    from jaxtyping import Float

FORMAT = 1


class TunedLens(Lens):
    """A translator t_l for each of `sites`, by default the stream before the first block and after each but the last.

    Untrained it is the logit lens, bit for bit. Translators are kept and applied in float32 (float64 for such a model).
    """

    kind = "tuned"

    def __init__(self, model: Model, sites: Sequence[str] | None = None) -> None:
        super().__init__(model)
        self.sites = [s for s in super().readable(sites) if s != self.head.last]
        if any(s.endswith(".result") for s in self.sites):
            raise WrongUse("a tuned lens has one translator a site: it reads a head's `result` not at all.")
        d, wide = model.width(self.head.last), torch.promote_types(self.head.dtype, torch.float32)
        self.W = [torch.zeros(d, d, dtype=wide, device=model.device) for _ in self.sites]
        self.b = [torch.zeros(d, dtype=wide, device=model.device) for _ in self.sites]

    def mapped(self, site: str, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """t_l(h); the last block's output stands as it is."""
        if site == self.head.last:
            return x
        return self.translated(self.sites.index(site), x)

    def translated(self, layer: int, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """h + W_l h + b_l by the `layer`-th translator, whatever layer h is of."""
        h = x.to(self.b[layer])
        return h + h @ self.W[layer].T + self.b[layer]

    def readable(self, sites: str | Sequence[str] | None = None) -> list[str]:
        """As any lens, and there must be a translator."""
        if sites is None:
            return [*self.sites, self.head.last]
        names = super().readable(sites)
        for name in names:
            if name not in self.sites and name != self.head.last:
                raise WrongUse(f"this tuned lens cannot read {name!r}: it has translators for {', '.join(self.sites)}.")
        return names

    # ------------------------------------------------------------ on disk

    def save(self, folder: str | Path) -> None:
        """config.json and weights.safetensors, with the hash of the unembedding that the lens belongs to."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{n}.{site}": t for n, ts in (("W", self.W), ("b", self.b)) for site, t in zip(self.sites, ts, strict=True)
        }
        save_tensors(folder / "weights.safetensors", tensors)
        about = {"format": FORMAT, "kind": self.kind, "model": self.model.id, "sites": self.sites}
        write_json(folder / "config.json", about | {"unembedding": fingerprint(self.head)})

    @classmethod
    def load(cls, folder: str | Path, model: Model) -> TunedLens:
        """The lens that `save` wrote. Raises `WrongUse` for a lens of another model, `Failed` for files that are damaged."""
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise WrongUse(
                f"{folder} holds no lens: there is no config.json. `interp train lens MODEL -o {folder}` makes one."
            )
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            tensors, _ = load_tensors(folder / "weights.safetensors")
        except (ValueError, OSError) as error:
            raise Failed(f"the lens in {folder} cannot be read: {error}") from error
        check_keys(config, ("format", "kind", "model", "sites", "unembedding"), f"{folder}/config.json")
        if config.get("format") != FORMAT or config.get("kind") != cls.kind:
            raise WrongUse(f"{folder} holds no {cls.kind} lens of format {FORMAT}: its config.json says {config}.")
        head = Readout(model)
        if config["unembedding"] != fingerprint(head):
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


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class Recipe:
    """The authors' defaults. lr None: 0.1 for "sgd" (Nesterov momentum 0.9), 1e-3 for "adam", falling linearly to 0."""

    steps: int = 250
    tokens: int = 2**18
    """tokens a step"""
    context: int = 2048
    optimizer: str = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 1e-3
    clip: float = 1.0
    """largest norm of the gradient of all translators together"""
    bias_only: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in ("sgd", "adam"):
            raise WrongUse(f"optimizer={self.optimizer!r} is neither 'sgd' nor 'adam'.")
        if self.steps < 1 or self.tokens < 1 or self.context < 2:
            raise WrongUse("steps and tokens must be at least 1, and context 2.")

    def rate(self, step: int) -> float:
        """The factor of the learning rate: 1 - step / steps, for Adam after a warm-up of min(1000, steps / 5)."""
        warm = min(1000, self.steps // 5) if self.optimizer == "adam" else 0
        return (step + 1) / warm if step < warm else (self.steps - step) / (self.steps - warm)

    def made(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        """The optimiser."""
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, self.lr or 1e-3, weight_decay=self.weight_decay)
        decay = {"weight_decay": self.weight_decay, "nesterov": self.momentum > 0, "momentum": self.momentum}
        return torch.optim.SGD(parameters, self.lr or 1 - self.momentum, **decay)  # type: ignore[arg-type]


def train_tuned_lens(
    model: Model, texts: Iterable[str], out: str | Path | None = None, recipe: Recipe | None = None
) -> TunedLens:
    """Train a `TunedLens` on texts; with `out`, save it there, beside recipe.json and metrics.csv (written as it goes).

    Layers are independent of each other: each has its own loss, averaged over the tokens of a step. Windows of text come
    in an order drawn by the seed, again from the start when they are used up. Raises `WrongUse` if there is no text.
    """
    from tqdm.auto import tqdm

    recipe, lens = recipe or Recipe(), TunedLens(model)
    folder = None if out is None else Path(out)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "recipe.json", asdict(recipe))
        (folder / "metrics.csv").unlink(missing_ok=True)
    trained = [*([] if recipe.bias_only else lens.W), *lens.b]
    optimiser = recipe.made([t.requires_grad_() for t in trained])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, recipe.rate)
    steps = itertools.islice(_steps(model, texts, recipe), recipe.steps)
    for step, group in enumerate(tqdm(steps, total=recipe.steps, desc="tuned lens", mininterval=1)):
        optimiser.zero_grad()
        losses = _backward(lens, group, trained)
        nn.utils.clip_grad_norm_(trained, recipe.clip)
        optimiser.step()
        schedule.step()
        if folder is not None:
            _log(folder / "metrics.csv", step, dict(zip(lens.sites, losses, strict=True)))
    for t in trained:
        t.requires_grad_(False)
    if folder is not None:
        lens.save(folder)
    return lens


def _steps(model: Model, texts: Iterable[str], recipe: Recipe) -> Iterator[list[Tokens]]:
    """The windows of each step, in batches of at most 8192 tokens."""
    wanted = recipe.steps * recipe.tokens
    found: list[list[int]] = []
    for _, ids in windows(model, texts, recipe.context):
        found.append(ids)
        wanted -= len(ids)
        if wanted <= 0:
            break
    if not found:
        raise WrongUse("the text is empty: there is nothing to train a lens on.")
    generator = torch.Generator().manual_seed(recipe.seed)
    stream = (found[i] for _ in itertools.count() for i in torch.randperm(len(found), generator=generator).tolist())
    while True:
        step, count = [], 0
        while count < recipe.tokens:
            step.append(next(stream)[: recipe.tokens - count])
            count += len(step[-1])
        size = max(1, 8192 // recipe.context)
        yield [model.pad(step[i : i + size]) for i in range(0, len(step), size)]


def _backward(lens: TunedLens, group: Sequence[Tokens], trained: Sequence[Tensor]) -> list[float]:
    """The mean loss of each layer, with its gradient: ∂KL(p_f ‖ p)/∂z = p - p_f, fed back through head and translator."""
    total, sums = sum(int(t.mask.sum()) for t in group), [0.0] * len(lens.sites)
    for tokens in group:
        cache = lens.model.record(tokens, [*lens.sites, lens.head.last])
        mask = tokens.mask.to(cache[lens.head.last].device)
        last = cache[lens.head.last][mask]
        for part in chunks(len(last), 5 * lens.head.width, last):
            with torch.no_grad():
                p_final = lens.head(last[part]).log_softmax(1)
            for layer, site in enumerate(lens.sites):
                with torch.enable_grad():
                    z = lens.logits(site, cache[site][mask][part])
                p = z.detach().log_softmax(1)
                sums[layer] += float((p_final.exp() * (p_final - p)).sum()) / total
                inputs = [t for t in trained if t is lens.W[layer] or t is lens.b[layer]]
                z.backward((p.exp() - p_final.exp()) / total, inputs=inputs)
    return sums


def _log(path: Path, step: int, losses: dict[str, float]) -> None:
    fresh = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(["step", *losses])
        writer.writerow([step, *(f"{loss:.6g}" for loss in losses.values())])


# ---------------------------------------------------------------- layers that read each other


@torch.no_grad()
def transfer(lens: TunedLens, x: Any) -> dict[str, Float[Tensor, "translator layer"]]:
    """What each translator makes of each layer: mean cross-entropy of the next token ("cross_entropy"), and mean
    KL(lens_j ‖ t_i(h_j)), how far it is from that layer's own translator ("kl"), over the tokens of `x`.
    """
    cache = lens.model.record(lens.model.inputs(x), [*lens.sites, lens.head.last])
    ids, mask = lens.places(lens.model.inputs(x), cache[lens.head.last])
    asked, n = lens.asked(ids, mask, ()), len(lens.sites)
    found = {name: torch.zeros(n, n, dtype=torch.float64) for name in ("cross_entropy", "kl")}
    known = int((asked[:, 0] >= 0).sum())
    for j, site in enumerate(lens.sites):
        x = cache[site][mask]
        seen = statistics(lens.head, [x] * n, lens.translated, lens.translated(j, x), asked, 1)
        found["cross_entropy"][:, j] = -seen.log_prob[..., 1].double().nansum(1).cpu() / max(known, 1)
        found["kl"][:, j] = seen.kl_forward.double().mean(1).cpu()
    return found
