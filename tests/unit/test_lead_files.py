from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demo.sandbox.leads import made_up_leads, write_lead_file
from pipelines.lead_files import LeadFile, LeadFileError, read_lead_file

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
    assert found.stray_columns == ["e-mail", "fax"]
    assert found.rejects.empty


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_delimiter_is_found(tmp_path: Path, delimiter: str):
    found = read(tmp_path, f"company{delimiter}email\nAcme{delimiter}a@b.example\n")
    assert found.leads["company"].tolist() == ["Acme"]


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
        (b"ann@acme.example,Jos\xe9", "first_name is not UTF-8"),
        (f"ann@acme.example,{'A' * 201}", "first_name is longer than 200 characters"),
        ("ONE@acme.example,Ann", "the address is that of line 2"),
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
        ("email,Email\na@b.example,c@d.example\n", "2 columns 'email'; keep one"),
    ],
)
def test_a_file_that_is_no_lead_file_is_refused(tmp_path: Path, content: str, says: str):
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
