"""The options of a command: flags, YAML and dataclasses, and what they name: models, data, adapters, processes.

In: the command line and the text of a YAML file. Out: filled dataclasses, and what they stand for, loaded.

    arguments     the fields that are not the trainer's: data, model, LoRA, quantisation, processes
    parsing       dataclasses into flags; a YAML value or a flag into the value of a field
    strict        unknown flags are errors that name the nearest known ones
    known         the options of the training by name alone, before anything heavy is imported
    yaml_config   the YAML file, with the line of every setting for its errors
    models        the tokenizer with its chat template, and `model_init_kwargs`
    mixture       one data set, or several in one (`datasets:`), each part by its own reader and columns
    peft_options  `ModelArguments` as configs of peft and bitsandbytes
    launch        the same command in several processes (`accelerate launch`)

The trainer's own fields are in `config.py`, those of the rows in `rows/normalise`.
"""
