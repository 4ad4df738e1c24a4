"""Phrases that made native readers stop, as regular expressions, each with what to write instead."""

_UNIT = (
    "example|worker|coordinate|update|step|pass|process|line|cell|rank|parameter|machine|run|batch|row|layer|seed|key"
)

_THING = "losse?s?|draw|mask|call|thread|one|messages?|bytes|milliseconds|ms|seconds|samples|norm|file|record|numbers?"

BANNED = {
    rf"\b(?:{_THING}) an? (?:{_UNIT})\b(?! of| that| is| where)": "per",
    r"\bways? on\b": "options; what to do instead",
    r"\bat hand\b": "current",
    r"\bforetells?\b": "predicts",
    r"\bpassed over\b": "skipped",
    r"\b(?:goes|go|going) on (?:from|where|with)\b": "resumes, continues",
    r"\bbegins? anew\b": "starts a new run",
    r"\bin vain\b": "say what happens",
    r"\bcannot lie\b": "verified",
    r"\blearnt\b": "learned, or name what is kept",
    r"\bby heart\b": "memorises",
    r"\bone's own\b": "your own",
    r"\bin (?:its|their) own (?:terms|way)\b": "say what is meant",
    r"\bpull in ways\b": "contribute an independent direction",
    r"\bstands? (?:in|here|at|beside|by|on|under|below)\b": "is, are",
    r"\b(?:is|be|are|was) told\b": "is reported, is detected",
    r"\bnobody's\b": "belongs to no single example",
    r"\bwastes?\b": "efficiency",
    r"\bperfect scaling\b": "well below the limit",
    r"\bdiminishing returns\b": "near the limit",
    r"(?<!\")\bwasteful\b": "beyond the limit",
    r"\bof its examples count\b": "efficiency",
    r"\bseen to be\b": "is detected as",
    r"\bhands? (?:on|over)\b": "passes",
    r"\brides? on\b": "uses the existing",
    r"\bdid not arrive\b": "never reached",
    r"noise is of any size\b": "non-negligible",
    r"\bof each single\b": "of each",
    r"\b(?:numbers|parameters|tensors) in a row\b": "concatenated",
    r"\bsays? that, too\b": "says so",
    r"\bdrowned\b": "negligible",
    r"\bthe cable\b": "the network link",
    r"\bone of (?:its|their|his) own\b": "its own",
}
