"""The folder of a deployment: who can read what, what TLS makes of it, and what is refused and why."""

import errno
import json
import os
import re
import shutil
import ssl
import stat
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_public_key,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fftmoe.deploy.certificates import days_left, expiry_warning
from fftmoe.deploy.folder import MAX_DAYS, Deployment, create_deployment, read_server, read_site
from fftmoe.deploy.keys import Certified, make_authority, make_server_certificate, make_site_key
from fftmoe.deploy.names import check_sites
from fftmoe.errors import InputError, OutputError

ADDRESS = "fl.example.org:9092"
SITES = ("hospital-b", "hospital-a", "3")
NOW = datetime.now(UTC)
Result = TypeVar("Result")
PRIVATE = {"ca/ca.key", "server/server.key", *(f"sites/{name}/node.key" for name in SITES)}
PUBLIC = {
    "README.md",
    "ca/ca.crt",
    "deployment.json",
    *(f"server/{name}" for name in ("ca.crt", "server.crt", "deployment.json")),
    *(f"server/sites/{name}.pub" for name in SITES),
    *(f"sites/{name}/{file}" for name in SITES for file in ("ca.crt", "site.json")),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment that no test changes."""
    folder = tmp_path_factory.mktemp("made") / "clinic study"
    old = os.umask(0o022)
    try:
        create_deployment(folder, ADDRESS, SITES, days=365)
    finally:
        os.umask(old)
    return folder


@pytest.fixture
def server(made: Path, tmp_path: Path) -> Path:
    """A copy of the server's folder."""
    return Path(shutil.copytree(made / "server", tmp_path / "server"))


@pytest.fixture
def site(made: Path, tmp_path: Path) -> Path:
    """A copy of the folder of client 1."""
    return Path(shutil.copytree(made / "sites" / "hospital-a", tmp_path / "site"))


def files_in(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()
    }


def everything_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def certify(folder: Path, days: int = 30, start: datetime = NOW, host: str = "fl.example.org") -> Certified:
    """Put a new authority and a new server certificate in place of the old ones."""
    authority = make_authority(days, start)
    certificate = make_server_certificate(authority, host, days, start)
    (folder / "ca.crt").write_bytes(authority.certificate)
    (folder / "server.crt").write_bytes(certificate.certificate)
    (folder / "server.key").write_bytes(certificate.key)
    return authority


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def refused(function: Callable[[Any], Result], argument: object) -> Result | str:
    """What the function returns, or the message with which it refuses its argument."""
    try:
        return function(argument)
    except InputError as error:
        return str(error)


def handshake(folder: Path, ca: Path, host: str) -> None:
    """A TLS handshake of the server in `folder` and a client that trusts `ca` and calls `host`, in memory."""
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(folder / "server.crt", folder / "server.key")
    client_side = ssl.create_default_context(cafile=str(ca))
    client_side.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    waiting = [
        client_side.wrap_bio(to_client, to_server, server_hostname=host),
        server_side.wrap_bio(to_server, to_client, server_side=True),
    ]
    while waiting:
        for end in tuple(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                pass


# What is made.


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


# What TLS makes of it.


@pytest.mark.parametrize("host", ["fl.example.org", "localhost", "127.0.0.1"])
def test_a_site_that_knows_the_authority_accepts_the_server(made: Path, host: str):
    handshake(made / "server", made / "sites" / "3" / "ca.crt", host)


@pytest.mark.parametrize("host", ["example.org", "fl.example.com", "a.fl.example.org", "127.0.0.2", "::1"])
def test_the_server_cannot_pose_as_another_host(made: Path, host: str):
    with pytest.raises(ssl.SSLCertVerificationError, match=r"mismatch|not valid for"):
        handshake(made / "server", made / "sites" / "3" / "ca.crt", host)


def test_another_authority_is_refused(made: Path, tmp_path: Path):
    (tmp_path / "ca.crt").write_bytes(make_authority(1, NOW).certificate)
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        handshake(made / "server", tmp_path / "ca.crt", "fl.example.org")


def test_a_server_cannot_sign_for_others(made: Path, tmp_path: Path):
    """Whoever takes the server's key can make no certificate that a site accepts."""
    stolen = Certified(*((made / "server" / name).read_bytes() for name in ("server.crt", "server.key")))
    forged = make_server_certificate(stolen, "bank.example.org", 1, NOW)
    (tmp_path / "server.crt").write_bytes(forged.certificate + stolen.certificate)
    (tmp_path / "server.key").write_bytes(forged.key)
    with pytest.raises(ssl.SSLCertVerificationError, match="invalid CA"):
        handshake(tmp_path, made / "ca" / "ca.crt", "bank.example.org")


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("10.1.2.3:9092", "10.1.2.3"),
        ("[2001:db8::7]:9092", "2001:db8::7"),
        ("127.0.0.1:1", "127.0.0.1"),
        ("[::1]:65535", "::1"),
        ("localhost:9092", "localhost"),
        ("FL.Example.ORG:9092", "fl.example.org"),
        (f"{'a.' * 126}a:9092", f"{'a.' * 126}a"),  # far longer than a common name may be
    ],
)
def test_every_kind_of_host_is_accepted_by_its_name_and_read_back(tmp_path: Path, address: str, host: str):
    create_deployment(tmp_path / "x", address, ["a"], days=MAX_DAYS)
    handshake(tmp_path / "x" / "server", tmp_path / "x" / "sites" / "a" / "ca.crt", host)
    assert read_server(tmp_path / "x" / "server").deployment.address == address
    assert read_site(tmp_path / "x" / "sites" / "a").address == address


def test_an_authority_whose_parts_do_not_belong_together_signs_nothing():
    one, other = make_authority(1, NOW), make_authority(1, NOW)
    with pytest.raises(ValueError, match="not the key of its certificate"):
        make_server_certificate(Certified(one.certificate, other.key), "a", 1, NOW)


def test_a_site_key_is_one_line_of_openssh():
    key = make_site_key()
    assert re.fullmatch(rb"ecdsa-sha2-nistp384 [A-Za-z0-9+/=]+\n", key.public)
    assert key.private.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----\n")
    assert isinstance(load_ssh_public_key(key.public), ec.EllipticCurvePublicKey)


# What cannot be made.


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
    with pytest.raises(InputError, match=rf"for {days} days; give --days from 1 to 3650"):
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


# What cannot be read.


@pytest.mark.parametrize("name", ["ca.crt", "server.crt", "server.key", "sites/hospital-a.pub", "sites"])
def test_the_server_says_which_file_is_missing(server: Path, name: str):
    shutil.rmtree(server / name) if name == "sites" else (server / name).unlink()
    with pytest.raises(InputError, match=rf"/{name}.* is missing; copy it again from the folder that `fftmoe deploy"):
        read_server(server)


@pytest.mark.parametrize("name", ["ca.crt", "node.key"])
def test_a_site_says_which_file_is_missing(site: Path, name: str):
    (site / name).unlink()
    with pytest.raises(InputError, match=rf"/{name} is missing; copy it again"):
        read_site(site)


def test_another_folder_of_the_deployment_is_recognised(made: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"is a whole deployment, not the server's folder; pass its server/"):
        read_server(made)
    with pytest.raises(InputError, match=r"is a whole deployment, not a site's folder; pass its sites/<name>/"):
        read_site(made)
    with pytest.raises(InputError, match=r"is not the server's folder: it has no deployment.json; pass server/ from"):
        read_server(made / "sites" / "3")
    for other in (made / "server", made / "sites", tmp_path):
        with pytest.raises(InputError, match=r"is not a site's folder: it has no site.json; pass sites/<name>/ from"):
            read_site(other)


@pytest.mark.parametrize(("file", "words"), [(False, "No such file"), (True, "Not a directory")])
def test_a_folder_that_is_not_there_is_named(tmp_path: Path, file: bool, words: str):
    if file:
        (tmp_path / "x").touch()
    with pytest.raises(InputError, match=f"cannot open the folder {tmp_path / 'x'}: {words}.*; pass the server's"):
        read_server(tmp_path / "x")
    with pytest.raises(InputError, match=f"cannot open the folder {tmp_path / 'x'}: {words}.*; pass a site's"):
        read_site(tmp_path / "x")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o660, 0o777])
def test_a_private_key_that_others_can_open_is_refused_with_the_remedy(server: Path, site: Path, mode: int):
    (server / "server.key").chmod(mode)
    (site / "node.key").chmod(mode)
    for path, read in ((server / "server.key", read_server), (site / "node.key", read_site)):
        with pytest.raises(InputError, match=rf"open to other users \(mode {mode:04o}\); run: chmod 600 ") as caught:
            read(path.parent)
        os.system(str(caught.value).rpartition("run: ")[2])
        read(path.parent)


def test_the_remedy_can_be_pasted_when_the_path_has_a_space(made: Path, tmp_path: Path):
    folder = Path(shutil.copytree(made / "sites" / "3", tmp_path / "a b"))
    (folder / "node.key").chmod(0o644)
    with pytest.raises(InputError, match=rf"run: chmod 600 '{folder / 'node.key'}'$"):
        read_site(folder)


def test_a_file_that_cannot_be_read_is_named(server: Path):
    (server / "ca.crt").unlink()
    (server / "ca.crt").mkdir()
    with pytest.raises(InputError, match=r"cannot read .*ca.crt: Is a directory; make it readable, or copy it again"):
        read_server(server)


@pytest.mark.parametrize("content", ["", "{", "\udcff", "[" * 100_000], ids=["empty", "cut", "binary", "deep"])
def test_a_file_that_is_not_json_is_damaged(server: Path, site: Path, content: str):
    for path, read in ((server / "deployment.json", read_server), (site / "site.json", read_site)):
        path.write_bytes(content.encode(errors="surrogateescape"))
        with pytest.raises(
            InputError, match=rf"{path} is damaged or not from `fftmoe deploy init`: not JSON .*copy it"
        ):
            read(path.parent)


@pytest.mark.parametrize("content", ["[]", "1", "null", "{}", '{"format": "1"}', '{"format": true}'])
def test_json_of_another_kind_is_damaged(server: Path, content: str):
    (server / "deployment.json").write_text(content)
    wrong = r'it has no {"format": \.\.\.}' if content[0] == "{" else r"not JSON \(.*; expected an object\)"
    with pytest.raises(InputError, match=rf"is damaged or .*: {wrong}; copy it again"):
        read_server(server)


def test_another_format_names_both(server: Path, site: Path):
    for path, read in ((server / "deployment.json", read_server), (site / "site.json", read_site)):
        edit(path, format=2, more="fields")
        with pytest.raises(InputError, match=rf"{path} has format 2, and this fftmoe reads format 1; use the version"):
            read(path.parent)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"more": 1}, "it has address, format, more, sites and should have format, address, sites"),
        ({"address": 1}, "address is 1 and should be of type str"),
        ({"address": "fl.example.org"}, "the address 'fl.example.org' has no port"),
        ({"sites": "abc"}, "sites is 'abc' and should be of type list"),
        ({"sites": []}, "there are no sites"),
        ({"sites": [1]}, "site 1 cannot be called 1"),
        ({"sites": [["a"]]}, "site 1 cannot be called ['a']"),
        ({"sites": ["../../sites/3/node"]}, "site 1 cannot be called '../../sites/3/node'"),
        ({"sites": ["3", "3"]}, "two sites are called '3'"),
    ],
)
def test_a_wrong_field_of_the_deployment_is_named(server: Path, fields: dict, words: str):
    edit(server / "deployment.json", **fields)
    with pytest.raises(InputError, match=re.escape(words) + ".*copy it again") as caught:
        read_server(server)
    assert "deployment.json is damaged" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"more": 1}, "and should have format, name, client_id, address"),
        ({"name": None}, "name is None and should be of type str"),
        ({"name": "../x"}, "site 1 cannot be called '../x'"),
        ({"client_id": True}, "client_id is True and should be of type int"),
        ({"client_id": 1.0}, "client_id is 1.0 and should be of type int"),
        ({"client_id": -1}, "client_id is -1 and should be 0 or more"),
        ({"address": "http://fl.example.org:9092"}, "has a scheme"),
    ],
)
def test_a_wrong_field_of_a_site_is_named(site: Path, fields: dict, words: str):
    edit(site / "site.json", **fields)
    with pytest.raises(InputError, match=re.escape(words) + ".*copy it again") as caught:
        read_site(site)
    assert "site.json is damaged" in str(caught.value)


def test_a_certificate_that_has_expired_is_refused_with_its_dates(server: Path, site: Path):
    authority = certify(server, days=1, start=datetime(2024, 2, 28, 12, tzinfo=UTC))
    (site / "ca.crt").write_bytes(authority.certificate)
    dates = r"expired: it is valid from 2024-02-28 11:55 to 2024-02-29 12:00 UTC, and it is 20.* UTC; make a new depl"
    with pytest.raises(InputError, match=dates):
        read_server(server)
    with pytest.raises(InputError, match=dates):
        read_site(site)


def test_a_certificate_that_is_not_valid_yet_is_refused_with_its_dates(server: Path, site: Path):
    authority = certify(server, days=1, start=datetime(2124, 2, 28, 12, tzinfo=UTC))
    (site / "ca.crt").write_bytes(authority.certificate)
    dates = r"not valid yet: it is valid from 2124-02-28 11:55 to 2124-02-29 12:00 UTC, and .* set this machine's clock"
    with pytest.raises(InputError, match=dates):
        read_server(server)
    with pytest.raises(InputError, match=dates):
        read_site(site)


def test_an_expired_certificate_of_the_server_alone_is_refused(made: Path, server: Path):
    authority = Certified(*((made / "ca" / name).read_bytes() for name in ("ca.crt", "ca.key")))
    old = make_server_certificate(authority, "fl.example.org", 1, NOW - timedelta(days=2))
    (server / "server.crt").write_bytes(old.certificate)
    with pytest.raises(InputError, match=r"the certificate .*server.crt has expired"):
        read_server(server)


def test_the_operator_can_sign_for_another_address_with_the_same_authority(made: Path, server: Path):
    authority = Certified(*((made / "ca" / name).read_bytes() for name in ("ca.crt", "ca.key")))
    other = make_server_certificate(authority, IPv4Address("10.1.2.3"), 1, NOW)
    (server / "server.crt").write_bytes(other.certificate)
    (server / "server.key").write_bytes(other.key)
    with pytest.raises(InputError, match=r"for localhost, 10.1.2.3, 127.0.0.1 and not for fl.example.org, the host"):
        read_server(server)
    edit(server / "deployment.json", address="10.1.2.3:9092")
    assert read_server(server).deployment.address == "10.1.2.3:9092"
    handshake(server, made / "sites" / "3" / "ca.crt", "10.1.2.3")


def test_a_certificate_for_another_host_is_refused(server: Path):
    edit(server / "deployment.json", address="[2001:db8::7]:9092")
    with pytest.raises(
        InputError, match=r"and not for 2001:db8::7, the host of the address; copy it again .*make a new"
    ):
        read_server(server)


def test_files_of_another_deployment_are_refused(server: Path, tmp_path: Path):
    create_deployment(tmp_path / "other", ADDRESS, SITES, days=1)
    for name, words in (
        ("ca.crt", r"server.crt is damaged .*: the authority in .*ca.crt did not sign it; copy it again"),
        (
            "server.key",
            r"server.key is damaged .*: it is not the key of the certificate in the same folder; copy it again",
        ),
    ):
        mine = (server / name).read_bytes()
        shutil.copy(tmp_path / "other" / "server" / name, server / name)
        with pytest.raises(InputError, match=words):
            read_server(server)
        (server / name).write_bytes(mine)
    read_server(server)


def test_a_certificate_that_is_no_authority_is_not_trusted(server: Path, site: Path):
    certificate = (server / "server.crt").read_bytes()
    (server / "ca.crt").write_bytes(certificate)
    (site / "ca.crt").write_bytes(certificate)
    with pytest.raises(InputError, match=r"ca.crt is damaged .*: it is not the certificate of an authority"):
        read_server(server)
    with pytest.raises(InputError, match=r"ca.crt is damaged .*: it is not the certificate of an authority"):
        read_site(site)


def test_an_authority_is_no_server(server: Path):
    authority = certify(server)
    (server / "server.crt").write_bytes(authority.certificate)
    (server / "server.key").write_bytes(authority.key)
    with pytest.raises(InputError, match=r"server.crt is a certificate for no host and not for fl.example.org"):
        read_server(server)


def test_a_certificate_that_the_sites_would_refuse_is_refused(server: Path, monkeypatch: pytest.MonkeyPatch):
    """As one that may not be used by a server."""
    client_only = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH])
    monkeypatch.setattr(x509, "ExtendedKeyUsage", lambda _: client_only)
    certify(server)
    with pytest.raises(InputError, match=r"server.crt is damaged .*: a site would refuse it .*EKU"):
        read_server(server)


@pytest.mark.parametrize("name", ["ca.crt", "server.crt"])
@pytest.mark.parametrize(
    ("found", "instead"),
    [
        ("06072a8648ce3d0201", "06072a8648ce3d027f"),  # the kind of the public key, looked at when asked for
        ("a003020102", "a003020107"),  # the certificate's version
    ],
)
def test_a_certificate_that_says_what_nobody_knows_is_refused(server: Path, name: str, found: str, instead: str):
    """Each of these makes cryptography raise an error of its own kind."""
    certificate = ssl.PEM_cert_to_DER_cert((server / name).read_text())
    assert bytes.fromhex(found) in certificate
    damaged = certificate.replace(bytes.fromhex(found), bytes.fromhex(instead))
    (server / name).write_text(ssl.DER_cert_to_PEM_cert(damaged))
    with pytest.raises(InputError, match=f"{name} is damaged .*; copy it again"):
        read_server(server)


@pytest.mark.parametrize("name", ["ca.crt", "server.crt"])
def test_a_certificate_file_holds_one_certificate(server: Path, name: str):
    """What is appended to ca.crt would be trusted as well."""
    whole = (server / name).read_bytes()
    for content, words in ((whole * 2, "it holds 2 certificates"), (whole[:-60], "it holds no certificate")):
        (server / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} is damaged .*: {words}; copy it again"):
            read_server(server)


def test_a_server_key_with_a_passphrase_or_none_at_all_is_refused(server: Path):
    locked = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    for content in (locked, b"", b"x"):
        (server / "server.key").write_bytes(content)
        with pytest.raises(InputError, match=r"server.key is damaged .*: it holds no private key without a passphrase"):
            read_server(server)


def test_a_site_key_of_another_kind_is_refused(site: Path):
    for key in (ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()):
        (site / "node.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        with pytest.raises(InputError, match=r"node.key is damaged .*: it is not an ECDSA P-384 key; copy it again"):
            read_site(site)
    pem = ec.generate_private_key(ec.SECP384R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for content in (pem, b"", b"x"):
        (site / "node.key").write_bytes(content)
        with pytest.raises(InputError, match=r"node.key is damaged .*: it holds no OpenSSH private key without a pass"):
            read_site(site)


def test_a_site_key_whose_halves_do_not_belong_together_is_refused(site: Path):
    """The server would refuse it as a key that it does not know."""
    begin, *lines, end = (site / "node.key").read_bytes().splitlines()
    raw = bytearray(b64decode(b"".join(lines)))
    raw[-20] ^= 1  # in the private half, which comes last
    (site / "node.key").write_bytes(b"\n".join([begin, b64encode(raw), end]))
    with pytest.raises(InputError, match=r"node.key is damaged .*: its private half does not belong to its public"):
        read_site(site)


def test_a_public_key_of_another_kind_is_refused(server: Path):
    path = server / "sites" / "3.pub"
    for key in (ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()):
        path.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
        with pytest.raises(InputError, match=r"3.pub is damaged .*: it is not an ECDSA P-384 key; copy it again"):
            read_server(server)
    kind, blob = make_site_key().public.split()
    raw = bytearray(b64decode(blob))
    raw[-97] = 3  # the first byte of the point, which would be a compressed one
    compressed = kind + b" " + b64encode(raw)
    for content in (b"", b"ecdsa-sha2-nistp384 AAAA", make_site_key().private, compressed):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"3.pub is damaged .*: it holds no OpenSSH public key; copy it again"):
            read_server(server)


def test_two_sites_with_one_key_are_refused(server: Path):
    same = (server / "sites" / "3.pub").read_text().strip() + " with a comment\n"  # the key counts, not the text
    (server / "sites" / "hospital-b.pub").write_text(same)
    with pytest.raises(InputError, match=r"the sites hospital-b and 3 have the same key, so the server could not"):
        read_server(server)


def test_a_key_of_nobody_is_refused_and_other_files_are_left_alone(server: Path):
    (server / "sites" / "._3.pub").write_bytes(b"what a file manager leaves")
    (server / "sites" / "notes.txt").write_bytes(b"mine")
    read_server(server)
    (server / "sites" / "intruder.pub").write_bytes(make_site_key().public)
    with pytest.raises(
        InputError, match=r"has keys of intruder, which deployment.json does not name; remove them, or make a new"
    ):
        read_server(server)


# Dates.


def test_days_left_are_whole_days():
    certificate = make_authority(10, NOW).certificate
    assert days_left(certificate, NOW) in (9, 10)  # a certificate's dates are whole seconds
    assert days_left(certificate, NOW + timedelta(days=8, hours=12)) == 1
    assert days_left(certificate, NOW + timedelta(days=9, hours=12)) == 0
    assert days_left(certificate, NOW + timedelta(days=10, hours=12)) == -1
    assert days_left(make_authority(10, datetime.now(UTC)).certificate) in (9, 10)


def test_a_warning_comes_in_the_last_month():
    certificate = make_authority(40, datetime(2024, 1, 1, tzinfo=UTC)).certificate  # to 10 February
    assert expiry_warning(certificate, "the certificate", datetime(2024, 1, 11, tzinfo=UTC)) is None
    for day in (12, 31):
        warning = expiry_warning(certificate, "the certificate", datetime(2024, 1, day, tzinfo=UTC))
        assert warning is not None
        assert warning.startswith(
            "the certificate expires on 2024-02-10, and no round can start after that; make a new"
        )


# Laws.

hosts = st.sampled_from(["fl.example.org", "localhost", "10.1.2.3", "[2001:db8::7]"])
names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True)


@given(st.lists(names, min_size=1, unique=True))
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
@given(st.lists(names, min_size=1, max_size=4, unique=True), hosts, st.integers(1, 65535), st.integers(1, MAX_DAYS))
def test_whatever_is_made_can_be_read(sites: list[str], host: str, port: int, days: int):
    with TemporaryDirectory() as folder:
        create_deployment(Path(folder) / "x", f"{host}:{port}", sites, days)
        server = read_server(Path(folder) / "x" / "server")
        read = [read_site(Path(folder) / "x" / "sites" / name) for name in sites]
    assert server.deployment == Deployment(f"{host}:{port}", tuple(sites))
    assert days_left(server.certificate) in (days - 1, days)
    assert [(site.name, site.client_id) for site in read] == [(name, i) for i, name in enumerate(sites)]
    assert [site.key.public_key() for site in read] == list(server.public_keys)


# A damaged serial number is warned of before its signature is refused.
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@settings(max_examples=50)
@given(st.data())
def test_damage_is_refused_in_words_or_harmless(made: Path, data: st.DataObject):
    """Whatever happens to a byte of a file, nobody sees a traceback."""
    with TemporaryDirectory() as temporary:
        folder = Path(shutil.copytree(made, Path(temporary) / "x"))
        readable = [f for f in (PRIVATE | PUBLIC) if f.startswith(("server/", "sites/hospital-a/"))]
        path = folder / data.draw(st.sampled_from(sorted(readable)))
        content = bytearray(path.read_bytes())
        if data.draw(st.booleans()):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        else:
            content = data.draw(st.binary(max_size=64)) + content[: data.draw(st.integers(0, len(content)))]
        path.write_bytes(content)
        for read, part in ((read_server, "server"), (read_site, "sites/hospital-a")):
            found = refused(read, folder / part)
            assert not isinstance(found, str) or str(folder / part) in found
