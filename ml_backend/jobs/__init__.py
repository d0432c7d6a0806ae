"""Background work on RQ: the queue, the worker, and the jobs."""
