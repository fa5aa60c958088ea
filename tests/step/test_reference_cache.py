"""The reference's log-probs on disk: what hits, what misses, and what outlives a crash."""

import functools
import multiprocessing
import os
import pickle
import signal
import sqlite3
import struct
import threading
import zlib

import peft
import pytest
import torch
from adapters import LORA, tuned_adapter
from tiny import tiny_llama
from tiny_trainer import STILL, noisy, rows, steps, trainer

from fastkto.errors import InputError
from fastkto.step import reference_model
from fastkto.step.logp_cache import SET_UP, LogpCache


def cached(tmp_path, **changes):
    settings = {"precompute_ref_log_probs": True, "ref_cache_dir": str(tmp_path / "cache"), **changes}
    return trainer(tmp_path, **settings)


def stored(tmp_path) -> int:
    with sqlite3.connect(tmp_path / "cache" / "ref_logps.sqlite") as database:
        return database.execute("SELECT count(*) FROM logps").fetchone()[0]


@pytest.mark.parametrize("strategy", ["random", "sequential", "stratified", "group_by_length"])
def test_every_step_of_every_epoch_hits(strategy, tmp_path):
    """Bug of a peer: a cache keyed by the shuffled order."""
    t = cached(tmp_path, train_sampling_strategy=strategy, max_steps=-1, num_train_epochs=3, train_dataset=rows(16))
    assert stored(tmp_path) == 2 * 16, "one value a row and one a mismatched pair"
    orders = []
    for epoch in range(3):
        t.sampler.set_epoch(epoch)
        orders.append(list(t.sampler))
    t.train()
    assert (t.reference.cache.hits, t.reference.cache.misses) == (3 * 2 * 16, 0)
    if strategy != "sequential":
        assert not orders[0] == orders[1] == orders[2], "epochs are shuffled"
    batches = [{tuple(order[i : i + 4]) for i in range(0, 16, 4)} for order in orders]
    assert batches[0] == batches[1] == batches[2]


def test_cached_and_live_reference_train_alike(tmp_path):
    runs = []
    for precompute in (False, True):
        settings = {"train_sampling_strategy": "sequential", "max_steps": 6, "precompute_ref_log_probs": precompute}
        t = trainer(tmp_path / str(precompute), ref_model=noisy(tiny_llama()), train_dataset=rows(14), **settings)
        t.train()
        runs.append([(line["loss"], line["kl/raw"], line["grad_norm"]) for line in steps(t)])
    assert runs[0] == runs[1]


def test_a_second_run_computes_nothing_and_other_content_everything(tmp_path, caplog):
    cached(tmp_path, eval_dataset=rows(16).select(range(12, 16)))
    first = stored(tmp_path)
    again = cached(tmp_path, train_dataset=rows(), train_sampling_strategy="random", seed=3)
    assert again.reference.cache.get([b"absent"]) == [None]
    assert stored(tmp_path) == first
    again.train()
    assert again.reference.cache.misses == 1, "only the pair asked for by hand"
    changed = {
        "weights": {"model": noisy(tiny_llama())},
        "adapter": {"model": tuned_adapter()},
        "precision": {"bf16": True},
        "weights' dtype": {"model": tiny_llama().bfloat16()},
        "config": {"model": tiny_llama(rms_norm_eps=1e-3)},
        "reference": {"ref_model": noisy(tiny_llama(), seed=6)},
    }
    for what, settings in changed.items():
        before = stored(tmp_path)
        cached(tmp_path, **settings)
        assert stored(tmp_path) > before, f"another {what} found the values of the first"
    before = stored(tmp_path)
    cached(tmp_path, peft_config=peft.LoraConfig(**LORA))
    cached(tmp_path, peft_config=peft.LoraConfig(**{**LORA, "r": 2}))
    assert stored(tmp_path) - before == 2 * 12, "adapters that are switched off share their base model's values"


def test_a_row_added_later_is_a_miss_that_is_computed_stored_and_reported(tmp_path, caplog):
    settings = {"train_sampling_strategy": "sequential"}
    cached(tmp_path, train_dataset=rows(12), **settings)
    cached(tmp_path, train_dataset=rows(16), **settings)
    assert stored(tmp_path) == 2 * 16
    assert "8 computed, 24 found" in caplog.text


def test_a_miss_after_the_policy_moved(tmp_path):
    """Full fine-tuning: refused, the reference is gone. With an adapter or a second model it is computed."""
    new = rows(20).select(range(12, 20))
    full = cached(tmp_path)
    full.train()
    with pytest.raises(InputError, match="^precompute_ref_log_probs: got 'a pair that was not scored"):
        full.evaluate(new)
    for settings in ({"peft_config": peft.LoraConfig(**LORA)}, {"ref_model": noisy(tiny_llama())}):
        t = cached(tmp_path, **settings)
        t.train()
        before = stored(tmp_path)
        assert t.evaluate(new)["eval_loss"] > 0
        assert stored(tmp_path) == before + 2 * 8
        assert t.reference.cache.misses >= 2 * 8
    early = cached(tmp_path / "early")
    assert early.evaluate(new)["eval_rewards/chosen"] == 0.0, "before training the policy is still the reference"


def test_the_cache_serves_evaluation_sets(tmp_path):
    evals = {"a": rows(20).select(range(12, 16)), "b": rows(20).select(range(16, 20))}
    t = cached(tmp_path, eval_dataset=evals, eval_strategy="steps", eval_steps=1)
    t.train()
    assert t.reference.cache.misses == 0
    assert t.reference.cache.hits == 3 * 2 * (4 + 4 + 4)


def test_ctrl_c_within_a_write_leaves_nothing_locked_and_nothing_half_written(tmp_path):
    cache = LogpCache(tmp_path / "ref_logps.sqlite", "model")

    cache.put([b"z"], [-1.0])
    database = cache._database

    class Interrupted:
        def __getattr__(self, name):
            return getattr(database, name)

        def executemany(self, statement, rows):
            database.execute(statement, next(iter(rows)))
            raise KeyboardInterrupt

    cache._database = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        cache.put([b"a", b"b"], [-1.0, -2.0])
    cache._database = database
    other = LogpCache(tmp_path / "ref_logps.sqlite", "model")
    other.put([b"c"], [-3.0])
    assert other.get([b"a", b"b", b"c", b"z"]) == [None, None, -3.0, -1.0]


def test_fingerprint_leaves_out_the_adapter_in_training_only():
    plain = peft.get_peft_model(tiny_llama(), peft.LoraConfig(**{**LORA, "target_modules": ["embed_tokens"]}))
    fingerprint = functools.partial(reference_model.fingerprint, adapter_off=True)
    before = fingerprint(plain, precision="no")
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if "lora" in name:
                parameter += 1
    assert fingerprint(plain, precision="no") == before
    with torch.no_grad():
        plain.get_base_model().model.norm.weight[0] += 1
    assert fingerprint(plain, precision="no") != before
    assert fingerprint(plain, precision="bf16") != fingerprint(plain, precision="no")
    assert fingerprint(plain, precision="no") != reference_model.fingerprint(plain, precision="no")


def write(path, killed):
    cache = LogpCache(path, "model")
    for i in range(20):
        cache.put([bytes([i])], [-float(i)])
    if killed:
        cache._database.execute("BEGIN IMMEDIATE")
        cache._database.execute("INSERT INTO logps VALUES ('model', x'ff', -1.0, 0)")
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_cache_outlives_a_kill_and_serves_two_processes(tmp_path):
    path = tmp_path / "cache.sqlite"
    processes = multiprocessing.get_context("fork")
    writers = [processes.Process(target=write, args=(path, killed)) for killed in (True, False)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=60)
    assert [writer.exitcode for writer in writers] == [-signal.SIGKILL, 0]
    cache = LogpCache(path, "model")
    assert cache.get([bytes([i]) for i in range(20)]) == [-float(i) for i in range(20)]
    assert cache.get([b"\xff"]) == [None], "a transaction that was not finished leaves nothing"
    assert (cache.hits, cache.misses) == (20, 1)
    assert LogpCache(path, "another").get([bytes([3])]) == [None]
    cache.put([b"\x03"], [-7.0])
    assert cache.get([b"\x03"]) == [-7.0]
    again = pickle.loads(pickle.dumps(cache))
    assert again.get([b"\x03"]) == [-7.0]


DAMAGE = {
    "a flipped bit": "UPDATE logps SET logp = logp * 2 WHERE rowid_of = 0",
    "above 0": "UPDATE logps SET logp = 3.5",
    "a word": "UPDATE logps SET logp = 'small'",
    "none": "UPDATE logps SET logp = NULL",
    "infinite": "UPDATE logps SET logp = -9e999",
    "of another pair": "UPDATE logps SET (logp, checksum) = (SELECT logp, checksum FROM logps LIMIT 1)",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_computed_again_and_said(damage, tmp_path, caplog):
    cached(tmp_path)
    path = tmp_path / "cache" / "ref_logps.sqlite"
    query = "SELECT pair, logp FROM logps ORDER BY pair"
    with sqlite3.connect(path) as database:
        right = database.execute(query).fetchall()
        database.execute(damage.replace("rowid_of = 0", f"pair = X'{right[3][0].hex()}'"))
    t = cached(tmp_path)
    with sqlite3.connect(path) as database:
        assert database.execute(query).fetchall() == right
    assert "holds damaged log-probs: they are computed again" in caplog.text
    assert "of the computed in the place of damaged ones" in caplog.text
    t.train()
    assert steps(t)[0]["rewards/chosen"] == 0.0


def test_a_cache_without_checksums_is_not_used(tmp_path, caplog):
    path = tmp_path / "ref_logps.sqlite"
    with sqlite3.connect(path) as database:
        database.execute(
            "CREATE TABLE logps (model TEXT, pair BLOB, logp REAL, PRIMARY KEY (model, pair)) WITHOUT ROWID"
        )
        database.execute("INSERT INTO logps VALUES ('model', X'01', -1.5)")
        database.execute("PRAGMA user_version=1")
    assert LogpCache(path, "model").get([b"\x01"]) == [None]
    assert "of an older fastkto, without checksums" in caplog.text


def test_a_finished_step_uses_no_forward_of_the_reference(tmp_path):
    """The point of the cache: with it the reference does not run."""
    t = cached(tmp_path, **STILL)
    t.reference._compute = None
    t.train()
    assert t.state.global_step == 3


def test_a_new_cache_that_another_process_is_writing_is_waited_for(tmp_path):
    """As the ranks of one run do: SQLite refuses at once to change the mode of a file that is being written."""
    path = tmp_path / "ref_logps.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute(next(statement for statement in SET_UP if "TABLE IF NOT EXISTS logps" in statement))
    other.execute("BEGIN IMMEDIATE")
    checksum = zlib.crc32(b"model" + b"\x01" + struct.pack("<d", -1.5))
    other.execute(f"INSERT INTO logps VALUES ('model', X'01', -1.5, {checksum})")
    threading.Timer(0.3, other.execute, ["COMMIT"]).start()
    assert LogpCache(path, "model", {"model": "m"}).get([b"\x01"]) == [-1.5]
