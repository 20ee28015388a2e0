"""`python -m pybackup.cli`."""

from pybackup.cli.main import main

main()
