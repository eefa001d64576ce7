"""`refspec chat`: a conversation line by line; answers on stdout, everything else on stderr."""

from __future__ import annotations

import io
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refspec.cli.command import DRAFTING, note, option
from refspec.cli.generate import consume
from refspec.cli.group import draft_max_option, load, main, model_options, tree_option
from refspec.cli.sampling import asked, sampling_options, settled
from refspec.decoding.conversation import Conversation
from refspec.errors import PromptError, RefspecError, UsageError

if TYPE_CHECKING:
    from refspec.reference.metrics import Statistics
    from refspec.reference.sampling import Sampler
    from refspec.session import Session

PROMPT, MORE = "> ", "\\"
HELP = {
    "/undo": "take back the last question and its answer",
    "/retry": "answer the last question again (another answer, where --temp is above 0)",
    "/system TEXT": "set the system text; without TEXT show it",
    "/clear": "begin anew, the system text stays",
    "/save FILE": "write the conversation as JSON; /load FILE goes on from it",
    "/stats": "what was generated and kept so far",
    "/exit": "leave, as Ctrl-D does; Ctrl-C ends an answer",
}


@main.command()
@model_options
@option(
    "-n", "--max-tokens", type=click.IntRange(1), default=512, show_default=True, also=("--n-predict",),
    help="At most so many tokens per answer.",
)  # fmt: skip
@option("--system", metavar="TEXT", also=("-sys", "--system-prompt"), help="System text for the chat template.")
@option("--json", "as_json", is_flag=True, help="Print one JSON object per answer instead of streaming text.")
@draft_max_option("Guesses per step, 0 for plain decoding; as `generate`.", type=click.IntRange(0, 64))
@tree_option
@option("--no-spec", is_flag=True, section=DRAFTING, help="Plain decoding, although there is a drafter.")
@sampling_options
@click.pass_context
def chat(ctx: click.Context, as_json: bool, **o: Any) -> None:
    """Talk to a model, turn by turn.

    \b
        refspec chat
        refspec chat -m smollm2 --system "Answer in one sentence."

    A line is a message, one that ends with a backslash goes on; /help lists commands. What was read of the conversation
    is kept, only what is new is read. Questions piped in are answered in turn.
    """
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sampler = asked(o)
    with load(o, chooses=o["adaptive"] is None) as session:
        if session.chat_template is None:
            raise UsageError(f"{session.name} has no chat template; `refspec generate` takes plain text")
        talk = Talk(session, settled(ctx, session, sampler, o), o, as_json)
        if session.drafter is None or talk.plain:
            note("plain generation" + ("" if talk.plain else "; -d FILE or --lookup makes guesses"))
        note("/help lists commands, Ctrl-D leaves")
        talk.run()


class Talk:
    """A conversation with one session, and what its answers took."""

    def __init__(self, session: Session, sampler: Sampler, o: dict[str, Any], as_json: bool) -> None:
        self.session, self.sampler, self.o, self.as_json = session, sampler, o, as_json
        self.plain = bool(o["no_spec"]) or session.draft_max == 0
        self.conversation = Conversation(o["system"])
        self.answers: list[Statistics] = []

    def run(self) -> None:
        """Read and answer until the input ends or /exit."""
        while (line := read_line()) is not None:
            if line.strip() == "/exit":
                return
            try:
                self.take(line)
            except RefspecError as error:
                note(str(error))
            except KeyboardInterrupt:  # before the first token, where no generation could be told to stop
                if not sys.stdin.isatty():
                    raise
                self.drop_unanswered()

    def take(self, line: str) -> None:
        """One line: a command, or a message, which begins with // where it is to begin with /."""
        if not line.strip():
            return
        if line.startswith("/") and not line.startswith("//"):
            self.command(*line[1:].strip().partition(" ")[::2])
            return
        self.conversation.say("user", line[line.startswith("//") :])
        self.answer()

    def command(self, name: str, rest: str) -> None:
        """Do what a command says; UsageError for one there is not."""
        talk, rest = self.conversation, rest.strip()
        if name in ("undo", "retry"):
            said = talk.undo()
            if said is None:
                note(f"/{name}: nothing has been said")
            elif name == "undo":
                note(f"taken back: {shown(said)}")
            else:
                talk.say("user", said)
                self.answer()
        elif name == "system":
            talk.system = rest or talk.system
            note(f"system: {talk.system or 'none'}")
        elif name == "clear":
            talk.turns.clear()
            note("a new conversation")
        elif name in ("save", "load"):
            self.file(name, rest)
        elif name == "stats":
            self.statistics()
        elif name == "help":
            for what, does in HELP.items():
                click.echo(f"  {what:<14}{does}", err=True)
        else:
            raise UsageError(f"/{name}: no such command; /help lists them, //{name} is a message that begins with /")

    def answer(self) -> None:
        """Answer the last message; one that does not fit, or gets no answer, is taken back."""
        from refspec.evaluate import report

        n = len(self.answers)
        try:
            generation = self.session.generate(
                self.conversation.messages, max_tokens=self.o["max_tokens"], sampler=self.sampler,
                seed=self.o["seed"] + n, speculate=not self.plain,
            )  # fmt: skip
        except PromptError as error:
            self.conversation.undo()
            raise PromptError(f"{error}; here: /undo takes back a turn, /clear begins anew") from None
        consume(generation, None if self.as_json else sys.stdout)
        s = generation.statistics
        self.answers.append(s)
        if not generation.text:
            note(f"no answer: {report.stopped(s)}")
            self.drop_unanswered()
            return
        self.conversation.say("assistant", generation.text)
        if self.as_json:
            record = {"answer": n, "prompt": self.conversation.turns[-2]["content"], "text": generation.text}
            click.echo(json.dumps(record | s.as_dict() | {"n_ctx": self.session.target.n_ctx}, ensure_ascii=False))
        note(summary(s, self.session.target.n_ctx))
        if s.stop == "context":
            note("the context is full: /undo takes back a turn, /clear begins anew, -c makes room")

    def drop_unanswered(self) -> None:
        """Take back a question that got no answer."""
        if self.conversation.turns and self.conversation.turns[-1]["role"] == "user":
            note(f"taken back: {shown(self.conversation.undo() or '')}")

    def file(self, name: str, path: str) -> None:
        """Write the conversation, or go on from one."""
        if not path:
            raise UsageError(f"/{name}: name a file")
        try:
            if name == "save":
                Path(path).write_text(json.dumps(self.conversation.messages, ensure_ascii=False, indent=1), "utf-8")
            else:
                self.conversation.read(json.loads(Path(path).read_text("utf-8")))
        except OSError as error:
            raise UsageError(f"/{name} {path}: {error.strerror or error}") from None
        except (ValueError, UsageError) as error:
            raise UsageError(f"/{name} {path}: {error}") from None
        note(f"{path}: {len(self.conversation.turns)} messages")

    def statistics(self) -> None:
        """All answers together."""
        from refspec.evaluate import report
        from refspec.evaluate.speed import total

        whole = total(self.answers)
        lines = report.describe(whole, f"{len(self.answers)} answers")[:-1] if whole.verify_steps else ["no answer yet"]
        read = sum(s.prompt_tokens - s.prompt_kept for s in self.answers)
        lines.append(f"  prompts: {whole.prompt_tokens} tokens, {read} of them read in {whole.prompt_seconds:.2f} s")
        for line in lines:
            click.echo(line, err=True)


def summary(s: Statistics, n_ctx: int) -> str:
    """What an answer took, in a line."""
    from refspec.evaluate import report

    held = f" ({s.prompt_kept} held already)" if s.prompt_kept else ""
    ended = "" if s.stop == "end" else f"; {report.stopped(s).split(',')[0]}"
    return (
        f"{report.tokens_per_call(s)}; {s.tokens_per_second:.1f} tokens/s; "
        f"{s.prompt_tokens}{held} + {s.generated_tokens} of {n_ctx} positions{ended}"
    )


def shown(text: str) -> str:
    """The beginning of a text in one line."""
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."


def read_line() -> str | None:
    """The next message or command, lines that end with a backslash joined; None at the end of the input."""
    lines: list[str] = []
    while True:
        try:
            line = _input("  " if lines else PROMPT)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            click.echo(err=True)
            lines.clear()
            continue
        if line is None:
            return "\n".join(lines) if lines else None
        lines.append(line.removesuffix(MORE))
        if not line.endswith(MORE):
            return "\n".join(lines)


def _input(prompt: str) -> str | None:
    """A line of stdin, edited with readline on a terminal; None at its end."""
    if sys.stdin is None:
        return None
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.removesuffix("\n").removesuffix("\r") if line else None
    if not sys.stdout.isatty():  # the prompt would be among the answers
        click.echo(prompt, nl=False, err=True)
        line = sys.stdin.readline()
        return line.removesuffix("\n") if line else None
    with suppress(ImportError):  # Windows, whose console has its own
        import readline  # noqa: F401  # input() has history and editing then
    try:
        return input(prompt)
    except EOFError:
        click.echo(err=True)
        return None
