"""The trainer on Hugging Face's Trainer, what it loads and prepares, and what it does when something goes wrong."""

from fastkto.training.trainer import KTOTrainer

__all__ = ["KTOTrainer"]
