"""Curves of training: every point is in the CSV, and on its place in the picture."""

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from served import pairlift
from world import write_world

from features.baselines import Noise
from ranker.metrics.curves import as_svg, write_curves

SVG = "{http://www.w3.org/2000/svg}"
POINTS = [
    {"phase": "first", "step": 5, "loss": 4.0, "validation": None},
    {"phase": "first", "step": 10, "loss": 2.0, "validation": None},
    {"phase": "first", "step": 10, "loss": None, "validation": 0.6},
    {"phase": "second & last", "step": 1, "loss": 1.0, "validation": None},
]


class Trained(Noise):
    """A plugin with a curve."""

    curve = POINTS


def test_the_csv_has_every_point_and_a_plugin_without_steps_no_file(tmp_path: Path) -> None:
    write_curves(tmp_path / "none", {"noise": Noise()})
    assert not (tmp_path / "none").exists()
    write_curves(tmp_path / "curves", {"noise": Noise(), "mine": Trained()})
    assert sorted(path.name for path in (tmp_path / "curves").iterdir()) == ["mine.csv", "mine.svg"]
    with (tmp_path / "curves" / "mine.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    want = [{name: "" if value is None else str(value) for name, value in point.items()} for point in POINTS]
    assert rows == want


def test_the_picture_has_a_panel_for_each_phase_and_a_line_for_each_figure() -> None:
    root = ElementTree.fromstring(as_svg("<mine>", POINTS))
    panels = root.findall(f"{SVG}g")
    said = [[text.text for text in panel.iter(f"{SVG}text")] for panel in panels]
    assert [lines[0] for lines in said] == ["first, 10 steps", "second & last, 1 steps"]
    assert {"4", "2", "loss", "validation"} <= set(said[0])
    drawn = [[line.attrib["points"].split() for line in panel.iter(f"{SVG}polyline")] for panel in panels]
    assert [len(lines) for lines in drawn] == [2, 1]
    (x1, y1), (x2, y2) = (map(float, place.split(",")) for place in drawn[0][0])
    assert x1 < x2  # later steps to the right
    assert y1 < y2  # and less loss further down
    frame = panels[0].find(f"{SVG}rect")
    assert frame is not None
    left, top, width, height = (float(frame.attrib[name]) for name in ("x", "y", "width", "height"))
    assert (x2, y2) == (left + width, top + height)
    assert y1 == top
    assert x1 == left + width / 2


MINE = """
import json
from features.baselines import Noise

class Mine(Noise):
    curve = {points}

    def fit(self, data):
        kept = data.scratch / "kept"
        if not kept.exists():
            kept.write_text("so far")
            raise RuntimeError("killed")
        super().fit(data)
"""


def test_a_fit_that_failed_finds_what_it_kept_and_the_bundle_has_its_curve(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_world(tmp_path)
    (tmp_path / "unfinished_plugin.py").write_text(MINE.format(points=POINTS))
    text = path.read_text().replace('plugins = ["als"]', 'plugins = ["mine"]')
    path.write_text(text + '[plugins.mine]\nclass = "unfinished_plugin:Mine"\n')
    code, said = pairlift("train", path, "--out", tmp_path / "bundle")
    assert code == 2, said
    assert "[plugins.mine] fit() raised RuntimeError: killed" in said
    kept = list((tmp_path / "work").glob("unfinished/mine-seed0/*/kept"))
    assert len(kept) == 1
    other = kept[0].parent.with_name("of-other-inputs")
    other.mkdir()
    (other / "kept").touch()
    inputs = json.loads((kept[0].parent / "inputs.json").read_text())
    (other / "inputs.json").write_text(json.dumps([*inputs[:2], {"width": 3}, *inputs[3:5], "other code", *inputs[6:]]))
    code, said = pairlift("train", path, "--out", tmp_path / "bundle")
    assert code == 0, said
    assert not kept[0].parent.parent.exists()  # both are gone
    why = "mine-seed0: begins anew, for the options and the code changed since a fit was ended unfinished"
    assert [line for line in caplog.messages if "begins anew" in line] == [why]
    picture = tmp_path / "bundle" / "curves" / "mine.svg"
    assert f"curve of mine's training: {picture}, and .csv beside it" in said
    assert ElementTree.parse(picture).getroot().tag == f"{SVG}svg"
    assert "curves/mine.csv" in json.loads((tmp_path / "bundle" / "manifest.json").read_text())["files"]
