"""Ids of Label Studio."""

#: Largest id: they are 32 bits wide, in its database and in ours.
MAX_ID = (1 << 31) - 1
