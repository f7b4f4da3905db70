"""The command line: one JSON object, exit statuses, errors that teach."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from interp.cli import main


def interp(*words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "interp", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stderr
    return done


@pytest.fixture
def here(monkeypatch, capsys):
    """The command in this process, as it is typed: what it prints and its errors. One of each kind also runs in its own."""

    def run(*words: str, status: int = 0):
        monkeypatch.setattr(sys, "argv", ["interp", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert (ended.value.code or 0) == status, said.err
        return said

    return run


def test_importing_interp_is_instant():
    """Best of five, each in a fresh interpreter; and nothing heavy is loaded."""
    code = "import time; t=time.perf_counter(); import interp; d=time.perf_counter()-t; import sys; print(d, 'torch' in sys.modules)"
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() for _ in range(5)
    ]
    assert {loaded for _, loaded in runs} == {"False"}
    assert min(float(seconds) for seconds, _ in runs) < 0.3


def test_every_command_of_the_group_can_be_loaded_and_has_json():
    import typer

    points = entry_points(group="interp.commands")
    assert {"record", "sites", "doctor", "store", "zoo"} <= {p.name for p in points}
    for point in points:
        loaded = point.load()
        functions = [c.callback for c in loaded.registered_commands] if isinstance(loaded, typer.Typer) else [loaded]
        for function in functions:
            assert "as_json" in function.__wrapped__.__annotations__, point.name


def test_a_group_says_which_commands_it_has():
    wrong = interp("machine", "pariti", "--json", status=2)
    assert "Did you mean 'parity'" in json.loads(wrong.stdout)["error"]
    assert "It has: parity, first, subleq" in wrong.stderr
    assert "Did you mean 'compile'" in interp("rasp", "compiel", status=2).stderr


@pytest.mark.slow("a process that imports torch and transformers, and a model examined")
def test_sites_and_doctor_print_one_object(tiny_folder, here):
    listed = json.loads(interp("sites", str(tiny_folder), "--json").stdout)
    assert listed["sites"]["blocks.1.attn.k"] == ["batch", "pos", 2, 8]
    proven = json.loads(here("doctor", str(tiny_folder), "--json").out)
    assert set(proven["proofs"]) == set("abcdefgh")
    assert {p["status"] for p in proven["proofs"].values()} == {"pass"}
    assert "resid_post" in here("sites", str(tiny_folder)).out


@pytest.mark.slow("a process that imports torch and transformers")
def test_exit_statuses(tiny_folder, tmp_path, here):
    out = ("-o", str(tmp_path / "s"), "--json")
    wrong = interp("record", str(tiny_folder), "--site", "blocks.0.resid_pots", *out, status=2)
    assert "resid_post" in json.loads(wrong.stdout)["error"]
    assert here("record", str(tiny_folder), "--sites", "embed", status=2).out == ""
    assert "no folder" in here("sites", "./nowhere", status=2).err
    planned = here("record", str(tiny_folder), "--site", "embed", "--tokens", "100", "--dry-run", *out)
    assert set(json.loads(planned.out)) == {"windows", "rows", "bytes", "minutes"}
    assert not (tmp_path / "s").exists()
    (tmp_path / "empty").mkdir()
    assert "no checkpoint" in here("doctor", str(tmp_path / "empty"), status=2).err


def test_unknown_command_is_wrong_use():
    assert "trian" in interp("trian", status=2).stderr
