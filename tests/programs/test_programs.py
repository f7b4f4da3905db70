"""Programs: relaxed at temperature → 0, discretised, run, printed and said in RASP are the same function; seeds do not mix."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch

from circuits.programs import TASKS, Recipe, load, printed, simplify
from circuits.programs.measure import measure, outputs
from circuits.programs.model import Relaxed, initial, redrawn, split, total
from circuits.programs.program import CLOSEST, COUNT, Head, Program, Table, nearness
from circuits.programs.rasp_text import disagreements, rasp_text
from circuits.programs.simplify import shorter
from circuits.programs.tasks import Task
from circuits.programs.trace import trace
from circuits.programs.training import Learner
from interp.errors import Failed, WrongUse

SIZES = [
    ("reverse", 3, {}),
    ("histogram", 3, {"readable": True}),
    ("dyck1", 5, {"layers": 3}),
    ("induction", 4, {"closest": 1}),
]


def tiny(name: str, longest: int):
    return replace(TASKS[name], longest=longest, drawn=None)


def learner(name: str, longest: int, dtype=torch.float64, **changes) -> Learner:
    """A model with random parameters, all sizes away from the defaults."""
    recipe = Recipe(**({"seeds": 3, "seed": 5, "closest": 3, "count": 2, "tables": 2, "count_tables": 1} | changes))
    made = Learner(tiny(name, longest), recipe, dtype)
    with torch.no_grad():  # votes that differ by more than their rounding
        for part, tensor in split(made.parameters, made.shape.parameters()).items():
            if part.startswith("out"):
                tensor.copy_((30 * tensor).round())
            if part in ("out.bias", "out.table"):
                tensor.add_(0.01 * torch.arange(tensor.shape[-1]))
    return made


def everything(made: Learner):
    batch = made.task.encode(list(made.task.everything()))
    return batch, torch.from_numpy(batch.tokens), torch.from_numpy(batch.real)


@pytest.mark.check(
    "programs discretised", formula="choices as one-hots in the trained model = the program, every input", tolerance=0.0
)
@pytest.mark.parametrize(("name", "longest", "changes"), SIZES)
def test_the_model_with_every_choice_made_is_the_program(name, longest, changes, measured):
    """Every label at every position of every input, three random models."""
    made = learner(name, longest, **changes)
    batch, tokens, real = everything(made)
    with torch.no_grad():
        said = made.model(made.parameters, tokens, real).argmax(-1).numpy()
    wrong = sum(
        int((made.program(i).run(batch.tokens, batch.real) != said[i])[batch.real].sum()) for i in range(len(said))
    )
    measured(wrong)


@pytest.mark.check(
    "programs temperature", formula="logits at τ = 1e-7 without noise - logits with every choice made", tolerance=1e-3
)
@pytest.mark.parametrize(("name", "longest", "changes"), SIZES)
def test_the_relaxed_model_becomes_the_program(name, longest, changes, measured):
    """The tolerance is for the 1e-6 that `LEAST` leaves to matches behind the first, times votes of about 10 in a few layers."""
    made = learner(name, longest, **changes)
    _, tokens, real = everything(made)
    with torch.no_grad():
        hard = made.model(made.parameters, tokens, real)
        cold = made.model(made.parameters, tokens, real, 1e-7)
    asked = real.expand(len(hard), -1, -1)
    measured(float((hard - cold)[asked].abs().max()))


@pytest.mark.check("programs seeds", formula="gradient of a seed among others - alone, float64", tolerance=1e-10)
def test_seeds_do_not_mix(measured, monkeypatch):
    """Loss and gradient of three seeds at once, and of each alone, at a step whose noise is not the first's."""
    together = learner("sort", 4)
    together.step = 7
    batch = together.task.encode(together.task.draw(np.random.default_rng(1), 20))
    noise, lost = together.noise(), together.loss(batch)
    lost.sum().backward()
    far = 0.0
    for i in range(3):
        alone = learner("sort", 4, seeds=1)
        alone.step = 7
        alone.parameters.data.copy_(together.parameters[i : i + 1])
        monkeypatch.setattr(alone, "noise", lambda i=i: noise[i : i + 1])
        one = alone.loss(batch)
        one.sum().backward()
        far = max(
            far,
            abs(one.item() - lost[i].item()),
            float((alone.parameters.grad[0] - together.parameters.grad[i]).abs().max()),
        )
    measured(far)


@pytest.mark.check("programs gradient", formula="gradient - central differences, float64", tolerance=1e-6)
def test_the_gradient_is_that_of_the_loss(measured):
    """Along 12 random directions, at temperature 0.7 of the schedule."""
    made = learner("dyck1", 4, seeds=1, hot=0.7, cold=0.7, layers=2)
    batch = made.task.encode(made.task.draw(np.random.default_rng(2), 16))
    made.loss(batch).sum().backward()
    slope, here, far = made.parameters.grad.clone(), made.parameters.detach().clone(), 0.0
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        way = torch.randn(here.shape, generator=generator, dtype=here.dtype)
        sides = []
        for sign in (1, -1):
            made.parameters.data = here + sign * 1e-6 * way
            sides.append(made.loss(batch).item())
        far = max(far, abs((sides[0] - sides[1]) / 2e-6 - float((slope * way).sum())) / float(way.norm()))
    measured(far)


def test_the_closest_match_is_what_it_says():
    """By hand: the nearest other, of two the earlier, itself last, position 0 without any; and a count."""
    order = nearness(4).argsort(1)
    assert order.tolist() == [[1, 2, 3, 0], [0, 2, 3, 1], [1, 3, 0, 2], [2, 1, 0, 3]]
    program = Program(
        *("toy", ("<s>", "a", "b"), ("0", "1", "2", "3"), 4, 4, False),
        (
            Head("where", CLOSEST, "tokens", "tokens", "positions", (3, 1, 2, 0)),
            Head("many", COUNT, "tokens", "tokens", "ones", (1, 1, 3, 3)),
        ),
        {"where": ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))},
        (0, 0, 0, 0),
    )  # fmt: skip
    tokens, real = np.array([[0, 1, 2, 1], [0, 2, 1, 2]]), np.ones((2, 4), bool)
    assert program.run(tokens, real).tolist() == [[0, 3, 2, 1], [0, 3, 2, 1]]
    assert program.variables(tokens, real)["many"].tolist() == [[2, 2, 0, 2], [1, 0, 1, 0]]
    causal = replace(program, causal=True)
    assert causal.run(tokens, real).tolist() == [[0, 1, 2, 1], [0, 1, 2, 1]]


@pytest.mark.parametrize(("name", "longest", "changes"), SIZES)
def test_printed_simplified_and_in_rasp_it_is_the_same(name, longest, changes, tmp_path):
    """Every input: the file run by Python alone, the smaller program, its file, and RASP's interpreter."""
    made = learner(name, longest, seeds=1, **changes)
    program = made.program(0)
    small = simplify(program, made.task)
    bodies = list(made.task.everything())
    batch = made.task.encode(bodies)
    expected, asked = program.run(batch.tokens, batch.real), batch.labels >= 0
    assert (small.program.run(batch.tokens, batch.real) == expected)[asked].all()
    values = small.program.variables(batch.tokens, batch.real)
    assert all((v[batch.real] >= 0).all() for v in values.values())  # what is said to occur nowhere is reached nowhere
    assert small.after["branches"] < small.before["branches"]
    for i, each in enumerate((program, small.program)):
        file = tmp_path / f"{i}.py"
        file.write_text(printed(each, made.task.about, "Made by a test."), encoding="utf-8")
        named = np.array([row + ["-"] * (longest - len(row)) for row in outputs(file, bodies)])
        right = named == np.array(made.task.labels)[expected[:, 1 : longest + 1]]
        assert right[asked[:, 1 : longest + 1]].all()
        assert disagreements(each, rasp_text(each, made.task), made.task, bodies) == 0
        if shutil.which("ruff"):
            ruff = ["ruff", "format", "--isolated", "--line-length", "88", "--check", str(file)]
            assert subprocess.run(ruff, capture_output=True).returncode == 0


def test_a_count_of_counts_is_cut_in_every_form(tmp_path):
    """A planted program whose counts exceed the length: 3 letters a count each other's counts, up to 9."""
    task = tiny("histogram", 3)
    rows = tuple(tuple(min(i, 5) for _ in range(5)) for i in range(5))
    program = Program(
        *("histogram", task.vocabulary, task.labels, 4, 7, False),
        (
            Head("same", COUNT, "tokens", "tokens", "ones", tuple(range(7))),
            Head("twice", COUNT, "tokens", "tokens", "same", tuple(range(7))),
            Table("cut", "twice", "ones", rows),
        ),
        {"cut": tuple(tuple(int(i == j) for j in range(7)) for i in range(7))},
        (0,) * 7,
    )  # fmt: skip
    bodies = list(task.everything())
    batch = task.encode(bodies)
    assert program.variables(batch.tokens, batch.real)["twice"].max() == 9
    file = tmp_path / "file.py"
    file.write_text(printed(program, "x"), encoding="utf-8")
    expected = program.run(batch.tokens, batch.real)
    assert outputs(file, bodies) == [
        [task.labels[v] for v in row[1 : len(b) + 1]] for b, row in zip(bodies, expected, strict=True)
    ]
    assert disagreements(program, rasp_text(program, task), task, bodies) == 0


def test_rasp_compiles_to_weights_that_are_verified():
    """A planted reverse at length 3: RASP, its weights, and the task, on every input."""
    from circuits.rasp.compile import compile_program, verify
    from circuits.rasp.interpreter import run

    task = replace(TASKS["reverse"], letters=("a", "b"), labels=("a", "b"), longest=3)
    n = task.length
    place = tuple(tuple(max(end - i, 0) for i in range(n)) for end in range(n))
    program = Program(
        *("reverse", task.vocabulary, task.labels, n, n, False),
        (
            Head("end", CLOSEST, "tokens", "tokens", "positions", (3,) * n),
            Table("mirror", "end", "positions", place),
            Head("there", CLOSEST, "mirror", "positions", "tokens", tuple(range(n))),
        ),
        {"there": ((0, 0), (1, 0), (0, 1), (0, 0), (0, 0))},
        (0, 0),
    )
    batch = task.encode(list(task.everything()))
    asked = batch.labels >= 0
    assert (program.run(batch.tokens, batch.real) == batch.labels)[asked].all()
    small = simplify(program, task).program
    text = rasp_text(small, task)
    assert disagreements(small, text, task, list(task.everything())) == 0
    node = run(text).value("labels")
    compiled = compile_program({"labels": node}, list(task.vocabulary), n)
    verdict = verify({"labels": node}, compiled)
    assert verdict.wrong == 0 and verdict.undefined == 0 and verdict.inputs == sum(4**k for k in range(1, n + 1))


def test_dead_steps_copies_and_branches_go():
    """Planted: a step nobody reads, a copy of another, votes that never decide, a letter that never comes."""
    task = replace(TASKS["reverse"], letters=("a", "b"), labels=("a", "b"), longest=2, end=False)
    ident = tuple(tuple(i for _ in range(3)) for i in range(3))
    program = Program(
        *("reverse", task.vocabulary, task.labels, 3, 3, False),
        (
            Head("first", CLOSEST, "tokens", "tokens", "tokens", (0, 0, 0)),
            Head("copy", CLOSEST, "positions", "tokens", "tokens", (0, 0, 0)),
            Table("dead", "tokens", "positions", ident),
            Table("read", "copy", "tokens", ident),
            Table("again", "first", "tokens", ident),
        ),
        {"tokens": ((0, 0), (5, 0), (0, 5)), "read": ((1, 0), (0, 1), (0, 1)), "again": ((2, 0), (0, 1), (0, 1))},
        (0, 0),
    )  # fmt: skip
    found = simplify(program, task)
    assert found.inputs == 6
    assert list(found.program.votes) == ["tokens"] and found.program.steps == ()
    kept = replace(program, votes={"read": program.votes["read"], "again": program.votes["again"]})
    steps = simplify(kept, task).program.steps
    assert [s.name for s in steps] == []  # `read` and `again` are constant: <s> votes for the first label
    uncounted = replace(task, longest=40)
    bounded = simplify(replace(program, length=41), uncounted)
    assert bounded.inputs == 0 and [s.name for s in bounded.program.steps] == ["first", "copy", "read", "again"]


def test_measure_counts_tokens_sequences_and_the_majority(tmp_path):
    """A file that always says "1": against counting by hand, all inputs of up to two of six letters."""
    task = tiny("histogram", 2)
    file = tmp_path / "one.py"
    program = Program("histogram", task.vocabulary, task.labels, 3, 7, False, (), {}, (1, 0, 0, 0, 0, 0, 0))
    file.write_text(printed(program, "always 1"), encoding="utf-8")
    found = measure(file, task)
    assert (found.inputs, found.every) == (42, True)
    assert found.tokens == found.majority == pytest.approx(66 / 78)
    assert found.whole == pytest.approx(36 / 42)
    assert found.by_length == {1: 1.0, 2: pytest.approx(60 / 72)}
    file.write_text("raise RuntimeError('no')", encoding="utf-8")
    with pytest.raises(Failed, match="RuntimeError: no"):
        outputs(file, [("a",)])


def test_tasks_answer_as_the_papers_examples_do():
    said = {name: "".join(a or "-" for a in TASKS[name].answer(tuple(text))) for name, text in {
        "reverse": "abbc", "histogram": "abbc", "double_histogram": "abbc", "sort": "cbab", "dyck1": "()())(", "dyck2": "({)}"
    }.items()}  # fmt: skip
    assert said == {
        "reverse": "cbba", "histogram": "1221", "double_histogram": "2112", "sort": "abbc", "dyck1": "PTPTFF", "dyck2": "PPFF",
    }  # fmt: skip
    assert TASKS["most_frequent"].answer(tuple("abbc")) == ["b", "a", "c", "<s>"]
    assert TASKS["induction"].answer(tuple("a1b2a3a")) == ["?", None, "?", None, "1", None, "3"]
    assert [t.length for t in TASKS.values()] == [10, 8, 8, 8, 8, 8, 16, 16]
    assert sum(1 for _ in TASKS["reverse"].everything()) == sum(5**n for n in range(1, 7))
    for made in TASKS.values():
        batch = made.encode(made.draw(np.random.default_rng(0), 50))
        assert (batch.labels[~batch.real] == -1).all() and (batch.labels >= 0).any(1).all()
    lengths = [len(b) for b in TASKS["reverse"].draw(np.random.default_rng(0), 6000)]
    any_body = 5.0 ** np.arange(6) / sum(5**n for n in range(6))
    assert np.bincount(lengths)[1:] / 6000 == pytest.approx(1 / 12 + any_body / 2, abs=0.02)
    brackets = TASKS["dyck2"].draw(np.random.default_rng(0), 200)
    ends = [TASKS["dyck2"].answer(b)[1::2] for b in brackets]
    assert sum("T" in e for e in ends) > 100 and all(len(b) == 15 for b in brackets)


def test_noise_is_a_steps_own():
    """The same when asked again, another at another step, generation or seed; and Gumbel's."""
    made = learner("reverse", 3, seeds=400, noise=1.0)
    first = made.noise()
    assert torch.equal(first, made.noise()) and not torch.equal(first[0], first[1])
    for changes in ({"step": 1}, {"generation": 1}, {"recipe": replace(made.recipe, seed=6)}):
        other = learner("reverse", 3, seeds=400, noise=1.0)
        vars(other).update(changes)
        assert not torch.equal(first, other.noise()), changes
    assert float(first.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(first.var()) == pytest.approx(np.pi**2 / 6, rel=0.02)


def test_a_third_of_heads_begins_to_seek_its_own_a_third_one_key_for_all():
    made = learner("reverse", 3)
    wanted = split(initial(made.shape, np.random.default_rng(0), 400), made.shape.parameters())["0.wanted"].argmax(-1)
    own = (wanted == torch.arange(made.shape.size)).float().mean(-1)
    one = (wanted == wanted.mode(-1, keepdim=True).values).float().mean(-1)
    assert float((own > 0.6).float().mean()) == pytest.approx(1 / 3, abs=0.05)
    assert float((one > 0.6).float().mean()) == pytest.approx(1 / 3, abs=0.05)


def test_a_copy_differs_from_a_parent_in_a_step_or_two():
    """Parents first, unchanged; whatever a copy has anew lies in one or two steps, and all steps are drawn by some copy."""
    shape = learner("dyck1", 5).shape
    parents = initial(shape, np.random.default_rng(0), 3)
    made = redrawn(shape, parents, np.random.default_rng(1), 200)
    assert torch.equal(made[:3], parents) and len(made) == 203
    drawn = set()
    for copy in made[3:]:
        changed = {n: (p[0] != 0).flatten(1).any(1) for n, p in _parts(shape, _nearest(copy, parents)).items()}
        steps = [i for i, rows in enumerate(shape.steps()) if any(bool(changed[n][row]) for n, row in rows)]
        assert 1 <= len(steps) <= 2
        rows = {place for i in steps for place in shape.steps()[i]}
        assert {(n, int(r)) for n, where in changed.items() for r in where.nonzero()} <= rows
        drawn.update(steps)
    assert drawn == set(range(len(shape.steps())))


def _nearest(copy, parents):
    """The difference to the parent that most numbers are equal with."""
    return (copy - parents)[(copy == parents).sum(1).argmax()][None]


def _parts(shape, row):
    return split(row, shape.parameters())


def test_the_best_seeds_go_on_with_what_is_known_of_them():
    """`keep` orders by mean loss and takes parameters and moments along; a generation begins from the kept."""
    made = learner("sort", 3, seeds=12, steps=16, copies=5)
    for _ in range(2):
        made.update()
    assert len(made.parameters) == 8  # of 12, at an eighth of the steps: a quarter, but at least 8
    made.update()
    loss, old = made.mean.clone(), made.parameters.detach().clone()
    moments = {k: v.clone() for k, v in made.adam.state[made.parameters].items()}
    made.keep(3)
    order = loss.argsort()[:3]
    assert torch.equal(made.parameters, old[order]) and torch.equal(made.mean, loss[order])
    state = made.adam.state[made.parameters]
    assert torch.equal(state["exp_avg"], moments["exp_avg"][order]) and state["step"] == 3
    assert torch.equal(state["exp_avg_sq"], moments["exp_avg_sq"][order])
    made.renew()
    assert (made.generation, made.step, len(made.parameters)) == (1, 0, 8)
    assert torch.equal(made.parameters[:3], old[order])
    made.update()
    assert float(made.mean.min()) > 0


def test_a_table_of_counts_draws_its_values_once_an_entry():
    """Positions with the same counts get the same value in a step, whatever the noise; another step draws another table."""
    made = learner("histogram", 3, seeds=2, layers=1, count=1, tables=0)
    with torch.no_grad():
        parts = split(made.parameters, made.shape.parameters())
        parts["0.read"][:, 3], parts["0.read"][:, 7] = 0, 0  # query and key of the count: the tokens
        parts["0.read"][:, 3, 0], parts["0.read"][:, 7, 0] = 1e3, 1e3
        parts["0.wanted"][:, 3].copy_(1e3 * torch.eye(made.shape.size))
        parts["out.categorical"][:, : -made.shape.size] = 0
        parts["out.count"].zero_()
    batch, tokens, real = everything(made)
    noise = []
    for made.step in (1, 2):
        noise.append(made.noise())
    with torch.no_grad():
        first, second = (made.model(made.parameters, tokens, real, 1e-3, g) for g in noise)
    assert not torch.equal(first, second)
    many = torch.from_numpy((batch.tokens[:, :, None] == batch.tokens[:, None, :])[:, :, : tokens.shape[1]].sum(-1))
    full = real.all(1)
    for count in (1, 2, 3):
        same = first[:, full][:, many[full] == count]
        assert float((same - same[:, :1]).abs().max()) < 1e-9, count


def test_a_branch_that_no_label_depends_on_is_made_like_the_others(tmp_path):
    """`<s>` seeks itself and letters "a": nothing is asked at `<s>`, so it seeks "a" too, and the table says what it then reads."""
    task = Task(
        *("toy", "how many a so far", ("a", "b"), ("1", "2"), 3),
        *(lambda body: [str(body[: i + 1].count("a")) for i in range(len(body))],),
        causal=True,
        kinds=(("a",), ("b",)),
    )
    head = Head("many", COUNT, "tokens", "tokens", "ones", (0, 1, 1, 0))
    table = Table("told", "many", "ones", ((3,) * 5, (0,) * 5, (1,) * 5, (3,) * 5, (3,) * 5))
    votes = {"told": ((1, 0), (0, 1), (0, 0), (0, 1))}
    program = Program("toy", task.vocabulary, task.labels, 4, 4, True, (head, table), votes, (0, 0))
    batch = task.encode(list(task.everything()))
    small = shorter(program, batch)
    assert small.steps[0].wanted[:3] == (1, 1, 1)
    assert all((v[batch.real] >= 0).all() for v in small.variables(batch.tokens, batch.real).values())
    (tmp_path / "toy.py").write_text(printed(small, task.about), encoding="utf-8")
    assert measure(tmp_path / "toy.py", task).whole == 1


def test_a_label_of_one_count_is_looked_up(tmp_path):
    """Histogram planted as one count with votes 2kc - k²: said as a map from the count, in Python and in RASP."""
    task = tiny("histogram", 3)
    head = Head("same", COUNT, "tokens", "tokens", "ones", (6, *range(1, 7)))
    votes, bias = tuple(2 * k for k in range(1, 8)), tuple(-k * k for k in range(1, 8))
    program = Program("histogram", task.vocabulary, task.labels, 4, 7, False, (head,), {"same": (votes,)}, bias)
    assert program.lookup() == ("same", {0: "1", 1: "1", 2: "2", 3: "3", 4: "4"})
    file = tmp_path / "file.py"
    file.write_text(printed(program, task.about), encoding="utf-8")
    assert measure(file, task).whole == 1
    text = rasp_text(program, task)
    assert "votes" not in file.read_text() + text
    assert disagreements(program, text, task, list(task.everything())) == 0
    assert replace(program, votes={"ones": (votes,)}).lookup() is None
    twice = replace(head, name="twice", value="same")
    assert replace(program, steps=(head, twice), votes={"twice": (votes,)}).lookup() is None


def test_wrong_use_says_what_there_is(tmp_path):
    task = tiny("sort", 3)
    with pytest.raises(WrongUse, match="no token 'z'"):
        task.encode([("z",)])
    for body in ((), tuple("abcd")):
        with pytest.raises(WrongUse, match="takes 1 to 3 tokens"):
            task.encode([body])
    with pytest.raises(WrongUse, match="too many inputs"):
        next(TASKS["dyck2"].everything())
    with pytest.raises(WrongUse, match="temperatures"):
        Recipe(hot=0.1, cold=1.0)
    with pytest.raises(WrongUse, match=r"no program\.json"):
        load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text(json.dumps({"format": 1, "taks": 1}))
    with pytest.raises(WrongUse, match="taks"):
        load(tmp_path / "bad.json")


def test_a_program_is_saved_whole(tmp_path):
    program = learner("reverse", 3, seeds=1).program(0)
    program.save(tmp_path / "program.json")
    assert load(tmp_path / "program.json") == program


def test_a_trace_shows_every_token():
    """`<s>` and `</s>` are words to plotly, not markup."""
    seen = trace(learner("reverse", 3, seeds=1).program(0), "ab")
    assert list(seen.to_frame().columns) == ["0 <s>", "1 a", "2 b", "3 </s>"]
    grid = seen.plot().data[0]
    assert list(grid.x) == ["0 &lt;s&gt;", "1 a", "2 b", "3 &lt;/s&gt;"] and grid.text[0][0] == "&lt;s&gt;"


def test_one_layer_without_counts_or_tables():
    """The smallest shape there is, one token, and padding that changes nothing."""
    made = learner("reverse", 3, seeds=2, layers=1, count=0, tables=0, count_tables=0)
    batch = made.task.encode([("a",), ("a", "b", "c")])
    with torch.no_grad():
        long = made.model(made.parameters, torch.from_numpy(batch.tokens), torch.from_numpy(batch.real))
        other = batch.tokens.copy()
        other[~batch.real] = 3
        changed = made.model(made.parameters, torch.from_numpy(other), torch.from_numpy(batch.real))
    assert torch.equal(long[:, batch.real], changed[:, batch.real])
    assert total(made.shape.parameters()) == made.parameters.shape[1]
    assert isinstance(made.model, Relaxed) and len(list(itertools.chain(made.program(0).steps))) == 3
