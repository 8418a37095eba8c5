import gzip
import os

import pytest

from mtx.errors import UserError
from mtx.tasks.files import DataFile, chosen, folder, lacks, plain_or_packed
from mtx.tasks.task import Reading, counted, share

BOM = b"\xef\xbb\xbf"


@pytest.fixture
def data(tmp_path):
  """data(content, name): a file of a folder `d`."""
  (tmp_path / "d").mkdir()

  def write(content, name="f.txt"):
    path = tmp_path / "d" / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return DataFile(path)

  return write


def read(rows):
  """Rows that `rows(reading)` yields, and what it skipped."""
  reading = Reading(budget=99)
  return list(rows(reading)), reading.bad


def test_text_is_the_content_without_a_byte_order_mark(data):
  assert data(BOM + "ä\r\nb".encode()).text() == "ä\r\nb"
  packed = data(gzip.compress("ä".encode()), "f.txt.gz")
  assert (packed.text(), packed.name) == ("ä", "d/f.txt.gz")


@pytest.mark.parametrize(
  ("content", "place"),
  [
    (b"\xff", "byte 0, line 1, column 1"),
    ("ää\näb".encode() + b"\xe4", "byte 8, line 2, column 3"),
    (BOM + b"a\n\xe4", "byte 5, line 2, column 1"),
    (BOM + b"a\xe4\n", "byte 4, line 1, column 2"),
  ],
)
def test_text_that_is_not_utf8_is_placed(data, content, place):
  """Columns are characters, bytes are those of the file."""
  with pytest.raises(UserError, match=rf"^d/f\.txt is not UTF-8: {place}\n  convert it: iconv"):
    data(content).text()


def test_files_that_can_not_be_read_are_named(data, tmp_path):
  # Noise does not compress: a byte changed in its middle is found by zlib, before the checksum is.
  packed = gzip.compress(os.urandom(1000).hex().encode())
  broken = packed[:300] + bytes(100) + packed[400:]
  for content, reason in ((broken, ""), (packed[:-20], ""), (b"text", "Not a gzipped file")):
    with pytest.raises(UserError, match=rf"^d/f\.gz is not a whole gzip file: .*{reason}.*\n  copy it again"):
      data(content, "f.gz").text()
  with pytest.raises(UserError, match=r"/d/none is not there"):
    DataFile(tmp_path / "d" / "none").count()
  with pytest.raises(UserError, match=r"/d can not be read: Is a directory"):
    DataFile(tmp_path / "d").text()


def test_json_is_one_value(data):
  assert data(BOM + '{"a": ["ä", "\\ud83d\\ude00"]}'.encode()).json() == {"a": ["ä", "😀"]}
  with pytest.raises(UserError, match=r"^d/f\.txt: line 3, column 2: Expecting value"):
    data("[1,\n2,\n ]").json()
  with pytest.raises(UserError, match=r"^d/f\.txt: a string has half a character: \\ud83d"):
    data('["\\ud83d"]').json()


def test_lines_keep_their_numbers(data):
  file = data(BOM + "ä \r\n\n  \r\nb\tc\nd".encode())
  assert read(file.lines) == ([("d/f.txt:1", "ä "), ("d/f.txt:4", "b\tc"), ("d/f.txt:5", "d")], [])
  assert file.count() == 3


def test_lines_are_read_as_they_are_asked_for(data):
  """Not the whole file before: one whose end is missing gives what comes before it."""
  body = "".join(f'{{"a": "{number}"}}\n' for number in range(50_000))
  for name, content in (("f.gz", gzip.compress(body.encode())[:-20]), ("f.txt", body.encode() + b"\xff")):
    file = data(content, name)
    for rows in (file.lines(Reading()), file.jsonl({"a": str}, Reading()), file.csv(('{"a": "0"}',), Reading())):
      assert next(rows)[0] in (f"d/{name}:1", f"d/{name}:2")
  with pytest.raises(UserError, match=r"^d/f\.gz is not a whole gzip file"):
    list(data(gzip.compress(body.encode())[:-20], "f.gz").lines(Reading()))


@pytest.mark.parametrize("name", ["f.txt", "f.txt.gz"])
def test_a_stream_is_the_text(data, name):
  text = "ä\r\nb\u2028c\rd\n\ne"
  file = data(gzip.compress(BOM + text.encode()) if name.endswith("gz") else BOM + text.encode(), name)
  with file.decoded() as stream:
    assert list(stream) == ["ä\r\n", "b\u2028c\rd\n", "\n", "e"]
  with file.decoded(newline="") as stream:
    assert "".join(stream) == file.text() == text
  with pytest.raises(UserError, match=r"^d/f\.txt is not UTF-8: byte 8, line 2, column 3"):
    with data("ää\näb".encode() + b"\xe4").decoded() as stream:
      list(stream)


def test_lines_that_are_not_utf8_are_skipped(data):
  file = data(BOM + "ä".encode() + b"\xff\nb\n" + "öö".encode() + b"\xe4c\n")
  lines, bad = read(file.lines)
  assert lines == [("d/f.txt:2", "b")]
  assert bad == [("d/f.txt:1", "not UTF-8 at column 2"), ("d/f.txt:3", "not UTF-8 at column 3")]
  with pytest.raises(UserError, match=r"^d/f\.txt:1: not UTF-8 at column 2"):
    list(file.lines(Reading()))


@pytest.mark.parametrize(
  ("start", "stop", "numbers", "bad"), [(0, 2, [1], ["3"]), (1, 3, [2], ["3"]), (2, None, [2, 3], []), (4, 9, [], [])]
)
def test_a_part_of_the_lines_does_not_mind_the_others(data, start, stop, numbers, bad):
  """Positions are those of lines that are not empty."""
  for wrong in (b"{", b"\xff", b"[]"):
    file = data(b'{"n": 1}\n\n' + wrong + b'\n{"n": 2}\n{"n": 3}\n')
    found, skipped = read(lambda reading, file=file: file.jsonl({"n": int}, reading, start=start, stop=stop))
    assert [record["n"] for _, record in found] == numbers
    assert [place.removeprefix("d/f.txt:") for place, _ in skipped] == bad


def test_jsonl_has_the_fields_or_is_skipped(data):
  lines = [
    '{"a": "x", "b": 1}',
    '{"a": "x",}',
    "",
    "[]",
    '{"a": "\\uD83D", "b": 2}',
    '{"b": 2}',
    '{"a": "\\\\ud83d", "b": 3}',
  ]
  found, bad = read(lambda reading: data("\n".join(lines)).jsonl({"a": str, "b": (int, float)}, reading))
  assert found == [("d/f.txt:1", {"a": "x", "b": 1}), ("d/f.txt:7", {"a": "\\ud83d", "b": 3})]
  places, reasons = zip(*bad, strict=True)
  assert places == ("d/f.txt:2", "d/f.txt:4", "d/f.txt:5", "d/f.txt:6")
  assert reasons[0].startswith("column 11: not JSON: ")
  assert reasons[1:] == (
    "not an object but list",
    "a string has half a character: \\ud83d",
    "no field 'a' (fields: b)",
  )


def test_tsv_has_its_columns_or_is_skipped(data):
  file = data('"a\tb"\nc\nd\te\tf\n\t\n g\t\n')
  found, bad = read(lambda reading: file.tsv(("x", "y"), reading))
  assert found == [("d/f.txt:1", {"x": '"a', "y": 'b"'}), ("d/f.txt:5", {"x": " g", "y": ""})]
  assert bad == [
    ("d/f.txt:2", "1 columns, 2 are wanted (x, y)"),
    ("d/f.txt:3", "3 columns, 2 are wanted (x, y)"),
  ]


def test_csv_quotes_and_places(data):
  """A row stands where its first line does, however many lines its fields have."""
  file = data(BOM + b'n,text\r\n1,"a ""b"",\r\n\r\nc"\r\n\r\n2,\n3\n4,"d\ne"\n5,f,g\n"6"x,h\n7,i\n')
  found, bad = read(lambda reading: file.csv(("text",), reading))
  assert found == [
    ("d/f.txt:2", {"n": "1", "text": 'a "b",\r\n\r\nc'}),
    ("d/f.txt:6", {"n": "2", "text": ""}),
    ("d/f.txt:8", {"n": "4", "text": "d\ne"}),
    ("d/f.txt:12", {"n": "7", "text": "i"}),
  ]
  assert bad == [
    ("d/f.txt:7", "1 columns, the header has 2"),
    ("d/f.txt:10", "3 columns, the header has 2"),
    ("d/f.txt:11", "not CSV: ',' expected after '\"'"),
  ]
  found, bad = read(lambda reading: data('n\n1\n"2\n3\n').csv(("n",), reading))
  assert found == [("d/f.txt:2", {"n": "1"})] and bad == [("d/f.txt:3", "not CSV: unexpected end of data")]


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("a,b\n1,2\n", r"^d/f\.txt:1 has no column 'text'\n  columns: a, b"),
    ("", r"^d/f\.txt:1 has no column 'text'\n  columns: none"),
    ('"te"xt,b\n', r"^d/f\.txt:1: not CSV: ',' expected"),
    (b"text\n\n\xe4\n", r"^d/f\.txt is not UTF-8: byte 6, line 3, column 1"),
  ],
)
def test_a_header_without_the_columns_is_named(data, content, message):
  with pytest.raises(UserError, match=message):
    list(data(content).csv(("text",), Reading(budget=99)))


def test_the_fingerprint_is_of_the_content(data):
  file = data("one")
  first = file.fingerprint()
  os.utime(file.path, ns=(1, 1))
  assert file.fingerprint() == first == data("one", "other.txt").fingerprint()
  data("two")
  assert file.fingerprint() != first
  data("one")
  assert file.fingerprint() == first


def test_the_plain_file_goes_before_the_packed_one(data):
  packed = data(gzip.compress(b"packed"), "f.gz")
  root = packed.path.parent
  data("other", "f.bak")
  assert plain_or_packed(root, "f").text() == "packed"
  data("plain", "f")
  assert plain_or_packed(root, "f").text() == "plain"


@pytest.mark.parametrize(
  ("record", "reason"),
  [
    ({"a": "x", "b": 1.5}, ""),
    (["a"], "not an object but list"),
    ({"a": "x"}, "no field 'b' (fields: a)"),
    ({"a": None, "b": 1}, "field 'a' is NoneType, not str"),
    ({"a": "x", "b": "1"}, "field 'b' is str, not int or float"),
  ],
)
def test_what_a_record_lacks(record, reason):
  assert lacks(record, {"a": str, "b": (int, float)}) == reason


def test_true_is_no_number():
  assert lacks({"a": True}, {"a": int}) == "field 'a' is bool, not int" and not lacks({"a": True}, {"a": bool})


def test_names_are_chosen_from_the_valid_ones():
  assert chosen("p.x", ["b", "a"], iter("abc")) == ("b", "a") and chosen("p.x", (), "abc") == ()


@pytest.mark.parametrize(
  ("written", "message"),
  [
    (["german", "frnch"], r"^p\.x: 'frnch' is not known\n  did you mean `french`\?"),
    (["german", 3], r"^p\.x: 3 is not known\n  valid choices: french, german"),
    ("german", r"^p\.x is 'german', not a list of names\n  write \['german'\]"),
    (3, r"^p\.x is 3, not a list of names"),
  ],
)
def test_names_that_are_not_valid_are_named(written, message):
  with pytest.raises(UserError, match=message):
    chosen("p.x", written, ["german", "french"])


def test_a_folder_holds_what_it_must(data, tmp_path):
  data("", "a.json")
  assert folder("p.path", str(tmp_path), "d", "*/*.json") == tmp_path
  with pytest.raises(UserError, match=r"^p\.path is '.*': it holds no d/\*\.tsv"):
    folder("p.path", tmp_path, "d", "d/*.tsv")
  with pytest.raises(UserError, match=r"^p\.path is '.*a\.json': there is no such folder"):
    folder("p.path", tmp_path / "d" / "a.json")


def test_rows_are_counted_without_the_bad_ones():
  def rows(split, reading):
    for number in range({"train": 5, "test": 3, "none": 0}[split]):
      if number == 1:
        reading.skip(f"row {number}", "bad")
      else:
        yield {"inputs": "", "targets": str(number)}

  assert counted(rows, ("train", "test", "none")) == {"train": 4, "test": 2, "none": 0}


def test_a_share_depends_on_the_text_and_the_salt_alone():
  shares = [share(f"text {n}") for n in range(2000)]
  assert all(0 <= each < 1 for each in shares) and len(set(shares)) == 2000
  for tenth in range(10):
    assert 150 <= sum(tenth <= 10 * each < tenth + 1 for each in shares) <= 250
  assert share("text 7") == shares[7] != share("text 7", "salt")
  # Python's own hash of a text differs between processes; this number may not.
  assert share("ä") == pytest.approx(0.9386861255317585)
