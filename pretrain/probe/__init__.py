"""What frozen features tell of states, labels and videos, after training and while it goes on."""

from pretrain.probe.clips import open_splits as open_splits
from pretrain.probe.offline import Asked as Asked
from pretrain.probe.offline import run_probe as run_probe
from pretrain.probe.result import Progress as Progress
from pretrain.probe.result import read_json as read_json
from pretrain.probe.result import read_probe as read_probe
