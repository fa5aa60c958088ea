"""One row of text or messages -> token ids, through the model's chat template where there are messages.

In: a normalised row and a tokenizer. Out: the ids of the prompt alone and of prompt and completion, which are those of
stock `apply_chat_template`.

    encoding   one row to ids: template, BOS and EOS, where the prompt ends and the completion begins
    parts      content in parts of text, joined where a template reads text only
    long_text  the first ids of a text that is too long to be tokenised whole
    builtin    templates by name, for models that come without one (`--chat_template chatml`)

What the template takes is not changed: messages keep the keys that they came with.
"""
