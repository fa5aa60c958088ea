"""The native library of `csrc/`: only here is it loaded."""
