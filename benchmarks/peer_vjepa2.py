"""Meta's V-JEPA 2 code as a peer: one training step of theirs, from a checkout that the caller names.

Nothing of it is copied here; its modules are imported from there, and its step is made of the same calls as
its own training loop makes.
"""

from __future__ import annotations

import copy
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.config import RunConfig
from pretrain.masks import Masks

Lists = list[list[Tensor]]


class PeerStep:
    """Their encoder, predictor, target and optimizer, of the same sizes as a run's.

    checkout: of their repository. Raises: ImportError when it is no such checkout.
    """

    def __init__(self, checkout: Path, config: RunConfig, device: torch.device, dtype: torch.dtype) -> None:
        if str(checkout) not in sys.path:
            sys.path.insert(0, str(checkout))
        encoders, predictors = (
            import_module("src.models.vision_transformer"),
            import_module("src.models.predictor"),
        )
        wrappers = import_module("src.utils.wrappers")
        self._apply_masks: Any = import_module("src.masks.utils").apply_masks
        model, data = config.model, config.data
        width, depth, heads, ratio = model.encoder.shape
        shared = {
            "img_size": (data.size, data.size), "patch_size": model.encoder.patch, "num_frames": data.frames,
            "tubelet_size": model.encoder.tubelet, "use_sdpa": True, "use_rope": True,
        }  # fmt: skip
        torch.manual_seed(0)
        norm = lambda size: torch.nn.LayerNorm(size, eps=1e-6)  # noqa: E731
        self.encoder = wrappers.MultiSeqWrapper(
            encoders.VisionTransformer(
                embed_dim=width, depth=depth, num_heads=heads, mlp_ratio=ratio, norm_layer=norm, **shared
            )
        ).to(device)
        self.predictor = wrappers.PredictorMultiSeqWrapper(
            predictors.VisionTransformerPredictor(
                embed_dim=width, predictor_embed_dim=model.predictor.width, depth=model.predictor.depth,
                num_heads=model.predictor.heads, norm_layer=norm, use_mask_tokens=True, num_mask_tokens=2,
                **shared,
            )
        ).to(device)  # fmt: skip
        self.target = copy.deepcopy(self.encoder)
        self._dtype, self._device, self._optim = dtype, device, config.optim
        named = [*self.encoder.named_parameters(), *self.predictor.named_parameters()]
        plain = [p for name, p in named if "bias" in name or p.ndim == 1]
        groups = [{"params": [p for name, p in named if "bias" not in name and p.ndim > 1]},
                  {"params": plain, "weight_decay": 0.0}]  # fmt: skip
        self._optimizer = torch.optim.AdamW(groups, lr=config.optim.lr, betas=config.optim.betas)

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for module in (self.encoder, self.predictor) for p in module.parameters())

    def lists(self, masks: Masks) -> tuple[Lists, Lists]:
        """Masks as their step takes them: kept and hidden tokens (B, K) of each kind. Of equal lengths."""
        kept = masks.kept_M.cpu() % masks.num_tokens
        hidden = masks.hidden_P.cpu() % masks.num_tokens
        rows = zip(
            kept.split(list(masks.kept_lengths)),
            hidden.split(list(masks.hidden_lengths)),
            masks.kinds,
            strict=True,
        )
        found: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        for row_K, row_P, kind in rows:
            found.setdefault(kind, ([], []))[0].append(row_K)
            found[kind][1].append(row_P)
        both = [
            [torch.stack(found[kind][side]).to(self._device) for kind in sorted(found)] for side in (0, 1)
        ]
        return [both[0]], [both[1]]

    def step(self, clips: Tensor, masks_enc: Lists, masks_pred: Lists, momentum: float) -> float:
        """One step: target, context, predictor, loss, backward, AdamW, moving average; the loss."""
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
            with torch.no_grad():
                whole = [F.layer_norm(h, (h.size(-1),)) for h in self.target([clips])]
            predicted = self.predictor(self.encoder([clips], masks_enc), masks_enc, masks_pred)
            wanted = [
                self._apply_masks(h, each, concat=False) for h, each in zip(whole, masks_pred, strict=True)
            ]
            pairs = [pair for z, h in zip(predicted, wanted, strict=True) for pair in zip(z, h, strict=True)]
            loss = sum(torch.mean(torch.abs(z - h)) for z, h in pairs) / len(pairs)
        assert isinstance(loss, Tensor)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        with torch.no_grad():
            moved, follows = list(self.target.parameters()), list(self.encoder.parameters())
            torch._foreach_mul_(moved, momentum)
            torch._foreach_add_(moved, follows, alpha=1.0 - momentum)
        return float(loss)
