"""Whatever is killed, restarted or moved by other hands: one champion, and journal and registry say the same."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from components.foundation.errors import UserError
from components.registry import promotion
from components.registry.journal import Move, append_move, decided, read_moves, verify_journal
from components.registry.promotion import promote, reject, roll_back, settle, verify
from components.registry.versions import find_version, journal, journal_path
from components.tracking import connection
from tests.acting import act_and_be_killed, act_in_turn, act_while_the_server_dies, process_of
from tests.servers import free_port, kill_session, mlflow_server, postgres_programs, postgres_server

MOVE = Move("2026-01-01T00:00:00+00:00", "done", "promote", None, 1, None, "d", "größer", "Ada")


def client() -> Any:
    return connection.connect()[0]


def make_versions(category: str, count: int = 3) -> None:
    """So many versions whose capsules are only named: what moves aliases does not look into them."""
    mlflow = client()
    mlflow.create_registered_model(f"flawline-{category}")
    for number in range(1, count + 1):
        tags = {"capsule_digest": f"digest {number}", "threshold": "1.0"}
        mlflow.create_model_version(f"flawline-{category}", "s3://bucket/none", tags=tags)


@pytest.fixture
def versions(workspace: Path) -> None:
    """Three versions of "bottle" in the workspace's own registry."""
    make_versions("bottle")


def aliases(category: str = "bottle") -> dict[str, int]:
    return {name: int(at) for name, at in client().get_registered_model(f"flawline-{category}").aliases.items()}


def move_by_hand(alias: str, number: int, category: str = "bottle") -> None:
    """What MLflow's page does."""
    client().set_registered_model_alias(f"flawline-{category}", alias, str(number))


def acts(category: str = "bottle") -> list[tuple[str, str, int | None, int | None]]:
    """The closed lines of the journal."""
    return [(m.state, m.kind, m.source, m.target) for m in journal(category) if m.state != "intended"]


def test_a_rejected_version_is_no_candidate_and_no_way_back(versions: None) -> None:
    for number in (1, 2, 3):
        promote("bottle", number, "better")
    move_by_hand("challenger", 2)
    found = reject("bottle", 2, "misses scratches", who="Ada")
    assert (found.aliases, found.verdict) == ((), "rejected: misses scratches")
    assert aliases() == {"champion": 3, "previous": 1}
    assert journal("bottle")[-1].who == "Ada"
    reject("bottle", 2, "once more")
    assert acts()[3:] == [("done", "reject", 3, 2)]
    assert roll_back("bottle").number == 1
    with pytest.raises(UserError, match=r"is the champion: `flawline rollback bottle`"):
        reject("bottle", 1, "bad")
    promote("bottle", 2, "a person wants it")
    assert aliases() == {"champion": 2, "previous": 1}


def test_who_did_it_is_written_down(versions: None) -> None:
    promote("bottle", 1, "first")
    promote("bottle", 2, "better", who="the gate")
    move_by_hand("champion", 3)
    settle("bottle")
    assert [move.who for move in journal("bottle")][1::2] == [promotion.who_am_i(), "the gate"]
    assert journal("bottle")[-1].who == f"noticed by {promotion.who_am_i()}"


@pytest.mark.parametrize("reason", ["", "  "])
def test_no_act_without_a_reason(versions: None, reason: str) -> None:
    with pytest.raises(UserError, match="A reason is needed"):
        promote("bottle", 1, reason)
    assert journal("bottle") == []


def test_what_was_compared_with_another_champion_is_not_promoted(versions: None) -> None:
    promote("bottle", 1, "first", expected=None)
    promote("bottle", 2, "better than 1", expected=1)
    with pytest.raises(UserError, match="compared with version 1, but the champion is version 2 by now"):
        promote("bottle", 3, "better than 1", expected=1)
    assert aliases() == {"champion": 2, "previous": 1}


def test_a_champion_moved_by_hand_is_observed_and_rolled_back(versions: None) -> None:
    promote("bottle", 1, "first")
    promote("bottle", 2, "better")
    move_by_hand("champion", 3)
    assert settle("bottle") == 3
    assert aliases() == {"champion": 3, "previous": 2}
    assert settle("bottle") == 3
    assert acts()[2:] == [("done", "observed", 2, 3)]
    assert roll_back("bottle").number == 2
    assert aliases() == {"champion": 2, "previous": 1}
    assert acts()[3:] == [("done", "roll back", 3, 2)]


def test_the_very_first_champion_may_be_set_by_hand(versions: None) -> None:
    move_by_hand("champion", 2)
    assert settle("bottle") == 2
    assert acts() == [("done", "observed", None, 2)]
    with pytest.raises(UserError, match="no previous version to return to"):
        roll_back("bottle")


def test_a_champion_taken_away_by_hand_comes_back(versions: None) -> None:
    promote("bottle", 1, "first")
    client().delete_registered_model_alias("flawline-bottle", "champion")
    assert settle("bottle") is None
    assert acts()[1:] == [("done", "observed", 1, None)]
    assert roll_back("bottle").number == 1
    assert aliases() == {"champion": 1}


def test_the_way_back_set_by_hand_is_kept_to(versions: None) -> None:
    for number in (1, 2, 3):
        promote("bottle", number, "better")
    move_by_hand("previous", 1)
    settle("bottle")
    assert "the alias previous was moved outside the project, to version 1" in journal("bottle")[-1].reason
    assert roll_back("bottle").number == 1


def test_a_previous_that_is_the_champion_is_no_way_back(versions: None) -> None:
    promote("bottle", 1, "first")
    promote("bottle", 2, "better")
    move_by_hand("previous", 2)
    assert roll_back("bottle").number == 1


def test_a_verdict_on_a_version_whose_run_was_deleted(workspace: Path, versions: None) -> None:
    mlflow, experiment = connection.connect()
    run_id = mlflow.create_run(experiment).info.run_id
    mlflow.create_model_version("flawline-bottle", "s3://bucket/none", run_id=run_id, tags={"capsule_digest": "d"})
    mlflow.delete_run(run_id)
    assert promote("bottle", 4, "all the same").verdict == "champion: all the same"


def test_deleted_versions_are_passed_over(versions: None) -> None:
    for number in (1, 2, 3):
        promote("bottle", number, "better")
    client().delete_model_version("flawline-bottle", "2")
    assert roll_back("bottle").number == 1
    assert verify("bottle").faults == ()


@pytest.mark.slow
def test_what_was_decided_stays_decided_when_the_capsule_is_registered_again(
    workspace: Path, make_capsule: Any
) -> None:
    from components.registry.versions import register

    folders = [make_capsule(workspace / str(number), 5.0 + number) for number in range(2)]
    for folder in folders:
        register("bottle", folder, "", {}, "pretrained")
    promote("bottle", 1, "first")
    reject("bottle", 2, "worse")
    again = register("bottle", folders[1], "", {}, "pretrained")
    assert (again.number, again.aliases, again.verdict) == (2, (), "rejected: worse")
    assert decided(journal("bottle"), 2) == journal("bottle")[-1]


# The chain.


def chained(path: Path, count: int) -> None:
    for number in range(count):
        append_move(path, replace(MOVE, target=number + 1))


def test_each_line_holds_the_digest_of_the_one_before(tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "journal.jsonl"
    chained(path, 4)
    lines = path.read_bytes().splitlines()
    held = [json.loads(line)["before"] for line in lines]
    assert held == ["", *(hashlib.sha256(line).hexdigest() for line in lines[:-1])]
    found = verify_journal(path)
    assert (found.lines, found.begins, found.faults) == (4, 1, ())
    assert [move.target for move in read_moves(path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("change", ["edit", "remove", "insert", "swap", "garbage", "unchain"])
def test_a_line_that_was_tampered_with_is_found(tmp_path: Path, change: str) -> None:
    path = tmp_path / "journal.jsonl"
    chained(path, 5)
    lines = path.read_text().splitlines()
    match change:
        case "edit":
            lines[2] = lines[2].replace("größer", "kleiner")
        case "remove":
            del lines[2]
        case "insert":
            lines.insert(2, lines[1])
        case "swap":
            lines[1], lines[2] = lines[2], lines[1]
        case "garbage":
            lines[2] = "{"
        case _:
            lines[3] = json.dumps({k: v for k, v in json.loads(lines[3]).items() if k != "before"})
    path.write_text("\n".join(lines) + "\n")
    assert verify_journal(path).faults


def test_a_journal_from_before_the_chain_is_read_and_sealed(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    old = {"time": MOVE.time, "state": "done", "kind": "promote", "source": None, "target": 1, "previous": None}
    path.write_text(json.dumps(old | {"digest": "d", "reason": "old"}) + "\n")
    assert (verify_journal(path).begins, verify_journal(path).faults) == (None, ())
    chained(path, 2)
    assert [move.who for move in read_moves(path)] == ["", "Ada", "Ada"]
    assert (verify_journal(path).begins, verify_journal(path).faults) == (2, ())
    path.write_text(path.read_text().replace('"old"', '"new"'))
    assert verify_journal(path).faults


def test_a_damaged_line_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    chained(path, 1)
    path.write_text('{"time": 1}\n' + path.read_text())
    with pytest.raises(UserError, match=r"Line 1 of the journal .* is damaged"):
        read_moves(path)


def test_lines_removed_at_the_end_are_missed_by_the_registry(versions: None) -> None:
    for number in (1, 2, 3):
        promote("bottle", number, "better")
    assert verify("bottle") == promotion.Verified(6, 1, 3, ())
    path = journal_path("bottle")
    kept = path.read_bytes()
    path.write_bytes(b"".join(kept.splitlines(keepends=True)[:4]))
    assert "lines were removed at the end" in verify("bottle").faults[0]
    path.unlink()
    assert "there is no journal here" in verify("bottle").faults[0]
    path.write_bytes(kept)
    assert verify("bottle").faults == ()


def test_two_projects_on_one_registry_notice_each_other(
    versions: None, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace}/.flawline/mlflow/mlflow.db")
    promote("bottle", 1, "first")
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    promote("bottle", 2, "better")
    assert acts() == [("done", "observed", None, 1), ("done", "promote", 1, 2)]
    assert verify("bottle").faults == ()
    monkeypatch.chdir(workspace)
    assert roll_back("bottle").number == 1
    assert acts() == [("done", "promote", None, 1), ("done", "observed", 1, 2), ("done", "roll back", 2, 1)]
    assert verify("bottle").faults == ()
    assert aliases() == {"champion": 1}


# Killed, raced, restarted, on each kind of store.


class Server:
    """A real MLflow server on one database and port, which can be killed and started again."""

    def __init__(self, folder: Path, database: str, stack: ExitStack) -> None:
        self._folder, self._database, self._stack, self._port = folder, database, stack, free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        """Begin to serve; what served before must have ended."""
        self.process = self._stack.enter_context(mlflow_server(self._folder, self._database, self._port))

    def kill(self) -> None:
        """End it as by `kill -9`."""
        kill_session(self.process)


@dataclass(frozen=True)
class Store:
    """Where MLflow's records are: a server, or None for the workspace's own file."""

    place: str
    server: Server | None

    @property
    def uri(self) -> str | None:
        """Of the server, if there is one."""
        return self.server.uri if self.server else None


@pytest.fixture(
    scope="module",
    params=["file", pytest.param("sqlite", marks=pytest.mark.slow), pytest.param("postgres", marks=pytest.mark.slow)],
)
def server(
    request: pytest.FixtureRequest, mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server | None]:
    """A real MLflow server on SQLite or PostgreSQL, or None. Each test uses categories of its own."""
    folder = tmp_path_factory.mktemp("server")
    with ExitStack() as stack:
        if request.param == "file":
            yield None
            return
        if request.param == "sqlite":
            database = f"sqlite:///{shutil.copy(mlflow_database, folder / 'server.db')}"
        else:
            if postgres_programs() is None:
                pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
            pytest.importorskip("psycopg2", reason="MLflow needs psycopg2 to use PostgreSQL")
            database = stack.enter_context(postgres_server())
        yield Server(folder, database, stack)


@pytest.fixture
def store(server: Server | None, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A workspace whose registry is its own file, or on a real server."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    if server is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    return Store(os.fspath(workspace), server)


def ready(category: str) -> None:
    """Version 1 is the champion, version 2 the challenger."""
    make_versions(category)
    promote(category, 1, "first")
    move_by_hand("challenger", 2, category)


def check_agreement(category: str) -> None:
    """One champion; after the next call, journal and registry agree and nothing is left open."""
    champion = aliases(category)["champion"]
    assert champion in (1, 2)
    intended = bool(journal(category)) and journal(category)[-1].state == "intended"
    settled = settle(category)
    last = journal(category)[-1]
    assert settled == aliases(category)["champion"]
    assert settled == (last.target if intended and last.kind != "reject" else champion)
    assert last.state == "done"
    assert verify(category).faults == ()
    assert find_version(category, settled).verdict.startswith("champion: ")


@pytest.mark.slow
@pytest.mark.parametrize("act", ["promote", "reject", "roll back"])
def test_killed_at_each_step(store: Store, act: str) -> None:
    for step in range(12):
        category = f"{act.replace(' ', '-')}-{step}"
        ready(category)
        if act == "roll back":
            promote(category, 2, "better")
        process = process_of(act_and_be_killed, store.place, store.uri, act, category, 2, step)
        process.start()
        process.join()
        check_agreement(category)
        if process.exitcode == 0:  # it had fewer writes than this
            assert step >= 5
            return
        assert process.exitcode == -9
    raise AssertionError("the act had more writes than were tried")


@pytest.mark.slow
def test_promoters_at_once(store: Store) -> None:
    make_versions("race")
    turns = ([1, 2, 3, 1], [2, 3, 1, 2], [3, 1, 2, 3])
    processes = [process_of(act_in_turn, store.place, store.uri, "race", turn) for turn in turns]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    moves = journal("race")
    assert [move.state for move in moves] == ["intended", "done"] * (len(moves) // 2)
    done = moves[1::2]
    assert [move.source for move in done] == [None, *(move.target for move in done[:-1])]
    assert aliases("race") == {"champion": done[-1].target, "previous": done[-1].source}
    assert verify("race").faults == ()


def test_mlflow_is_killed_in_between_and_started_again(store: Store) -> None:
    if store.server is None:
        pytest.skip("the workspace's own file has no server")
    for step in (0, 2, 4, 5):
        category = f"killed-{step}"
        ready(category)
        arguments = (store.place, store.server.uri, "promote", category, 2, step, store.server.process.pid)
        process = process_of(act_while_the_server_dies, *arguments)
        process.start()
        process.join()
        assert process.exitcode == 0
        store.server.kill()
        store.server.start()
        check_agreement(category)
        assert aliases(category)["champion"] == 2


def test_an_alias_moved_by_hand_on_each_store(store: Store) -> None:
    make_versions("hand")
    promote("hand", 1, "first")
    move_by_hand("champion", 3, "hand")
    assert roll_back("hand").number == 1
    assert acts("hand")[1:] == [("done", "observed", 1, 3), ("done", "roll back", 3, 1)]
    assert verify("hand").faults == ()
