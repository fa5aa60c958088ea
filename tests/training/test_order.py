"""Orders of the rows: shuffled, sequential, streamed, from worker processes."""

import pytest
from tiny_trainer import rows, rows_seen, steps, trainer

from fastkto.errors import InputError


def test_random_order_changes_every_epoch_and_is_reproducible(tmp_path):
    settings = {"max_steps": -1, "num_train_epochs": 3}
    seen = rows_seen(trainer(tmp_path, **settings))
    epochs = [[row for batch in seen[i : i + 3] for row in batch] for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert rows_seen(trainer(tmp_path, **settings)) == seen
    assert rows_seen(trainer(tmp_path, data_seed=9, **settings)) != seen


def test_sequential_stratified_and_by_length(tmp_path):
    data = rows(16, desirable=lambda i: i < 8)
    settings = {"max_steps": -1, "num_train_epochs": 2, "train_dataset": data}
    assert rows_seen(trainer(tmp_path, train_sampling_strategy="sequential", **settings)) == 2 * [
        list(range(i, i + 4)) for i in range(0, 16, 4)
    ]
    for batch in rows_seen(trainer(tmp_path, train_sampling_strategy="stratified", **settings)):
        assert sum(row < 8 for row in batch) == 2
    t = trainer(tmp_path, train_sampling_strategy="group_by_length", **settings)
    lengths = [len(x["prompt_ids"]) + len(x["completion_ids"]) for x in t.train_dataset]
    first = rows_seen(t)[0]
    assert max(lengths) in [lengths[row] for row in first], "the longest rows come first: memory fails at once"


@pytest.mark.parametrize(("workers", "shards"), [(0, 1), (2, 2), (2, 1)])
def test_streaming(workers, shards, tmp_path):
    stream = rows(24).to_iterable_dataset(num_shards=shards)
    t = trainer(tmp_path, train_dataset=stream, max_steps=5, dataloader_num_workers=workers)
    seen = rows_seen(t)
    assert len(seen) == 5
    assert all(len(set(batch)) == 4 for batch in seen)
    assert t.accelerator.dispatch_batches is False
    if workers == 0:
        assert seen[0] == [0, 1, 2, 3]


def test_streaming_needs_max_steps_and_no_cache(tmp_path):
    with pytest.raises(ValueError, match="max_steps"):
        trainer(tmp_path, train_dataset=rows().to_iterable_dataset(), max_steps=-1)
    with pytest.raises(InputError, match="^precompute_ref_log_probs: got True, expected False with streaming"):
        trainer(tmp_path, train_dataset=rows().to_iterable_dataset(), precompute_ref_log_probs=True)
    with pytest.raises(InputError, match="^desirable_weight: got .auto., expected a number with streaming"):
        trainer(tmp_path, train_dataset=rows().to_iterable_dataset(), desirable_weight="auto")


def test_worker_processes_change_nothing(tmp_path):
    runs = []
    for workers in (0, 2):
        t = trainer(tmp_path, dataloader_num_workers=workers, max_steps=4, precompute_ref_log_probs=True)
        t.train()
        runs.append([line["loss"] for line in steps(t)])
    assert runs[0] == runs[1]
