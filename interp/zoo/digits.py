"""`zoo:digits`: the recipe of a vision transformer that reads scikit-learn's handwritten digits.

1,797 pictures of 8 × 8 pixels, of which a fifth, drawn with the seed so that every digit has its share, is held out.
`zoo:digits` has seed 0, `zoo:digits_1` to `zoo:digits_4` the seeds 1 to 4.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from interp.errors import Failed, WrongUse
from interp.files import write_atomic
from interp.model.load import load
from interp.zoo import training

if TYPE_CHECKING:
    from jaxtyping import Float, Int, UInt8

SIZE = 8  # pixels a side


@dataclass(frozen=True)
class Recipe(training.Recipe):
    """Every number of the training run; each picture is turned, scaled, sheared, moved and dimmed a little at every look."""

    steps: int = 1200
    decay: int = 900
    batch: int = 128
    d_model: int = 64
    heads: int = 4
    d_mlp: int = 128
    layers: int = 4
    patch: int = 2  # pixels a side
    turned: float = 0.25  # radians at most, either way
    scaled: float = 0.15  # share at most
    sheared: float = 0.15
    moved: float = 0.75  # pixels at most
    noise: float = 0.05  # standard deviation, of brightness 0 to 1


@cache
def pictures() -> tuple[UInt8[np.ndarray, "pictures 8 8"], Int[np.ndarray, " pictures"]]:
    """(Brightness 0 to 255, digit) of all pictures; scikit-learn has them as 0 to 16."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise Failed("the pictures of digits come with scikit-learn: pip install 'interp-kit[vision]'.") from error
    images, digits = load_digits(return_X_y=True)
    return np.rint(images.reshape(-1, SIZE, SIZE) * 255 / 16).astype(np.uint8), digits


@cache
def split(seed: int) -> tuple[Int[np.ndarray, " trained"], Int[np.ndarray, " held"]]:
    """(Pictures to train on, pictures held out): a fifth of each digit's, drawn with the seed."""
    from sklearn.model_selection import train_test_split

    digits = pictures()[1]
    trained, held = train_test_split(np.arange(len(digits)), test_size=0.2, stratify=digits, random_state=seed)
    return trained, held


def build_model(recipe: Recipe) -> Any:
    """The untrained model, seeded."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(recipe.seed)
    return ViTForImageClassification(
        ViTConfig(
            image_size=SIZE,
            patch_size=recipe.patch,
            hidden_size=recipe.d_model,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            intermediate_size=recipe.d_mlp,
            id2label={i: str(i) for i in range(10)},
            label2id={str(i): i for i in range(10)},
        )
    )


def processor() -> Any:
    """Eight by eight pixels, brightness from -1 to 1: the form of the processor that needs Pillow alone."""
    try:
        from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
    except ImportError as error:
        raise Failed("reading pictures needs Pillow: pip install 'interp-kit[vision]'.") from error
    return ViTImageProcessorPil(size={"height": SIZE, "width": SIZE})


def prepare(recipe: Recipe, out: Path) -> None:
    """Write the image processor into the folder."""
    processor().save_pretrained(out)


def seen(images: UInt8[np.ndarray, "pictures 8 8"]) -> Float[Tensor, "pictures 3 8 8"]:
    """What the processor makes of pictures, three equal colours each; a test compares the two."""
    return torch.from_numpy(images.astype(np.float32) / 127.5 - 1)[:, None].expand(-1, 3, -1, -1)


def varied(
    x: Float[Tensor, "pictures 3 8 8"], recipe: Recipe, rng: np.random.Generator
) -> Float[Tensor, "pictures 3 8 8"]:
    """The pictures turned, scaled, sheared, moved and dimmed, each by chance, with noise."""
    n = len(x)
    angle, stretch, shear = (rng.uniform(-most, most, n) for most in (recipe.turned, recipe.scaled, recipe.sheared))
    cos, sin = np.cos(angle) * (1 + stretch), np.sin(angle) * (1 + stretch)
    move = rng.uniform(-recipe.moved, recipe.moved, (n, 2)) * 2 / SIZE
    maps = np.stack([cos, shear * cos - sin, move[:, 0], sin, shear * sin + cos, move[:, 1]], 1).reshape(n, 2, 3)
    grid = nn.functional.affine_grid(torch.from_numpy(maps).float(), list(x.shape), align_corners=False)
    bright = nn.functional.grid_sample((x + 1) / 2, grid, align_corners=False)
    grain = torch.from_numpy(rng.normal(0, recipe.noise, (n, 1, SIZE, SIZE))).float()
    return ((bright + grain).clamp(0, 1) * 2 - 1).contiguous()


def batch(recipe: Recipe, step: int) -> dict[str, Tensor]:
    """Pictures [batch, 3, 8, 8], varied, and their digits [batch]."""
    rng = np.random.default_rng([recipe.seed, step])
    images, digits = pictures()
    chosen = rng.choice(split(recipe.seed)[0], recipe.batch)
    return {"pixel_values": varied(seen(images[chosen]), recipe, rng), "labels": torch.from_numpy(digits[chosen])}


@torch.no_grad()
def right(model: Any, images: UInt8[np.ndarray, "pictures 8 8"], digits: Int[np.ndarray, " pictures"]) -> float:
    """The share of these pictures whose digit the model tells."""
    said = model(pixel_values=seen(images).contiguous().to(model.device)).logits.argmax(-1).cpu().numpy()
    return float(np.mean(said == digits))


def measure(recipe: Recipe, model: Any) -> dict[str, float]:
    """The share of the held-out pictures told right."""
    images, digits = pictures()
    held = split(recipe.seed)[1]
    return {"held_out": right(model, images[held], digits[held])}


def neighbours(seed: int, k: int) -> float:
    """The share told right by the k nearest neighbours among the pictures trained on, by Euclidean distance."""
    from sklearn.neighbors import KNeighborsClassifier

    images, digits = pictures()
    rows, (trained, held) = images.reshape(len(images), -1).astype(float), split(seed)
    found = KNeighborsClassifier(k).fit(rows[trained], digits[trained])
    return float(found.score(rows[held], digits[held]))


def check(folder: str | Path, seed: int = 0, device: str = "cpu") -> dict[str, Any]:
    """`{models: {NAME: {seed, count, held_out, neighbours_1, neighbours_3}}, lowest, mean}`: shares of held-out pictures.

    Of the model in the folder and of those beside it that differ in their seed (digits_1 …), each on the pictures that
    its own seed held out, next to the nearest neighbours there. Nothing is drawn, so `seed` is not used.
    """
    folder, found = Path(folder), {}
    for path in [folder, *sorted(folder.parent.glob(f"{folder.name}_[0-9]*"))]:
        own = int(json.loads((path / "recipe.json").read_text(encoding="utf-8"))["seed"])
        images, digits = pictures()
        held = split(own)[1]
        shares = {"held_out": right(load(str(path), device=device).module, images[held], digits[held])}
        shares |= {f"neighbours_{k}": neighbours(own, k) for k in (1, 3)}
        found[path.name] = {"seed": own, "count": len(held)} | shares
    shares_held = [row["held_out"] for row in found.values()]
    return {"models": found, "lowest": min(shares_held), "mean": float(np.mean(shares_held))}


def sample(text: str | None, seed: int, out: Path | None) -> dict[str, Any]:
    """Write a held-out picture of a digit, of any unless it is given, to the picture file `out`."""
    if out is None:
        raise WrongUse("where shall the picture go? interp zoo sample digits --text 7 --out seven.png")
    if text is not None and text not in map(str, range(10)):
        raise WrongUse(f"{text!r} is no digit: give one from 0 to 9.")
    try:
        from PIL import Image
    except ImportError as error:
        raise Failed("writing a picture needs Pillow: pip install 'interp-kit[vision]'.") from error
    images, digits = pictures()
    held = split(0)[1]
    chosen = int(np.random.default_rng(seed).choice([i for i in held if text in (None, str(digits[i]))]))
    picture = Image.fromarray(images[chosen])
    write_atomic(out, lambda path: picture.save(path, format=Image.registered_extensions().get(out.suffix, "PNG")))
    return {"path": str(out), "answer": str(digits[chosen]), "held_out": True}
