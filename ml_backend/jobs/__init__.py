"""Background work: the queue, the tasks that run in it, and the worker."""
