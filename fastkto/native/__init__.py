"""The native library of `csrc/`: only here is it loaded.

In: nothing. Out: the operators `torch.ops.fastkto_native`, or the reason why there are none, as a sentence.

    loader  finds and loads the library that `setup.py` built; the sizes of the processor's caches

Nothing needs the library: without it `head/backends/tiles` does its work, and `fastkto doctor` gives the reason.
How it is built stands in `setup.py`, what it computes in `csrc/`: products in `product.inc`, the two passes over a
tile in `kernels.inc`, once for each kind of processor, and the operators' names and checks in `binding.cpp`.
Who calls them is `head/backends/native_ops`.
"""
