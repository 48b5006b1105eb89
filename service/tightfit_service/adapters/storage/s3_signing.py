"""Signed addresses of single requests: AWS Signature Version 4 in the query.

The SDK signs the host alone. Here the headers are signed as well, so that a client can neither send
more than it announced nor leave out the encryption.

Source: "Authenticating Requests: Using Query Parameters (AWS Signature Version 4)", Amazon S3 API
Reference.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime, timedelta
from urllib.parse import SplitResult, quote, urlencode, urlunsplit

from minio.credentials.credentials import Credentials

_ALGORITHM = "AWS4-HMAC-SHA256"


def signed_url(
    method: str,
    url: SplitResult,
    *,
    headers: Mapping[str, str],
    credentials: Credentials,
    region: str,
    now: datetime,
    lifetime: timedelta,
) -> str:
    """Return `url` with a signature over method, path and headers, valid for `lifetime` from `now` (UTC).

    `url` has no query yet, and its path is quoted as it will be sent. The request must carry
    `headers` with these very values.
    """
    signed = {name.lower(): value.strip() for name, value in headers.items()}
    signed["host"] = url.netloc
    names = ";".join(sorted(signed))
    day, stamp = now.strftime("%Y%m%d"), now.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{day}/{region}/s3/aws4_request"
    query = {
        "X-Amz-Algorithm": _ALGORITHM,
        "X-Amz-Credential": f"{credentials.access_key}/{scope}",
        "X-Amz-Date": stamp,
        "X-Amz-Expires": str(int(lifetime.total_seconds())),
        "X-Amz-SignedHeaders": names,
    }
    if credentials.session_token:
        query["X-Amz-Security-Token"] = credentials.session_token
    encoded = urlencode(sorted(query.items()), quote_via=quote, safe="-_.~")
    canonical = "\n".join(
        (
            method,
            url.path,
            encoded,
            *(f"{name}:{signed[name]}" for name in sorted(signed)),
            "",
            names,
            "UNSIGNED-PAYLOAD",
        )
    )
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = f"AWS4{credentials.secret_key}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = _hmac(key, part)
    signature = _hmac(key, f"{_ALGORITHM}\n{stamp}\n{scope}\n{digest}").hex()
    return urlunsplit(url._replace(query=f"{encoded}&X-Amz-Signature={signature}"))


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()
