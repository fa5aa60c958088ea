"""Several processes on this machine, joined by gloo, and what each of them runs. Started by `test_distributed.py`."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import peft
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from tiny import tiny_llama
from training import STILL, Gradients, noisy, rows, steps, trainer

from fastkto import trainer as module
from fastkto.cli.failures import explain

HERE = Path(__file__).parent
SETTINGS = {**STILL, "beta": 0.5, "desirable_weight": 1.5, "max_steps": -1, "num_train_epochs": 1}


FLAGS = {
    "fsdp2": [
        *("--use_fsdp", "--fsdp_version", 2, "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"),
        *("--fsdp_reshard_after_forward", "true", "--fsdp_state_dict_type", "FULL_STATE_DICT"),
    ]
}


def launch(world, *arguments, engine="ddp", timeout=240):
    """`accelerate launch` of this file: (exit code, stderr)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [*FLAGS.get(engine, ["--multi_gpu"]), "--num_processes", world, "--num_machines", 1]
    flags += ["--main_process_port", port]
    flags += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", 1, "--quiet"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags, __file__, engine, *arguments]
    path = f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*map(str, command)], env=environment, text=True, capture_output=True, timeout=timeout, cwd=HERE.parent
    )
    return done.returncode, done.stderr


# Each case is (rows, settings): what the ranks have that one process has not


def one_class(i):
    return i % 8 < 4


CASES = {
    "ranks of one class": ({"count": 24, "desirable": one_class}, {}),
    "a short last batch": ({"count": 22, "desirable": one_class}, {}),
    "an empty last batch": ({"count": 18, "desirable": one_class}, {}),
    "accumulation": ({"count": 24, "desirable": one_class}, {"gradient_accumulation_steps": 2}),
    "forwards of few tokens": ({"count": 24, "desirable": one_class}, {"max_tokens_per_forward": 90}),
    "forwards of few tokens, padded": (
        {"count": 24, "desirable": one_class},
        {"max_tokens_per_forward": 90, "packing": False},
    ),
    "padded": ({"count": 22, "desirable": one_class}, {"packing": False}),
    "an adapter": ({"count": 24, "desirable": one_class}, {"adapter": True}),
    "no second model": ({"count": 24, "desirable": one_class}, {"precompute_ref_log_probs": True}),
}


def model(*, adapter=False):
    plain = noisy(tiny_llama(), seed=7)
    if not adapter:
        return plain
    torch.manual_seed(8)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    return peft.get_peft_model(plain, lora)


def train(folder, case):
    """One epoch that leaves the policy where it is: the log, and the gradients of every optimizer step."""
    data, settings = CASES[case]
    settings = dict(settings)
    adapter = settings.pop("adapter", False)
    gradients = Gradients()
    reference = {} if settings.get("precompute_ref_log_probs") else {"ref_model": tiny_llama()}
    t = trainer(
        folder,
        model=model(adapter=adapter),
        train_dataset=rows(data["count"], desirable=data["desirable"]),
        callbacks=[gradients],
        **reference,
        **(SETTINGS | settings),
    )
    t.train()
    return t, gradients.steps


def whole(gradient):
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient


def main(engine, folder, *cases):
    if engine == "fsdp2":
        shard_on_cpu()
    for case in cases:
        t, gradients = train(Path(folder) / case, case)
        rank = t.args.process_index
        assert (t.accelerator.distributed_type == "FSDP") == (engine == "fsdp2")
        assert all(hasattr(g, "full_tensor") == (engine == "fsdp2") for step in gradients for g in step.values())
        gradients = [{n.removeprefix("module."): whole(g) for n, g in step.items()} for step in gradients]
        torch.save({"steps": steps(t), "gradients": gradients}, Path(folder) / f"{case}-{rank}.pt")
    torch.distributed.destroy_process_group()


def shard_on_cpu():
    """accelerate shards on accelerators only: let it take processes on CPUs for such."""
    stock = PartialState.__init__

    def init(self, *args, **kwargs):
        stock(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_XPU

    PartialState.__init__ = init


def dies(folder):
    """Rank 1 is killed in the middle of a step."""
    t = trainer(Path(folder), train_dataset=rows(32), max_steps=50)
    stock = t.compute_loss

    def compute_loss(*args, **kwargs):
        if t.args.process_index == 1 and t.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return stock(*args, **kwargs)

    t.compute_loss = compute_loss
    try:
        t.train()
    except RuntimeError as error:  # as the command line does
        raise SystemExit(explain(error)) from error


def meets_nan(folder, action):
    """In the second step, rank 1 alone has a log-prob that is not finite."""
    t = trainer(Path(folder), train_dataset=rows(32), max_steps=4, on_nonfinite=action, save_strategy="steps")
    stock = module.kto_step

    def kto_step(*args, **kwargs):
        out, aux_loss = stock(*args, **kwargs)
        if t.args.process_index == 1 and t.state.global_step == 1 and t.model.training:
            out.logps[0] = torch.inf
        return out, aux_loss

    module.kto_step = kto_step
    result = {"error": None}
    try:
        t.train()
    except ValueError as error:
        result["error"] = str(error)
    result |= {"steps": t.state.global_step, "weights": [p.detach().sum().item() for p in t.model.parameters()]}
    result["finite"] = all(p.isfinite().all().item() for p in t.model.parameters())
    result["skipped"] = t._finite.skipped
    module.kto_step = stock
    (Path(folder) / f"{action}-{t.args.process_index}.json").write_text(json.dumps(result))


def bad_days(folder):
    for action in ("stop", "skip"):
        meets_nan(folder, action)
    is_told_to_end(folder)
    torch.distributed.destroy_process_group()


def is_told_to_end(folder):
    """SIGTERM reaches rank 1 only."""
    t = trainer(Path(folder), train_dataset=rows(32), max_steps=50)
    stock = t.compute_loss

    def compute_loss(*args, **kwargs):
        if t.args.process_index == 1 and t.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return stock(*args, **kwargs)

    t.compute_loss = compute_loss
    code = 0
    try:
        t.train()
    except SystemExit as stop:
        code = stop.code
    (Path(folder) / f"left-{t.args.process_index}.json").write_text(json.dumps([code, t.state.global_step]))


if __name__ == "__main__":
    first, *rest = sys.argv[1:]
    {"dies": dies, "bad days": bad_days}.get(first, lambda *a: main(first, *a))(*rest)
