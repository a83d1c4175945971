"""Images per second through the S3 ingest, against a plain loop that downloads, decodes and hashes the same objects.

`python -m benchmarks.ingest --out FILE.json`: rows of images, images_per_s, reference_per_s, ratio, peak_mib,
requests_per_image, bytes_per_image. A real S3 server (rclone), git and DVC on this machine; images of 256 px as PNG.
The ingest does all of its steps: listing, download with checksums, decoding, validation, duplicates, a new version of
the data, moving the objects to accepted/. No model is there yet to screen them. Both sides run in processes of their
own that have imported their libraries and handled a small delivery before; the plain loop runs before and after, and
its mean rate counts. Prefect is left out: it adds tenths of a second for each delivery.
"""

import argparse
import io
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import print_table, write_results
from tests.project import CATEGORIES, Project, make_project
from tests.servers import S3Server, s3_server

CATEGORY = CATEGORIES[0]
SIDE = 256
WARM, TRAIN = 20, 100  # images of the delivery that warms up, images that the category has before
URL = "s3://bucket/incoming"


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, nargs="+", default=[500, 5000])
    arguments = parser.parse_args()
    rows = [measure(count) for count in arguments.images]
    print_table(rows)
    write_results(arguments.out, rows)


def measure(count: int) -> dict[str, Any]:
    """One row: ingest `count` images that lie in S3, in a project of its own."""
    with tempfile.TemporaryDirectory() as folder:
        buckets = Path(folder) / "buckets"
        size = write_images(buckets / "bucket" / "camera" / CATEGORY, count, seed=1)
        write_images(buckets / "bucket" / "incoming" / CATEGORY, WARM, seed=2)
        with git_project(Path(folder) / "project") as project, s3_server(buckets, "bucket") as server:
            environment = {**project.environment, **server.environment}
            before = in_process(plain_loop, project.folder, environment)
            ours = in_process(ingest, project.folder, environment, server)
            after = in_process(plain_loop, project.folder, environment)
    reference = statistics.mean([before["per_s"], after["per_s"]])
    return {
        "images": count,
        "images_per_s": round(ours["per_s"], 1),
        "reference_per_s": round(reference, 1),
        "ratio": round(ours["per_s"] / reference, 2),
        "peak_mib": round(ours["peak_mib"]),
        "requests_per_image": round(ours["requests"] / count, 3),
        "bytes_per_image": size // count,
    }


def ingest(server: S3Server) -> dict[str, float]:
    """Warm up with a small delivery, then ingest the others."""
    from components.arrivals.inbox import open_source
    from components.foundation.params import load_params
    from flows.arrivals.steps import ingest_category

    params = load_params()
    (warm,) = ingest_category(CATEGORY, open_source(URL), params)
    assert warm["accepted"] == WARM, warm
    client = server.client()
    names = [found["Key"] for found in listed(client, "camera/")]
    for name in names:
        target = name.replace("camera", "incoming")
        client.copy_object(CopySource={"Bucket": "bucket", "Key": name}, Bucket="bucket", Key=target)
    with counted_requests() as requests:
        begun = time.perf_counter()
        (summary,) = ingest_category(CATEGORY, open_source(URL), params)
        seconds = time.perf_counter() - begun
    assert summary["accepted"] == len(names), summary
    own, child = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    peak = (own + params.threads * child) / 1024  # there are so many processes that look at files
    return {"per_s": len(names) / seconds, "peak_mib": peak, "requests": requests()}


def plain_loop() -> dict[str, float]:
    """Download, decode and hash each object, one after the other, as one would write it in ten lines."""
    import hashlib

    import boto3

    client = boto3.client("s3")
    keys = [found["Key"] for found in listed(client, "camera/") if found["Key"].endswith(".png")]
    begun = time.perf_counter()
    for key in keys:
        data = client.get_object(Bucket="bucket", Key=key)["Body"].read()
        hashlib.sha256(data).hexdigest()
        with Image.open(io.BytesIO(data)) as image:
            np.asarray(image.convert("RGB"))
    return {"per_s": len(keys) / (time.perf_counter() - begun)}


def listed(client: Any, prefix: str) -> Iterator[dict[str, Any]]:
    """All objects under a prefix."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=prefix):
        yield from page.get("Contents", [])


@contextmanager
def counted_requests() -> Iterator[Callable[[], int]]:
    """Count the HTTP requests that botocore sends in this process."""
    from botocore.httpsession import URLLib3Session

    send, count = URLLib3Session.send, [0]

    def counting(self: Any, request: Any) -> Any:
        count[0] += 1
        return send(self, request)

    URLLib3Session.send = counting
    try:
        yield lambda: count[0]
    finally:
        URLLib3Session.send = send


def write_images(folder: Path, count: int, seed: int) -> int:
    """Write so many images of a waved surface with noise; the number of their bytes."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    waves = 128 + 30 * np.sin(x / 9) * np.cos(y / 12)
    for number in range(count):
        pixels = np.clip(waves[..., None] + generator.normal(0, 4, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05}.png", compress_level=3)
    return sum(path.stat().st_size for path in folder.iterdir())


@contextmanager
def git_project(folder: Path) -> Iterator[Project]:
    """A small project under git and DVC whose category has a first version, and an MLflow database."""
    project = make_project(folder)
    shutil.rmtree(folder / "data" / "tiny" / CATEGORY)
    write_images(folder / "data" / "tiny" / CATEGORY / "train" / "good", TRAIN, seed=0)
    project.git("config", "user.name", "Benchmark")
    project.git("config", "user.email", "benchmark@localhost")
    project.git("add", ".gitignore", ".dvcignore", ".dvc", "dvc.yaml", "params.yaml")
    project.git("commit", "-qm", "Begin")
    project.set_params({"threads": len(os.sched_getaffinity(0)), "ingest": {"settle_seconds": 0}})
    for command in (["data", "add", f"data/tiny/{CATEGORY}", "--category", CATEGORY], ["status"]):
        done = project.flawline(*command)
        assert done.returncode == 0, done.stderr
    yield project


def in_process(work: Callable[..., Any], folder: Path, environment: dict[str, str], *arguments: Any) -> Any:
    """Call a function in a new process with this folder and environment."""
    context = multiprocessing.get_context("spawn")
    answer = folder.parent / "answer.json"
    process = context.Process(target=_call, args=(work, folder, environment, arguments, answer))
    process.start()
    process.join()
    assert process.exitcode == 0, f"{work.__name__} failed"
    return json.loads(answer.read_text())


def _call(
    work: Callable[..., Any], folder: Path, environment: dict[str, str], arguments: tuple[Any, ...], answer: Path
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    answer.write_text(json.dumps(work(*arguments)))


if __name__ == "__main__":
    main()
