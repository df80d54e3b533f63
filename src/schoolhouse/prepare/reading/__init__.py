"""Files of many kinds become documents: the parts of `prepare.read`."""
