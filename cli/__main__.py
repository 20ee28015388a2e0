"""`python -m pybackup.cli`."""

from pybackup.cli.program import main

main()
