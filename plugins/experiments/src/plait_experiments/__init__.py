"""Many runs instead of one: a paper's claims, sweeps, and comparisons of runs. Importing this imports nothing else.

- `plait_experiments.verification`: ``verify`` runs what claims need, and judges them.
- `plait_experiments.schema`: ``load`` reads a plugin's ``claims.toml``.
- `plait_experiments.experiment`: ``check`` tries the arms of a claims file without running them.
- `plait_experiments.sweep`: ``sweep`` runs a recipe at many points, or searches for the best.
- `plait_experiments.statistics`: means, paired differences and their intervals over seeds.
- `plait_experiments.power`: ``plan`` counts the seeds that a verdict takes.
"""
