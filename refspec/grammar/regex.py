"""Regular expressions as grammar nodes: the whole output must match, as with `re.fullmatch`.

Characters, `.` (any but a newline), classes, groups, `|`, the repetitions `* + ? {n} {n,} {n,m}` and their lazy forms
(which match the same strings), `^` at the beginning and `$` at the end. `\\d \\w \\s` are those of ASCII. Refused: what
looks around, back-references, word boundaries, flags, Unicode properties.
"""

from __future__ import annotations

from refspec.errors import UsageError
from refspec.grammar.nodes import LAST, Alt, Bounds, Chars, Grammar, Node, Repeat, Seq, chars

DIGITS = [(48, 57)]
WORD = [(48, 57), (65, 90), (95, 95), (97, 122)]
SPACE = [(9, 13), (32, 32)]
CLASSES = {"d": (DIGITS, False), "w": (WORD, False), "s": (SPACE, False)}
CLASSES |= {name.upper(): (ranges, True) for name, (ranges, _) in CLASSES.items()}
CONTROLS = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11, "0": 0}
HEX = {"x": 2, "u": 4, "U": 8}


def regex(pattern: str) -> Grammar:
    """The grammar of a regular expression; UsageError where it is not one, or not supported."""
    return Grammar({"root": node(pattern)})


def node(pattern: str) -> Node:
    """The node of a regular expression."""
    parser = _Parser(pattern)
    found = parser.alternatives()
    if parser.at < len(pattern):
        raise parser.wrong("a ) without a (")
    return found


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.pattern, self.at = pattern, 0

    def wrong(self, what: str) -> UsageError:
        return UsageError(f"regular expression: {what} at character {self.at + 1} of {self.pattern!r}")

    @property
    def here(self) -> str:
        """The character at hand; empty at the end."""
        return self.pattern[self.at : self.at + 1]

    def take(self) -> str:
        """The character at hand, and go on."""
        c = self.here
        if not c:
            raise self.wrong("it ends too early")
        self.at += 1
        return c

    def alternatives(self) -> Node:
        options = [self.sequence()]
        while self.here == "|":
            self.at += 1
            options.append(self.sequence())
        return options[0] if len(options) == 1 else Alt(tuple(options))

    def sequence(self) -> Node:
        items: list[Node] = []
        while self.here and self.here not in "|)":
            if (self.here == "^" and self.at == 0) or (self.here == "$" and self.at == len(self.pattern) - 1):
                self.at += 1
            else:
                items.append(self.repeated(self.atom()))
        return items[0] if len(items) == 1 else Seq(tuple(items))

    def repeated(self, item: Node) -> Node:
        while self.here and self.here in "*+?{":
            bounds = self.bounds()
            item = Repeat(item, *bounds)
            if self.here == "?":  # lazy: the same strings
                self.at += 1
            elif self.here == "+":
                raise self.wrong("possessive repetition is not supported")
        return item

    def bounds(self) -> Bounds:
        c = self.take()
        if c != "{":
            return {"*": Bounds(0, None), "+": Bounds(1, None), "?": Bounds(0, 1)}[c]
        end = self.pattern.find("}", self.at)
        least, comma, most = self.pattern[self.at : max(end, self.at)].partition(",")
        if end < 0 or not (least or most) or not all(x.isdecimal() for x in (least, most) if x):
            raise self.wrong("a { that is no repetition (\\{ is the character)")
        self.at = end + 1
        found = Bounds(int(least or 0), (int(most) if most else None) if comma else int(least))
        if found.most is not None and found.most < found.least:
            raise self.wrong("a repetition whose end is below its beginning")
        return found

    def atom(self) -> Node:
        c = self.take()
        if c == "(":
            return self.group()
        if c == "[":
            return self.char_class()
        if c == ".":
            return chars([(10, 10)], other=True)
        if c == "\\":
            return self.escape()
        if c in "*+?{":
            self.at -= 1
            raise self.wrong(f"a {c} with nothing to repeat")
        if c in "^$":
            self.at -= 1
            raise self.wrong(f"{c} inside is not supported (the whole output always matches)")
        return chars([(ord(c), ord(c))])

    def group(self) -> Node:
        if self.here == "?":
            self.at += 1
            if (self.here == "P" and self.pattern[self.at + 1 : self.at + 2] == "<") or (
                self.here == "<" and self.pattern[self.at + 1 : self.at + 2] not in ("=", "!")
            ):
                end = self.pattern.find(">", self.at)
                self.at = end + 1 if end > 0 else len(self.pattern)
            elif self.here == ":":
                self.at += 1
            else:
                raise self.wrong(f"(?{self.here} is not supported")
        inner = self.alternatives()
        if self.here != ")":
            raise self.wrong("a ( without its )")
        self.at += 1
        return inner

    def escape(self) -> Chars:
        c = self.take()
        if c in CLASSES:
            ranges, other = CLASSES[c]
            return chars(ranges, other=other)
        code = self.code(c)
        return chars([(code, code)])

    def code(self, c: str) -> int:
        """The code point of the escape \\c."""
        if c in CONTROLS:
            return CONTROLS[c]
        if c in HEX:
            digits = self.pattern[self.at : self.at + HEX[c]]
            try:
                code = int(digits, 16)
            except ValueError:
                raise self.wrong(f"\\{c} needs {HEX[c]} hexadecimal digits") from None
            self.at += HEX[c]
            if len(digits) < HEX[c] or code > LAST:
                raise self.wrong(f"\\{c} needs {HEX[c]} hexadecimal digits of a character")
            return code
        if c.isalnum():
            self.at -= 1
            raise self.wrong(f"\\{c} is not supported")
        return ord(c)

    def char_class(self) -> Chars:
        other = self.here == "^"
        self.at += other
        ranges: list[tuple[int, int]] = []
        first = True
        while first or self.here != "]":
            first = False
            c = self.take()
            if c == "\\" and self.here in CLASSES:
                ranges += self.escape().ranges
                continue
            low = self.code(self.take()) if c == "\\" else ord(c)
            high = low
            if self.here == "-" and self.pattern[self.at + 1 : self.at + 2] != "]":
                self.at += 1
                d = self.take()
                high = self.code(self.take()) if d == "\\" else ord(d)
                if high < low:
                    raise self.wrong("a range whose end is below its beginning")
            ranges.append((low, high))
        self.at += 1
        return chars(ranges, other=other)
