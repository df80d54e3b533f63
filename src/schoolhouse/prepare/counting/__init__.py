"""Who is in the data: the parts of `prepare.coverage`."""
