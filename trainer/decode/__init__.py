"""How a language model's next-token scores become text: greedy, beam search, sampling, beam sampling."""
