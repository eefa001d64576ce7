"""Tiny models for the command line's tests, made by the engine tests' writer, and the ways to call the command."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from refspec.cli import main

HERE = Path(__file__).parent
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "


def _borrowed(name, path):
    """A helper of another area's tests, under a name of its own."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny = _borrowed("cli_tiny", HERE.parent / "engine" / "tiny.py")
toys = _borrowed("cli_toys", HERE.parent / "decoding" / "loop_toys.py")


def write_pair(folder: Path) -> tuple[str, str]:
    """Paths of a target with a chat template that never ends its text early, and of a normalized drafter for it."""
    metadata, tensors = tiny.target_parts()
    metadata["tokenizer.chat_template"] = TEMPLATE
    target = tiny.write(folder / "target.gguf", "llama", metadata, tensors)
    drafter = tiny.drafter(folder / "drafter.gguf", feature_norm="per_state", feedback="post_norm")
    return str(target), str(drafter)


def call(*arguments, input=None):
    """Run the command in this process."""
    return CliRunner().invoke(main, [str(a) for a in arguments], input=input)


def one_line_error(result, code=1):
    """The error line of a failed call, after checking that it is one line, prefixed, without a traceback."""
    assert result.exit_code == code, result.output
    errors = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(errors) == 1 and errors[0].startswith("refspec: "), result.stderr
    assert "Traceback" not in result.output and "unexpected" not in errors[0]
    return errors[0]


def spawn(*arguments, **options):
    """Start the command as a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parent.parent), "PYTHONUTF8": "1"} | options.pop("env", {})
    return subprocess.Popen(
        [sys.executable, "-m", "refspec", *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **options,
    )  # fmt: skip


def record(result):
    """The JSON object a successful call printed, and nothing but it."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)
