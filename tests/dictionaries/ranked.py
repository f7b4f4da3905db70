"""Two processes against one: `python ranked.py FOLDER` prints JSON. As killed.py, one process imports torch and forks."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from interp import ranks
from interp.dictionaries import RowsSource, TrainConfig, train, train_many
from interp.dictionaries.sharded import ShardedTrainer, best
from interp.dictionaries.sparse import Code
from interp.dictionaries.trainer import Trainer
from interp.errors import Failed, WrongUse
from interp.files import load_tensors
from interp.kernels import largest

FILES = ("weights.safetensors", "config.json", "state.safetensors", "metrics.csv")
SMALL: dict[str, Any] = {
    "latents": 24,
    "batch": 32,
    "steps": 40,
    "lr": 3e-3,
    "log_every": 4,
    "save_every": 10,
    "seed": 5,
}
KINDS: dict[str, dict[str, Any]] = {
    "topk": {"k": 3, "dead_after": 64, "aux": 0.5, "k_aux": 3},
    "topk_transcoder": {"kind": "topk", "k": 3, "dead_after": 64, "skip": True, "average": 0.9, "clip": 0.05},
    "topk_dense": {"kind": "topk", "k": 20},  # more than one rank has latents
    "batchtopk": {"k": 2, "dead_after": 64, "aux": 0.5},
    "l1_april": {"sparsity": 0.3},
}


def config(name: str, **change: Any) -> TrainConfig:
    """A run of forty steps, in float64 unless said."""
    own = KINDS[name]
    return TrainConfig.from_dict(SMALL | {"kind": name, "dtype": "float64"} | own | change)


def source(name: str) -> RowsSource:
    """300 rows of 9 numbers, one of them far out so that some latents die; for transcoders with targets."""
    x = torch.randn(300, 9, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.1, 3, 9) + 0.4
    return RowsSource(x, x[:, :5].square() if "transcoder" in name else None)


def fork(out: Path, work: Callable[[], Any], count: int = 2) -> list[int]:
    """`count` ranks that do `work`; what rank r returns, or why it failed, goes into OUT.r.json."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(count):
        pid = os.fork()
        if not pid:
            os.environ |= {
                "RANK": str(rank),
                "WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            child(Path(f"{out}.{rank}.json"), work)
        pids.append(pid)
    return pids


def child(out: Path, work: Callable[[], Any]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    torch.set_num_threads(1)
    os.fsync = lambda handle: None  # only a power cut tells the difference
    try:
        told = {"value": work()}
    except (Failed, WrongUse) as error:
        told = {type(error).__name__: str(error)}
    except BaseException:
        told = {"bug": traceback.format_exc()}
    out.write_text(json.dumps(told))
    ranks.stop()  # as a process does at its end, which this one leaves out
    os._exit(0)


def both(out: Path, work: Callable[[], Any], count: int = 2) -> list[Any]:
    """What each rank returned."""
    for pid in fork(out, work, count):
        os.waitpid(pid, 0)
    return [json.loads(Path(f"{out}.{r}.json").read_text()) for r in range(count)]


def digests(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in FILES]


# ------------------------------------------------------------ in the ranks


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.double() - b.double()).abs().max().item() / max(1.0, b.double().abs().max().item())


def whole(t: torch.Tensor, axis: int | None) -> torch.Tensor:
    return t if axis is None else torch.cat(ranks.gathered(t), axis)


def stepwise(name: str, dtype: str) -> dict[str, Any]:
    """A sharded trainer beside one of its own, step by step: the largest differences, and how many latents were dead."""
    ranks.start()
    c, rows = config(name, dtype=dtype), source(name)
    one, two = Trainer(c, rows), ShardedTrainer(c, rows)
    sample = next(rows.batches(one.sample_rows, c.order, 0, 1))
    one.begin(sample)
    two.begin(sample)
    errors: dict[str, float] = {}
    sets = counters = True
    dead = 0

    def keep(what: str, error: float) -> None:
        errors[what] = max(errors.get(what, 0.0), error)

    for x, y in rows.batches(c.batch, c.order, 0, 25):
        dead = max(dead, int(one.dead.sum()))
        a, b = one.update(x, y), two.update(x, y)
        for part in ("total", "fvu", "sparsity", "aux"):
            keep(part, far(getattr(b, part), getattr(a, part)))
        for param, p in two.trained.items():
            keep("gradients", far(whole(p.grad, two._axis(param)), one.trained[param].grad))
        for key, mine in two.state().items():
            if key != "silent":
                keep("state", far(mine, one.state()[key]))
        f, g = (v.code.dense(m) if isinstance(v.code, Code) else v.code for v, m in ((a, 24), (b, 12)))
        sets &= torch.equal(whole(g, 1) > 0, f > 0)
        counters &= torch.equal(two.state()["silent"], one.silent)
        counters &= two.counts(b) == one.counts(a)
    p = two.finished()
    keep("finished", max(far(t, one.finished().tensors()[n]) for n, t in p.tensors().items()))
    return {"errors": errors, "sets": sets, "counters": counters, "dead": dead}


def ties() -> bool:
    """Values from {0, 1, 2, 3}: the k best are those of one process, ties and rows with too few included."""
    ranks.start()
    rank, good = ranks.rank(), True
    for k in (1, 3, 7, 12):
        z = (
            torch.randint(0, 4, (200, 12), generator=torch.Generator().manual_seed(k)).double()
            * (torch.arange(200) % 3 > 0)[:, None]
        )
        values, indices = largest(z, None, k)
        wanted = torch.zeros_like(z).scatter(1, indices, values)
        here = z[:, :7] if rank == 0 else z[:, 7:]  # of unequal size
        mine, at = largest(here, None, min(k, here.shape[1]))
        kept = best(mine, at + 7 * rank, k)
        got = torch.zeros_like(here).scatter(1, at, mine * kept)
        good &= torch.equal(got, wanted[:, :7] if rank == 0 else wanted[:, 7:])
    return good


def full(name: str, out: Path, **change: Any) -> None:
    train(config(name, **change), source(name), out, resume=True, command="t")


def dies(name: str, out: Path) -> None:
    """Rank 1 is killed in its 24th step."""
    update, seen = ShardedTrainer.update, [0]

    def killed(trainer: Any, x: Any, y: Any) -> Any:
        seen[0] += 1
        if ranks.rank() == 1 and seen[0] == 24:
            os.kill(os.getpid(), signal.SIGKILL)
        return update(trainer, x, y)

    ShardedTrainer.update = killed  # type: ignore[method-assign]
    full(name, out)


# ------------------------------------------------------------ what is told


def killed(folder: Path) -> dict[str, Any]:
    """What rank 0 says, how soon, and whether the two that go on end as if nothing had happened."""
    both(folder / "straight", lambda: full("topk", folder / "straight"))
    out = folder / "killed"
    first, second = fork(out, lambda: dies("topk", out))
    os.waitpid(second, 0)
    begin = time.monotonic()
    os.waitpid(first, 0)
    seconds = time.monotonic() - begin
    said = json.loads(Path(f"{out}.0.json").read_text())
    step = load_tensors(out / "state.safetensors")[1]["step"]
    again = both(out, lambda: full("topk", out))
    return {
        "said": said,
        "seconds": seconds,
        "step": step,
        "again": again,
        "same": digests(out) == digests(folder / "straight"),
    }


def exchanged(folder: Path) -> dict[str, Any]:
    """Begun by two and ended by one, and the other way round, against one process all along: the largest difference."""
    told = {}
    for name in ("topk", "batchtopk"):
        short = lambda out: train_until(name, out)  # noqa: B023, E731
        for first, second in ((2, 1), (1, 2)):
            out = folder / f"{name}{first}"
            begun = both(out, lambda: short(out), first)  # noqa: B023
            ended = both(out, lambda: full(name, out), second)  # noqa: B023
            alone = folder / f"{name}_alone"
            both(alone, lambda: full(name, alone), 1)  # noqa: B023
            a, b = (load_tensors(p / "weights.safetensors")[0] for p in (out, alone))
            told[f"{name}{first}"] = {"begun": begun, "ended": ended, "far": max(far(a[n], b[n]) for n in b)}
    return told


def train_until(name: str, out: Path) -> None:
    """Stop in step 24, after the checkpoint of step 20."""
    update, seen = Trainer.update, [0]

    def stops(trainer: Any, x: Any, y: Any) -> Any:
        seen[0] += 1
        if seen[0] == 24:
            raise Failed("stopped")
        return update(trainer, x, y)

    Trainer.update = stops  # type: ignore[method-assign]
    full(name, out)


def many(out: Path, together: int = 1) -> list[str]:
    configs = {n: config("topk", seed=i, data_seed=0) for i, n in enumerate("abc")}
    return list(train_many(configs, source("topk"), out, command="t", together=together))


def parts(out: Path) -> Any:
    """Of a mesh: which process of how many, and what a row and a column of it add up to."""
    layout, told = ranks.mesh(rows=2, columns=2), []
    me = torch.tensor(2.0 ** ranks.rank())
    for part in ("rows", "columns"):
        with ranks.within(layout[part]):
            told.append([ranks.rank(), ranks.ranks(), int(ranks.reduced(me)), ranks.told(int(me)), ranks.share("abc")])
    return told


def different(out: Path) -> None:
    rank = int(os.environ["RANK"])
    train(replace(config("topk"), lr=1e-3 * (rank + 1)), source("topk"), out)


def parted() -> int:
    """How many threads are left when the ranks have parted, though an optimizer came in between."""
    torch.set_num_threads(1)
    ranks.start()
    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # brings functions that have the group as a default
    ranks.told("here")
    ranks.stop()
    return len(os.listdir("/proc/self/task"))


def main() -> None:
    folder = Path(sys.argv[1])
    told: dict[str, Any] = {"parted": both(folder / "parted", parted)}  # first: those functions are not here yet
    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], fused=True)
    for name in ("safetensors.torch", "tqdm.auto", "torch.distributed.device_mesh"):
        importlib.import_module(name)
    assert dist.is_available()
    told["ties"] = both(folder / "ties", ties)
    for dtype in ("float64", "float32"):
        told[dtype] = {n: both(folder / f"{n}_{dtype}", lambda n=n, dtype=dtype: stepwise(n, dtype)) for n in KINDS}
    told["killed"] = killed(folder)
    told["exchanged"] = exchanged(folder)
    told["many"] = both(folder / "many", lambda: many(folder / "many"))
    both(folder / "many_alone", lambda: many(folder / "many_alone"), 1)
    told["many_same"] = all(digests(folder / "many" / n) == digests(folder / "many_alone" / n) for n in "abc")
    told["parts"] = both(folder / "parts", lambda: parts(folder / "parts"), 4)
    told["together"] = both(folder / "together", lambda: many(folder / "together", 2), 4)
    told["together_far"] = max(
        far(load_tensors(folder / "together" / n / "weights.safetensors")[0][t], whole)
        for n in "abc"
        for t, whole in load_tensors(folder / "many_alone" / n / "weights.safetensors")[0].items()
    )
    told["too_few"] = both(folder / "too_few", lambda: many(folder / "too_few", 3))
    told["different"] = both(folder / "different", lambda: different(folder / "different"))
    told["unequal"] = both(folder / "unequal", lambda: full("topk", folder / "unequal", latents=25))
    told["other_kind"] = both(
        folder / "other",
        lambda: train(TrainConfig.from_dict(SMALL | {"kind": "jumprelu"}), source(""), folder / "other"),
    )
    print(json.dumps(told))


if __name__ == "__main__":
    main()
