"""Brain-image alignment by optimal transport, and captions of what a brain saw (arXiv 2503.10663).

Importing this package imports no torch, so that its plugin is found fast; the names are in the modules:

| module | what is there |
| --- | --- |
| `alignment` | `align(brain, image, options)`: every loss between two token sets |
| `transport` | exact plans of a sample, entropic partial plans of a batch |
| `encoder`, `tokenizer`, `perceiver` | `BrainEncoder`: voxels to tokens |
| `checkpoint` | weights in the published layout |
| `captioner`, `captions` | a frozen captioner that was trained on image tokens, and BLEU, ROUGE-L, CIDEr |
| `masking`, `information` | which regions are needed, sufficient, redundant, synergistic |
| `synthetic`, `haxby`, `published`, `regions` | generated brains, real ones with labels, NSD as published, regions |
| `options`, `presets` | the options, and what the method is compared with |
"""

__version__ = "0.1.0"
