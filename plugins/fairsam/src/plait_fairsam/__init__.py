"""FairSAM: fair classification on corrupted images through sharpness-aware minimization (arXiv 2503.22934).

Importing this package imports no torch, so that its plugin is found fast; the names are in the modules:

| module | what is there |
| --- | --- |
| `sam` | `FairSAM`, for any training loop |
| `gradients` | `ModelGradients`: the passes that it asks for |
| `weights` | instance weights by group and label |
| `metrics`, `corruptions` | fairness on corrupted copies of the test images |
| `baselines`, `presets` | what it is compared with |
| `perturbation` | the sweeps of sharpness-aware minimization, on lists of tensors |
"""

__version__ = "0.1.0"
