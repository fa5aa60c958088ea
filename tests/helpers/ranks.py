"""Several processes on this machine, joined by gloo, and what each of them runs, under every engine."""

import itertools
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
from leaving import leave_group
from rank_cases import CASES, LORA, TAKEN_APART, model, rows_of
from tiny import tiny_llama
from tiny_trainer import STILL, Gradients, rows, steps, trainer
from transformers import TrainerCallback

from fastkto import engines
from fastkto.cli.failures import explain
from fastkto.training import trainer as module

HERE = Path(__file__).parent
SETTINGS = {**STILL, "beta": 0.5, "desirable_weight": 1.5, "max_steps": -1, "num_train_epochs": 1}


FSDP2 = [
    *("--use_fsdp", "--fsdp_version", 2, "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"),
    *("--fsdp_reshard_after_forward", "true", "--fsdp_state_dict_type"),
]
FLAGS = {
    "fsdp2": [*FSDP2, "FULL_STATE_DICT"],
    "fsdp2, sharded checkpoints": [*FSDP2, "SHARDED_STATE_DICT"],
    "fsdp2, layers checkpointed": [*FSDP2, "FULL_STATE_DICT", "--fsdp_activation_checkpointing", "true"],
}
ENGINES = {"ddp": "MULTI_CPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}


def zero_flags(stage, folder):
    """DeepSpeed as its users configure it, but that no weight is small or near enough to stay whole."""
    auto = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    zero = {"stage": stage, "overlap_comm": False, "stage3_gather_16bit_weights_on_model_save": True}
    zero |= {"stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}
    path = Path(folder) / "zero.json"
    path.write_text(json.dumps({**dict.fromkeys(auto, "auto"), "zero_optimization": zero}))
    return ["--use_deepspeed", "--deepspeed_config_file", path]


def launch(world, *arguments, engine="ddp", script=__file__, timeout=240):
    """`accelerate launch` of a script with the engine, a folder and more: (exit code, stderr)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    zero = zero_flags(int(engine[-1]), arguments[0]) if engine in ("zero2", "zero3") else None
    flags = [*(zero or FLAGS.get(engine, ["--multi_gpu"])), "--num_processes", world, "--num_machines", 1]
    flags += ["--main_process_port", port]
    flags += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", 1, "--quiet"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags, HERE / script, engine, *arguments]
    path = f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*map(str, command)], env=environment, cwd=HERE.parents[1], **pipes) as job:
        try:
            _, said = job.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            job.terminate()  # the launcher then ends its ranks, which wait for each other
            raise
    return job.returncode, said


def launches(tmp_path_factory, cases_of, timeout=240):
    """(engine, world) -> the folder of a launch with the files of the engine's cases; one launch of each."""
    done = {}

    def of(engine, world):
        if (engine, world) not in done:
            folder = tmp_path_factory.mktemp(f"{engine}{world}")
            model().save_pretrained(folder / "model")
            code, said = launch(world, folder, *cases_of(engine), engine=engine, timeout=timeout)
            assert code == 0, said[-6000:]
            done[engine, world] = folder
        return done[engine, world]

    return of


def train(folder, case, engine):
    """One epoch that leaves the policy where it is: the log, and the gradients of every optimizer step."""
    data, settings = (CASES | TAKEN_APART)[case]
    settings = dict(settings)
    adapter, by_id = settings.pop("adapter", False), settings.pop("by_id", False)
    with_reference = "reference" not in settings and not settings.get("precompute_ref_log_probs")
    settings.pop("reference", None)
    if "checkpointed" in engine:
        settings["gradient_checkpointing"] = False  # transformers refuses both at once
    gradients = Gradients()
    stock = module.load_policy

    def load_policy(*args):
        loaded = stock(*args)
        assert engines.partitioned(loaded) == (by_id and engine == "zero3"), "taken apart as it is loaded"
        return loaded

    module.load_policy = load_policy
    t = trainer(
        folder,
        model=str(folder.parent / "model") if by_id else model(adapter=adapter),
        ref_model=tiny_llama() if with_reference else None,
        peft_config=peft.LoraConfig(**LORA, init_lora_weights=False) if settings.pop("peft", False) else None,
        train_dataset=rows_of(data),
        callbacks=[gradients],
        **(SETTINGS | settings),
    )
    module.load_policy = stock
    if engine.startswith("zero"):
        gradients = ZeroGradients(t)
        t.add_callback(gradients)
    t.train()
    return t, gradients.steps


class ZeroGradients(TrainerCallback):
    """The gradients of every optimizer step, which DeepSpeed takes within the backward."""

    def __init__(self, t):
        self.trainer, self.steps = t, []

    def on_train_begin(self, *_, **__):
        from deepspeed.utils import safe_get_full_grad

        engine = self.trainer.model_wrapped
        take = engine.step

        def step(*args, **kwargs):
            if engine.is_gradient_accumulation_boundary():
                named = [(n, p) for n, p in engine.module.named_parameters() if p.requires_grad]
                self.steps.append({n: safe_get_full_grad(p).clone() for n, p in named})
            return take(*args, **kwargs)

        engine.step = step


def whole(gradient):
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient


def plain_name(name):
    """A weight's, without what engines put around its modules."""
    return name.removeprefix("module.").replace("_checkpoint_wrapped_module.", "")


def main(engine, folder, *cases):
    on_cpu(engine)
    for case in cases:
        t, gradients = train(Path(folder) / case, case, engine)
        rank = t.args.process_index
        sharded = engine.startswith("fsdp2")
        assert t.accelerator.distributed_type == ENGINES[engine.partition(",")[0]]
        assert all(hasattr(g, "full_tensor") == sharded for step in gradients for g in step.values())
        models = [t.model] if t.reference.model is None else [t.model, t.reference.model]
        for parameter in itertools.chain(*(each.parameters() for each in models)):
            if engine == "zero3":
                assert parameter.ds_tensor.numel() < parameter.ds_numel, "a weight is not sharded"
                assert not parameter.numel(), "a weight is not freed"
            assert hasattr(parameter, "full_tensor") == sharded, "a weight is not sharded, or not freed"
        gradients = [{plain_name(n): whole(g) for n, g in step.items()} for step in gradients]
        packed = "sequences" in t.data_collator(list(t.train_dataset)[:4])
        result = {"steps": steps(t), "gradients": gradients, "packed": packed, "adapter": adapter_of(t.model)}
        torch.save(result, Path(folder) / f"{case}-{rank}.pt")
    leave_group()


def adapter_of(model):
    """What an adapter began with, and still is."""
    found = {}
    for name, parameter in model.named_parameters():
        if "lora" in name:
            with engines.whole(parameter):
                found[plain_name(name)] = whole(parameter.detach()).clone()
    return found


def on_cpu(engine):
    if engine.startswith("fsdp2"):
        shard_on_cpu()
    elif engine.startswith("zero"):
        zero_on_cpu()


def shard_on_cpu():
    """accelerate shards on accelerators only: let it take processes on CPUs for such."""
    stock = PartialState.__init__

    def init(self, *args, **kwargs):
        stock(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_XPU

    PartialState.__init__ = init


def zero_on_cpu():
    """accelerate starts DeepSpeed on accelerators only: let it join processes on CPUs by gloo."""
    import deepspeed.ops

    def backend(*_, **__):
        return "gloo", DistributedType.NO  # the engine's own type comes afterwards

    PartialState._prepare_backend = backend
    deepspeed.ops.__compatible_ops__ = {}  # none of its own kernels, which would be compiled first
    SETTINGS["use_cpu"] = False  # so that accelerate looks for an engine at all


def signalled(folder, number):
    """A trainer whose rank 1 gets a signal in the middle of its third step."""
    t = trainer(Path(folder), train_dataset=rows(32), max_steps=50)
    stock = t.compute_loss

    def compute_loss(*args, **kwargs):
        if t.args.process_index == 1 and t.state.global_step == 2:
            os.kill(os.getpid(), number)
        return stock(*args, **kwargs)

    t.compute_loss = compute_loss
    return t


def dies(folder):
    """Rank 1 is killed in the middle of a step."""
    t = signalled(folder, signal.SIGKILL)
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
    leave_group()


def is_told_to_end(folder):
    """SIGTERM reaches rank 1 only."""
    t = signalled(folder, signal.SIGTERM)
    code = 0
    try:
        t.train()
    except SystemExit as stop:
        code = stop.code
    (Path(folder) / f"left-{t.args.process_index}.json").write_text(json.dumps([code, t.state.global_step]))


if __name__ == "__main__":
    first, *rest = sys.argv[1:]
    {"dies": dies, "bad days": bad_days}.get(first, lambda *a: main(first, *a))(*rest)
