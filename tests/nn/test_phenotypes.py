"""Tables of phenotypes, read at categories and between the knots of a number."""

import torch

from scbioformers.nn._phenotypes import rows_at


def test_rows_at_categories_between_knots_beyond_them_and_where_nothing_is_known():
    table = torch.tensor([[0.0, 4.0], [2.0, 4.0], [6.0, 1.0]])
    found = rows_at(table, torch.tensor([0.0, 2.0, 0.5, 1.75, -1.0, 3.0, torch.nan]))
    expected = [[0, 4], [6, 1], [1, 4], [5, 1.75], [-2, 4], [10, -2], [8 / 3, 3]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_the_row_of_a_category_is_exact():
    table = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rows_at(table, torch.arange(7.0)), table)


def test_one_category_is_the_same_wherever_it_is_read():
    table = torch.tensor([[3.0, 1.0]])
    assert rows_at(table, torch.tensor([0.0, torch.nan])).tolist() == [[3.0, 1.0]] * 2


def test_a_number_that_is_not_known_has_no_gradient_problem():
    table = torch.ones(3, 2, requires_grad=True)
    rows_at(table, torch.tensor([torch.nan, 0.5])).sum().backward()
    torch.testing.assert_close(table.grad, torch.tensor([[1 / 3 + 0.5] * 2, [1 / 3 + 0.5] * 2, [1 / 3] * 2]))
