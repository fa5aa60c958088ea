"""What the integrations replace in a host, and whether the installed host still has it.

In: the name of a host in `WAYS`. Out: its version, or an error that names the function that differs. A version that
nobody has run is no error where every seam is the same: it is taken, and one line says so.

    hosts  `WAYS`: each way into a host, the versions that it was run with, and its seams: the functions with their
           parameters, the names that their code uses. A new host, or a host that has changed, is an edit here
    check  `require_seams`, which every integration calls when it is imported, and `examine`, which
           `fastkto doctor --host` prints

Nothing here needs torch, and a host is imported only when it is asked about. `tests/compat/test_seams.py` takes both
through hosts that fit, that are newer and that have changed.
"""

from fastkto.integrations.seams.check import Verdict, accepted, examine, require_seams
from fastkto.integrations.seams.hosts import WAYS, Seam, Way

__all__ = ["WAYS", "Seam", "Verdict", "Way", "accepted", "examine", "require_seams"]
