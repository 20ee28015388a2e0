"""Who may read archives: the keys that were given, and the sink that encrypts for their recipients."""
