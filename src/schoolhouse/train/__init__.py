"""Teaching: one loop, one objective a module."""
