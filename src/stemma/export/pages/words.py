"""The words of a page that are not everybody's, each with its meaning; all of them are in the glossary."""

import html
import re
from collections.abc import Mapping

WORDS: Mapping[str, tuple[str, str]] = {
    "p-value": (r"p-values?|p [=<] ",
                "how often models that were trained apart agree at least this well; small means no coincidence"),
    "significance level": (r"significance level", "the accepted probability of naming a relation where there is none"),
    "independent model": (r"independent (models?|networks?)",
                          "a model trained apart from the other, from other starting weights"),
    "control model": (r"control models?|controls", "a model trained independently on the same task, to compare with"),
    "probe input": (r"probes?|probe inputs?",
                    "an input that both models are run on, so that their outputs can be compared"),
    "digest": (r"sha256", "a hash of the weights: two files with the same digest hold the same weights"),
    "cosine": (r"cosine", "how alike two rows of numbers are: 1 the same up to their size, 0 nothing in common"),
    "edge": (r"edges?", "a line of a family tree: from a parent to what was made from it"),
    "unit": (r"units?", "a channel, hidden neuron or attention head"),
    "relative change": (r"relative change", "the size (norm) of the difference as a share of the size of the parent"),
    "description length": (r"description length|bits per entry|MDL",
                           "how many bits write down the child given the parent; the shorter, the simpler"),
    "gradient field": (r"gradient field|field distance|field-cosine",
                       "how the output of a model reacts to each part of its input, collected along a path"),
    "batch norm": (r"batch norm", "layers that normalise by statistics of the training data"),
    "MACs": (r"MACs", "multiply-accumulate operations for one input: the cost of running the network"),
    "latency": (r"latency", "the time that a batch of inputs takes"),
    "receipt": (r"receipts?", "the record of what an edit did, stored beside the weights"),
    "plan": (r"plan", "the record of what an edit will do, before it is done"),
    "forget set": (r"forget (set|samples|inputs)", "the inputs of what a model must forget"),
    "retrained model": (r"retrained",
                        "a model trained in the same way without the forget set: the reference for unlearning"),
    "excess": (r"excess", "how much further a model is from retrained models than they are from one another"),
    "missing ancestor": (r"\(missing \d+\)|missing ancestors?",
                         "a model that the distances call for and that is not among the models"),
    "share": (r"share \d|share of that parent", "the weight of one parent in a merge"),
    "registry": (r"registry|enrol\w*", "the database of known models; enrolling adds a model to it"),
    "modality": (r"modality|modalities", "one kind of input, such as image or sound, of a network that takes several"),
    "competition strength": (r"competition strength",
                             "the share of what a modality can do alone that the fused network has lost"),
    "sketch": (r"sketch(es)?", "a small summary of weights or outputs that is kept instead of them"),
    "distillation": (r"distillation|distilled",
                     "training from the outputs of another model; it leaves no trace in weights"),
    "copy": (r"copy|copies", "has the same weights"),
    "reformatted": (r"reformatted", "the same network in another form: names, layout, number format"),
    "permuted": (r"permuted", "the same network with its hidden units in another order, rotated or rescaled"),
    "quantized": (r"quantized", "the same with numbers of 8 bits or fewer"),
    "pruned": (r"pruned", "the same with weights, units or layers removed"),
    "unlearned": (r"unlearned", "the same with something made to be forgotten"),
    "finetuned": (r"finetuned", "trained further from these weights"),
    "lora": (r"lora", "trained further by a change of low rank"),
    "head-replaced": (r"head-replaced", "the same but for a new last layer"),
    "part-inherited": (r"part-inherited", "shares some parts; the others are its own"),
    "merged": (r"merged|merge", "made from the weights of several parents"),
    "same-run": (r"same-run", "two checkpoints of one training run"),
    "same-init": (r"same-init", "trained apart from the same random starting weights"),
    "siblings": (r"siblings?", "both come from a common ancestor"),
}  # fmt: skip
"""By term: a pattern that finds it, and what it means."""


def words_on(page: str) -> list[tuple[str, str]]:
    """The terms that occur on a page, with their meaning.

    Args:
        page: Markup.

    Returns:
        In the order of `WORDS`.
    """
    text = html.unescape(re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL))
    return [
        (word, meaning)
        for word, (pattern, meaning) in WORDS.items()
        if re.search(rf"(?<![\w-])({pattern})(?![\w-])", text)
    ]
