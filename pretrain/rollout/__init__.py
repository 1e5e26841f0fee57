"""A trained predictor rolled out: frames foreseen one from another, and how far they are from what came."""

from pretrain.rollout.measure import Rollout as Rollout
from pretrain.rollout.measure import measure_rollout as measure_rollout
from pretrain.rollout.model import Model as Model
from pretrain.rollout.model import load_model as load_model
from pretrain.rollout.position import PositionDecoder as PositionDecoder
from pretrain.rollout.position import fit_decoder as fit_decoder
