"""`make faults`: what goes wrong, what was done, what was lost, and what the user reads."""
