"""What a user names: where a disk is read, where an archive lies, where a drive is restored to.

A name is a string at the edge alone: parsing.py makes a place of it (kinds.py) or refuses it, and behind the edge there
are places only. Whoever acts on one looks at its class. CONTRIBUTING.md lists
what a new kind of source needs.
"""
