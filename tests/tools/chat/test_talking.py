"""A conversation: what is remembered, where an answer ends, and what reaches the terminal."""

import io

import torch
from tiny import tiny_llama, tiny_tokenizer

from fastkto.tools.chat.talking import lines, talk
from fastkto.tools.chat.voices import Voice


def voice(**more):
    return Voice("trained", tiny_llama().eval(), tiny_tokenizer(), **{"system": None, "plain": False, **more})


def typed(voice, *prompts, **more):
    out = io.StringIO()
    talk([voice], prompts, out, typed=True, **{"max_new_tokens": 8, "temperature": 0.0, **more})
    return out.getvalue()


def test_what_was_said_is_remembered_until_reset():
    first, again = typed(voice(), "hello", "hello").split("\n\n")[:2]
    assert first != again
    assert typed(voice(), "hello", "/reset", "hello").split("\n\n")[:2] == [first, first]
    assert typed(voice(), "hello", "/exit", "hello") == f"{first}\n\n"


def test_a_system_prompt_comes_first():
    assert typed(voice(system="Be brief."), "hello") != typed(voice(), "hello")


def test_a_model_trained_on_plain_text_gets_the_prompt_as_it_is():
    heard = []
    speaker = voice(plain=True)
    generate = speaker.model.generate
    speaker.model.generate = lambda **given: heard.append(given["input_ids"]) or generate(**given)
    typed(speaker, "hello", "you")
    assert [speaker.tokenizer.decode(ids[0]) for ids in heard] == ["hello", "you"]


def test_a_prompt_longer_than_the_window_is_said_and_the_talk_goes_on():
    said = typed(voice(), "x" * 3000, "hello")
    assert "fewer than the model's window of 2048" in said
    assert said.count("trained: ") == 2


def test_a_temperature_draws():
    said = typed(voice(), *["hello", "/reset"] * 4, temperature=2.0)
    assert len({*said.split("\n\n")}) > 2


class Scripted:
    """A model that says what it is told to."""

    def __init__(self, model, tokenizer, text):
        self.config, self.generation_config, self.device = model.config, model.generation_config, "cpu"
        self.ids = tokenizer(text, add_special_tokens=False)["input_ids"]

    def generate(self, input_ids, streamer, **given):
        self.given = given
        streamer.put(input_ids)
        for i in self.ids:
            streamer.put(torch.tensor([i]))
        streamer.end()


def test_what_a_model_says_cannot_speak_to_the_terminal():
    tokenizer = tiny_tokenizer()
    model = Scripted(tiny_llama(), tokenizer, "red \x1b[31m\tand\nbell \x07 \u202e<|end|>")
    said = typed(Voice("trained", model, tokenizer, system=None, plain=False), "hello")
    assert said == "trained: red \\x1b[31m\tand\nbell \\x07 \\u202e\n\n"


def test_an_end_of_turn_that_is_no_token_is_not_shown():
    tokenizer = tiny_tokenizer(chat=False)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}"
    model = Scripted(tiny_llama(), tokenizer, "yes [e or no[end]")
    said = typed(Voice("trained", model, tokenizer, system=None, plain=False), "hello")
    assert said == "trained: yes [e or no\n\n"
    assert model.given["stop_strings"] == ["[end]"]


def test_lines_of_a_pipe():
    assert [*lines(io.StringIO("a\nb"), typed=False)] == ["a\n", "b"]
