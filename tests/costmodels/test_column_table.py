"""Tables of configurations refuse what they cannot hold."""

import numpy as np
import pytest

from costmodels.column_table import ColumnTable
from costmodels.serving.config import ServingTable
from costmodels.strategy import ConfigTable


@pytest.mark.parametrize("table", [ConfigTable, ServingTable])
def test_a_table_refuses_a_column_it_does_not_have(table: type[ConfigTable | ServingTable]) -> None:
    with pytest.raises(ValueError, match=f"no column of a {table.__name__} is called tq"):
        table.from_columns(tp=2, tq=np.array([1, 2]))


@pytest.mark.parametrize("table", [ConfigTable, ServingTable])
def test_scalars_fill_up_to_the_length_of_the_columns(table: type[ConfigTable | ServingTable]) -> None:
    rows = table.from_columns(tp=np.array([1, 2, 4]), pp=2)
    assert isinstance(rows, ColumnTable)
    assert len(rows) == 3
    assert rows.take(np.array([2, 0])).tp.tolist() == [4, 1]
    assert rows.pp.tolist() == [2, 2, 2]


def test_columns_of_different_length_are_refused() -> None:
    columns = {name: getattr(ConfigTable.from_columns(), name) for name in ConfigTable.__dataclass_fields__}
    with pytest.raises(ValueError, match="columns differ in length"):
        ConfigTable(**(columns | {"tp": np.array([1, 2])}))
