"""Data as plait sees it: splits that hand out whole batches, and streams of them."""

from plait.data.batches import Batch, ByShape, Split, Subset, TensorSplit
from plait.data.dataset import Data, DataInfo

__all__ = ["Batch", "ByShape", "Data", "DataInfo", "Split", "Subset", "TensorSplit"]
