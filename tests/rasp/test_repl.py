"""What the REPL prints, and the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from circuits.cli.rasp import app
from circuits.rasp.interpreter import Stop
from circuits.rasp.repl import Repl


def printed(text: str) -> str:
    lines: list[str] = []
    loop = Repl(say=lines.append)
    try:
        for line in text.split("\n"):
            loop.feed(line)
        loop.end()
    except Stop:
        lines.append("stopped")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = 3;", "    value: a =  3"),
        ("1.5;", "    value: out =  1.5"),
        ('"abc";', '    value: out =  "abc"'),
        ("True;", "    value: True =  True"),
        ("a,b = 1,2;", "    value: a =  1\n    value: b =  2"),
        ("[1,'a',True,2.5];".replace("'", '"'), "     list: out = [1, 'a', True, 2.5]"),
        ('{"a":1,0:2.5};', "     dict: out = {'a': 1, 0: 2.5}"),
        ("[[1],[2]];", "     list: out =  [\n\t\t     list: [1]\n\t\t     list: [2]\n                 ]"),
        ("def f(a,b) {\n return a;\n}", "     console function: f(a, b)"),
        ("x = indices/3;", '     s-op: x\n \t Example: x("hello") = [0.0, 0.333, 0.667, 1.0, 1.333] (floats)'),
        ("not indices;", '     s-op: out\n \t Example: out("hello") = [T, F, F, F, F] (bools)'),
        ("length;", '     s-op: length\n \t Example: length("hello") = [5]*5 (ints)'),
        ('indices("a");', "\t =  [0] (ints)"),
        ('tokens("aa");', "\t =  [a]*2 (strings)"),
        ("set example [1,2]\nindices;", "     s-op: indices\n \t Example: indices([1, 2]) = [0, 1] (ints)"),
        ("s-op examples off\nindices;", "     s-op: indices"),
        (
            "full seq display on\nlength;",
            '     s-op: length\n \t Example: length("hello") = [5]*5 (ints) [skipped full display: identical values]',
        ),
        (
            'full seq display on\n(indices/3)("ab");',
            "\t =\n \t\tinput:                    a                  b \t (strings)\n"
            " \t\toutput:                 0.0 0.3333333333333333 \t (floats)",
        ),
        (
            'full seq display on\nx = tokens=="l";',
            "     s-op: x\n \t Example:\n \t\tinput:   h e l l o \t (strings)\n \t\toutput:      T T   \t (bools)",
        ),
        ('set example "ab"\nshow example', '\ts-op example: "ab"\n\tselector example: "ab"'),
        ("set s-op example [1]\nshow s-op example", "\ts-op example: [1]"),
        ("a = 5;\nout;", "    value: a =  5\n    value: out =  5"),
        ('indices("ab");\nout;', '\t =  [0, 1] (ints)\n    value: out =  "ab"'),
        ("sort;", "     RASP_support/rasplib function: sort(seq, key)"),
        (
            "examples off\nx = [1,{2:full_s}];",
            "     list: x =  [\n\t\t    value:  1\n\t\t     dict: \t\t {\n\t\t\t\t\t 2 :     selector: full_s\n"
            "\t\t           }\n               ]",
        ),
        (
            'examples off\nf = 1;\ndef f(a,b) { return a+b; }\n[f(tokens,"x"),(-indices+1)/2,not full_s];',
            '    value: f =  1\n     console function: f(a, b)\n     list: out =  [\n\t\t     s-op: f(tokens , "x")\n'
            "\t\t     s-op: ( ( ( - indices ) + 1 ) / 2 )\n\t\t     selector: plain select\n                 ]",
        ),
        ("# nothing\n\n", ""),
        ("quit()\n1;", "stopped"),
        ("a = 1 +\n2; # three", "    value: a =  3"),
        ("for i in range(3) {\n 1;\n}", ""),
        ('x = tokens("ab");', "    value: x =  [a, b] (strings)"),
        (
            'set example "ab"\nselect(indices,indices,<);',
            "     selector: out\n \t Example:\n \t\t\t     a b\n \t\t\t a |    \n \t\t\t b | 1  ",
        ),
        ('set example [10,2]\nfull_s("x");', "\t = \n \t\t\t     x\n \t\t\t x | 1"),
        (
            'reverse = aggregate(select(indices,length-1-indices,==),tokens);\ndraw(reverse,"abc");',
            '     s-op: reverse\n \t Example: reverse("hello") = [o, l, l, e, h] (strings)\n'
            '     draw: reverse("abc")\n\t layer 0\n\t\t indices = [0, 1, 2] (ints)\n\t\t tokens = [a, b, c] (strings)\n'
            "\t layer 1: 1 heads\n\t\t length = [3]*3 (ints)\n\t layer 2: 1 heads\n\t\t reverse = [c, b, a] (strings)",
        ),
    ],
)
def test_what_is_printed(text, expected):
    assert printed(text) == expected


def test_a_file_shows_its_names_as_they_are_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lib.rasp").write_text(
        'a = 1;\nx = indices+a;\n_b = 2;\n3;\na = 4;\ndef f(c) { return c; }\nx("ab");\nx;'
    )
    names = ["    value: a =  4", "     lib function: f(c)", "     s-op: x"]
    assert printed('load "lib";') == "\n".join(names)
    (tmp_path / "bad.rasp").write_text('a = 1;\na = nope;\na = 2;\nload "lib";')
    first, *error, last = printed('load "bad";').split("\n")[:-3]
    assert (first, last) == ("    value: a =  1", "    value: a =  2")
    assert "bad.rasp:2:5: the name 'nope' is not defined" in error[1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("foo;", "<input>:1:1: the name 'foo' is not defined"),
        ("a=1\nb=2;", "';' is missing after '1'"),
        ("a=1", "';' is missing after '1'"),
        ("a=1; b=2;", "one statement at a time"),
        ("set example\n1;", "the command ends too early"),
        ('load "nosuchfile";', "could not find file: nosuchfile.rasp"),
    ],
)
def test_errors_are_printed_and_the_loop_goes_on(text, says):
    assert "!!ignoring input" in printed(text)
    assert says in printed(text)
    assert printed(text + "\n7;").count("value: out =  7") == (text != "a=1")


def test_an_error_executes_nothing_of_the_line():
    assert "not defined" in printed("a=1; b=2;\na;")


def test_out_is_the_last_value_without_a_name():
    assert printed("3;\nout+1;").endswith("value: out =  4")


def test_a_list_of_twins_is_cut():
    assert "..." in printed("a=[full_s];\nfor i in range(40) { a=[a,a]; }\na;")


def test_warnings_can_be_had():
    warned: list[str] = []
    Repl(say=lambda _: None, warn=warned.append).feed("not 1==2;")
    assert warned == [
        "<input>:1:1: warning: `not` binds tighter than `==`: `not a == b` is `(not a) == b`\n    not 1==2;\n    ^~~~~~~~"
    ]


# ---- the command


def interp(*words: str, stdin: str = "", status: int = 0) -> tuple[str, str]:
    done = CliRunner().invoke(app, words, input=stdin)
    assert done.exit_code == status, done.output
    return done.stdout, done.stderr


@pytest.fixture
def program(tmp_path: Path) -> Path:
    file = tmp_path / "p.rasp"
    file.write_text("hist = selector_width(select(tokens,tokens,==));\nprevs = select(indices,indices,<);\nn = 3;\n")
    return file


def test_repl_from_a_pipe():
    out, err = interp(stdin="a = not 1==2;\nquit\nb;\n")
    assert out == "    value: a =  False\n"
    assert "<input>:1:5: warning" in err
    assert interp("--no-warn", stdin="not 1==2;\n") == ("    value: out =  False\n", "")


def test_run(program):
    out, _ = interp("run", str(program), "--var", "hist", "--input", "hello", "--json")
    assert json.loads(out) == {
        "values": [1, 1, 2, 2, 1],
        "type": "int",
        "display": "[1, 1, 2, 2, 1] (ints)",
        "layers": 1,
        "heads_per_layer": {"1": 2},
    }
    assert interp("run", str(program), "--var", "hist", "--input", "[7,7]")[0] == "[2]*2 (ints)\n"


def test_run_a_selector(program):
    out, _ = interp("run", str(program), "--var", "prevs", "--input", "ab", "--json")
    assert json.loads(out)["matrix"] == [[0, 0], [1, 0]]


def test_strings_of_brackets_are_no_json_lists(program):
    for text in ("[]", "[()]", "[[]]", "[{}]"):
        out, _ = interp("run", str(program), "--var", "hist", "--input", text, "--json")
        assert len(json.loads(out)["values"]) == len(text)


def test_run_many(program, tmp_path):
    inputs = tmp_path / "inputs.json"
    inputs.write_text('["aa", [1, 2], "", {}]')
    out, _ = interp("run", str(program), "--var", "hist", "--inputs", str(inputs), "--json")
    first, second, third, fourth = json.loads(out)
    assert (first["values"], second["values"]) == ([2, 2], [1, 1])
    assert "at least one token" in third["error"] and "at least one token" in fourth["error"]


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--var", "hist", "--input", ""], 1, "at least one token"),
        (["--var", "hits", "--input", "a"], 2, "Did you mean 'hist'"),
        (["--var", "n", "--input", "a"], 2, "no s-op or selector"),
        (["--var", "hist"], 2, "--inputs FILE"),
    ],
)
def test_wrong_use_and_failure(program, words, status, says):
    out, err = interp("run", str(program), *words, "--json", status=status)
    assert says in json.loads(out)["error"]
    assert says in err


def test_programs_that_fail(tmp_path):
    file = tmp_path / "bad.rasp"
    file.write_text("a = tokens\nb = 1;")
    out, _ = interp("run", str(file), "--var", "a", "--input", "x", "--json", status=1)
    assert f"{file}:1:11: a ';' is missing after 'tokens'" in json.loads(out)["error"]
    file.write_text("a = nope;\nb = indices;\n")
    out, _ = interp("run", str(file), "--var", "a", "--input", "x", "--json", status=1)
    assert f"{file}:1:5: the name 'nope'" in json.loads(out)["error"]
    out, err = interp("run", str(file), "--var", "b", "--input", "x", "--json")
    assert json.loads(out)["values"] == [0]
    assert f"{file}:1:5: the name 'nope'" in err
    interp("run", str(tmp_path / "none.rasp"), "--var", "a", "--input", "x", status=1)
    file.write_text("b = indices;", encoding="utf-8-sig")
    assert json.loads(interp("run", str(file), "--var", "b", "--input", "x", "--json")[0])["values"] == [0]
    out, _ = interp("run", "/dev/zero", "--var", "b", "--input", "x", "--json", status=1)
    assert "at most 1,000,000 characters" in json.loads(out)["error"]


def test_history_is_kept(tmp_path):
    """In a terminal of its own: a prompt, an answer, and the line in the history file."""
    import pexpect

    code = "from circuits.rasp.repl import repl; repl()"
    environment = {"XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "dumb"}
    child = pexpect.spawn(__import__("sys").executable, ["-c", code], env=environment, timeout=60, encoding="utf-8")
    child.expect(">> ")
    child.sendline("1 +")
    child.expect(r"\.\. ")
    child.sendline("2;")
    child.expect("value: out =  3")
    child.sendline("quit")
    child.expect(pexpect.EOF)
    assert (tmp_path / "interp" / "rasp_history").read_text().split("\n")[-4:] == ["1 +", "2;", "quit", ""]
