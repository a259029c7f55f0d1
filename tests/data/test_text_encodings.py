"""Text files in any encoding: what is read is what was written, and the likely one is named where nobody stated one."""

import codecs
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.config import load_recipe
from fftmoe.data import TextEncoding, decoded, encoding_option
from fftmoe.data.guessed_encoding import guess_encoding
from fftmoe.data.read import read_table
from fftmoe.data.text_encodings import likely_encoding, telling_line
from fftmoe.data.text_files import NoTextError
from fftmoe.errors import InputError
from fftmoe.setup.site_request import recipe_digest
from fftmoe.strict import text_encoding

ENCODINGS = (
    "windows-1252",
    "latin-1",
    "windows-1250",
    "windows-1251",
    "koi8-r",
    "shift_jis",
    "cp932",
    "gb18030",
    "big5",
)
GERMAN = "Der Patient klagt über Schmerzen im Rücken\nDie Größe beträgt 180 cm\n"
WRITTEN = {
    "windows-1252": (
        GERMAN,
        "text,label\nMüller kommt,a\nhallo,b\n",
        "text,label\nDas kostet 5 € – „viel“,a\nhallo,b\n",
        "note,site\nLe patient a été hospitalisé à Orléans,a\nDouleur à la tête, très forte,b\nça va bien,c\n",
        "note,site\nça va très bien,a\n",
        "texto;clase\nEl niño tiene dolor de estómago;a\n¿Cómo está usted?;b\nmañana vendrá el médico;c\n",
    ),
    "windows-1250": ("Příliš žluťoučký kůň úpěl ďábelské ódy\nbolest břicha a horečka\n",),
    "windows-1251": ("текст,метка\nПациент жалуется на головную боль,a\nвысокая температура и кашель,b\n",),
    "cp932": ("本文,ラベル\n患者は頭痛を訴えている,a\n熱が高くて咳が出る,b\n",),
    "euc-jp": ("本文,ラベル\n患者は頭痛を訴えている,a\n熱が高くて咳が出る,b\n",),
    "gb18030": ("文本,标签\n患者主诉头痛发热三天,a\n咳嗽并且有痰,b\n",),
    "cp950": ("文本,標籤\n患者主訴頭痛發熱三天,a\n咳嗽並且有痰,b\n",),
    "cp949": ("본문,라벨\n환자가 두통을 호소합니다,a\n열이 높고 기침이 납니다,b\n",),
    "windows-1253": ("κείμενο,ετικέτα\nΟ ασθενής παραπονιέται για πονοκέφαλο,a\n",),
    "windows-1255": ("טקסט,תווית\nהחולה מתלונן על כאבי ראש,a\n",),
    "windows-1256": ("نص,تسمية\nالمريض يشكو من صداع شديد,a\n",),
    "utf-16-le": (GERMAN,),
    "utf-16-be": (GERMAN,),
}


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(st.binary(max_size=60), st.sampled_from(ENCODINGS))
def test_what_is_read_is_what_was_written(some: bytes, name: str):
    """In the stated encoding, and in UTF-8 whatever is stated; bytes that are both have letters of UTF-8."""
    text = some.decode(name, "ignore").replace("\0", "")
    written = text.encode(name, "ignore")
    text = written.decode(name)
    assert decoded(text.encode(), TextEncoding(name)) == text
    assert decoded(written, TextEncoding(name)) == (written.decode() if is_utf8(written) else text)
    for mark, wide in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        assert decoded(mark + text.encode(wide), TextEncoding(name)) == text


@given(
    st.binary(max_size=60), st.sampled_from([None, *ENCODINGS, "utf-7", "utf-16", "utf-16-le", "cp037", "iso2022_jp"])
)
def test_bytes_are_a_text_that_can_be_written_again_or_one_line_says_why(data: bytes, name: str | None):
    try:
        decoded(data, TextEncoding(name)).encode()
    except NoTextError as error:
        message = str(error)
    except ValueError as error:  # such as a gzip file
        message = f"{error}: unpack it" if "unpack it" in str(error) else ""
    else:
        return
    assert message


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in WRITTEN.items() for text in texts])
def test_the_likely_encoding_is_right_and_reads_all_of_it(name: str, text: str):
    data = text.encode(name)
    found = likely_encoding(data)
    assert found is not None
    assert data.decode(found) == text
    with pytest.raises(ValueError, match=f"as {found} it reads .*; if that is right: --encoding {found}"):
        decoded(data, encoding_option(None))


def test_what_is_no_text_has_no_likely_encoding():
    for data in (b"", b"plain", bytes(range(256)) * 3, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff\xfe\xfd"):
        assert likely_encoding(data) is None


@pytest.mark.parametrize(
    "name",
    [
        "rot13",
        "zlib",
        "hex",
        "base64",
        "uu",
        "bz2",
        "idna",
        "punycode",
        "unicode_escape",
        "undefined",
        "",
        "ansi?",
        "a\0",
    ],
)
def test_a_name_of_no_text_encoding_is_refused(name: str):
    with pytest.raises(ValueError, match="is no encoding of text files; write a name such as utf-8, windows-1252"):
        text_encoding(name)
    with pytest.raises(InputError, match=r"--encoding .* is no encoding of text files"):
        encoding_option(name)
    with pytest.raises(InputError, match=r"data\.encoding: .* is no encoding of text files"):
        load_recipe({"data": {"source": "builtin:stdlib-docs", "encoding": name}})


def test_a_wrong_choice_that_fails_in_the_middle_says_where(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\nash,a\n戦う,b\n".encode("shift_jis") + b"M\x81\xfd,c\n")
    with pytest.raises(InputError, match=r"a\.csv cannot be read as csv: line 4 is not SHIFT_JIS; ") as refused:
        read_table(path, TextEncoding("shift_jis"))
    assert "\n" not in str(refused.value)
    path.write_bytes(b"a,b\n+2AA-,1\n")  # half of a surrogate pair, which Python's UTF-7 lets pass
    with pytest.raises(InputError, match="line 2 has half of a surrogate pair in UTF-7"):
        read_table(path, TextEncoding("utf-7"))


def test_a_folder_may_mix_utf8_with_one_other_encoding_and_shows_who_differs(tmp_path: Path):
    (tmp_path / "nord.csv").write_bytes(GERMAN.encode("windows-1252"))
    (tmp_path / "mitte").mkdir()
    (tmp_path / "mitte" / "train.csv").write_bytes(("text\n" + GERMAN).encode("windows-1252"))
    (tmp_path / "sued.csv").write_bytes(GERMAN.encode())
    (tmp_path / "west.csv").write_bytes(GERMAN.encode("utf-8-sig"))
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    found = guess_encoding(str(tmp_path))
    assert found is not None
    assert found.name == "windows-1252"
    assert sorted(file for file, _ in found.lines) == ["nord.csv", "train.csv"]
    assert {line for _, line in found.lines} == {"Die Größe beträgt 180 cm"}
    (tmp_path / "polska.csv").write_bytes("Pacjent skarży się, gorączka, źle śpi\n".encode("windows-1250"))
    found = guess_encoding(str(tmp_path))
    assert found is not None
    others = [file for file, _ in found.lines if "by itself looks like" in file]
    assert others == [file for file, _ in found.lines][: len(others)], "those that differ come first"
    assert guess_encoding(str(tmp_path / "sued.csv")) is guess_encoding("builtin:stdlib-docs") is None


@given(st.text(max_size=300))
def test_a_telling_line_is_short_and_has_a_letter_that_tells(text: str):
    line = telling_line(text)
    assert len(line) <= 62
    if any(not character.isascii() for character in text):
        assert not line.strip("…").isascii() or "…" in text


def test_the_encoding_of_the_servers_files_is_no_matter_of_sites(recipe_values: dict):
    """Not in the digest that they approve; `tests/deploy/test_site_encodings.py` shows that they do not obey it."""
    digests = {
        recipe_digest(load_recipe({**recipe_values, "data": {**recipe_values["data"], "encoding": name}}))
        for name in (None, "windows-1252", "utf-16")
    }
    assert len(digests) == 1


def test_without_a_detector_a_person_names_the_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fftmoe.data.text_encodings.detect", None)
    (tmp_path / "notes.csv").write_bytes(GERMAN.encode("windows-1252"))
    assert guess_encoding(str(tmp_path / "notes.csv")) is None
    said = "save it as UTF-8, or say what it is: --set data.encoding=NAME (in the recipe: encoding: NAME, below data:)"
    with pytest.raises(InputError, match=re.escape(said)):
        read_table(tmp_path / "notes.csv")
    assert read_table(tmp_path / "notes.csv", TextEncoding("windows-1252")).num_rows == 1
