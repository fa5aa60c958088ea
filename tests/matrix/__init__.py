"""`make matrix` and `make bits`: the suite as other machines would run it."""
