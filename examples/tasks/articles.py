"""Documents of the tasks beside this file, cut from the sample articles that ship with moe_eval."""

import random
import re

from datasets import Dataset

from moe_eval.data.documents import moe_sample

_CHOICES = 4
_FEWEST_WORDS = 12


def _sentences() -> list[list[str]]:
    text = " ".join(line for page in moe_sample()["test"]["page"] for line in page.split("\n") if " = " not in line)
    sentences = [sentence.split() for sentence in re.split(r"(?<=\.) ", text)]
    return [words for words in sentences if len(words) >= _FEWEST_WORDS]


def next_word(**_: object) -> dict[str, Dataset]:
    """The split `test` with a text, the words that may follow it, and the number of the one that does."""
    generator = random.Random(0)
    sentences = _sentences()
    vocabulary = sorted({word for words in sentences for word in words if word.isalpha()})
    rows = []
    for words in sentences:
        at = generator.randrange(len(words) // 2, len(words) - 1)
        choices = [words[at], *generator.sample([word for word in vocabulary if word != words[at]], _CHOICES - 1)]
        generator.shuffle(choices)
        answer = choices.index(words[at])
        rows.append({"text": " ".join(words[:at]), "choices": choices, "answer": answer, "word": words[at]})
    return {"test": Dataset.from_list(rows)}
