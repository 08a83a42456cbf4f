import grounding_dino.data.datasets  # noqa: F401
from grounding_dino.data.datasets.label_names import NAME_FIXES, prompt_name, renamed

import pytest


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("aerosol_can", "aerosol can"),
        ("arctic_(type_of_shoe)", "arctic"),
        ("bow_(decorative_ribbons)", "bow"),
        ("(red)_bow_(weapon)_2", "bow 2"),
        ("Cigar/Cigarette ", "Cigar/Cigarette"),
        ("trafficLight-Green", "trafficLight-Green"),
        ("t\\", "t\\"),
        ("(x)", "(x)"),
        ("__", "__"),
    ],
)
def test_a_prompt_has_no_underscores_and_no_parentheses_but_always_some_text(name, prompt):
    assert prompt_name(name) == prompt


def test_the_table_of_a_set_comes_first_and_meets_names_with_stray_spaces():
    assert prompt_name("Table Teniis paddle ", NAME_FIXES["objects365_v2"]) == "Table Tennis paddle"
    assert prompt_name("Table Teniis paddle") == "Table Teniis paddle"


@pytest.mark.parametrize("table", NAME_FIXES)
def test_tables_correct_each_name_once_and_into_a_prompt_name(table):
    fixes = NAME_FIXES[table]
    assert all(wrong == wrong.strip() and right == prompt_name(right) != wrong for wrong, right in fixes.items())
    assert not set(fixes.values()) & set(fixes)


def test_categories_keep_the_name_in_the_file_beside_the_new_one():
    categories = [{"id": 3, "name": "Bakset"}, {"id": 4, "name": "Chair"}, {"id": 5}]
    assert renamed(categories, NAME_FIXES["objects365_v2"]) == [
        {"id": 3, "name": "Basket", "original_name": "Bakset"},
        {"id": 4, "name": "Chair"},
        {"id": 5},
    ]
    assert categories[0] == {"id": 3, "name": "Bakset"}
