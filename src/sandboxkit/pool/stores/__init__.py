"""Where session rows live: memory now; SQLite and Postgres later."""
