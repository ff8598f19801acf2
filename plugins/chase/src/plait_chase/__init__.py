"""Chase: dynamic sparse training that ends in a physically smaller network.

Yin et al., "Dynamic Sparsity Is Channel-Level Sparsity Learner", NeurIPS 2023, arXiv:2305.19454.

Importing this package imports no torch, so that its plugin is found fast; the names are in the modules:

| module | what is there |
| --- | --- |
| `chase` | `Chase`, for any training loop; `initialise` |
| `config`, `presets` | `ChaseConfig`; the baselines as sets of options |
| `engine` | `ChaseEngine`: which masks and channels live, on plain tensors |
| `channels`, `groups`, `shrink` | channels that must go together, and the network without them |
| `erk`, `scores`, `flops`, `timing` | densities, channel scores, costs |
| `vgg`, `residual`, `yardsticks` | networks, and other ways to prune |
"""

__version__ = "0.1.0"
