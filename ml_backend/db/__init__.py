"""The database: tables, migrations, and access to them."""
