"""Bad reference caches and checkpoints, each of them one of an earlier run, damaged."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch

from faults.cases import case, plain, train
from faults.folder import cut, rewrite_weights

# reference cache


def cache(name: str, **changes: object) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """A case in which the cache of an earlier run is damaged."""

    def add(damage: Callable[[Path], None]) -> Callable[[Path], None]:
        def write() -> list[str]:
            with closing(sqlite3.connect("earlier/ref_logps.sqlite")) as database:
                database.execute("VACUUM INTO 'out/ref_logps.sqlite'")  # what is in its log too
            damage(Path("out/ref_logps.sqlite"))
            return train(precompute_ref_log_probs="true", **changes)

        case("reference cache", name)(write)
        return damage

    return add


def sql(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        for statement in statements:
            database.execute(statement)
        database.execute("PRAGMA journal_mode=DELETE")
        database.commit()


@cache("another kind of file")
def _(path: Path) -> None:
    path.write_bytes(b"{}" * 3000)


@cache("half of it")
def _(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@cache("a folder")
def _(path: Path) -> None:
    path.unlink()
    path.mkdir()


@cache("another table")
def _(path: Path) -> None:
    sql(path, "DROP TABLE logps", "CREATE TABLE logps (row INTEGER, logp REAL)")


@cache("of a newer version")
def _(path: Path) -> None:
    sql(path, "PRAGMA user_version=99")


@cache("a folder that is a file", ref_cache_dir="data.jsonl")
def _(path: Path) -> None:
    pass


@cache("a folder where nothing can be written", ref_cache_dir="/proc/1/cache")
def _(path: Path) -> None:
    pass


@cache("with a stream", dataset_streaming="true", max_steps=1)
def _(path: Path) -> None:
    pass


@cache("with a reference that moves", sync_ref_model="true")
def _(path: Path) -> None:
    pass


# checkpoint


def checkpoint(name: str, **changes: object) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """A case in which the checkpoint to resume from is damaged."""

    def add(damage: Callable[[Path], None]) -> Callable[[Path], None]:
        def write() -> list[str]:
            folder = Path("out/checkpoint-1")
            shutil.copytree("earlier/checkpoint-1", folder)
            damage(folder)
            return train(**{"resume_from_checkpoint": str(folder), **changes})

        case("checkpoint", name)(write)
        return damage

    return add


plain("checkpoint", "is not there", resume_from_checkpoint="out/checkpoint-7")


@checkpoint("torn before its last file")
def _(folder: Path) -> None:
    (folder / "trainer_state.json").unlink()


@checkpoint("torn in its last file")
def _(folder: Path) -> None:
    cut(folder / "trainer_state.json")


@checkpoint("a state of another kind")
def _(folder: Path) -> None:
    (folder / "trainer_state.json").write_text("[]")


@checkpoint("torn in its weights")
def _(folder: Path) -> None:
    cut(folder / "model.safetensors")


@checkpoint("no weights")
def _(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@checkpoint("torn in the optimizer")
def _(folder: Path) -> None:
    cut(folder / "optimizer.pt")


@checkpoint("torn in the random state")
def _(folder: Path) -> None:
    cut(folder / "rng_state.pth")


@checkpoint("of a model of another size")
def _(folder: Path) -> None:
    rewrite_weights(folder, lambda name, x: x[:, :-1].contiguous() if "gate_proj" in name else x)


@checkpoint("of a model with other layers")
def _(folder: Path) -> None:
    rewrite_weights(folder, lambda name, x: None if "layers.1" in name else x)


@checkpoint("of a full model, for an adapter", use_peft="true")
def _(folder: Path) -> None:
    pass


@checkpoint("without its moving reference", sync_ref_model="true")
def _(folder: Path) -> None:
    pass


@checkpoint("code in its optimizer")
def _(folder: Path) -> None:
    torch.save({"state": {}, "param_groups": [Path("a pickle of another class")]}, folder / "optimizer.pt")
