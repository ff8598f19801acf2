"""Data as plait sees it: splits that hand out whole batches, and streams of them."""

from plait.data.batches import Batch, Split, Subset, TensorSplit
from plait.data.dataset import Data, DataInfo

__all__ = ["Batch", "Data", "DataInfo", "Split", "Subset", "TensorSplit"]
