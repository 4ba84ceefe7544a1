"""`python -m rival_ext PHOTO --out DIR`."""

import os

# before torch is imported: on a busy machine threads that spin while waiting make every step many times slower
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from rival_ext.cli import main

main()
