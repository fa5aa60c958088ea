"""Hidden states -> token log-probs and the KTO loss behind them, without logits in memory."""

from fastkto.head.fused_kto import fused_linear_kto
from fastkto.head.logprobs import token_logprobs, token_stats

__all__ = ["fused_linear_kto", "token_logprobs", "token_stats"]
