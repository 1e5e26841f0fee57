"""MLflow: the only folder that imports it."""

from pretrain.tracking.mlflow.client import ARTIFACTS_FOLDER as ARTIFACTS_FOLDER
from pretrain.tracking.mlflow.client import DATABASE_FILE as DATABASE_FILE
from pretrain.tracking.mlflow.client import local_uri as local_uri
from pretrain.tracking.mlflow.client import make_client as make_client
from pretrain.tracking.mlflow.registry import ModelFacts as ModelFacts
from pretrain.tracking.mlflow.registry import Registered as Registered
from pretrain.tracking.mlflow.registry import check_name as check_name
from pretrain.tracking.mlflow.registry import check_run as check_run
from pretrain.tracking.mlflow.registry import register as register
from pretrain.tracking.mlflow.runs import RUN_FILE as RUN_FILE
from pretrain.tracking.mlflow.tracker import MlflowTracker as MlflowTracker
