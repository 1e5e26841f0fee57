"""Pictures of steps as MLflow's charts show them: one chart a name, with a slider over the steps.

MLflow's own log_image shows a copy of 256 pixels, in which words and tokens of a sheet cannot be told. Its
charts find pictures by their names among the artifacts, so the same two files are written here, with a copy
as large as the sheet.
"""

from __future__ import annotations

import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.tracking.mlflow.client import now_ms
from pretrain.tracking.sender import LeftOutError

if TYPE_CHECKING:
    from mlflow import MlflowClient

Shown = set[tuple[str, int]]  # (file name without its ending, step)

FOLDER, GROUP = "images", "pictures"  # among the artifacts; the section of the charts
SHOWN_TAG = "mlflow.loggedImages"  # tells the page that there are pictures to ask for
SMALL = "+compressed.webp"  # is sent last: a picture that has it is whole
MAX_SIDE = 1200


def log_image(client: MlflowClient, run_id: str, path: Path, step: int) -> None:
    """Send a PNG as that of a step; the same file name at several steps is one chart.

    Raises: LeftOutError when it cannot be read; what the client raises.
    """
    from PIL import Image

    name = f"{GROUP}~{path.stem}+step+{step}+timestamp+{now_ms()}+{uuid.uuid4()}"
    with tempfile.TemporaryDirectory(prefix="foreframe-picture-") as folder:
        whole, small = Path(folder, f"{name}.png"), Path(folder, f"{name}{SMALL}")
        try:
            data = path.read_bytes()
            with Image.open(path) as picture:
                shown = picture.convert("RGBA")
        except (OSError, SyntaxError, ValueError) as error:  # all three are what PIL says of a damaged file
            raise LeftOutError(str(error)) from error
        shown.thumbnail((MAX_SIDE, MAX_SIDE))
        whole.write_bytes(data)
        shown.save(small, "WEBP", quality=80)
        for file in (whole, small):
            client.log_artifact(run_id, str(file), FOLDER)
    client.set_tag(run_id, SHOWN_TAG, "true")


def shown_images(client: MlflowClient, run_id: str) -> Shown:
    """The pictures of steps that a run has already, as their names say."""
    found = (Path(file.path).name for file in client.list_artifacts(run_id, FOLDER))
    parts = [name.removeprefix(f"{GROUP}~").split("+") for name in found if name.endswith(SMALL)]
    return {
        (part[0], int(part[2])) for part in parts if len(part) > 2 and part[1] == "step" and part[2].isdigit()
    }
