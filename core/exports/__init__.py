"""Devices offered to other programs; one way of offering a module."""
