"""Our own folders: `config.json` and `weights.safetensors` (docs/formats.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from interp.dictionaries.dictionary import FORMAT, Dictionary, load_folder
from interp.files import read_json
from interp.interop.parts import Read

NAME, HOLDS = "interp", f'config.json that says "format": "{FORMAT}", and weights.safetensors'


def found(path: Path) -> bool:
    """Whether `path` is a folder of this format, one of a training run too, or would be were its config not damaged."""
    config = path / "config.json"
    try:
        whole = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else None
    except ValueError:
        return True
    return isinstance(whole, dict) and whole.get("format") == FORMAT


def read(path: Path) -> Read:
    """Read a folder that `Dictionary.save` or a training run wrote."""
    return Read(load_folder(path), {"format": NAME, "config": read_json(path / "config.json").get("made") or {}})


def write(D: Dictionary, path: Path, about: dict[str, Any]) -> list[str]:
    """Write a folder; returns what it has no place for: nothing."""
    D.save(path, about.get("config") if about.get("format") == NAME else {"from": about})
    return []
