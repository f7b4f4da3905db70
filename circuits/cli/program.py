"""`interp program`: train a transformer that is a program, print it, run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import answer, guarded
from interp.cli.options import AsJson
from interp.errors import WrongUse, nearest

if TYPE_CHECKING:
    from circuits.programs import Program, Task

app = typer.Typer(no_args_is_help=True, help=__doc__)

PROGRAM = typer.Argument(help="folder of a run, or a task whose program ships")
SMALL = "simplified.json"

DATA = typer.Option(help="labelled text, for the tasks that are learnt from it")


def _setting(text: str) -> Any:
    return typer.Option(help=f"{text}; default: the task's own")


@app.command()
@guarded
def train(
    task: Annotated[str, typer.Argument(help="what to learn; `interp program tasks` lists them")],
    out: Annotated[Path, typer.Option("-o", "--out", help="folder of the run")],
    seed: Annotated[int | None, _setting("of all that is drawn")] = None,
    seeds: Annotated[int | None, _setting("random beginnings that are trained at once; the best go on")] = None,
    generations: Annotated[
        int | None, _setting("generations at most; later ones begin from copies of the best")
    ] = None,
    copies: Annotated[int | None, _setting("copies, with a step or two drawn anew")] = None,
    steps: Annotated[int | None, _setting("training steps a generation")] = None,
    batch: Annotated[int | None, _setting("inputs a step")] = None,
    lr: Annotated[float | None, _setting("learning rate")] = None,
    hot: Annotated[float | None, _setting("temperature at first")] = None,
    cold: Annotated[float | None, _setting("temperature at the end")] = None,
    noise: Annotated[float | None, _setting("how much Gumbel noise: 1 samples choices, 0 takes their mean")] = None,
    layers: Annotated[int | None, _setting("layers")] = None,
    closest: Annotated[int | None, _setting("heads a layer that read the closest match")] = None,
    count: Annotated[int | None, _setting("heads a layer that count matches")] = None,
    tables: Annotated[int | None, _setting("tables a layer of two values")] = None,
    count_tables: Annotated[int | None, _setting("tables a layer of two counts")] = None,
    readable: Annotated[
        bool | None, typer.Option("--readable/--votes", help="read the label from one variable, or let all vote")
    ] = None,
    words: Annotated[int | None, _setting("variables that sort words into kinds")] = None,
    kinds: Annotated[int | None, _setting("kinds of words")] = None,
    data: Annotated[Path | None, DATA] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with an interrupted run")] = False,
    as_json: AsJson = False,
) -> None:
    """Learn a task from random parameters, print the best seed's program as Python, and say how often that file is right."""
    given = {"seed": seed, "seeds": seeds, "steps": steps, "batch": batch, "lr": lr, "hot": hot, "cold": cold}
    given |= {"noise": noise, "generations": generations, "copies": copies}
    given |= {"layers": layers, "closest": closest, "count": count, "tables": tables, "count_tables": count_tables}
    given |= {"readable": readable, "words": words, "kinds": kinds}
    from circuits.programs import measure, simplify
    from circuits.programs import train as trained
    from circuits.programs.recipes import recipe
    from interp.files import write_json, write_text

    wanted = _task(task, data)
    best = trained(wanted, out, recipe(task, {k: v for k, v in given.items() if v is not None}), resume)
    small = simplify(best, wanted)
    small.program.save(out / SMALL)
    file = out / f"{task}.py"
    write_text(file, _python(small.program, out))
    scores = measure(file, wanted).told()
    sizes = {"before": small.before, "after": small.after}
    write_json(out / "scores.json", scores | sizes)
    answer({"file": str(file), **scores, **sizes}, as_json, _list)


@app.command("print")
@guarded
def printed(
    program: Annotated[str, PROGRAM],
    rasp: Annotated[
        bool, typer.Option("--rasp", help="as RASP, whose s-op `labels` has the label at each position")
    ] = False,
    data: Annotated[Path | None, DATA] = None,
    whole: Annotated[bool, typer.Option("--whole", help="with what makes no difference on any input")] = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="write to this file")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a program as Python that runs alone, or as RASP."""
    from interp.files import write_text

    found, folder = _opened(program, "program.json" if whole else SMALL)
    if rasp:
        from circuits.programs.rasp_text import rasp_text

        text = rasp_text(found, _task(found.task, data))
    else:
        text = _python(found, folder)
    if out is not None:
        write_text(out, text)
    told = {"task": found.task, "language": "rasp" if rasp else "python", "file": out and str(out), "text": text}
    answer(told, as_json, lambda told: print("" if out else told["text"], end=""))


@app.command()
@guarded
def run(
    program: Annotated[str, PROGRAM],
    tokens: Annotated[str | None, typer.Option("--input", help="letters, or a list of tokens written as JSON")] = None,
    data: Annotated[Path | None, DATA] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="every input of the task, and how often the file is right")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """The labels a printed program gives an input; or, with --all, how often they are right."""
    from circuits.programs import measure
    from circuits.programs.measure import outputs

    if (tokens is None) != everything:
        raise WrongUse("give one of --input TOKENS and --all.")
    found, folder = _opened(program)
    file = folder / f"{found.task}.py"
    if everything:
        answer(measure(file, _task(found.task, data)).told(), as_json, _list)
        return
    body = _body(str(tokens))
    found.check(body)
    answer({"labels": outputs(file, [body])[0]}, as_json, lambda told: print(*told["labels"]))


@app.command()
@guarded
def tasks(as_json: AsJson = False) -> None:
    """What there is to learn, and which programs ship."""
    from circuits.programs import TASKS
    from circuits.programs.labelled import KINDS
    from circuits.programs.recipes import shipped

    known = shipped()
    abouts = {name: task.about for name, task in TASKS.items()} | KINDS
    told = {name: {"about": about, "ships": name in known} for name, about in abouts.items()}
    answer(told, as_json, _told_tasks)


def _told_tasks(told: dict[str, Any]) -> None:
    for name, row in told.items():
        print(f"{name:18} {row['about']}{' (ships)' * row['ships']}")


def _task(name: str, data: Path | None) -> Task:
    from circuits.programs import task
    from circuits.programs.labelled import KINDS, labelled

    if name not in KINDS:
        if data is not None:
            raise WrongUse(f"{name} is not learnt from a file: leave --data out, or name {' or '.join(KINDS)}.")
        return task(name)
    if data is None:
        raise WrongUse(f"{name} is learnt from labelled text: give --data FILE.")
    return labelled(name, data)


def _body(text: str) -> tuple[str, ...]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    return tuple(value) if isinstance(value, list) and value and all(isinstance(v, str) for v in value) else tuple(text)


def _python(program: Program, folder: Path) -> str:
    """The text of the file, with the command that made the program."""
    from circuits.programs import TASKS, printed
    from circuits.programs.labelled import KINDS

    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    about = TASKS[program.task].about if program.task in TASKS else KINDS[program.task]
    return printed(program, about, f"Learnt by `{recipe['command']}`.")


def _opened(program: str, file: str = SMALL) -> tuple[Program, Path]:
    from circuits.programs import load
    from circuits.programs.recipes import shipped

    known = shipped()
    folder = known.get(program, Path(program))
    if not (folder / file).is_file():
        raise WrongUse(
            f"{program} is no folder of a finished run, and no program of that name ships.{nearest(program, known)} "
            f"There ship: {', '.join(known) or 'none'}. `interp program train TASK -o FOLDER` makes one."
        )
    return load(folder / file), folder


def _list(told: dict[str, Any]) -> None:
    for name, value in told.items():
        shown = f"{value:.4%}" if isinstance(value, float) else value
        if isinstance(value, dict):
            shown = ", ".join(f"{k}: {v:.2%}" if isinstance(v, float) else f"{k}: {v}" for k, v in value.items())
        print(f"{name:10} {shown}")
