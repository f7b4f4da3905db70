"""Run by dictionary_learning's Python: opens our folders with its own loader, and writes folders of every class it has."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from dictionary_learning import dictionary
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary
from safetensors.torch import load_file, save_file

D, M, K = 6, 40, 5
MADE = {
    "AutoEncoder": lambda: dictionary.AutoEncoder(D, M),
    "AutoEncoderNew": lambda: dictionary.AutoEncoderNew(D, M),
    "GatedAutoEncoder": lambda: dictionary.GatedAutoEncoder(D, M),
    "JumpReluAutoEncoder": lambda: dictionary.JumpReluAutoEncoder(D, M),
    "AutoEncoderTopK": lambda: AutoEncoderTopK(D, M, K),
    "BatchTopKSAE": lambda: BatchTopKSAE(D, M, K),
    "MatryoshkaBatchTopKSAE": lambda: MatryoshkaBatchTopKSAE(D, M, K, [10, 30]),
}


def outputs(model: Any, x: torch.Tensor, path: Path) -> None:
    with torch.no_grad():
        save_file({"f": model.encode(x).contiguous(), "y": model(x).contiguous()}, path)


def main() -> None:
    folder = Path(sys.argv[1])
    x = load_file(folder / "x.safetensors")["x"]
    for path in sorted(p for p in (folder / "ours").iterdir() if p.is_dir()):
        outputs(load_dictionary(str(path), "cpu")[0], x, path.with_suffix(".out"))
    g = torch.Generator().manual_seed(5)
    for name, make in MADE.items():
        model = make()
        for key, tensor in model.state_dict().items():
            if tensor.dtype == torch.float32:
                drawn = torch.randn(tensor.shape, generator=g) * 0.5 + 0.2
                tensor.copy_(drawn.abs() if key == "threshold" else drawn)
        path = folder / "theirs" / name
        path.mkdir(parents=True)
        torch.save(model.state_dict(), path / "ae.pt")
        trainer = {"dict_class": name, "k": K, "layer": 2, "submodule_name": "resid_post_layer_2"}
        (path / "config.json").write_text(json.dumps({"trainer": trainer}))
        outputs(model, x, folder / "theirs" / f"{name}.out")
    (folder / "told.json").write_text(json.dumps({"failed": {}}))


if __name__ == "__main__":
    main()
