"""The action-conditioned predictor: each moment's features from the moments before, actions and states.

A moment is a row of tokens [action, state, patches]. A token sees its own moment and those before; the
patches of moment t are turned into what is said of moment t + 1, or, where the future's patches are mask
tokens, of t itself. Actions and states stand at their moment in time and nowhere in the picture.
Source: V-JEPA 2, arXiv:2506.09985, sec. 3.1 and appendix B.

With `told: added` there are no tokens but patches: actions and states are added to each of them, as every
patch of DINO-WM is given its action (arXiv:2411.04983). With `says: change` the answer is what is
added to the features that came in; its last layer begins at zero, so the first answer is a copy.

Shapes: B clips, t moments, P patches a moment, D encoder width, E predictor width, A and S action and state
size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretrain.config import EncoderConfig, PredictorConfig
from pretrain.model.attention import Backend, equal_packing
from pretrain.model.linear import Linear
from pretrain.model.positions import Grid
from pretrain.model.vit import Transformer


class ActionPredictor(Transformer):
    """Features of moments, actions and states to one prediction for each patch of each moment.

    action_size, state_size: 0 leaves that token out. has_mask_token: unknown patches may be asked for.
    """

    def __init__(
        self,
        config: PredictorConfig,
        encoder: EncoderConfig,
        grid: Grid,
        action_size: int,
        state_size: int,
        backend: Backend = "sdpa",
        *,
        has_mask_token: bool = False,
    ) -> None:
        super().__init__(
            config.width, config.depth, config.heads, 4.0, grid, encoder.rope, backend,
            rope_span=encoder.rope_span,
        )  # fmt: skip
        width = encoder.shape[0]
        self.is_added, self.says_change = config.told == "added", config.says == "change"
        self.action_scale = config.action_scale
        assert not (self.says_change and has_mask_token), "what is not known cannot change"
        self.embed = Linear(width, config.width)
        self.embed_action = Linear(action_size, config.width) if action_size else None
        self.embed_state = Linear(state_size, config.width) if state_size else None
        self.mask_token = nn.Parameter(torch.empty(config.width)) if has_mask_token else None
        self.out = Linear(config.width, width)

    def forward(
        self,
        features_BtPD: Tensor,
        actions_BtA: Tensor | None = None,
        states_BtS: Tensor | None = None,
        is_known_Bt: Tensor | None = None,
    ) -> Tensor:
        """Predictions (B, t, P, D). is_known_Bt: False where mask tokens stand for a moment's features."""
        assert (self.embed_action is None) == (actions_BtA is None), "told exactly when they are embedded"
        assert (self.embed_state is None) == (states_BtS is None), "told exactly when they are embedded"
        x_BtPE = self.embed(features_BtPD.to(self.embed.weight.dtype))
        if actions_BtA is not None and self.action_scale != 1.0:
            actions_BtA = actions_BtA / self.action_scale
        batch, moments, patches, width = x_BtPE.shape
        if is_known_Bt is not None:
            assert self.mask_token is not None
            x_BtPE = torch.where(is_known_Bt[..., None, None], x_BtPE, self.mask_token.to(x_BtPE.dtype))
        told = [
            embed(given.to(x_BtPE.dtype))[:, :, None]
            for embed, given in ((self.embed_action, actions_BtA), (self.embed_state, states_BtS))
            if embed is not None and given is not None
        ]
        if self.is_added:
            x_BtPE, told = sum(told, x_BtPE), []
        x_BtLE = torch.cat([*told, x_BtPE], dim=2)
        length = x_BtLE.shape[2]
        patch_P = torch.arange(patches, device=x_BtLE.device)
        own_L = torch.cat([patch_P.new_zeros(len(told)), patch_P])
        token_tL = torch.arange(moments, device=own_L.device)[:, None] * patches + own_L
        # Fewer moments than it was made for are the first ones: a table of sines is not stretched over them.
        grid = (max(moments, self.grid[0]), *self.grid[1:])
        if (added_ND := self.positions(grid, x_BtLE.device)) is not None:
            x_BtLE = x_BtLE + added_ND.to(x_BtLE.dtype)[token_tL]
        packing = equal_packing(batch, moments * length, x_BtLE.device, frame=length)
        out = self.run(x_BtLE.reshape(-1, width), token_tL.flatten().repeat(batch), packing, grid)
        said_BtPD: Tensor = self.out(out.view(batch, moments, length, width)[:, :, len(told) :])
        return said_BtPD + features_BtPD.to(said_BtPD.dtype) if self.says_change else said_BtPD

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, std: float = 0.02) -> None:
        super().initialise(generator, std)
        if self.says_change:
            nn.init.zeros_(self.out.weight)
        if self.mask_token is not None:
            nn.init.zeros_(self.mask_token)
