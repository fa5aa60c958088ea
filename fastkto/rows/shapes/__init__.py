"""Which columns mean what, and one row of each shape -> prompts, answers and labels."""
