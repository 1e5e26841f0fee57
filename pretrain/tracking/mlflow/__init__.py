"""MLflow: the only folder that imports it."""

from pretrain.tracking.mlflow.client import ARTIFACTS_FOLDER as ARTIFACTS_FOLDER
from pretrain.tracking.mlflow.client import DATABASE_FILE as DATABASE_FILE
from pretrain.tracking.mlflow.client import local_uri as local_uri
from pretrain.tracking.mlflow.client import make_client as make_client
from pretrain.tracking.mlflow.runs import RUN_FILE as RUN_FILE
from pretrain.tracking.mlflow.tracker import MlflowTracker as MlflowTracker
