"""Which rows stand together: mismatched pairs for the KL term, orders of an epoch that allow them, class weights.

In: of every row its label and the keys of its prompt and conversation; nothing here reads a token. Out: for a
micro-batch, whose completion goes behind each prompt; for an epoch, the order of the rows; for a data set, the weights.

    matching   the pairing of one micro-batch: a rotation, else the valid matching nearest to it
    conflicts  which rows must not exchange completions; whether a data set can be paired at all, and the error if not
    repair     swaps between micro-batches until each of them can be paired
    sampler    the order of an epoch: random, sequential, stratified or by length; a strategy is added here
    stream     the same for a stream, whose rows come one after another and cannot be counted
    balance    the paper's rule for the weights of the classes; how many micro-batches hold one class only

Rows of one prompt or one conversation never exchange completions: matching and repair compare two rows, conflicts
counts for a whole batch, and sampler and stream go by its counts.
"""

from fastkto.pairs.matching import pair
from fastkto.pairs.sampler import PairableSampler
from fastkto.pairs.stream import PairableStream

__all__ = ["PairableSampler", "PairableStream", "pair"]
