"""Run by circuit-tracer's Python: opens our folders with its own loaders; writes transcoders of a layer and across layers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt
from circuit_tracer.transcoder.single_layer_transcoder import (
    SingleLayerTranscoder,
    load_gemma_scope_transcoder,
    load_relu_transcoder,
)
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

D, M, CPU = 6, 40, torch.device("cpu")


def outputs(model: Any, x: torch.Tensor, path: Path) -> None:
    with torch.no_grad():
        f, y = model.encode(x), model(x)
        if x.ndim == 3:
            f, y = torch.cat([*f], -1), torch.cat([*y], -1)
        save_file({"f": f.contiguous(), "y": y.detach().contiguous()}, path)


def opened(path: Path) -> Any:
    if (path / "params.npz").exists():
        return load_gemma_scope_transcoder(str(path / "params.npz"), 2, device=CPU)
    if (path / "W_enc_0.safetensors").exists():
        return load_clt(str(path), device=CPU, dtype=torch.float32, lazy_decoder=False)
    return load_relu_transcoder(
        str(path / "layer_2.safetensors"), 2, device=CPU, lazy_encoder=False, lazy_decoder=False
    )


def drawn(model: torch.nn.Module) -> Any:
    g = torch.Generator().manual_seed(5)
    for name, p in model.named_parameters():
        value = torch.randn(p.shape, generator=g) * 0.5 + 0.2
        p.data.copy_(value.abs() if "threshold" in name else value)
    return model


def main() -> None:
    folder = Path(sys.argv[1])
    rows = load_file(folder / "x.safetensors")
    for path in sorted(p for p in (folder / "ours").iterdir() if p.is_dir()):
        outputs(opened(path), rows["across" if "across" in path.name else "x"], path.with_suffix(".out"))
    theirs = folder / "theirs"
    theirs.mkdir()
    for jump in (False, True):
        for skip in (False, True):
            name = f"{'jumprelu' if jump else 'relu'} {'skip' if skip else 'transcoder'}"
            activation = JumpReLU(torch.zeros(M), 0.1) if jump else F.relu
            one = drawn(SingleLayerTranscoder(D, M, activation, 2, skip, device=CPU, dtype=torch.float32))
            (theirs / name).mkdir()
            save_file({k: v.contiguous() for k, v in one.state_dict().items()}, theirs / name / "layer_2.safetensors")
            outputs(one, rows["x"], theirs / f"{name}.out")
        kind = "jump_relu" if jump else "relu"
        across = drawn(CrossLayerTranscoder(3, M, D, kind, lazy_decoder=False, device=CPU, dtype=torch.float32))
        across.to_safetensors(str(theirs / f"{kind} across"))
        outputs(across, rows["across"], theirs / f"{kind} across.out")
    (folder / "told.json").write_text(json.dumps({"failed": {}}))


if __name__ == "__main__":
    main()
