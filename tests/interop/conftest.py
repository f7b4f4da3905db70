"""Dictionaries of every shape with weights away from every default; rows; and other libraries, where they are installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from interp.dictionaries import Dictionary, DictionaryConfig
from interp.files import save_tensors

ROOT = Path(__file__).parents[2]
D, WIDE, M, K = 6, 8, 40, 5  # widths, latents, active ones
STREAM, MLP = ("blocks.2.resid_post",) * 2, ("blocks.2.mlp.in", "blocks.2.mlp.write")
KINDS: dict[str, dict[str, object]] = {
    **{name: {"activation": name} for name in ("relu", "topk", "jumprelu", "pursuit", "codebook")},
    "heads": {"activation": "relu", "sites": ("blocks.2.attn.z",) * 2},
    **{f"{name} transcoder": {"activation": name, "sites": MLP} for name in ("relu", "topk", "jumprelu")},
    **{f"{name} skip": {"activation": name, "sites": MLP, "skip": True} for name in ("relu", "topk", "jumprelu")},
    "wide transcoder": {"activation": "relu", "sites": MLP, "d_out": WIDE},
    "wide topk": {"activation": "topk", "sites": MLP, "d_out": WIDE},
    "crosscoder": {"activation": "relu", "several": "crosscoder"},
    **{f"{name} across": {"activation": name, "several": "across"} for name in ("relu", "jumprelu", "topk")},
}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Matrices here are tiny."""
    torch.set_num_threads(1)


def config(
    activation: str, sites: tuple[str, str] = STREAM, d_out: int = D, skip: bool = False, several: str = ""
) -> DictionaryConfig:
    """A config of one or of three sites."""
    k = K if activation in ("topk", "pursuit", "codebook") else None
    if not several:
        return DictionaryConfig(sites[:1], sites[1:], D, d_out, M, k, activation, skip)
    reads = tuple(f"blocks.{i}.mlp.in" for i in range(3))
    writes = tuple(f"blocks.{i}.mlp.write" for i in range(3)) if several == "across" else reads
    widths = (D,) * 3
    return DictionaryConfig(
        reads, writes, 3 * D, 3 * D, 3 * M, k, activation,
        widths_in=widths, widths_out=widths, cross_layer=several == "across",
    )  # fmt: skip


@pytest.fixture
def made() -> Callable[..., Dictionary]:
    """`made(kind)`: a dictionary with random weights, float32 unless another dtype is given."""

    def build(kind: str, dtype: torch.dtype = torch.float32) -> Dictionary:
        dictionary = Dictionary(config(**KINDS[kind])).to(dtype)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, p in dictionary.tensors().items():
                drawn = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                p.copy_(drawn.abs() * 0.7 + 0.1 if name == "threshold" else drawn * 0.6 + 0.15)
        dictionary.confine()
        return dictionary

    return build


def rows(d: int, n: int = 300, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows away from zero, one scale a column."""
    generator = torch.Generator().manual_seed(6)
    scale = torch.linspace(0.5, 2, d, dtype=torch.float64)
    return (torch.randn(n, d, generator=generator, dtype=torch.float64) * scale + 0.4).to(dtype)


def peer(name: str, folder: Path) -> None:
    """Run tests/interop/peers/NAME.py over `folder` with the Python that has that library; skip where none has."""
    here = importlib.util.find_spec({"saelens": "sae_lens"}.get(name, name)) is not None
    python = Path(sys.executable) if here else ROOT / ".bench" / name / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"{name} is not installed: make bench-peers")
    save_tensors(folder / "x.safetensors", {"x": rows(D), "across": torch.stack(rows(3 * D).split(D, 1))})
    script = ROOT / "tests" / "interop" / "peers" / f"{name}.py"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-P", script, folder], capture_output=True, text=True, env=environment | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> None:
    """Assert that two tensors differ by `tolerance` of the largest entry at most, and are not all zero."""
    assert a.shape == b.shape
    size = float(a.detach().abs().max())
    assert size > 0.1
    assert float((a - b).detach().abs().max()) <= tolerance * size
