"""The laboratory stays apart from the package, and the pages name commands, options and files that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from lab_command import call

from lab.cli import COMMANDS
from lab.cli import main as lab
from refspec.cli import main as refspec

ROOT = Path(__file__).resolve().parents[2]
PAGES = [path for path in sorted(ROOT.glob("docs/*.md")) if path.name != "cli.md"]  # which is made from the help
PAGES += [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "refspec" / "models" / "MODEL_CARD.md"]
OTHERS = {"--spec-type", "--no-deps"}  # of llama.cpp's own programs, and of pip


def options_of(command: click.Command) -> set[str]:
    """Every option of a command and of those below it."""
    found = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found |= options_of(command.get_command(context, name))  # type: ignore[arg-type]
    return found


def code_of(page: str) -> str:
    """What a page has in fences and in backticks, each on lines of its own."""
    return "\n".join(fenced or quoted for fenced, quoted in re.findall(r"```\w*\n(.*?)```|`([^`]+)`", page, re.DOTALL))


def test_refspec_does_not_know_the_laboratory_and_does_not_install_it():
    for path in [*ROOT.glob("refspec/**/*.py"), *ROOT.glob("convert/*.py")]:
        assert not re.search(r"^\s*(from|import) lab\b", path.read_text("utf-8"), re.MULTILINE), path
    assert (
        '"lab"'
        not in (ROOT / "pyproject.toml")
        .read_text("utf-8")
        .partition("[tool.setuptools]")[2]
        .partition("[tool.ruff]")[0]
    )


def test_the_laboratory_runs_from_a_checkout_and_lists_its_commands():
    done = subprocess.run([sys.executable, "docs/lab", "-h"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and all(name in done.stdout for name in COMMANDS), done.stderr
    assert call("nothing").exit_code == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name):
    pytest.importorskip("torch", reason="half of them need the `train` extra (torch)")
    assert call(name, "-h").exit_code == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_files_commands_and_options_that_exist(page):
    pytest.importorskip("torch", reason="the laboratory's options need the `train` extra (torch)")
    text = page.read_text("utf-8")
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert link.startswith("http") or (page.parent / link).exists(), link
    commands = set(refspec.list_commands(click.Context(refspec)))
    code = code_of(text)
    assert set(re.findall(r"^\s*refspec ([a-z][a-z-]*)", code, re.MULTILINE)) <= commands
    assert set(re.findall(r"python docs/lab ([a-z][a-z-]*)", text)) <= set(COMMANDS)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert named <= options_of(refspec) | options_of(lab) | OTHERS, sorted(
        named - options_of(refspec) - options_of(lab) - OTHERS
    )
