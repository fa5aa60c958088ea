"""Time and peak memory of a training step: ours, plain fine-tuning and TRL's on the same rows, side by side."""
