"""The options that keep an output within a grammar; `refspec/grammar/` says what they do."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from refspec.cli.command import GRAMMAR, PATH, option, options
from refspec.errors import UsageError

_option = partial(option, section=GRAMMAR)

grammar_options = options(
    _option(
        "--json-schema", type=PATH, metavar="FILE", also=("-jf", "--json-schema-file"),
        help="Only JSON that fits this schema.",
    ),
    _option(
        "--grammar", type=PATH, metavar="FILE", also=("--grammar-file",),
        help="Only what matches this grammar, in llama.cpp's GBNF.",
    ),
    _option("--regex", metavar="RE", help="Only what matches this regular expression as a whole."),
    _option(
        "--fidelity", metavar="KIND", default="local", show_default=True,
        help="local masks what may not follow. The others approach the model given that its whole output matches: "
        "onestep, lookahead:k, beam:k, and exact, which is that, for a finite number of outputs.",
    ),
    _option(
        "--grammar-depth", type=click.IntRange(1, 64), metavar="N",
        help="Rules, or schemas, that contain themselves nest so deep at most (8).",
    ),
)  # fmt: skip


def grammar_of(o: dict[str, Any]) -> dict[str, Any]:
    """The `grammar` and `fidelity` of `Session.generate`; UsageError for a file or a grammar that cannot be used."""
    from refspec.grammar.future import fidelity
    from refspec.grammar.gbnf import gbnf
    from refspec.grammar.json_schema import json_schema
    from refspec.grammar.nodes import DEPTH
    from refspec.grammar.regex import regex

    given = [name for name in ("json_schema", "grammar", "regex") if o[name] is not None]
    if len(given) > 1:
        raise UsageError(
            f"{' and '.join('--' + name.replace('_', '-') for name in given)} exclude each other; give one"
        )
    fidelity(o["fidelity"])
    if not given:
        if o["fidelity"] != "local" or o["grammar_depth"] is not None:
            raise UsageError("--fidelity and --grammar-depth need a grammar: --json-schema, --grammar or --regex")
        return {}
    depth = o["grammar_depth"] or DEPTH
    if o["regex"] is not None:
        return {"grammar": regex(o["regex"]), "fidelity": o["fidelity"]}
    path = o[given[0]]
    try:
        source = Path(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or error}; name a text file") from None
    if given == ["grammar"]:
        return {"grammar": gbnf(source, depth=depth, name=path), "fidelity": o["fidelity"]}
    try:
        schema = json.loads(source)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}: line {error.lineno}: not JSON ({error.msg}); a JSON schema is expected") from None
    return {"grammar": json_schema(schema, depth=depth, name=path), "fidelity": o["fidelity"]}
