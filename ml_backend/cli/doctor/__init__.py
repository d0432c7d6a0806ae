"""Says in plain words what is misconfigured: every check gives what it looked at, the result, and a hint."""
