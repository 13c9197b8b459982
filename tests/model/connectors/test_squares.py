"""Squares of patches: their order, their means, and the weights of rows on patches."""

import torch

from lmmkit.model.connectors.squares import SquaresConnector, squares

GRID, FACTOR = (4, 6), 2


def by_hand(grid: tuple[int, int], factor: int) -> list[list[int]]:
    """Returns the numbers of the patches of each square, written out."""
    high, wide = grid
    return [
        [(top + i) * wide + left + j for i in range(factor) for j in range(factor)]
        for top in range(0, high, factor)
        for left in range(0, wide, factor)
    ]


def test_squares_are_in_the_order_of_the_image():
    x_IND = torch.randn(2, 24, 5, generator=torch.Generator().manual_seed(0))
    numbers = torch.tensor(by_hand(GRID, FACTOR))
    assert torch.equal(squares(x_IND, GRID, FACTOR), x_IND[:, numbers])
    connector = SquaresConnector(5, 7, GRID, FACTOR)
    torch.testing.assert_close(connector.row_features(x_IND), x_IND[:, numbers].mean(2))
    assert SquaresConnector.rows(GRID, FACTOR) == len(numbers) == 6


def test_the_weight_of_a_row_is_divided_among_its_patches():
    weight_N = torch.arange(1.0, 7.0)
    map_XY = SquaresConnector(5, 7, (2, 2), FACTOR).on_patches(weight_N, GRID)
    want = torch.zeros(24)
    for weight, numbers in zip(weight_N, by_hand(GRID, FACTOR), strict=True):
        want[numbers] = weight / 4
    assert map_XY.shape == GRID and torch.equal(map_XY, want.view(GRID)) and map_XY.sum() == weight_N.sum()


def test_a_factor_divides_both_sides():
    assert SquaresConnector.misfit(GRID, 7, 2) is None
    for factor in (3, 4, 5):  # divides one side, the other, or neither
        assert SquaresConnector.misfit(GRID, 7, factor)[:2] == ("factor", str(factor))
