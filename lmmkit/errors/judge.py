"""Codes of problems with the responses of a judge, a language model that grades answers."""

from lmmkit.errors import Code

# fmt: off

JUDGE_RESPONSE = Code(
    "judge/response", cause="A line of a file of judge responses is not a response.",
    expected="{expected}", hint="Correct or remove the line; docs/benchmarks.md describes the file.",
)
JUDGE_TWICE = Code(
    "judge/twice", cause="The files of judge responses answer one request twice.",
    expected="one response to each request", hint="Remove all but one, and choose it before you read the scores.",
)
JUDGE_UNASKED = Code(
    "judge/unasked", cause="Judge responses belong to requests of other answers, or of more runs.",
    expected="the `hash` of a request",
    hint="Judge the requests that were written for these answers, with the same number of runs.",
)
JUDGE_MIXED = Code(
    "judge/mixed", cause="The responses of one score come from several judge models.",
    expected="one judge model, because each grades by another scale",
    hint="Let one model judge all requests of this benchmark.",
)
