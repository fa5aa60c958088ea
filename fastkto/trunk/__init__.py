"""A stock transformers model on a micro-batch: the hidden states at the scored places, handed to a scorer.

In: a model and a batch of `batch/`. Out: what the scorer returns; it runs inside the model's own forward.

    run          how many forwards a batch takes, packed or padded, and what each hands to its scorer
    scorer       from the model's call to its loss: `model(..., scorer=...)`, in call order under a diagram
    modules      the model: its head with softcap and scale, dropout, the auxiliary loss
    layer_split  every layer in two parts, targets with a graph and KL rows without; checkpointing; routers' logits
    attention    the function that transformers calls: the keywords it takes, and the models it refuses
    segments     attention one row at a time on any device: windows (in positions, KL rows too), dropout, softcap
    varlen       the same for all rows in one CUDA kernel
    noise        NEFTune's noise on the embeddings, by each row's own length
    heap         memory that the C library keeps, given back between layers

The sequence [x1 y1 | x2 y2 || y'1 y'2] of `batch/` again. A target attends to its own row up to itself, a KL row to its
prompt, whose keys and values the targets have left behind, and to itself. KL rows pass the layers without a graph.

        place       0    1    2  | 3    4    5   || 6    7    | 8
        token       x1   x1   y1 | x2   y2   y2  || y'1  y'1  | y'2
        position    0    1    2  | 0    1    2   || 2    3    | 1
        attends to  0    01   012| 3    34   345 || 016  0167 | 38
        graph       yes  yes  yes| yes  yes  yes || no   no   | no
"""

from fastkto.trunk.run import ModelRun, run_batch

__all__ = ["ModelRun", "run_batch"]
