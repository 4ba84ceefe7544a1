"""Tests: unit (no host), host (the contract, on a stand-in and a real WebUI), browser (a real page)."""

import os

# before torch is imported: threads that spin while waiting slow each other down on a shared machine
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
