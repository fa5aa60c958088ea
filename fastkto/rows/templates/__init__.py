"""What stands between messages and a chat template."""
