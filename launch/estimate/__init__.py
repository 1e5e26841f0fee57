"""`foreframe estimate`: what a run takes, before it is started."""

from launch.estimate.gpus import gpu_of as gpu_of
from launch.estimate.stated import Stated as Stated
from launch.estimate.text import lines as lines
from launch.estimate.whole import Estimate as Estimate
from launch.estimate.whole import estimate as estimate
