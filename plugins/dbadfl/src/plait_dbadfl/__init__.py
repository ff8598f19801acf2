"""Decentralized federations under distributed backdoors: attacks, scans and defences, in a closed simulation.

A method library in plain PyTorch. Importing this package imports no torch, so that its plugin is found fast; the names
are in the modules:

| module | what is there |
| --- | --- |
| `federation`, `options` | `Federation`: one evaluation, in plain PyTorch; every option |
| `topologies`, `mixing`, `engines` | graphs, W, and the schedules of steps and exchanges |
| `stacking`, `local` | N networks as one module, and how they train |
| `triggers`, `poisoning`, `arms`, `budgets` | what attackers do |
| `scan`, `shadows`, `predictor`, `detection`, `clustering` | how they find their distances |
| `defences` | the aggregation rules |
| `metrics`, `reference` | figures; digits and a perceptron |
"""

__version__ = "0.1.0"
