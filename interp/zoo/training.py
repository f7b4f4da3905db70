"""How the zoo trains: one loop for every recipe, whose runs go on after a kill to the same bytes.

What a step does is a function of (seed, step). Matrices move by Muon, everything else by Adam.
"""

from __future__ import annotations

import copy
import csv
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from interp.files import command_line, load_tensors, save_tensors, write_json, write_text
from interp.zoo.regularisers import Penalty


def word_tokenizer(
    entries: list[str], pre: Any, single: str, length: int, normalizer: Any = None, decoder: Any = None, **named: str
) -> Any:
    """A tokenizer of whole entries, cut by `pre`; `single` is its template of a text, `named` its special tokens."""
    from tokenizers import Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({entry: i for i, entry in enumerate(entries)}, unk_token=named["unk_token"]))
    made.pre_tokenizer, made.decoder = pre, decoder or decoders.Fuse()
    if normalizer is not None:
        made.normalizer = normalizer
    around = [(word, entries.index(word)) for word in single.split() if word != "$A"]
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=around)
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=length, **named)


class Settings(Protocol):
    """What the loop and the optimisers read of a recipe."""

    @property
    def steps(self) -> int: ...
    @property
    def lr_matrix(self) -> float: ...
    @property
    def lr_other(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def dtype(self) -> str: ...


def orthogonalise(g: Tensor, iterations: int = 5) -> Tensor:
    """The nearest matrix with singular values about one, U Vᵀ of g = U S Vᵀ, by quintic Newton-Schulz [rows, columns]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g / (g.norm() + 1e-7)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    for _ in range(iterations):
        xx = x @ x.T
        x = a * x + (b * xx + c * xx @ xx) @ x
    return x if wide else x.T


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal (Jordan 2024): W ← (1 - η λ) W - η √max(1, rows/columns) · orth(g + μ m).

    torch.optim.Muon orthogonalises in bfloat16, which CPUs without bfloat16 units emulate at a tenth of the speed.
    """

    def __init__(
        self,
        params: Iterator[nn.Parameter] | list[nn.Parameter],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
    ):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every matrix."""
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(m, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


def optimisers(model: nn.Module, recipe: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the model, Adam for embeddings, heads, convolutions, norms and biases."""
    heads = {"lm_head", "proj_out", "classifier"}
    named = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n not in heads}
    matrices: list[nn.Parameter] = [module.get_parameter("weight") for module in named.values()]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside and p.requires_grad]
    return [
        Muon(matrices, lr=recipe.lr_matrix, weight_decay=recipe.weight_decay),
        torch.optim.Adam(others, lr=recipe.lr_other, betas=(0.9, 0.95), fused=True),
    ]


def _named_state(model: nn.Module, optimiser: torch.optim.Optimizer) -> Iterator[tuple[str, dict[str, Any], str]]:
    names = {p: n for n, p in model.named_parameters()}
    for group in optimiser.param_groups:
        for p in group["params"]:
            for key in optimiser.state[p]:
                yield f"{type(optimiser).__name__}.{key}.{names[p]}", optimiser.state[p], key


def save_state(path: Path, model: nn.Module, optimisers: list[torch.optim.Optimizer], step: int) -> None:
    """Weights, both optimisers' states and the step count in one file."""
    tensors = {f"weights.{n}": p for n, p in model.named_parameters()}
    for optimiser in optimisers:
        tensors |= {name: state[key] for name, state, key in _named_state(model, optimiser)}
    save_tensors(path, tensors, {"step": step})


@torch.no_grad()
def load_state(path: Path, model: nn.Module, optimisers: list[torch.optim.Optimizer]) -> int:
    """Put back what `save_state` wrote; returns the step to go on with."""
    tensors, meta = load_tensors(path)
    for name, p in model.named_parameters():
        p.copy_(tensors[f"weights.{name}"])
    for optimiser in optimisers:
        keys = ["momentum"] if isinstance(optimiser, Muon) else ["step", "exp_avg", "exp_avg_sq"]
        names = {p: n for n, p in model.named_parameters()}
        for p in (p for group in optimiser.param_groups for p in group["params"]):
            kind = type(optimiser).__name__
            optimiser.state[p] = {k: tensors[f"{kind}.{k}.{names[p]}"].to(p.device) for k in keys}
    return int(meta["step"])


def _log(path: Path, step: int, row: dict[str, Any]) -> None:
    """Append a row, dropping rows of steps after it that an interrupted run had written."""
    rows = []
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            rows = [r for r in csv.DictReader(file) if int(r["step"]) < step]
    lines = [",".join(row), *(",".join(map(str, r.values())) for r in [*rows, row])]
    write_text(path, "\n".join(lines) + "\n")


def begin(out: Path, recipe: Any, about: dict[str, Any] | None = None, penalty: Penalty | None = None) -> None:
    """Write the recipe of a run, and with what it is run, to `out/recipe.json`."""
    told = {"command": command_line(out), "python": sys.version.split()[0], "torch": torch.__version__}
    added = {} if penalty is None else {"penalty": asdict(penalty)}
    write_json(out / "recipe.json", asdict(recipe) | added | {"about": (about or {}) | told})


def descend(
    name: str,
    model: Any,
    recipe: Settings,
    out: Path,
    loss: Callable[[int], float],
    rate: Callable[[int], float],
    measure: Callable[[], dict[str, float]],
    save_every: int,
) -> None:
    """Train `model` in place, going on from `out/state.safetensors` if it is there.

    `loss(step)` leaves gradients and returns what they are of, `rate(step)` is the share of the learning rates, and
    every `save_every` steps the numbers of `measure()` are added to `metrics.csv` and the state is saved.
    """
    from tqdm.auto import tqdm

    both = optimisers(model, recipe)
    state = out / "state.safetensors"
    start = load_state(state, model, both) if state.exists() else 0
    running = math.nan
    bar = tqdm(range(start, recipe.steps), initial=start, total=recipe.steps, desc=name, mininterval=5)
    for step in bar:
        lost = loss(step)
        for optimiser, base in zip(both, (recipe.lr_matrix, recipe.lr_other), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = base * rate(step)
            optimiser.step()
            optimiser.zero_grad()
        running = lost if math.isnan(running) else 0.95 * running + 0.05 * lost
        bar.set_postfix(loss=f"{running:.3f}")
        done = step + 1
        if done % save_every == 0 or done == recipe.steps:
            row = {"step": done, "train": f"{lost:.4f}"} | {k: f"{v:.4f}" for k, v in measure().items()}
            _log(out / "metrics.csv", done, row)
            save_state(state, model, both, done)


def export(model: Any, out: Path) -> None:
    """The checkpoint that ships: bfloat16 weights, config and generation config, as Hugging Face writes them."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out)


@dataclass(frozen=True)
class Recipe:
    """Every number of a run that all small models share; each recipe adds its own."""

    steps: int = 2000
    batch: int = 256
    warmup: int = 100  # steps in which the learning rates rise
    decay: int = 1500  # steps at the end in which they fall, on a straight line, to zero
    lr_matrix: float = 0.02
    lr_other: float = 3e-3
    weight_decay: float = 0.02
    dtype: str = "float32"  # of the products; weights and sums are float32
    seed: int = 0

    def rate(self, step: int) -> float:
        """The share of the learning rates at a step."""
        return min(1.0, (step + 1) / self.warmup, (self.steps - step) / self.decay)


class Task(Protocol):
    """What the file of a small model holds: its recipe, its data, its model, and what the model is worth."""

    @property
    def Recipe(self) -> Any:
        """The class of its recipe."""

    def build_model(self, recipe: Any, /) -> Any:
        """The untrained model, seeded."""

    def prepare(self, recipe: Any, out: Path, /) -> None:
        """Write the tokenizer or the processor into the folder."""

    def batch(self, recipe: Any, step: int, /) -> dict[str, Tensor]:
        """What the model's forward takes at a step, the labels among it."""

    def measure(self, recipe: Any, model: Any, /) -> dict[str, float]:
        """Numbers for metrics.csv, on what is held out."""

    def check(self, folder: str | Path, seed: int, device: str) -> dict[str, Any]:
        """Every number that the model in the folder is quoted with."""

    def sample(self, text: str | None, seed: int, out: Path | None) -> dict[str, Any]:
        """An input of the model's, by default one that is held out, and the right answer."""


def loss_of(model: Any, inputs: dict[str, Tensor], dtype: str, penalty: Penalty | None = None) -> Tensor:
    """The model's own loss, its products in `dtype`, and a penalty on its hidden states (a decoder's, of two stacks)."""
    device = next(model.parameters()).device
    given = {name: t.to(device) for name, t in inputs.items()}
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        if penalty is None:
            return model(**given).loss
        out = model(**given, output_hidden_states=True)
    states = getattr(out, "hidden_states", None) or out.decoder_hidden_states
    mask = given.get("attention_mask")
    real = mask.bool() if mask is not None and mask.shape == states[0].shape[:2] else None
    return out.loss + penalty([s.float() for s in states], real)


def train(
    name: str,
    task: Task,
    out: str | Path,
    recipe: Any,
    save_every: int = 200,
    device: str = "cpu",
    penalty: Penalty | None = None,
) -> Path:
    """Train a small model into `out`, going on from `out/state.safetensors` if it is there; returns `out`.

    Writes `metrics.csv`, and at the end the weights in bfloat16 as a Hugging Face checkpoint. A `penalty` on hidden states
    is added to the loss; `recipe.json` says so under "penalty".
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    task.prepare(recipe, out)
    begin(out, recipe, penalty=penalty)
    model = task.build_model(recipe).to(device).train()

    def loss(step: int) -> float:
        lost = loss_of(model, task.batch(recipe, step), recipe.dtype, penalty)
        lost.backward()
        return lost.item()

    def measure() -> dict[str, float]:
        model.eval()
        found = task.measure(recipe, model)
        model.train()
        return found

    descend(name, model, recipe, out, loss, recipe.rate, measure, save_every)
    export(model, out)
    return out


def ready(task: Task, folder: Path, count: int, seed: int) -> dict[str, Tensor]:
    """Inputs [count, ...] of the model in a folder, drawn as a step of its training draws them, but at no step that there was.

    A decoder is given its start token and the answer but its last token.
    """
    from transformers import AutoConfig

    recipe = task.Recipe(batch=count, seed=json.loads((folder / "recipe.json").read_text(encoding="utf-8"))["seed"])
    made = task.batch(recipe, recipe.steps + seed)
    labels, config = made.pop("labels"), AutoConfig.from_pretrained(folder)
    if config.is_encoder_decoder:
        told, first = labels[:, :-1], labels.new_full((count, 1), config.decoder_start_token_id)
        made["decoder_input_ids"] = torch.cat([first, told.masked_fill(told == -100, config.pad_token_id)], 1)
        made["decoder_attention_mask"] = torch.cat([torch.ones_like(first), (told != -100).long()], 1)
    return made
