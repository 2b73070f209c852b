"""docs/architecture.svg: the committed picture is today's, its files exist, and no arrow runs through a box."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tools.architecture import BOX, FLOW, GAP, NOT_DRAWN, Box, arrows, boxes, picture, reduced, route
from tools.imports import LAYERS, PACKAGE, ROOT, modules, part_graph

SVG = "{http://www.w3.org/2000/svg}"


def drawn() -> ElementTree.Element:
    return ElementTree.fromstring(picture())


def test_the_committed_picture_is_what_the_script_makes_today() -> None:
    committed = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    assert committed == picture(), "python -m tools.architecture > docs/architecture.svg"


def test_every_step_of_the_flow_names_a_file_that_makes_it() -> None:
    """The class that a file makes is named in its code, not in a comment alone."""
    ground = [node for path in PACKAGE.glob("*.py") for node in ast.parse(path.read_text(encoding="utf-8")).body]
    nouns = {"Example", *(node.name for node in ground if isinstance(node, ast.ClassDef))}
    made = 0
    for (_, file), (noun, _) in itertools.pairwise(FLOW):
        tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
        if noun in nouns:
            made += 1
            assert noun in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}, f"{file} makes no {noun}"
    assert made == 5, "Example TokenTree Batch TokenLogprobs LossOutput"
    assert FLOW[-1] == ("report", "")


def test_a_box_for_every_part_and_a_head_for_every_arrow() -> None:
    graph = part_graph(modules())
    texts = [element.text for element in drawn().iter(f"{SVG}text")]
    assert [part for part in graph if part not in NOT_DRAWN and part not in texts] == []
    assert [file for _, file in FLOW if file and file not in texts] == []
    paths = [path for path in drawn().iter(f"{SVG}path") if path.get("class") == "arrow"]
    assert len(paths) == len(arrows(graph))
    assert all(path.get("marker-end") == "url(#head)" for path in paths)


def test_no_import_is_lost_by_the_arrows_that_are_left_out() -> None:
    graph = {part: {target for target in targets if LAYERS[target]} for part, targets in part_graph(modules()).items()}
    kept = dict.fromkeys(graph, frozenset[str]())
    for source, target in arrows(part_graph(modules())):
        kept[source] |= {target}

    def reach(part: str) -> set[str]:
        return set().union(*({target} | reach(target) for target in kept[part]))

    for part, targets in graph.items():
        assert part == "__main__" or targets <= reach(part)


def test_the_longer_way_stands_for_the_shorter() -> None:
    graph = {"a": {"b", "c", "d"}, "b": {"c"}, "c": set[str](), "d": {"c"}}
    assert reduced(graph) == {"a": {"b", "d"}, "b": {"c"}, "c": set(), "d": {"c"}}


def test_no_arrow_runs_through_a_box_and_no_two_in_one_column() -> None:
    graph = part_graph(modules())
    places = boxes([part for part in LAYERS if part in graph and part not in NOT_DRAWN])
    for one, other in itertools.combinations(places.values(), 2):
        assert one.top != other.top or one.right < other.left or other.right < one.left, "boxes of a layer overlap"
    taken: list[float] = []
    columns: list[tuple[float, float, float]] = []
    for source, target in arrows(graph):
        corners = route(places[source], places[target], list(places.values()), taken)
        for (x, y), (to_x, to_y) in itertools.pairwise(corners):
            for part, box in places.items():
                inside = max(x, to_x) > box.left and min(x, to_x) < box.right
                assert not (inside and max(y, to_y) > box.top and min(y, to_y) < box.bottom), (
                    f"{source} -> {target}: {part}"
                )
            if x == to_x:
                assert all(x != at or to_y <= top or y >= end for at, top, end in columns), f"{source} -> {target}"
                columns.append((x, y, to_y))


def test_an_arrow_between_boxes_apart_bends_once_above_its_target() -> None:
    source, target = Box(0, 100, 0, BOX), Box(200, 300, BOX + GAP, 2 * BOX + GAP)
    corners = route(source, target, [source, target], [])
    assert [y for _, y in corners] == [BOX, BOX + GAP / 2, BOX + GAP / 2, BOX + GAP]
    assert corners[0][0] == corners[1][0] == 84 and corners[2][0] == corners[3][0] == 216


def test_an_arrow_that_finds_no_way_says_where_to_make_room() -> None:
    source, wall, target = Box(0, 100, 0, BOX), Box(0, 100, 100, 150), Box(0, 100, 200, 250)
    with pytest.raises(ValueError, match="PLACES"):
        route(source, target, [source, wall, target], [])


def test_a_part_without_a_place_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "posttrain" / "board"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    with pytest.raises(KeyError, match="board"):
        picture(tmp_path / "posttrain")
