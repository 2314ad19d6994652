"""Which version an MLflow model registry names."""

import os
import re

from holdfast.adapters.service import ServiceError
from holdfast_schemas._base import NAME_PATTERN

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
    # MLflow's own would be minutes in front of a registry that is away.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    try:
        from mlflow import MlflowClient, get_registry_uri
        from mlflow.exceptions import MlflowException, RestException
    except ImportError:
        raise ServiceError("MLflow is not installed. Install it beside Holdfast: pip install mlflow-skinny") from None
    name, alias, number = match.groups()
    registry = re.sub(r"(?<=://)[^/?#]*@", "", get_registry_uri())
    try:
        client = MlflowClient()
        found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    except RestException as error:
        raise ServiceError(
            f"The MLflow registry at {registry} has no {uri}: {error.message.splitlines()[0].rstrip('.')}. "
            "See which models, versions and aliases it has, or set MLFLOW_TRACKING_URI."
        ) from None
    except MlflowException:
        # Its text quotes the whole address, and a login within it.
        raise ServiceError(
            f"The MLflow registry at {registry} does not answer. Start it, or set MLFLOW_TRACKING_URI."
        ) from None
    version = str(found.tags.get(VERSION_TAG, found.version))
    if re.fullmatch(NAME_PATTERN, version) is None:
        raise ServiceError(
            f"{uri} has the tag {VERSION_TAG}={version!r}, which is no version. Set it to what the predictions carry: "
            "up to 200 letters, digits and . _ : @ + / - with a letter or digit first."
        )
    return version
