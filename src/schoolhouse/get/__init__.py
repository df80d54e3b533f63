"""Getting open models: where from, what it is, whether it may be used."""
