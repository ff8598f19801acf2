"""BiFP: fair pruning as one bi-level problem over mask and weights (arXiv 2312.10181).

Importing this package imports no torch, so that its plugin is found fast; the names are in the modules:

| module | what is there |
| --- | --- |
| `bifp` | `BiFP`, for any training loop |
| `engine` | `BiFPEngine`: scores and masks, exactly k units at every step |
| `options`, `presets` | the options, the ablations, and what the method is compared with |
| `relaxation` | surrogates of the gap between groups, their bounds, and penalties |
| `hypergradient` | the gradient with respect to the mask |
| `selection`, `schedule` | exact top-k with floors, and how many units stay at which step |
| `units`, `channels` | single weights, and whole channels that are removed physically |
| `importance` | the scores of SNIP, FPGM and FairGRAPE |
| `measures` | accuracy gap, degradation gap, demographic parity, equal opportunity, equalised odds |
| `barrier` | the loss on the line between two networks |
"""

__version__ = "0.1.0"
