"""Text that knows no tensors: records, the tokenizer, the chat format and the form of a reply."""
