"""Copy-before-write: what a guest overwrites during a backup is saved first."""
