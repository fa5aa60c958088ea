"""The options of a command: flags, YAML and dataclasses, and what they name: models, data, adapters, processes."""
