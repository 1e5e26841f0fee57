"""The model card beside exported weights: what they are, where they are from, how to use them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pretrain.weights.base import Description, Weights

UNKNOWN = "not known"


def own_card(weights: Weights) -> str:
    """README.md of our own folder."""
    use = """```python
import torch
from pretrain.features import Encoder

encoder = Encoder.from_pretrained("this folder")
clips_BTHWC = torch.zeros({clips}, dtype=torch.uint8)
tokens_BND = encoder(clips_BTHWC)  # one feature a tubelet
```

`foreframe export` brings this folder into transformers' layout: `--format huggingface`."""
    description = weights.description
    clips = f"1, {description.clips.frames}, {description.clips.size}, {description.clips.size}, 3"
    return _card(weights, "foreframe", use.format(clips=clips), [])


def huggingface_card(weights: Weights) -> str:
    """README.md of a folder that transformers loads."""
    use = """```python
from transformers import AutoModel

model = AutoModel.from_pretrained("this folder")
features = model(pixel_values_videos=videos_BTCHW, skip_predictor=True).last_hidden_state
```

Clips are {frames} frames of {size} × {size}, as `video_preprocessor_config.json` says."""
    clips = weights.description.clips
    notes = [
        "transformers counts rows and columns by `crop_size`: feed it squares of that size.",
        "The predictor's mask tokens lie in the order of mask kinds; transformers takes the second, unless "
        "its predictor is called with a mask_index.",
    ]
    return _card(weights, "transformers", use.format(frames=clips.frames, size=clips.size), notes)


def _card(weights: Weights, library: str, use: str, notes: list[str]) -> str:
    description = weights.description
    name = description.provenance.get("name") or "weights"
    width, depth, _, _ = description.model.encoder.shape
    sections = [
        f"---\nlibrary_name: {library}\ntags: [video, v-jepa, self-supervised, foreframe]\n---",
        f"# {name}: a video encoder of {depth} blocks, {width} wide",
        "Trained on videos, without labels"
        + (", with the predictor it was trained with." if description.predictor else "."),
        _table(_facts(weights)),
        f"## Use\n\n{use}",
        "## Where it is from\n\n" + _table(_provenance(description)),
        "## Limits\n\n"
        + "\n".join(
            f"- {note}"
            for note in [
                "Features alone: it names nothing and generates nothing. What they tell must be measured on "
                "the task; no scores are claimed here.",
                "Licence and terms are those of the run's owner, or of the weights that were imported.",
                *notes,
            ]
        ),
    ]
    return "\n\n".join(sections) + "\n"


def _facts(weights: Weights) -> dict[str, Any]:
    description = weights.description
    model, clips = description.model, description.clips
    width, depth, heads, _ = model.encoder.shape
    positions = {
        "none": "fixed sines and cosines, added (V-JEPA)",
        "vjepa2": "3D rotary, as V-JEPA 2 released it",
        "interleaved": "3D rotary, interleaved (V-JEPA 2.1)",
    }[model.encoder.rope]
    millions = {
        part: sum(tensor.numel() for tensor in weights.part(part).values()) / 1e6
        for part in ("encoder", "predictor")
    }
    facts: dict[str, Any] = {
        "encoder": f"ViT, width {width}, {depth} blocks, {heads} heads, "
        f"{millions['encoder']:.1f} M parameters",
        "tokens": f"{model.encoder.tubelet} × {model.encoder.patch} × {model.encoder.patch} pixels each, "
        f"grid {' × '.join(str(n) for n in description.grid)}",
        "positions": positions,
        "clips": f"{clips.frames} frames of {clips.size} × {clips.size}"
        + (f" at {clips.fps:g} frames a second" if clips.fps else ""),
        "pixels": f"RGB in 0 to 1, mean {list(description.normalisation.mean)}, "
        f"deviation {list(description.normalisation.std)}",
    }
    if description.predictor is not None:
        kind = {"masked": "fills hidden tokens in", "action": "says what comes next from actions"}
        facts["predictor"] = (
            f"{kind[description.predictor.kind]}: width {model.predictor.width}, {model.predictor.depth} "
            f"blocks, {model.predictor.heads} heads, {millions['predictor']:.1f} M parameters"
        )
    if description.masks:
        facts["masks"] = "; ".join(_words(mask) for mask in description.masks)
    return facts


def _provenance(description: Description) -> dict[str, Any]:
    return description.provenance or {"source": UNKNOWN}


def _words(plain: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in plain.items() if value is not None)


def _table(rows: Mapping[str, Any]) -> str:
    lines = ["| | |", "|---|---|"]
    for key, value in rows.items():
        text = UNKNOWN if value is None else str(value)
        lines.append(f"| {key.replace('_', ' ')} | {text.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)
