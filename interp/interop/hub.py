"""Where a dictionary is: a path, "zoo:MODEL/NAME", "hub:OWNER/REPOSITORY/FOLDER", or "saelens:RELEASE/ID" by SAELens' own table."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import yaml

from interp.errors import Failed, WrongUse, nearest
from interp.interop import formats, saelens
from interp.interop.parts import Read

TABLE = "pretrained_saes.yaml"  # a file of the package sae_lens
# layouts of releases that are read: SAELens' own, and those of formats here, by the functions that SAELens converts them with
READ = (None, "gemma_2", "gemma_2_transcoder", "gemma_3", "dictionary_learning_1", "mwhanna_transcoder", "sparsify")


def opened(where: str | Path) -> Read:
    """The dictionary at `where`; see `load_dictionary`."""
    kind, colon, name = str(where).partition(":")
    if colon and kind == "zoo":
        return _bundled(name)
    if colon and kind == "hub":
        return formats.read(fetched(name))
    if colon and kind == "saelens":
        return _release(name)
    return formats.read(where)


def _bundled(name: str) -> Read:
    """One that ships inside the package, in float32: its 16-bit numbers are widened, which is exact."""
    from interp.zoo import dictionary_path

    read = formats.read(dictionary_path(name))
    return Read(read.dictionary.float(), read.about)


def fetched(name: str) -> Path:
    """The local folder or file of "OWNER/REPOSITORY/FOLDER", fetched by huggingface_hub unless it is in its cache.

    Nothing but that is fetched, and the config beside a file. Raises `WrongUse` if no such thing can be named, `Failed`
    if it is not to be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    parts = name.strip("/").split("/")
    if len(parts) < 2 or not all(parts):
        raise WrongUse(f"hub:{name} names no repository: it should read hub:OWNER/REPOSITORY, or with a /FOLDER in it.")
    repository, folder = "/".join(parts[:2]), "/".join(parts[2:])
    beside = "/".join([*parts[2:-1], "config.*"])  # of a file: what its folder says of it
    try:
        local = snapshot_download(repository, allow_patterns=[f"{folder}/*", folder, beside] if folder else None)
    except HFValidationError as error:
        raise WrongUse(f"hub:{name}: {error}") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise Failed(f"hub:{name} is neither in the local cache nor could it be fetched: {error}") from error
    found = Path(local) / folder
    if not found.exists():
        raise WrongUse(f"The repository {repository} has no {folder}, or it is not in the local cache.")
    return found


def _release(name: str) -> Read:
    release, _, id = name.partition("/")
    table = _table()
    if release not in table:
        raise WrongUse(f"SAELens' table has no release {release!r}.{nearest(release, table)}")
    entry = table[release]
    rows = {str(row["id"]): row for row in entry["saes"]}
    if id not in rows:
        raise WrongUse(
            f"The release {release} has no {id!r}.{nearest(id, rows)} It has {len(rows)}: {', '.join([*rows][:5])}…"
        )
    if entry.get("conversion_func") not in READ:
        raise WrongUse(
            f"The release {release} is in a layout of its own ({entry['conversion_func']!r}), which is not read here. "
            f"Save it with SAELens' own `save_model`, and open that."
        )
    folder = fetched(f"{entry['repo_id']}/{rows[id]['path']}")
    if entry.get("conversion_func") is not None:
        return formats.read(folder)
    factor = {"norm_scaling_factor": rows[id]["norm_scaling_factor"]} if "norm_scaling_factor" in rows[id] else {}
    return saelens.read(folder, (entry.get("config_overrides") or {}) | factor)


def _table() -> dict[str, Any]:
    """SAELens' releases. Raises `WrongUse` if it is not installed: the table is its own."""
    spec = importlib.util.find_spec("sae_lens")
    if spec is None or spec.origin is None:
        raise WrongUse(
            "saelens:RELEASE/ID needs SAELens' table of releases: pip install sae-lens. Or name the repository itself: "
            "hub:OWNER/REPOSITORY/FOLDER."
        )
    with open(Path(spec.origin).parent / TABLE, encoding="utf-8") as file:
        table: dict[str, Any] = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return table
