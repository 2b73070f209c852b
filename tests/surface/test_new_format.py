"""A new format of rows, and a reader of a new type of file: each is one file or function, and one row."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from tests.package_copy import PackageCopy

FORMAT = '''
"""Quiz rows: a question and its numbered options, the right one by its number."""

from posttrain.types import Message, Task


def quiz(row, ref, rules):
    options = " ".join(f"({number}) {text}" for number, text in enumerate(row["options"], start=1))
    return Task((Message("user", f"{row['quiz']} {options}"),), str(row["correct"]), ref, {}, ())
'''

ROW = """    Format(
        "quiz",
        Task,
        ("quiz", "options", "correct"),
        (),
        quiz.quiz,
        {"quiz": "2 + 2?", "options": ["3", "4"], "correct": 2},
        "a question, its options, and the number of the right one",
    ),
"""

READER = '''
"""The table `rows` of an SQLite file, in its own order."""

import sqlite3
from contextlib import closing


def sqlite_rows(path, name):
    with closing(sqlite3.connect(path)) as file:
        file.row_factory = sqlite3.Row
        for number, row in enumerate(file.execute("select * from rows order by rowid"), start=1):
            yield number, dict(row), ""
'''


def test_a_format_is_a_function_and_a_row(tmp_path: Path) -> None:
    copy = PackageCopy.into(tmp_path)
    copy.write("data/formats/quiz.py", FORMAT)
    copy.insert("data/formats/table.py", "_ROWS = (\n", "from posttrain.data.formats import quiz\n\n")
    copy.insert("data/formats/table.py", '    Format(\n        "align_anything",\n', ROW)
    row = {"quiz": "3 + 3?", "options": ["5", "6"], "correct": 2}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "quiz": "3 * 3?"}) + "\n")
    program = (
        "import posttrain as pt\n"
        "for example in pt.read('rows.jsonl'):\n"
        "    print(example.prompt[0].content, '->', example.answer)\n"
        "try:\n"
        "    pt.read('rows.jsonl', format='quizz')\n"
        "except pt.PosttrainError as error:\n"
        "    print(error.remedy)\n"
    )
    assert copy.run(program, tmp_path).splitlines() == [
        "3 + 3? (1) 5 (2) 6 -> 2",
        "3 * 3? (1) 5 (2) 6 -> 2",
        "did you mean `quiz`?",
    ]


def test_a_reader_of_a_file_type_is_a_function_and_a_row(tmp_path: Path) -> None:
    copy = PackageCopy.into(tmp_path)
    copy.write("data/sources/sqlite.py", READER)
    copy.insert("data/sources/readers.py", "\n\n@dataclass", "from posttrain.data.sources.sqlite import sqlite_rows\n")
    copy.insert(
        "data/sources/readers.py",
        '    Reader("parquet",',
        '    Reader("sqlite", sqlite_rows, begins=(b"SQLite format 3\\0",)),\n',
    )
    with closing(sqlite3.connect(tmp_path / "sums.db")) as file, file:
        file.execute("create table rows (question text, answer text)")
        file.executemany("insert into rows values (?, ?)", [("2 + 2?", "4"), ("3 + 3?", "6")])
    program = (
        "import posttrain as pt\n"
        "for example in pt.read('sums.db'):\n"
        "    print(example.prompt[0].content, '->', example.answer, 'at', example.row)\n"
    )
    assert copy.run(program, tmp_path).splitlines() == [
        "2 + 2? -> 4 at sums.db, row 1",
        "3 + 3? -> 6 at sums.db, row 2",
    ]
