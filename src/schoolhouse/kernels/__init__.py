"""The few operations that decide speed, in plain torch."""
