"""`answers`: what the rules read in a text, and the command on a tiny target."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from cli_models import write_pair
from hypothesis import given
from hypothesis import strategies as st
from lab_command import call

from lab.answers import parses, sums, table

numbers = st.integers(0, 10**5)
OPS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "x": lambda a, b: a * b}


@given(
    numbers,
    st.sampled_from(sorted(OPS)),
    numbers,
    st.integers(-3, 3),
    st.sampled_from(["{} {} {} = {}", "so ${}{}{}={}.", "({} {} {} = {})"]),
)
def test_a_sum_is_right_where_its_sides_are_equal(a: int, op: str, b: int, off: int, form: str) -> None:
    value = OPS[op](a, b) + off
    assert sums(form.format(a, op, b, value)) == [off == 0]


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 4))
def test_decimals_are_held_to_the_digits_stated(a: int, b: int, digits: int) -> None:
    stated = f"{a / b:.{digits}f}"
    assert sums(f"{a} / {b} = {stated}") == [True]
    wrong = Fraction(stated) + Fraction(2, 10**digits)
    assert sums(f"{a} / {b} = {float(wrong):.{digits}f}") == [False]


@pytest.mark.parametrize(
    "text, found",
    [
        ("3 + 4 + 5 = 12", [True]),
        ("2 + 3 * 4 = 14", [True]),
        ("2 + 3 * 4 = 20", [False]),
        ("1,200 - 200 = 1,000", [True]),
        ("4 - 9 = -5", [True]),
        ("6 / 0 = 0", [False]),
        ("7 / 2 = 3", [False]),
        ("x + 3 = 5", []),
        ("a = 5, 4 = 4", []),
        ("3 + 4 = 5 + 2", []),
        ("v1 + 2 = 3", []),
        ("", []),
    ],
)
def test_what_counts_as_a_sum(text: str, found: list[bool]) -> None:
    assert sums(text) == found


@pytest.mark.parametrize(
    "text, found",
    [
        ("```python\ndef f():\n    return 1\n```", True),
        ("```\nx = 1\n```", True),
        ("```python\ndef f(:\n```", False),
        ("no code", None),
        ("```python\nx = (1 +", False),
        ("```python\nx = 1", True),
        ("```python\nx\n```\n```python\ny y\n```", False),
        ("```bash\nls -l\n```", None),
        ("```python\n" + "(" * 5000, False),
        ("```python\nx = '\0'\n```", False),
    ],
)
def test_python_is_what_is_in_fences_and_all_of_it_must_parse(text: str, found: bool | None) -> None:
    assert parses(text) is found


def test_the_command_counts_every_answer_by_family(tmp_path) -> None:
    model, _ = write_pair(tmp_path)
    prompts = tmp_path / "prompts.jsonl"
    rows = [("chat", "hi"), ("maths", "2 + 2"), ("chat", "who are you")]
    prompts.write_text(
        "".join(
            json.dumps({"benchmark": family, "id": str(i), "turns": [text]}) + "\n"
            for i, (family, text) in enumerate(rows)
        )
    )
    arguments = ["answers", "-m", model, "-t", "1", "-n", "12", "--prompts", str(prompts)]
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    assert [(f["family"], f["answers"]) for f in [*measured["families"], measured["all"]]] == [
        ("chat", 2),
        ("maths", 1),
        ("all", 3),
    ]
    for f in measured["families"]:
        assert (
            1 <= f["mean_tokens"] <= 12
            and 0 <= f["ended"] <= 1
            and f["parses"] <= f["code"]
            and f["right"] <= f["sums"]
        )
    lines = table(measured)
    assert len(lines) == 5 and lines[-1].startswith("all ")
    one = call(*arguments, "--count", "1")
    assert one.exit_code == 0 and "maths" in one.stdout
