"""The local stack of `scripts/up.sh`, which tests use too."""
