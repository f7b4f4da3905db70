"""The doctor on a tiny random model of every type that transformers knows: `interp coverage`.

Each type is built, proven and forgotten in a process of its own kind, with limits of time and memory, so that one model
that hangs or swallows the machine costs one row.
"""

from __future__ import annotations

import multiprocessing
import resource
import signal
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from interp.model.inputs import fitting, probe_inputs
from interp.model.load import load
from interp.model.proof import by_letter, doctor
from interp.model.stacks import repeated
from interp.model.tiny import tiny
from interp.model.trace import trace
from interp.model.twin import Lifted, twin_of

LETTERS = "abcdefgh"
MEMORY = 8 << 30  # bytes of address space a type may take
Row = dict[str, Any]
Job = Callable[[str, float], Row]


def cover(kind: str, limit: float = 10.0) -> Row:
    """One row: what was built of a type, what it was fed, what was seen, and each proof's verdict.

    Errors are part of the row: `error` says at which stage the type failed, and with what. More than `limit` seconds of
    processor time are an error too.
    """
    row: Row = {"type": kind, "stage": "build"}
    start = time.process_time()
    before = signal.signal(signal.SIGPROF, _over(limit))
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _fill(row, kind)
    except (Exception, MemoryError) as error:
        row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    row["seconds"] = round(time.process_time() - start, 2)
    return row


def _over(limit: float) -> Any:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {limit:g} s of processor time")

    return stop


def _fill(row: Row, kind: str) -> None:
    model = tiny(kind)
    row |= {"class": type(model).__name__, "parameters": sum(p.numel() for p in model.parameters()), "stage": "run"}
    twin = twin_of(model)
    with Lifted(), torch.no_grad():
        run = trace(twin, probe_inputs(twin))
    row |= {"inputs": list(fitting(twin)), "softmaxes": run.softmaxes, "attentions": len(run.attentions)}
    row |= {"repeated": repeated(twin, run), "stage": "prove"}
    wrapped = load(model)
    proofs = by_letter(doctor(wrapped, gradients=1))
    blocks = [block for stack in wrapped.wiring.stacks for block in stack.blocks]
    row |= {"blocks": len(blocks), "solved": sum(bool(b.sums) for b in blocks), "sites": len(wrapped.sites())}
    row["named"] = sum(name.endswith(".pattern") for name in wrapped.sites())
    row["proofs"] = {letter: _brief(proof) for letter, proof in proofs.items()}
    del row["stage"]


def _brief(proof: dict[str, Any]) -> dict[str, Any]:
    error = proof["error"]
    finite = error if error is None or error < float("inf") else None
    return {"status": proof["status"], "error": finite, "reason": proof["reason"][:300]}


# ---------------------------------------------------------------- many types


def _work(pipe: Connection, limit: float, job: Job) -> None:
    """Do the job for the types that come through the pipe, until it closes."""
    import transformers

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    pipe.send(None)  # ready: imports are not the first type's time
    while True:
        try:
            pipe.send(job(pipe.recv(), limit))
        except EOFError:
            return


def cover_all(kinds: Iterable[str], workers: int = 2, limit: float = 10.0, job: Job = cover) -> Iterator[Row]:
    """The rows that `job(kind, limit)` makes of all types, as they are done, from `workers` processes.

    A process that dies, or gives no answer in twenty times the limit, costs its row and is replaced.
    """
    context = multiprocessing.get_context("spawn")
    todo = deque(kinds)
    busy: dict[Any, tuple[Any, str, float]] = {}
    idle: list[tuple[Any, Any]] = []

    def begin() -> tuple[Connection, Any]:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, limit, job), daemon=True)
        process.start()
        theirs.close()
        ours.recv()
        return ours, process

    try:
        while todo or busy:
            while todo and len(busy) < workers:
                pipe, process = idle.pop() if idle else begin()
                busy[pipe] = (process, kind := todo.popleft(), time.monotonic())
                pipe.send(kind)
            ready: list[Any] = wait(list(busy), timeout=1.0)
            for pipe in ready:
                process, kind, _ = busy.pop(pipe)
                try:
                    yield pipe.recv()
                    idle.append((pipe, process))
                except EOFError:
                    yield {"type": kind, "stage": "run", "error": "the process died"}
            for pipe, (process, kind, since) in list(busy.items()):
                if time.monotonic() - since > 20 * limit:
                    process.kill()
                    del busy[pipe]
                    yield {"type": kind, "stage": "run", "error": f"hung: no answer in {20 * limit:g} s"}
    finally:
        for process in [*(b[0] for b in busy.values()), *(p for _, p in idle)]:
            process.kill()


# ---------------------------------------------------------------- the page


def counts(rows: Iterable[Row]) -> dict[str, Any]:
    """How many types there are, are built, are run, and pass, fail or are not applicable, for each proof."""
    rows = list(rows)
    result: dict[str, Any] = {"types": len(rows), "built": sum("class" in r for r in rows)}
    result["ran"] = sum("softmaxes" in r for r in rows)
    verdicts = {a: Counter(r["proofs"][a]["status"] for r in rows if a in r.get("proofs", {})) for a in LETTERS}
    result["proofs"] = {a: {s: verdicts[a][s] for s in ("pass", "fail", "na")} for a in LETTERS}
    return result
