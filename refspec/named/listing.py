"""What models are on this machine: those that have names, and what was fetched from the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from refspec import embedded
from refspec.convert.inspect import describe
from refspec.errors import CheckpointError, RefspecError
from refspec.gguf.io import read_gguf_header
from refspec.gguf.recast import cache_directory
from refspec.named import hub, names

KEYS = ("name", "size", "kind", "architecture", "layers", "vocabulary", "context", "weights", "licence", "drafter")


def listed() -> list[dict[str, Any]]:
    """A record per file, with KEYS, `file`, and `error` where it cannot be read; None for what a file does not say.

    `name` is what -m or -d takes, `size` in bytes, `drafter` the file that comes with a target.
    """
    return [_record(name, path) for name, path in _found() if path.is_file()]


def table(records: list[dict[str, Any]]) -> list[str]:
    """The records as lines, and what could be here and is not."""
    rows = [("name", "size", "what it is", "licence", "drafter")]
    for r in records:
        if r["error"]:
            rows.append((r["name"], f"{r['size'] / 1e6:.1f} MB", f"cannot be read: {r['error']}", "-", "-"))
            continue
        facts = [f"{r['kind']}, {r['architecture']}"]
        facts += [f"{r[key]:,} {what}" for key, what in _WORDS.items() if r[key] is not None]
        drafter = "-" if r["kind"] == "drafter" else Path(r["drafter"]).name if r["drafter"] else "none"
        rows.append((r["name"], f"{r['size'] / 1e6:.1f} MB", ", ".join([*facts, r["weights"] or "-"]),
                     r["licence"] or "not said", drafter))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    out = ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    if not any(r["name"] == names.SMOLLM2 for r in records):
        out.append(f"not here: smollm2, a chat model of 98 MB ({names.INSTALL})")
    return out


_WORDS = {"layers": "layers", "vocabulary": "tokens", "context": "positions"}


def _found() -> Iterator[tuple[str, Path]]:
    folder = embedded.folder()
    yield names.EMBEDDED, folder / embedded.TARGET
    yield f"-d {names.EMBEDDED}", folder / embedded.DRAFTER
    with suppress(CheckpointError):
        yield names.SMOLLM2, names.smollm2()
    yield f"-d {names.SMOLLM2}", folder / embedded.SMOLLM2_DRAFTER
    yield from hub.cached()
    for path in sorted(cache_directory().glob(hub.CONVERTED)):
        yield f"-d {path}", path


def _record(name: str, path: Path) -> dict[str, Any]:
    record: dict[str, Any] = dict.fromkeys(KEYS) | {"name": name, "file": str(path), "error": None}
    try:
        record["size"] = path.stat().st_size
        about, metadata = describe(path), read_gguf_header(path).metadata
    except RefspecError as error:
        return record | {"error": str(error).removeprefix(f"{path}: ")}
    sizes = about["sizes"]
    ours = path.parent == embedded.folder() and path.name != embedded.SMOLLM2_DRAFTER
    licence = metadata.get("general.license") or ("MIT" if ours else None)
    record |= {
        "kind": about["kind"], "architecture": about["architecture"], "layers": sizes.get("layers"),
        "vocabulary": sizes.get("vocabulary"), "context": sizes.get("context"), "weights": about["weights"]["mostly"],
        "licence": licence,
    }  # fmt: skip
    if about["kind"] == "target":
        drafter = names.pair(name, None).drafter if name in (names.EMBEDDED, names.SMOLLM2) else None
        record["drafter"] = None if drafter is None else str(drafter)
    return record
