"""From a model's call to its loss with no logits in between: what runs, in the order in which it runs.

    run_batch                                 trunk/run         one call of the model per forward
      model(**inputs, scorer=s)                                 as DDP, FSDP and autocast wrap it
        forward of `install_scorer`           here              in the place of the model's own
          s.run_layers(base_model, ...)       here              token ids -> hidden states of every position
            packed_forward                    trunk/layer_split   packed: each layer's targets, then its KL rows
          s.in_head(hidden, head, ...)        here              as the head's own forward, whose hooks gather its weight
            s.score(hidden, head, ...)        here              the positions that predict a scored token
              `then(Scored)`                  step/micro_step   log-probs, or the loss with its gradients formed
                fused_linear_kto              head/fused_kto
      loss.backward()                                           head, then layer by layer back, checkpoints run again

Legend: B rows, L padded length, T packed tokens, N scored positions (N' of the KL stream), D hidden.
"""

import functools
import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from fastkto.batch import Layout
from fastkto.engines import absent
from fastkto.errors import InputError
from fastkto.trunk.layer_split import packed_forward
from fastkto.trunk.modules import (
    Head,
    evaluating,
    find_base,
    find_head,
    is_peft_model,
    load_balancing_loss,
    unwrap_peft,
)
from fastkto.trunk.noise import noise_by_row, packed_lengths

Batch = dict[str, Any]


class Scored(NamedTuple):
    """What one forward hands on from its layers, while the model's own forward is still running."""

    head: Head
    hidden: torch.Tensor
    """(N, D) at the positions that predict a completion token."""
    targets: torch.Tensor
    """(N,)"""
    cu_seqlens: list[int]
    kl_hidden: torch.Tensor | None
    """(N', D), without a graph; None where the batch has no KL stream."""
    kl_targets: torch.Tensor | None
    kl_cu_seqlens: list[int] | None
    aux_loss: torch.Tensor | None
    """A mixture of experts' load-balancing loss over the target tokens, where asked for."""


class Scorer:
    """What runs in one forward in the place of a model's own: its layers, then `score` within the head's call.

    This one runs a padded batch and gives `then` all hidden states (B, L, D), the head and the auxiliary loss or None;
    what `then` returns is what the model returns. Methods in the order of their calls.
    """

    def __init__(self, then: Callable[..., Any]) -> None:
        self.then = then

    def run_layers(self, base: Any, *args: Any, **kwargs: Any) -> Any:
        """The model below its head, on the inputs that the model was called with."""
        return base(*args, use_cache=False, **kwargs)

    @torch.compiler.disable  # its tiles and host integers would be compiled anew for every batch
    def in_head(self, hidden: torch.Tensor, head: Head, aux_loss: torch.Tensor | None) -> Any:
        """`score` as the head's own forward: the hooks of a sharded head then gather its weight, and free it again."""
        if not head.plain:  # what scores with it calls the module
            return self.score(hidden, head, aux_loss)
        own = vars(head.module)
        before = {name: value for name, value in own.items() if name == "forward"}

        def put_back() -> None:
            if own.get("forward") is once:
                del head.module.forward
                own.update(before)

        def once(hidden: torch.Tensor) -> Any:
            put_back()  # `score` may run the stock forward
            return self.score(hidden, head, aux_loss)

        head.module.forward = once
        try:
            return head.module(hidden)
        finally:  # a hook that fails comes before `once`
            put_back()

    def score(self, hidden: torch.Tensor, head: Head, aux_loss: torch.Tensor | None) -> Any:
        """Choose what to score, and hand it on."""
        return self.then(hidden, head, aux_loss)


class PackedScorer(Scorer):
    """A sequence of `PackingCollator`; `then` gets a `Scored`."""

    def __init__(self, sequence: Batch, then: Callable[[Scored], Any]) -> None:
        super().__init__(then)
        self.sequence, self.layout = sequence, Layout.of(sequence)

    @torch.compiler.disable  # the rows' lengths are host integers: every batch would be compiled anew
    def run_layers(self, base: Any, *args: Any, **kwargs: Any) -> Any:
        """Every layer in two parts, targets with a graph and KL rows without."""
        with noise_by_row(base, lambda: packed_lengths(self.layout)):
            return packed_forward(self.layout, base, *args, **kwargs)

    def score(self, hidden: torch.Tensor, head: Head, aux_loss: torch.Tensor | None) -> Any:
        """Of hidden states (1, T, D)."""
        part, hidden_TD, kl_hidden = self.sequence, hidden[0], None
        if "KL_logit_index" in part:
            kl_hidden = hidden_TD.detach().index_select(0, part["KL_logit_index"])
        kl = kl_hidden, part.get("KL_targets"), part.get("KL_cu_seqlens")
        at_targets = hidden_TD.index_select(0, part["logit_index"])
        return self.then(Scored(head, at_targets, part["targets"], part["cu_seqlens"], *kl, aux_loss))


class PaddedScorer(Scorer):
    """Some rows of one stream of `PaddingCollator`; `then` gets a `Scored`, with what the KL stream gave before."""

    def __init__(
        self,
        batch: Batch,
        rows: slice,
        then: Callable[[Scored], Any],
        *,
        prefix: str = "",
        kl: tuple[torch.Tensor, torch.Tensor, list[int]] | None = None,
    ) -> None:
        super().__init__(then)
        cu_seqlens = batch[f"{prefix}cu_seqlens"]
        self.length = padded_length(batch, rows, prefix)
        part = slice(cu_seqlens[rows.start], cu_seqlens[rows.stop])
        self.index = batch[f"{prefix}logit_index"][part] - rows.start * batch[f"{prefix}input_ids"].shape[1]
        self.targets = batch[f"{prefix}targets"][part]
        self.cu_seqlens = [end - part.start for end in cu_seqlens[rows.start : rows.stop + 1]]
        self.kl: tuple[torch.Tensor | None, torch.Tensor | None, list[int] | None] = kl or (None, None, None)

    def run_layers(self, base: Any, *args: Any, **kwargs: Any) -> Any:
        """The model below its head, on rows behind which there is padding."""
        with noise_by_row(base, lambda: kwargs["attention_mask"].sum(1, keepdim=True).float()):
            return super().run_layers(base, *args, **kwargs)

    def score(self, hidden: torch.Tensor, head: Head, aux_loss: torch.Tensor | None) -> Any:
        """Of hidden states (B, L, D); prompt-learning adapters put virtual tokens in front."""
        hidden_ND = hidden[:, -self.length :].flatten(0, 1).index_select(0, self.index)
        return self.then(Scored(head, hidden_ND, self.targets, self.cu_seqlens, *self.kl, aux_loss))


def padded_length(batch: Batch, rows: slice, prefix: str) -> int:
    """How long these rows of a padded batch run: rows that run one by one leave their padding out."""
    if "row_lengths" in batch:
        return int(batch[f"{prefix}row_lengths"][rows.start])
    return int(batch[f"{prefix}input_ids"].shape[1])


def teach_scorer(model: nn.Module, *, check: bool = True) -> None:
    """Let `model(..., scorer=s)` run `s` in place of its own forward, checked to be right for this model's head.

    Before accelerate wraps the model's forward, not after. `check`: False where the model cannot be run yet.
    """
    base = unwrap_peft(model)
    install_scorer(base)
    adapter: Any = model.base_model if is_peft_model(model) else None
    if adapter is not None and "forward" in vars(adapter):  # which it took from the model as it was
        adapter.forward = base.forward
    if check:
        check_head(base)


def install_scorer(model: PreTrainedModel) -> None:
    """Let `model(..., scorer=s)` return what `s` makes of its hidden states; without `scorer` nothing changes.

    All of a `Scorer` runs inside the model's own forward, so that autocast, DDP and sharded parameters see it.
    """
    if getattr(model.forward, "takes_scorer", False):
        return
    own: Any = model.forward
    method = getattr(own, "__self__", None) is model

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, scorer: Scorer | None = None, **kwargs: Any) -> Any:
        if scorer is None:
            return own.__func__(self, *args, **kwargs) if method else own(*args, **kwargs)
        outputs = scorer.run_layers(find_base(self), *args, **kwargs)
        aux_loss = load_balancing_loss(self, outputs, kwargs.get("attention_mask"))
        return scorer.in_head(outputs.last_hidden_state, find_head(self), aux_loss)

    forward.__signature__ = inspect.signature(type(model).forward)  # type: ignore[attr-defined]
    del forward.__wrapped__  # accelerate would take mixed precision off down to the innermost function, past this one
    forward.takes_scorer = True  # type: ignore[attr-defined]
    model.forward = MethodType(forward, model)  # type: ignore[method-assign]  # a method: a deep copy runs the copy


LARGE = 60.0
"""Of a logit: where softcaps, 15 to 50 in public models, bend."""


def check_head(model: PreTrainedModel) -> None:
    """Raise `InputError` where the head as the scorer sees it is not what turns hidden states into the model's logits.

    A head that is more than its output embedding, or a scale of a name unknown here, would give wrong log-probs and
    no other sign. Compared on four tokens, unless the weights are `absent`: as they are, and with the head's output
    made large, where a softcap bends it.
    """
    if absent(model):
        return
    ids = torch.arange(4, device=model.device)[None]
    factor, enlarged = 1.0, 0

    def logits(hidden: torch.Tensor, head: Head, _: torch.Tensor | None) -> torch.Tensor:
        z = head.module(hidden).float() * factor * head.scale
        return z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)

    def enlarge(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        nonlocal enlarged
        enlarged += 1
        return output * factor

    def largest() -> float:
        """Of the model's own logits, once they are what the scorer makes of its hidden states."""
        hook = find_head(model).module.register_forward_hook(enlarge)
        try:
            own = model(input_ids=ids, use_cache=False).logits.float()
        finally:
            hook.remove()
        try:
            ours = model(input_ids=ids, scorer=Scorer(logits))
        except (RuntimeError, AttributeError, TypeError, NotImplementedError) as error:
            expected = f"a head that takes the hidden states of its model, but: {' '.join(str(error).split())}"
            raise InputError("model", type(model).__name__, expected, "This model is not supported.") from error
        if not (own - ours).abs().max() <= 0.02 * own.abs().max():  # a few bf16 roundings; a scale misses by a factor
            expected = "logits that are softcap * tanh(scale * output_embeddings(hidden_states) / softcap)"
            raise InputError("model", type(model).__name__, expected, "This model's head is not supported.")
        return own.abs().max().item()

    with torch.no_grad(), evaluating(model):
        found = largest()
        if enlarged == 1 and 0 < found < LARGE:  # a head that its model does not call as a module stays as it is
            factor = LARGE / found
            largest()
