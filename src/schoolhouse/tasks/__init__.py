"""Questions with checkable answers; a task never sees a model."""
