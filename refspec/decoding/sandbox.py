"""Jinja's sandbox with limits: a template from a file may neither run for ever nor make text without end.

Jinja's own sandbox keeps a template from the process around it, not from the processor and the memory. Here every
turn of a loop, every call and every text that is made is paid for from one budget (`Spent` when it is used up), and
what could make a large value at once is asked for its size before it runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from time import monotonic
from typing import Any

CHARACTERS = 1 << 26  # that a template may make, beside EACH for every character of the messages
EACH, TURN = 256, 256  # what a turn of a loop or a call costs, beside the text it makes
SECONDS = 10.0  # for what costs time but makes no text
DIGITS = 4096  # bits of a whole number
WIDTH = re.compile(r"\*|\d{5}")  # in a format: a width from elsewhere, or beyond every line
# Filters and methods that repeat, fill or indent by a number.
NUMBERED = frozenset({
    "batch", "center", "format", "indent", "lipsum", "ljust", "rjust", "slice", "tojson", "truncate", "wordwrap",
    "zfill", "expandtabs", "round", "to_bytes",
})  # fmt: skip


class Spent(Exception):
    """The budget of a template is used up."""


class Budget:
    """What a template may still make."""

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, characters: int) -> None:
        """For a run over messages of so many characters."""
        self.left = CHARACTERS + EACH * characters
        self.most = self.left
        self.until = monotonic() + SECONDS

    def pay(self, cost: int) -> None:
        """Spent where there is not enough left, or time is up."""
        self.left -= cost
        if self.left < 0:
            raise Spent(f"it makes more than {self.most} characters or turns")
        if monotonic() > self.until:
            raise Spent(f"it takes more than {SECONDS:.0f} s")

    def made(self, value: Any) -> Any:
        """A value, paid for by its size."""
        self.pay(TURN + size(value))
        return value


def size(value: Any) -> int:
    """Characters or items of a value; 0 for one that is neither text nor a collection."""
    return len(value) if isinstance(value, (str, bytes, list, tuple, dict, set)) else 0


def listed(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments with generators as lists, whose items can be counted."""
    return tuple(list(arg) if hasattr(arg, "__next__") else arg for arg in args)


def numbers(values: Any) -> Any:
    """The whole numbers among arguments."""
    return (value for value in values if isinstance(value, int))


@cache
def environment_class() -> Any:
    """The environment; Jinja is imported only where there is a template."""
    from jinja2 import nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.visitor import NodeTransformer

    class Paid(NodeTransformer):
        """Turns and joined texts pay: `environment.turn(n)` in every body, `environment.joined(...)` for `~`."""

        def _body(self, node: Any) -> Any:
            self.generic_visit(node)
            text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
            call = nodes.Call(nodes.EnvironmentAttribute("turn"), [nodes.Const(text)], [], None, None)
            node.body.insert(0, nodes.ExprStmt(call))
            return node

        visit_For = visit_Macro = visit_CallBlock = visit_FilterBlock = _body

        def visit_Concat(self, node: Any) -> Any:
            self.generic_visit(node)
            return nodes.Call(nodes.EnvironmentAttribute("joined"), node.nodes, [], None, None)

    class Limited(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"+", "*", "**", "%"})

        def __init__(self, budget: Budget, **how: Any) -> None:
            self.budget = budget
            super().__init__(finalize=budget.made, **how)
            self.filters = {name: self._paid(name, function) for name, function in self.filters.items()}
            self.globals.pop("lipsum", None)

        def _generate(self, source: Any, *rest: Any, **how: Any) -> Any:
            Paid().visit(source)
            source.set_environment(self)
            return super()._generate(source, *rest, **how)

        def turn(self, text: int) -> None:
            self.budget.pay(TURN + text)

        def joined(self, *values: Any) -> str:
            texts = [str(value) for value in values]
            self.budget.pay(TURN + sum(map(len, texts)))
            return "".join(texts)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            whole = isinstance(left, int) and isinstance(right, int)
            if operator == "*" and not whole and (size(left) or size(right)):
                text, times = (left, right) if size(left) else (right, left)
                self.budget.pay(size(text) * max(int(times), 0))
            elif operator == "**" and left not in (0, 1, -1) and isinstance(right, int):
                bits = left.bit_length() if isinstance(left, int) else 1
                if bits * abs(right) > DIGITS:
                    raise Spent("it makes a number too large")
            elif operator == "*" and whole and left.bit_length() + right.bit_length() > DIGITS:
                raise Spent("it makes a number too large")
            elif operator == "%" and isinstance(left, (str, bytes)):
                self._format(str(left))
            return self.budget.made(super().call_binop(context, operator, left, right))

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
            method = getattr(__obj, "__wrapped__", __obj)  # Jinja wraps str.format
            owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
            if isinstance(owner, (str, bytes)):
                args = listed(args)
                __self._check(name, (owner, *args), kwargs)
            return __self.budget.made(super().call(__context, __obj, *args, **kwargs))

        def _paid(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            from functools import wraps

            first = 1 if getattr(function, "jinja_pass_arg", None) else 0

            @wraps(function)
            def paid(*args: Any, **kwargs: Any) -> Any:
                args = (*args[:first], *listed(args[first:]))
                self._check(name, args[first:], kwargs)
                return self.budget.made(function(*args, **kwargs))

            return paid

        def _check(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            """Pay for what a method of a text or a filter is about to make, where that may be much at once."""
            text = args[0] if args else ""
            if name in NUMBERED:
                widest = max(numbers((*args[1:], *kwargs.values())), default=0)
                lines = text.count("\n") + 2 if isinstance(text, str) else size(text) + 1
                self.budget.pay(max(widest, 0) * lines)
            if name in ("format", "format_map"):
                self._format(str(text))
            elif name == "replace" and isinstance(text, str) and len(args) > 2:
                old, new = str(args[1]), str(args[2])
                self.budget.pay(text.count(old) * len(new))
            elif name == "join" and isinstance(text, str) and len(args) > 1:  # "sep".join(items)
                self._sum(args[1], len(text))
            elif name == "join":  # items|join("sep")
                self._sum(text, size(args[1]) if len(args) > 1 else size(kwargs.get("d")))
            elif name == "translate" or (name == "sum" and ("start" in kwargs or len(args) > 2)):
                raise Spent(f"{name!r} is not offered with a start or a table")

        def _sum(self, items: Any, separator: int) -> None:
            if isinstance(items, (list, tuple, dict, str)):
                self.budget.pay(len(items) * separator + sum(size(item) for item in items))

        def _format(self, form: str) -> None:
            if WIDTH.search(form):
                raise Spent("its format has a width too large")

    return Limited
