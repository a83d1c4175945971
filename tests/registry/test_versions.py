"""A capsule is registered once, one version is served at any time, and the journal knows which one it was."""

import json
import multiprocessing
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from components.foundation.errors import UserError
from components.foundation.files import digest_tree, read_json
from components.registry import versions as registry
from components.registry.journal import Move, append_move, champions_before, read_moves
from components.registry.promotion import promote, roll_back
from components.registry.versions import (
    champion,
    download_capsule,
    journal,
    list_status,
    which_model,
)
from components.tracking import connection
from components.tracking import runs as tracking
from tests.conftest import MakeCapsule
from tests.servers import free_port, mlflow_server

METRICS = {"image_auroc": 0.991, "pixel_auroc": 0.973, "aupro": 0.925}
JOURNAL = Path(".flawline/journal/bottle.jsonl")


@pytest.fixture
def versions(workspace: Path) -> list[int]:
    """Three versions of "bottle" whose capsules are only named: what moves aliases does not look into them."""
    client, _ = connection.connect()
    client.create_registered_model("flawline-bottle")
    tags = [{"capsule_digest": f"digest {number}", "threshold": "1.0"} for number in (1, 2, 3)]
    return [int(client.create_model_version("flawline-bottle", str(workspace), tags=tag).version) for tag in tags]


def aliases() -> dict[str, int]:
    client, _ = connection.connect()
    return {name: int(at) for name, at in client.get_registered_model("flawline-bottle").aliases.items()}


def states() -> list[tuple[str, str, int | None, int | None]]:
    return [(move.state, move.kind, move.source, move.target) for move in journal("bottle")]


def register(folder: Path, category: str = "bottle", run_id: str = "") -> registry.Version:
    return registry.register(category, folder, run_id, METRICS, "cutpaste-3way")


def test_the_same_capsule_is_one_version_and_another_one_the_next(workspace: Path, make_capsule: MakeCapsule) -> None:
    first = register(make_capsule(workspace / "one"))
    again = register(make_capsule(workspace / "one again"))
    second = register(make_capsule(workspace / "two", threshold=6.0))
    assert (first.number, again.number, second.number) == (1, 1, 2)
    assert again == first
    assert second.aliases == ("challenger",)
    assert first.digest == read_json(workspace / "one" / "capsule.json")["digest"]
    assert dict(second.metrics) == METRICS
    assert (second.threshold, second.method, second.data_digest) == (6.0, "cutpaste-3way", "d" * 64)


def test_an_evaluation_on_other_test_images_renews_the_figures_of_the_version(
    workspace: Path, make_capsule: MakeCapsule
) -> None:
    client, experiment = connection.connect()
    register(make_capsule(workspace / "one"))
    run_id = client.create_run(experiment, tags={"mlflow.note.content": "on new test images"}).info.run_id
    found = registry.register("bottle", workspace / "one", run_id, {"image_auroc": 0.5}, "cutpaste-3way")
    assert (found.number, dict(found.metrics)) == (1, {"image_auroc": 0.5})
    assert "on new test images" in str(client.get_model_version("flawline-bottle", "1").description)


def test_the_run_holds_the_model_and_mlflow_loads_the_champion(
    workspace: Path, make_capsule: MakeCapsule, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.pyfunc

    client, experiment = connection.connect()
    run_id = client.create_run(experiment, tags={"mlflow.note.content": "image AUROC 0.991"}).info.run_id
    version = register(make_capsule(workspace / "one"), run_id=run_id)
    assert version.run_id == run_id
    described = client.get_model_version("flawline-bottle", str(version.number)).description
    assert described is not None
    assert described.startswith("image AUROC 0.991\n\nMade by the run [")
    folder = f"capsule-{version.digest[:12]}"
    assert f"{folder}/MLmodel" in [item.path for item in client.list_artifacts(run_id, folder)]
    promote("bottle", version.number, "first")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", connection.tracking_uri())
    model = mlflow.pyfunc.load_model("models:/flawline-bottle@champion")
    assert model.metadata.signature.inputs.input_names() == ["image"]


def test_the_registered_capsule_comes_back_as_it_was(workspace: Path, make_capsule: MakeCapsule) -> None:
    capsule = make_capsule(workspace / "one")
    version = register(capsule)
    promote("bottle", version.number, "first")
    fetched = download_capsule("bottle")
    assert digest_tree(fetched) == digest_tree(capsule)
    assert download_capsule("bottle", version.number) == fetched
    with pytest.raises(UserError, match="no version with the alias 'previous'"):
        download_capsule("bottle", "previous")


@pytest.mark.slow
def test_run_and_version_lead_to_one_another_and_say_the_verdict(workspace: Path, make_capsule: MakeCapsule) -> None:
    data = tracking.DataVersion("bottle", "d" * 64, workspace, {"train/good": 8}, "0" * 32 + ".dir", "c" * 40)
    made, runs = [], []
    for number, threshold in enumerate([5.0, 6.0, 7.0]):
        run = tracking.open_run("bottle", f"identity {number}", {"method": "pretrained"}, data, "train")
        tracking.finish_run(run, "digest", "What the figures say.")
        kinds = {"#2": {"found": 0.5, "image_auroc": 0.98765}}
        folder = make_capsule(workspace / str(number), threshold)
        made.append(registry.register("bottle", folder, run.run_id, METRICS, "pretrained", kinds).number)
        runs.append(run.run_id)
        if number == 0:
            promote("bottle", 1, "first version")
    promote("bottle", 3, "better on #2")
    client, experiment = connection.connect()
    verdicts = [
        "was champion until version 3: better on #2",
        "not promoted: version 3 came after it",
        "champion: better on #2",
    ]
    assert [registry.find_version("bottle", number).verdict for number in made] == verdicts
    assert [client.get_run(run_id).data.tags["verdict"] for run_id in runs] == verdicts
    version = registry.find_version("bottle")
    assert (version.number, version.run_id, version.data_version, version.data_commit) == (
        3, runs[2], data.version, data.commit,
    )  # fmt: skip
    assert version.by_kind == {"#2": {"found": 0.5, "image_auroc": 0.9877}}
    assert f"#/experiments/{experiment}/runs/{runs[2]}" in str(
        client.get_model_version("flawline-bottle", "3").description
    )
    assert "(#/models/flawline-bottle/versions/3)" in client.get_run(runs[2]).data.tags["mlflow.note.content"]


def test_a_damaged_capsule_is_not_registered(workspace: Path, make_capsule: MakeCapsule) -> None:
    capsule = make_capsule(workspace / "one")
    (capsule / "golden" / "golden.safetensors").unlink()
    with pytest.raises(UserError, match="damaged"):
        register(capsule)
    assert list_status() == []


def stored_files(digest: str) -> Path:
    (folder,) = Path(".flawline/mlflow/artifacts").glob(f"*/artifacts/capsule-{digest[:12]}/artifacts/capsule")
    return folder


@pytest.mark.parametrize("name", ["density.safetensors", "capsule.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"format": 1, "x": NaN, "files": 3}', None])
def test_what_arrives_damaged_is_not_kept(
    workspace: Path, make_capsule: MakeCapsule, name: str, content: bytes | None
) -> None:
    version = register(make_capsule(Path("capsule")))
    stored = stored_files(version.digest) / name
    sound = stored.read_bytes()
    if content is None:
        stored.unlink()
    else:
        stored.write_bytes(content)
    with pytest.raises(UserError, match=r"stored capsule of bottle version 1 is damaged.* put the files at .* back"):
        download_capsule("bottle", version.number)
    assert not list(Path(".flawline/capsules").iterdir())
    stored.write_bytes(sound)
    assert digest_tree(download_capsule("bottle", version.number)) == digest_tree(Path("capsule"))


@pytest.mark.parametrize("name", ["density.safetensors", "capsule.json", "encoders/pretrained/encoder.safetensors"])
def test_what_is_kept_and_was_damaged_is_fetched_again(workspace: Path, make_capsule: MakeCapsule, name: str) -> None:
    version = register(make_capsule(Path("capsule")))
    kept = download_capsule("bottle", version.number)
    content = (kept / name).read_bytes()
    (kept / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert digest_tree(download_capsule("bottle", version.number)) == digest_tree(Path("capsule"))
    (kept / name).unlink()
    assert digest_tree(download_capsule("bottle", version.number)) == digest_tree(Path("capsule"))


@pytest.mark.slow
def test_status_has_rows_of_the_champion_and_the_challenger(workspace: Path, make_capsule: MakeCapsule) -> None:
    for name, threshold in [("one", 5.0), ("two", 6.0)]:
        register(make_capsule(workspace / name, threshold, "bottle"))
        register(make_capsule(workspace / name, threshold, "screw"), "screw")
    promote("bottle", 1, "first")
    served, waiting, only = (asdict(row) for row in list_status())
    assert served == {
        "category": "bottle", **METRICS, "threshold": 5.0, "version": 1, "alias": "champion", "method": "cutpaste-3way",
    }  # fmt: skip
    assert (waiting["category"], waiting["version"], waiting["alias"]) == ("bottle", 2, "challenger")
    assert (only["category"], only["version"], only["alias"]) == ("screw", 2, "challenger")
    assert [row.category for row in list_status(["screw", "cable"])] == ["screw"]


def test_no_champion_is_none(workspace: Path, versions: list[int]) -> None:
    assert champion("bottle") is None
    assert champion("never-registered") is None


def test_promotions_move_champion_and_previous(versions: list[int]) -> None:
    client, _ = connection.connect()
    promote("bottle", 1, "first")
    client.set_registered_model_alias("flawline-bottle", "challenger", "2")
    promoted = promote("bottle", 2, "better on scratches")
    promote("bottle", 2, "once more")
    assert promoted.aliases == ("champion",)
    assert aliases() == {"champion": 2, "previous": 1}
    assert states() == [
        ("intended", "promote", None, 1),
        ("done", "promote", None, 1),
        ("intended", "promote", 1, 2),
        ("done", "promote", 1, 2),
    ]
    assert (journal("bottle")[-1].reason, journal("bottle")[-1].digest) == ("better on scratches", "digest 2")


def test_an_unknown_version_is_refused_and_leaves_no_trace(versions: list[int]) -> None:
    with pytest.raises(UserError, match="no version 9"):
        promote("bottle", 9, "typo")
    assert journal("bottle") == []


@pytest.mark.slow
def test_roll_backs_go_back_one_champion_each(versions: list[int]) -> None:
    for number in (1, 2, 3):
        promote("bottle", number, "better")
    assert roll_back("bottle").number == 2
    assert aliases() == {"champion": 2, "previous": 1}
    assert roll_back("bottle").number == 1
    assert aliases() == {"champion": 1}
    with pytest.raises(UserError, match="no previous version"):
        roll_back("bottle")


@pytest.mark.parametrize(
    ("moves", "number", "before"),
    [
        ([("promote", 1), ("promote", 2), ("promote", 3)], 2, 1),
        ([("promote", 1)], 1, None),
        ([("promote", 1), ("promote", 2), ("promote", 1)], 2, 1),
        ([("promote", 2), ("promote", 1), ("promote", 2), ("promote", 3), ("roll back", 2)], 2, 1),
        ([("observed", 4), ("promote", 5)], 5, 4),
        ([("promote", 1)], 7, None),
    ],
)
def test_champion_before(moves: list[tuple[Any, int]], number: int, before: int | None) -> None:
    done = [Move("2026-01-01T00:00:00+00:00", "done", kind, None, target, None, "", "") for kind, target in moves]
    assert next(iter(champions_before(done, number)), None) == before


class Crash(BaseException):
    """Ends a promotion where a killed process would end."""


@contextmanager
def crash_at_alias_write(monkeypatch: pytest.MonkeyPatch, count: int) -> Iterator[None]:
    """Let the first `count` alias writes through, and die at the next one."""
    from mlflow import MlflowClient

    with monkeypatch.context() as patch:
        remaining = iter(range(count))
        for method in ("set_registered_model_alias", "delete_registered_model_alias"):
            real = getattr(MlflowClient, method)

            def write(*arguments: Any, real: Any = real) -> None:
                if next(remaining, None) is None:
                    raise Crash
                real(*arguments)

            patch.setattr(MlflowClient, method, write)
        with pytest.raises(Crash):
            yield


@pytest.mark.parametrize("count", [0, 1])
def test_a_promotion_cut_short_leaves_one_champion_and_is_completed(
    versions: list[int], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    promote("bottle", 1, "first")
    promote("bottle", 2, "second")
    with crash_at_alias_write(monkeypatch, count):
        promote("bottle", 3, "third")
    served = champion("bottle")
    assert served is not None
    assert served.number == 2
    promote("bottle", 3, "third")
    assert aliases() == {"champion": 3, "previous": 2}
    assert states()[-2:] == [("intended", "promote", 2, 3), ("done", "promote", 2, 3)]
    assert roll_back("bottle").number == 2
    assert aliases() == {"champion": 2, "previous": 1}


def test_a_crash_after_the_champion_moved_is_dated_to_the_move(
    versions: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    promote("bottle", 1, "first")
    client, _ = connection.connect()
    client.set_registered_model_alias("flawline-bottle", "challenger", "2")
    with crash_at_alias_write(monkeypatch, 2):  # dies at the removal of the alias `challenger`
        promote("bottle", 2, "second")
    moved = datetime.fromisoformat(journal("bottle")[-1].time)
    promote("bottle", 3, "third")
    assert aliases() == {"champion": 3, "previous": 2}
    at_the_crash = which_model("bottle", moved)
    assert at_the_crash is not None
    assert at_the_crash.target == 2


def test_a_move_by_other_hands_wins_over_one_cut_short(versions: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    promote("bottle", 1, "first")
    with crash_at_alias_write(monkeypatch, 0):
        promote("bottle", 2, "second")
    client, _ = connection.connect()
    client.set_registered_model_alias("flawline-bottle", "champion", "3")
    promote("bottle", 1, "back")
    assert states()[3:] == [
        ("abandoned", "promote", 1, 2),
        ("done", "observed", 1, 3),
        ("intended", "promote", 3, 1),
        ("done", "promote", 3, 1),
    ]
    assert aliases() == {"champion": 1, "previous": 3}


def test_a_torn_last_line_is_ignored_and_then_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "bottle.jsonl"
    move = Move("2026-01-01T00:00:00+00:00", "done", "promote", None, 1, None, "d", "größer")
    append_move(path, move)
    with path.open("ab") as file:
        file.write(b'{"time": "2026-')
    assert read_moves(path) == [move]
    append_move(path, move)
    assert read_moves(path) == [move, move]


def _promote_in_turn(numbers: list[int]) -> None:
    for number in numbers:
        promote("bottle", number, "race")


@pytest.mark.slow
def test_promoters_at_once_leave_one_champion_and_an_unbroken_journal(versions: list[int]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_promote_in_turn, args=([1, 2, 3, 1],))
    process.start()
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(_promote_in_turn, [2, 3, 1, 2]), pool.submit(_promote_in_turn, [3, 1, 2, 3])]:
            done.result()
    process.join()
    assert process.exitcode == 0
    moves = journal("bottle")
    assert [move.state for move in moves] == ["intended", "done"] * (len(moves) // 2)
    done_moves = moves[1::2]
    assert [move.source for move in done_moves] == [None, *(move.target for move in done_moves[:-1])]
    assert aliases() == {"champion": done_moves[-1].target, "previous": done_moves[-1].source}


def test_which_model_answers_from_the_journal(versions: list[int]) -> None:
    before = datetime.now(UTC)
    for number in (1, 2):
        promote("bottle", number, "better")
    times = [datetime.fromisoformat(move.time) for move in journal("bottle") if move.state == "done"]
    moments = [before, times[0], times[1] - timedelta(microseconds=1), times[1], datetime.now(UTC)]
    found = [which_model("bottle", moment) for moment in moments]
    assert [move and move.target for move in found] == [None, 1, 1, 2, 2]
    local = which_model("bottle", datetime.now())
    assert local is not None
    assert local.digest == "digest 2"


def test_journal_lines_are_plain_json(versions: list[int]) -> None:
    promote("bottle", 1, "first")
    lines = [json.loads(line) for line in JOURNAL.read_text().splitlines()]
    assert {"time", "source", "target", "reason", "digest"} <= lines[-1].keys()


def test_an_unreachable_server_is_one_sentence(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://u:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"MLflow at http://127\.0\.0\.1:9 could not do this") as caught:
        champion("bottle")
    assert "secret" not in str(caught.value)


@pytest.fixture
def server(mlflow_database: Path, tmp_path: Path) -> Iterator[str]:
    """A real MLflow server on a free loopback port, with artifacts through it."""
    port = free_port()
    shutil.copy(mlflow_database, tmp_path / "server.db")
    with mlflow_server(tmp_path, f"sqlite:///{tmp_path}/server.db", port):
        yield f"http://127.0.0.1:{port}"


@pytest.mark.slow
def test_the_whole_way_through_a_real_server(
    workspace: Path, make_capsule: MakeCapsule, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    capsule = make_capsule(workspace / "one")
    data = tracking.DataVersion("bottle", "d" * 64, workspace, {"train/good": 8})
    with tracking.open_run("bottle", "i" * 64, {"method": "pretrained"}, data, "train") as run:
        run.log_metrics({"loss": 0.5}, step=1)
        run.log_figure_files(capsule / "capsule.json", folder="evaluation")
    tracking.finish_run(run, "digest")

    assert champion("bottle") is None
    first = register(capsule, run_id=run.run_id)
    second = register(make_capsule(workspace / "two", threshold=6.0), run_id=run.run_id)
    assert champion("bottle") is None
    promote("bottle", first.number, "first")
    promote("bottle", second.number, "second")
    assert aliases() == {"champion": 2, "previous": 1}
    roll_back("bottle")
    assert aliases() == {"champion": 1}
    assert digest_tree(download_capsule("bottle")) == digest_tree(capsule)
    assert [(row.category, row.version, row.alias) for row in list_status()] == [("bottle", 1, "champion")]
    client, _ = connection.connect()
    assert [item.path for item in client.list_artifacts(run.run_id, "evaluation")] == ["evaluation/capsule.json"]
    with pytest.raises(UserError, match="no version 9"):
        promote("bottle", 9, "typo")
