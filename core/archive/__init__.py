"""Archives as they are written and read: clusters in, bytes out, and back."""
