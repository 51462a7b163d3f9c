import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demo.sandbox.leads import made_up_leads, write_lead_file
from pipelines.address_book import read_address_book
from pipelines.lead_files import LeadFile, LeadFileError, read_lead_file
from resources.lead_directory import LeadDirectory, safe_cell

LEADS = Path(__file__).parents[2] / "pipelines" / "leads"


def read(tmp_path: Path, content: str | bytes) -> LeadFile:
    path = tmp_path / "leads.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_lead_file(path)


def rejected(found: LeadFile) -> dict[int, str]:
    return dict(zip(found.rejects["line"], found.rejects["reason"], strict=True))


def test_rows_become_leads_and_stray_columns_are_named(tmp_path: Path):
    found = read(
        tmp_path, "\ufeffE-Mail, Email ,First Name,fax\r\nx, zoë@acme.example,Zoë  Ann,1\r\n"
    )
    (lead,) = found.leads.to_dict("records")
    assert lead == {
        "email": "zoë@acme.example",
        "first_name": "Zoë Ann",
        "last_name": "",
        "company": "",
        "line": 2,
    }
    assert found.stray_columns == ["E-Mail", "fax"]
    assert found.rejects.empty


ANN = ("ann@acme.example", "Ann", "Lee", "Acme")
JOSE = ("jose@acme.example", "José", "Müller", "Søren & Söhne")
PLAIN = "email,first_name,last_name,company\nann@acme.example,Ann,Lee,Acme\n"
WESTERN = f"email,first_name,last_name,company\r\n{','.join(JOSE)}\r\n"

# Lead files as people and their tools write them, each with the leads in it.
KINDS = {
    "plain": (PLAIN, [ANN]),
    "line ends of Windows": (PLAIN.replace("\n", "\r\n"), [ANN]),
    "line ends of an old Mac": (PLAIN.replace("\n", "\r"), [ANN]),
    "no line end after the last line": (PLAIN.rstrip(), [ANN]),
    "blank lines": ("\n\n" + PLAIN.replace("\n", "\n\n \n"), [ANN]),
    "semicolons": (PLAIN.replace(",", ";"), [ANN]),
    "tabs": (PLAIN.replace(",", "\t"), [ANN]),
    "vertical bars": (PLAIN.replace(",", "|"), [ANN]),
    "everything quoted": ('"' + PLAIN[:-1].replace(",", '","').replace("\n", '"\n"') + '"', [ANN]),
    "spaces around values": (PLAIN.replace(",", " , "), [ANN]),
    "a space before a quote": (
        'email, company\nann@acme.example, "Acme, Inc."\n',
        [("ann@acme.example", "", "", "Acme, Inc.")],
    ),
    "quotes inside a quoted value": (
        'email,first_name,company\nann@acme.example,"Ann ""A""",Acme\n',
        [("ann@acme.example", 'Ann "A"', "", "Acme")],
    ),
    "a line that names the separator": ("sep=;\r\n" + PLAIN.replace(",", ";"), [ANN]),
    "a quoted line that names the separator": ('"sep=\t"\n' + PLAIN.replace(",", "\t"), [ANN]),
    "a line that names another separator": ("sep=^\n" + PLAIN.replace(",", "^"), [ANN]),
    "UTF-8 of Excel": (WESTERN.encode("utf-8-sig"), [JOSE]),
    "a separator line after a byte order mark": (f"sep=,\r\n{WESTERN}".encode("utf-8-sig"), [JOSE]),
    "Unicode text of Excel": (WESTERN.replace(",", "\t").encode("utf-16"), [JOSE]),
    "UTF-16, big-endian": (b"\xfe\xff" + WESTERN.encode("utf-16-be"), [JOSE]),
    "UTF-16 without a byte order mark": (WESTERN.encode("utf-16-le"), [JOSE]),
    "Windows-1252 of Excel": (WESTERN.replace(",", ";").encode("cp1252"), [JOSE]),
    "Windows-1252 with one letter to tell by": (
        b"email,first_name\nbob@acme.example,Bob\njose@acme.example,Jos\xe9\n",
        [("bob@acme.example", "Bob", "", ""), ("jose@acme.example", "José", "", "")],
    ),
    "Apollo": (
        "First Name,Last Name,Title,Company Name,Company Name for Emails,Email,Email Status\n"
        "Ann,Lee,CEO,Acme,ACME,ann@acme.example,Verified\n",
        [ANN],
    ),
    "Instantly": (
        "email,firstName,lastName,companyName,phone\nann@acme.example,Ann,Lee,Acme,1\n",
        [ANN],
    ),
    "HubSpot": (
        "Record ID,First Name,Last Name,Email,Company name\n1,Ann,Lee,ann@acme.example,Acme\n",
        [ANN],
    ),
    "Salesforce": (
        '"First Name","Last Name","Account Name","Email"\n"Ann","Lee","Acme","ann@acme.example"\n',
        [ANN],
    ),
    "Google Contacts": (
        "First Name,Last Name,Organization Name,E-mail 1 - Label,E-mail 1 - Value\n"
        "Ann,Lee,Acme,* Work,ann@acme.example\n",
        [ANN],
    ),
    "Outlook": (
        '"First Name","Last Name","Company","E-mail Address"\n'
        '"Ann","Lee","Acme","ann@acme.example"\n',
        [ANN],
    ),
    "Mailchimp": (
        "Email Address,First Name,Last Name,COMPANY\nann@acme.example,Ann,Lee,Acme\n",
        [ANN],
    ),
    "Hunter": (
        "Email address,Organization,First name,Last name\nann@acme.example,Acme,Ann,Lee\n",
        [ANN],
    ),
    "capitals": ("EMAIL,FIRST NAME,LAST-NAME,COMPANY\nann@acme.example,Ann,Lee,Acme\n", [ANN]),
    "a header over two lines": (
        '"Email","Notes\n(internal)","Company\nName"\n"ann@acme.example","x","Acme"\n',
        [("ann@acme.example", "", "", "Acme")],
    ),
    "a note of many lines": (
        'email,notes,company\nann@acme.example,"Call 1\nCall 2\n\nCall 3\nask\n'
        'bob@rival.example\nthanks",Acme\nzoe@acme.example,,Acme\n',
        [("ann@acme.example", "", "", "Acme"), ("zoe@acme.example", "", "", "Acme")],
    ),
    "empty columns left out at the end": (
        "email,first_name,last_name,company\nann@acme.example,Ann\n",
        [("ann@acme.example", "Ann", "", "")],
    ),
    "an address in capitals": (
        PLAIN.replace("ann@acme.example", "Ann@ACME.example"),
        [("Ann@acme.example", "Ann", "Lee", "Acme")],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_read_as_its_exporter_meant_it(tmp_path: Path, kind: str):
    content, leads = KINDS[kind]
    found = read(tmp_path, content)
    fields = ["email", "first_name", "last_name", "company"]
    assert list(found.leads[fields].itertuples(index=False, name=None)) == leads
    assert found.rejects.empty


@pytest.mark.parametrize(
    ("content", "summary"),
    [
        (
            "sep=;\nFirma;E-Mail\nAcme;ann@acme.example\n",
            "read as UTF-8, separated by semicolons; email from 'E-Mail'; "
            "no column for first_name, last_name, company; ignored columns: 'Firma'",
        ),
        (
            WESTERN.replace("company", "Company Name").encode("cp1252"),
            "read as Windows-1252, separated by commas; email from 'email', "
            "first_name from 'first_name', last_name from 'last_name', "
            "company from 'Company Name'",
        ),
    ],
)
def test_the_summary_says_what_was_recognized(tmp_path: Path, content: str | bytes, summary: str):
    assert read(tmp_path, content).summary == summary


@pytest.mark.parametrize(
    ("codec", "name", "words"),
    [
        ("cp1250", "Windows-1250", "Dvořák Łukasz Żółć Šťastný Říha Szűcs Novák Kraków"),
        ("cp1251", "Windows-1251", "Иванова Мария Петров Сергей Кузнецов Ольга Смирнов"),
        ("cp932", "Shift-JIS", "佐藤 美咲 青空フーズ 鈴木 株式会社ミライ 東京 さくら"),
        ("gb18030", "GB18030", "张伟 李娜 北京科技有限公司 王芳 上海贸易公司 刘洋 陈静"),
    ],
)
def test_other_code_pages_are_recognized_in_files_of_some_length(
    tmp_path: Path, codec: str, name: str, words: str
):
    names = words.split() * 20
    lines = [f"p{n}@acme.example,{word},{names[n - 1]}" for n, word in enumerate(names)]
    found = read(tmp_path, "\n".join(["email,first_name,company", *lines]).encode(codec))
    assert found.encoding == name
    assert found.leads["first_name"].tolist() == names


def test_invalid_bytes_in_a_file_in_utf_8_reject_their_line_and_garble_no_other(tmp_path: Path):
    found = read(
        tmp_path, b"email,first_name\na@b.example,Zo\xc3\xab\nc@d.example,Jos\xe9\ne@f.example,x\n"
    )
    assert found.leads["first_name"].tolist() == ["Zoë", "x"]
    assert rejected(found) == {3: "first_name is not UTF-8; save the file as UTF-8"}


@pytest.mark.parametrize(
    ("lines", "leads", "rejects"),
    [
        pytest.param(
            ['ann@acme.example,"Call', "bob@rival.example", "thanks,Acme", "zoe@a.example,,Acme"],
            ["zoe@a.example"],
            [2, 3, 4],
            id="a note that is never closed",
        ),
        pytest.param(
            [
                'ann@acme.example,"say "no"',
                "bob@rival.example,x,y",
                'bye",Acme',
                "zoe@a.example,,A",
            ],
            ["zoe@a.example"],
            [2, 3, 4],
            id="a note with quotes that are not doubled",
        ),
        pytest.param(
            ['ann@acme.example,"A', "bob@a.example,x,y", 'cai@a.example,z",y', "zoe@a.example,,"],
            ["zoe@a.example"],
            [2, 3, 4],
            id="a stray quote that closes another, over rows",
        ),
        pytest.param(
            ['ann@acme.example,"Al" Lee,Acme', 'bob@a.example,"1\n2",B', "zoe@a.example,,"],
            ["bob@a.example", "zoe@a.example"],
            [2],
            id="a bad quote before a note that is well-formed",
        ),
        pytest.param(
            ['ann@acme.example,"1\n2",Acme,4', "zoe@a.example,,"],
            ["zoe@a.example"],
            [2],
            id="a note in a row with too many fields",
        ),
        pytest.param(
            [f"ann@acme.example,{'x' * 200_000}", "zoe@a.example,,"],
            ["zoe@a.example"],
            [2],
            id="200 KB in one line",
        ),
        pytest.param(
            [
                'ann@acme.example,"' + f"{'x' * 99}\n" * 2_000 + "bob@rival.example",
                "zoe@a.example,,",
            ],
            ["zoe@a.example"],
            None,
            id="200 KB of lines after an open quote",
        ),
    ],
)
def test_no_line_that_may_be_inside_a_quoted_note_becomes_a_lead(
    tmp_path: Path, lines: list[str], leads: list[str], rejects: list[int] | None
):
    found = read(tmp_path, "\n".join(["email,notes,company", *lines]))
    assert found.leads["email"].tolist() == leads
    if rejects is not None:
        assert list(rejected(found)) == rejects
    assert found.rejects["text"].str.len().max() <= 32_767  # what a cell of a spreadsheet holds


def test_a_file_that_is_one_long_line_stops_no_other(tmp_path: Path):
    (tmp_path / "export.csv").write_text('{"leads": "' + "x" * 200_000 + '"}')
    (tmp_path / "good.csv").write_text(PLAIN)
    warnings: list[str] = []
    book = read_address_book([*sorted(tmp_path.iterdir()), tmp_path / "gone.csv"], warnings.append)
    assert book["email"].tolist() == ["ann@acme.example"]
    assert [warning[:70] for warning in warnings] == [
        "skipped: export.csv has no column 'email'; its first line must name one"[:70],
        f"skipped: [Errno 2] No such file or directory: '{tmp_path / 'gone.csv'}'"[:70],
    ]
    assert max(map(len, warnings)) < 1000


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (",Ann", "no address"),
        ("   ,Ann", "no address"),
        ("ann.acme.example,Ann", "malformed address: "),
        ("ann@acme,Ann", "malformed address: "),
        ("ann@acme.example,Ann,extra,fields", "4 fields where the header has 2"),
        ('ann@acme.example,"Ann', "a quote is not closed"),
        ('ann@acme.example,"Ann" x', "broken CSV: "),
        ("ann@acme.example,An\x07n", "first_name has the control character U+0007"),
        (f"ann@acme.example,{'A' * 201}", "first_name is longer than 200 characters"),
        ("ONE@acme.example,Ann", "the address is that of line 2"),
        ("one@ACME.example,Ann", "the address is that of line 2"),
    ],
)
def test_a_bad_line_is_rejected_with_its_reason_and_stops_no_other(
    tmp_path: Path, line: str | bytes, reason: str
):
    raw = line.encode() if isinstance(line, str) else line
    content = b"email,first_name\none@acme.example,One\n" + raw + b'\ntwo@acme.example,"T, wo"\n'
    found = read(tmp_path, content)
    assert found.leads["first_name"].tolist() == ["One", "T, wo"]
    assert list(rejected(found)) == [3]
    assert rejected(found)[3].startswith(reason)
    assert found.rejects["file"].tolist() == ["leads.csv"]
    assert found.rejects["text"].tolist() == [raw.decode(errors="replace")]


def test_an_address_in_two_spellings_is_one_lead(tmp_path: Path):
    found = read(
        tmp_path, "email\nann@bücher.example\nann@xn--bcher-kva.example\nANN@Bücher.EXAMPLE"
    )
    assert found.leads["email"].tolist() == ["ann@bücher.example"]
    assert rejected(found) == dict.fromkeys((3, 4), "the address is that of line 2")


def test_a_quoted_field_may_hold_a_line_break_and_lines_are_counted_on(tmp_path: Path):
    found = read(
        tmp_path, 'email,company\na@b.example,"Acme\nWorks"\n\nno address\nc@d.example,x\n'
    )
    assert found.leads["company"].tolist() == ["Acme Works", "x"]
    assert found.leads["line"].tolist() == [2, 6]
    assert list(rejected(found)) == [5]


def test_a_quote_left_open_near_the_end_swallows_nothing(tmp_path: Path):
    found = read(tmp_path, 'email,company\na@b.example,"Acme\nb@b.example,x\nc@b.example,y')
    assert found.leads["email"].tolist() == ["b@b.example", "c@b.example"]
    assert list(rejected(found)) == [2]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("name,address\nAnn,a@b.example\n", "has no column 'email'"),
        ("Name;Mobile\nAnn;1\n", r"read as UTF-8; its columns are 'Name', 'Mobile'"),
        ('"email\na@b.example\n', "read as UTF-8; a quote is not closed"),
        ("email,Email\na@b.example,c@d.example\n", "2 columns 'email'; keep one"),
        ("email,First Name,firstName\n", "2 columns 'first_name'; keep one"),
        (b"PK\x03\x04\x14\0", "is an Excel workbook or an archive; save it as CSV"),
    ],
)
def test_a_file_that_is_no_lead_file_is_refused(tmp_path: Path, content: str | bytes, says: str):
    with pytest.raises(LeadFileError, match=says):
        read(tmp_path, content)


def test_a_file_with_only_a_header_has_no_leads(tmp_path: Path):
    found = read(tmp_path, "email\n")
    assert found.leads.empty
    assert found.rejects.empty


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.one_of(
            st.text("a@.,\"; é\t\0\x0b\u2028'\\#", max_size=12).map(str.encode),
            st.binary(max_size=12),
            st.sampled_from([b"ann@acme.example,Ann", b'bob@acme.example,"Bob"', b'"', b'""']),
        ),
        max_size=12,
    ),
    header=st.sampled_from([b"email", b"email,first_name", b"fax;email", b"email\tcompany"]),
)
def test_no_line_vanishes(tmp_path: Path, lines: list[bytes], header: bytes):
    found = read(tmp_path, b"\n".join([header, *lines]))
    # A row may span several lines; only then are there fewer rows than lines.
    text = b"\n".join(lines).decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    held = [n for n, line in enumerate(text.split("\n"), start=2) if line.strip()]
    seen = sorted([*found.leads["line"], *found.rejects["line"]])
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(held)
    if '"' not in text:
        assert seen == held


def test_made_up_leads_are_all_leads(tmp_path: Path):
    path = tmp_path / "made-up.csv"
    write_lead_file(path, 1000, seed=3)
    found = read_lead_file(path)
    assert len(found.leads) == 1000
    assert found.rejects.empty
    assert [file.name for file in tmp_path.iterdir()] == ["made-up.csv"]


def test_made_up_leads_of_two_seeds_share_no_address():
    first, second = ({lead["email"] for lead in made_up_leads(99, seed=s)} for s in (0, 1))
    assert len(first) == 99
    assert not first & second


def test_file_names_as_browsers_and_people_give_them(tmp_path: Path):
    taken = ["apollo-contacts-export (3).csv", "Leads Q1 2026.csv", "LEADS.CSV", "O'Brien & Co.csv"]
    for name in [*taken, ".a.csv.unfinished", "~$a.csv"]:
        (tmp_path / name).touch()
    (tmp_path / "archive").mkdir()
    directory = LeadDirectory(path=str(tmp_path), rejects=str(tmp_path / "rejects"))
    assert {key: file.name for key, file in directory.files().items()} == {
        name[:-4]: name for name in taken
    }
    assert directory.left_out() == {}


def test_a_file_that_is_left_out_has_a_reason(tmp_path: Path):
    names = ["a.csv", "a.CSV", "leads.xlsx", "to...do.csv", "new\nline.csv"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "a\udce9.csv").touch()
    directory = LeadDirectory(path=str(tmp_path), rejects=str(tmp_path / "rejects"))
    assert list(directory.files()) == ["a"]
    assert directory.left_out() == {
        "a.csv": "a.CSV has the same name",
        "a\\udce9.csv": "its name is not UTF-8",
        "leads.xlsx": "its name does not end in .csv",
        "new\nline.csv": "its name has a control character",
        "to...do.csv": "its name has '...'",
    }


@pytest.mark.parametrize(
    "text",
    [
        "=HYPERLINK(1)",
        "+1",
        "-1+1",
        "@SUM(A1)",
        "  =1",
        "\uff1d1",  # full-width
        "x;=1",  # Excel separates by semicolons in much of Europe
        'x,"=1"',
        "x\n=1",
        "\t=1",
    ],
)
def test_rejects_have_no_formula_for_a_spreadsheet(text: str):
    for delimiter in (",", ";", "\t"):
        for cell in re.split(rf"[{delimiter}\n]", safe_cell(text)):
            assert cell.strip(' "\t')[:1] not in {"=", "+", "-", "@", "\uff1d"}


def test_rejects_are_kept_with_their_text(tmp_path: Path):
    found = read(tmp_path, '\nemail,company\n=HYPERLINK("http://x.example"),Søren\nann,a-b=c\n')
    directory = LeadDirectory(path=str(tmp_path), rejects=str(tmp_path / "rejects"))
    kept = directory.keep_rejects("=1+1", found.rejects)
    assert pd.read_csv(kept)[["line", "text"]].to_numpy().tolist() == [
        [3, '\'=HYPERLINK("http://x.example"),Søren'],
        [4, "ann,a-b=c"],
    ]
    assert kept.read_bytes().startswith(b"\xef\xbb\xbf")  # or Excel takes it for Windows-1252
    assert [file.name for file in kept.parent.iterdir()] == ["=1+1.csv"]
