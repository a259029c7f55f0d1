"""Data that nobody has divided: which rows become test rows, and files of which each is a client."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.data import SplitRequest, Table, read_tables, texts_of
from fftmoe.data.list_cells import ListCells
from fftmoe.data.undivided import divide, read_undivided
from fftmoe.errors import InputError
from tables import write_csv, write_json, write_jsonl, write_parquet

ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(("01", "1", "NA", ""))), min_size=2, max_size=60)
CONTENT = {"data.text": ["text"], "data.label": ["label"]}


def table_of(rows: list[tuple[str, str]]) -> Table:
    clients, labels = (list(values) for values in zip(*rows, strict=True))
    return Table.of("a.csv", {"place": list(range(len(rows))), "label": labels, "client": clients})


@given(rows=ROWS)
def test_every_row_is_in_one_split_and_every_label_and_client_keeps_a_training_row(rows: list[tuple[str, str]]):
    table = table_of(rows)
    if max(Counter(label for _, label in rows).values()) == 1:
        with pytest.raises(InputError, match=r"a label in column 'label' that no other row has, .*\(--label\)"):
            divide(table, "label", "client")
        return
    splits = divide(table, "label", "client")
    train, test = (splits[name].columns for name in ("train", "test"))
    assert sorted((*train["place"], *test["place"])) == list(range(len(rows)))
    assert list(train["place"]) == sorted(train["place"])
    assert list(test["place"]) == sorted(test["place"])
    assert set(train["label"]) == {label for _, label in rows}
    if len(set(train["client"])) < len({client for client, _ in rows}):
        assert max(Counter(client for client, _ in rows).values()) == 1
    assert divide(table, "label", "client")["test"].columns == test


LISTS = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=4), min_size=2, max_size=60)


@pytest.mark.parametrize("kind", [list, tuple])
@given(lists=LISTS, clients=st.integers(1, 3))
def test_every_label_or_tag_of_a_list_keeps_a_training_row(kind: type, lists: list[list[str]], clients: int):
    columns = {"tags": list(map(kind, lists)), "client": [row % clients for row in range(len(lists))]}
    table = Table.of("a.jsonl", columns)
    times = Counter(name for own in lists for name in set(own))
    if all(any(times[name] == 1 for name in own) for own in lists):
        with pytest.raises(InputError, match="in column 'tags' that no other row has"):
            divide(table, "tags", "client")
        return
    splits = divide(table, "tags", "client")
    train, test = (splits[name].columns["tags"] for name in ("train", "test"))
    assert {name for own in train for name in own} == set(times)
    assert test
    assert len(train) + len(test) == len(lists)


def test_a_label_that_occurs_once_in_lists_of_cells_is_trained_on(tmp_path: Path):
    labels = [f"x|y{row % 3}" for row in range(100)]
    for row in range(0, 100, 2):
        labels[row] = f"x|only-{row}"
    write_csv(tmp_path / "a.csv", {"text": [f"ash {row}" for row in range(100)], "label": labels})
    request = SplitRequest(lists=ListCells(["label"], "|"))
    found = read_tables(str(tmp_path / "a.csv"), CONTENT, request=request)
    trained = {name for own in found["train"].columns["label"] for name in own}
    assert trained == {name for cell in labels for name in cell.split("|")}
    assert found["test"].num_rows == 20


def test_one_row_cannot_be_divided():
    with pytest.raises(InputError, match="it has one row, and none is left for tests"):
        divide(Table.of("a.csv", {"text": ["ash"]}), None, None)


@given(sizes=st.lists(st.integers(5, 41), min_size=1, max_size=5), labels=st.integers(1, 3))
def test_a_fifth_of_every_client_and_label_is_test_rows(sizes: list[int], labels: int):
    rows = [(f"c{client}", str(row % labels)) for client, size in enumerate(sizes) for row in range(size)]
    test = divide(table_of(rows), "label", "client")["test"].columns
    drawn, held = Counter(zip(test["client"], test["label"], strict=True)), Counter(rows)
    for pair, number in held.items():
        assert abs(drawn[pair] - number / 5) <= 1  # the rows of a pair are next to each other when each fifth is taken
    assert abs(len(test["label"]) - sum(sizes) / 5) <= 1


def test_rows_are_spread_over_clients_alone_where_there_are_no_labels():
    table = Table.of("a.csv", {"client": [*("a" * 10), *("b" * 15)], "tags": [["x"]] * 25})
    for label in (None, "tags", "absent"):
        assert Counter(divide(table, label, "client")["test"].columns["client"]) == {"a": 2, "b": 3}


def test_a_message_names_the_row_as_its_own_file_has_it(tmp_path: Path):
    texts = [f"ash {n}" for n in range(23)]
    for name, empty in (("north", None), ("south", 16)):
        own = [" " if place == empty else text for place, text in enumerate(texts)]
        write_csv(tmp_path / f"{name}.csv", {"text": own, "label": ["xy"[n % 2] for n in range(23)]})
    found = read_tables(str(tmp_path), CONTENT)
    messages = []
    for table in found.values():
        try:
            texts_of(table, "data.text", "text")
        except InputError as error:
            messages.append(str(error))
    assert len(messages) == 1
    assert "column 'text' is empty in row 17 of south.csv" in messages[0]


def test_files_of_any_format_become_the_clients_of_their_names(tmp_path: Path):
    columns = {"text": [f"ash {n}" for n in range(7)], "label": ["01", "1", "NA", "01", "1", "NA", "01"]}
    write_csv(tmp_path / "b.csv", columns, ";")
    write_jsonl(tmp_path / "a.jsonl", columns)
    write_parquet(tmp_path / "c d.parquet", {**columns, "id": ["1"] * 7})
    (tmp_path / "notes.md").write_text("no table")
    table = read_undivided(tmp_path)
    assert table is not None
    assert set(table.columns) == {"text", "label", "client"}
    assert Counter(table.columns["client"]) == {"a": 7, "b": 7, "c d": 7}
    assert list(table.columns["label"]) == columns["label"] * 3
    assert "without column 'id', which b lacks" in table.where
    site = read_tables(str(tmp_path), CONTENT, request=SplitRequest(("train",), divide=False))
    assert site["train"].num_rows == 21


def test_a_json_file_beside_tables_is_no_client(tmp_path: Path):
    columns = {"text": ["ash", "bay"], "label": ["x", "y"]}
    for name in ("north", "south"):
        write_json(tmp_path / f"{name}.json", columns)
    alone = read_undivided(tmp_path)
    assert alone is not None
    assert Counter(alone.columns["client"]) == {"north": 2, "south": 2}
    write_csv(tmp_path / "east.tsv", columns, "\t")
    write_csv(tmp_path / "west.csv", columns)
    beside = read_undivided(tmp_path)
    assert beside is not None
    assert Counter(beside.columns["client"]) == {"east": 2, "west": 2}


COLUMNS = {"text": ["ash", "bay"], "label": ["x", "y"]}


def write_at(path: Path, columns: dict[str, list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, columns)


def test_a_table_in_a_folder_of_its_own_is_a_client_of_that_name(tmp_path: Path):
    for name in ("north", "south", "west"):
        write_at(tmp_path / name / "notes.csv", {**COLUMNS, "label": ["x", name[:1]]})
    (tmp_path / ".git").mkdir()
    (tmp_path / "README.md").write_text("no table")
    table = read_undivided(tmp_path)
    assert table is not None
    assert Counter(table.columns["client"]) == {"north": 2, "south": 2, "west": 2}
    assert table.origin.row(3) == "2 of south/notes.csv"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty has no table, and the other folders"):
        read_undivided(tmp_path)
    (tmp_path / "empty" / "notes.xlsx").write_text("x")
    with pytest.raises(InputError, match=r"notes\.xlsx is a table of a kind that is not read"):
        read_undivided(tmp_path)


def test_the_folder_of_a_client_has_one_table(tmp_path: Path):
    for name in ("north/a.csv", "north/b.csv", "south/a.csv"):
        write_at(tmp_path / name, COLUMNS)
    with pytest.raises(InputError, match=r"north holds a\.csv and b\.csv, and the folder of a client has one table"):
        read_undivided(tmp_path)


@pytest.mark.parametrize("places", ["{client}/{split}.csv", "{split}/{client}.csv"])
def test_clients_may_have_their_own_test_rows(tmp_path: Path, places: str):
    for client in ("north", "south", "west"):
        for split in ("train", "test") if client != "west" else ("train",):
            columns = {"text": [f"{client} {split}"] * 3, "label": [*"xyx"]}
            write_at(tmp_path / places.format(client=client, split=split), columns)
    assert read_undivided(tmp_path) is None
    found = read_tables(str(tmp_path), CONTENT)
    assert Counter(found["train"].columns["client"]) == {"north": 3, "south": 3, "west": 3}
    assert Counter(found["test"].columns["client"]) == {"north": 3, "south": 3}
    for split, table in found.items():
        for text, client in zip(table.columns["text"], table.columns["client"], strict=True):
            assert text == f"{client} {split}"


def test_the_parts_of_a_split_are_one_split_and_no_clients(tmp_path: Path):
    """Files as the hub writes them were taken for clients, and test rows were trained on."""
    rows = {"train": (["a", "b"], ["c", "d"], ["e"]), "test": (["f"],)}
    for split, parts in rows.items():
        for number, texts in enumerate(parts):
            own = {"text": texts, "label": ["x"] * len(texts)}
            write_parquet(tmp_path / f"{split}-{number:05}-of-{len(parts):05}.parquet", own)
    found = read_tables(str(tmp_path), CONTENT)
    texts = {split: list(table.columns["text"]) for split, table in found.items()}
    assert texts == {"train": [*"abcde"], "test": ["f"]}
    assert set(found["train"].columns) == {"text", "label"}
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(InputError, match=r"holds 2 parts such as train-00000-of-00003\.parquet, and not each of the 3"):
        read_tables(str(tmp_path), CONTENT)


@pytest.mark.parametrize(("train", "test"), [("my_train", "my_test"), ("Train-v2", "test-v2"), ("train1", "test1")])
def test_files_that_are_named_after_splits_are_no_clients(tmp_path: Path, train: str, test: str):
    for name in (train, test):
        write_csv(tmp_path / f"{name}.csv", COLUMNS)
    with pytest.raises(InputError, match="which are named after splits"):
        read_undivided(tmp_path)


def test_a_folder_with_names_of_splits_is_no_folder_of_clients(tmp_path: Path):
    columns = {"text": ["ash", "bay"], "label": ["x", "y"]}
    for name in ("train", "dev"):
        write_csv(tmp_path / f"{name}.csv", columns)
    assert read_undivided(tmp_path) is None
    with pytest.raises(InputError, match="has no test split"):
        read_tables(str(tmp_path), CONTENT)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"other": ["ash"], "names": ["x"]}, "share no column"),
        ({"text": ["ash"], "client": ["x"]}, "column 'client' as well"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(tmp_path: Path, other: dict[str, list[str]], words: str):
    write_csv(tmp_path / "a.csv", {"text": ["ash", "bay"], "client": ["x", "y"]})
    write_csv(tmp_path / "b.csv", other)
    with pytest.raises(InputError, match=words):
        read_undivided(tmp_path)


def test_under_differential_privacy_no_row_decides_which_others_are_test_rows(tmp_path: Path):
    columns = {"text": [f"ash {n}" for n in range(23)], "label": ["xy"[n % 2] for n in range(23)]}
    write_csv(tmp_path / "a.csv", columns)
    declared = SplitRequest(label_names=("x", "y"), declared=True)
    with pytest.raises(InputError, match="must not be chosen among the clients' rows"):
        read_tables(str(tmp_path / "a.csv"), CONTENT, request=declared)
    # A site trains on all of its rows, and a server tests on all of its own.
    for split in ("train", "test"):
        whole = read_tables(str(tmp_path), CONTENT, request=SplitRequest((split,), divide=False))
        assert whole[split].num_rows == 23


@pytest.mark.parametrize("target", ["nowhere.csv", "b.csv"])
def test_a_client_whose_table_is_a_link_to_nothing_is_not_left_out_unseen(tmp_path: Path, target: str):
    for name in ("a.csv", ".#a.csv"):  # a hidden file is a trace of a program and no client
        (tmp_path / name).write_text("text,label\none,1\n")
    (tmp_path / "b.csv").symlink_to(tmp_path / target)
    with pytest.raises(InputError, match=r"b\.csv"):
        read_undivided(tmp_path)
    (tmp_path / "b.csv").unlink()
    table = read_undivided(tmp_path)
    assert table is not None
    assert table.num_rows == 1
