"""Tiny stages that behave like the real ones: they read artifacts, save where they are, and can be stopped."""

STAGES = {"toy.source": "toys.source", "toy.learn": "toys.learn", "toy.gather": "toys.gather"}
