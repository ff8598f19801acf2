"""FlameFinder: flames behind smoke by attentive deep metric learning (arXiv 2404.06653).

Importing this package imports no torch, so that its plugin is found fast; the names are in the modules:

| module | what is there |
| --- | --- |
| `finder` | `FlameFinder`, for any training loop |
| `encoder`, `attention`, `decoder` | the network with its latent vector, and what is put into or onto it |
| `losses`, `centres`, `terms` | CL, TCL and TCCL as plain modules, the centres, and all terms together |
| `detection`, `measures` | decisions by classifier or centres, and how good they are |
| `annotation`, `smoke`, `patches` | flame pixels and smoke in RGB frames, and the grid of patches |
| `synthesis`, `synthetic` | generated frames, and the data set made of them |
| `published`, `frames` | FLAME2 and FLAME3 as published, and their files |
| `options`, `presets` | the options, and what the method is compared with |
"""

__version__ = "0.1.0"
