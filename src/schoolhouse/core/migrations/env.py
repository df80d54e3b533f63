"""The entry point that alembic runs; the ledger hands it an open connection, so that all steps are one transaction."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
