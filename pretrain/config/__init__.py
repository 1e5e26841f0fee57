"""The settings of a training run, by section; `run.py` puts them together and plans a world size."""

from pretrain.config.base import Section as Section
from pretrain.config.data import AugmentConfig as AugmentConfig
from pretrain.config.data import DataConfig as DataConfig
from pretrain.config.data import SourceConfig as SourceConfig
from pretrain.config.model import PRESETS as PRESETS
from pretrain.config.model import EncoderConfig as EncoderConfig
from pretrain.config.model import ModelConfig as ModelConfig
from pretrain.config.model import PredictorConfig as PredictorConfig
from pretrain.config.objective import PUBLISHED_MASKS as PUBLISHED_MASKS
from pretrain.config.objective import MaskConfig as MaskConfig
from pretrain.config.objective import MaskedLatentConfig as MaskedLatentConfig
from pretrain.config.run import Plan as Plan
from pretrain.config.run import RunConfig as RunConfig
from pretrain.config.run import plan as plan
from pretrain.config.training import DeepSpeedConfig as DeepSpeedConfig
from pretrain.config.training import HealthConfig as HealthConfig
from pretrain.config.training import InitConfig as InitConfig
from pretrain.config.training import OptimConfig as OptimConfig
from pretrain.config.training import ProbeConfig as ProbeConfig
from pretrain.config.training import RecomputedConfig as RecomputedConfig
from pretrain.config.training import RollbackConfig as RollbackConfig
from pretrain.config.training import SingleConfig as SingleConfig
from pretrain.config.training import TargetConfig as TargetConfig
from pretrain.config.training import TrackerConfig as TrackerConfig
from pretrain.config.training import TrainConfig as TrainConfig
