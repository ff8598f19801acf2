"""Data as plait sees it: splits that hand out whole batches, and streams of them."""

from plait.data.batches import Batch, Data, DataInfo, Split, Subset, TensorSplit

__all__ = ["Batch", "Data", "DataInfo", "Split", "Subset", "TensorSplit"]
