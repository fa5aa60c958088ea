"""The right ids of a row, from stock `apply_chat_template` and the tokenizer alone."""

from pathlib import Path

from fastkto.rows import RowOptions, normalise, tokenize

WORDS = ("salt", "iron", "talc", "jade")


def user(text, **more):
    return {"role": "user", "content": text, **more}


def answer(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(arguments, name="book"):
    return [{"type": "function", "function": {"name": name, "arguments": arguments}}]


def template(name):
    """A chat template that TRL ships."""
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()


def text_ids(tokenizer, prompt, completion):
    return parted(tokenizer(prompt)["input_ids"], tokenizer(prompt + completion + tokenizer.eos_token)["input_ids"])


def chat_ids(tokenizer, prompt, completion, **arguments):
    def ids(messages, **more):
        return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **arguments, **more)

    alone, together = ids(prompt, add_generation_prompt=True), ids(prompt + completion)
    return parted(alone["input_ids"], together["input_ids"])


def parted(alone, together):
    start = next((i for i, (one, two) in enumerate(zip(alone, together, strict=False)) if one != two), len(alone))
    return together[:start], together[start:]


def trained(rows, tokenizer, max_length=None, **options):
    """What a training would take from `rows`: (prompt ids, completion ids, label), sorted."""
    tokens = tokenize(normalise(rows, RowOptions(**options)), tokenizer, max_length=max_length)
    return sorted((list(r["prompt_ids"]), list(r["completion_ids"]), bool(r["label"])) for r in tokens)


def right(rows):
    """Rows of ((prompt ids, completion ids), label) as `trained` has them."""
    return sorted((list(prompt), list(completion), bool(label)) for (prompt, completion), label in rows)
