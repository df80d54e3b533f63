"""How a model becomes small and cheap."""
