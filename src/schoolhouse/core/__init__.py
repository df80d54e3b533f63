"""The foundation: errors, recipes, artifacts, the ledger, the meter, the machine, the log."""
