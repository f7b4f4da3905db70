"""Run by sparsify's Python: opens our folders with its own loader, and writes an autoencoder and two transcoders."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder
from sparsify.config import SparseCoderConfig

D, M, K = 6, 40, 5
SHAPES = {"layers.2": (False, False), "layers.2.mlp": (True, False), "layers.2.mlp.skip": (True, True)}


def outputs(coder: SparseCoder, x: torch.Tensor, path: Path) -> None:
    with torch.no_grad():
        values, indices, _ = coder.encode(x)
        f = torch.zeros(len(x), coder.num_latents).scatter(1, indices, values)
        save_file({"f": f, "y": coder(x).sae_out.contiguous()}, path)


def main() -> None:
    folder = Path(sys.argv[1])
    x = load_file(folder / "x.safetensors")["x"]
    for path in sorted(p for p in (folder / "ours").iterdir() if p.is_dir()):
        outputs(SparseCoder.load_from_disk(path), x, path.with_name(f"{path.name}.out"))
    g = torch.Generator().manual_seed(5)
    for name, (transcode, skip) in SHAPES.items():
        coder = SparseCoder(D, SparseCoderConfig(num_latents=M, k=K, transcode=transcode, skip_connection=skip))
        for p in coder.parameters():
            p.data.copy_(torch.randn(p.shape, generator=g) * 0.5 + 0.2)
        coder.save_to_disk(folder / "theirs" / name)
        outputs(coder, x, folder / "theirs" / f"{name}.out")
    (folder / "told.json").write_text(json.dumps({"failed": {}}))


if __name__ == "__main__":
    main()
