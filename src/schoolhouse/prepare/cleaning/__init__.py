"""The rules of `prepare.clean`."""
