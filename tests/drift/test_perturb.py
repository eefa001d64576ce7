"""Template perturbations: the scaffold changes, the user's words do not."""

import pytest
from drift_toys import cli_models, toys

from refspec.decoding import chat
from refspec.errors import UsageError
from refspec.evaluate.conversation import encode
from refspec.evaluate.perturb import (
    CHATML,
    FOREIGN_SYSTEM,
    PERTURBATIONS,
    around,
    messages,
    misspelt,
    other_template,
    renamed,
)
from refspec.session import Session

WORDS = "Tell the user: is [INST] a tag?\nAnd <|user|>?"
LLAMA2 = "[INST] {% for m in messages %}{{ m.content }}\n{% endfor %} [/INST]"
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def changed(template, name, words=WORDS):
    how = PERTURBATIONS[name]
    given = messages(how, [{"role": "user", "content": words}])
    rendered = chat.render(how.template(template), given)
    return around(rendered, [m["content"] for m in given], how.scaffold)


@pytest.mark.parametrize("template", [CHATML, LLAMA2, PLAIN])
@pytest.mark.parametrize("name", PERTURBATIONS)
def test_the_words_of_the_user_stay_as_they_are(template, name):
    assert WORDS in changed(template, name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", "<|im_start|>user\nHi\nthere<|im_end|>\n<|im_start|>assistant\n"),
        ("no-newlines", "<|im_start|>userHi\nthere<|im_end|><|im_start|>assistant"),
        ("extra-spaces", "<|im_start|>user  \n  Hi\nthere<|im_end|>  \n  <|im_start|>assistant  \n  "),
        ("renamed-roles", "<|im_start|>guest\nHi\nthere<|im_end|>\n<|im_start|>clerk\n"),
        ("misspelt-tags", "<|im_statr|>usre\nHi\nthere<|im_end|>\n<|im_statr|>assistatn\n"),
        ("other-template", "### Instruction:\nHi\nthere\n\n### Response:\n"),
        (
            "foreign-system",
            f"<|im_start|>system\n{FOREIGN_SYSTEM}<|im_end|>\n"
            "<|im_start|>user\nHi\nthere<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_what_each_makes_of_chatml(name, expected):
    assert changed(CHATML, name, "Hi\nthere") == expected


def test_marks_of_other_templates_are_found():
    assert renamed("[INST] x [/INST]") == "[TASK] x [/TASK]"
    assert renamed("User: x\nASSISTANT:") == "Guest: x\nCLERK:"
    assert misspelt("### Response:\n") == "### Respones:\n"
    assert misspelt("[INST] keep these words [/INST]") == "[INTS] keep these words [/INTS]"


def test_words_that_stand_twice_are_found_in_their_order():
    assert around("a user b user c", ["user", "user"], str.upper) == "A user B user C"
    assert around("a  b", ["  b  "], str.upper) == "A  b"  # stripped by the template
    assert around("all new", ["gone"], str.upper) == "ALL NEW"  # a template that rewrites its message


def test_a_system_message_is_replaced_not_doubled():
    given = [{"role": "system", "content": "old"}, {"role": "user", "content": "x"}]
    assert [m["role"] for m in messages(PERTURBATIONS["foreign-system"], given)] == ["system", "user"]
    assert messages(PERTURBATIONS["foreign-system"], given)[0]["content"] == FOREIGN_SYSTEM


def test_the_other_template_is_another_one():
    assert other_template(CHATML) != CHATML and other_template(LLAMA2) == CHATML


def session(**settings):
    target = toys.ToyTarget(n_vocab=50, **settings)
    target.metadata["tokenizer.ggml.bos_token_id"] = 0
    return Session(target, name="toy.gguf")


def test_bos_and_template_can_be_dropped():
    with_bos = session(template=PLAIN, bos=True)
    own = with_bos.encode("hello")
    assert encode(with_bos, ["hello"], "none") == own and own[0] == 0
    assert encode(with_bos, ["hello"], "no-bos") == own[1:]
    assert encode(with_bos, ["hello"], "raw") == with_bos.encode("hello", raw=True)


def test_what_finds_nothing_to_change_is_refused_not_reported_as_harmless():
    with pytest.raises(UsageError, match=r"no-bos finds nothing to change .* toy\.gguf"):
        encode(session(template=PLAIN), ["hello"], "no-bos")
    with pytest.raises(UsageError, match=r"toy\.gguf has no chat template"):
        encode(session(), ["hello"], "raw")


def test_the_bench_measures_each_perturbation_on_the_same_prompts(tmp_path):
    target, drafter = cli_models.write_pair(tmp_path)
    args = ("acceptance", "-m", target, "-d", drafter, "-t", "1", "-n", "6", "--count", "2")
    got = cli_models.record(cli_models.call(*args, "--perturb", "raw", "--perturb", "renamed-roles", "--json"))
    assert [c["perturb"] for c in got["conditions"]] == ["raw", "renamed-roles"]
    assert 0 < got["conditions"][0]["families"]["all"]["generated_tokens"] <= 12
    text = cli_models.call(*args, "--perturb", "raw").stdout
    assert text.startswith("raw: the text alone") and "tau" in text
    assert [c["perturb"] for c in cli_models.record(cli_models.call(*args, "--json"))["conditions"]] == ["none"]


def test_the_help_lists_every_perturbation():
    text = cli_models.call("acceptance", "-h").stdout
    assert "Count the guesses kept" in text
    for name in PERTURBATIONS:
        assert f"  {name} " in text
