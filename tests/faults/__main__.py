"""`make faults`: the table, and exit code 1 where a line of it is not as it should be."""

import argparse
import os
import sys
import time

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

from faults.report import bad_inputs, faults, render


def main() -> int:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--short", action="store_true", help="leave out what takes several processes")
    short = parser.parse_args().short
    start = time.monotonic()
    happened, refused = faults(short=short), bad_inputs()
    print(render(happened, refused))
    failed = [line for line in (*happened, *refused) if line.wrong]
    for line in failed:
        print(f"\nNOT AS IT SHOULD BE: {line.name}: {line.wrong}")
    verdict = f"{len(failed)} not as they should be" if failed else "nothing lost, nothing half-written"
    print(f"\n{len(happened)} faults, {len(refused)} bad inputs: {verdict} ({time.monotonic() - start:.0f} s)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
