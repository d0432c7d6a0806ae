"""Remember which repairs were made at once, and are undone at once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("repairs", sa.Column("batch", sa.Integer, nullable=False, server_default=sa.text("0")))
    op.create_index("ix_repairs_batch", "repairs", ["batch"])
