"""Decoding strategies that turn next-token scores into text: greedy, beam search, sampling and beam sampling."""
