"""Run by SAELens' Python: opens our folders with its own loader, and writes folders of every architecture it has.

FOLDER/ours/NAME → FOLDER/ours/NAME.out (f, y); FOLDER/theirs/NAME, FOLDER/theirs/NAME.out; failures by name in told.json.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, __version__
from sae_lens.registry import SAE_CLASS_REGISTRY
from safetensors.torch import load_file, save_file

D, WIDE, M = 6, 8, 40
MORE: dict[str, dict[str, Any]] = {
    "topk": {"k": 5},
    "abstopk": {"k": 5},
    "matching_pursuit": {"max_iterations": 5, "residual_threshold": 0.0, "stop_on_duplicate_support": False},
    "temporal": {"n_heads": 1, "bottleneck_factor": 20, "kval_topk": 5},
}


STOPS: dict[str, dict[str, Any]] = {
    "default": {},
    "least": {"max_iterations": 9, "residual_threshold": 1.5, "stop_on_duplicate_support": False},
}


def outputs(sae: Any, x: torch.Tensor, path: Path) -> None:
    with torch.no_grad():
        x = x.view(len(x), 2, -1) if sae.cfg.reshape_activations == "hook_z" else x
        y = sae(x)
        save_file({"f": sae.encode(x).contiguous(), "y": y.reshape(len(x), -1).contiguous()}, path)


def made(architecture: str, **more: Any) -> Any:
    across = "transcoder" in architecture
    cfg = {"architecture": architecture, "d_in": D, "d_sae": M, "apply_b_dec_to_input": not across} | more
    cfg |= {"d_out": WIDE} if across else {}
    cfg["metadata"] = {"hook_name": "blocks.2.hook_resid_post", "model_name": "gpt2", "prepend_bos": True}
    sae = SAE.from_dict(cfg) if not across else SAE_CLASS_REGISTRY[architecture][0].from_dict(cfg)
    g = torch.Generator().manual_seed(5)
    for name, p in sae.named_parameters():
        drawn = torch.randn(p.shape, generator=g) * 0.5 + 0.2
        p.data.copy_(drawn.abs() if name == "threshold" else drawn)
    if architecture == "matching_pursuit":  # trained ones have unit rows; a search with others need not end
        sae.W_dec.data.div_(sae.W_dec.data.norm(dim=1, keepdim=True))
    return sae


def main() -> None:
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    x = load_file(folder / "x.safetensors")["x"]
    for path in sorted(p for p in (folder / "ours").iterdir() if p.is_dir()):
        outputs(SAE.load_from_disk(path), x, path.with_suffix(".out"))
    failed = {}
    cases = {name: MORE.get(name, {}) for name in SAE_CLASS_REGISTRY}
    jobs = [(name, name, more) for name, more in cases.items()]
    jobs += [(f"{n} free", n, cases[n] | {"apply_b_dec_to_input": False}) for n in ("standard", "gated", "jumprelu")]
    jobs += [(f"matching_pursuit {n}", "matching_pursuit", stop) for n, stop in STOPS.items()]
    jobs += [("topk rescaled", "topk", {"k": 5, "rescale_acts_by_decoder_norm": True})]
    for name, architecture, more in jobs:
        try:
            sae = made(architecture, **more)
            sae.save_model(folder / "theirs" / name)
            outputs(sae, x if architecture != "temporal" else x[None], folder / "theirs" / f"{name}.out")
        except Exception as error:  # named in the test's report
            failed[name] = f"{type(error).__name__}: {error}"
    told = {"version": __version__, "architectures": sorted(SAE_CLASS_REGISTRY), "failed": failed}
    (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
