"""The options of a first screen, by group, each in the words of one line; empty: the field's own help.

Names, defaults and all other help are the dataclasses'.
"""

TRAIN = {
    "model and data": {
        "model_name_or_path": "model to train: a folder or a Hub id",
        "dataset_name": "rows: a file, a folder or a Hub id",
        "reader": "whose export it is, e.g. openwebui; or auto",
        "test_split_size": "rows held out to evaluate on: share or number",
        "max_length": "tokens of a row; the rest is cut",
    },
    "the KTO loss": {
        "loss_type": "kto or apo_zero_unpaired",
        "beta": "higher stays nearer the reference",
        "desirable_weight": "weight of thumbs up; or auto",
        "undesirable_weight": "weight of thumbs down",
        "precompute_ref_log_probs": "score the reference once",
    },
    "steps, batch and memory": {
        "learning_rate": "of AdamW, at its highest",
        "num_train_epochs": "passes over the rows",
        "per_device_train_batch_size": "rows of a micro-batch, at least 2",
        "gradient_accumulation_steps": "micro-batches of a step",
        "max_tokens_per_forward": "split a micro-batch to save memory",
        "gradient_checkpointing": "less memory, more time",
        "bf16": "bf16 autocast; unset: where it is fast",
    },
    "LoRA": {
        "use_peft": "train an adapter, not all weights",
        "lora_r": "rank of the adapter",
        "load_in_4bit": "quantise what is frozen",
    },
    "saving and resuming": {
        "output_dir": "folder of the run; unset: trainer_output",
        "save_steps": "steps between checkpoints",
        "resume_from_checkpoint": "true: the newest one, or a folder",
    },
    "logging and evaluation": {
        "logging_steps": "steps between log lines",
        "eval_strategy": "no, steps or epoch",
        "report_to": "e.g. wandb or tensorboard",
    },
}

PLAN = {
    "what is planned": {
        "memory": "",
        "model": "",
        "dtype": "dtype of the weights",
        "max_length": "tokens of a row",
        "per_device_train_batch_size": "rows of a micro-batch",
        "num_processes": "processes in all; unset: one per GPU",
    },
    "what saves memory": {
        "max_tokens_per_forward": "split a micro-batch",
        "gradient_checkpointing": "recompute activations",
        "activation_offloading": "keep activations on the CPU",
        "precompute_ref_log_probs": "no reference in memory",
        "bf16": "bf16 autocast; unset: where it is fast",
        "use_peft": "an adapter, not all weights",
        "lora_r": "rank of the adapter",
    },
}

DATA = {
    "the data": {
        "source": "",
        "model": "",
        "html": "",
        "dataset_config": "configuration of a Hub dataset",
        "dataset_train_split": "split to train on",
        "dataset_streaming": "read the rows as they are needed",
    },
    "how a row is read": {
        "reader": "whose export it is: openwebui, langfuse, langsmith, sharegpt, hh, shp, oasst, ultrafeedback, auto, "
        "or a file that says where what is",
        "prompt_column": "column or path with the prompt",
        "completion_column": "column or path with the completion",
        "label_column": "column or path with the feedback",
        "weight_column": "column or path with how much a row counts",
        "label_map": "what a word means: WORD=true WORD=false",
        "label_threshold": "scores: desirable from this value on",
        "label_band": "scores, two numbers: undesirable up to the first, desirable from the second on",
        "every_assistant_turn": "train on every answer with a label, not on the last alone",
        "chat": "texts become turns of a chat",
        "chat_template": "Jinja file instead of the tokenizer's; chatml",
        "on_unrated": "rows without a label: drop or error",
        "on_empty": "rows without prompt or answer: drop or error",
    },
    "which rows train": {
        "max_length": "tokens of a row; the rest is cut",
        "test_split_size": "rows held out to evaluate on: share or number",
        "one_per_prompt": "one answer a prompt, drawn by the seed",
        "frac_unique_desirable": "share of these that is kept",
        "frac_unique_undesirable": "share of these that is kept",
    },
    "how they are paired and weighted": {
        "per_device_train_batch_size": "rows of a micro-batch, at least 2",
        "train_sampling_strategy": "random, sequential, group_by_length or stratified",
        "loss_type": "kto or apo_zero_unpaired",
        "desirable_weight": "weight of thumbs up; or auto",
        "undesirable_weight": "weight of thumbs down",
    },
    "the machine": {
        "seed": "of all that is drawn",
        "data_seed": "of the order alone; unset: seed",
        "dataset_num_proc": "processes that tokenise",
        "trust_remote_code": "run code that ships with a model",
        "model_revision": "branch, tag or commit of a Hub model",
    },
}

WHERE_DECLARED = {
    "DataArguments": "data",
    "RowOptions": "how a row is read",
    "ModelArguments": "model, LoRA and quantisation",
    "KTOConfig": "KTO",
    "TrainingArguments": "Hugging Face's Trainer",
    "LaunchArguments": "several processes",
}
"""Titles of the groups of all options, by the dataclass that declares them."""
