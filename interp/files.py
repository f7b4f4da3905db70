"""Files that are never half written: tensors as safetensors, everything else as JSON."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from interp.errors import Failed, WrongUse


def command_line(out: str | Path | None = None) -> str:
    """The command this process was started with, for saved files; the output folder reads OUT and --resume is left out.

    So a run into another folder, or an interrupted one, saves the same bytes.
    """
    words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
    same = [out is not None and os.path.abspath(w) == os.path.abspath(out) for w in words]
    return shlex.join("OUT" if s else w for w, s in zip(words, same, strict=True) if w != "--resume")


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary)` and rename the result to `path`: readers see the old file or the new one, never a part.

    Raises whatever `write` raises (disk full, for one); `path` is then as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write text as UTF-8, atomically."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def save_tensors(path: str | Path, tensors: Mapping[str, Any], meta: Mapping[str, Any] | None = None) -> None:
    """Write named tensors and a JSON-able `meta` into one safetensors file, atomically."""
    from safetensors.torch import save

    data = save({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, {"meta": json.dumps(dict(meta or {}))})
    write_atomic(path, lambda temporary: temporary.write_bytes(data))


def load_tensors(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what `save_tensors` wrote: `(tensors, meta)`.

    Raises `ValueError` naming the file if it is cut or is no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (safe_open is no dict)
            meta = json.loads((file.metadata() or {}).get("meta", "{}"))
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}). It may have been cut: restore or delete it."
        ) from error
    return tensors, meta


def read_tensors(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file. Raises `Failed` naming the file if it is cut or is not there."""
    if not path.is_file():
        raise Failed(f"{path} does not exist: the folder has a config but no weights.")
    try:
        return load_tensors(path)[0]
    except ValueError as error:
        raise Failed(str(error)) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `Failed` naming the file if it is none."""
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Failed(f"{path} is no JSON file: {error}.") from error
    if not isinstance(whole, dict):
        raise Failed(f"{path} should hold one JSON object; it holds a {type(whole).__name__}.")
    return whole


def check_run(out: Path, settings: dict[str, Any], resume: bool) -> None:
    """Raise `WrongUse` where `out` holds a run (a recipe.json) and is not gone on with, or one with other settings."""
    file = out / "recipe.json"
    if not file.exists():
        return
    if not resume:
        raise WrongUse(f"{out} holds a run already: add --resume, or give another -o FOLDER.")
    saved = json.loads(file.read_text(encoding="utf-8"))
    for name, value in settings.items():
        if saved.get(name) != value:
            raise WrongUse(f"{out} holds a run with {name} {saved.get(name)}, not {value}: give another folder.")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows with the same keys as CSV."""
    write_text(path, "\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]) + "\n")
