"""Recording against the bare forward pass, raw hooks, TransformerLens and nnsight: time a site, time a pass, bytes.

    python -m benchmarks.record [--rounds 200 --passes 16 --repeats 2 --no-peers]
    python -m benchmarks.record --device cuda --dtype bfloat16 --model 1b

(i) six layers 64 wide, 1×8 tokens: what a site costs, (recorded - bare) / sites. (ii) six layers 512 wide, vocabulary 8192,
8×256 tokens: recorded / bare, and bytes above a bare pass over the bytes asked for. Groups: residuals (6 sites); outputs
(18: residuals, and what attention and MLPs return); everything (all of a library's own names; raw hooks: every module).

Each recorder runs in a process of its own and alternates with the bare pass of the same weights there; every pass is run
to its logits, which are no site. Processes alternate too, --repeats times. Intervals: 95 %, bootstrap over the pairs of all
repeats. On a CPU, time is that of the process' threads, so that others on the machine weigh less; wall time stands in the
JSON. Peers live in environments of their own: `make bench-peers`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.peers.recording import GROUPS, Recorder, hooked, network, serve

ROOT = Path(__file__).parent.parent
SITES = {
    "residuals": ["blocks.*.resid_post"],
    "outputs": ["blocks.*.resid_post", "blocks.*.attn.out", "blocks.*.mlp.out"],
    "everything": ["*"],
}
HERE = ("ours", "ours, stopped", "hooks", "hooks, clones")
PEERS = {"HookedTransformer": "tl", "TransformerBridge": "tl", "nnsight": "nnsight"}
GPU = ("ours", "ours, to host", "ours, to disk", "hooks")


# ---------------------------------------------------------------- what is measured here


def build(net: nn.Module, ids: Tensor, folder: Path, recorder: str) -> Recorder:
    """A recorder of this environment: ours, or raw hooks."""
    if recorder.startswith("hooks"):
        clone = recorder.endswith("clones")
        modules = {group: hooks_of(net, group) for group in GROUPS}
        return {group: lambda ms=ms: hooked(net, ids, ms, clone) for group, ms in modules.items()}
    from interp.model import load

    model = load(net)
    _, _, how = recorder.partition(", ")

    def record(group: str) -> list[Tensor]:
        rest = [] if how == "stopped" else ["logits"]
        cache = model.record(ids, [*SITES[group], *rest], device="cpu" if how.startswith("to") else None)
        return [t for name, t in cache.items() if name != "logits"]

    if how == "to disk":
        return {group: lambda group=group: stored(record(group), folder) for group in GROUPS[:1]}
    return {group: lambda group=group: record(group) for group in GROUPS}


def hooks_of(net: Any, group: str) -> list[nn.Module]:
    """The modules whose outputs a group means."""
    from benchmarks.peers.recording import blocks

    if group == "everything":
        return [m for m in net.modules() if m is not net]
    layers = blocks(net)
    inner = [m for b in layers for n, m in b.named_children() if n in ("attn", "self_attn", "mlp")]
    return layers + (inner if group == "outputs" else [])


def stored(tensors: list[Tensor], folder: Path) -> list[Tensor]:
    """Rows of every site into a new store, on the disk when done."""
    from interp.store import StoreWriter

    rows = {str(i): t.flatten(0, 1) for i, t in enumerate(tensors)}
    widths = {name: x.shape[1] for name, x in rows.items()}
    count = len(tensors[0].flatten(0, 1))
    with tempfile.TemporaryDirectory(dir=folder) as new, StoreWriter(new, widths=widths, expected_rows=count) as writer:
        writer.append(rows, documents=torch.zeros(count, dtype=torch.int64))
        writer.commit(None)
    return tensors


# ---------------------------------------------------------------- processes and intervals


def process(recorder: str, folder: Path, a: argparse.Namespace, shape: str, groups: str, rounds: int) -> dict[str, Any]:
    """What a fresh process measures of one recorder."""
    asked = {"recorder": recorder, "folder": folder, "shape": shape, "groups": groups, "rounds": rounds}
    asked |= {"device": a.device, "dtype": a.dtype}
    name = PEERS.get(recorder)
    python = ROOT / ".bench" / name / "bin" / "python" if name else sys.executable
    script = [f"benchmarks/peers/record_{name}.py"] if name else ["-m", "benchmarks.record", "--worker"]
    command = [str(python), "-W", "ignore", *script, *(part for k, v in asked.items() for part in (f"--{k}", str(v)))]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=offline)
    if done.returncode:
        raise SystemExit(f"{recorder}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def checkpoint(shape: str, folder: Path) -> Path:
    """The model on disk, with a tokenizer, for whoever loads by folder."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    net: Any = network(shape)[0]
    words = Tokenizer(models.WordLevel({str(i): i for i in range(net.config.vocab_size)}, unk_token="0"))
    zero = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "0")
    net.save_pretrained(folder / shape)
    PreTrainedTokenizerFast(tokenizer_object=words, **zero).save_pretrained(folder / shape)
    return folder / shape


def interval(pairs: np.ndarray, kind: str, sites: int, draws: int = 2000) -> dict[str, float]:
    """A statistic of pairs [pair, (bare, recorded)] and its 95 % bootstrap interval.

    "us_a_site": median of recorded - bare, by sites. "ratio": median of recorded over median of bare.
    """
    random = np.random.default_rng(0)
    drawn = pairs[random.integers(len(pairs), size=(draws, len(pairs)))]
    values = []
    for part in (pairs[None], drawn):
        bare, recorded = part[..., 0], part[..., 1]
        if kind == "ratio":
            values.append(np.median(recorded, 1) / np.median(bare, 1))
        else:
            values.append(np.median(recorded - bare, 1) * 1e6 / sites)
    low, high = np.quantile(values[1], [0.025, 0.975])
    return {"value": float(values[0][0]), "low": float(low), "high": float(high)}


def timed(told: list[dict[str, Any]], kind: str, cuda: bool) -> dict[str, Any]:
    """Of all repeats of one recorder: by group, the statistic on the clock that counts and on the wall's."""
    rows = {}
    for group in told[0]["groups"]:
        sites = told[0]["groups"][group]["sites"]
        pairs = np.array([p for t in told for p in t["groups"][group]["pairs"]])
        wall, cpu = pairs[:, [0, 2]], pairs[:, [1, 3]]
        both = {"wall": interval(wall, kind, sites), "cpu": interval(cpu, kind, sites)}
        rows[group] = {"sites": sites, kind: both["wall" if cuda else "cpu"]} | both
        rows[group]["bare_ms"] = {"wall": float(np.median(wall[:, 0]) * 1e3), "cpu": float(np.median(cpu[:, 0]) * 1e3)}
    return rows


def compared(recorders: list[str], folder: Path, a: argparse.Namespace) -> dict[str, Any]:
    """Both settings and the bytes, by recorder and group."""
    settings = {"1b": [("ratio", "1b", a.passes)]}.get(
        a.model, [("us_a_site", "tiny", a.rounds), ("ratio", "small", a.passes)]
    )
    result: dict[str, Any] = {"about": {}, "bytes": {}}
    for kind, shape, rounds in settings:
        place = checkpoint(shape, folder) if shape != "1b" else folder
        each, groups = -(-rounds // a.repeats), ",".join(a.groups)
        told: dict[str, list[dict[str, Any]]] = {r: [] for r in recorders}
        for _ in range(a.repeats):
            for name in recorders:
                told[name].append(process(name, place, a, shape, groups, each))
                print(f"{kind} {name}: {len(told[name])} of {a.repeats}", file=sys.stderr)
        result[kind] = {name: timed(t, kind, a.device == "cuda") for name, t in told.items()}
        result["about"] |= {name: t[0]["about"] for name, t in told.items()}
        if kind == "ratio" and not a.no_bytes:
            for name in recorders:
                found = process(name, place, a, shape, groups, 0)["groups"]
                for row in found.values():
                    row["over_asked"] = {k: row[k] / row["asked"] for k in ("allocated", "resident")}
                result["bytes"][name] = found
    return result


def hidden(result: dict[str, Any]) -> dict[str, float]:
    """Share of the copy to the host that the pass hides: 1 - (to host - to GPU) / (bytes / measured rate of the copy)."""
    size = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    target = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
    target.copy_(size)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    target.copy_(size, non_blocking=True)
    end.record()
    torch.cuda.synchronize()
    rate = size.nbytes / begin.elapsed_time(end) * 1e3
    shares = {}
    for group, row in result["ratio"]["ours, to host"].items():
        bare = row["bare_ms"]["wall"] / 1e3
        more = (row["ratio"]["value"] - result["ratio"]["ours"][group]["ratio"]["value"]) * bare
        shares[group] = 1 - more / (result["bytes"]["ours, to host"][group]["asked"] / rate)
    return shares | {"copy_GB_a_second": rate / 1e9}


def machine(device: str) -> dict[str, Any]:
    """Where the numbers come from."""
    about = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in about if line.startswith("model name")), platform.machine())
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    versions = {name: version(name) for name in ("torch", "transformers", "numpy")}
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu} | versions


def show(result: dict[str, Any]) -> None:
    """The table, ratios first."""
    for kind, title in (("ratio", "recorded / bare pass"), ("us_a_site", "µs a site")):
        for name, rows in result.get(kind, {}).items():
            for group, row in rows.items():
                x = row[kind]
                told = f"{x['value']:8.3f} [{x['low']:.3f}, {x['high']:.3f}]"
                print(f"{title:22}{name:20}{group:12}{row['sites']:4} sites {told}")
    for name, rows in result["bytes"].items():
        for group, row in rows.items():
            over, asked = row["over_asked"], row["asked"] / 2**20
            print(f"{'bytes / bytes asked':22}{name:20}{group:12}{over['allocated']:8.3f} allocated,"
                  f"{over['resident']:8.3f} resident, of {asked:.1f} MiB")  # fmt: skip


def main() -> None:
    """Print one JSON object and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="alternations of (i)")
    parser.add_argument("--passes", type=int, default=16, help="alternations of (ii)")
    parser.add_argument("--repeats", type=int, default=2, help="processes that share them")
    parser.add_argument("--model", choices=["small", "1b"], default="small")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--no-bytes", action="store_true")
    a = parser.parse_args()
    gpu = a.device == "cuda"
    recorders = [*(GPU if gpu else HERE), *([] if a.no_peers or gpu else PEERS)]
    with tempfile.TemporaryDirectory() as folder:
        result = compared(recorders, Path(folder), a)
    if gpu:
        result["hidden"] = hidden(result)
    result |= {"machine": machine(a.device), "asked": vars(a)}
    print(json.dumps(result, indent=1))
    show(result)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        sys.argv.remove("--worker")
        serve(build, {"interp-kit": version("interp-kit"), "transformers": version("transformers")})
    else:
        main()
