"""Robust aggregation at every node of a federation without a server. Card, baselines and defences."""

from plait_dbadfl.defences.aggregation import DEFENCES as DEFENCES
from plait_dbadfl.defences.aggregation import RobustAggregation as RobustAggregation
from plait_dbadfl.defences.aggregation import make_defence as make_defence
from plait_dbadfl.defences.base import Block as Block
from plait_dbadfl.defences.base import Defence as Defence
from plait_dbadfl.defences.base import Losses as Losses
from plait_dbadfl.defences.base import Verdict as Verdict
from plait_dbadfl.defences.base import require_finite as require_finite
from plait_dbadfl.defences.clipping import NormClipping as NormClipping
from plait_dbadfl.defences.clipping import SelfCentredClipping as SelfCentredClipping
from plait_dbadfl.defences.coordinatewise import Mean as Mean
from plait_dbadfl.defences.coordinatewise import Median as Median
from plait_dbadfl.defences.coordinatewise import TrimmedMean as TrimmedMean
from plait_dbadfl.defences.geometric import RFA as RFA
from plait_dbadfl.defences.geometric import Krum as Krum
from plait_dbadfl.defences.geometric import MultiKrum as MultiKrum
from plait_dbadfl.defences.selection import Balance as Balance
from plait_dbadfl.defences.selection import Ubar as Ubar
from plait_dbadfl.defences.similarity import Flame as Flame
from plait_dbadfl.defences.similarity import FoolsGold as FoolsGold
