"""Code systems become questions: the parts of `prepare.ontology`."""
