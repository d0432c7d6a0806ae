"""The whole stack as processes on one machine, for `scripts/up.sh` and for the tests."""
