"""What two regularisers do to a small model: trained without, with the layer cosine, and with Seq-VCR; prints a table.

    python -m benchmarks.regularisers [--steps 400 --seed 0]

The recipe of `zoo:brackets` with six layers; the same batches and first weights each time. Measured on strings that are never
trained on: the share told right, and means of curves over layers. A run that is killed goes on. About two minutes on an
idle core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from interp.model import load
from interp.zoo import brackets, training
from interp.zoo.regularisers import Penalty
from probes.geometry import geometry

RUNS: dict[str, Penalty | None] = {
    "none": None,
    "layer-cosine, 0.05": Penalty("layer-cosine", 0.05),
    "seq-vcr, 0.1": Penalty("seq-vcr", 0.1),
}
SHOWN = ("linearity", "linearity of the update", "update", "matrix entropy", "participation ratio", "mean cosine")


def main() -> None:
    """Train what is not trained yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/regularisers"))
    asked = parser.parse_args()
    recipe = brackets.Recipe(steps=asked.steps, decay=asked.steps * 3 // 4, seed=asked.seed, layers=6)
    texts = brackets.examples(256, np.random.default_rng(1), brackets.KINDS)
    inputs = dict(brackets.tokenizer()(texts, padding=True, return_tensors="pt"))
    print("| penalty | told right | " + " | ".join(SHOWN) + " |\n| --- |" + " ---: |" * (len(SHOWN) + 1))
    for name, penalty in RUNS.items():
        folder = asked.out / f"{asked.steps}-{asked.seed}" / name.replace(", ", "-")
        if not (folder / "model.safetensors").exists():
            training.train("brackets", brackets, folder, recipe, penalty=penalty)
        model = load(folder, dtype="float32")
        seen = geometry(model, inputs)
        numbers = [brackets.measure(recipe, model.module)["held_out"], *(float(seen.curve(c).mean()) for c in SHOWN)]
        print(f"| {name} | " + " | ".join(f"{v:.3f}" for v in numbers) + " |", flush=True)


if __name__ == "__main__":
    main()
