"""Wrap any model, record any activation, and hand it to lenses, sparse dictionaries, probes and circuit finders."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
_WHERE = {
    "interp.model": [
        "Cache",
        "Edit",
        "Freeze",
        "Mean",
        "Model",
        "Noise",
        "Patch",
        "Project",
        "Replace",
        "Resample",
        "Scale",
        "Steer",
        "Together",
        "Tokens",
        "Zero",
        "attribution_patching",
        "edits_from_json",
        "folded",
        "load",
    ],
    "interp.lenses": ["DecoderLens", "DirectLogits", "Lens", "Trajectory", "TunedLens", "direct_logit_attribution"],
    "interp.store": ["StoreWriter", "open_store"],
    "interp.dictionaries": ["Dictionary", "DictionaryConfig", "TrainConfig", "load_dictionary"],
    "interp.errors": ["Failed", "WrongUse"],
}
_NAMES = {name: module for module, names in _WHERE.items() for name in names}
__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    """Load an attribute's module when it is first asked for, so that `import interp` costs nothing."""
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    from interp.errors import nearest

    raise AttributeError(f"interp has no {name!r}.{nearest(name, _NAMES)}")


def __dir__() -> list[str]:
    return [*globals(), *_NAMES]
