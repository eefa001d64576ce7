"""Options and steps of the commands that measure a pair: prompts, repetitions, another program beside it, figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from refspec.cli.command import PATH, SPECIALISTS, note, option, options
from refspec.cli.group import load
from refspec.cli.penalties import changed
from refspec.errors import UsageError
from refspec.reference.penalties import Penalties

if TYPE_CHECKING:
    from refspec.session import Session

json_option = option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
figure_option = option(
    "--figure", type=PATH, metavar="FILE",
    help="Also draw the speedups by family: a .png, .svg or .pdf (needs matplotlib).",
)  # fmt: skip
prompt_options = options(
    option(
        "--prompts", type=PATH, metavar="FILE",
        help="JSONL (turns, benchmark) or one prompt a line; the built-in 200 without it.",
    ),
    option(
        "--family", "families", multiple=True, metavar="NAME",
        help="Only this `benchmark` of a JSONL file; may be repeated.",
    ),
)  # fmt: skip
rival_option = options(
    option(
        "--llama-cpp-bin", "rival", type=PATH, metavar="DIR", section=SPECIALISTS,
        help="Also run llama-speculative-simple of this build of llama.cpp, on a pre-norm pair.",
    ),
    option(
        "--llama-cpp-drafter", "rival_drafter", type=PATH, metavar="GGUF", section=SPECIALISTS,
        help="The drafter it runs, where -d is one it cannot: the pre-norm twin of a normalized drafter.",
    ),
)  # fmt: skip


def rival_of(
    folder: str | None, session: Any, texts: Sequence[str], max_tokens: int, o: dict[str, Any]
) -> Callable[[str, int], Any] | None:
    """llama.cpp's own driver on the files of a session: (prompt, draft length) -> `rivals.Run`; None without it."""
    from refspec.evaluate import rivals
    from refspec.llama.amx import repacking_works

    if folder is None:
        if o["rival_drafter"]:
            raise UsageError(
                "--llama-cpp-drafter is for llama.cpp's own driver; name the directory of its tools with "
                "--llama-cpp-bin"
            )
        return None
    if changed(Penalties(), o).on:
        raise UsageError(
            "--llama-cpp-bin: llama.cpp's own driver decodes without penalties here, another output; leave the "
            "penalties or the driver out"
        )
    if o["rival_drafter"]:
        note(f"llama.cpp's own driver drafts with {o['rival_drafter']}")
    program = rivals.Rival(folder, session.name, o["rival_drafter"] or getattr(session.drafter, "path", ""))
    as_text = dict(zip(texts, rivals.prompts_as_text(session, texts), strict=True))
    settings = {name: o[name] for name in ("threads", "threads_batch", "flash_attn")}
    settings |= {"max_tokens": max_tokens, "n_ctx": session.target.n_ctx}
    settings["repack"] = o["matmul"] != "stored" and repacking_works()
    return lambda prompt, length: program.run(as_text[prompt], draft_max=length, **settings)


def figure_of(path: str | None) -> Callable[[Any], None]:
    """Draws a record of `speed.measure` into a file, if one was named; what would fail after it fails before."""
    if path is None:
        return lambda measured: None
    from refspec.evaluate import speed_plots

    out = speed_plots.check(path)
    return lambda measured: speed_plots.write(speed_plots.by_family(measured), out)


def drafting(o: dict[str, Any]) -> Session:
    """A session that has a drafter, with lookup only where it was asked for."""
    session = load(o | {"lookup": bool(o["lookup"])})
    if session.drafter is None:
        session.close()
        raise UsageError("this command measures a drafter: name one with -d, or give --lookup")
    return session
