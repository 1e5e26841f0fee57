"""Whether this machine can take a run as it is configured: asked before any rank is started."""

from __future__ import annotations

from data_pipeline.errors import ConfigError, UsageError
from pretrain.config import RunConfig


def check_device(config: RunConfig, nproc: int) -> None:
    """More ranks than GPUs, where there are GPUs, is a mistake.

    Raises: ConfigError, UsageError.
    """
    import torch

    gpus = torch.cuda.device_count()
    if gpus and nproc > gpus:
        raise UsageError(f"--nproc {nproc} needs as many GPUs; this machine has {gpus}")
    attention = config.model.attention
    if not gpus and attention not in ("auto", "sdpa", "segments"):
        need = f"auto, sdpa or segments: {attention} runs on CUDA only"
        raise ConfigError("model.attention", got=attention, need=need, try_=("auto",))


def check_memory(config: RunConfig) -> None:
    """Raises: ConfigError when strategy.activation_memory is too small, before any rank is started."""
    if config.strategy.activation_checkpointing == "auto":
        import torch

        from pretrain.recompute import settled

        settled(config, "cuda" if torch.cuda.is_available() else "cpu")
