"""Ten thousand pairs of a generated grammar and an output drawn under its mask: every one is finished and valid."""

import json
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_languages import patterns

from refspec.errors import UsageError
from refspec.grammar.automaton import automaton
from refspec.grammar.constraint import ENDED, Constraint
from refspec.grammar.json_schema import json_schema
from refspec.grammar.regex import regex
from refspec.grammar.tokens import ByteTokens, Vocabulary

EACH = 20
many = settings(max_examples=450, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
# every byte, as in byte-level vocabularies, and what JSON is made of, cut in the middle of characters too
WORDS = ['"', '{"', '": ', '", "', "[", "]", "}", "true", "fal", "se", "null", ", ", "ab", "é", "10", "0.", "-1", '"a"']
PIECES = [b"", *(bytes([b]) for b in range(256)), *(w.encode() for w in WORDS), b"a\xc3", b"\xa9\xc3", b"\xf0\x9f"]
VOCABULARY = Vocabulary(PIECES, {0})


def drawn(language, limit, rng):
    """Outputs of at most so many tokens, each token drawn from those allowed; None where none is so short."""
    try:
        constraint = Constraint(ByteTokens(language, VOCABULARY), [0], limit)
    except UsageError:
        return
    for _ in range(EACH):
        state, left, said = constraint.start, limit, b""
        while state != ENDED:
            row = constraint.allowed(state, left)
            i = int(rng.integers(len(row.ids)))
            said += PIECES[row.ids[i]]
            state, left = int(row.next[i]), left - 1
        assert left >= 0
        yield said


def test_five_thousand_outputs_match_their_regular_expression():
    checked = 0

    @many
    @given(patterns, st.integers(1, 12), st.integers(0, 2**32 - 1))
    def all_match(pattern, limit, seed):
        nonlocal checked
        meant = re.compile(pattern, re.ASCII)
        for said in drawn(automaton(regex(pattern)), limit, np.random.default_rng(seed)):
            assert meant.fullmatch(said.decode())
            checked += 1

    all_match()
    assert checked >= 5000


small = st.integers(-20, 20)
leaves = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": "number"}, {"type": "string", "format": "date"}]),
    st.builds(lambda a, b: {"type": "integer", "minimum": min(a, b), "maximum": max(a, b)}, small, small),
    st.builds(lambda a, b: {"type": "number", "minimum": min(a, b) / 4, "maximum": max(a, b) / 4}, small, small),
    st.builds(
        lambda a, b: {"type": "string", "minLength": a, "maxLength": a + b}, st.integers(0, 3), st.integers(0, 3)
    ),
    st.builds(lambda xs: {"enum": xs}, st.lists(st.sampled_from(["a", 'b"', 1, 2.5, None, [True]]), min_size=1)),
    st.builds(lambda p: {"type": "string", "pattern": p}, st.sampled_from(["^a+$", "b", '^[é"]{1,2}', "\\d$"])),
)
schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(
            lambda item, a, b: {"type": "array", "items": item, "minItems": a, "maxItems": a + b},
            inner, st.integers(0, 2), st.integers(0, 2),
        ),
        st.builds(
            lambda fields, needed: {
                "type": "object", "properties": fields, "required": [k for k in fields if k in needed],
                "additionalProperties": False,
            },
            st.dictionaries(st.sampled_from(["a", "é", 'k"']), inner, min_size=1, max_size=3),
            st.sets(st.sampled_from(["a", "é", 'k"'])),
        ),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=2)),
    ),
    max_leaves=4,
)  # fmt: skip


def test_five_thousand_outputs_fit_their_schema():
    jsonschema = pytest.importorskip("jsonschema")
    checked = 0

    @many
    @given(schemas, st.integers(5, 60), st.integers(0, 2**32 - 1))
    def all_fit(schema, limit, seed):
        nonlocal checked
        validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
        for said in drawn(automaton(json_schema(schema)), limit, np.random.default_rng(seed)):
            validator.validate(json.loads(said))
            checked += 1

    all_fit()
    assert checked >= 5000
