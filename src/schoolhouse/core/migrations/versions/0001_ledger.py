"""The first tables: runs, their stages, the figures of each stage, budgets."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "runs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("recipe", sa.String, nullable=False, index=True),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("recipe_toml", sa.Text, nullable=False),
        sa.Column("version", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("started_at", sa.String, nullable=False),
        sa.Column("ended_at", sa.String),
    )
    op.create_table(
        "stages",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("run_id", sa.String(32), sa.ForeignKey("runs.id"), nullable=False, index=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("artifact_id", sa.String(16), nullable=False, index=True),
        sa.Column("inputs_json", sa.Text, nullable=False),
        sa.Column("config_json", sa.Text, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("recorded_at", sa.String, nullable=False),
    )
    op.create_table(
        "figures",
        sa.Column("stage_id", sa.Integer, sa.ForeignKey("stages.id"), primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("value", sa.Float, nullable=False),
        sa.Column("unit", sa.String, nullable=False),
        sa.Column("how", sa.String, nullable=False),
        sa.Column("note", sa.String, nullable=False),
        sa.CheckConstraint("how IN ('measured', 'modelled', 'assumed')", name="how_it_was_got"),
    )
    op.create_table(
        "budgets",
        sa.Column("run_id", sa.String(32), sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("what", sa.String, primary_key=True),
        sa.Column("granted", sa.Float, nullable=False),
        sa.Column("spent", sa.Float, nullable=False),
        sa.Column("unit", sa.String, nullable=False),
    )


def downgrade() -> None:
    """Drop the tables."""
    for table in ("budgets", "figures", "stages", "runs"):
        op.drop_table(table)
