"""What all commands share: help in sections, llama.cpp's names, names of the last release, completion, docs/cli.md."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from cli_models import call, one_line_error, record, write_pair

from refspec.cli import group, main, reference
from refspec.cli.command import GGUF, SECTIONS
from refspec.llama.amx import repacking_works

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {name: main.commands[name] for name in main.commands} | {
    f"train {name}": each for name, each in main.commands["train"].commands.items()
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("models"))


def asked(monkeypatch, *arguments):
    """(options that would be loaded with, what was said on stderr) of a call of `generate`."""
    seen = []

    def stop(o, **how):
        seen.append(o)
        raise click.exceptions.Exit(0)

    monkeypatch.setattr("refspec.cli.generate.load", stop)
    result = call("generate", "-p", "x", *arguments)
    assert result.exit_code == 0, result.output
    return seen[0], result.stderr


def test_help_lists_the_commands_in_sections_and_runnable_examples():
    result = call("-h")
    assert result.exit_code == 0 and "refspec generate --compare -p" in result.stdout
    at = [result.stdout.index(f"\n{heading}:\n") for heading in group.COMMANDS]
    assert at == sorted(at)
    for names in group.COMMANDS.values():
        for name in names:
            assert name not in main.commands or f"\n  {name} " in result.stdout
    assert set(main.commands) <= {name for names in group.COMMANDS.values() for name in names}
    assert "..." not in result.stdout.split("Options:")[1], "no command's sentence is cut off"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_begins_with_a_sentence_and_an_example(name):
    first, example = inspect.cleandoc(COMMANDS[name].help).split("\n\n")[:2]
    assert first.endswith(".") and "\n" not in first
    assert any(line.startswith(f"    refspec {name}") for line in example.splitlines()), example


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_and_output_is_spelled_alike(name):
    for option in COMMANDS[name].params:
        if isinstance(option, click.Option) and not option.hidden:
            assert option.help or name.startswith("train"), option.opts
            assert ("-o" in option.opts) == ("--output" in option.opts) == ("--out" in option.opts)
    text = call(*name.split(), "-h").stdout
    assert "--out " not in text and "--out," not in text


def test_specialists_and_penalties_come_after_what_everyone_needs():
    text = call("generate", "-h").stdout
    at = [text.index(f"\n{section}:\n") for section in SECTIONS if section != GGUF]  # of `train drafter` alone
    assert at == sorted(at)
    words = ("--prompt", "--dry-base", "--json-schema", "--pair-rows")
    options, penalties, grammar, specialists = (text.index(word) for word in words)
    assert at[0] < options < at[1] and at[-3] < penalties < at[-2] < grammar < at[-1] < specialists


def test_llama_cpps_names_are_taken(monkeypatch):
    names = {
        "-md": ("drafter", "d.gguf"), "--spec-draft-model": ("drafter", "d.gguf"), "--ctx-size": ("n_ctx", "64"),
        "--n-predict": ("max_tokens", "7"), "--n-gpu-layers": ("gpu_layers", "3"), "--system-prompt": ("system", "S"),
        "--cache-type-k": ("kv_type", "q8_0"), "--cache-type-v": ("kv_type", "q8_0"), "-ctk": ("kv_type", "f32"),
        "--spec-draft-n-max": ("draft_max", "4"), "--flash-attn": ("flash_attn", "on"),
        "--threads-draft": ("threads_draft", "2"), "-s": ("seed", "5"),
    }  # fmt: skip
    for option, (name, value) in names.items():
        assert str(asked(monkeypatch, option, value)[0][name]) == value, option
    both = asked(monkeypatch, "--cache-type-k", "q8_0", "--cache-type-v", "q8_0")[0]
    assert both["kv_type"] == "q8_0" and asked(monkeypatch)[0]["kv_type"] is None
    refused = call("generate", "-p", "x", "--cache-type-k", "q8_0", "--cache-type-v", "f16")
    assert "one type for both" in one_line_error(refused, 2)


@pytest.mark.parametrize(
    ("old", "name", "value"),
    [
        (["--strict"], "reproducible", "f32"),
        (["--exact"], "reproducible", "exact"),
        (["--panels"], "matmul", "refspec"),
        (["--no-panels"], "matmul", "repack" if repacking_works() else "stored"),
        (["--repack"], "matmul", "repack"),
        (["--no-repack"], "matmul", "stored"),
        (["--no-repack", "--no-panels"], "matmul", "stored"),
        (["--panels", "--no-repack"], "matmul", "refspec"),
    ],
)
def test_names_of_the_last_release_work_and_the_new_one_is_said(monkeypatch, old, name, value):
    o, said = asked(monkeypatch, *old)
    assert o[name] == value
    assert said == f"refspec: {' '.join(old)} is now --{name} {value}; the old name goes with the next release\n"
    assert not any(flag in call("generate", "-h").stdout for flag in old)


def test_names_of_the_last_release_that_contradict_each_other_are_one_line():
    for wrong in (["--exact", "--strict"], ["--panels", "--repack"]):
        assert "exclude each other" in one_line_error(call("generate", "-p", "x", *wrong), 2)


@pytest.mark.parametrize("matmul", ["auto", "refspec", "repack", "stored"])
@pytest.mark.parametrize("reproducible", [None, "exact", "f32"])
def test_every_choice_reaches_the_session(pair, matmul, reproducible):
    """The output is one, whoever multiplies; what cannot be is one line."""
    more = ["--reproducible", reproducible] if reproducible else []
    on = ["generate", "-m", pair[0], "-d", pair[1], "-t", "1", "-p", "hi", "-n", "9", "--json"]
    result = call(*on, "--matmul", matmul, *more)
    if result.exit_code == 0:
        assert record(result)["generated_tokens"] == 9
    else:
        one_line_error(result, result.exit_code)
        assert matmul in ("refspec", "repack")


def test_the_page_of_the_command_line_is_up_to_date():
    assert (ROOT / "docs" / "cli.md").read_text("utf-8") == reference.page(), "run `make docs`"


@pytest.mark.skipif(os.name == "nt", reason="a shell of Unix is asked")
def test_shells_complete_commands_options_and_files():
    def completed(words):
        shell = {"_REFSPEC_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        command = [sys.executable, "-c", "from refspec.cli import main; main(prog_name='refspec')"]
        done = subprocess.run(command, env=os.environ | shell, capture_output=True, text=True, check=False)
        return done.stdout.splitlines()

    assert completed("refspec ben") == ["plain,bench"]
    assert "plain,--spec-draft-model" in completed("refspec generate --spec")
    assert completed("refspec generate --matmul re") == ["plain,refspec", "plain,repack"]
    assert completed("refspec generate -m mod") == ["file,mod"]
    assert not any("--panels" in line for line in completed("refspec generate --"))
