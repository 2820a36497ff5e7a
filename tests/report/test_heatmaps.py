"""Heat maps of experts: which cells there are, what they show, and how large it all gets."""

import pytest

from axolotl_alphalora.inspection import inspect_weights
from axolotl_alphalora.report.heatmaps import draw_inspection, heat_panels
from helpers.inspecting import KINDS, watched, write_adapter


@pytest.fixture(scope="module")
def inspections(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    counts = {f"model.layers.{i}.{kind}": n for i, n in enumerate((1, 3, 5, 2)) for kind in KINDS}
    counts["model.layers.3.mlp.up_proj"] = 0
    write_adapter(folder, counts)
    bare = inspect_weights(folder)
    return bare, watched(bare)


def test_a_cell_is_an_experts_norm_or_its_share_of_the_tokens(inspections):
    bare, watched = inspections
    rows = {row.name: row for row in bare.modules}
    for panel, other in zip(heat_panels(bare), heat_panels(watched), strict=True):
        assert panel.blocks == tuple(f"model.layers.{i}" for i in range(4))
        for place, (block, values) in enumerate(zip(panel.blocks, panel.values, strict=True)):
            row = rows.get(f"{block}.{panel.title}")
            if row is None:
                assert values == other.values[place] == () and panel.title == "mlp.up_proj"
                continue
            assert values == row.relative_norms
            usage = watched.usage_of(row.name)
            if usage is None:
                assert other.values[place] == (None,)
            elif usage.chooses:
                expected = [share * len(row.experts) for share in usage.token_share]
                assert other.values[place] == pytest.approx(expected)
        assert panel.unrouted == other.unrouted == {0} and not panel.dead
        assert other.dead == {(1, 2), (2, 4)}
    assert [panel.title for panel in heat_panels(bare)] == list(KINDS)


def test_only_experts_that_are_there_have_a_cell(inspections):
    for inspection in inspections:
        axes = draw_inspection(inspection, "A title").subfigs[0].axes
        for kind, panel in zip(KINDS, axes, strict=False):
            assert panel.get_title() == kind
            (cells,) = panel.collections
            there = 3 + 5 + (2 if kind != "mlp.up_proj" else 0)
            assert len(cells.get_paths()) == len(cells.get_array()) == there
            assert len(panel.patches) == 1  # the one that is not routed


def test_the_scale_is_even_around_the_mean_and_a_dead_expert_is_at_its_end(inspections):
    figure = draw_inspection(inspections[1], "A title")
    (cells,) = figure.subfigs[0].axes[0].collections
    low, high = cells.get_clim()
    assert low * high == pytest.approx(1) and low > 0
    assert min(cells.get_array()) == pytest.approx(low)
    (marks,) = figure.subfigs[0].axes[0].lines
    assert list(zip(marks.get_xdata(), marks.get_ydata(), strict=True)) == [(2, 1), (4, 2)]


def test_redundancy_and_tasks_are_drawn_over_the_same_depth(inspections):
    bare, watched = inspections
    (redundancy,) = draw_inspection(bare, "").subfigs[1].axes
    values = redundancy.lines[0].get_ydata()
    assert values[0] != values[0]  # one expert is redundant to no other
    assert list(values[1:]) == pytest.approx([block.redundancy for block in bare.blocks[1:]])
    figure = draw_inspection(watched, "")
    upper, lower, _ = figure.subfigs[1].axes
    assert upper.get_xlim() == lower.get_xlim()
    assert [label.get_text() for label in lower.get_yticklabels()] == ["code", "maths"]
    first = lower.collections[0].get_array()[0]
    assert first.mask[0]
    expected = [watched.task_distance("code", rows) for rows in watched.by_block.values()]
    assert list(first[1:]) == pytest.approx(expected[1:])


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize(("blocks", "height"), [(2, 6), (30, 12), (400, 25)])
def test_the_picture_keeps_to_a_readable_size(tmp_path, blocks, height):
    write_adapter(tmp_path, [19 if i == 1 else 1 for i in range(blocks)], r=1)
    figure = draw_inspection(inspect_weights(tmp_path), "A title")
    assert figure.get_figwidth() == 9 and 3 < figure.get_figheight() < height


def test_stacks_of_blocks_have_panels_of_their_own(tmp_path):
    counts = {f"model.layers.{i}.mlp.up_proj": 2 for i in range(3)}
    counts |= {"model.vision.0.mlp.up_proj": 2, "head": 2}
    write_adapter(tmp_path, counts)
    panels = heat_panels(inspect_weights(tmp_path))
    assert {panel.title: len(panel.blocks) for panel in panels} == {
        "head": 1,
        "model.layers mlp.up_proj": 3,
        "model.vision mlp.up_proj": 1,
    }
