"""Losses on log-probs: pure functions, one file an idea."""
