"""Between frameworks: recipes that say which key becomes which, and how the axes lie.

A mapping is three things, kept apart: names (templates with slots, which run both ways), layouts (kinds of layers, as data in
kinds.toml), and facts that no file holds (variables: heads, the shape before Flatten). docs/recipes.md teaches the language.
"""
