"""Chat templates by name, for models that come without one."""

from pathlib import Path

from fastkto.errors import InputError

CHATML = """\
{%- if tools %}{{ raise_exception('the template chatml has no tools') }}{% endif -%}
{%- for message in messages -%}
{%- if message.content is not string or message.tool_calls -%}
{{- raise_exception('the template chatml takes messages whose content is text, without tool calls') -}}
{%- endif -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
"""
BUILT_IN = {"chatml": CHATML}


def read_chat_template(chat_template: str | None) -> str | None:
    """The text of a chat template given by the name of one that is built in, as a path, or as the template itself."""
    if chat_template is None or "{" in chat_template:
        return chat_template
    if chat_template in BUILT_IN and not Path(chat_template).exists():
        return BUILT_IN[chat_template]
    file = Path(chat_template).expanduser()
    if not file.is_file():
        names = ", ".join(BUILT_IN)
        raise InputError(
            "chat_template",
            chat_template,
            f"a Jinja file that exists, a template, or the name of one ({names})",
            "Check the path.",
        )
    return file.read_text(encoding="utf-8")
