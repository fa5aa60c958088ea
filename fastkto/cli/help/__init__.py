"""What the command line says of itself, in a moment: neither torch nor transformers is imported for it.

In: the commands' parsers and the source of the dataclasses behind their options. Out: pages that fit the terminal,
and scripts for the shells' completion.

    commands    the commands: what each is for, how it is called
    declared    names, defaults and help of the options, read from source that is not imported
    essentials  the options of a first screen, by group, in the words of one line each
    page        a parser as a page, at any width
    completion  `fastkto completion`, on `shells`
    shells      the parsers as scripts for bash, zsh and fish

An option that belongs on a first screen is a line in `essentials`; all others follow from their dataclass.
"""
