"""The generation engine: one for rollouts, evaluation and chat."""
