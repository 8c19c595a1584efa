"""Folders, tables and single files as items with captions; nothing here is decoded."""

import json
import time
from pathlib import Path

import pytest

from vidlose.errors import InputError
from vidlose.io.sources import Item, find, hold_out


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def told(items: list[Item], folder: Path) -> list[tuple[str, str]]:
    return [(item.path.relative_to(folder).as_posix(), item.caption) for item in items]


def failure(*data: Path | str, **options: str) -> str:
    with pytest.raises(InputError) as caught:
        find([str(path) for path in data], **options)  # type: ignore[arg-type]
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_in_order_with_texts_beside(tmp_path: Path) -> None:
    touch(
        tmp_path, "b.MP4", "a.webm", "sub/c.png", "näch té 夜.mkv", ".hidden.mp4", ".cache/x.mp4", "notes.md", "a.csv"
    )
    for name in ("b", "a", "sub/c", "näch té 夜"):
        (tmp_path / f"{name}.txt").write_text(f"\ufeff  a film\nof {name} \n", encoding="utf-8")
    names = ["a.webm", "b.MP4", "näch té 夜.mkv", "sub/c.png"]
    found = find([str(tmp_path)])
    assert told(found, tmp_path) == [(name, f"a film of {name.rsplit('.', 1)[0]}") for name in names]
    assert not any(item.alone for item in found)


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.mp4", "out/b.mp4")
    (tmp_path / "in/there").symlink_to(tmp_path / "out")
    (tmp_path / "out/back").symlink_to(tmp_path / "in")
    found = find([str(tmp_path / "in")], captions="empty")
    assert [item.path.name for item in found] == ["a.mp4", "b.mp4"]


def test_one_video(tmp_path: Path) -> None:
    touch(tmp_path, "film.mp4")
    (tmp_path / "film.txt").write_text("a film")
    assert find([str(tmp_path / "film.mp4")]) == [Item(tmp_path / "film.mp4", "a film", alone=True)]


@pytest.mark.parametrize("columns", ["file,caption", "Path, Text", "VIDEO,prompt", "file_name,text,more"])
def test_a_csv_beside_its_files(tmp_path: Path, columns: str) -> None:
    rest = ",x" if columns.endswith("more") else ""
    table = tmp_path / "list.csv"
    table.write_text(
        f'\ufeff{columns}\nb.mp4,"a cat, ""asleep"""{rest}\nsub/a.mp4,ein Hündchen{rest}\n', encoding="utf-8"
    )
    assert told(find([str(table)]), tmp_path) == [("b.mp4", 'a cat, "asleep"'), ("sub/a.mp4", "ein Hündchen")]


def test_tsv_jsonl_and_a_root_of_their_own(tmp_path: Path) -> None:
    rows = [{"file": "a.mp4", "caption": "one, two"}, {"file": str(tmp_path / "x/b.mp4"), "caption": "three"}]
    (tmp_path / "list.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    (tmp_path / "list.tsv").write_text("file\tcaption\na.mp4\tone, two\n")
    assert told(find([str(tmp_path / "list.jsonl")]), tmp_path) == [("a.mp4", "one, two"), ("x/b.mp4", "three")]
    assert told(find([str(tmp_path / "list.tsv")], root=str(tmp_path / "y")), tmp_path) == [("y/a.mp4", "one, two")]


def test_webvid_in_either_layout(tmp_path: Path) -> None:
    touch(tmp_path, "v/1.mp4", "v/videos/p_3/2.mp4")
    (tmp_path / "web.csv").write_text("videoid,contentUrl,duration,page_dir,name\n1,u,x,p_3,a cat\n2,u,x,p_3,a dog\n")
    found = find([str(tmp_path / "web.csv")], root=str(tmp_path / "v"))
    assert told(found, tmp_path / "v") == [("1.mp4", "a cat"), ("videos/p_3/2.mp4", "a dog")]


def test_several_sources_are_one_after_the_other(tmp_path: Path) -> None:
    touch(tmp_path, "one/b.mp4", "two/a.mp4")
    found = find([str(tmp_path / "one"), str(tmp_path / "two"), str(tmp_path / "one")], captions="name")
    assert [item.caption for item in found] == ["b", "a", "b"]


def test_missing_captions(tmp_path: Path) -> None:
    touch(tmp_path, *(f"clip_{i}.mp4" for i in range(5)), "clip_0.txt")
    (tmp_path / "clip_4.txt").write_text("there")
    assert failure(tmp_path).startswith("4 of 5 files have no caption (")
    assert "clip_2.mp4 ...)" in failure(tmp_path) and "clip_3" not in failure(tmp_path)
    assert [item.caption for item in find([str(tmp_path)], captions="empty")] == ["", "", "", "", "there"]
    assert [item.caption for item in find([str(tmp_path)], captions="name")][3:] == ["clip 3", "there"]


def test_a_table_without_captions_is_enough_where_none_are_needed(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("file\na.mp4\n")
    (tmp_path / "a.txt").write_text("beside")
    assert "the columns are file;" in failure(tmp_path / "list.csv")
    assert find([str(tmp_path / "list.csv")], captions="empty")[0].caption == "beside"


def test_what_cannot_be_used_is_said_in_a_line(tmp_path: Path) -> None:
    touch(tmp_path, "empty/readme.md", "data.bin")
    assert ".mp4 .m4v .mov .mkv .webm" in failure(tmp_path / "empty")
    assert failure(tmp_path / "nowhere").endswith("nowhere: no such file or folder")
    assert "data.bin is no data: give a folder" in failure(tmp_path / "data.bin")
    bad = {
        "cols.csv": ("clip,words\na.mp4,x\n", "line 2: the columns are clip, words; it needs a file/path/video"),
        "gap.csv": ("file,caption\n,x\n", "line 2 names no file"),
        "none.csv": ("file,caption\n", "names no videos: it has no rows"),
        "null.jsonl": ('{"file": null, "caption": "x"}', "line 1 names no file"),
        "number.jsonl": ('{"file": "a.mp4", "caption": 3}', "line 1: the caption is no text"),
        "keys.jsonl": ('{"a": 1, "b": 2}', "line 1: the columns are a, b;"),
        "list.jsonl": ('\n["a.mp4"]', "line 2 is no JSON object"),
        "torn.jsonl": ('{"file": "a.mp4", "caption": "x"}\n{"fi', "torn.jsonl line 2: "),
    }
    for name, (text, reason) in bad.items():
        (tmp_path / name).write_text(text)
        assert reason in failure(tmp_path / name)
    (tmp_path / "latin.csv").write_bytes("file,caption\na.mp4,Hündchen\n".encode("latin-1"))
    assert "latin.csv: " in failure(tmp_path / "latin.csv")
    touch(tmp_path, "texts/a.mp4")
    (tmp_path / "texts/a.txt").write_bytes(b"\xff\xfe\x00\xd8")
    assert "a.txt: " in failure(tmp_path / "texts")


def test_a_thousand_entries_are_listed_fast(tmp_path: Path) -> None:
    for i in range(1000):
        (tmp_path / f"{i}.mp4").touch()
        (tmp_path / f"{i}.txt").write_text(f"clip {i}")
    began = time.process_time()
    assert len(find([str(tmp_path)])) == 1000
    assert time.process_time() - began < 2


def test_the_same_files_are_held_out_when_others_join() -> None:
    items = [Item(Path(f"{i}.mp4"), str(i)) for i in range(20)]
    train, held = hold_out(items, 4, seed=1)
    assert len(held) == 4 and sorted(train + held, key=items.index) == items
    assert hold_out(items, 4, seed=1) == (train, held) != hold_out(items, 4, seed=2)
    more = hold_out([Item(Path("new.mp4"), "new"), *items], 4, seed=1)[1]
    assert len(set(more) & set(held)) >= 3
    assert hold_out(items, 0, seed=1) == (items, [])
    with pytest.raises(InputError, match="20 of 20 files cannot be held out"):
        hold_out(items, 20, seed=1)
