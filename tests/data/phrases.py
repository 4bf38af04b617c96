"""What a phrase is, plainly."""


def phrases(words):
    """Every five words in a row, in order; of a shorter text, all its words as one."""
    if len(words) < 5:
        return [" ".join(words)]
    return list(map(" ".join, zip(words, words[1:], words[2:], words[3:], words[4:], strict=False)))
