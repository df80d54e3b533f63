"""docs/recipes.md is what the program's types say, key by key."""

import recipe_keys


def test_the_page_of_keys_is_up_to_date():
    assert recipe_keys.PAGE.read_text(encoding="utf-8") == recipe_keys.page(), "write it anew with `make docs`"
