"""A credential in --storage is refused with where to put it, and no output repeats it."""

import pytest

from prefsweep.orchestrator.state.hints import hint
from prefsweep.orchestrator.store.credentials import redacted, refuse_credentials
from prefsweep.orchestrator.store.root import absolute, open_storage
from prefsweep.sweeps.errors import UsageError
from tests.unit.orchestrator.test_cli import prefsweep

AWS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
AZURE = "AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET"
REFUSED = {
    "s3://AKIAXYZ:s3cr3t@bucket/runs": AWS,
    "s3://AKIAXYZ:s3c/r3t@bucket/runs": AWS,
    "s3://AKIAXYZ:s3c?r3t@bucket/runs": AWS,
    "s3://s3cr3t@bucket": AWS,
    "S3://s3cr3t@bucket": AWS,
    "s3:/AKIAXYZ:s3cr3t@bucket/runs": AWS,
    "s3://bucket/runs?endpoint_override=user:s3cr3t@host:9000&scheme=http": AWS,
    "s3://bucket/runs?endpoint_override=http%3A%2F%2Fuser%3As3cr3t%40host": AWS,
    "s3://bucket/runs?region=eu&session_token=s3cr3t": AWS,
    "s3://bucket/runs?X-Amz-Signature=s3cr3t": AWS,
    "s3://bucket/runs#secret_key=s3cr3t": AWS,
    "gs://bucket/runs?access_token=s3cr3t": "GOOGLE_APPLICATION_CREDENTIALS",
    "abfs://container@account.dfs.core.windows.net/runs?sv=2024&sig=s3cr3t": AZURE,
    "abfss://:s3cr3t@account/container": AZURE,
    "az://container/runs?sas_token=s3cr3t": "AZURE_STORAGE_SAS_TOKEN",
    "https://account.blob.core.windows.net/c?sv=2024;sig=s3cr3t": "that its file system reads",
    "hdfs://user:s3cr3t@host/runs": "that its file system reads",
    "hdfs://user:s3c/r3t@host/runs": "that its file system reads",
    "memory://runs?password=s3cr3t": "that its file system reads",
}


@pytest.mark.parametrize("storage", REFUSED)
@pytest.mark.parametrize("use", [open_storage, absolute, lambda uri: hint("status", storage=uri)])
def test_a_credential_is_refused_with_the_variables_that_take_its_place(
    storage: str, use: object
) -> None:
    assert callable(use)
    with pytest.raises(UsageError, match=REFUSED[storage]) as refused:
        use(storage)
    assert not any(part in str(refused.value) for part in ("s3cr3t", "s3c", "r3t", "AKIA"))


@pytest.mark.parametrize(
    "storage",
    [
        "s3://bucket/runs?endpoint_override=s3:9000&scheme=http&region=eu-central-1",
        "s3://bucket/me@home/runs",
        "abfs://container@account.dfs.core.windows.net/runs?blob_storage_authority=127.0.0.1",
        "hdfs://user@host:8020/runs",
        "gs://bucket/runs",
        "memory://runs",
        "/home/me@work/runs",
        "./a:b@c/runs",
    ],
)
def test_what_is_no_credential_is_let_through(storage: str) -> None:
    refuse_credentials(storage)


@pytest.mark.parametrize(
    "words",
    [
        ["status", "mine", "--storage"],
        ["resume", "mine", "--storage"],
        ["submit", "quickstart", "--address", "http://head:8265", "--storage"],
        ["compare", "a", "b", "--other-storage"],
        ["run", "quickstart", "--storage"],
        ["doctor", "--storage"],
        ["status", "mine"],  # what was meant for --storage, as one word too many
        ["run"],
    ],
)
def test_no_command_repeats_a_credential(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert prefsweep(monkeypatch, *words, "s3://AKIAXYZ:s3cr3t@bucket/runs?sig=s1gn3d") != 0
    said = "".join(capsys.readouterr())
    assert said and not any(secret in said for secret in ("s3cr3t", "AKIAXYZ", "s1gn3d"))


def test_an_address_with_a_password_is_told_without_it() -> None:
    message = "no Ray dashboard answers at http://me:s3cr3t@head:8265?token=s3cr3t (timed out)"
    expected = "no Ray dashboard answers at http://***@head:8265?token=*** (timed out)"
    assert redacted(message) == expected
    untouched = "policy.model=org/model@main: see https://host/a?b=c and me@host"
    assert redacted(untouched) == untouched
