"""The LM head: hidden states -> token log-probs, and the KTO loss behind them, without logits in memory.

In: hidden states at the scored places, the head's weight and the target tokens. Out: log-probs, the loss, gradients.

    logprobs   `token_logprobs` and `token_stats`: arguments, and heads that are more than a weight and a bias
    fused_kto  `fused_linear_kto`: z0 first, then loss and gradients block by block, while the logits are there
    ops        logprobs as a custom op with its gradient, which `torch.compile` takes without a graph break
    oracle     the same with all logits and one line an equation; what every backend is compared with
    backends/  how it is computed: tiles of plain torch, C++ on a CPU, Triton on a GPU; the choice between them

Calls go down: logprobs -> ops -> backends; fused_kto -> backends, and for its KL rows through logprobs.
"""

from fastkto.head.fused_kto import fused_linear_kto
from fastkto.head.logprobs import token_logprobs, token_stats

__all__ = ["fused_linear_kto", "token_logprobs", "token_stats"]
