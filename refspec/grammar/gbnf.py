"""llama.cpp's GBNF as grammar nodes.

Rules `name ::= ...` of "text", [classes], `.` (any character), names, groups, `|` and the repetitions `* + ? {n} {n,}
{n,m}`; comments begin with #. Rules may contain themselves, as deep as `depth` says. Refused: tokens (`<[12]>`, `!`).
"""

from __future__ import annotations

import re

from refspec.errors import UsageError
from refspec.grammar.nodes import DEPTH, LAST, Alt, Chars, Grammar, Node, Ref, Repeat, Seq, chars, one_of

NAME = re.compile(r"[A-Za-z0-9_-]+")
BOUNDS = re.compile(r"\{\s*(\d*)\s*(,?)\s*(\d*)\s*\}")
ESCAPES = {"n": 10, "t": 9, "r": 13, "\\": 92, '"': 34, "[": 91, "]": 93, "-": 45, "^": 94}
HEX = {"x": 2, "u": 4, "U": 8}


def gbnf(source: str, *, depth: int = DEPTH, name: str = "grammar") -> Grammar:
    """The grammar of a GBNF text, whose rule is `root`; UsageError naming the line, or every missing rule."""
    parser = _Parser(source, name)
    rules = parser.rules()
    missing = sorted(({"root"} | parser.used) - set(rules))
    if missing:
        raise UsageError(f"{name}: no rule {', '.join(missing)}; every grammar needs root, and every name a rule")
    return Grammar(rules, depth=depth)


class _Parser:
    def __init__(self, source: str, name: str) -> None:
        self.source, self.name, self.at = source, name, 0
        self.used: set[str] = set()

    def wrong(self, what: str) -> UsageError:
        line = self.source.count("\n", 0, self.at) + 1
        return UsageError(f"{self.name}: line {line}: {what}")

    @property
    def here(self) -> str:
        """The character at hand; empty at the end."""
        return self.source[self.at : self.at + 1]

    def space(self, newlines: bool) -> None:
        """Go past blanks and comments, and newlines if they end nothing here."""
        while self.here and (self.here in " \t" or self.here == "#" or (newlines and self.here in "\r\n")):
            if self.here == "#":
                end = self.source.find("\n", self.at)
                self.at = len(self.source) if end < 0 else end
            else:
                self.at += 1

    def rules(self) -> dict[str, Node]:
        found: dict[str, Node] = {}
        self.space(True)
        while self.here:
            named = NAME.match(self.source, self.at)
            if named is None:
                raise self.wrong(f"expected the name of a rule, not {self.here!r}")
            self.at = named.end()
            self.space(False)
            if self.source[self.at : self.at + 3] != "::=":
                raise self.wrong(f"expected ::= after {named.group()}")
            if named.group() in found:
                raise self.wrong(f"a second rule {named.group()}")
            self.at += 3
            self.space(True)
            found[named.group()] = self.alternatives(False)
            if self.here and self.here not in "\r\n":
                raise self.wrong(f"did not expect {self.here!r}")
            self.space(True)
        return found

    def alternatives(self, nested: bool) -> Node:
        options = [self.sequence(nested)]
        while self.here == "|":
            self.at += 1
            self.space(True)
            options.append(self.sequence(nested))
        return options[0] if len(options) == 1 else Alt(tuple(options))

    def sequence(self, nested: bool) -> Node:
        items: list[Node] = []
        while self.here and self.here not in "|)\r\n":
            item = self.item()
            self.space(nested)
            while self.here and self.here in "*+?{":
                item = self.repeated(item)
                self.space(nested)
            items.append(item)
        return items[0] if len(items) == 1 else Seq(tuple(items))

    def item(self) -> Node:
        c = self.here
        if c == '"':
            self.at += 1
            codes = []
            while self.here != '"':
                codes.append(self.code())
            self.at += 1
            return Seq(tuple(chars([(code, code)]) for code in codes))
        if c == "[":
            return self.char_class()
        if c == "(":
            self.at += 1
            self.space(True)
            inner = self.alternatives(True)
            if self.here != ")":
                raise self.wrong("a ( without its )")
            self.at += 1
            return inner
        if c == ".":
            self.at += 1
            return chars([(0, LAST)])
        named = NAME.match(self.source, self.at)
        if named is None:
            raise self.wrong(f"{c!r} is not supported" if c in "<!" else f"did not expect {c!r}")
        self.at = named.end()
        self.used.add(named.group())
        return Ref(named.group())

    def repeated(self, item: Node) -> Node:
        if self.here != "{":
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[self.here]
            self.at += 1
            return Repeat(item, least, most)
        found = BOUNDS.match(self.source, self.at)
        if found is None or not (found[1] or found[3]):
            raise self.wrong("a { that is no repetition such as {2} {2,} {2,5}")
        least, most = int(found[1] or 0), int(found[3]) if found[3] else None if found[2] else int(found[1])
        if most is not None and most < least:
            raise self.wrong("a repetition whose end is below its beginning")
        self.at = found.end()
        return Repeat(item, least, most)

    def char_class(self) -> Chars:
        self.at += 1
        other = self.here == "^"
        self.at += other
        ranges = []
        while self.here != "]":
            low = high = self.code()
            if self.here == "-" and self.source[self.at + 1 : self.at + 2] != "]":
                self.at += 1
                high = self.code()
                if high < low:
                    raise self.wrong("a range whose end is below its beginning")
            ranges.append((low, high))
        self.at += 1
        return chars(ranges, other=other)

    def code(self) -> int:
        """The character at hand, or what its escape stands for, and go on."""
        c = self.here
        if not c or c == "\n":
            raise self.wrong("text or a class without its end")
        self.at += 1
        if c != "\\":
            return ord(c)
        c = self.here
        self.at += 1
        if c in ESCAPES:
            return ESCAPES[c]
        if c in HEX:
            digits = self.source[self.at : self.at + HEX[c]]
            self.at += HEX[c]
            if re.fullmatch(f"[0-9a-fA-F]{{{HEX[c]}}}", digits) and int(digits, 16) <= LAST:
                return int(digits, 16)
        raise self.wrong(f"unknown escape \\{c}")


def dyck(pairs: str = "()", depth: int = DEPTH) -> Grammar:
    """Balanced brackets at most `depth` deep, at least one pair: "()[]" has two kinds."""
    kinds = [(pairs[i], pairs[i + 1]) for i in range(0, len(pairs), 2)]
    one = Alt(tuple(Seq((one_of(a), Repeat(Ref("pair"), 0, None), one_of(b))) for a, b in kinds))
    return Grammar({"root": Repeat(Ref("pair"), 1, None), "pair": one}, depth=depth)
