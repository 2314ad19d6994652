"""Which version an MLflow model registry names."""

import re

from holdfast.adapters.service import ServiceError

VERSION_TAG = "holdfast.version"
"""A tag of the registered version that holds the name its predictions carry; without it they carry its number."""


def registered_version(uri: str) -> str:
    """The version name behind `models:/NAME@ALIAS` or `models:/NAME/NUMBER`.

    The registry is the one that MLflow is configured for (MLFLOW_TRACKING_URI or MLFLOW_REGISTRY_URI). Raises
    ServiceError.
    """
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if match is None:
        raise ServiceError(f"{uri} names no registered version. Write models:/NAME@ALIAS or models:/NAME/NUMBER.")
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise ServiceError("MLflow is not installed. Install it with: pip install 'holdfast[mlflow]'") from None
    name, alias, number = match.groups()
    client = MlflowClient()
    try:
        found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    except MlflowException as error:
        raise ServiceError(
            f"The MLflow registry has no {uri}: {str(error).splitlines()[0]}. "
            "See its models, or set MLFLOW_TRACKING_URI."
        ) from None
    return str(found.tags.get(VERSION_TAG, found.version))
