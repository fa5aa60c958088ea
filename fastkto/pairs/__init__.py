"""Mismatched pairs, orders of the rows in which every micro-batch has them, and class weights."""

from fastkto.pairs.matching import pair
from fastkto.pairs.sampler import PairableSampler
from fastkto.pairs.stream import PairableStream

__all__ = ["PairableSampler", "PairableStream", "pair"]
