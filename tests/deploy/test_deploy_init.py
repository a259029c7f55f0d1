"""`fftmoe deploy init`: the folder that it makes, who can read what, and what it refuses to make."""

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments import ADDRESS, NOW, PRIVATE, PUBLIC, SITES, everything_below, files_in, refused
from fftmoe.deploy.certificates import days_left
from fftmoe.deploy.folder import MAX_DAYS, Deployment, create_deployment, read_server, read_site
from fftmoe.deploy.names import check_sites
from fftmoe.errors import InputError, OutputError

HOSTS = st.sampled_from(["fl.example.org", "localhost", "10.1.2.3", "[2001:db8::7]"])
NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True)


def test_the_layout_is_as_described_and_only_the_owner_reads_the_keys(made: Path):
    assert files_in(made) == {**dict.fromkeys(PRIVATE, 0o600), **dict.fromkeys(PUBLIC, 0o644)}
    folders = [made, *(path for path in made.rglob("*") if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
    assert os.listdir(made.parent) == [made.name]


def test_client_ids_follow_the_order_in_which_the_sites_were_named(made: Path):
    expected = {"format": 1, "address": ADDRESS, "sites": list(SITES)}
    assert json.loads((made / "deployment.json").read_text()) == expected
    assert json.loads((made / "server" / "deployment.json").read_text()) == expected
    for i, name in enumerate(SITES):
        expected = {"format": 1, "name": name, "client_id": i, "address": ADDRESS}
        assert json.loads((made / "sites" / name / "site.json").read_text()) == expected


def test_the_readme_says_who_gets_what_how_to_start_and_what_never_to_send(made: Path):
    text = (made / "README.md").read_text()
    for name in SITES:
        assert f"fftmoe deploy client 'clinic study/sites/{name}' --data /path/to/data --budget small" in text
        assert f"fftmoe deploy site review recipe.yaml --site 'clinic study/sites/{name}'" in text
    assert "fftmoe deploy server 'clinic study/server' --recipe recipe.yaml --output runs/x" in text
    assert all(word in text for word in (ADDRESS, "ca/ca.key", "server/server.key", "node.key", "What never to send"))
    assert f"{NOW + timedelta(days=365):%Y-%m-%d}" in text
    assert "{" not in text


def test_what_was_made_is_read_back(made: Path):
    server = read_server(made / "server")
    assert (server.folder, server.deployment) == (made / "server", Deployment(ADDRESS, SITES))
    assert server.ca == (made / "ca" / "ca.crt").read_bytes()
    assert server.certificate == (made / "server" / "server.crt").read_bytes()
    assert server.key == (made / "server" / "server.key").read_bytes()
    for i, name in enumerate(SITES):
        site = read_site(made / "sites" / name)
        assert (site.folder, site.name, site.client_id) == (made / "sites" / name, name, i)
        assert (site.address, site.ca) == (ADDRESS, server.ca)
        assert site.key.public_key() == server.public_keys[i]
        assert isinstance(site.key.curve, ec.SECP384R1)


def test_no_secret_is_shown_when_a_folder_is_printed(made: Path):
    shown = repr(read_server(made / "server")) + repr(read_site(made / "sites" / "3"))
    assert "BEGIN" not in shown
    assert "key" not in shown


def test_every_key_is_another_and_no_two_deployments_share_one(made: Path, tmp_path: Path):
    create_deployment(tmp_path / "x", ADDRESS, SITES, days=365)
    keys = [(folder / name).read_bytes() for folder in (made, tmp_path / "x") for name in PRIVATE]
    assert len(set(keys)) == 2 * len(PRIVATE)
    numbers = [key.public_numbers() for f in (made, tmp_path / "x") for key in read_server(f / "server").public_keys]
    assert len({(n.x, n.y) for n in numbers}) == 2 * len(SITES)


def test_a_key_is_private_from_its_first_byte_whatever_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    opened: list[tuple[str, int]] = []
    really_open = os.open

    def spy(path: str, flags: int, mode: int = 0o777, **rest: int) -> int:
        descriptor = really_open(path, flags, mode, **rest)
        opened.append((Path(path).name, stat.S_IMODE(os.fstat(descriptor).st_mode)))
        return descriptor

    old = os.umask(0)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", spy)
            create_deployment(tmp_path / "x", ADDRESS, SITES, days=1)
    finally:
        os.umask(old)
    assert [mode for name, mode in opened if name.endswith(".key")] == [0o600] * len(PRIVATE)
    folders = [tmp_path / "x", *(path for path in (tmp_path / "x").rglob("*") if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}


@pytest.mark.parametrize("where", ["new", "deep/er/new", "empty", "link"])
def test_a_folder_that_is_new_or_empty_is_taken(tmp_path: Path, where: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    create_deployment(tmp_path / where, ADDRESS, SITES, days=1)
    assert read_server(tmp_path / where / "server").deployment.sites == SITES
    assert not [name for name in everything_below(tmp_path) if ".deploy-" in name]


def test_a_relative_folder_is_taken_from_where_the_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    create_deployment(Path("study"), ADDRESS, ["a"], days=1)
    assert read_site(Path("study/sites/a")).name == "a"
    assert "A federation of 1 site\n" in (tmp_path / "study" / "README.md").read_text()


@pytest.mark.parametrize("address", ["https://fl.example.org:9092", "fl.example.org", "../x:1", "fl.example.org:0"])
def test_an_address_that_no_site_could_call_is_refused(tmp_path: Path, address: str):
    with pytest.raises(InputError, match=f"the address '{address}' .*; write host:port"):
        create_deployment(tmp_path / "x", address, SITES, days=365)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sites", "words"),
    [
        ([], "there are no sites; name at least one, such as --sites"),
        (["a", ""], "site 2 cannot be called ''; use 1 to 32"),
        (["Hospital"], "site 1 cannot be called 'Hospital'"),
        (["a" * 33], "cannot be called"),
        (["-a"], "no hyphen in front"),
        (["a b"], "cannot be called 'a b'"),
        (["a\n"], "cannot be called"),
        (["../../etc"], "cannot be called '../../etc'"),
        ([".."], "cannot be called"),
        (["a/b"], "cannot be called"),
        (["é"], "cannot be called"),
        (["a", "b", "a"], "two sites are called 'a'; give each its own name"),
    ],
)
def test_a_name_that_cannot_be_a_folder_is_refused(tmp_path: Path, sites: list[str], words: str):
    with pytest.raises(InputError) as caught:
        create_deployment(tmp_path / "x", ADDRESS, sites, days=365)
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("days", [-1, 0, MAX_DAYS + 1])
def test_certificates_are_valid_for_a_day_to_ten_years(tmp_path: Path, days: int):
    with pytest.raises(InputError, match=rf"for {days:,} days; give --days from 1 to 3650"):
        create_deployment(tmp_path / "x", ADDRESS, SITES, days)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("full", "is not empty, and keys are never overwritten; name a new one"),
        ("full/mine.txt", "mine.txt is a file; name another"),
        ("full/mine.txt/below", "mine.txt is a file; name another"),
        ("x" * 300, "File name too long; name another"),
        ("loop", "name another"),
    ],
)
def test_a_folder_that_is_taken_is_refused_and_untouched(tmp_path: Path, where: str, words: str):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=words):
        create_deployment(tmp_path / where, ADDRESS, SITES, days=365)
    assert everything_below(tmp_path) == {"full", "full/mine.txt", "loop"}
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_the_folder_that_the_command_runs_in_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"\. is the folder that the command runs in; name a new one below it"):
        create_deployment(Path("."), ADDRESS, SITES, days=365)
    assert list(tmp_path.iterdir()) == []


def test_a_second_deployment_does_not_overwrite_the_first(made: Path):
    before = {name: (made / name).read_bytes() for name in files_in(made)}
    with pytest.raises(InputError, match="is not empty"):
        create_deployment(made, ADDRESS, SITES, days=365)
    assert {name: (made / name).read_bytes() for name in files_in(made)} == before


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, what: str, call: int, error: BaseException) -> Iterator[list[int]]:
    """`os.<what>` raises on this call (from 0 on); yields the calls so far."""
    calls: list[int] = []
    real = getattr(os, what)

    def fail(*args: object, **rest: object) -> object:
        calls.append(len(calls))
        if len(calls) == call + 1:
            raise error
        return real(*args, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, what, fail)
        yield calls


@pytest.mark.parametrize("what", ["fsync", "mkdir", "rename"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_a_failure_at_any_step_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, error: BaseException
):
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with failing(monkeypatch, what, -1, error) as calls:  # counts
        create_deployment(tmp_path / "count" / "x", ADDRESS, ["a"], days=1)
    shutil.rmtree(tmp_path / "count")
    for call in calls:
        with failing(monkeypatch, what, call, error), pytest.raises(expected) as caught:
            create_deployment(tmp_path / "count" / "x", ADDRESS, ["a"], days=1)
        assert list(tmp_path.iterdir()) == []
        if expected is OutputError:
            words = f"cannot write {tmp_path / 'count' / 'x'}: No space left on device; free space, or name another"
            assert words in str(caught.value)


def test_a_disk_that_is_really_full_leaves_nothing(
    tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]]
):
    with full_disk(400), pytest.raises(OutputError, match=r"cannot write .*: File too large"):
        create_deployment(tmp_path / "x", ADDRESS, SITES, days=1)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_an_empty_folder_and_its_parents_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "empty").mkdir(mode=0o750)
    with failing(monkeypatch, "rename", 0, OSError(errno.EBUSY, "busy")), pytest.raises(OutputError, match="busy"):
        create_deployment(tmp_path / "empty", ADDRESS, SITES, days=1)
    assert everything_below(tmp_path) == {"empty"}


def test_a_folder_that_is_filled_meanwhile_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    really_rename = os.rename

    def rename(source: Path, target: Path) -> None:
        target.mkdir()
        (target / "mine.txt").write_text("mine")
        really_rename(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OutputError, match="not empty"):
        create_deployment(tmp_path / "x", ADDRESS, SITES, days=1)
    assert everything_below(tmp_path) == {"x", "x/mine.txt"}


@given(st.lists(NAMES, min_size=1, unique=True))
def test_good_names_are_accepted(sites: list[str]):
    check_sites(sites)


@given(st.one_of(st.text(), st.from_regex(r"[./~a-z0-9-]{0,40}")))
def test_any_text_is_a_name_inside_the_folder_or_is_refused(name: str):
    advice = refused(check_sites, [name])
    if advice is not None:
        assert repr(name) in advice
        return
    assert (Path("/x/sites") / name).resolve().parent == Path("/x/sites")
    assert Path(name).name == name


@settings(max_examples=15)  # each makes folders and keys
@given(st.lists(NAMES, min_size=1, max_size=4, unique=True), HOSTS, st.integers(1, 65535), st.integers(1, MAX_DAYS))
def test_whatever_is_made_can_be_read(sites: list[str], host: str, port: int, days: int):
    with TemporaryDirectory() as folder:
        create_deployment(Path(folder) / "x", f"{host}:{port}", sites, days)
        server = read_server(Path(folder) / "x" / "server")
        read = [read_site(Path(folder) / "x" / "sites" / name) for name in sites]
    assert server.deployment == Deployment(f"{host}:{port}", tuple(sites))
    assert days_left(server.certificate) in (days - 1, days)
    assert [(site.name, site.client_id) for site in read] == [(name, i) for i, name in enumerate(sites)]
    assert [site.key.public_key() for site in read] == list(server.public_keys)
