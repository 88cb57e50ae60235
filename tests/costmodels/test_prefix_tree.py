"""Prefix trees from block hashes and from parents."""

import gzip
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from costmodels.prefix_tree import PrefixTree, hash_block_tokens, tree_of_hashes, tree_of_parents
from costmodels.traces import read_trace
from hardware.errors import SpecError


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def spans(tree: PrefixTree, request: int) -> list[tuple[int, int]]:
    return [(int(tree.start_tokens[n]), int(tree.end_tokens[n])) for n in tree.path(request)]


def test_hashes_branch_where_prompts_do() -> None:
    hashes = [[1, 2, 3], [1, 2, 4], [5], [1, 2, 3, 6]]
    tree = tree_of_hashes(hashes, 512, ints(1536, 1300, 100, 1600), ints(10, 20, 30, 40))
    assert spans(tree, 0) == [(0, 1024), (1024, 1536), (1536, 1546)]
    assert spans(tree, 1) == [(0, 1024), (1024, 1300), (1300, 1320)]
    assert spans(tree, 2) == [(0, 100), (100, 130)]
    assert spans(tree, 3) == [(0, 1024), (1024, 1536), (1536, 1600), (1600, 1640)]
    assert tree.path(0)[:2] == tree.path(3)[:2]
    assert tree.seen_tokens().tolist() == [0, 1024, 0, 1536]
    assert tree.take(np.array([1, 3])).seen_tokens().tolist() == [0, 1024]


def test_equal_hashes_behind_different_blocks_are_not_the_same() -> None:
    tree = tree_of_hashes([[1, 3], [2, 3]], 512, ints(1024, 1024), ints(1, 1))
    assert tree.seen_tokens().tolist() == [0, 0]


def test_children_share_as_far_as_their_prompts_reach() -> None:
    # 1 and 2 continue all of 0; 3 repeats a part of 0 only, though it continues 1; 4 goes on behind 2.
    parent = ints(-1, 0, 0, 1, 2)
    tree = tree_of_parents(parent, ints(100, 200, 150, 60, 400), ints(20, 10, 30, 5, 1))
    assert tree.seen_tokens().tolist() == [0, 120, 120, 60, 180]
    assert spans(tree, 3) == [(0, 60), (60, 65)]
    assert spans(tree, 4) == [(0, 60), (60, 120), (120, 180), (180, 401)]
    for request, total in enumerate((120, 210, 180, 65, 401)):
        path = spans(tree, request)
        assert path[0][0] == 0
        assert path[-1][1] == total
        assert all(a[1] == b[0] for a, b in pairwise(path))


def test_stated_shares_cut_the_parent_where_they_end() -> None:
    tree = tree_of_parents(ints(-1, 0, 0), ints(100, 100, 100), ints(10, 10, 10), ints(0, 64, 0))
    assert tree.seen_tokens().tolist() == [0, 64, 0]


def test_the_size_of_hashed_blocks_follows_from_their_number() -> None:
    assert hash_block_tokens(ints(14, 15, 15, 5), ints(6758, 7322, 7236, 2290)) == 512
    assert hash_block_tokens(ints(3, 3), ints(300, 201)) == 100
    with pytest.raises(ValueError, match="none fits"):
        hash_block_tokens(ints(3, 1), ints(300, 300))
    with pytest.raises(ValueError, match="fits all"):
        hash_block_tokens(ints(3), ints(900))
    assert hash_block_tokens(ints(1, 1), ints(300, 200)) == 300


ROWS = [
    {"timestamp": 0, "input_length": 6755, "output_length": 500, "hash_ids": list(range(14))},
    {"timestamp": 3000, "input_length": 7319, "output_length": 490, "hash_ids": [0, *range(14, 28)]},
]


def test_mooncake_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    trace = read_trace(path)
    assert trace.arrival_s.tolist() == [0.0, 3.0]
    assert trace.tree is not None
    assert trace.tree.seen_tokens().tolist() == [0, 512]
    assert trace.traffic().prefix_hit_frac == pytest.approx(512 / (6755 + 7319))
    assert trace.scaled(1.0).tree is trace.tree


def test_turns_of_a_session_are_hits_of_the_traffic(tmp_path: Path) -> None:
    text = "arrival_s,prompt_tokens,output_tokens,session\n0,100,20,3\n1,50,5,-1\n2,50,5,-1\n9,300,5,3\n"
    assert read_trace(written(tmp_path, text)).traffic().prefix_hit_frac == pytest.approx(120 / 500)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_columns_of_hashes_and_of_parents(tmp_path: Path) -> None:
    hashed = "arrival_s,prompt_tokens,output_tokens,hash_ids\n0,100,5,1 2 3 4\n1,120,5,1 2 9 8\n"
    tree = read_trace(written(tmp_path, hashed)).tree
    assert tree is not None
    assert tree.seen_tokens().tolist() == [0, 64]
    family = (
        "request_id,parent_id,arrival_s,prompt_tokens,output_tokens\n7,-1,0,100,5\n9,7,1,200,5\n4,7,2,150,5\n"
    )
    tree = read_trace(written(tmp_path, family)).tree
    assert tree is not None
    assert tree.seen_tokens().tolist() == [0, 105, 105]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("arrival_s,prompt_tokens,output_tokens,hash_ids\n0,100,5,1 x\n", "line 2: hash_ids: '1 x'"),
        (
            "arrival_s,prompt_tokens,output_tokens,hash_ids\n0,100,5,1\n0,100,5,1 2 3\n",
            "hash_ids: the tokens of one",
        ),
        ("arrival_s,prompt_tokens,output_tokens,parent_id\n0,100,5,-1\n", "parent_id needs request_id"),
        ("arrival_s,prompt_tokens,output_tokens,shared_tokens\n0,100,5,3\n", "shared_tokens needs parent_id"),
        (
            "arrival_s,prompt_tokens,output_tokens,request_id,parent_id\n0,100,5,1,2\n1,100,5,2,-1\n",
            "line 2: parent_id: 2 is no request above",
        ),
        (
            "arrival_s,prompt_tokens,output_tokens,request_id,parent_id\n0,100,5,1,-1\n1,100,5,1,-1\n",
            "line 3: request_id: 1 is that of line 2 too",
        ),
        (
            "arrival_s,prompt_tokens,output_tokens,request_id,parent_id,shared_tokens\n0,100,5,1,-1,101\n",
            "line 2: shared_tokens: 101",
        ),
        (
            "arrival_s,prompt_tokens,output_tokens,session,hash_ids\n0,100,5,1,1 2\n",
            "session and hash_ids all say",
        ),
    ],
)
def test_wrong_columns_are_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        read_trace(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        ('{"timestamp": 0, "input_length": 5}\n', "line 1: .* is no JSON object"),
        ("nonsense\n", "line 1: 'nonsense' is no JSON object"),
        (
            '{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [1]}\n'
            '{"timestamp": 0, "input_length": 5, "output_length": 1}\n',
            "in 1 of 2 lines",
        ),
        ('{"timestamp": -5, "input_length": 5, "output_length": 1}\n', "arrival_s: -0.005"),
    ],
)
def test_wrong_json_lines_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=words):
        read_trace(path)
