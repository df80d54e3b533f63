"""How the ledger's tables came to be, one step a file; alembic applies what is missing when a ledger is opened."""
