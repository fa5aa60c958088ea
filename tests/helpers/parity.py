"""Six steps of fastkto's trainer and of TRL's beside each other."""

from tolerance import assert_within

STEPS = 6


def spy_on_k(kind, trainer):
    """k of every micro-step as the trainer itself computes it, before mean and clamp."""
    raw, policy = [], []
    if kind == "ours":
        from fastkto.step import metrics

        meter = trainer._meters["train"]
        add = meter.add

        def spy_on_sums(vector):
            sums = metrics.Sums(*vector)
            raw.append((sums.kl / sums.kl_rows).item())
            add(vector)

        meter.add = spy_on_sums
        return raw
    compute = trainer._compute_kl_logps

    def spy(model, batch):
        logps = compute(model, batch)
        if logps is None:
            return logps
        if "ref_KL_logps" in batch:
            raw.append((logps - batch["ref_KL_logps"]).mean().item())
        elif policy:
            raw.append((policy.pop() - logps).mean().item())
        else:
            policy.append(logps)
        return logps

    trainer._compute_kl_logps = spy
    return raw


def compare(ours, theirs, raw_ours, raw_theirs, *, with_kl=True, relative=1e-4, nats=1e-5):
    """The bounds of the claim: loss and grad norm relative, log-ratios in nats."""
    assert len(ours) == len(theirs) == STEPS
    for a, b in zip(ours, theirs, strict=True):
        for name in ("loss", "grad_norm"):
            assert_within(a[name], b[name], relative=relative, name=name)
        for name in ("kl", "rewards/chosen", "rewards/rejected", "rewards/margins"):
            assert_within(a[name], b[name], absolute=nats, name=name)
        for name in ("logps/chosen", "logps/rejected", "entropy", "logits/chosen", "logits/rejected"):
            assert_within(a[name], b[name], relative=relative, absolute=nats, name=name)
        assert a["num_tokens"] == b["num_tokens"]
    if with_kl:
        assert len(raw_ours) == len(raw_theirs) >= STEPS
        for a, b in zip(raw_ours, raw_theirs, strict=True):
            assert_within(a, b, absolute=nats, name="k before the clamp")
