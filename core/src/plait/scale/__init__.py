"""One recipe on many processes: who is where, what the processes tell each other, and how they are started.

Importing this package imports no torch. ``processes`` reads the environment, ``launching`` starts processes on this
machine, ``ranks`` lets the processes of one run agree and fail together, ``gathering`` shares work and results between
them, ``sharded`` spreads the parameters themselves (FSDP).
"""
