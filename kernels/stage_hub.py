"""Stage the kernel package for the Hugging Face kernel Hub: `python kernels/stage_hub.py FOLDER`.

Writes FOLDER/build/torch-cuda/ (the package as it is, and its metadata.json), FOLDER/README.md and FOLDER/LICENSE:
what `kernels.get_kernel` downloads and `kernels.get_local_kernel` loads.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "kernels" / "fastkto_kernels"
VARIANT = "torch-cuda"
CARD = """---
license: apache-2.0
library_name: kernels
tags: [kernel]
---

# fastkto-kernels

Triton kernels for KTO training: the LM head with its token log-probs and their gradients, and the KTO loss, with no
logits in memory.

```python
from kernels import get_kernel

k = get_kernel("fastkto/fastkto-kernels")
outputs, _ = k.forward(k.Head(hidden, lm_head.weight, targets))  # outputs.logps == log_softmax(...).gather(...)
```
"""


def metadata(package: Path) -> dict[str, object]:
    """Name, licence and an id of the sources, under which several versions load side by side."""
    digest = hashlib.sha256()
    for path in sorted(package.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return {
        "name": "fastkto-kernels",
        "id": f"_fastkto_kernels_cuda_{digest.hexdigest()[:12]}",
        "version": 1,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": "cuda"},
    }


def stage(folder: Path) -> Path:
    """Write the repository to `folder`, replacing an earlier build; returns the build variant's path."""
    variant = folder / "build" / VARIANT
    shutil.rmtree(variant, ignore_errors=True)
    variant.mkdir(parents=True)
    for path in sorted(PACKAGE.glob("*.py")):
        shutil.copy(path, variant / path.name)
    (variant / "metadata.json").write_text(json.dumps(metadata(PACKAGE), indent=2) + "\n")
    (folder / "README.md").write_text(CARD)
    shutil.copy(ROOT / "LICENSE", folder / "LICENSE")
    return variant


if __name__ == "__main__":
    print(stage(Path(sys.argv[1])))
