"""JSON schemas as grammar nodes: every string of the grammar is JSON that fits the schema.

JSON is written as Python's json.dumps does, `{"a": 1, "b": [true, null]}`, with the properties in the schema's order,
and only the properties that it names. That is a part of what fits, and a part of which every output fits. A keyword
that would narrow the schema and is not supported is refused, never ignored; all of them at once.

Supported: true and {}; type (one or several), enum, const, anyOf, allOf of one, $ref within the file (a schema may
contain itself, as deep as `depth`); properties, required; items, prefixItems, minItems, maxItems; minLength, maxLength,
pattern, format (date, time, date-time, uuid); minimum, maximum and, of integers, exclusiveMinimum, exclusiveMaximum.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from math import ceil, floor
from typing import Any

from refspec.errors import UsageError
from refspec.grammar import numbers, regex
from refspec.grammar.nodes import (
    DEPTH,
    EMPTY,
    Alt,
    Chars,
    Grammar,
    Node,
    Ref,
    Repeat,
    Seq,
    alt,
    chars,
    one_of,
    seq,
    text,
)

ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
ANNOTATIONS |= {"$schema", "$id", "$comment", "$defs", "definitions"}
ANYWHERE = ANNOTATIONS | {"type", "enum", "const", "anyOf", "allOf", "$ref"}
OF_TYPE = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "boolean": set[str](),
    "null": set[str](),
}
FORMATS = {
    # without the 29th of February
    "date": r"[0-9]{4}-((0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)",
    "time": r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}
FORMATS["date-time"] = f"{FORMATS['date']}T{FORMATS['time']}"
SHORT = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\b": "\\b", "\f": "\\f"}
PLAIN = chars([(0, 31), (34, 34), (92, 92), (127, 159)], other=True)  # what a JSON string holds as it is
ANY = "any value"


def json_schema(schema: Any, *, depth: int = DEPTH, name: str = "JSON schema") -> Grammar:
    """The grammar of a schema as json.loads gives it; UsageError naming everything in it that is not supported."""
    reader = _Reader(schema, name)
    root = reader.node(schema, "")
    if reader.wrong:
        raise UsageError(f"{name}: " + "; ".join(dict.fromkeys(reader.wrong)))
    return Grammar(reader.rules | {"root": root}, depth=depth)


class _Reader:
    def __init__(self, schema: Any, name: str) -> None:
        self.schema, self.name = schema, name
        self.rules: dict[str, Node] = {}
        self.wrong: list[str] = []

    def refuse(self, where: str, what: str) -> Node:
        self.wrong.append(f"{where or '/'}: {what}")
        return EMPTY

    def node(self, schema: Any, where: str) -> Node:
        """The node of a schema at a JSON pointer."""
        if schema is True or schema == {}:
            return self.anything()
        if not isinstance(schema, Mapping):
            return self.refuse(where, f"{json.dumps(schema, default=str)} is no schema that a value fits")
        kinds = self.kinds(schema, where)
        known = ANYWHERE.union(*(OF_TYPE[kind] for kind in kinds))
        # "maximum" beside "type": "string" narrows nothing
        idle = set().union(*OF_TYPE.values()) - known if "type" in schema else set()
        for keyword in [k for k in schema if k not in known | idle]:
            self.refuse(where, f"{keyword} is not supported")
        if "$ref" in schema:
            return self.ref(schema["$ref"], where)
        if "const" in schema:
            return self.values([schema["const"]], kinds if "type" in schema else [], where)
        if "enum" in schema:
            return self.values(schema["enum"], kinds if "type" in schema else [], where)
        for keyword in ("anyOf", "allOf"):
            if keyword in schema:
                return self.several(keyword, schema, where)
        if "type" not in schema and not kinds:
            return self.anything()
        return Alt(tuple(getattr(self, kind)(schema, where) for kind in kinds))

    def kinds(self, schema: Mapping[str, Any], where: str) -> list[str]:
        """The types a schema allows; without `type` those its keywords are about."""
        given = schema.get("type")
        if given is None:
            return [kind for kind in ("object", "array", "string", "number") if OF_TYPE[kind] & set(schema)]
        kinds = [given] if isinstance(given, str) else list(given)
        unknown = [kind for kind in kinds if kind not in OF_TYPE]
        if unknown:
            self.refuse(where, f"type {unknown[0]!r} is none of {', '.join(OF_TYPE)}")
        return [kind for kind in kinds if kind in OF_TYPE]

    def ref(self, to: Any, where: str) -> Node:
        if not isinstance(to, str) or not to.startswith("#"):
            return self.refuse(where, f"$ref {to!r} does not point into this schema (#/...)")
        if to not in self.rules:
            found = self.schema
            for part in to[1:].split("/")[1:]:
                key: Any = part.replace("~1", "/").replace("~0", "~")
                if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                    key = int(key)
                elif not isinstance(found, Mapping) or key not in found:
                    return self.refuse(where, f"$ref {to!r} points to nothing")
                found = found[key]
            self.rules[to] = EMPTY  # it may contain itself
            self.rules[to] = self.node(found, to[1:])
        return Ref(to)

    def values(self, values: Any, kinds: list[str], where: str) -> Node:
        if not isinstance(values, list) or not values:
            return self.refuse(where, "enum must be a list of at least one value")
        kept = [v for v in values if not kinds or any(_is(v, kind) for kind in kinds)]
        return (
            Alt(tuple(text(json.dumps(v, ensure_ascii=False)) for v in kept))
            if kept
            else self.refuse(where, "no value of enum or const is of its type")
        )

    def several(self, keyword: str, schema: Mapping[str, Any], where: str) -> Node:
        options = schema[keyword]
        if set(schema) - ANNOTATIONS - {keyword} or not isinstance(options, list) or not options:
            return self.refuse(where, f"{keyword} must be a list, and stand alone")
        if keyword == "allOf" and len(options) > 1:
            return self.refuse(where, "allOf of several schemas is not supported")
        return Alt(tuple(self.node(option, f"{where}/{keyword}/{i}") for i, option in enumerate(options)))

    def anything(self) -> Node:
        if ANY not in self.rules:
            value = Ref(ANY)
            self.rules[ANY] = alt(
                seq("{", _listed([seq(_string(0, None), ": ", value)]), "}"), seq("[", _listed([value]), "]"),
                _string(0, None), numbers.number(None, None), "true", "false", "null",
            )  # fmt: skip
        return Ref(ANY)

    def object(self, schema: Mapping[str, Any], where: str) -> Node:
        """Properties in order, the optional ones left out or not."""
        properties, required = schema.get("properties", {}), schema.get("required", [])
        for name in required:
            if name not in properties:
                self.refuse(where, f"required {name!r} is not among the properties")
        more = schema.get("additionalProperties", False)
        if not properties:
            if more is False:
                return text("{}")
            pair = seq(_string(0, None), ": ", self.node(more, f"{where}/additionalProperties"))
            return seq("{", _listed([pair]), "}")
        if isinstance(more, Mapping):
            self.refuse(where, "additionalProperties beside properties must be true or false")
        pairs = [
            (seq(json.dumps(name, ensure_ascii=False), ": ", self.node(inner, f"{where}/properties/{name}")),
             name in required)
            for name, inner in properties.items()
        ]  # fmt: skip
        first: Node = EMPTY  # what may come from property i on, where none came before
        later: Node = EMPTY  # and where one did
        for pair, needed in reversed(pairs):
            taken = seq(pair, later)
            first = taken if needed else Alt((taken, first))
            after = seq(", ", pair, later)
            later = after if needed else Alt((after, later))
        return seq("{", first, "}")

    def array(self, schema: Mapping[str, Any], where: str) -> Node:
        least, most = self.lengths(schema, "minItems", "maxItems", where)
        fixed = [self.node(inner, f"{where}/prefixItems/{i}") for i, inner in enumerate(schema.get("prefixItems", []))]
        rest = schema.get("items", True)
        if rest is False:
            most = min(len(fixed), len(fixed) if most is None else most)
        item = EMPTY if rest is False or most == 0 else self.node(rest, f"{where}/items")
        return seq("[", _listed([*fixed, item], least, most), "]")

    def string(self, schema: Mapping[str, Any], where: str) -> Node:
        least, most = self.lengths(schema, "minLength", "maxLength", where)
        patterns = [schema[k] for k in ("pattern", "format") if k in schema]
        if len(patterns) > 1 or (patterns and (least or most is not None)):
            return self.refuse(where, "pattern, format and minLength or maxLength exclude each other")
        if "format" in schema:
            if schema["format"] not in FORMATS:
                return self.refuse(where, f"format {schema['format']!r} is none of {', '.join(FORMATS)}")
            return seq('"', regex.node(FORMATS[schema["format"]]), '"')
        if "pattern" in schema:
            return self.pattern(schema["pattern"], where)
        return _string(least, most)

    def pattern(self, pattern: Any, where: str) -> Node:
        """Strings in which a regular expression is found: anywhere, unless it begins with ^ or ends with $."""
        found = str(pattern)
        begins, ends = found.startswith("^"), found.endswith("$") and not found.endswith("\\$")
        try:
            inner = _in_string(regex.node(found[begins : len(found) - ends]))
        except UsageError as error:
            return self.refuse(where, str(error))
        free = Repeat(_character(), 0, None)
        return seq('"', EMPTY if begins else free, inner, EMPTY if ends else free, '"')

    def integer(self, schema: Mapping[str, Any], where: str) -> Node:
        low, high = schema.get("minimum"), schema.get("maximum")
        above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        given = [x for x in (low, high, above, below) if x is not None]
        if not all(_is(x, "number") for x in given):
            return self.refuse(where, "a bound is not a number")
        least = [ceil(low)] if low is not None else []
        least += [floor(above) + 1] if above is not None else []
        most = [floor(high)] if high is not None else []
        most += [ceil(below) - 1] if below is not None else []
        return numbers.integer(max(least, default=None), min(most, default=None))

    def number(self, schema: Mapping[str, Any], where: str) -> Node:
        if OF_TYPE["number"] & set(schema) - {"minimum", "maximum"}:
            return self.refuse(where, "exclusiveMinimum and exclusiveMaximum are for integers; use minimum and maximum")
        bounds = schema.get("minimum"), schema.get("maximum")
        if not all(x is None or _is(x, "number") for x in bounds):
            return self.refuse(where, "a bound is not a number")
        low, high = (None if x is None else Decimal(str(x)) for x in bounds)
        return numbers.number(low, high)

    def boolean(self, schema: Mapping[str, Any], where: str) -> Node:
        return alt("true", "false")

    def null(self, schema: Mapping[str, Any], where: str) -> Node:
        return text("null")

    def lengths(self, schema: Mapping[str, Any], least: str, most: str, where: str) -> tuple[int, int | None]:
        """minItems and maxItems, or minLength and maxLength."""
        found = schema.get(least, 0), schema.get(most)
        for name, value in zip((least, most), found, strict=True):
            if value is not None and (not _is(value, "integer") or value < 0):
                self.refuse(where, f"{name} {value!r} is not an integer >= 0")
                return 0, None
        if found[1] is not None and found[1] < found[0]:
            self.refuse(where, f"{most} is below {least}")
        return int(found[0]), None if found[1] is None else int(found[1])


def _is(value: Any, kind: str) -> bool:
    """Whether a JSON value is of a type."""
    types: dict[str, Any] = {"object": Mapping, "array": list, "string": str, "boolean": bool, "null": type(None)}
    if kind in types:
        return isinstance(value, types[kind])
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return kind == "number" or value == int(value)


def _listed(items: list[Node], least: int = 0, most: int | None = None) -> Node:
    """`least` to `most` items with commas: those given in order, the last one as often as wanted."""
    *fixed, rest = items
    tail: Node
    if most is not None and most <= len(fixed):
        fixed, tail = fixed[:most], EMPTY
    else:
        left = None if most is None else most - len(fixed)
        tail = Repeat(seq(", ", rest), max(least - len(fixed), 0), left)
    if not fixed:
        if tail == EMPTY:
            return EMPTY
        assert isinstance(tail, Repeat)
        more = None if tail.most is None else tail.most - 1
        some = Seq((rest, Repeat(tail.item, max(tail.least - 1, 0), more)))
        return some if least else Alt((some, EMPTY))
    built: Node = tail
    for i in range(len(fixed) - 1, -1, -1):
        built = seq(", " if i else "", fixed[i], built)
        if i >= least:
            built = Alt((built, EMPTY))
    return built


def _character() -> Node:
    """One character of a JSON string, as it is or escaped."""
    return alt(PLAIN, seq("\\", one_of('"\\/bfnrt')))


def _string(least: int, most: int | None) -> Node:
    return seq('"', Repeat(_character(), least, most), '"')


def _in_string(node: Node) -> Node:
    """What a node stands for as it is written in a JSON string."""
    if isinstance(node, Chars):
        plain = _common(node.ranges, PLAIN.ranges)
        escaped = [text(spelled) for c, spelled in SHORT.items() if any(a <= ord(c) <= b for a, b in node.ranges)]
        return Alt((Chars(plain), *escaped))
    if isinstance(node, Seq):
        return Seq(tuple(map(_in_string, node.items)))
    if isinstance(node, Alt):
        return Alt(tuple(map(_in_string, node.options)))
    assert isinstance(node, Repeat)
    return Repeat(_in_string(node.item), node.least, node.most)


def _common(a: Iterable[tuple[int, int]], b: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The code points of both."""
    both = [(max(x, u), min(y, v)) for x, y in a for u, v in b if max(x, u) <= min(y, v)]
    return tuple(sorted(both))
