"""Texts to token ids: the tokenizer, the text around few-shot queries, and CLS tokens in long texts.

In: strings. Out: arrays of token ids, cut to the model's limit.
Nothing here knows a graph or a batch.
"""
