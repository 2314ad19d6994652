"""Which version an MLflow model registry names."""

import os
import re

from holdfast.adapters.service import ServiceError
from holdfast_schemas._base import NAME_PATTERN

VERSION_TAG = "holdfast.version"
"""A tag of the registered version that holds the name its predictions carry; without it they carry its number."""


NOT_THERE = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND", "ENDPOINT_NOT_FOUND"}
"""With which error codes a registry, also one on disk or in a database, says that it does not have what was named."""


def without_login(text: str) -> str:
    """The text with the user and password taken out of every address."""
    return re.sub(r"(?<=://)[^/?#\s]*@", "", text)


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
    registry = without_login(get_registry_uri())
    try:
        client = MlflowClient()
        found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    except MlflowException as error:
        # Its text may quote the whole address, and a login within it.
        reason = without_login(str(error.message).splitlines()[0].rstrip(".")).removeprefix(f"{error.error_code}: ")
        if error.error_code in NOT_THERE:
            raise ServiceError(
                f"The MLflow registry at {registry} has no {uri}: {reason}. "
                "See which models, versions and aliases it has, or set MLFLOW_TRACKING_URI."
            ) from None
        if isinstance(error, RestException):
            raise ServiceError(
                f"The MLflow registry at {registry} did not say what {uri} is: {error.error_code}, {reason}. "
                "Check its log, and the login (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or a token)."
            ) from None
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
