"""FlameFinder: flames behind smoke by attentive deep metric learning (arXiv 2404.06653).

Importing this package imports no torch, so that its plugin is found fast; the names are in the modules:

| module | what is there |
| --- | --- |
| `finder` | `FlameFinder`, for any training loop |
| `encoder`, `attention`, `reconstruction` | the network with its latent vector, and what is put into or onto it |
| `losses`, `centres`, `terms` | CL, TCL and TCCL as plain modules, the centres and their decisions, all terms |
| `measures` | how good decisions are, and how well the classes are separated |
| `annotation`, `smoke`, `patches` | flame pixels and smoke in RGB frames, the grid of patches and data made of it |
| `synthesis`, `synthetic` | generated frames, and the data set made of them |
| `published`, `frames` | FLAME2 and FLAME3 as published, and their files |
| `options` | the options, and presets of what the method is compared with |
"""

__version__ = "0.1.0"
