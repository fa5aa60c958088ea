"""fastkto inside the trainers that people already run: one module a host, which refuses what it does not know.

In: the host's batches, and its models, whose forward is taught to call a scorer (`trunk/modules`). Out: what the host
would have computed from logits: its loss under TRL, Axolotl and Liger, the log-probs under the others.

    axolotl       Axolotl, on the trainer of trl/
    trl/          TRL's `KTOTrainer` on our micro-step, and our head under its other trainers
    halos         HALOs' `KTOTrainer`
    llamafactory  LLaMA-Factory's KTO
    swift         ms-swift's KTO
    liger         Liger's `LigerFusedLinearKTOLoss`, a loss class and no trainer
    padded        what halos, llamafactory and swift share: log-probs of a padded batch in place of logits
    logit_sums    sums of logits, which some hosts log
    seams/        are the functions that we replace as they were? Every host's, and the check that each module makes

Every host has a page in `docs/`, and a test in `tests/compat/` that compares its own path with ours.
"""
