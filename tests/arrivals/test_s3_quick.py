"""Quick S3 requests against a real server: right answers are taken, all others left to boto3."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from components.arrivals import inbox_s3
from components.arrivals.s3_quick import QuickS3
from tests.faulty_proxy import faulty_proxy
from tests.servers import S3Server

DATA = b"pixels" * 500
MD5 = hashlib.md5(DATA).hexdigest()
NAMES = ("a.png", "line 1/a+b.png", "a%2fb&c=d;.png", "é~(1)'.png", "a\x01\n.png")


@pytest.fixture
def client(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3.client()


def quick_at(client: Any) -> QuickS3:
    import boto3

    return QuickS3(client, boto3.Session().get_credentials(), "bucket", 2)


@pytest.mark.parametrize("name", NAMES)
def test_an_object_with_any_name_is_read_and_copied(client: Any, tmp_path: Path, name: str) -> None:
    key, target = f"{tmp_path.name}/{name}", f"{tmp_path.name}/copies/{name}"
    client.put_object(Bucket="bucket", Key=key, Body=DATA, Metadata={"sha256": "told"})
    found = quick_at(client).get(key, MD5)
    assert found is not None
    assert (found[0], found[1]["x-amz-meta-sha256"]) == (DATA, "told")
    assert quick_at(client).copy(key, target, MD5)
    assert client.get_object(Bucket="bucket", Key=target)["Body"].read() == DATA


def test_what_is_not_there_or_another_content_is_left_to_boto3(client: Any, tmp_path: Path) -> None:
    key, other = f"{tmp_path.name}/a.png", hashlib.md5(b"other").hexdigest()
    client.put_object(Bucket="bucket", Key=key, Body=DATA)
    quick = quick_at(client)
    assert quick.get(f"{tmp_path.name}/b.png", MD5) is None
    assert not quick.copy(f"{tmp_path.name}/b.png", f"{tmp_path.name}/c.png", MD5)
    assert quick.get(key, other) is None
    assert not quick.copy(key, f"{tmp_path.name}/d.png", other)
    assert quick.get(key, f"{MD5}-1") is None
    assert quick.get(key, MD5) is not None


def test_wrong_keys_and_buckets_with_addresses_of_their_own_are_left_to_boto3(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"{tmp_path.name}/a.png"
    client.put_object(Bucket="bucket", Key=key, Body=DATA)
    arn = "arn:aws:s3:us-east-1:123456789012:accesspoint/camera"
    assert QuickS3(client, None, "bucket", 2).get(key, MD5) is None
    assert QuickS3(client, None, arn, 2).get(key, MD5) is None
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert quick_at(client).get(key, MD5) is None


def test_garbled_bytes_are_noticed_and_after_a_reset_no_more_is_tried(
    client: Any, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"{tmp_path.name}/incoming/widget/a.png"
    client.put_object(Bucket="bucket", Key=key, Body=DATA)
    with faulty_proxy(s3.url) as (proxy, url):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        inbox = inbox_s3.S3Inbox(f"s3://bucket/{tmp_path.name}/incoming")
        proxy.fail("garbled", "GET")
        assert inbox._quick.get(key, MD5) is None
        assert inbox._quick.get(key, MD5) is not None
        proxy.fail("reset", "GET")
        assert inbox._quick.get(key, MD5) is None
        asked = proxy.requests.total()
        assert inbox._quick.get(key, MD5) is None
        assert proxy.requests.total() == asked
