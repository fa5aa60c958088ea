"""The model and the tokenizer that a command line names."""

from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from fastkto.config import KTOConfig
from fastkto.errors import InputError
from fastkto.rows.templates.encoding import read_chat_template
from fastkto.training.checks import check_revision


def load_tokenizer(
    name: str, chat_template: str | None, revision: str = "main", trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with the chat template of a Jinja file in place of its own."""
    check_revision("model_revision", name, revision)
    template = read_chat_template(chat_template)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:  # an older transformers asks for a package of an empty folder
        says = " ".join(str(error).split())
        raise InputError(
            "model", name, "a model whose tokenizer can be loaded", f"transformers says: {says}"
        ) from error
    if template is None:
        return tokenizer
    tokenizer.chat_template = template
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
    except TemplateSyntaxError as error:
        where = f"chat_template {chat_template} line {error.lineno}"
        raise InputError(where, error.message, "a valid Jinja template", "Correct the template.") from error
    except TemplateError:
        pass  # a template may refuse this conversation and take those of the data
    return tokenizer


def model_init_kwargs(config: KTOConfig) -> dict[str, Any]:
    """What a config gives to `from_pretrained`, which goes before the flags."""
    given = config.model_init_kwargs or {}
    if isinstance(given, str):
        raise InputError("model_init_kwargs", given, "a mapping", "On the command line write it as JSON.")
    return given
