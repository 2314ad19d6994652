"""What a registry that has no such version, refuses or is away is said to do."""

import mlflow
import pytest
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos import databricks_pb2 as codes

from holdfast.adapters.mlflow import registered_version
from holdfast.adapters.service import ServiceError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        # A registry in a database or on disk has no server whose answer it could be.
        (
            MlflowException("Registered alias not found.", codes.RESOURCE_DOES_NOT_EXIST),
            "has no models:/m@x: R",
        ),
        (
            MlflowException("Invalid alias name", codes.INVALID_PARAMETER_VALUE),
            "has no models:/m@x: Invalid alias",
        ),
        (RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no m"}), "has no models:/m@x: no m. See"),
        (RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": "alias x"}), "has no models:/m@x: alias x"),
        (
            RestException({"error_code": "PERMISSION_DENIED", "message": "no"}),
            "did not say what .*PERMISSION_DENIED, no",
        ),
        (RestException({"error_code": "INTERNAL_ERROR", "message": "disk"}), "did not say what .*INTERNAL_ERROR, disk"),
        (MlflowException("API request to http://ci:hunter2@registry/api failed"), "does not answer. Start it, or set"),
    ],
)
def test_each_answer_of_a_registry_is_told_apart(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    """Only one that does not answer is said not to answer; a login in the address is never shown."""

    class Client:
        def get_model_version_by_alias(self, *_: str) -> None:
            raise error

    monkeypatch.setattr(mlflow, "MlflowClient", Client)
    monkeypatch.setattr(mlflow, "get_registry_uri", lambda: "http://ci:hunter2@registry")
    with pytest.raises(ServiceError, match=f"^The MLflow registry at http://registry {said}") as refused:
        registered_version("models:/m@x")
    assert "hunter2" not in str(refused.value)
