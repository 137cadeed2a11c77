"""MLflow as a view of the output store, which can be made again at any time. No other package imports MLflow."""

import os
import warnings

SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # at MLflow's defaults a call to an absent server takes minutes to fail
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",  # a kept connection goes on writing into a deleted database
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Environment variables of MLflow, which reads some of them when it is imported."""

for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)
warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType", UserWarning)  # MLflow, of its own types
