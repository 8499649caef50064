"""Whatever is read and whatever is typed: an answer or a sentence, see test_input.py."""
