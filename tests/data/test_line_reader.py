import gzip
import subprocess
from pathlib import Path

import pytest

from trainer.data.line_reader import read_lines, read_lines_or_errors
from trainer.errors import DataError

pytestmark = pytest.mark.usefixtures("working_folder")


def test_line_that_is_not_utf_8_does_not_affect_other_lines() -> None:
    Path("a.txt").write_bytes(b"\xef\xbb\xbfone\ntw\xff\nthree\r\n\xfe")
    one, two, three, four = read_lines_or_errors(Path("a.txt"))

    assert (one, three) == ("one\n", "three\r\n")
    assert str(two).startswith("a.txt, line 2: byte 0xff at offset 9 of the file is not UTF-8. Convert the file")
    assert str(four).startswith("a.txt, line 4: byte 0xfe")
    with pytest.raises(DataError, match="line 2"):
        list(read_lines(Path("a.txt")))


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        ("é\n".encode("utf-16"), "UTF-16"),
        ("é\n".encode("utf-32"), "UTF-32"),
        ("é “".encode("cp1252"), "WINDOWS-1252"),
        ("são ção não e pão".encode("cp1252"), "WINDOWS-1252"),
        ("créée — naïve Größe".encode("cp1252"), "WINDOWS-1252"),
        ("今天的比赛非常精彩。我喜欢,体育\n".encode("gbk"), "GB18030"),
        ("冠军,a\n".encode("gbk"), "GB18030"),
        ("编号,评论内容,评价,日期,评分\n".encode("gbk"), "GB18030"),
        ("번호,제목,내용,별점,작성자\n".encode("cp949"), "CP949"),
        ("오늘 경기는 정말 좋았다\n".encode("cp949"), "CP949"),
        ("今日の試合はとても良かった。\n".encode("cp932"), "CP932"),
        ("今天的比賽非常精彩\n".encode("big5"), "BIG5"),
        (b"\x81\xe9", "ENCODING"),
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_command_of_the_remedy_converts_the_file(content: bytes, encoding: str, suffix: str) -> None:
    file = Path(f"a{suffix}")
    file.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    (error, *_) = read_lines_or_errors(file)

    command = str(error).partition("for example: ")[2].removesuffix(".")
    assert f"iconv -f {encoding} -t UTF-8" in command
    if encoding != "ENCODING":
        file.rename("OLD")
        subprocess.run(command, shell=True, check=True)
        Path("NEW").rename(file)
        assert "".join(read_lines(file)) == content.decode(encoding)


def test_truncated_text_file_is_reported() -> None:
    Path("cut.txt.gz").write_bytes(b"\x1f\x8b\x08\x00")

    with pytest.raises(DataError, match=r"^cut\.txt\.gz: cannot be read: .*Check that the file is complete"):
        list(read_lines_or_errors(Path("cut.txt.gz")))
