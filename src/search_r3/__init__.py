"""Search-R3: a language model that reasons about a query and emits its embedding."""

import os

# Read once, when torch loads OpenMP: a thread that waits then sleeps. Two spinning threads on a machine on
# which something else runs made a step up to eight times slower. A value that the user has set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
