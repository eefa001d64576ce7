"""Chat templates: rendered as the public ones expect, refused in one line, kept in the sandbox."""

import pytest

from refspec.decoding.chat import render
from refspec.errors import CheckpointError

CHATML = """{% for m in messages %}
<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""
USER = [{"role": "user", "content": "Hi <b>"}]


def test_block_lines_leave_no_blank_lines_behind():
    assert render(CHATML, USER) == "<|im_start|>user\nHi <b><|im_end|>\n<|im_start|>assistant\n"


def test_special_tokens_and_tojson_are_offered_as_they_are():
    template = "{{ bos_token }}{{ messages | tojson }}{{ eos_token }}"
    assert render(template, USER, bos="<s>", eos="</s>") == '<s>[{"role": "user", "content": "Hi <b>"}]</s>'


@pytest.mark.parametrize(
    "template, says",
    [
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ messages[7].content.x }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ 'a\nb'.x.y }}", "UndefinedError"),
    ],
)
def test_a_template_that_fails_is_one_line_that_advises_raw(template, says):
    with pytest.raises(CheckpointError) as error:
        render(template, USER, source="m.gguf")
    message = str(error.value)
    assert message.startswith("m.gguf: tokenizer.chat_template") and says in message and "--raw" in message
    assert "\n" not in message
