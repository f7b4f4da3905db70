"""Several dictionaries measured alike: one table, and error bars over those that differ in their seed alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.dictionaries.evaluate import flat
from interp.dictionaries.seeds import Interval, interval

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Measured:
    """One dictionary: where it is, what it was trained with, and what was measured (nested names joined by a dot)."""

    path: str
    seed: int | None
    config: Mapping[str, Any]  # of the training, but for the seed; its shape alone, if nothing says how it was trained
    measures: Mapping[str, float | None]

    @classmethod
    def of(cls, path: str | Path, measures: Mapping[str, Any]) -> Measured:
        """The folder of a run and what `evaluate` or `evaluate_model` said in `to_dict`."""
        file = Path(path) / "config.json"
        told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        made = told.get("made", {})
        config = dict(made.get("train") or {"path": str(path)} | told.get("dictionary", {}))
        seed = config.pop("seed", None)
        return cls(str(path), seed, config, flat(measures))


@dataclass(frozen=True)
class Comparison:
    """Dictionaries measured alike."""

    runs: tuple[Measured, ...]

    def groups(self) -> dict[str, list[Measured]]:
        """Runs whose configs agree in all but the seed, by what tells the groups apart: the kind, and settings that differ."""
        keys = list(dict.fromkeys(_key(run.config) for run in self.runs))
        titles = _titles([json.loads(key) for key in keys])
        return {
            title: [run for run in self.runs if _key(run.config) == key]
            for title, key in zip(titles, keys, strict=True)
        }

    def over_seeds(self) -> dict[str, dict[str, Interval]]:
        """Of every group and measure: mean ± half of the 95 % interval over its runs, NaN where a run has no such measure."""
        return {
            name: {m: interval([_number(run.measures.get(m)) for run in runs]) for m in self.names()}
            for name, runs in self.groups().items()
        }

    def names(self) -> list[str]:
        """The measures, in order."""
        return list(dict.fromkeys(name for run in self.runs for name in run.measures))

    def to_frame(self) -> pd.DataFrame:
        """A row a run: path, group, seed, measures."""
        import pandas as pd

        group = {id(run): name for name, runs in self.groups().items() for run in runs}
        rows = [{"path": r.path, "group": group[id(r)], "seed": r.seed, **r.measures} for r in self.runs]
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the runs, and each group's mean and half of its interval by measure; None for what does not exist."""
        runs = [{"path": r.path, "seed": r.seed, **r.measures} for r in self.runs]
        groups = {
            name: {
                "runs": len(self.groups()[name]),
                **{m: {"mean": _none(i.mean), "half": _none(i.half)} for m, i in found.items()},
            }
            for name, found in self.over_seeds().items()
        }
        return {"runs": runs, "groups": groups}


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _titles(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """`topk k=32`: the kind, and the settings in which configs of that kind differ; the path of what nothing is known of."""
    titles = []
    for config in configs:
        alike = [c for c in configs if _kind(c) == _kind(config)]
        differ = [n for n in config if n != "path" and len({_key(c.get(n)) for c in alike}) > 1]
        titles.append(" ".join([_kind(config), *(f"{n}={config[n]}" for n in differ)]))
    return titles


def _kind(config: Mapping[str, Any]) -> str:
    return str(config.get("kind", config.get("path")))


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _none(value: float) -> float | None:
    return None if value != value else value
