"""The recipes and grids that come with the package are found by name, apart from each other."""

from __future__ import annotations

from pathlib import Path

from lmmkit.recipe import shipped


def test_grids_are_no_recipes_and_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "folder", lambda: tmp_path)
    for name in ("plain.yaml", "zoo/one.yaml", "ablations/small/mine.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    grid = tmp_path / "ablations" / "small" / "mine.yaml"
    assert list(shipped.shipped()) == ["plain", "zoo/one"]
    assert shipped.shipped_grids() == {"ablations/small/mine": grid}
    for name in ("small/mine", "ablations/small/mine", "recipes/ablations/small/mine.yaml"):
        assert shipped.find_grid(Path(name)) == grid, name
    assert shipped.find_recipe(Path("ablations/small/mine")) == Path("ablations/small/mine")
    assert shipped.find_grid(Path("plain")) == Path("plain")
