"""What two regularisers do to a small model: trained without, with the layer cosine, and with Seq-VCR; writes a table.

    python -m benchmarks.regularisers [--model numbers_decoder --steps 600 --seed 0]

The same recipe, batches and steps each time, all weights from one seed; `interp zoo train NAME --penalty KIND` is the same
run. Measured on inputs that are not trained on. About ten minutes on an idle core; a run that is killed goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from interp import zoo
from interp.model import load
from interp.zoo import training
from interp.zoo.regularisers import Penalty
from probes.geometry import geometry

RUNS: dict[str, Penalty | None] = {
    "without": None,
    "layer-cosine 0.05": Penalty("layer-cosine", 0.05),
    "seq-vcr 0.1": Penalty("seq-vcr", 0.1),
}
SHOWN = ("linearity", "linearity of the update", "update", "matrix entropy", "participation ratio", "mean cosine")
HELD_OUT = 1_000_000  # a step that no run reaches: its batch is not trained on


def main() -> None:
    """Train what is not trained yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="numbers_decoder")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/regularisers"))
    asked = parser.parse_args()
    task = zoo.task(asked.model)
    recipe = task.Recipe(steps=asked.steps, decay=asked.steps * 3 // 4, seed=asked.seed)
    columns = [*task.measure(recipe, task.build_model(recipe).eval()), *SHOWN]
    print("| penalty | " + " | ".join(columns) + " |\n| --- |" + " ---: |" * len(columns))
    for name, penalty in RUNS.items():
        folder = asked.out / f"{asked.model}-{asked.steps}-{asked.seed}" / name.replace(" ", "-")
        if not (folder / "model.safetensors").exists():
            training.train(asked.model, task, folder, recipe, penalty=penalty)
        model = load(folder, dtype="float32")
        inputs = {n: t for n, t in task.batch(recipe, HELD_OUT).items() if n != "labels"}
        seen = geometry(model, inputs)
        numbers = [*task.measure(recipe, model.module).values(), *(float(seen.curve(c).mean()) for c in SHOWN)]
        print(f"| {name} | " + " | ".join(f"{v:.3f}" for v in numbers) + " |", flush=True)


if __name__ == "__main__":
    main()
