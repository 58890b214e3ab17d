"""Files of every kind: JSON from outside, texts in many forms, and putting new files in their place.

In: paths and streams. Out: records and texts, or one error that names file, line and field.
Nothing here knows a model, a token or a vector.
"""
