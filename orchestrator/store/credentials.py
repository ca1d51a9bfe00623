"""Refuses storage URIs that contain credentials, and removes credentials from messages."""

import re
from collections.abc import Iterator, Mapping
from urllib.parse import parse_qsl, urlsplit

from prefsweep.sweeps.errors import UsageError

_AWS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_GOOGLE = "GOOGLE_APPLICATION_CREDENTIALS"
_AZURE = "AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET"
_VARIABLES: Mapping[str, str] = {
    "s3": _AWS,
    "gs": _GOOGLE,
    "gcs": _GOOGLE,
    "abfs": _AZURE,
    "abfss": _AZURE,
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_ACCOUNT_KEY",
}
"""Scheme -> the environment variables from which its file system reads credentials."""
_KEYED = ("s3", "gs", "gcs")
"""Schemes in which the text before an @ is a key; in others it is a user or a container."""
_CREDENTIAL = r"[\w.-]*(?:sig|sas|token|secret|passw|pwd|cred|key|auth(?!ority))[\w.-]*"
"""Names of query parameters whose values are secrets."""
_IS_CREDENTIAL = re.compile(_CREDENTIAL, re.IGNORECASE)
_USER = re.compile(r"(://|[?&;][\w.-]+=(?:\w+://)?)[^/?&;\s]*(?:@|%40)", re.IGNORECASE)
_VALUE = re.compile(rf"([?&;#]{_CREDENTIAL}=)[^&;#\s]*", re.IGNORECASE)


def refuse_credentials(uri: str) -> None:
    """Raises UsageError if a storage URI contains credentials. The message does not repeat them.

    They are refused because the URI is written to files and logs and sent to workers and jobs.
    """
    found = list(dict.fromkeys(_credentials(uri)))
    if not found:
        return
    scheme = uri.partition(":")[0].lower()
    known = "; ".join(f"{key}://: {names}" for key, names in _VARIABLES.items())
    variables = _VARIABLES.get(scheme, f"the variables that its file system reads ({known})")
    raise UsageError(
        f"--storage contains {' and '.join(found)}, which would be written to files and logs. "
        f"Remove it, and set in the environment of the driver and of every node: {variables}"
    )


def redacted(text: str) -> str:
    """The message with the users, passwords and credentials of its URIs replaced by ***."""
    return _VALUE.sub(r"\1***", _USER.sub(r"\1***@", text))


def _credentials(uri: str) -> Iterator[str]:
    """Describes each credential in a URI."""
    scheme, slashes = uri.partition(":")[0].lower(), re.match(r"[A-Za-z][\w+.-]+:/+", uri)
    if slashes is None:  # a path
        return
    place = re.split(r"[/?#]", uri[slashes.end() :])[0]
    user, at, _ = place.rpartition("@")
    port = place.rpartition(":")[2] if ":" in place else ""
    is_cut = not at and not (place.startswith("[") or port.isdigit() or not port)  # a / in it
    if ":" in user or is_cut or ((at or port) and scheme in _KEYED):
        yield "a user or a password"
    try:
        address = urlsplit(uri)
    except ValueError as error:
        raise UsageError(f"--storage is no URI: {error}") from None
    for part in (address.query, address.fragment):
        for name, value in parse_qsl(part.replace(";", "&"), keep_blank_values=True):
            if _IS_CREDENTIAL.fullmatch(name):
                yield f"the parameter {name!r}"
            elif "@" in value:
                yield f"a user or a password in the parameter {name!r}"
