"""What a regular expression, a JSON schema or a GBNF text stands for, against Python's re, json and jsonschema."""

import json
import re
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refspec.errors import UsageError
from refspec.grammar.automaton import automaton, utf8
from refspec.grammar.gbnf import dyck, gbnf
from refspec.grammar.json_schema import json_schema
from refspec.grammar.nodes import Grammar
from refspec.grammar.numbers import integer, number
from refspec.grammar.regex import regex

some = settings(max_examples=60, deadline=None, derandomize=True)


def outputs(language, rng, most=60):
    """A random string of a language of bytes: any way on that is alive, to the end soon after `most` bytes."""
    q, out = language.start, bytearray()
    while True:
        ways = np.flatnonzero(language.next[q] != language.dead)
        if language.final[q] and (len(out) >= most or not len(ways) or rng.random() < 0.2):
            return bytes(out)
        if len(out) >= most:  # the way to the nearest end
            distance = far(language)
            ways = ways[distance[language.next[q, ways]] < distance[q]]
        out.append(int(rng.choice(ways)))
        q = int(language.next[q, out[-1]])


def far(language):
    """Bytes from each state to the nearest final one."""
    distance = np.where(language.final, 0, 10**6)
    for _ in range(len(distance)):
        nearer = np.minimum(distance, distance[language.next].min(axis=1) + 1)
        if (nearer == distance).all():
            break
        distance = nearer
    return distance


# --- regular expressions ---


atoms = st.sampled_from(["a", "b", "é", "[ab]", "[^a]", ".", r"\d", r"\w", "(?:ab)", "(a|é)", r"\.", "[a-cé]", "ü?"])
repeats = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,3}", "{0,2}?", "*?"])
sequences = st.lists(st.builds(lambda a, r: a + (r if a != "ü?" else ""), atoms, repeats), min_size=1, max_size=4)
patterns = st.lists(sequences.map("".join), min_size=1, max_size=3).map("|".join)


@some
@given(patterns, st.lists(st.text("abcé.1_ü😀\n", max_size=5), max_size=12), st.integers(0, 2**32 - 1))
def test_a_regular_expression_matches_what_python_matches(pattern, strings, seed):
    language, meant = automaton(regex(pattern)), re.compile(pattern, re.ASCII)
    for string in strings:
        assert language.matches(string.encode()) == bool(meant.fullmatch(string)), string
    rng = np.random.default_rng(seed)
    for _ in range(5):
        assert meant.fullmatch(outputs(language, rng, 12).decode())


@pytest.mark.parametrize(
    "pattern", ["(?=a)", "a(", "a)", "[a", "a{2", "*a", r"\b", r"\1", "a^b", "a$b", "a{3,2}", "(?i)a", "a++"]
)
def test_what_is_no_regular_expression_here_is_refused(pattern):
    with pytest.raises(UsageError, match=r"regular expression: .* at character"):
        regex(pattern)


@some
@given(st.integers(0, 0x10FFFF), st.integers(0, 0x10FFFF))
def test_ranges_of_characters_are_ranges_of_bytes(a, b):
    low, high = min(a, b), max(a, b)
    language = automaton(regex(f"[\\U{low:08x}-\\U{high:08x}]")) if not (low >= 0xD800 and high <= 0xDFFF) else None
    if language is None:
        assert not list(utf8(low, high))
        return
    for code in {low - 1, low, low + 1, (low + high) // 2, high - 1, high, high + 1, 0x7F, 0x80, 0x7FF, 0x800, 0xFFFF}:
        if 0 <= code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF:
            assert language.matches(chr(code).encode()) == (low <= code <= high)


# --- numbers ---


@some
@given(st.none() | st.integers(-1200, 1200), st.none() | st.integers(-1200, 1200))
def test_integers_and_numbers_keep_their_bounds(a, b):
    low, high = (a, b) if a is None or b is None else (min(a, b), max(a, b))
    whole = automaton(Grammar({"root": integer(low, high)}))
    for x in range(-1300, 1300, 7):
        assert whole.matches(str(x).encode()) == ((low is None or x >= low) and (high is None or x <= high))
    bounds = [None if x is None else Decimal(x) / 100 for x in (low, high)]
    real = automaton(Grammar({"root": number(*bounds)}))
    for x in range(-1300, 1300, 7):
        for spelled in (f"{x / 100:.2f}", f"{x / 100:.4f}", str(Decimal(x) / 100)):
            value = Decimal(spelled)
            inside = (bounds[0] is None or value >= bounds[0]) and (bounds[1] is None or value <= bounds[1])
            assert real.matches(spelled.encode()) == (inside and not (spelled[0] == "-" and not value)) or not value


# --- JSON schemas ---


SCHEMAS = [
    {"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}, "n": {"type": "integer", "minimum": 0,
     "maximum": 120}, "x": {"type": "number", "minimum": -1.5, "maximum": 2.25}}, "required": ["n"]},
    {"type": "array", "items": {"enum": ["a", 1, None, "ü\"\n", [True]]}, "minItems": 1, "maxItems": 3},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "items": False, "minItems": 1},
    {"anyOf": [{"type": "string", "pattern": "^a[\"\\\\b]+$"}, {"const": {"k": 1}}, {"type": ["null", "boolean"]}]},
    {"type": "string", "format": "date"}, {"type": "string", "format": "date-time"},
    {"type": "string", "format": "uuid"},
    {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"},
     "value": {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 11}}, "required": ["value"]}}},
    {"type": "object", "additionalProperties": {"type": "boolean"}},
    {"type": "string", "pattern": "b+"}, {"type": "array", "items": {"type": "string", "minLength": 2, "maxLength": 4}},
    True, {}, {"allOf": [{"type": "integer", "title": "t"}]}, {"minimum": 3},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_every_output_of_a_schema_is_json_that_fits_it(schema):
    jsonschema = pytest.importorskip("jsonschema")
    language = automaton(json_schema(schema, depth=3))
    rng = np.random.default_rng(0)
    checker = jsonschema.FormatChecker()
    for _ in range(60):
        said = outputs(language, rng, int(rng.integers(1, 60)))
        value = json.loads(said.decode())
        jsonschema.Draft202012Validator(schema, format_checker=checker).validate(value)
        assert language.matches(json.dumps(value, ensure_ascii=False).encode()) or b"\\" in said or b"E" in said.upper()


@pytest.mark.parametrize(
    "schema, said",
    [
        ({"type": "foo", "minProperties": 3}, ["'foo'", "minProperties"]),
        (
            {"properties": {"a": {"oneOf": []}, "b": {"type": "string", "pattern": "(?=a)"}}},
            ["/properties/a: oneOf", "/properties/b"],
        ),
        ({"type": "number", "exclusiveMinimum": 1}, ["exclusiveMinimum"]),
        ({"type": "array", "uniqueItems": True}, ["uniqueItems"]),
        ({"type": "array", "minItems": 3, "maxItems": 1}, ["maxItems is below minItems"]),
        ({"$ref": "#/nowhere"}, ["points to nothing"]),
        ({"type": "object", "required": ["a"]}, ["required 'a'"]),
        ({"type": "integer", "enum": ["a"]}, ["no value"]),
        (False, ["false is no schema"]),
    ],
)  # fmt: skip
def test_what_would_be_ignored_is_refused_all_at_once(schema, said):
    with pytest.raises(UsageError) as caught:
        json_schema(schema)
    assert all(part in str(caught.value) for part in said)


# --- GBNF and brackets ---


def test_gbnf_reads_what_llama_cpp_reads():
    source = r"""
    # a list
    root ::= "[" ws (item ("," ws item)*)? "]"
    item ::= [0-9]+ | "\"" [^"\\\x00-\x1f]{0,3} "\"" |
             root   # lists in lists
    ws   ::= [ \t]*
    """
    language = automaton(gbnf(source, depth=4))  # root, item, root, item
    for good in ("[]", "[ 1,2]", '["é",[3]]', "[[]]", '["]"]'):
        assert language.matches(good.encode()), good
    for bad in ("", "[", "[1,]", '["abcd"]', "[[[[]]]]", '["\\"]'):
        assert not language.matches(bad.encode()), bad


@pytest.mark.parametrize(
    "source, said",
    [("root ::= a b", "no rule a, b"), ("a ::= \"x\"", "no rule root"), ("root ::= \"x", "line 1"),
     ("root ::= (\"x\"", "without its \\)"), ("root ::= \"x\"\nroot ::= \"y\"", "line 2: a second rule"),
     ("root ::= <[12]>", "not supported"), ("root = x", "::="), ("root ::= \"x\"{2,1}", "below")],
)  # fmt: skip
def test_what_is_wrong_with_gbnf_is_said_with_its_line(source, said):
    with pytest.raises(UsageError, match=said):
        gbnf(source)


@some
@given(st.text("()[]", max_size=10), st.integers(1, 4))
def test_brackets_are_balanced_and_not_too_deep(string, depth):
    stack, deepest, good = [], 0, bool(string)
    for c in string:
        if c in "([":
            stack.append(c)
            deepest = max(deepest, len(stack))
        elif not stack or stack.pop() + c not in ("()", "[]"):
            good = False
            break
    good = good and not stack and deepest <= depth
    assert automaton(dyck("()[]", depth)).matches(string.encode()) == good


def test_a_grammar_without_a_string_is_refused():
    with pytest.raises(UsageError, match="no string matches"):
        automaton(gbnf('root ::= "a" root'))


def test_too_many_states_are_refused():
    with pytest.raises(UsageError, match="more than 20000 states"):
        automaton(regex("(a|b)*a(a|b){20}"))
