"""Archives at URLs: object storage and other remote filesystems, through fsspec.

The packages that speak to a store are imported when one is named.
"""
