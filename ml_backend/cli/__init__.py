"""Command-line tools: the local stack, the doctor, and helpers of the scripts."""
