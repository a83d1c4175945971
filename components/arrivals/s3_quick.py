"""Signed S3 requests with as little around them as possible, for many small objects.

Of a request for a small object botocore's own handling takes twice as long as the request itself: more than decoding
the image. What is asked here is only ever a first try: whatever is not plainly right is left to boto3, which knows all
of S3's errors, redirects and retries.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError, HTTPClientError
from botocore.httpsession import URLLib3Session

BUCKET = re.compile("[a-z0-9][a-z0-9.-]+")  # no ARN of an access point, which has addresses of its own
MD5 = re.compile("[0-9a-f]{32}")
COPIED = re.compile(rb"<ETag>(?:&quot;|&#34;|\")?([0-9a-f]{32})(?:&quot;|&#34;|\")?</ETag>")


class QuickS3:
    """Gets and copies objects of one bucket whose ETag is the MD5 of their content."""

    def __init__(self, client: Any, credentials: Any, bucket: str, connections: int) -> None:
        """Take endpoint and region from a boto3 client; without credentials every answer is None."""
        self._address = f"{client.meta.endpoint_url}/{bucket}"
        self._region, self._bucket, self._credentials = client.meta.region_name, bucket, credentials
        self._is_usable = bool(credentials and self._region and BUCKET.fullmatch(bucket))
        bundle = os.environ.get("AWS_CA_BUNDLE", True)
        self._http = URLLib3Session(verify=bundle, timeout=(10, 20), max_pool_connections=connections)

    def get(self, key: str, etag: str) -> tuple[bytes, Mapping[str, str]] | None:
        """Content and headers of an object, if it is still the one with this ETag, and the content's MD5 says so."""
        if not MD5.fullmatch(etag):
            return None
        answer = self._send("GET", key, {"If-Match": f'"{etag}"'})
        if answer is not None and answer.headers.get("x-amz-server-side-encryption", "").startswith("aws:kms"):
            self._is_usable = False  # no ETag is an MD5 here, and each object would be read twice
        if answer is None or hashlib.md5(answer.content, usedforsecurity=False).hexdigest() != etag:
            return None
        return answer.content, answer.headers

    def copy(self, key: str, target: str, etag: str) -> bool:
        """Copy an object within the bucket; whether S3 says that the copy has this ETag."""
        source = {"x-amz-copy-source": quote(f"{self._bucket}/{key}", safe="/~")}
        answer = self._send("PUT", target, source | {"x-amz-copy-source-if-match": f'"{etag}"'})
        found = COPIED.search(answer.content) if answer is not None else None
        return found is not None and found.group(1).decode() == etag

    def _send(self, method: str, key: str, headers: dict[str, str]) -> Any:
        """The answer if it is 200, else None; after a failure of the network no more is tried."""
        if not self._is_usable:
            return None
        request = AWSRequest(method, f"{self._address}/{quote(key, safe='/~')}", headers)
        try:
            S3SigV4Auth(self._credentials.get_frozen_credentials(), "s3", self._region).add_auth(request)
            answer = self._http.send(request.prepare())
        except (BotoCoreError, HTTPClientError):
            self._is_usable = False
            return None
        return answer if answer.status_code == 200 else None
