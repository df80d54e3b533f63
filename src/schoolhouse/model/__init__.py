"""The network: tensors that know no text."""
