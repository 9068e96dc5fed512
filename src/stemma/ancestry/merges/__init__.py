"""Which models was a child merged from, by which rule, with which weights?"""
