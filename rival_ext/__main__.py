"""`python -m rival_ext PHOTO --out DIR`."""

from rival_ext.cli import main

main()
