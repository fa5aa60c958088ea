"""`README.md` beside a trained model, and the commands in it that use the model.

In: what the run was made of, its log lines, the tokenizer's chat template. Out: text; the file is written whole
or not at all, and a README that somebody else wrote stays.

    text     the card: how to use it, data, settings, figures, versions, and the same run again
    serving  the commands that talk to the model or serve it: fastkto, vLLM, llama.cpp, Ollama
    ollama   the chat template in the language of Ollama's Modelfile

A figure that the card should show is a name in `text`; a program that serves models is an entry of `serving`.
"""
