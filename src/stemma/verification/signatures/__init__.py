"""Signatures: who vouches for the files of a model, and do the files still have the bytes that were signed?"""
