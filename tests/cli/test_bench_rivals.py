"""`refspec bench` beside llama.cpp's own program: how it is called, and how its output is read."""

import json
import os
import sys

import pytest
from cli_models import call, tiny, write_pair

from refspec.errors import BackendError
from refspec.evaluate import rivals, speed_report
from refspec.llama.amx import repacking_works

OUTPUT = """encoded   24 tokens in    0.010 seconds, speed: 2400.000 t/s
decoded   33 tokens in    0.110 seconds, speed:  300.000 t/s

n_draft   = 3
n_drafted = 60
n_accept  = 12
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    target, normalized = write_pair(folder)
    return target, normalized, str(tiny.drafter(folder / "prenorm.gguf"))


def program(folder, body):
    """A stand-in for llama.cpp's program: what is tested is how it is called and read."""
    folder.mkdir(exist_ok=True)
    path = folder / rivals.PROGRAM
    path.write_text(f"#!{sys.executable}\nimport sys\n{body}")
    path.chmod(0o755)
    return folder


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a script")
def test_llama_cpps_own_program_is_run_on_the_same_prompts_with_the_same_settings(pair, tmp_path):
    log = tmp_path / "calls.txt"
    call_made = "repr((sys.argv[1:], open(sys.argv[sys.argv.index('-f') + 1]).read())) + chr(10)"
    body = f"open({str(log)!r}, 'a').write({call_made})\nprint({OUTPUT!r})"
    folder = program(tmp_path / "bin", body)
    arguments = [
        "bench",
        "-m",
        pair[0],
        "-d",
        pair[2],
        "-t",
        "1",
        "-n",
        "24",
        "--repeat",
        "2",
        "--count",
        "1",
        "--draft-max",
        "3",
    ]
    measured = json.loads(call(*arguments, "--llama-cpp-bin", folder, "--json").stdout)
    own = measured["kinds"]["llama.cpp 3"]
    assert own["tokens_per_second"] == pytest.approx(300) and "tau" not in own
    assert "\nllama.cpp 3" in "\n".join(speed_report.table(measured))
    calls = [eval(line) for line in log.read_text().splitlines()]
    assert len(calls) == 2
    both = call(
        *[pair[1] if a == pair[2] else a for a in arguments],
        "--llama-cpp-bin",
        folder,
        "--llama-cpp-drafter",
        pair[2],
        "--json",
    )
    assert both.exit_code == 0 and f"llama.cpp's own driver drafts with {pair[2]}" in both.stderr
    calls = [eval(line) for line in log.read_text().splitlines()]  # -d is normalized, and the program runs the twin
    assert len(calls) == 4
    alone = call(*arguments, "--llama-cpp-drafter", pair[2])
    assert alone.exit_code == 2 and "--llama-cpp-bin" in alone.stderr
    repacks = repacking_works()
    for argv, text in calls:
        assert argv[-1:] == ["--no-repack"] or repacks, (
            "where llama.cpp's AMX kernels crash, its program must not use them either"
        )
        argv = argv if repacks else argv[:-1]
        said = dict(zip(argv[::2], argv[1::2], strict=True))
        assert (said["-m"], said["-md"], said["--spec-type"], said["-n"], said["-t"]) == (
            pair[0],
            pair[2],
            "draft-eagle3",
            "24",
            "1",
        )
        assert said["--spec-draft-n-max"] == "3" and said["--temp"] == "0" and "[user]" in text


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a script")
def test_the_program_holds_the_weights_as_refspec_does(pair, tmp_path):
    rival = rivals.Rival(program(tmp_path / "bin", ""), pair[0], pair[2])
    settings = {"max_tokens": 8, "draft_max": 2, "n_ctx": 64}
    assert "--no-repack" in rival.command("x", repack=False, **settings)
    assert "--no-repack" not in rival.command("x", repack=True, **settings)


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a script")
def test_what_cannot_be_compared_is_one_line(pair, tmp_path):
    common = ["bench", "-m", pair[0], "-t", "1", "-n", "8", "--repeat", "1", "--count", "1", "--llama-cpp-bin"]
    result = call(*common, tmp_path, "-d", pair[2])
    assert result.exit_code == 2 and "no such program" in result.stderr
    folder = program(tmp_path / "bin", "sys.exit('cannot load')")
    result = call(*common, folder, "-d", pair[1])
    assert result.exit_code == 2 and "stock llama.cpp cannot run" in result.stderr
    result = call(*common, folder, "-d", pair[2])
    assert result.exit_code == 1 and "cannot load" in result.stderr
    with pytest.raises(BackendError, match="no output"):
        rivals.read("x", "", 0)
    assert rivals.read("x", OUTPUT, 0) == rivals.Run(33, 0.11, 60, 12)


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a script")
@pytest.mark.parametrize(("silent", "told"), [(0, 1), (2, 3), (9, rivals.TRIES)])
def test_a_run_whose_log_was_lost_is_run_again(pair, tmp_path, silent, told):
    count = tmp_path / "count"
    body = (
        f"with open({str(count)!r}, 'a') as f: f.write('x')\n"
        f"if len(open({str(count)!r}).read()) > {silent}: print({OUTPUT!r})"
    )
    rival = rivals.Rival(program(tmp_path / "bin", body), pair[0], pair[2])
    settings = {"max_tokens": 8, "draft_max": 2, "n_ctx": 64}
    if silent < told:
        assert rival.run("hello", **settings) == rivals.Run(33, 0.11, 60, 12)
    else:
        with pytest.raises(BackendError, match="no decoding speed"):
            rival.run("hello", **settings)
    assert len(count.read_text()) == told
