"""Ordinary data sources and models that several papers share: small real data in memory, published layouts on disk.

Names are imported from their modules, so that importing the package, or its plugin, imports no torch:

* `plait_zoo.options`: the options of every source and model; the modules named after them have ``load`` or ``build``.
* `plait_zoo.mlp`, `plait_zoo.cnn`, `plait_zoo.vgg`, `plait_zoo.resnet`: networks with ``channel_groups``.
* `plait_zoo.splits`, `plait_zoo.transforms`: images in memory or on disk as splits; augmentation, normalisation.
* `plait_zoo.pickled`: arrays out of published pickles, of which nothing is run.
"""
