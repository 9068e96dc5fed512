"""The contents test: are matched units closer than any order of independent units could make them?"""
