"""The measures of `evaluate.probe`."""
