"""Training data: from records, documents and tasks to conversations."""
