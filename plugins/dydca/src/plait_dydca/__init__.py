"""Dy-DCA: one content-routed super-resolution network overfitted to one video (arXiv 2407.02813).

Importing this package imports no torch, so that its plugin is found fast; the names are in the modules:

| module | what is there |
| --- | --- |
| `options` | the options, the controls, and what the method is compared with |
| `clips`, `degradation` | videos at two resolutions, from files, folders, data sets and packages |
| `quadtree`, `routing` | which patches a frame is cut into, and which path each takes |
| `bodies`, `network` | the paths, and frames out of patches |
| `buckets`, `sources` | plait's data: frames, patches, batches of one shape |
| `measures` | every PSNR, and seams |
"""

__version__ = "0.1.0"
